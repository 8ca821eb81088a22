"""Completion in real shells, as it is typed on a terminal. Who sees which names is tried in test_people."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

START = {
    "bash": ["bash", "--norc", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
PREPARE = {
    "bash": 'PS1=; eval "$(hutch completion bash)"',
    "zsh": 'PS1=; autoload -U compinit; compinit -D -u; eval "$(hutch completion zsh)"',
}
TYPED = {
    "hutch ssh my\t": "<ssh><my-project>",
    "hutch resta\tmy\t": "<restart><my-project>",
    "hutch status --js\tmy-\t": "<status><--json><my-project>",
    "hutch cp my\tsrc sen\t": "<cp><my-project:src><sent>",
    "hutch -f hut\tup dec\t": "<-f><hutch.toml><up><declared>",
    "hutch ssh unknown\t": "<ssh><unknown>",
}


@pytest.fixture(scope="module")
def made(world: World, images: Path) -> Iterator[Instance]:
    """A workspace, one that is only declared, and a `hutch` that completes, and otherwise tells its words."""
    with open_instance(world, images) as instance:
        instance.declare("container", **{"my-project": ""})
        instance.hutch("up", "--no-start")
        instance.declare("container", declared="")
        (instance.directory / "sent").touch()
        tool = instance.directory / "bin" / "hutch"
        tool.parent.mkdir()
        tool.write_text(
            '#!/bin/sh\nif [ -n "$_HUTCH_COMPLETE" ] || [ "$1" = completion ]; then\n'
            f'    exec {sys.executable} -m hutch "$@"\nfi\nprintf RAN:; printf "<%s>" "$@"; echo :\n'
        )
        tool.chmod(0o755)
        yield instance


def environment(made: Instance) -> dict[str, str]:
    found = made.environment()
    return {**found, "PATH": f"{made.directory}/bin:{found['PATH']}", "TERM": "dumb"}


def type_in(made: Instance, shell: str, lines: list[str]) -> str:
    """What a shell says on a terminal to these lines."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        START[shell],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=made.directory, env=environment(made), start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        for line in lines:
            count = said.count(b"RAN:")
            os.write(ours, f"{line}\r".encode())
            deadline = time.monotonic() + 20
            while said.count(b"RAN:") == count or b":" not in said.rpartition(b"RAN:")[2].rpartition(b">")[2]:
                assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], said.decode()
                said += os.read(ours, 65536)
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)
    return said.decode()


@pytest.mark.parametrize("shell", START)
def test_words_are_completed_as_they_are_typed(made: Instance, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    said = type_in(made, shell, [f"{PREPARE[shell]}; hutch prepared", *TYPED])
    ran = [text.partition("\n")[0].strip().removesuffix(":") for text in said.split("RAN:")[1:]]
    assert ran == ["<prepared>", *TYPED.values()]


def test_fish_completes(made: Instance) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    wanted = {
        "hutch ssh ": {"my-project"},
        "hutch status --js": {"--json"},
        "hutch cp ": {"my-project:", "sent", "hutch.toml", "bin/"},
        "hutch up ": {"declared", "my-project"},
    }
    script = "hutch completion fish | source\n" + "".join(f"complete -C '{line}'; echo end\n" for line in wanted)
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True, text=True, timeout=60, cwd=made.directory, env=environment(made),
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    answers = [{line.partition("\t")[0] for line in part.splitlines()} for part in result.stdout.split("end\n")[:-1]]
    assert [answer - {""} for answer in answers] == list(wanted.values()), result
