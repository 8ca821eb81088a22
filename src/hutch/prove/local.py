"""The probes of everything but the network: files, the kernel, a machine's processes, limits, ssh. Pure.

Those without a question for the workspace are facts, which the host finds out by itself: see facts.
"""

from __future__ import annotations

from collections.abc import Iterator

from hutch.prove.model import Ground, Need, Probe
from hutch.spec.names import UID_COUNT

NUMBERS = {
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "mknodat": (259, 33),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "swapon": (167, 224),
    "clock_settime": (227, 112),
    "mount": (165, 40),
    "acct": (163, 89),
    "syslog": (103, 116),
}
"""The numbers of system calls that libc has no function for, or that a guest's libc need not be asked for."""
CALLS = {m: {name: pair[at] for name, pair in NUMBERS.items()} for at, m in enumerate(("x86_64", "aarch64"))}
REFUSED = (
    r"E(PERM|ACCES|NOSYS|ROFS|NOENT|NODEV|NXIO|OPNOTSUPP|AFNOSUPPORT|INVAL|PROTONOSUPPORT|SOCKTNOSUPPORT)|killed 31"
)
DENIED = r"E(PERM|ACCES|NOSYS)|killed 31"
HOST_CID = "2"
UNREACHED = "EAFNOSUPPORT|ENODEV|ECONNRESET|ECONNREFUSED|EHOSTUNREACH|ENETUNREACH"
"""Answers of a guest's kernel without vsock, and of a hypervisor behind whose vsock nobody of the host listens."""
HERE = -100 & 0xFFFFFFFFFFFFFFFF  # AT_FDCWD
NEW_USER = 0x1000_0000
BLOCK, CHARACTER = 0o60666, 0o20666
PREFIX = ".hutch-prove-"
MADE = ("setuid", "device", "link")
"""The things that probes try to make in a home, named after that prefix."""
LED_TO = "/etc/shadow"


def local_probes(ground: Ground) -> list[Probe]:
    """All local probes for a workspace of its type."""
    own = machine_probes(ground) if ground.is_machine else container_probes(ground)
    return [*file_probes(ground), *own, *limit_probes(ground), *key_probes(ground)]


CONVERSATION = Probe(12, "conversation", "the workspace let itself be tried to the end", "perl - <inside.pl")


def path(text: str) -> str:
    return text.encode().hex()


def in_home(ground: Ground, name: str) -> str:
    return f"/home/{ground.user}/{PREFIX}{name}"


def file_probes(ground: Ground) -> Iterator[Probe]:
    """Probes of files: a workspace's own count for nothing on the host, and it sees none of the host's."""
    suid, node, link = (in_home(ground, name) for name in MADE)
    says = "a setuid file of its root's is not root's on the host"
    ask: tuple[str, ...] = ("file", path(suid), "04755")
    yield Probe(6, "setuid-file", says, f"chmod 4755 {suid}", ask, "ok|EPERM", needs="files")
    says = "its files are nosuid and nodev on the host"
    yield Probe(6, "guarded", says, "findmnt -o TARGET,OPTIONS", needs="files")
    ask = call(ground, "mknodat", f"n:{HERE}", f"s:{path(node)}", f"n:{BLOCK}", f"n:{8 << 8}")
    want = f"{DENIED}|EINVAL|EOPNOTSUPP"
    yield Probe(6, "device-in-home", "it can make no device in its home", f"mknod {node} b 8 0", ask, want)
    says = "a link in its home to a file of the host's leads no tool of hutch's there"
    ask = ("link", path(LED_TO), path(link))
    yield Probe(6, "link-to-the-host", says, f"ln -s {LED_TO} {link}", ask, "ok", needs="files")
    for name, says, file in (
        ("host-state", "hutch's own files are not to be seen", f"{ground.state}/network.json"),
        ("host-marker", "nor a file that the host has just made", ground.marker),
    ):
        yield Probe(6, name, says, f"ls {file}", ("seen", path(file)), "ENOENT|EACCES|ENOTDIR", needs="host")


def call(ground: Ground, name: str, *arguments: str) -> tuple[str, ...]:
    """The words for a system call; () where its number is not known."""
    number = CALLS.get(ground.machine, {}).get(name)
    return ("call", str(number), *arguments) if number is not None else ()


def refuses(name: str, says: str, command: str, ask: tuple[str, ...], want: str = DENIED, *, needs: Need = "") -> Probe:
    return Probe(2, name, says, command, ask, want, needs=needs)


def container_probes(ground: Ground) -> Iterator[Probe]:
    """A container shares the kernel, so the requests that it takes matter."""
    yield from system_calls(ground)
    for kind in ("debugfs", "tracefs", "securityfs"):
        ask = call(ground, "mount", f"s:{path(kind)}", f"s:{path('/mnt')}", f"s:{path(kind)}", "n:0", "n:0")
        yield refuses(f"mount-{kind}", f"it mounts no {kind}", f"mount -t {kind} {kind} /mnt", ask, f"{DENIED}|ENODEV")
    says, ask = "it has no sockets past the network", ("socket", "40", "1", "0")
    yield refuses("vsock", says, "socat - VSOCK-CONNECT:2:22", ask, REFUSED, needs="filter")
    says, want = (
        ("it makes user namespaces, as its file asks for", "ok")
        if ground.nesting
        else ("it makes no user namespaces", f"{DENIED}|ENOSPC|EUSERS")
    )
    ask = call(ground, "unshare", f"n:{NEW_USER}")
    yield refuses("user-namespaces", says, "unshare --user true", ask, want, needs="filter")
    device = call(
        ground, "mknodat", f"n:{HERE}", f"s:{path('/run/hutch-prove')}", f"n:{CHARACTER}", f"n:{(1 << 8) + 1}"
    )
    yield refuses("device", "it makes no device, not even in memory", "mknod /run/hutch-prove c 1 1", device)
    for name, where, says in (
        ("core-pattern", "/proc/sys/kernel/core_pattern", "it does not set the host's crash handler"),
        ("modprobe", "/proc/sys/kernel/modprobe", "nor its module loader"),
        ("sysrq", "/proc/sysrq-trigger", "nor presses its SysRq"),
        ("uevent-helper", "/sys/kernel/uevent_helper", "/sys is read-only"),
    ):
        yield refuses(name, says, f": >{where}", ("open", "w", path(where)), REFUSED)
    memory = ("read", path("/proc/kcore"))
    yield refuses("kernel-memory", "it reads no memory of the kernel", "cat /proc/kcore", memory, f"{REFUSED}|ENODATA")
    says, ask = "its root is an unprivileged range of uids of its own", ("lines", path("/proc/self/uid_map"), path("."))
    # A user namespace shows its range as the one around it counts, which is the host's.
    own_range = rf"lines +0 +[1-9][0-9]* +{UID_COUNT}"
    yield Probe(2, "uid-map", says, "cat /proc/LEADER/uid_map", ask, own_range)
    for name, says, command in (
        ("devices", "its devices in /dev are harmless", "ls /dev"),
        ("processes", "all its processes have uids of that range", "ps -o uid,pid,comm"),
        ("capabilities", "no capability of its root opens the host's kernel", "grep CapBnd /proc/LEADER/status"),
        ("seccomp", "its system calls are filtered", "grep Seccomp /proc/LEADER/status"),
        ("namespaces", "it shares no namespace with the host", "ls -l /proc/LEADER/ns"),
        ("mounts", "it has no file system of the host beyond those in its hutch.toml", "cat /proc/LEADER/mountinfo"),
    ):
        yield Probe(2, name, says, command, needs="processes")


def system_calls(ground: Ground) -> Iterator[Probe]:
    """Probes of the system calls that root of the host could make: hutch's filter refuses all of them, and a range of
    uids of its own is refused some anyway."""

    def syscall(name: str, says: str, *arguments: str, want: str = DENIED, needs: Need = "") -> Probe:
        ask = call(ground, name, *arguments)
        return refuses(name.replace("_", "-"), says, f"{name}(2)", ask, want, needs=needs)

    def filtered(name: str, says: str, *arguments: str, want: str = DENIED) -> Probe:
        return syscall(name, says, *arguments, want=want, needs="filter")

    zero = "s:" + "00" * 128
    yield syscall("finit_module", "it hands the kernel no module", "n:0", f"s:{path('')}", "n:0")
    yield syscall("kexec_load", "it starts no other kernel", "n:0", "n:0", "n:0", "n:0")
    yield filtered("bpf", "it loads no BPF program", "n:5", zero, "n:128")
    nobody = f"n:{2**64 - 1}"
    yield filtered("perf_event_open", "it measures no one else", zero, "n:0", nobody, nobody, "n:0")
    yield filtered("add_key", "it leaves nothing in the kernel's keyrings", f"s:{path('user')}", f"s:{path('hutch')}",
                   f"s:{path('x')}", "n:1", f"n:{2**64 - 3}")  # fmt: skip
    yield filtered("keyctl", "and opens none of them", "n:0", f"n:{2**64 - 3}", "n:1")
    yield filtered("io_uring_setup", "it has no io_uring", "n:1", zero)
    says = "it opens no file by its handle"
    yield filtered("open_by_handle_at", says, f"n:{HERE}", zero, "n:0", want=f"{DENIED}|EBADF")
    yield syscall("swapon", "it adds no swap", f"s:{path('/nowhere')}", "n:0")
    yield syscall("clock_settime", "it does not set the clock", "n:0", zero, want=DENIED)
    yield syscall("acct", "it does not account for others", f"s:{path('/nowhere')}")
    yield filtered("syslog", "it does not read the kernel's log", "n:3", zero, "n:128")


def machine_probes(ground: Ground) -> Iterator[Probe]:
    """Probes of a machine's processes: somebody who broke out of the guest could do what these can."""
    boot = "/proc/sys/kernel/random/boot_id"
    other = rf"lines (?!{ground.boot_id})[0-9a-f-]{{36}}"
    says, ask = "it runs a kernel of its own", ("lines", path(boot), path("."))
    yield Probe(1, "kernel", says, f"cat {boot}", ask, other, needs="processes")
    says, want = (
        ("it reaches the host's vsock listeners, as its file asks for", "ok")
        if ground.vsock
        else ("it reaches no vsock listener of the host", UNREACHED)
    )
    ask = ("vsock", HOST_CID, str(ground.vsock_port))
    yield Probe(1, "vsock-listeners", says, f"socat - VSOCK-CONNECT:{HOST_CID}:{ground.vsock_port}", ask, want)
    for name, says, command in (
        ("vmm-uid", "its processes run as a uid that nothing else uses", "grep Uid /proc/PID/status"),
        ("vmm-capabilities", "they have no capability", "grep Cap /proc/PID/status"),
        ("vmm-privileges", "and can get none", "grep NoNewPrivs /proc/PID/status"),
        ("vmm-seccomp", "their system calls are filtered", "grep Seccomp /proc/PID/status"),
        ("vmm-network", "they have no network", "readlink /proc/PID/ns/net"),
        ("vmm-files", "and see no files but their own", "cat /proc/PID/mountinfo"),
        ("vmm-file-size", "no file that the monitor writes grows without end", "grep size /proc/PID/limits"),
        ("vmm-cgroup", "they are in the workspace's cgroup", "cat /proc/PID/cgroup"),
        (
            "vmm-devices",
            "they have one network port, maybe KVM, and vsock on request",
            "ls -l /proc/PID/fd",
        ),
    ):
        yield Probe(1, name, says, command, needs="processes")


def limit_probes(ground: Ground) -> Iterator[Probe]:
    for name, says, command in (
        ("memory", "its memory is limited", "cat memory.max"),
        ("cpus", "its share of the processors is", "cat cpu.max"),
        ("tasks", "the number of its processes is", "cat pids.max"),
        ("root-size", "its writes outside of its home have a bound", "df /"),
        ("log-size", "its output is kept up to a bound", "ls -l machine.log"),
        ("cgroups", "it can make so many cgroups and no more", "cat cgroup.max.descendants"),
        ("cgroup-options", "the host's cgroups have the options that systemd gave them", "grep cgroup2 /proc/mounts"),
    ):
        if name != "cgroups" or not ground.is_machine:
            yield Probe(11, name, says, command, needs="limits")


def key_probes(ground: Ground) -> Iterator[Probe]:
    credential = "/run/credentials/@system/hutch.ssh-host-key"
    says, ask = "its login user cannot read its host key", ("read_as", str(ground.uid), path(credential))
    yield Probe(7, "host-key-user", says, f"cat {credential}", ask, "EACCES|ENOENT|EPERM")
    yield Probe(7, "host-key", "the key on the host is root's alone", "ls -l HOST_KEY", needs="key")
    host, elsewhere = f"workspace-{ground.workspace}", "ssh -o UserKnownHostsFile=…"
    for name, says, command in (
        ("ssh", "ssh trusts it without a question", f"ssh -o BatchMode=yes {host} true"),
        ("ssh-changed-key", "another key in its place is refused without a question", f"{elsewhere} {host}"),
        ("ssh-strict", "only hutch's own known hosts count", f"ssh -G {host}"),
        ("ssh-agent", "the agent is not handed on", f"ssh -G {host}"),
        ("ssh-x11", "nor the display", f"ssh -G {host}"),
        ("ssh-ports", "nor is any port forwarded", f"ssh -G {host}"),
        ("ssh-passwords", "its sshd takes no passwords", f"ssh -o PreferredAuthentications=none {host}"),
    ):
        yield Probe(7, name, says, command)
