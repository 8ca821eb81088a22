"""The accelerator of virtual machines on this host: KVM, once a guest has run to a known answer under it, or TCG.

There are hosts on which /dev/kvm opens, makes a machine, and runs no guest past its first instructions. So the only
proof is a guest: a machine's own kernel and initrd, which say ANSWER and power off when the kernel's command line asks
for it. The result is remembered in the state directory, together with the rate of the host's clock; nothing here
changes anything else of the host.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.guest.boot import MICROVM
from hutch.host.doctor.tools import QEMU, find_program
from hutch.host.hardware.clock import observe_rate, read_boot
from hutch.run import PIPE, STDOUT, Popen, TimeoutExpired, start
from hutch.spec.names import UID_COUNT, Layout
from hutch.state import ACCELERATOR, decode, encode, make_directory
from hutch.texts import printable

DEVICE = "/dev/kvm"
ARCHITECTURES = ("x86_64",)
QUESTION = "hutch.probe"
ANSWER = b"hutch-probe: ok"
STOPPED = b"KVM internal error"  # QEMU says so and then waits for a debugger
PATIENCE = 10.0  # seconds; a guest that runs at all needs less than one
ROUNDS = 10_000
USUAL = 0.0005  # seconds that those rounds take a processor; one that QEMU emulates needs 15 to 30 times as long
SLOW = 3  # times as long as usual: from there on a host counts as slow
SLOWEST = 10  # times as long as usual may a start take on a slow host
QUICK = 1.0  # seconds that may be lost at every start, to see whether it goes better by now
MOST_OUTPUT = 1 << 20
KEPT_ANSWERS = 16
MEMORY_MIB = 256


class Bootable(Protocol):
    """The files that a machine boots from, and `firmware` may be the name of one of QEMU's own."""

    @property
    def kernel(self) -> str | os.PathLike[str]: ...
    @property
    def initrd(self) -> str | os.PathLike[str]: ...
    @property
    def firmware(self) -> str | os.PathLike[str] | None: ...


@dataclass(frozen=True)
class Accelerator:
    """The accelerator of this host. `tsc_khz` is the rate of the host's time stamp counter, which a guest under TCG
    must be told: it reads that very counter, and on a busy host it cannot find the rate out. `gid` is the group that
    may use /dev/kvm, None where everybody may, or nobody needs to. `why` says in words how it is known."""

    name: Literal["kvm", "tcg"]
    tsc_khz: int | None
    gid: int | None
    why: str


@dataclass(frozen=True)
class KvmAccess:
    """Access to /dev/kvm. `problem` says why no process but root's may use it, "" where others may."""

    gid: int | None
    problem: str
    is_there: bool = True


@dataclass(frozen=True)
class Memory:
    """The remembered answers: for each host, as `describe_host` names it, the problem ("" for none); and the clock's
    rate, see host/hardware/clock."""

    answers: dict[str, str]
    clock: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The result of a guest's run: `problem` is "" when it came up. One that does not last may be gone next time."""

    problem: str
    is_lasting: bool = True


def observe_accelerator(layout: Layout, machine: Bootable) -> Accelerator:
    """The accelerator for machines on this host. The first time, `machine` is booted to find it out, for PATIENCE at
    most. The caller holds the lock, since the answer is remembered."""
    accelerator = recall_accelerator(layout, machine)
    assert accelerator is not None  # there is a machine to find it out with
    return accelerator


def describe_accelerator(accelerator: Accelerator) -> str:
    """A remark on the accelerator for users, on one line; "" for KVM, which is what everybody expects."""
    if accelerator.name == "kvm":
        return ""
    return f"it runs without KVM, by emulation (TCG), which is several times slower: {accelerator.why}"


def recall_accelerator(layout: Layout, machine: Bootable | None = None) -> Accelerator | None:
    """The accelerator, as `observe_accelerator` tells it. Without a machine, it boots nothing and writes nothing: None
    while nobody has found it out."""
    architecture = os.uname().machine
    if architecture not in ARCHITECTURES:
        only = ", ".join(ARCHITECTURES)
        return Accelerator("tcg", None, None, f"KVM is supported on {only} only, and this host is {architecture}")
    memory = read_memory(layout)
    access = observe_access(DEVICE)
    problem: str | None = access.problem
    if access.is_there:
        shown = recall_or_try(memory, machine, access, layout.builder_uid + UID_COUNT - 1)
        if shown is None:
            return None
        problem = shown or access.problem
    if not problem:
        accelerator = Accelerator("kvm", None, access.gid, "a guest has run under it")
    else:
        accelerator = Accelerator("tcg", observe_rate(memory.clock), None, problem)
    if machine is not None:
        write_memory(layout, memory)
    return accelerator


def recall_or_try(memory: Memory, machine: Bootable | None, access: KvmAccess, uid: int) -> str | None:
    """The problem of a guest under KVM, before or now, as `uid`; "" when it runs. None when that is not known and there
    is no machine to try it with."""
    qemu = find_program(QEMU)
    if qemu is None:
        if machine is None:
            return None
        raise HutchError(f"{QEMU} is not installed")
    key = describe_host(qemu)
    this_boot = f"{key} {read_boot()}"  # that none came up is believed until the next: the host may have been busy
    for known in (key, this_boot):
        if known in memory.answers:
            return memory.answers[known]
    if machine is None:
        return None
    verdict = run_guest(machine, qemu, access, uid)
    if verdict.is_lasting:
        memory.answers[this_boot if verdict.problem else key] = verdict.problem
    return verdict.problem


def describe_host(qemu: str) -> str:
    """The key of the answer. The processor is part of it, because a state directory may move with its disk."""
    found = os.stat(qemu)
    return f"{os.uname().release}, {observe_processor()}, {qemu} of {found.st_size} bytes from {found.st_mtime_ns}"


def observe_processor() -> str:
    """The model of the first processor; the kernel makes up no more of that file than is read."""
    with open("/proc/cpuinfo", "rb", buffering=0) as file:
        lines = file.read(4096).decode("utf-8", "replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@cache
def observe_slowness() -> int:
    """The factor by which a start may take longer than usual here, with or without KVM: 1, or SLOWEST on a slow host.
    Measured on this process itself, before any guest has run, by the processor's time, so that what else runs does not
    count. What a processor calls itself says nothing: QEMU's own model is common under a KVM that is as fast as any.
    Neighbours on a processor cost it up to half; were that told apart, each start would write its unit anew.
    """
    return SLOWEST if min(_spend() for _ in range(3)) > USUAL * SLOW else 1


def _spend() -> float:
    """The processor's time, in seconds, that ROUNDS of plain computing take."""
    began, number = time.thread_time(), 0
    for round_ in range(ROUNDS):
        number = (number * 5 + round_) & 0xFFFF
    return time.thread_time() - began


def observe_access(device: str) -> KvmAccess:
    """Access to the device. QEMU runs as a uid that is a workspace's own, and in no group of root's."""
    try:
        found = os.stat(device)
    except FileNotFoundError:
        return KvmAccess(None, f"no {device}", is_there=False)
    if not stat.S_ISCHR(found.st_mode):
        return KvmAccess(None, f"{device} is not a device", is_there=False)
    if found.st_mode & 0o006 == 0o006:
        return KvmAccess(None, "")
    if found.st_mode & 0o060 == 0o060 and found.st_gid != 0:
        return KvmAccess(found.st_gid, "")
    advice = f"`chgrp kvm {device}; chmod 660 {device}` lets hutch use it"
    return KvmAccess(None, f"{device} is root's alone (mode {found.st_mode & 0o777:o}): {advice}")


# The remembered answers.


def memory_path(layout: Layout) -> Path:
    """A path that outlasts a reboot: the clock's rate names its boot by itself, and the runtime directory must be empty
    when the last workspace has gone."""
    return layout.state / "accelerator.json"


def read_memory(layout: Layout) -> Memory:
    """The remembered answers; a damaged file counts as empty."""
    path = memory_path(layout)
    data = read_or_none(path)
    if data is None:
        return Memory({}, {})
    try:
        found = decode(ACCELERATOR, path, data)
        return Memory({str(host): str(problem) for host, problem in found["answers"]}, dict(found["clock"]))
    except (HutchError, KeyError, TypeError, ValueError):
        return Memory({}, {})


def write_memory(layout: Layout, memory: Memory) -> None:
    # As pairs, since they have an order: the last one is the newest.
    body = {"answers": list(memory.answers.items())[-KEPT_ANSWERS:], "clock": memory.clock}
    content = encode(ACCELERATOR, body)
    path = memory_path(layout)
    if read_or_none(path) != content:
        make_directory(path.parent)
        write_atomic(path, content, mode=0o600)


# A guest.


def run_guest(
    machine: Bootable,
    qemu: str,
    access: KvmAccess,
    uid: int,
    *,
    accelerator: str = "kvm",
    seconds: float | None = None,
) -> Verdict:
    """Boot `machine` until it gives the answer. It is always gone afterwards.

    It runs as `uid` where /dev/kvm allows that, without capabilities anyway; so it gets its files as descriptors: the
    directory that they are in is root's.
    """
    with ExitStack() as stack:

        def hand_in(path: str | os.PathLike[str]) -> str:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            given.append(descriptor)
            return f"/proc/self/fd/{descriptor}"

        given: list[int] = []
        boot = ["-kernel", hand_in(machine.kernel), "-initrd", hand_in(machine.initrd)]
        if machine.firmware is not None:
            firmware = os.fspath(machine.firmware)
            boot += ["-bios", hand_in(firmware) if os.path.isabs(firmware) else firmware]
        words = f"console=ttyS0 quiet panic=-1 {QUESTION}"
        argv = [*render_identity(access, uid), *render_machine(qemu, accelerator), *boot, "-append", words]
        process = start(argv, stdout=PIPE, stderr=STDOUT, pass_fds=given, new_session=True)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        try:
            verdict = await_answer(process.stdout.fileno(), seconds or PATIENCE * observe_slowness())
            return replace(verdict, is_lasting=verdict.is_lasting or gave_up(process))
        finally:
            process.kill()
            try:
                process.wait(timeout=5)
            except TimeoutExpired:
                pass  # it hangs in the kernel; it holds nothing of ours, and it has been killed


def gave_up(process: Popen[bytes]) -> bool:
    """Whether QEMU ended by an assertion, which will fail again."""
    try:
        return process.wait(timeout=1) == -signal.SIGABRT
    except TimeoutExpired:
        return False


def render_identity(access: KvmAccess, uid: int) -> list[str]:
    """The command that gives QEMU its identity: it ends with hutch, and it can become nobody else."""
    common = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL", "--"]
    if access.problem:  # only root can open the device
        return ["setpriv", "--clear-groups", *common]
    gid = uid if access.gid is None else access.gid
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *common]


def render_machine(qemu: str, accelerator: str) -> list[str]:
    """QEMU's command line as the backend makes it, but bare: a console and nothing else."""
    return [
        *(qemu, "-M", f"{MICROVM},accel={accelerator}", "-m", f"{MEMORY_MIB}M", "-smp", "1"),
        *("-cpu", "host" if accelerator == "kvm" else "max", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-serial", "stdio", "-no-reboot"),
    ]


def await_answer(output: int, seconds: float) -> Verdict:
    """Read what QEMU and the guest print, until one of them has said enough."""
    began = time.monotonic()
    tail, total = b"", 0
    while total <= MOST_OUTPUT:
        left = began + seconds - time.monotonic()
        if left <= 0 or not select.select([output], [], [], left)[0]:
            return Verdict(f"a guest under KVM did not come up within {seconds:g} s")
        chunk = os.read(output, 1 << 16)
        if not chunk:  # for want of memory, say
            problem = f"QEMU ended before a guest under KVM came up: {last_line(tail)}"
            return Verdict(problem, is_lasting=time.monotonic() - began > QUICK)
        tail, total = tail + chunk, total + len(chunk)
        if ANSWER in tail:
            return Verdict("")
        if STOPPED in tail:
            return Verdict("a guest under KVM was stopped by a KVM internal error")
        tail = tail[-4096:]
    return Verdict("a guest under KVM talked nonsense instead of coming up")


def last_line(output: bytes) -> str:
    """The last line of output, fit for a terminal."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1][-200:]) if lines else "it said nothing"
