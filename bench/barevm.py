"""The bare contender among virtual machines: QEMU's microvm started by hand on the same tree, by barevm.sh."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench import bare
from bench.byhand import GATEWAY, ByHand, Guest
from bench.debian import bootstrap
from bench.measure import BenchError, run

SCRIPT = str(Path(__file__).with_name("barevm.sh"))
KERNEL = "linux-image-cloud-amd64"
ADDRESS, MAC, DEVICE = "192.168.95.52", "02:11:22:33:44:88", "vm-bare"
OWNER = 1000
HOME = "/mnt"
RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


def fetch_kernel(folder: Path) -> None:
    """The distribution's cloud kernel with its modules, unpacked and not installed. Needs the network."""
    bootstrap(folder, "extract", KERNEL)


class BareVm:
    """Starts the tree by hand as a virtual machine, with the kernel that `fetch_kernel` left in `kernel`."""

    def __init__(self, tree: Path, kernel: Path, work: Path, yard: ByHand) -> None:
        self.yard = yard
        self.folder = work / "barevm"
        self.home, self.credentials, self.key = (self.folder / name for name in ("home", "credentials", "key"))
        if not self.folder.exists():
            self._prepare(tree, kernel)
        yard.add_tap(DEVICE, ADDRESS, MAC)
        self.khz = observe_tsc_khz()

    def _prepare(self, tree: Path, kernel: Path) -> None:
        self.home.mkdir(parents=True)
        os.chown(self.home, OWNER, OWNER)
        host_key = self.folder / "host-key"
        for key in (self.key, host_key):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(key)])
        words = (str(self.credentials), "Type=ether", ADDRESS, GATEWAY, f"{self.key}.pub", str(host_key))
        run([bare.SCRIPT, "credentials", *words])
        for file in self.credentials.iterdir():
            file.chmod(0o644)  # QEMU reads them as nobody
        run([SCRIPT, "prepare", str(kernel / "root"), str(tree), str(self.folder)])

    def start_to_ready(self, number: int) -> float:
        """Seconds from QEMU's start to sshd's banner. What runs before it (virtiofsd) is not counted."""
        with self.running(f"bare-{number}") as guest:
            took = guest.wait_until_ready()
            if number == 0:
                self.check_works(guest)
            return took

    @contextlib.contextmanager
    def running(self, label: str) -> Iterator[Guest]:
        """A guest of its own process; it ends with the context."""
        tap = self.yard.with_tap(label, DEVICE, [])
        words = (str(self.folder), str(self.home), str(self.credentials), MAC, str(self.khz))
        with self.yard.running(label, ADDRESS, [SCRIPT, "run", *words, *tap]) as guest:
            yield guest

    def mount_home(self, guest: Guest) -> None:
        """Show the share to the guest, beside the home in its own memory that its user's key is in."""
        guest.ssh(self.key, "dev", f"doas mount -t virtiofs home {HOME}")

    def check_works(self, guest: Guest) -> None:
        """What answered is a whole machine: its user becomes root, and its home is the host's."""
        self.mount_home(guest)
        guest.ssh(self.key, "dev", f"touch {HOME}/was-here")
        if (self.home / "was-here").stat().st_uid != OWNER:
            raise BenchError("the bare machine's home is not the one on the host")


def observe_tsc_khz() -> int:
    """The frequency of this machine's time stamp counter, by the clock that no one adjusts."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(RDTSC)
    read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def read_both() -> tuple[int, int, int]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = read_counter()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return after - before, before + after, ticks

    def closest() -> tuple[int, int]:
        """Twice the time, and the counter: of twenty readings, the one that nothing came between."""
        return min(read_both() for _ in range(20))[1:]

    first, first_ticks = closest()
    time.sleep(0.1)
    second, second_ticks = closest()
    return round((second_ticks - first_ticks) / ((second - first) / 2) * 1e6)
