"""Files that are wrong: exit code 2, every problem with its line and value, and nothing touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.residue import differences, observe
from tests.support import machine
from tests.support.world import World

HEAD = """[network]
subnet = "192.168.83.0/24"
[workspaces.good]
type = "container"
"""
FIRST = HEAD.count("\n") + 1  # the line of a body's first line


@dataclass(frozen=True)
class Wrong:
    """A body after HEAD, and for each problem its line in the body, from 0, and words that must be on its line."""

    body: str
    problems: tuple[tuple[int, str], ...]


def one(line: str, *words: str) -> Wrong:
    """A workspace whose second line is wrong."""
    return Wrong(f'[workspaces.web]\n{line}\ntype = "container"\n', ((1, " ".join(words)),))


WRONG = {
    "bad name": Wrong('[workspaces.Web]\ntype = "container"\n', ((0, "workspaces.Web lower-case"),)),
    "name with a slash": Wrong('[workspaces."../x"]\ntype = "container"\n', ((0, "../x"),)),
    "long name": Wrong(f"[workspaces.{'a' * 33}]\ntype = 'container'\n", ((0, "a" * 33),)),
    "duplicate ip": Wrong(
        '[workspaces.one]\ntype = "container"\nip = "192.168.83.9"\n[workspaces.two]\ntype = "container"\n'
        'ip = "192.168.83.9"\n',
        ((5, "192.168.83.9 one"),),
    ),
    "foreign ip": one('ip = "10.0.0.5"', "workspaces.web.ip 10.0.0.5 192.168.83.0/24"),
    "gateway's ip": one('ip = "192.168.83.1"', "workspaces.web.ip gateway"),
    "newline in a value": one('user = "dev\\nroot"', "workspaces.web.user"),
    "newline in a shell": one('shell = "/bin/sh\\n"', "workspaces.web.shell"),
    "unknown key": one("pakages = []", 'workspaces.web.pakages unknown "packages"'),
    "wrong type": one('autostart = "yes"', 'workspaces.web.autostart "yes" true or false'),
    "number for a size": one("memory = 4", "workspaces.web.memory unit"),
    "bad size": one('memory = "4 bananas"', "workspaces.web.memory bananas size"),
    "mount of the whole host": one('mounts = [{ source = "/", target = "/host" }]', "mounts[0].source / whole"),
    "mount of the state": one('mounts = [{ source = "STATE", target = "/s" }]', "mounts[0].source STATE state"),
    "mount over the system": one('mounts = [{ source = "~", target = "/etc" }]', "mounts[0].target /etc"),
    "missing type": Wrong("[workspaces.web]\nvcpus = 2\n", ((0, 'workspaces.web "container" "vm"'),)),
    "unknown type": Wrong('[workspaces.web]\ntype = "docker"\n', ((1, "workspaces.web.type docker container"),)),
    "group mac": one('mac = "01:00:00:00:00:01"', "workspaces.web.mac 01:00:00:00:00:01"),
    "bad port": one('publish = ["99999:80"]', "publish[0] 99999"),
    "port twice": one('publish = ["80:80", "80:81"]', "publish[1] 80"),
    "bad environment": one('env = { "A=B" = "x" }', "workspaces.web.env"),
    "newline in the environment": one('env = { A = "x\\ny" }', "workspaces.web.env.A"),
    "bad package": one('packages = ["git;reboot"]', "packages[0] git;reboot"),
    "bad egress": one('egress = ["exa mple.org"]', "egress[0] exa"),
    "unknown image": one('image = "windows:11"', 'workspaces.web.image windows:11 "debian:trixie"'),
    "root as user": one('user = "root"', "workspaces.web.user root"),
    "root as owner": one("owner = 0", "workspaces.web.owner 0 root"),
    "unknown owner": one('owner = "nobody-here"', "workspaces.web.owner nobody-here"),
    "unknown table": Wrong('[worskpaces.web]\ntype = "container"\n', ((0, "worskpaces workspaces"),)),
    "no toml": Wrong("[workspaces.web\n", ((0, "TOML"),)),
    "not supported yet": one("gpu = true", "workspaces.web.gpu not supported yet"),
    "another engine": Wrong(
        '[workspaces.web]\ntype = "vm"\nengine = "incus"\n', ((1, "workspaces.web.type not supported yet"),)
    ),
    "all at once": Wrong(
        '[workspaces.web]\nip = "10.0.0.5"\nmemory = "big"\nvcpus = "two"\nuser = "root"\nshel = "/bin/sh"\n'
        'type = "container"\n[workspaces.BAD]\n[defaults]\nautostart = 1\n',
        (
            (1, "workspaces.web.ip 10.0.0.5"),
            (2, "workspaces.web.memory big"),
            (3, "workspaces.web.vcpus two"),
            (4, "workspaces.web.user root"),
            (5, "workspaces.web.shel shell"),
            (7, "workspaces.BAD"),
            (9, "defaults.autostart 1"),
        ),
    ),
}


@pytest.fixture(scope="module")
def untouched(world: World) -> Iterator[tuple[Instance, machine.Snapshot]]:
    with open_instance(world, None) as instance:
        yield instance, observe()


def listing(top: Path) -> list[str]:
    return sorted(str(path) for path in top.rglob("*"))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_as_a_whole(untouched: tuple[Instance, machine.Snapshot], name: str) -> None:
    instance, before = untouched
    wrong = WRONG[name]
    instance.file.write_text(HEAD + wrong.body.replace("STATE", str(instance.state)))
    state = listing(instance.state)
    result = instance.hutch("up", check=False)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    for line, words in wrong.problems:
        place = f"{instance.file}:{FIRST + line}: "
        reported = [report for report in result.stderr.splitlines() if report.strip().startswith(place)]
        wanted = words.replace("STATE", str(instance.state)).split()
        assert any(all(word in report for word in wanted) for report in reported), f"{place} {wanted}\n{result.stderr}"
    reports = [report for report in result.stderr.splitlines() if f"{instance.file}:" in report.split(": ")[0] + ":"]
    lines = {
        report.strip().split(": ")[0]
        for report in reports
        if report.strip().split(": ")[0].rpartition(":")[2].isdigit()
    }
    assert lines == {f"{instance.file}:{FIRST + line}" for line, _ in wrong.problems}
    assert listing(instance.state) == state
    assert differences(before, patience=0.5) == ""


@pytest.mark.parametrize("command", ["plan", "up"])
def test_a_file_that_others_can_write_is_refused(untouched: tuple[Instance, machine.Snapshot], command: str) -> None:
    instance, _ = untouched
    instance.file.write_text(HEAD)
    instance.file.chmod(0o666)
    try:
        result = instance.hutch(command, check=False)
    finally:
        instance.file.chmod(0o644)
    assert result.returncode == 2
    assert "written by" in result.stderr


def test_a_file_that_is_no_file_is_refused(untouched: tuple[Instance, machine.Snapshot], tmp_path: Path) -> None:
    instance, _ = untouched
    fifo = tmp_path / "hutch.toml"
    os.mkfifo(fifo)
    result = instance.hutch("-f", str(fifo), "up", check=False, timeout=60)
    assert result.returncode == 2
    assert "regular file" in result.stderr


def test_a_missing_file_is_a_usage_error(untouched: tuple[Instance, machine.Snapshot]) -> None:
    instance, _ = untouched
    instance.file.unlink(missing_ok=True)
    result = instance.hutch("up", check=False)
    assert result.returncode == 2
    assert "hutch init" in result.stderr


def test_byte_order_mark_and_crlf_are_fine(untouched: tuple[Instance, machine.Snapshot]) -> None:
    instance, _ = untouched
    instance.file.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert instance.plan()["good"]["action"] == "create"
