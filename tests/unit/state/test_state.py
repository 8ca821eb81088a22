"""Records: everything comes back as it was, and damage is never read as absence."""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch import state
from hutch.errors import HutchError
from hutch.spec.entries import Publish
from hutch.spec.model import WORKSPACE_KEYS, Idle, Mount, Network, Workspace
from hutch.spec.names import Places
from hutch.state import (
    PURGE,
    Booted,
    NetworkRecord,
    Record,
    decode,
    encode,
    host_lock,
    journaled,
    lock,
    make_directory,
    read_network,
    read_record,
    read_records,
    remove_network,
    unfinished,
    workspace_from,
    write_network,
    write_record,
)
from tests.unit.facts import check_golden, workspace

WHERE = Path("/var/lib/hutch/workspaces/web/workspace.json")
RECORD = Record("web", "/srv/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "run")


# What goes out comes back.

words = st.text(max_size=8)
some = st.lists(words, max_size=3).map(tuple)
numbers = st.integers(0, 2**63)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["container", "vm"]),
    "engine": st.sampled_from(["local", "incus"]),
    "hypervisor": st.sampled_from(["auto", "qemu", "cloud-hypervisor"]),
    "image": words,
    "packages": some,
    "setup": words,
    "user": words,
    "shell": words,
    "authorized_keys": st.none() | some,
    "owner": st.none() | numbers | words,
    "ip": st.none() | words,
    "mac": st.none() | words,
    "cid": st.none() | numbers,
    "vcpus": st.none() | numbers,
    "memory": st.none() | numbers,
    "disk": st.none() | numbers,
    "autostart": st.booleans(),
    "restart_if_changed": st.booleans(),
    "home": st.none() | words,
    "persist": st.sampled_from(["home", "all"]),
    "mounts": st.lists(st.builds(Mount, words, words, st.booleans(), st.booleans()), max_size=2).map(tuple),
    "egress": words | some,
    "publish": st.lists(st.builds(Publish, words, numbers, numbers, st.sampled_from(["tcp", "udp"])), max_size=2).map(
        tuple
    ),
    "env": st.lists(st.tuples(words, words), max_size=2).map(tuple),
    "nix_store": st.booleans(),
    "gpu": st.booleans(),
    "nesting": st.booleans(),
    "learn": st.booleans(),
    "idle": st.none() | st.builds(Idle, words, st.sampled_from(["suspend", "stop"])),
}
workspaces = st.builds(Workspace, **VALUES)
records = st.builds(
    Record,
    name=st.just("web"),
    file=words,
    wanted=workspaces,
    image=words,
    uid_base=numbers,
    machine_id=words,
    booted=st.none() | st.builds(Booted, workspaces, words),
    removed=st.booleans(),
)


def test_every_key_is_tried() -> None:
    assert VALUES.keys() == set(WORKSPACE_KEYS)


@given(workspaces)
def test_a_workspace_survives_json(declared: Workspace) -> None:
    assert workspace_from(decode(WHERE, encode(asdict(declared)))) == declared


def test_a_record_survives_the_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("records")
    places = Places(directory / "state", directory / "run")

    @given(records)
    def survives(record: Record) -> None:
        write_record(places, record)
        assert read_record(places, "web") == record
        assert read_records(places) == {"web": record}

    survives()


def test_a_record_as_text() -> None:
    check_golden("state/workspace.json", encode(asdict(RECORD.with_booted())).decode())


def test_keys_that_came_later_have_their_defaults() -> None:
    body = asdict(workspace())
    del body["learn"], body["gpu"]
    assert workspace_from(body) == workspace()


def test_records_are_roots_alone_and_written_once(places: Places) -> None:
    write_record(places, RECORD)
    path = places.record("web")
    before = path.stat()
    assert before.st_mode & 0o7777 == 0o600
    write_record(places, RECORD)
    assert path.stat().st_ino == before.st_ino
    write_record(places, replace(RECORD, removed=True))
    assert path.stat().st_ino != before.st_ino


def test_no_record(places: Places) -> None:
    assert read_record(places, "web") is None
    assert read_records(places) == {}
    write_record(places, RECORD)
    (places.workspaces / "half-made").mkdir()
    (places.workspaces / "file").touch()
    (places.workspaces / "link").symlink_to("web")
    assert read_records(places) == {"web": RECORD}


# Damage.

GOOD = encode(asdict(RECORD))


def sealed(body: object) -> bytes:
    """With a checksum that fits."""
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True)
    return json.dumps({"schema": 1, "crc32": zlib.crc32(text.encode()), "body": body}).encode()


def lacking(**changes: Any) -> bytes:
    body = asdict(RECORD) | changes
    return sealed({key: value for key, value in body.items() if value != "absent"})


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "torn": GOOD[: len(GOOD) // 2],
    "zeros": bytes(len(GOOD)),
    "not UTF-8": b"\xff\xfe{}",
    "not an object": b"[1]",
    "a number": b"1",
    "nothing in it": b"{}",
    "without a body": b'{"schema": 1, "crc32": 0}',
    "a changed value": GOOD.replace(b"192.168.83.2", b"192.168.83.3"),
    "another checksum": GOOD.replace(b'"crc32": ', b'"crc32": 1'),
    "a missing field": lacking(uid_base="absent"),
    "a missing workspace": lacking(wanted="absent"),
    "no workspace": lacking(wanted=None),
    "a workspace without packages": lacking(wanted={"type": "container"}),
    "a wrong mount": lacking(wanted=asdict(workspace()) | {"mounts": [{"source": "/a"}]}),
    "of another workspace": lacking(name="lab"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused_with_its_path(content: bytes, places: Places) -> None:
    write_record(places, RECORD)
    path = places.record("web")
    path.write_bytes(content)
    for read in (lambda: read_record(places, "web"), lambda: read_records(places)):
        with pytest.raises(HutchError) as caught:
            read()
        assert caught.value.brief.startswith(f"{path} is damaged: ")
        assert f"mv {path} {path}.damaged" in caught.value.resolution
    assert path.read_bytes() == content


def test_another_version_is_not_damage() -> None:
    with pytest.raises(HutchError, match="has schema 2, this hutch knows 1") as caught:
        decode(WHERE, GOOD.replace(b'"schema": 1', b'"schema": 2'))
    assert "another version of hutch" in caught.value.resolution


@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(position: int, bit: int) -> None:
    content = bytearray(GOOD)
    content[position] ^= 1 << bit
    try:
        body = decode(WHERE, bytes(content))
    except HutchError:
        return
    assert body == json.loads(GOOD)["body"]  # white space, say


def test_reading_without_the_right_to(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hutch.state.os.scandir", refuse)
    with pytest.raises(HutchError, match="this needs root"):
        read_records(places)


# The network's record.


def test_the_network_survives_the_disk(places: Places) -> None:
    assert read_network(places) is None
    record = NetworkRecord(
        Network(uplink="192.168.84.0/30"), "/srv/hutch.toml", {"net/ipv4/ip_forward": "0"}, ("eth0",)
    )
    write_network(places, record)
    assert read_network(places) == record
    for _ in range(2):
        remove_network(places)
        assert read_network(places) is None


@pytest.mark.parametrize("body", [{}, {"network": {"bridge": "b", "x": 1}, "file": "", "sysctls": {}}, {"network": 1}])
def test_a_damaged_network_is_refused(body: object, places: Places) -> None:
    make_directory(places.state)
    places.network_record.write_bytes(sealed(body))
    with pytest.raises(HutchError, match=r"network\.json is damaged: a field is missing or wrong"):
        read_network(places)


# The journal.


def test_the_journal_tells_what_was_left_half_done(places: Places) -> None:
    make_directory(places.state)
    assert unfinished(places) is None
    with journaled(places, "up", ("web", "lab")):
        assert unfinished(places) == ("up", ("web", "lab"))
    assert unfinished(places) is None
    with pytest.raises(KeyboardInterrupt), journaled(places, "up", ("web",)):
        raise KeyboardInterrupt
    assert unfinished(places) == ("up", ("web",))


def test_an_interrupted_purge_is_not_finished_by_the_next_command(places: Places) -> None:
    make_directory(places.state)
    with pytest.raises(KeyboardInterrupt), journaled(places, PURGE, ("web",)):
        raise KeyboardInterrupt
    assert unfinished(places) is None


@pytest.mark.parametrize("content", [b"", b"{", encode({"workspaces": ["web"]})[:-9], b"[]"])
def test_a_torn_journal_means_everybody(content: bytes, places: Places) -> None:
    write_record(places, RECORD)
    places.journal.write_bytes(content)
    assert unfinished(places) == ("unknown", ("web",))


# The lock.


def test_the_lock_is_waited_for_and_given_back(places: Places) -> None:
    for _ in range(2):
        with lock(places, patience=0.0):
            assert places.lock.stat().st_mode & 0o7777 == 0o600
            with (
                pytest.raises(HutchError, match="another hutch has been changing this host") as caught,
                lock(places, patience=0.05),
            ):
                pass
            assert f"fuser {places.lock}" in caught.value.resolution


def test_the_lock_is_given_back_after_a_failure(places: Places) -> None:
    with pytest.raises(ZeroDivisionError), lock(places):
        raise ZeroDivisionError
    descriptor = os.open(places.lock, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_all_hutches_of_a_host_share_a_lock(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "HOST_LOCK", str(tmp_path))
    with lock(places), host_lock(patience=0.0), host_lock(patience=0.0):  # whoever holds it may take it again
        pass
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(HutchError, match="another hutch") as caught, host_lock(patience=0.05):
        pass
    assert caught.value.resolution == f"see who holds it: fuser {tmp_path}"
    os.close(other)
    for _ in range(2):
        with host_lock(patience=0.0):
            pass
    assert os.listdir(tmp_path) == ["state"]


def test_the_lock_is_no_link(places: Places) -> None:
    make_directory(places.state)
    places.lock.symlink_to("/etc/hostname")
    with pytest.raises(OSError), lock(places):
        pass


def test_directories_have_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        make_directory(tmp_path / "a" / "b", 0o700)
        make_directory(tmp_path / "a" / "b")  # is left as it is
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700
