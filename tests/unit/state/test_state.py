"""Records: everything comes back as it was, and damage is never read as absence."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.spec.entries import Publish
from hutch.spec.kinds import hypervisors
from hutch.spec.model import WORKSPACE_KEYS, Idle, Mount, Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Booted, Decision, NetworkRecord, Place, Record
from hutch.state import (
    JOURNAL,
    MIGRATIONS,
    PURGE,
    WORKSPACE,
    Damaged,
    aside_of,
    copy_of,
    decode,
    encode,
    journaled,
    make_directory,
    read_network,
    read_record,
    read_records,
    record_from,
    remove_network,
    restore,
    schema_of,
    unfinished,
    workspace_from,
    write_network,
    write_record,
)
from tests.unit.facts import GOLDEN, check_golden, workspace

WHERE = Path("/var/lib/hutch/workspaces/web/workspace.json")
PACKAGES = ("git", "vim", "htop", "wget", "curl", "tmux", "dnsutils")
RECORD = Record("web", "/srv/hutch.toml", workspace(packages=PACKAGES), "image-1", 0x7000_0000, "0" * 32)

NETWORK_RECORD = NetworkRecord(
    Network(uplink="192.168.84.0/30"), "/srv/hutch.toml", {"net/ipv4/ip_forward": "0"}, ("eth0",)
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


# What goes out comes back.

words = st.text(max_size=8)
some = st.lists(words, max_size=3).map(tuple)
numbers = st.integers(0, 2**63)
MOUNTS = st.builds(Mount, words, words, st.sampled_from(["readonly", "writable", "private"]), create=st.booleans()).map(
    Mount.normalized
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["container", "vm"]),
    "engine": st.sampled_from(["local", "incus"]),
    "hypervisor": st.sampled_from(["auto", *hypervisors()]),
    "image": words,
    "packages": some,
    "setup": words,
    "user": words,
    "shell": words,
    "authorized_keys": st.none() | some,
    "owner": st.none() | numbers | words,
    "share_with": some,
    "ip": st.none() | words,
    "mac": st.none() | words,
    "cid": st.none() | numbers,
    "vcpus": st.none() | numbers,
    "memory": st.none() | numbers,
    "disk": st.none() | numbers,
    "autostart": st.booleans(),
    "auto_refresh": st.sampled_from(["never", "daily", "weekly", "monthly"]),
    "restart_if_changed": st.booleans(),
    "home": st.none() | words,
    "persist": st.sampled_from(["home", "all"]),
    "mounts": st.lists(MOUNTS, max_size=2).map(tuple),
    "protect": some,
    "protect_default": st.booleans(),
    "egress": words | some,
    "publish": st.lists(st.builds(Publish, words, numbers, numbers, st.sampled_from(["tcp", "udp"])), max_size=2).map(
        tuple
    ),
    "env": st.lists(st.tuples(words, words), max_size=2).map(tuple),
    "nix_store": st.booleans(),
    "use": some,
    "gpu": st.booleans(),
    "nesting": st.booleans(),
    "vsock": st.booleans(),
    "learn": st.booleans(),
    "idle": st.none() | st.builds(Idle, words, st.sampled_from(["suspend", "stop"])),
}
workspaces = st.builds(WorkspaceSpec, **VALUES)
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
    place=st.none() | st.builds(Place, words, words, words, words, numbers, words),
    decisions=st.lists(
        st.builds(Decision, words, st.booleans(), st.floats(0, 1e12), st.none() | st.floats(0, 1e12)), max_size=2
    ).map(tuple),
)


def test_every_key_is_tried() -> None:
    assert VALUES.keys() == set(WORKSPACE_KEYS)


@given(workspaces)
def test_a_workspace_survives_json(declared: WorkspaceSpec) -> None:
    assert workspace_from(decode(WORKSPACE, WHERE, encode(WORKSPACE, asdict(declared)))) == declared


def test_a_record_survives_the_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("records")
    layout = Layout(directory / "state", directory / "run")

    @given(records)
    def survives(record: Record) -> None:
        write_record(layout, record)
        assert read_record(layout, "web") == record
        assert read_records(layout) == {"web": record}

    survives()


def test_a_record_as_text() -> None:
    check_golden("state/workspace.json", encode(WORKSPACE, asdict(RECORD.with_booted())).decode())


def test_keys_that_came_later_have_their_defaults() -> None:
    body = asdict(workspace())
    del body["learn"], body["gpu"]
    assert workspace_from(body) == workspace()


def test_records_are_roots_alone_and_written_once(layout: Layout) -> None:
    write_record(layout, RECORD)
    path = layout.record("web")
    before = path.stat()
    assert before.st_mode & 0o7777 == 0o600
    write_record(layout, RECORD)
    assert path.stat().st_ino == before.st_ino
    write_record(layout, replace(RECORD, removed=True))
    assert path.stat().st_ino != before.st_ino


def test_no_record(layout: Layout) -> None:
    assert read_record(layout, "web") is None
    assert read_records(layout) == {}
    write_record(layout, RECORD)
    (layout.workspaces / "half-made").mkdir()
    (layout.workspaces / "file").touch()
    (layout.workspaces / "link").symlink_to("web")
    assert read_records(layout) == {"web": RECORD}


# Damage.

GOOD = encode(WORKSPACE, asdict(RECORD))


def sealed(body: object) -> bytes:
    """With a checksum that fits."""
    return of_schema(1, body)


def of_schema(schema: int, body: object) -> bytes:
    """As another hutch would have written it."""
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True)
    return f'{{"schema": {schema}, "crc32": {zlib.crc32(text.encode(), schema - 1)}, "body":\n{text}\n}}\n'.encode()


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
    "without its end": GOOD[:-1],
    "written otherwise": json.dumps(json.loads(GOOD)).encode(),
    "a changed value": GOOD.replace(b"192.168.83.2", b"192.168.83.3"),
    "another checksum": GOOD.replace(b'"crc32": ', b'"crc32": 1'),
    "a missing field": lacking(uid_base="absent"),
    "a missing workspace": lacking(wanted="absent"),
    "no workspace": lacking(wanted=None),
    "a workspace without packages": lacking(wanted={"type": "container"}),
    "a wrong mount": lacking(wanted=asdict(workspace()) | {"mounts": [{"source": "/a"}]}),
    "of another workspace": lacking(name="lab"),
    "a place without a project": lacking(place={"remote": "local"}),
    "a place that is none": lacking(place="local"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused_with_its_path(content: bytes, layout: Layout) -> None:
    write_record(layout, RECORD)
    path = layout.record("web")
    copy_of(path).unlink()
    path.write_bytes(content)
    for read in (lambda: read_record(layout, "web"), lambda: read_records(layout)):
        with pytest.raises(HutchError) as caught:
            read()
        assert caught.value.brief.startswith(f"{path} is damaged: ")
        assert f"mv {path} {path}.damaged" in caught.value.resolution
    assert path.read_bytes() == content


def test_a_newer_schema_is_refused_and_is_no_damage() -> None:
    newer = schema_of(WORKSPACE) + 1
    with pytest.raises(HutchError, match=f"has schema {newer}, this hutch knows {newer - 1}") as caught:
        decode(WORKSPACE, WHERE, of_schema(newer, {}))
    assert "newer hutch" in caught.value.resolution
    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("schema", [0, -1, "1", None, 1.0, True, 9], ids=str)
def test_a_schema_that_nobody_wrote_is_damage(schema: object) -> None:
    now = f'"schema": {schema_of(WORKSPACE)}'.encode()
    with pytest.raises(Damaged):
        decode(WORKSPACE, WHERE, GOOD.replace(now, b'"schema": ' + json.dumps(schema).encode()))


# Migration.


def test_records_of_the_first_schema() -> None:
    """As hutch wrote them before it noted a file's origin."""
    content = (GOLDEN / "state" / "workspace-1.json").read_bytes()
    assert record_from(decode(WORKSPACE, WHERE, content)) == RECORD.with_booted()


def test_records_without_a_place_are_this_hosts() -> None:
    body = asdict(RECORD)
    del body["place"]
    assert record_from(decode(WORKSPACE, WHERE, of_schema(4, body))) == RECORD


def test_every_migration_has_its_place() -> None:
    assert all(sorted(steps) == list(range(1, 1 + len(steps))) for steps in MIGRATIONS.values())


def test_an_older_record_is_migrated_step_by_step(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory when it is read; the file changes when the record is next written."""

    def rename(body: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in body.items() if key != "serial"}, "machine_id": body["serial"]}

    def fill(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "removed": False}

    old = {key: value for key, value in asdict(RECORD).items() if key not in ("machine_id", "removed")}
    content = of_schema(1, {**old, "serial": RECORD.machine_id})
    monkeypatch.setitem(MIGRATIONS, WORKSPACE, {1: rename, 2: fill})
    path = layout.record("web")
    make_directory(path.parent)
    path.write_bytes(content)
    assert read_record(layout, "web") == RECORD
    assert path.read_bytes() == content
    write_record(layout, RECORD)
    assert json.loads(path.read_bytes())["schema"] == 3
    assert read_record(layout, "web") == RECORD
    path.write_bytes(of_schema(2, old))  # not what the second step expects, whatever its checksum says
    copy_of(path).unlink()
    with pytest.raises(Damaged, match="machine_id"):
        read_record(layout, "web")
    path.write_bytes(of_schema(1, old))
    with pytest.raises(Damaged, match="cannot be brought from schema 1 to 3"):
        read_record(layout, "web")


# Copies.


def test_a_record_is_rebuilt_from_its_copy(layout: Layout) -> None:
    write_record(layout, RECORD)
    write_network(layout, NETWORK_RECORD)
    for path in (layout.record("web"), layout.network_record):
        content = path.read_bytes()
        for damage in (b"", content[:-30], None):
            path.unlink() if damage is None else path.write_bytes(damage)
            with pytest.raises(Damaged) as caught:
                (read_network(layout), read_records(layout))
            assert caught.value.path == path
            assert "`hutch up` rebuilds it from its copy" in caught.value.resolution
            assert restore(path)
            assert path.read_bytes() == content
            assert path.stat().st_mode & 0o7777 == 0o600
        assert aside_of(path).read_bytes() == content[:-30]
    assert read_record(layout, "web") == RECORD
    assert read_network(layout) == NETWORK_RECORD
    remove_network(layout)
    assert sorted(os.listdir(layout.state)) == ["workspaces"]


@pytest.mark.parametrize("copied", [b"", GOOD[:-30], GOOD.replace(b'"crc32": ', b'"crc32": 1')])
def test_a_damaged_copy_is_not_believed(copied: bytes, layout: Layout) -> None:
    write_record(layout, RECORD)
    path = layout.record("web")
    copy_of(path).write_bytes(copied)
    assert read_record(layout, "web") == RECORD
    path.write_bytes(b"")
    with pytest.raises(Damaged) as caught:
        read_record(layout, "web")
    assert f"mv {path} {aside_of(path)}; mv {copy_of(path)} {path}.damaged-copy" in caught.value.resolution
    assert not restore(path)
    assert path.read_bytes() == b""


def test_the_copy_of_another_workspace_is_not_believed(layout: Layout) -> None:
    write_record(layout, RECORD)
    (layout.workspaces / "lab").mkdir()
    layout.record("lab").write_bytes(b"")
    copy_of(layout.record("lab")).write_bytes(GOOD)
    assert not restore(layout.record("lab"))


@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(position: int, bit: int) -> None:
    content = bytearray(GOOD)
    content[position] ^= 1 << bit
    try:
        body = decode(WORKSPACE, WHERE, bytes(content))
    except HutchError:
        return
    assert body == json.loads(GOOD)["body"]  # white space, say


def test_reading_without_the_right_to(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hutch.state.os.scandir", refuse)
    with pytest.raises(HutchError, match="this needs root"):
        read_records(layout)


# The network's record.


def test_the_network_survives_the_disk(layout: Layout) -> None:
    assert read_network(layout) is None
    write_network(layout, NETWORK_RECORD)
    assert read_network(layout) == NETWORK_RECORD
    for _ in range(2):
        remove_network(layout)
        assert read_network(layout) is None


@pytest.mark.parametrize("body", [{}, {"network": {"bridge": "b", "x": 1}, "file": "", "sysctls": {}}, {"network": 1}])
def test_a_damaged_network_is_refused(body: object, layout: Layout) -> None:
    make_directory(layout.state)
    layout.network_record.write_bytes(sealed(body))
    with pytest.raises(HutchError, match=r"network\.json is damaged: a field is missing or wrong"):
        read_network(layout)


# The journal.


def test_the_journal_tells_what_was_left_half_done(layout: Layout) -> None:
    make_directory(layout.state)
    assert unfinished(layout) is None
    with journaled(layout, "up", ("web", "lab")):
        assert unfinished(layout) == ("up", ("web", "lab"))
    assert unfinished(layout) is None
    with pytest.raises(KeyboardInterrupt), journaled(layout, "up", ("web",)):
        raise KeyboardInterrupt
    assert unfinished(layout) == ("up", ("web",))


def test_an_interrupted_purge_is_not_finished_by_the_next_command(layout: Layout) -> None:
    make_directory(layout.state)
    with pytest.raises(KeyboardInterrupt), journaled(layout, PURGE, ("web",)):
        raise KeyboardInterrupt
    assert unfinished(layout) is None


@pytest.mark.parametrize("content", [b"", b"{", encode(JOURNAL, {"workspaces": ["web"]})[:-9], b"[]"])
def test_a_torn_journal_means_everybody(content: bytes, layout: Layout) -> None:
    write_record(layout, RECORD)
    layout.journal.write_bytes(content)
    assert unfinished(layout) == ("unknown", ("web",))


def test_directories_have_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        make_directory(tmp_path / "a" / "b", 0o700)
        make_directory(tmp_path / "a" / "b")  # is left as it is
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700
