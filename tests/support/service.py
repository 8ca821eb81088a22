"""A service of systemd's, run without systemd: what its unit says is done by hand, as systemd does it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hutch.runtime.launched import write_launch
from hutch.runtime.units import render_script

from hutch.backends.launch import Launch
from hutch.spec.names import Places

NAMESPACE = ("unshare", "--mount", "--propagation", "slave", "--")


class Service:
    """One start of a Launch: `process` is its main process. What it says goes to `said`."""

    def __init__(self, launch: Launch, places: Places, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.launch, self.runtime = launch, Path(launch.runtime)
        self.is_overdue = False
        self.said = directory / "said"
        self.script = directory / "run"
        self.script.write_text(render_script(launch, places, "/usr/bin/python3"))
        write_launch(directory / "launch.json", asdict(launch))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        path = directory / "notify"
        path.unlink(missing_ok=True)
        self.notify.bind(str(path))
        joining = ("nsenter", f"--net={launch.network_namespace}", "--") if launch.network_namespace else ()
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                [*joining, *NAMESPACE, "/bin/sh", str(self.script), "start"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"NOTIFY_SOCKET": str(path), "PATH": "/usr/bin:/bin"},
                start_new_session=True,
            )

    # What systemd does.

    def is_ready(self, seconds: float) -> bool:
        """Whether it says so within some time: its main process does, nobody else is heard."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.notify.settimeout(left)
            try:
                text, ancillary, _, _ = self.notify.recvmsg(4096, 256)
            except TimeoutError:
                return False
            (pid, *_) = struct.unpack("3i", ancillary[0][2])
            if b"READY=1" in text.split(b"\n") and pid == self.process.pid:
                self.verb("ready")
                return True
        return False

    def stop(self) -> int:
        """As `systemctl stop`; the exit code of the main process."""
        self.verb("stopping")
        self.process.send_signal(signal.SIGTERM)
        return self.ended(self.launch.stop_seconds)

    def ended(self, seconds: float) -> int:
        """What it ended with, by force when its time is over, and what becomes of the rest then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.is_overdue = True
        self.end()
        return self.process.returncode

    def end(self) -> None:
        """What is left is killed, as the rest of a cgroup is. May be called again."""
        if self.notify.fileno() < 0:
            return
        self.notify.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        code = self.process.wait(10)
        result = "timeout" if self.is_overdue else "success" if code in (0, *self.launch.restart_codes) else "exit-code"
        self.verb("stopped", SERVICE_RESULT=result, EXIT_CODE="exited", EXIT_STATUS=str(code))

    def verb(self, verb: str, **environment: str) -> None:
        """One of the commands around the main process."""
        joining = ("nsenter", f"--net={self.launch.network_namespace}", "--") if self.launch.network_namespace else ()
        told = {"PATH": "/usr/bin:/bin", "MAINPID": str(self.process.pid), **environment}
        argv = [*joining, *NAMESPACE, "/bin/sh", str(self.runtime / "unit"), verb]
        result = subprocess.run(argv, env=told, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr

    # What is seen of it.

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runtime / "status.json").read_text())
        return found

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)
