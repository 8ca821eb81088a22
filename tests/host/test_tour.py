"""The README's tour, typed as it stands there by somebody who has sudo: each of its commands, in its order."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.host.egress import eventually
from tests.host.instance import SSH_OPTIONS, Instance
from tests.host.opening import open_instance
from tests.support.world import PUBLIC_NAME, World

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```toml\n((?:.*\n)*?)```$|^    (\S.*)$", re.MULTILINE)
UNLISTED = "nowhere.example"
ELSEWHERE = {"deb.debian.org": PUBLIC_NAME, "example.com/": f"{UNLISTED}/"}
"""Names of the tour, and those that the tests' Internet has in their place."""
PREPARED = """packages = ["curl", "git", "python3"]\n"""
"""The tests' image has these, and their network has no mirror."""
SUDO = {"SUDO_UID": "1000"}
SECONDS = 300.0  # for a command that starts a machine


class Visitor:
    """alice, in a directory of hers with a hutch.toml, and a project beside it."""

    def __init__(self, instance: Instance, kind: str) -> None:
        self.instance, self.kind, self.lines = instance, kind, ""
        self.account = instance.world.accounts["alice"]
        self.place = self.account.home / "tour"
        self.server: subprocess.Popen[str] | None = None
        project = self.account.home / "project"
        for directory in (self.place, project):
            directory.mkdir()
        for file in (self.place / "hutch.toml", project / "README.md"):
            file.touch()
        for path in (*self.place.iterdir(), *project.iterdir(), self.place, project):
            os.chown(path, self.account.uid, self.account.uid)

    def write(self, block: str) -> None:
        """Do to the file what a block of the page says: the first is a workspace, others are lines of its table."""
        self.lines += translated(block.replace(PREPARED, "").replace('"container"', f'"{self.kind}"'))
        head = f'[network]\nsubnet = "{self.instance.subnet}"\n[defaults]\n{self.instance.defaults}\n'
        vcpus = self.instance.vcpus if self.kind == "vm" else ""
        (self.place / "hutch.toml").write_text(head + vcpus + self.lines)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Type a command, as alice or by sudo. Without a terminal, a shell ends at once."""
        words = shlex.split(translated(command))
        by_sudo = words[0] == "sudo"
        home = f"{self.account.home}/"
        program, *rest = [word.replace("~/", home) for word in words[by_sudo:]]
        environment = self.account.environment()
        if program == "hutch":
            environment = self.instance.environment(SUDO if by_sudo else {}, "root" if by_sudo else "alice")
        own = {"hutch": self.instance.program, "ssh": ("ssh", *SSH_OPTIONS, *(["-tt"] if "-t" in rest else []))}
        argv = [*own.get(program, (program,)), *rest]
        if not by_sudo:
            argv = self.account.command(*argv)
        into = subprocess.PIPE
        return subprocess.Popen(
            argv, cwd=self.place, env=environment, stdin=subprocess.DEVNULL, stdout=into, stderr=into, text=True
        )

    def finish(self, command: str) -> tuple[int, str, str]:
        """A command's code, and what it has said, at its end."""
        with self.start(command) as process:
            try:
                said, errors = process.communicate(timeout=SECONDS)
            except BaseException:
                process.kill()
                raise
        return process.returncode, said, errors

    def end_server(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.communicate(timeout=60)
            self.server = None

    def forget(self) -> None:
        """Take away what she had, once nothing of it is shared any more."""
        for name in ("tour", "project"):
            shutil.rmtree(self.account.home / name)


def translated(text: str) -> str:
    for name, ours in ELSEWHERE.items():
        text = text.replace(name, ours)
    return text


# What is to become of a command.

Act = Callable[[Visitor, str], None]


def says(text: str = "") -> Act:
    def act(visitor: Visitor, command: str) -> None:
        code, said, errors = visitor.finish(command)
        assert code == 0 and text in said, f"{command}: {code}\n{said}\n{errors}"

    return act


def is_refused(visitor: Visitor, command: str) -> None:
    code, _, errors = visitor.finish(command)
    assert code != 0 and "Could not resolve host" in errors


def serves(visitor: Visitor, command: str) -> None:
    visitor.server = visitor.start(command)


def gets_the_page(visitor: Visitor, command: str) -> None:
    """In the other terminal; the server in the first one is ended then."""
    assert eventually(lambda: "README.md" in visitor.finish(command)[1], patience=60.0), visitor.server
    visitor.end_server()


def comes_to_say(text: str) -> Act:
    """Without a terminal, it says what there is and ends."""

    def act(visitor: Visitor, command: str) -> None:
        assert eventually(lambda: text in visitor.finish(command)[1], patience=60.0)

    return act


COMMANDS: Sequence[tuple[str, Act]] = [
    ("hutch plan", says("web  create")),
    ("sudo hutch up", says()),
    ("ssh workspace-web", says()),
    ("sudo hutch up", says()),
    ("ssh workspace-web ls /srv/project", says("README.md\n")),
    ("hutch cp ~/project/README.md web:", says()),
    ("sudo hutch up", says()),
    ("ssh -t workspace-web python3 -m http.server 8000", serves),
    ("curl http://127.0.0.1:8080/", gets_the_page),
    ("sudo hutch up", says()),
    ("ssh workspace-web curl -sSI http://deb.debian.org/", says("HTTP/1")),
    ("ssh workspace-web curl -sSI http://example.com/", is_refused),
    ("hutch egress web", comes_to_say(UNLISTED)),
]


def steps() -> list[tuple[str, str]]:
    """The tour as pairs: a block of the file and "", or "" and a command without its comment."""
    tour = README.read_text().partition("\n## Tour\n")[2].partition("\n## ")[0]
    return [(block, command.split("  #")[0].rstrip()) for block, command in BLOCK.findall(tour)]


def test_each_command_of_the_page_is_typed() -> None:
    assert [command for _, command in steps() if command] == [command for command, _ in COMMANDS]


@pytest.fixture
def visitor(world: World, images: Path, workspace_type: str) -> Iterator[Visitor]:
    with open_instance(world, images) as instance:
        visitor = Visitor(instance, workspace_type)
        try:
            yield visitor
        finally:
            visitor.end_server()
    visitor.forget()


@pytest.mark.vm(slow=True)
def test_the_tour(visitor: Visitor) -> None:
    acts = iter(COMMANDS)
    for block, command in steps():
        if block:
            visitor.write(block)
        else:
            _, act = next(acts)
            act(visitor, command)
