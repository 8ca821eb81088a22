"""Facts about a machine's processes: whoever broke out of the guest would be one of them. Reads only."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from hutch.prove.model import Fact
from hutch.prove.subject import Subject, all_processes, held, output_of, processes_of, status_of
from hutch.spec.model import MACHINE_CPUS

BESIDE = "virtiofsd"


def machine_processes(subject: Subject) -> dict[int, dict[str, str]]:
    """The processes of its monitor and of every virtiofsd, found by their programs: pid -> status."""
    found, programs = {}, (subject.traits.program, BESIDE)
    for pid in processes_of(subject):
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            if program.startswith(programs):
                found[pid] = {**status_of(pid), "program": program}
        except OSError:
            continue
    if all(status["program"].startswith(BESIDE) for status in found.values()):
        raise ValueError("the machine's process is not in its cgroup")
    return found


def every(subject: Subject, wrong: Callable[[int, dict[str, str]], str]) -> Fact:
    found = machine_processes(subject)
    complaints = [f"{status['program']}: {text}" for pid, status in found.items() if (text := wrong(pid, status))]
    return held(not complaints, "; ".join(complaints[:3]) or ", ".join(s["program"] for s in found.values()))


def vmm_uid(subject: Subject) -> Fact:
    wanted = str(subject.record.uid_base)
    return every(subject, lambda pid, status: "" if set(status["Uid"].split()) == {wanted} else f"uid {status['Uid']}")


def vmm_capabilities(subject: Subject) -> Fact:
    kinds = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return every(subject, lambda pid, status: " ".join(kind for kind in kinds if int(status[kind], 16)))


def vmm_privileges(subject: Subject) -> Fact:
    return every(subject, lambda pid, status: "" if status["NoNewPrivs"] == "1" else "it may get more")


def vmm_seccomp(subject: Subject) -> Fact:
    return every(subject, lambda pid, status: "" if status["Seccomp"] == "2" else f"mode {status['Seccomp']}")


def vmm_network(subject: Subject) -> Fact:
    taken = {os.stat("/proc/self/ns/net").st_ino, os.stat(subject.layout.namespace_path).st_ino}
    return every(subject, lambda pid, _: "the host's" if os.stat(f"/proc/{pid}/ns/net").st_ino in taken else "")


def vmm_files(subject: Subject) -> Fact:
    def wrong(pid: int, status: Mapping[str, str]) -> str:
        there = [name for name in ("etc", "var", "home", "run") if os.path.lexists(f"/proc/{pid}/root/{name}")]
        return f"it sees /{there[0]}" if there else ""

    return every(subject, wrong)


def vmm_cgroup(subject: Subject) -> Fact:
    """The fact of the cgroup, for all processes that run as the machine's uid, wherever they are."""
    uid, inside = str(subject.record.uid_base), set(processes_of(subject))
    found = {}
    for pid in all_processes():
        with suppress(OSError):  # it has ended
            status = status_of(pid)
            if uid in status["Uid"].split() and not status["State"].startswith("Z"):
                found[pid] = status["Name"]
    outside = sorted(f"{name} ({pid}) is elsewhere" for pid, name in found.items() if pid not in inside)
    return held(bool(found) and not outside, "; ".join(outside[:3]) or f"{len(found)} processes")


def vmm_file_size(subject: Subject) -> Fact:
    """The fact of the monitor's files: none is larger than its memory, or than its disk."""
    bounds, largest = [], given(subject, "MiB") << 20
    for path in (subject.layout.root(subject.name) / "disk", subject.layout.workspace(subject.name) / "disk"):
        with suppress(FileNotFoundError, NotADirectoryError):
            largest = max(largest, path.stat().st_size)
    for pid, status in machine_processes(subject).items():
        if not status["program"].startswith(BESIDE):
            (line,) = re.findall(r"^Max file size +(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
            bounds.append(line)
    return held(all(bound.isdecimal() and int(bound) <= largest for bound in bounds), ", ".join(bounds))


def vmm_devices(subject: Subject) -> Fact:
    allowed = {"/dev/null", "/dev/urandom", "/dev/kvm", "/dev/net/tun"}
    allowed |= {"/dev/vhost-vsock"} if subject.booted.vsock else set()

    def wrong(pid: int, status: Mapping[str, str]) -> str:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        links = [link for link in links if not link.startswith("/dev/pts/")]  # its console
        open_ = sorted({link for link in links if link.startswith("/dev/")} - allowed)
        taps = links.count("/dev/net/tun")
        return ", ".join(open_) or (f"{taps} network ports" if taps > 1 else "")

    return every(subject, wrong)


def kernel(subject: Subject) -> Fact:
    """The fact of the kernel: a machine is a process here, and none of its guest's are."""
    others = [pid for pid in processes_of(subject) if pid not in machine_processes(subject)]
    names = {status_of(pid)["Name"] for pid in others}
    return held("systemd" not in names, ", ".join(sorted(names)))


MACHINE = (
    *(kernel, vmm_uid, vmm_capabilities, vmm_privileges, vmm_seccomp, vmm_network),
    *(vmm_files, vmm_file_size, vmm_cgroup, vmm_devices),
)


# The sizes of a machine.


def given(subject: Subject, what: str) -> int:
    """A number on the command line of the machine's process. Reading that goes by its memory."""
    option, form = subject.traits.sizes[what]
    for pid, status in machine_processes(subject).items():
        if not status["program"].startswith(BESIDE):
            words = output_of(["cat", f"/proc/{pid}/cmdline"]).split("\0")
            for word, value in itertools.pairwise(words):
                if word == option and (match := re.fullmatch(form, value, re.ASCII)):
                    return int(match[1])
    raise ValueError(f"its command line does not say its {what}")


def guest_processors(subject: Subject) -> Fact:
    """The fact of the processors: as many as its file says, which it has and uses at most."""
    count, wanted = given(subject, "processors"), subject.booted.vcpus or MACHINE_CPUS
    return held(count == wanted, f"it has {count}")


def guest_memory(subject: Subject) -> Fact:
    """The fact of the memory: as much as was recorded at its start; the file may ask for less meanwhile."""
    size, booted = given(subject, "MiB"), subject.record.booted
    if booted is None or booted.memory is None:
        raise ValueError("its memory at the start was not recorded")
    return held(size == booted.memory >> 20, f"it has {size} MiB")
