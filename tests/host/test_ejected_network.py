"""The network of an ejected workspace: what its script makes, and that it leaves nothing, in namespaces of the test's
own.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.apply.ejected_texts import PROGRAMS, render_files
from hutch.runtime.units import SERVES
from hutch.spec.ejected import Ejected
from hutch.spec.entries import Publish
from hutch.spec.names import PACKAGE, Layout
from tests.unit.apply.test_ejecting import subject
from tests.unit.facts import workspace

AROUND = """
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
mkdir /run/netns
ip link set lo up
ip link add lan type bridge
ip addr add 10.1.2.3/24 dev lan
ip link set lan up
echo 0 >/proc/sys/net/ipv4/ip_forward
"""
"""A host."""
LEFT = "ip -o link; ip -4 -o route; ip rule; ls /run/netns; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward"


@dataclass(frozen=True)
class Made:
    """What an ejected workspace has for its network; `watch` is the command that watches over its rules."""

    directory: Path
    home: Path
    watch: str

    def run(self, script: str) -> str:
        """What a shell says on such a host. `$network` is the script, `left` says what is there."""
        begin = (
            f"set -eu\nnetwork={self.directory}/network/run\nleft() {{ {LEFT}; findmnt {self.home} || :; }}\n{AROUND}"
        )
        result = subprocess.run(
            ["unshare", "--net", "--mount", "--", "sh", "-c", begin + script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path)


def make(tmp_path: Path, egress: str | tuple[str, ...] = "internet") -> Made:
    home = tmp_path / "home of its own"
    home.mkdir()
    declared = workspace(home=str(home), publish=(Publish("127.0.0.1", 8080, 80, "tcp"),), egress=egress)
    found = subject("web", declared, Layout(tmp_path / "state", tmp_path / "run"))
    for path, text in render_files(found).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.content)
        path.chmod(text.mode)
    for program in PROGRAMS:
        shutil.copyfile(PACKAGE / program, found.layout.programs / program)
    return Made(found.layout.state, home, shlex.join(found.services[-1].command))


def test_what_it_makes(made: Made) -> None:
    said = made.run(
        """
        $network start
        ip -4 -o route show 192.168.83.2
        ip netns exec workspace-web nft list set inet workspace-web host
        ip -n workspace-web -4 -o addr show dev hutch0
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/wu-web/route_localnet
        findmnt --noheadings --output OPTIONS "$PWD"
    """.replace("$PWD", str(made.home))
    )
    route, *rest = said.splitlines()
    assert route.strip() == "192.168.83.2 via 192.168.84.6 dev wu-web"
    assert "elements = { 10.1.2.3, 192.168.84.5 }" in said
    assert "inet 192.168.83.1/24" in said
    assert rest[-3:-1] == ["1", "1"]
    assert "nosuid,nodev" in rest[-1]


def test_its_rules_are_what_is_watched(made: Made) -> None:
    """Until somebody changes them."""
    bridge = "ip -n workspace-web link show dev hutch0 | grep -o '[<,]UP[,>]' || echo down"
    said = made.run(f"""
        $network start
        timeout 10 {made.watch} >/dev/null &
        sleep 2
        {bridge}
        ip netns exec workspace-web nft flush chain inet workspace-web forward
        sleep 2
        {bridge}
        wait
    """)
    assert said.splitlines() == [",UP>", "down"]


def test_what_the_egress_proxy_finds(tmp_path: Path) -> None:
    """The mode of its records is set once."""
    made = make(tmp_path, egress=("example.org",))
    (tmp_path / "run-ejected" / "web" / "egress").mkdir(parents=True, mode=0o755)
    said = made.run(f"""
        cd {tmp_path}
        $network start
        chmod 750 state-ejected/web/egress/web
        $network start
        stat --format='%a %u %g %n' state-ejected/web/egress state-ejected/web/egress/web state-ejected/web/log/inbox \
          run-ejected/web/egress run-ejected/web/services/egress
        cmp state-ejected/web/network/views.json run-ejected/web/services/egress/views.json
    """)
    uid = Ejected.beside(Layout(tmp_path / "state", tmp_path / "run"), "web").egress_uid
    assert said.splitlines() == [
        "755 0 0 state-ejected/web/egress",
        f"750 {uid} 0 state-ejected/web/egress/web",
        "755 0 0 state-ejected/web/log/inbox",
        f"700 {uid} 0 run-ejected/web/egress",
        f"750 0 {uid} run-ejected/web/services/egress",
    ]


PROGRAM = """#!/bin/sh
[ -e called ] && echo 7 >pid
>called
{answer}
"""


@pytest.mark.parametrize(("answer", "code"), [("exit 0", 0), ("exit 3", 1)], ids=("soon", "inactive"))
def test_what_serves_it_is_waited_for(tmp_path: Path, answer: str, code: int) -> None:
    """An active unit that has a pid file the next time that it is looked at, and one that is not active."""
    (tmp_path / "systemctl").write_text(PROGRAM.format(answer=answer))
    (tmp_path / "systemctl").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    command = ["sh", "-c", SERVES, "sh", "a.service", "pid"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stderr == ("a.service does not serve\n" if code else "")
    assert (tmp_path / "pid").exists() == (code == 0)


def test_it_leaves_nothing(made: Made) -> None:
    said = made.run("left; echo --; $network start; $network start; $network stop; left")
    before, after = said.split("--\n")
    assert "ip_forward" not in said and after == before


def test_what_fails_leaves_nothing(made: Made) -> None:
    with open(made.directory / "network" / "host.nft", "a") as rules:
        rules.write("table inet other {\n")
    before, after = made.run("left; echo --; ! $network start; left").split("--\n")
    assert after == before


def test_rules_that_are_not_all_there_are_refused(made: Made) -> None:
    """As of a kernel, or an nft, that leaves something out."""
    forgetful = made.home / "nft"
    forgetful.write_text('#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin nft "$@" | sed \'/"never"/d\'\n')
    forgetful.chmod(0o755)
    said = made.run(f"""
        mount --bind '{made.home}' /mnt
        sed 's|^PATH=|PATH=/mnt:|' "$network" >/run/network
        left
        echo --
        ! sh /run/network start 2>&1
        left
    """)
    before, after = said.split("--\n")
    refusal, _, after = after.partition("\n")
    assert refusal == "the rules of router.nft did not load as written"
    assert after == before


def test_forwarding_stays_for_others(made: Made) -> None:
    said = made.run("$network start; ip link add other type bridge; $network stop; cat /proc/sys/net/ipv4/ip_forward")
    assert said == "1\n"


def test_forwarding_that_hutch_began_ends_with_whoever_is_the_last(made: Made) -> None:
    """hutch goes, and leaves what it found: an interface that was there before needs no forwarding."""
    here = f"{made.directory.parent.parent}/run-ejected/web"
    said = made.run(
        f"""
        show() {{ cat /proc/sys/net/ipv4/ip_forward; }}
        echo 1 >/proc/sys/net/ipv4/ip_forward; mkdir -p {here}; echo lan >{here}/inherited
        ip link add hutch-up type bridge; $network start; $network stop; show
        $network start; ip link delete hutch-up; show; $network stop; show
        """
    )
    assert said == "1\n1\n0\n"


@pytest.mark.parametrize("theirs", ["ip link add wu-web type bridge", "ip netns add workspace-web"])
def test_what_is_somebody_elses_is_left_alone(made: Made, theirs: str) -> None:
    said = made.run(f"{theirs}; left; echo --; ! $network start 2>&1; left")
    before, after = said.split("--\n")
    refusal, _, after = after.partition("\n")
    assert refusal.endswith("that is not this workspace's")
    assert after == before
