"""Where the host can enforce limits: cgroup v2 with all controllers, and project quotas. Few hosts that run these tests
have both, so a machine is that host: it is shown this checkout, and runs containers of its own image.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.host.doctor.packages import REQUIREMENTS
from hutch.host.hardware.capacity import observe_capacity
from tests.host.instance import Completed, Instance
from tests.host.opening import open_instance
from tests.host.vm.test_vsock_nested import CHECKOUT, needed_directories
from tests.support import red_team
from tests.support.world import PUBLIC, World

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="machines run on x86_64 only"),
    pytest.mark.skipif(observe_capacity().memory < 8 << 30, reason="less than 8 GiB of memory"),
]

PROJECT = "/srv/project"
PACKAGES = [name for item in REQUIREMENTS if item.set == "runtime" and not item.optional for name in item.names("apt")]
IMAGE = f"packages = {json.dumps(sorted(PACKAGES))}\n"
PREPARE = """
set -eu
sysctl -q vm.oom_dump_tasks=0 # as doctor advises
image=/var/lib/hutch/images/$1
truncate -s 2G /run/state
mkfs.ext4 -q -O project,quota -E quotatype=prjquota /run/state
mkdir -p /var/lib/hutch
mount -o loop,prjquota /run/state /var/lib/hutch
mkdir -m 700 /var/lib/hutch/images
mkdir -p "$image/root"
mount -t erofs -o ro /dev/vda "$image/root" # what this machine itself was started from
printf %s "$2" >"$image/image.json"
umask 022
mkdir -p /srv/project
cat >/srv/project/hutch.toml
"""
FILE = f"""
[network]
subnet = "10.99.0.0/24"
uplink = "10.98.0.0/30"
[defaults]
owner = "dev"
{IMAGE}
[workspaces.bad]
type = "container"
memory = "256MiB"
vcpus = 1
disk = "64MiB"
[workspaces.good]
type = "container"
"""
SLICE = "hutch.slice/hutch-ws_bad.slice"  # the machine's own process 1 is systemd
SECONDS = 600.0
SAMPLES = 20  # the 95th percentile leaves out one


class Stand:
    """A host with everything that enforces limits."""

    def __init__(self, outer: Instance) -> None:
        self.outer = outer

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> Completed:
        return self.outer.inside("stand", *argv, root=True, check=check, stdin=stdin, timeout=SECONDS)

    def hutch(self, *argv: str, check: bool = True) -> Completed:
        prefix = ("env", f"--chdir={PROJECT}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "hutch")
        return self.run(*prefix, *argv, check=check)

    def write(self, text: str) -> None:
        self.run("sh", "-c", f"cat >{PROJECT}/hutch.toml", stdin=text)

    def group(self, file: str) -> str:
        """What a file of the bad one's cgroup says, which is its slice's; "" once that has gone."""
        return self.run("cat", f"/sys/fs/cgroup/{SLICE}/{file}", check=False).stdout.strip()


@pytest.fixture(scope="module")
def stand(world: World, images: Path) -> Iterator[Stand]:
    with open_instance(world, images) as outer:
        outer.defaults = IMAGE
        shared = (f'{{ source = "{path}", target = "{path}", readonly = true }}' for path in needed_directories())
        outer.declare("vm", stand=f'memory = "5GiB"\nmounts = [{", ".join(shared)}]')
        (id,) = outer.hutch("image", "build", timeout=900).stdout.split()
        outer.hutch("up", timeout=900)
        stand = Stand(outer)
        stand.run("sh", "-c", PREPARE, "sh", id, (images / id / "image.json").read_text(), stdin=FILE)
        stand.hutch("up")
        yield stand


def test_what_is_declared_is_what_the_kernel_was_told(stand: Stand) -> None:
    assert stand.group("memory.max") == str(256 << 20)
    assert stand.group("cpu.max") == "100000 100000"
    assert stand.group("cpu.weight") == "100"
    assert int(stand.group("pids.max")) > 0
    all_of_them = int(stand.run("cat", "/sys/fs/cgroup/hutch.slice/memory.max").stdout)
    total = int(stand.run("awk", "/^MemTotal/ { print $2 }", "/proc/meminfo").stdout) << 10
    assert all_of_them < total
    (bad,) = json.loads(stand.hutch("status", "bad", "--json").stdout)
    assert bad["warnings"] == []
    findings = json.loads(stand.hutch("doctor", "--json").stdout)
    assert [item for item in findings if item["name"].startswith("limit of") and item["state"] != "ok"] == []


def test_a_home_holds_what_its_disk_says(stand: Stand) -> None:
    """Bytes and files; changed while it runs, for what was there before too; and gone with a purge."""
    home = "/home/dev"
    fill = f"rm -f {home}/fill; head -c 200M /dev/zero >{home}/fill; stat -c %s {home}/fill; rm -f {home}/fill"
    held = int(stand.hutch("exec", "bad", "--", "sh", "-c", fill).stdout)
    assert 60 << 20 <= held <= 64 << 20
    escape = f"chattr -p 0 {home} || chattr -P {home} || unshare -Ur chattr -p 0 {home}"
    assert stand.hutch("exec", "--root", "bad", "--", "sh", "-c", escape, check=False).returncode != 0
    as_root = stand.hutch("exec", "--root", "bad", "--", "sh", "-c", fill).stdout
    assert int(as_root) <= 64 << 20
    stand.write(FILE.replace('disk = "64MiB"', 'disk = "96MiB"'))
    stand.hutch("up")
    assert 90 << 20 <= int(stand.hutch("exec", "bad", "--", "sh", "-c", fill).stdout) <= 96 << 20
    many = f"mkdir {home}/many && cd {home}/many && for i in 1 2 3 4 5 6 7 8 9; do seq $((i*10000)) $((i*10000+9999))"
    many += f" | xargs touch 2>/dev/null; done; ls -f | wc -l; cd; rm -rf {home}/many"
    assert int(stand.hutch("exec", "bad", "--", "sh", "-c", many).stdout) < 66_000
    stand.write(FILE.replace('disk = "64MiB"', ""))
    stand.hutch("up")
    assert int(stand.hutch("exec", "bad", "--", "sh", "-c", fill).stdout) == 200 << 20
    stand.write(FILE)
    stand.hutch("up")


PROGRAMS = {
    "fork bomb": [red_team.FORK_BOMB],
    "memory hog": [red_team.MEMORY_HOG],
    "disk fill": [red_team.DISK_FILL, "/home/dev", "/root"],
    "memory filled with files": [red_team.DISK_FILL, "/tmp", "/run", "/dev/shm"],
    "log flood": [red_team.LOG_FLOOD],
    "connection flood": [red_team.CONNECTION_FLOOD, PUBLIC, "1000"],
}
MEASURE = f"""
import subprocess, sys
sys.path.insert(0, {str(CHECKOUT)!r})
from tests.support.red_team import measure
ask = ["ssh", "-o", "BatchMode=yes", "workspace-good", "true"]
print(measure(lambda: subprocess.run(ask, check=True, timeout=60), {SAMPLES}))
"""


@contextmanager
def attacks(stand: Stand, *names: str) -> Iterator[None]:
    """Some of them at once, until the end of the block. The workspace may well not survive what it does to itself."""
    stand.hutch("stop", "bad", check=False)
    stand.hutch("start", "bad")
    for name in names:
        # Who wants to do harm for long has the kernel end others of his own, not the workspace's PID 1.
        options = ("--property=OOMPolicy=continue", "--property=OOMScoreAdjust=1000")
        start = ("systemd-run", "--quiet", *options, "python3", "-c", *PROGRAMS[name])
        stand.hutch("exec", "--root", "bad", "--", *start, check=False)
    try:
        yield
    finally:
        stand.hutch("stop", "bad", check=False)


def p95(stand: Stand) -> float:
    return red_team.percentile(json.loads(stand.run(sys.executable, "-c", MEASURE).stdout))


def test_red_team(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    """A neighbour's ssh takes no more than twice as long as when all is quiet, one by one and all at once."""
    quiet, found = p95(stand), {}
    # Files in memory end the workspace that fills it, and all else that goes on in there; and beside a fork bomb hardly
    # anything can be started, so that comes last.
    at_once = tuple(name for name in reversed(PROGRAMS) if name != "memory filled with files")
    for title, names in {**{name: (name,) for name in PROGRAMS}, "all at once": at_once}.items():
        with attacks(stand, *names):
            found[title] = p95(stand)
            usage = {file: stand.group(file) for file in ("memory.current", "pids.current", "memory.events")}
            assert usage["pids.current"] or "filled" in title, f"{title} ended the workspace, so nothing was measured"
        with capsys.disabled():
            print(f"\n{title}: ssh to a neighbour {found[title]:.2f} s, {quiet:.2f} s when quiet; {usage}", flush=True)
        assert int(usage["memory.current"] or 0) <= 256 << 20
        assert int(usage["pids.current"] or 0) <= 16384
    calm = max(quiet, p95(stand))
    assert {title: value for title, value in found.items() if value > 2 * calm} == {}, calm


LIMIT_OF = """
import os, sys
sys.path.insert(0, sys.argv[1])
from hutch.host.storage.quota import read_limit
print(read_limit(os.open("/var/lib/hutch", os.O_RDONLY), int(sys.argv[2])))
"""


def test_a_purge_takes_the_quota_back(stand: Stand) -> None:
    """Of the last test: the workspace goes."""
    record = "/var/lib/hutch/workspaces/bad/workspace.json"
    (base,) = re.findall(r'"uid_base": ?([0-9]+)', stand.run("cat", record).stdout)

    def limit() -> str:
        return stand.run(sys.executable, "-c", LIMIT_OF, f"{CHECKOUT}/src", base).stdout.strip()

    assert limit() == str(64 << 20)
    stand.hutch("rm", "--purge", "--force", "bad")
    assert limit() == "0"
