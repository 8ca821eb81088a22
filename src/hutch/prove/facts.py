"""What the host finds out by itself, without a word from inside: from /proc, its file systems, its cgroups. Reads only.

Whatever cannot be read is "unknown", with the reason: it is not for a guest, which may end at any moment, to make a
bug of that.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host import shares
from hutch.host.cgroup import DESCENDANTS, Cgroup
from hutch.host.mountinfo import observe_mountinfo, parse_mountinfo
from hutch.prove.local import PREFIX
from hutch.prove.model import Fact
from hutch.spec.model import MACHINE_CPUS, Workspace
from hutch.spec.names import UID_COUNT, Places
from hutch.state import Record
from hutch.supervise.launched import read_launch
from hutch.supervise.limits import control_files
from hutch.supervise.observe import Observation

FORBIDDEN = {"sys_module": 16, "sys_rawio": 17, "sys_time": 25, "syslog": 34, "mac_admin": 33, "perfmon": 38, "bpf": 39}
"""Capabilities that are about the kernel as a whole, by their numbers in linux/capability.h."""
HARMLESS = {"null", "zero", "full", "random", "urandom", "tty", "console", "net/tun", "fuse"}
LOG_BYTES = 1 << 20  # see supervise/embedded; one more is written before it is cut
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")
VMM = re.compile(r"qemu-system-|virtiofsd|cloud-hypervisor")


@dataclass(frozen=True)
class Subject:
    """The workspace that is looked at."""

    places: Places
    record: Record
    now: Observation

    @property
    def booted(self) -> Workspace:
        return self.record.booted.workspace if self.record.booted else self.record.wanted

    @property
    def name(self) -> str:
        return self.record.name


def held(is_so: bool, detail: str = "") -> Fact:
    return Fact("held" if is_so else "broken", detail)


def gather_facts(subject: Subject) -> dict[str, Fact]:
    """All facts of a workspace of its type."""
    looks: dict[str, Callable[[Subject], Fact]] = {**FILES, **LIMITS}
    looks |= CONTAINER if subject.booted.type == "container" else MACHINE
    return {name: looked(look, subject) for name, look in looks.items()}


def looked(look: Callable[[Subject], Fact], subject: Subject) -> Fact:
    try:
        return look(subject)
    except (OSError, HutchError, ValueError, StopIteration) as error:
        return Fact("unknown", f"the host cannot tell: {type(error).__name__}: {error}")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def leader_of(subject: Subject) -> int:
    if subject.now.leader is None:
        raise ValueError("it has no first process")
    return subject.now.leader[0]


def processes_of(subject: Subject, part: str = "machine") -> list[int]:
    """The processes of the guest, by its cgroup as the kernel tells it of each."""
    inside = re.compile(rf"^0::.*/{re.escape(subject.places.cgroup(subject.name))}/{part}(/|$)", re.MULTILINE)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/cgroup").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if inside.search(text):
                found.append(int(entry))
    return found


# Files.


def home_of(subject: Subject) -> Path:
    assert subject.booted.home is not None
    return Path(subject.booted.home)


def entry_of(subject: Subject, name: str) -> os.stat_result | None:
    """What lies in the home under a name of ours, by the directory's descriptor; the guest may have put anything
    there."""
    directory = os.open(home_of(subject), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.stat(PREFIX + name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    finally:
        os.close(directory)


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
    """The very way that hutch's own tools take into a home: no link is followed."""
    directory = os.open(home_of(subject), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        descriptor = os.open(f"{PREFIX}link", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        return Fact("held", f"{error.strerror}")
    else:
        os.close(descriptor)
        return Fact("broken", "it was opened")
    finally:
        os.close(directory)


def guarded(subject: Subject) -> Fact:
    options = {point: found for _, _, point, found, _ in parse_mountinfo(observe_mountinfo())}
    wrong = [
        path
        for path in shares.writable_paths(subject.booted)
        if not {"nosuid", "nodev"} <= options.get(os.path.realpath(path), set())
    ]
    return held(not wrong, f"{', '.join(wrong)} is not mounted nosuid,nodev" if wrong else "")


def host_key(subject: Subject) -> Fact:
    path = subject.places.host_key(subject.name)
    found = os.lstat(path)
    modes = [os.lstat(part).st_uid == 0 for part in (path.parent, path.parent.parent)]
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o077
    return held(is_ours and all(modes), f"mode {found.st_mode & 0o777:o}, uid {found.st_uid}")


FILES = {
    "setuid-file": setuid_file,
    "device-in-home": device_in_home,
    "link-to-the-host": link_to_the_host,
    "guarded": guarded,
    "host-key": host_key,
}


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
"""What runs nspawn itself: outside of the guest, as root."""


def capabilities(subject: Subject) -> Fact:
    bounding = int(status_of(leader_of(subject))["CapBnd"], 16)
    has = [name for name, bit in FORBIDDEN.items() if bounding >> bit & 1]
    return held(not has, f"it has {', '.join(has)}" if has else "")


def seccomp(subject: Subject) -> Fact:
    mode = status_of(leader_of(subject))["Seccomp"]
    return held(mode == "2", f"mode {mode}")


def namespaces(subject: Subject) -> Fact:
    leader = leader_of(subject)
    same = [
        kind
        for kind in NAMESPACES
        if os.stat(f"/proc/{leader}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino
    ]
    router = os.stat(subject.places.namespace_path).st_ino == os.stat(f"/proc/{leader}/ns/net").st_ino
    same += ["the router's net"] if router else []
    return held(not same, f"shared: {', '.join(same)}" if same else "")


def mounts(subject: Subject) -> Fact:
    """A directory of a file system that the host has mounted, which the workspace's file does not name. What nspawn
    tells of the host is in /run/host: its os-release."""
    own = observe_mountinfo("self")
    devices = {device for device, _, _, _, type in parse_mountinfo(own) if type not in SHARED}
    expected = {"/run/host", f"/home/{subject.booted.user}", *(mount.target for mount in subject.booted.mounts)}
    expected |= {"/nix/store"} if subject.booted.nix_store else set()
    wrong = []
    for device, _, point, _, type in parse_mountinfo(observe_mountinfo(leader_of(subject), most=1 << 20)):
        if device in devices and type not in SHARED and not is_expected(point, expected):
            wrong.append(point)
    return held(not wrong, f"unexpected: {', '.join(wrong[:3])}" if wrong else "")


SHARED = ("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "cgroup2", "cgroup", "binfmt_misc")
"""File systems of the kernel's own, of which namespaces show each their part; /dev has a probe of its own."""


def is_expected(point: str, expected: Iterable[str]) -> bool:
    return any(point == path or point.startswith(f"{path}/") for path in expected)


def devices(subject: Subject) -> Fact:
    """What stands in its /dev, seen from outside."""
    wrong = []
    top = Path(f"/proc/{leader_of(subject)}/root/dev")
    for path in (*top.iterdir(), *(entry for part in ("net", "dri") for entry in entries(top / part))):
        mode = os.lstat(path).st_mode
        name = str(path.relative_to(top))
        if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and name not in HARMLESS and not name.startswith("dri/render"):
            wrong.append(name)
    return held(not wrong, f"it has {', '.join(sorted(wrong)[:3])}" if wrong else "")


def entries(directory: Path) -> list[Path]:
    try:
        return [] if directory.is_symlink() else list(directory.iterdir())
    except OSError:
        return []


CONTAINER = {
    "uid-map": uid_map,
    "processes": processes,
    "capabilities": capabilities,
    "seccomp": seccomp,
    "namespaces": namespaces,
    "mounts": mounts,
    "devices": devices,
}


# A machine.


def machine_processes(subject: Subject) -> dict[int, dict[str, str]]:
    """QEMU and every virtiofsd, by what they are programs of."""
    found = {}
    for pid in processes_of(subject):
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            if VMM.match(program):
                found[pid] = {**status_of(pid), "program": program}
        except OSError:
            continue
    if not any(not status["program"].startswith("virtiofsd") for status in found.values()):
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
    taken = {os.stat("/proc/self/ns/net").st_ino, os.stat(subject.places.namespace_path).st_ino}
    return every(subject, lambda pid, _: "the host's" if os.stat(f"/proc/{pid}/ns/net").st_ino in taken else "")


def vmm_files(subject: Subject) -> Fact:
    def wrong(pid: int, status: Mapping[str, str]) -> str:
        there = [name for name in ("etc", "var", "home", "run") if os.path.lexists(f"/proc/{pid}/root/{name}")]
        return f"it sees /{there[0]}" if there else ""

    return every(subject, wrong)


def vmm_cgroup(subject: Subject) -> Fact:
    return every(subject, lambda pid, status: "")


def vmm_devices(subject: Subject) -> Fact:
    allowed = {"/dev/null", "/dev/urandom", "/dev/kvm", "/dev/net/tun", "/dev/vhost-vsock"}

    def wrong(pid: int, status: Mapping[str, str]) -> str:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        links = [link for link in links if not link.startswith("/dev/pts/")]  # its console
        open_ = sorted({link for link in links if link.startswith("/dev/")} - allowed)
        taps = links.count("/dev/net/tun")
        return ", ".join(open_) or (f"{taps} network ports" if taps > 1 else "")

    return every(subject, wrong)


def kernel(subject: Subject) -> Fact:
    """A machine is a process here, and none of its guest's are."""
    others = [pid for pid in processes_of(subject) if pid not in machine_processes(subject)]
    names = {status_of(pid)["Name"] for pid in others}
    return held("systemd" not in names, ", ".join(sorted(names)))


MACHINE = {
    "kernel": kernel,
    "vmm-uid": vmm_uid,
    "vmm-capabilities": vmm_capabilities,
    "vmm-privileges": vmm_privileges,
    "vmm-seccomp": vmm_seccomp,
    "vmm-network": vmm_network,
    "vmm-files": vmm_files,
    "vmm-cgroup": vmm_cgroup,
    "vmm-devices": vmm_devices,
}


# Limits.


def control(subject: Subject, file: str) -> Fact:
    """A control file of the workspace's cgroup, compared with what its launch says."""
    launch = read_launch(subject.places.launch(subject.name)) or {}
    wanted = control_files(launch.get("limits") or {"cpus": None, "memory": None, "tasks": None}).get(file)
    if wanted is None:
        return Fact("unknown", "its file sets no limit")
    found = read_control(subject, "", file)
    if found is None:
        return Fact("unknown", f"this host cannot enforce it: its cgroups have no {file}")
    return held(same_limit(found, wanted), f"{file} is {found}")


def same_limit(found: str, wanted: str) -> bool:
    """Bytes are rounded down to pages by the kernel."""
    if found == wanted:
        return True
    numbers = found.isdigit() and wanted.isdigit()
    return numbers and 0 <= int(wanted) - int(found) < os.sysconf("SC_PAGESIZE")


def read_control(subject: Subject, group: str, file: str) -> str | None:
    with closing(Cgroup(subject.places.cgroup(subject.name))) as cgroup:
        directory = cgroup.open(group or ".")
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    finally:
        os.close(directory)
    with open(descriptor, encoding="ascii") as opened:
        return opened.read().strip()


def processors(subject: Subject) -> Fact:
    """A machine has as many as it was given."""
    if subject.booted.type == "vm":
        return Fact("held", f"it has {subject.booted.vcpus or MACHINE_CPUS}")
    return control(subject, "cpu.max")


def cgroups(subject: Subject) -> Fact:
    found = read_control(subject, "machine", "cgroup.max.descendants")
    return held(found == str(DESCENDANTS), f"{found}")


def root_size(subject: Subject) -> Fact:
    """Of a container, the layer that takes what is written; a machine's disk and memory are as large as they are."""
    if subject.booted.type == "vm":
        return Fact("held", "its memory and its disk are of a fixed size")
    if subject.booted.persist == "all":
        return Fact("unknown", "a root that is kept shares the space of the host's file system")
    assert subject.now.pid is not None
    scratch = f"{subject.places.runtime(subject.name)}/scratch"
    for line in observe_mountinfo(subject.now.pid).split("\n"):
        if f" {scratch} " in line:
            size = re.search(r"[ ,]size=(\w+)", line.partition(" - ")[2])
            return held(size is not None, size[1] if size else "no limit")
    return Fact("unknown", "its layer is not to be seen")


def log_size(subject: Subject) -> Fact:
    size = os.stat(subject.places.log(subject.name)).st_size
    return held(size <= 2 * LOG_BYTES, f"{size} bytes")


LIMITS: dict[str, Callable[[Subject], Fact]] = {
    "memory": lambda subject: control(subject, "memory.max"),
    "cpus": processors,
    "tasks": lambda subject: control(subject, "pids.max"),
    "cgroups": cgroups,
    "root-size": root_size,
    "log-size": log_size,
}
