"""Where the virtual machines that hutch is measured against live: a network namespace, TAPs, and QEMU's process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import bare
from bench.measure import BenchError, run, spawn, wait_for_banner

NAMESPACE, NETWORK, UPLINK = "byhand", "192.168.95", "192.168.96"
GATEWAY = f"{NETWORK}.1"
MARKS = ("byhand-up", "vm-stock", "vm-bare")
TAP = str(Path(__file__).with_name("tap.py"))


class Guest:
    """A virtual machine that was started, known by its process and by sshd's address."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], started: Path) -> None:
        self.address = address
        self._process = process
        self._started = started

    def wait_until_ready(self) -> float:
        """Seconds from QEMU's start to sshd's banner."""
        wait_for_banner(self.address, limit=120, alive=lambda: self._process.poll() is None)
        return time.time() - float(self._started.read_text())

    def ssh(self, key: Path, user: str, command: str) -> str:
        """What `command` says inside."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return run(["ssh", "-F", "none", "-i", str(key), *options, f"{user}@{self.address}", command], timeout=120)

    def wait_until_ended(self) -> None:
        """Return when the guest has switched itself off."""
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the guest at {self.address} does not switch itself off") from error


class ByHand:
    """The namespace, with a bridge, for as long as the context lasts; logs and clocks lie below `work`."""

    def __init__(self, work: Path) -> None:
        self.work = work / "byhand"
        self.work.mkdir(exist_ok=True)

    def __enter__(self) -> ByHand:
        run([bare.SCRIPT, "up", NAMESPACE, f"{GATEWAY}/24", UPLINK])
        return self

    def __exit__(self, *_: object) -> None:
        run(["ip", "link", "delete", f"{NAMESPACE}-up"])  # at once: the kernel clears a namespace up when it likes
        run(["ip", "netns", "delete", NAMESPACE])

    def add_tap(self, device: str, address: str, mac: str) -> None:
        """A TAP on the bridge, and a neighbour entry, so that no second is lost to an unanswered ARP request."""
        inside = ["ip", "-n", NAMESPACE]
        run([*inside, "tuntap", "add", device, "mode", "tap"])
        run([*inside, "link", "set", device, "master", "br0", "up"])
        run([*inside, "link", "set", "dev", device, "type", "bridge_slave", "isolated", "on"])
        run([*inside, "neighbour", "replace", address, "lladdr", mac, "dev", "br0", "nud", "permanent"])

    def started(self, label: str) -> Path:
        """Where the clock of the guest `label` is started."""
        return self.work / f"{label}.started"

    def with_tap(self, label: str, device: str, qemu: Sequence[str]) -> list[str]:
        """The command that runs `qemu` with the TAP as its file descriptor 3, and starts its clock."""
        return ["ip", "netns", "exec", NAMESPACE, sys.executable, TAP, device, str(self.started(label)), *qemu]

    @contextlib.contextmanager
    def running(self, label: str, address: str, argv: Sequence[str]) -> Iterator[Guest]:
        """The guest that `argv` starts; it ends with the context, at once. On failure its log is told."""
        log = self.work / f"{label}.log"
        process = spawn(argv, str(log))
        try:
            yield Guest(address, process, self.started(label))
        except BenchError as error:
            raise BenchError(f"{error}\n{log.read_text(errors='replace')[-3000:]}") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
