"""The bare contender: systemd-nspawn started by hand, with the recipe of bare.sh."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from bench.measure import BenchError, run, spawn, try_run, wait_for_banner

SCRIPT = str(Path(__file__).with_name("bare.sh"))
MARKS = ("bare-up", "ve-bare", "vi-bare")
NAMESPACE, GATEWAY, ADDRESS, UPLINK = "bare", "192.168.93.1", "192.168.93.50", "192.168.94"


class Bare:
    """Starts the tree by hand, one container at a time."""

    def __init__(self, tree: Path, work: Path) -> None:
        self.tree = tree
        self.work = work / "bare"
        self.work.mkdir()
        self.key = self.work / "key"
        self.host_key = self.work / "host-key"
        for key in (self.key, self.host_key):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(key)])
        run([SCRIPT, "up", NAMESPACE, f"{GATEWAY}/24", UPLINK])

    def start_to_ready(self, number: int) -> float:
        """Seconds from systemd-nspawn's start to sshd's banner. The mounts before are not counted."""
        return self._start(number, with_ssh=False)

    def start_to_ssh(self, number: int) -> float:
        """The same, and a command by ssh."""
        return self._start(number, with_ssh=True)

    def _start(self, number: int, *, with_ssh: bool) -> float:
        place = self.work / str(number)
        place.mkdir()
        log = str(self.work / f"{number}.log")
        keys = (f"{self.key}.pub", str(self.host_key))
        process = spawn(
            ["unshare", "--mount", SCRIPT, "run", str(self.tree), str(place), NAMESPACE, ADDRESS, GATEWAY, *keys], log
        )
        try:
            wait_for_banner(ADDRESS, alive=lambda: process.poll() is None)
            if with_ssh:
                self.check_works()
            ready = time.time()
            if number == 0:
                self.check_works()
            return ready - float((place / "started").read_text())
        except BenchError as error:
            raise BenchError(f"{error}\n{Path(log).read_text(errors='replace')[-2000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    def check_works(self) -> None:
        """What answered is a whole container: its user can log in and become root."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        argv = ["ssh", "-F", "none", "-i", str(self.key), *options, f"dev@{ADDRESS}", "true"]
        if not try_run(argv):
            raise BenchError("the bare container does not let its user in")
