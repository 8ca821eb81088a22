"""Several commands at once: one after the other, or refused with who holds the lock; and one consistent result."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.host.services.lock import find_holder
from tests.host.faults import check_idle, check_ports, fill_home, home_digest, layout_of
from tests.host.instance import HUTCH, Instance
from tests.host.opening import open_instance
from tests.host.processes import processes
from tests.support.world import World

FILES = 3
ROUNDS, FEW_ROUNDS = 50, 3
AT_ONCE = 8
REFUSALS = (
    "has just been removed by somebody else",
    "there is no workspace",
    "another file declares a workspace of the same name",
    "would collide",
    "belongs to workspace",
)


@pytest.fixture(scope="module")
def crowd(world: World, images: Path) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        yield instance


def write_files(instance: Instance) -> list[Path]:
    """Files that overlap: each has a workspace of its own, and all of them name `shared`."""
    paths = []
    for number in range(FILES):
        directory = instance.directory / f"part-{number}"
        directory.mkdir(exist_ok=True)
        instance.declare("container", **{f"own-{number}": "", "shared": f'env = {{ N = "{number}" }}'})
        path = directory / "hutch.toml"
        path.write_text(instance.file.read_text())
        paths.append(path)
    return paths


@dataclass
class Racer:
    """A command of the race and what came of it."""

    arguments: list[str]
    process: subprocess.Popen[str]

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors


@pytest.mark.slow
def test_eight_at_once_of_overlapping_files(crowd: Instance, request: pytest.FixtureRequest) -> None:
    paths = write_files(crowd)
    chance = random.Random(4)
    rounds = ROUNDS if request.config.getoption("--long") else FEW_ROUNDS
    homes: dict[str, str] = {}
    for _ in range(rounds):
        racers = []
        for _ in range(AT_ONCE):
            path = chance.choice(paths)
            name = chance.choice(("shared", f"own-{paths.index(path)}"))
            arguments = ["-f", str(path), *chance.choice((["up"], ["up", name], ["rm", "--force", name]))]
            racers.append(Racer(arguments, start(crowd, *arguments)))
        for racer in racers:
            code, errors = racer.end()
            assert "Traceback" not in errors, errors
            assert code in (0, 1, 2), (racer.arguments, code, errors)
            assert code == 0 or any(words in errors for words in REFUSALS), (racer.arguments, errors)
        check_consistent(crowd, homes)


def start(instance: Instance, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HUTCH, *arguments],
        cwd=instance.directory,
        env=instance.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_consistent(instance: Instance, homes: dict[str, str]) -> None:
    """What exists runs and answers, each has one file and an address, and the file has nothing more to do."""
    entries = json.loads(instance.hutch("ls", "--json").stdout)
    existing = [entry for entry in entries if entry["state"] != "absent"]
    assert all(entry["state"] == "running" for entry in existing), existing
    assert len({entry["ip"] for entry in existing}) == len(existing)
    for entry in existing:
        if entry["name"] not in homes:
            fill_home(instance, entry["name"])
            homes[entry["name"]] = home_digest(instance, entry["name"])
        instance.ssh(entry["name"])
        said = instance.hutch("-f", entry["file"], "up", entry["name"], check=False).stderr
        assert "nothing to do" in said or "another file declares" in said, said
    for name, digest in homes.items():
        assert home_digest(instance, name) == digest, name
    check_ports(instance)
    assert not (instance.state / "journal.json").exists()


# Who holds the lock.


@pytest.fixture
def busy(crowd: Instance) -> Iterator[tuple[Instance, subprocess.Popen[str]]]:
    """A hutch in the middle of an `up`, stopped there."""
    crowd.declare("container", web="")
    crowd.up()
    crowd.hutch("rm", "--force", "web")
    process = start(crowd, "up")
    lock = os.open(layout_of(crowd).lock, os.O_RDONLY)
    try:
        deadline = time.monotonic() + 20
        while find_holder(lock) is None:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGSTOP)
        yield crowd, process
    finally:
        os.close(lock)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate(timeout=30)
        crowd.up()
        crowd.hutch("rm", "--force", "web")


def test_whoever_waits_is_told_for_whom(busy: tuple[Instance, subprocess.Popen[str]]) -> None:
    instance, holder = busy
    waiter = start(instance, "stop", "web")
    assert waiter.stderr is not None
    said = waiter.stderr.readline()
    assert re.fullmatch(rf"hutch: waiting for `hutch up` \(pid {holder.pid}, since \d\d:\d\d:\d\d\)\n", said), said
    quiet = start(instance, "-q", "up")
    holder.send_signal(signal.SIGCONT)
    told = {process.pid: process.communicate(timeout=60)[1] for process in (holder, waiter, quiet)}
    assert [process.returncode for process in (holder, waiter, quiet)] == [0, 0, 0], told
    assert "waiting" not in told[quiet.pid]


def test_a_killed_holder_is_nobody(busy: tuple[Instance, subprocess.Popen[str]]) -> None:
    instance, holder = busy
    holder.kill()
    holder.wait(10)
    assert "waiting" not in instance.up().stderr
    check_idle(instance)


def test_nothing_that_stays_has_the_lock(crowd: Instance) -> None:
    """What `up` leaves running has neither lock open: neither a guest nor a resolver can hold up the next command."""
    crowd.declare("container", web="")
    crowd.up()
    locks = {str(layout_of(crowd).lock), "/root"}
    for process in processes():
        for entry in Path(f"/proc/{process.pid}/fd").glob("*"):
            try:
                target = os.readlink(entry)
            except OSError:  # closed meanwhile
                continue
            assert target not in locks, process
    crowd.hutch("rm", "--force", "web")
