"""Root inside a machine, and patient: what it sends by each device that it has, and what it leaves in home."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.backends.machine import OPEN_FILES
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import main_of, processes, runner_of, status_of
from tests.host.vm.test_machines import pids
from tests.support.world import World

LOG_BYTES = 1 << 20
CAP_SYS_RESOURCE = 1 << 24
CREDENTIALS = {
    *("hutch.ssh-host-key", "network.network.50-hutch", "system.hostname", "sysusers.extra", "tmpfiles.extra"),
}


@pytest.fixture(scope="module")
def lab(world: World, images: Path) -> Iterator[Instance]:
    """A machine `lab`, and beside it `calm`, which must not notice anything."""
    with open_instance(world, images) as instance:
        instance.write('[workspaces.lab]\ntype = "vm"\n[workspaces.calm]\ntype = "container"\n')
        instance.up()
        yield instance


def root(lab: Instance, script: str) -> str:
    """What a script of the attacker's says, whatever becomes of it."""
    return str(lab.inside("lab", "sh", "-c", script, root=True, check=False).stdout)


def peak_memory(lab: Instance) -> int:
    """Of what hears it: the runner, the main process, and the shells beside that. In kilobytes."""
    main = main_of(lab, "lab")
    shells = [process for process in processes() if process.parent == main.pid and "bash" in process.command[0]]
    pids = [process.pid for process in (runner_of(lab, "lab"), main, *shells)]
    return max(int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) for pid in pids)


def test_the_firmware_tells_a_machine_its_own_only(lab: Instance) -> None:
    given = root(lab, "cd /sys/firmware/qemu_fw_cfg/by_name/opt; ls -d */*; for f in */*/raw; do echo x >$f; done")
    words = {"hutch/shares", *(f"io.systemd.credentials/{name}" for name in CREDENTIALS)}
    assert set(given.split()) == words
    assert root(lab, "cat /sys/firmware/qemu_fw_cfg/by_name/opt/*/system.hostname/raw") == "lab"


@pytest.mark.slow
def test_a_flood_of_its_port_is_not_heard(lab: Instance) -> None:
    """Nor does it cost anything; a long line, an early word and a monitor's word are no more than that."""
    before = lab.status("lab")
    words = r"""printf 'READY=1\nX\0poweroff\n{"event": "SHUTDOWN", "data": {"reason": "guest-panic"}}\n'"""
    flood = f"exec 3<>$(echo /dev/vport*p1); {words} >&3; timeout 3 head -c 100000000 /dev/zero >&3"
    root(lab, f"systemctl stop hutch-port; ({flood}); systemctl start hutch-port")
    assert peak_memory(lab) < 60_000
    assert lab.status("lab") == before


@pytest.mark.slow
def test_a_flood_of_its_console_is_bounded_and_printable(lab: Instance) -> None:
    words = r"printf '\033]0;owned\007\033[2J\342\200\256evil\233m\r\n'"
    many = f"for i in $(seq 40); do {words}; done"
    root(lab, f"exec >/dev/ttyS0; {words}; timeout 4 cat /dev/urandom; {many}")
    logs = [path.stat().st_size for path in (lab.run / "workspaces" / "lab").glob("machine.log*")]
    assert sum(logs) <= LOG_BYTES
    shown = lab.hutch("logs", "--lines=5000", "lab").stdout  # so many lines that a flood cannot push out the first word
    assert "owned" in shown
    assert not {character for character in shown if not character.isprintable()} - {"\n", "\t"}
    assert peak_memory(lab) < 60_000


def test_a_neighbour_gets_no_frame_of_its(lab: Instance) -> None:
    """Whatever the protocol, the destination and the claims in it."""
    calm, own = lab.status("calm"), lab.status("lab")
    sniffer = lab.spawn("exec", "--root", "calm", "--", "python3", "-c", SNIFF, own["mac"], stdout=subprocess.PIPE)
    assert sniffer.stdout is not None
    with sniffer.stdout:
        assert sniffer.stdout.readline() == b"ready\n"
        sent = lab.inside("lab", "python3", "-c", SEND, own["ip"], calm["ip"], calm["mac"], root=True)
        assert int(sent.stdout) > 50
        assert lab.inside("calm", "python3", "-c", KNOCK, root=True).returncode == 0
        assert json.loads(sniffer.stdout.read()) == []
    assert sniffer.wait(20) == 0


# Until a frame of our own says that all have been sent.
SNIFF = """
import json, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("host0", 0))
s.settimeout(20)
print("ready", flush=True)
seen = []
while True:
    frame, (_, _, kind, *_) = s.recvfrom(2000)
    if frame[12:14] == b"\\x88\\xb5":
        break
    if frame[6:12] in (bytes.fromhex(sys.argv[1].replace(":", "")), b"\\2\\0\\0\\0\\0\\x99"):
        seen.append(frame[:40].hex())
print(json.dumps(seen))
"""
KNOCK = """
import socket, time
time.sleep(0.5)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("host0", 0))
s.send(b"\\2\\0\\0\\0\\0\\1" * 2 + b"\\x88\\xb5" + bytes(50))
"""
SEND = """
import socket, struct, sys
own, other, other_mac = sys.argv[1:]
mac = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
def udp(source, target, ports, data=bytes(240)):
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 28 + len(data), 1, 0, 64, 17, 0, ends)
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return head + struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
kinds = "0800 0806 86dd 88cc 8100 88a8 8863 888e 8847 9000 0026 88f7"
bodies = [bytes.fromhex(kind) + bytes(60) for kind in kinds.split()]
bodies.append(b"\\x81\\0\\0\\1\\x08\\0" + udp(own, other, (9, 9)))
bodies.append(b"\\x08\\0" + udp("0.0.0.0", "255.255.255.255", (68, 67)))
bodies.append(b"\\x08\\0" + udp(own, "255.255.255.255", (67, 68)))
bodies.append(b"\\x08\\0" + udp(own, "224.0.0.251", (5353, 5353)))
bodies.append(b"\\x08\\0" + udp(own, other, (9, 9)))
frames = []
targets = ["ffffffffffff", "0180c2000000", "0180c200000e", "333300000001", "01005e0000fb", other_mac.replace(":", "")]
for target in targets:
    frames += [bytes.fromhex(target) + mac + body for body in bodies]
frames += [frame[:6] + b"\\2\\0\\0\\0\\0\\x99" + frame[12:] for frame in frames]
for frame in frames:
    s.send(frame)
print(len(frames))
"""


@pytest.mark.slow
def test_virtiofsd_may_keep_what_a_large_tree_needs(lab: Instance) -> None:
    (pid,) = pids(lab, "virtiofsd")
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    may_raise = int(status_of(os.getpid())["CapEff"], 16) & CAP_SYS_RESOURCE
    most = OPEN_FILES if may_raise else min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert [int(word) for word in line.split()[3:5]] == [most] * 2


@pytest.mark.slow
def test_what_it_leaves_in_home_harms_nobody(lab: Instance) -> None:  # the last, since it takes the machine away
    """Names, links, sockets, holes, depths and modes: nothing of it is root's or a device, and every command ends."""
    said = lab.inside("lab", "python3", "-c", LITTER, root=True, timeout=120).stdout
    assert json.loads(said) == ["character device", "block device", "hard link", "capability"]  # all that was refused
    home = Path(lab.status("lab")["home"])
    owner = lab.world.accounts["alice"].uid
    harm = ["(", "!", "-uid", str(owner), "-o", "!", "-gid", str(owner), "-o", "-type", "b", "-o", "-type", "c", ")"]
    found = subprocess.run(["find", home / "litter", *harm], capture_output=True, text=True, timeout=20, check=True)
    assert found.stdout == ""
    for command in ("status", "ls", "plan"):
        lab.hutch(command, timeout=10)
    for kind in ("container", "vm"):  # the way back hands everything over
        lab.write(f'[workspaces.lab]\ntype = "{kind}"\n[workspaces.calm]\ntype = "container"\n')
        lab.up()
        seen = lab.inside("lab", "find", "litter", "-mindepth", "1", "-maxdepth", "1", "-printf", "x").stdout
        assert len(seen) == len(os.listdir(home / "litter"))
    refused = lab.hutch("rm", "lab", check=False)
    assert refused.returncode == 1
    assert "litter" in refused.stderr
    assert not {character for character in refused.stderr if not character.isprintable()} - {"\n"}
    lab.hutch("rm", "--purge", "--force", "lab")
    assert not home.exists()
    assert lab.ssh("calm", "hostname").stdout == "calm\n"


LITTER = r"""
import json, os, socket
os.chdir("/home/dev")
os.mkdir("litter")
os.chdir("litter")
names = "new\nline", "escape\033]0;owned\007\033[31m", "bidi\u202e", "-rf", "--help", "..  ", "q\"'`$(id)", "x" * 255
for name in names:
    os.mkdir(name)
    if len(name) < 200:
        os.mkdir(f"{name}/.git")
open(b"\xff\xfe", "w").close()
for target in ("/etc/shadow", "/", "../../../../../..", "/proc/self/root", "loop"):
    os.symlink(target, target.strip("/").replace("/", "-") or "slash")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
with open("sparse", "w") as file:
    file.truncate(7 << 40)
with open("suid", "w") as file:
    os.fchmod(file.fileno(), 0o6777)
refused = []
def attempt(what, function, *arguments):
    try:
        function(*arguments)
    except OSError:
        refused.append(what)
attempt("character device", os.mknod, "null", 0o20666, os.makedev(1, 3))
attempt("block device", os.mknod, "disk", 0o60666, os.makedev(8, 0))
attempt("hard link", os.link, "/etc/passwd", "passwd")
attempt("capability", os.setxattr, "suid", "security.capability", b"\1\0\0\2" + b"\xff" * 16)
os.chown("sparse", 12345, 54321)
for _ in range(150):  # deeper than a path can tell
    os.mkdir("d" * 60)
    os.chdir("d" * 60)
os.chdir("/home/dev/litter")
os.mkdir("locked")
os.mkdir("locked/.git")
os.chmod("locked", 0)
print(json.dumps(refused))
"""
