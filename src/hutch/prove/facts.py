"""Facts that the host finds by itself, without a word from inside: from /proc, file systems and cgroups. Reads only.

A fact that cannot be read is "unknown", with the reason: it is not for a guest, which may end at any moment, to make a
bug of that. Looks that it could hold up have a deadline; holding it up breaks the promise.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from hutch.backends import is_machine
from hutch.backends.launch import Limits
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.guest.credentials import NETWORK_FILE
from hutch.host.services.cgroup import DESCENDANTS, Cgroup, control_files, find_flags
from hutch.host.services.units import has_systemd
from hutch.host.storage.mountinfo import is_below, observe_mountinfo, parse_mountinfo
from hutch.prove.local import LED_TO, PREFIX
from hutch.prove.machine import MACHINE, guest_memory, guest_processors
from hutch.prove.model import Fact
from hutch.prove.subject import HeldUp, Subject, held, leader_of, output_of, processes_of, status_of
from hutch.runtime.observe import read_launch
from hutch.runtime.units import LOG_BYTES, LOG_SECONDS
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import UID_COUNT
from hutch.spec.record import writable_paths
from hutch.trees.cursor import DIRECTORY, open_strictly, pinned

FORBIDDEN = {"sys_module": 16, "sys_rawio": 17, "sys_time": 25, "syslog": 34, "mac_admin": 33, "perfmon": 38, "bpf": 39}
"""Capabilities that are about the kernel as a whole, by their numbers in linux/capability.h."""
HARMLESS = {"null", "zero", "full", "random", "urandom", "tty", "console", "net/tun", "fuse"}
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")


def gather_facts(subject: Subject) -> dict[str, Fact]:
    """All facts of a workspace of its type."""
    looks = (*FILES, *LIMITS, *(MACHINE if is_machine(subject.booted) else CONTAINER))
    return {look.__name__.replace("_", "-"): looked(look, subject) for look in looks}


def looked(look: Callable[[Subject], Fact], subject: Subject) -> Fact:
    try:
        return look(subject)
    except HeldUp as error:
        return Fact("broken", f"the workspace keeps the host from looking: {error}")
    except (OSError, HutchError, ValueError, StopIteration) as error:
        return Fact("unknown", f"the host cannot tell: {type(error).__name__}: {error}")


# Files.


def opened_home(workspace: WorkspaceSpec) -> AbstractContextManager[int]:
    """The home, opened as a descriptor: its content is the guest's, so all goes by that."""
    assert workspace.home is not None
    return kept_open(os.open(workspace.home, DIRECTORY))


def entry_of(subject: Subject, name: str) -> os.stat_result | None:
    """The status of an entry in the home under a name of ours, by the directory's descriptor; the guest may have put
    anything there."""
    with opened_home(subject.booted) as directory:
        try:
            return os.stat(PREFIX + name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None


def setuid_file(subject: Subject) -> Fact:
    found = entry_of(subject, "setuid")
    if found is None:
        return Fact("held", "it made none")
    return held(found.st_uid != 0 and found.st_gid != 0, f"on the host it belongs to uid {found.st_uid}")


def device_in_home(subject: Subject) -> Fact:
    found = entry_of(subject, "device")
    is_one = found is not None and (stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode))
    return held(not is_one, "a device lies there" if is_one else "")


def link_to_the_host(subject: Subject) -> Fact:
    """The fact of a link in the home, by the ways of hutch's own tools (see trees): entries are pinned, never opened,
    and only directories are entered. Another thing in the link's place, a fifo too, gets no further."""
    target = os.stat(LED_TO)
    with opened_home(subject.booted) as directory:
        try:
            with pinned(directory, f"{PREFIX}link") as descriptor:
                found = os.fstat(descriptor)
        except FileNotFoundError:
            return Fact("held", "it made none")
        if (found.st_dev, found.st_ino) == (target.st_dev, target.st_ino):
            return Fact("broken", "it was followed")
        if not stat.S_ISLNK(found.st_mode):
            return Fact("held", "it is no link")
        try:
            os.close(open_strictly(f"{PREFIX}link", below=directory))
        except OSError as error:
            return Fact("held", f"{error.strerror}")
        return Fact("broken", "it was entered")


def guarded(subject: Subject) -> Fact:
    """The fact of the guards, by what a path leads to, not by the list of mounts, in which one may be hidden."""
    wanted = os.ST_NOSUID | os.ST_NODEV
    paths = writable_paths(subject.booted)
    wrong = [path for path in paths if os.statvfs(path).f_flag & wanted != wanted]
    return held(not wrong, f"{', '.join(wrong)} is not mounted nosuid,nodev" if wrong else "")


def host_key(subject: Subject) -> Fact:
    path = subject.layout.host_key(subject.name)
    found = os.lstat(path)
    modes = [os.lstat(part).st_uid == 0 for part in (path.parent, path.parent.parent)]
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o077
    return held(is_ours and all(modes), f"mode {found.st_mode & 0o777:o}, uid {found.st_uid}")


FILES = (setuid_file, device_in_home, link_to_the_host, guarded, host_key)
"""Functions: each gives the fact of the probe that has its name."""


# A container.


def uid_map(subject: Subject) -> Fact:
    text = Path(f"/proc/{leader_of(subject)}/uid_map").read_text(encoding="ascii")
    base = subject.record.uid_base
    return held(text.split() == ["0", str(base), str(UID_COUNT)], " ".join(text.split()))


def processes(subject: Subject) -> Fact:
    base, wrong = subject.record.uid_base, []
    found = [pid for pid in processes_of(subject) if pid != subject.now.pid]
    for pid in found:
        try:
            name, uids = status_of(pid)["Name"], status_of(pid)["Uid"].split()
        except (OSError, KeyError):
            continue
        is_ours = any(base <= int(uid) < base + UID_COUNT for uid in uids)
        if not is_ours and name not in SUPERVISING:
            wrong.append(f"{pid} has uid {uids[0]}")
    return held(bool(found) and not wrong, ", ".join(wrong[:3]) or f"{len(found)} processes")


SUPERVISING = ("systemd-nspawn", "(sd-stubinit)", "(sd-bound")
"""Names of the processes that run nspawn itself: outside of the guest, as root."""


def capabilities(subject: Subject) -> Fact:
    bounding = int(status_of(leader_of(subject))["CapBnd"], 16)
    has = [name for name, bit in FORBIDDEN.items() if bounding >> bit & 1]
    return held(not has, f"it has {', '.join(has)}" if has else "")


def seccomp(subject: Subject) -> Fact:
    """Our own filter binds nspawn itself, before nspawn has added its own for the guest; we have none of the two."""
    assert subject.now.pid is not None
    counts = [status_of(pid).get("Seccomp_filters") for pid in (os.getpid(), subject.now.pid, leader_of(subject))]
    if None in counts:  # before Linux 5.9
        return Fact("unknown", "the kernel does not tell how many filters there are")
    host, nspawn, guest = (int(count or 0) for count in counts)
    return held(host < nspawn < guest, f"{nspawn - host} of hutch's, {guest - nspawn} of nspawn's")


def namespaces(subject: Subject) -> Fact:
    leader = leader_of(subject)
    same = [
        kind
        for kind in NAMESPACES
        if os.stat(f"/proc/{leader}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino
    ]
    router = os.stat(subject.layout.namespace_path).st_ino == os.stat(f"/proc/{leader}/ns/net").st_ino
    same += ["the router's net"] if router else []
    return held(not same, f"shared: {', '.join(same)}" if same else "")


def mounts(subject: Subject) -> Fact:
    """A directory of a file system that the host has mounted, which the workspace's file does not name. What nspawn
    tells of the host is in /run/host: its os-release; and hutch hands in the network's configuration."""
    own = observe_mountinfo("self")
    devices = {device for device, _, _, _, type in parse_mountinfo(own) if type not in SHARED}
    expected = {NETWORK_FILE, f"/home/{subject.booted.user}", *(mount.target for mount in subject.booted.mounts)}
    expected |= {"/run/host", *(["/nix/store"] if subject.booted.nix_store else [])}
    wrong = []
    for device, _, point, _, type in parse_mountinfo(observe_mountinfo(leader_of(subject), most=1 << 20)):
        if device in devices and type not in SHARED and not any(is_below(point, path) for path in expected):
            wrong.append(point)
    return held(not wrong, f"unexpected: {', '.join(wrong[:3])}" if wrong else "")


SHARED = ("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "cgroup2", "cgroup", "binfmt_misc")
"""File systems of the kernel's own, of which each namespace shows its part; /dev has a probe of its own."""


def devices(subject: Subject) -> Fact:
    """The devices in its /dev, seen from outside: find follows no links. The guest may have mounted anything there."""
    there = f"/proc/{leader_of(subject)}/root/dev"
    kinds = ("(", "-type", "b", "-o", "-type", "c", ")")
    found = output_of(["find", there, "-maxdepth", "3", *kinds, "-printf", "%P\\n"]).splitlines()
    if "null" not in found:
        return Fact("broken", "its /dev is not to be seen")
    wrong = [name for name in found if name not in HARMLESS and not name.startswith(("dri/render", "pts/"))]
    return held(not wrong, f"it has {', '.join(sorted(wrong)[:3])}" if wrong else "")


CONTAINER = (uid_map, processes, capabilities, seccomp, namespaces, mounts, devices)


# Limits.


def control(subject: Subject, file: str) -> Fact:
    """The fact of a control file of the workspace's cgroup, compared with what its launch says."""
    launch = read_launch(subject.layout.launch(subject.name))
    limits = launch.limits if launch is not None else Limits()
    wanted = control_files(limits.cpus, limits.memory, limits.tasks)[file]
    if wanted == "max":
        return Fact("unknown", "its file sets no limit")
    found = read_control(subject, "..", file)  # a service's are its slice's
    if found is None:
        return Fact("unknown", f"this host cannot enforce it: its cgroups have no {file}")
    return held(same_limit(found, wanted), f"{file} is {found}")


def same_limit(found: str, wanted: str) -> bool:
    """Whether two limits are equal; the kernel rounds bytes down to pages."""
    if found == wanted:
        return True
    numbers = found.isdigit() and wanted.isdigit()
    return numbers and 0 <= int(wanted) - int(found) < os.sysconf("SC_PAGESIZE")


def read_control(subject: Subject, group: str, file: str) -> str | None:
    with closing(Cgroup(subject.now.cgroup)) as cgroup, kept_open(cgroup.open(group or ".")) as directory:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
    with open(descriptor, encoding="ascii") as opened:
        return opened.read().strip()


def memory(subject: Subject) -> Fact:
    return control(subject, "memory.max")


def tasks(subject: Subject) -> Fact:
    return control(subject, "pids.max")


def cpus(subject: Subject) -> Fact:
    """The fact of the processors: a machine has as many as it was given."""
    if is_machine(subject.booted):
        return guest_processors(subject)
    return control(subject, "cpu.max")


def cgroups(subject: Subject) -> Fact:
    found = read_control(subject, "machine", "cgroup.max.descendants")
    return held(found == str(DESCENDANTS), f"{found}")


def cgroup_options(subject: Subject) -> Fact:
    """The fact of the host's cgroup2, whose options are one for all of its mounts: a start that mounts it without them
    takes them from the host."""
    if not has_systemd() or os.path.exists("/run/systemd/container"):
        return Fact("unknown", "nobody can tell which it had: no systemd mounted it here")
    flags = find_flags(observe_mountinfo())
    return held("nsdelegate" in flags, ", ".join(flags) or "none")


def root_size(subject: Subject) -> Fact:
    """The fact of the root's size: a container's layer that takes changes; a machine's memory."""
    if is_machine(subject.booted):
        return guest_memory(subject)
    if subject.booted.persist == "all":
        return Fact("unknown", "a root that is kept shares the space of the host's file system")
    assert subject.now.pid is not None
    scratch = f"{subject.layout.runtime(subject.name)}/scratch"
    for line in observe_mountinfo(subject.now.pid).split("\n"):
        if f" {scratch} " in line:
            size = re.search(r"[ ,]size=(\w+)", line.partition(" - ")[2])
            return held(size is not None, size[1] if size else "no limit")
    return Fact("unknown", "its layer is not to be seen")


def log_size(subject: Subject) -> Fact:
    """A service's output goes to the host's log, which has a bound, by a shell that drops most of a flood."""
    return held(relays(subject), f"{LOG_BYTES >> 10} KiB in {LOG_SECONDS} s, to the host's log")


def relays(subject: Subject) -> bool:
    """Whether a service's console output goes through a pipe, see runtime/unit.sh."""
    runtime = subject.layout.runtime(subject.name)
    pipe = runtime / ("vm/log" if is_machine(subject.booted) else "said")
    return pipe.is_fifo()


LIMITS = (memory, cpus, tasks, cgroups, cgroup_options, root_size, log_size)
