"""What is measured of virtual machines, and what is promised, without KVM: all contenders are emulated alike."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.barevm import HOME, BareVm
from bench.byhand import ByHand
from bench.measure import (
    BenchError,
    Sample,
    Samples,
    blocks_below,
    interleave,
    seconds,
    spawn,
    try_run,
    wait_for_banner,
)
from bench.ours import Hutch
from bench.stock import Stock
from bench.table import Row, Scenario, Setting

CORES = 2
BUSY_LOOPS, BUSY_STARTS, QUICK_BUSY_STARTS = 2, 10, 3
BUSY_LIMIT = 180.0
SIZE = 512 * 2**20
BLOCK = 2**20
WRITE = f"rm -f big && dd if=/dev/zero of=big bs={BLOCK} count={SIZE // BLOCK} conv=fsync 2>&1"
READ = f"dd if=big of=/dev/null bs={BLOCK} 2>&1"
FORGET = "sync && echo 3 > /proc/sys/vm/drop_caches"


def start(setting: Setting) -> Iterator[Row]:
    """`hutch start` against a stock guest, and against the same tree as a microvm by hand."""
    with _two_cores(), ByHand(setting.work) as yard, _stopped_vm(setting.hutch, "vm") as ours:
        contenders: dict[str, Sample] = {}
        if setting.wants("vm-start"):
            contenders["vm-start"] = Stock(setting.stock, yard).start_to_ready
        if setting.wants("vm-lab"):
            contenders["vm-lab"] = BareVm(setting.tree, setting.kernel, setting.work, yard).start_to_ready
        samples, *references = interleave(setting.rounds_of_vms, ours, *contenders.values())
    what = "cold `hutch start` of an existing virtual machine, to ready, without KVM"
    promises = {
        "vm-start": ("a stock Debian guest in QEMU's q35, from its start to sshd's banner", 0.33),
        "vm-lab": ("QEMU's microvm by hand, from its start to sshd's banner, same root tree", 0.7),
    }
    for name, reference in zip(contenders, references, strict=True):
        other, bound = promises[name]
        yield Row(name, what, "s", samples, reference, other, bound)


def busy(setting: Setting) -> Iterator[Row]:
    """Cold starts on a machine that has other things to do: a guest without KVM must not lose its clock."""
    hutch = setting.hutch
    starts = QUICK_BUSY_STARTS if setting.quick else BUSY_STARTS
    took: list[float] = []
    with _two_cores(), _stopped_vm(hutch, "vm"):
        for _ in range(starts):
            with _busy_loops(setting.work):
                begin = time.perf_counter()
                if try_run(hutch.argv("start", "vm"), timeout=BUSY_LIMIT) and hutch.runs("vm"):
                    took.append(time.perf_counter() - begin)
            hutch("stop", "vm")
    yield Row(
        "vm-busy",
        f"of {starts} cold starts of a virtual machine beside {BUSY_LOOPS} busy loops, those not ready",
        "",
        Samples((float(starts - len(took)),)),
        bound=0,
        note=f"to ready and a first ssh: {statistics.median(took):.1f} s" if took else "",
    )


def throughput(setting: Setting) -> Iterator[Row]:
    """Sequential reads and writes in home, against virtiofsd as root by hand. Both guests run all the while."""
    hutch, rounds = setting.hutch, setting.rounds_of_vms
    with _two_cores(), ByHand(setting.work) as yard, _running_vm(hutch, "vm"):
        bare = BareVm(setting.tree, setting.kernel, setting.work, yard)
        with bare.running("bare-home") as guest:
            guest.wait_until_ready()
            bare.mount_home(guest)
            inside = (
                Home(lambda command: hutch("exec", "vm", "--", "sh", "-euc", f"cd; {command}")),
                Home(lambda command: guest.ssh(bare.key, "dev", f"set -eu; cd {HOME}; {command}")),
            )
            written = interleave(rounds, *(home.write for home in inside))
            read = interleave(rounds, *(home.read for home in inside))
    reference = "virtiofsd as root and QEMU by hand, same root tree"
    for name, verb, (ours, other) in (("vm-read", "read", read), ("vm-write", "write", written)):
        what = f"sequential {verb} of {SIZE // 2**20} MiB in a virtual machine's home"
        yield Row(name, what, "bytes/s", ours, other, reference, 0.9, NOTES[name], at_least=True)


NOTES = {
    "vm-read": "by `dd` inside; the guest has forgotten the file, the host has not: its disk is not measured",
    "vm-write": "by `dd conv=fsync` inside, so the host's disk is part of it",
}


@dataclass(frozen=True, slots=True)
class Home:
    """A home inside a guest; `run` runs a line of shell there as its user, who may use doas."""

    run: Callable[[str], str]

    def write(self, _number: int) -> float:
        """Bytes a second, into a new file, until it is on the host's disk."""
        return self._rate(self.run(WRITE))

    def read(self, _number: int) -> float:
        """Bytes a second, from a file that the guest has not in memory."""
        self.run(f"doas sh -c '{FORGET}'")
        return self._rate(self.run(READ))

    @staticmethod
    def _rate(said: str) -> float:
        """From dd's last words, by the guest's clock: the way into the guest does not count."""
        match = re.search(rf"^{SIZE} bytes.* copied, ([0-9.e-]+) s", said, re.MULTILINE)
        if not match:
            raise BenchError(f"dd did not do what it was asked for:\n{said}")
        return SIZE / float(match[1])


def disk(setting: Setting) -> Iterator[Row]:
    """One more machine of an image that another one uses."""
    hutch = setting.hutch
    grown: list[float] = []
    with _two_cores(), _running_vm(hutch, "vm"):
        hutch.declare(vms=("vm", "more"))
        for _ in range(1 if setting.quick else 3):
            os.sync()
            before = blocks_below(str(hutch.state))
            hutch("up", "more")
            os.sync()
            grown.append(float(blocks_below(str(hutch.state)) - before))
            hutch.must_run("more")
            hutch.remove("more")
    yield Row(
        "vm-disk",
        'disk taken by one more virtual machine, `persist = "home"`, of an image in use',
        "bytes",
        Samples(tuple(grown)),
        bound=2 * 2**20,
        note="allocated blocks below the state directory, while it runs",
    )


@contextlib.contextmanager
def _running_vm(hutch: Hutch, name: str) -> Iterator[None]:
    """A new virtual machine that runs, emulated; nothing of it is left afterwards."""
    hutch.declare(vms=(name,))
    hutch("up")
    hutch.must_run(name)
    accelerator = next(row["accelerator"] for row in hutch.status() if row["name"] == name)
    if accelerator != "tcg":
        raise BenchError(f"virtual machines are compared without KVM, but {name} uses {accelerator}")
    yield
    hutch.remove(name)


@contextlib.contextmanager
def _stopped_vm(hutch: Hutch, name: str) -> Iterator[Sample]:
    """An existing virtual machine that is stopped, and how to time a start of it (which ends stopped again)."""
    with _running_vm(hutch, name):
        address = next(row["ip"] for row in hutch.status() if row["name"] == name)

        def start_to_ready(_number: int) -> float:
            took = seconds(hutch.argv("start", name))
            wait_for_banner(address, limit=1)  # whoever calls it ready too early wins nothing
            hutch("stop", name)
            return took

        hutch("stop", name)
        yield start_to_ready


@contextlib.contextmanager
def _two_cores() -> Iterator[None]:
    """What begins inside runs on two processors, however many there are."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _busy_loops(work: Path) -> Iterator[None]:
    loops = [spawn(["sh", "-c", "while :; do :; done"], str(work / "loops.log")) for _ in range(BUSY_LOOPS)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


SCENARIOS = (
    Scenario(("vm-start", "vm-lab"), start),
    Scenario(("vm-busy",), busy),
    Scenario(("vm-read", "vm-write"), throughput),
    Scenario(("vm-disk",), disk),
)


def names_of_rows() -> list[str]:
    return [name for scenario in SCENARIOS for name in scenario.rows]
