"""A thousand times a few bytes of a file change, or its end is lost: what is read is what was written, or is refused.

The same seeds on every run. What the command line makes of it is in tests/host/test_damaged_files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.launch import encode_launch
from hutch.errors import HutchError
from hutch.host.hardware.accelerator import Memory, read_memory, write_memory
from hutch.host.identity.ssh import is_pair, is_published
from hutch.host.services.service import Service, observe_service
from hutch.host.storage.shares import noted_shares
from hutch.images.recipe import make_recipe
from hutch.images.record import observe_image, observe_images, render_image
from hutch.runtime.observe import observe, observe_facts, read_launch
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import NetworkRecord, Record
from hutch.state import (
    JOURNAL,
    SHARES,
    Damaged,
    aside_of,
    copy_of,
    encode,
    read_network,
    read_record,
    read_records,
    restore,
    unfinished,
    write_network,
    write_record,
)
from tests.support.statuses import write_status
from tests.unit.backends.test_qemu import machine
from tests.unit.facts import workspace

ROUNDS = 1000
RECORD = Record("web", "/srv/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32).with_booted()
NETWORK_RECORD = NetworkRecord(Network(uplink="192.168.84.0/30"), "/srv/hutch.toml", {"net/ipv4/ip_forward": "0"})
LAUNCH = machine()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "run")
    found.runtime("web").mkdir(parents=True)
    write_record(found, RECORD)
    write_network(found, NETWORK_RECORD)
    found.home("web").mkdir()
    return found


def damaged(content: bytes, seed: str) -> Iterator[bytes]:
    """A few bits flipped, bytes overwritten, the end cut off, or a block of zeros as a file system leaves it."""
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        data = bytearray(content)
        kind = chance.randrange(4)
        place = chance.randrange(len(data))
        if kind == 0:
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.randrange(256)
        elif kind == 2:
            del data[place:]
        else:
            length = min(chance.choice((1, 16, 512)), len(data) - place)
            data[place : place + length] = bytes(length)
        yield bytes(data)


def try_all(path: Path, read: Callable[[], Any], check: Callable[[Any, bytes], None]) -> int:
    """Read each damaged content; how many were refused. `check` sees what was read."""
    content, refused, read_well = path.read_bytes(), 0, 0
    for data in damaged(content, path.name):
        path.write_bytes(data)
        try:
            found = read()
        except HutchError as error:
            refused += str(path) in error.brief and bool(error.resolution)
        else:
            check(found, data)
            read_well += 1
    path.write_bytes(content)
    assert refused + read_well == ROUNDS
    return refused


def same(wanted: Any) -> Callable[[Any, bytes], None]:
    """What is not refused was damaged where it does not matter: in white space."""

    def check(found: Any, data: bytes) -> None:
        assert found == wanted, data

    return check


def test_records_of_workspaces(layout: Layout) -> None:
    path = layout.record("web")
    assert try_all(path, lambda: read_record(layout, "web"), same(RECORD)) > ROUNDS * 0.9
    assert try_all(path, lambda: read_records(layout), same({"web": RECORD})) > ROUNDS * 0.9


def test_the_network_record(layout: Layout) -> None:
    assert try_all(layout.network_record, lambda: read_network(layout), same(NETWORK_RECORD)) > ROUNDS * 0.9


@pytest.mark.parametrize("which", ["record", "network"])
def test_a_record_and_its_copy_damaged_together(which: str, layout: Layout) -> None:
    """It is rebuilt as it was, or it stays refused, and the home stays where it is."""
    path = layout.record("web") if which == "record" else layout.network_record

    def read() -> object:
        return read_record(layout, "web") if which == "record" else read_network(layout)

    wanted, content, rebuilt = read(), path.read_bytes(), 0
    both = zip(damaged(content, f"main {which}"), damaged(content, f"copy {which}"), strict=True)
    for number, (main, copy) in enumerate(both):
        path.write_bytes(main)
        copy_of(path).write_bytes(copy if number % 2 else content)
        try:
            assert read() == wanted
        except Damaged:
            if restore(path):
                rebuilt += 1
                assert read() == wanted
            else:
                with pytest.raises(Damaged):
                    read()
        assert layout.home("web").is_dir()
    assert rebuilt > 0
    assert aside_of(path).exists()


def test_the_journal(layout: Layout) -> None:
    """What cannot be read says that something was going on, and never that nothing was."""
    layout.journal.write_bytes(encode(JOURNAL, {"action": "up", "workspaces": ["web", "lab"]}))

    def check(found: Any, data: bytes) -> None:
        assert found in (("up", ("web", "lab")), ("unknown", ("web",))), data

    assert try_all(layout.journal, lambda: unfinished(layout), check) == 0


def test_what_is_remembered_of_the_accelerator(layout: Layout) -> None:
    memory = Memory({"a host": "", "another": "it went wrong"}, {"boot": "1", "khz": 2_000_000})
    write_memory(layout, memory)

    def check(found: Any, data: bytes) -> None:
        assert found in (memory, Memory({}, {})), data

    assert try_all(layout.state / "accelerator.json", lambda: read_memory(layout), check) == 0


def test_which_mounts_are_ours(layout: Layout) -> None:
    """Without a list: those in our own directory, and those of what is shared."""
    home = str(layout.home("web"))
    layout.shares.write_bytes(encode(SHARES, {"paths": [home, "/srv/a", "/srv/b"], "ids": {"/srv/a": 7}}))

    def check(found: Any, data: bytes) -> None:
        assert sorted(found) in (sorted([home, "/srv/a", "/srv/b"]), sorted([home, "/srv/a"])), data

    read = lambda: noted_shares(layout, [home, "/srv/a"], [home, "/srv/a", "/srv/b", "/srv/foreign"], {})  # noqa: E731
    assert try_all(layout.shares, read, check) == 0
    layout.shares.unlink()
    assert noted_shares(layout, [home, "/srv/a"], [home, "/srv/a"], {}) == [home]


@pytest.mark.parametrize("state", ["starting", "running", "stopping", "failed"])
def test_what_a_service_says(state: str, layout: Layout) -> None:
    """It is never taken for one that has stopped, or that never was."""
    path = layout.status("web")
    write_status(layout, "web", state, pid=1, started=None, leader=[5, 6], reason="why")

    def check(found: Any, data: bytes) -> None:
        assert found.state in (state, "failed"), data

    assert try_all(path, lambda: observe(layout, "web"), check) == 0


def test_what_was_launched(layout: Layout) -> None:
    path = layout.launch("web")
    path.write_bytes(encode_launch(LAUNCH))
    assert read_launch(path) == LAUNCH
    assert observe_facts(layout, "web") == LAUNCH.facts

    def check(found: Any, data: bytes) -> None:
        assert found in (LAUNCH, None), data

    assert try_all(path, lambda: read_launch(path), check) == 0

    def check_facts(found: Any, data: bytes) -> None:
        assert found in (LAUNCH.facts, {}), data

    assert try_all(path, lambda: observe_facts(layout, "web"), check_facts) == 0


def test_the_record_of_an_image(layout: Layout) -> None:
    recipe = make_recipe("debian:trixie", (), "")
    directory = layout.images / recipe.id
    (directory / "root").mkdir(parents=True)
    (directory / "image.json").write_bytes(render_image(recipe, "2026-01-01T00:00:00+00:00", 5))

    def check(found: Any, data: bytes) -> None:
        assert found is not None, data

    try_all(directory / "image.json", lambda: observe_image(layout, recipe.id), check)

    def check_listed(found: Any, data: bytes) -> None:
        assert [image.id for image in found] == [recipe.id], data

    assert try_all(directory / "image.json", lambda: observe_images(layout), check_listed) == 0


def test_a_key_that_a_workspace_is_known_by(layout: Layout) -> None:
    """A pair that does not fit is seen, and whether the key is published is read without a failure."""
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIGrYKMKTvYHGe0ZcHmcrDHuKzVHGGIwJ7qh0xXu3LjX9"
    layout.known_hosts.write_bytes(f"workspace-web,192.168.83.2 ssh-ed25519 {blob}\n".encode())
    assert is_published(layout, "web")
    assert try_all(layout.known_hosts, lambda: is_published(layout, "web"), lambda found, data: None) == 0
    public = f"ssh-ed25519 {blob} web\n".encode()
    for data in damaged(public, "public"):
        assert isinstance(is_pair(b"", data), bool)
        assert isinstance(is_pair(data, public), bool)


def test_the_pid_file_of_a_resolver(layout: Layout) -> None:
    """A number in it proves nothing."""
    path = layout.run / "pid"
    path.write_text("4294967")
    service = Service("x", str(path), "", ("dnsmasq",))
    assert try_all(path, lambda: observe_service(service), same(None)) == 0


def test_a_body_that_is_sound_and_says_something_else(layout: Layout) -> None:
    """A checksum that fits does not make a record of what is none."""
    for body in ({}, {"name": "web"}, {**asdict(RECORD), "wanted": []}, {**asdict(RECORD), "booted": [1]}):
        copy_of(layout.record("web")).unlink(missing_ok=True)
        layout.record("web").write_bytes(encode("workspace", json.loads(json.dumps(body))))
        with pytest.raises(Damaged):
            read_record(layout, "web")
