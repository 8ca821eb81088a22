"""The managed block, and that all else in /etc/hosts stays byte for byte."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.host.identity.hosts_file import ensure_hosts, render_hosts
from tests.unit.facts import LAYOUT, SECOND, check_golden

ADDRESSES = {"web": "192.168.83.2", "lab": "192.168.83.3"}
MORE = {**ADDRESSES, "new": "192.168.83.4"}
BEFORE = b"127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
FOREIGN = b"# BEGIN other\n10.0.0.1 workspace-web\n# END other\n"


def put(content: bytes, addresses: dict[str, str] | None = None, instance: str = "hutch") -> bytes:
    return render_hosts(content, instance, ADDRESSES if addresses is None else addresses)


def test_the_block() -> None:
    check_golden("hosts/hosts", put(BEFORE).decode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        BEFORE,
        b"127.0.0.1 localhost",
        b"a\r\nb\r\n",
        b"a\r\nb",
        b"a\r",
        b"\xff\0\x85",
        FOREIGN,
        b"# BEGIN hutch",
    ],
)
def test_there_and_back(content: bytes) -> None:
    assert put(put(content), {}) == content
    assert put(content, {}) == content


blocks = st.sampled_from([FOREIGN, b"# BEGIN hutch-123456: written by hutch, do not edit\n", b"# END hutch\n"])
pieces = st.binary(max_size=12) | blocks | st.sampled_from([b"\n", b"\r\n", b"1.2.3.4 workspace-x\n", b"# END"])
contents = st.lists(pieces, max_size=6).map(b"".join)


@given(content=contents)
@example(content=b"a\r\n# END hutch\n1.2.3.4 workspace-x\n")
def test_any_content_there_and_back(content: bytes) -> None:
    once = put(content)
    assert put(once) == once
    assert put(put(once, MORE)) == once
    assert put(once, {}) == content
    assert once.startswith(content)


@given(before=contents, after=contents)
def test_what_stands_around_the_block_stays(before: bytes, after: bytes) -> None:
    """The block may be anywhere, and people write behind it."""
    block = put(b"")
    assert put(before + (b"" if not before or before.endswith(b"\n") else b"\n") + block + after, MORE).endswith(after)
    content = put(before) + after
    gone = put(content, {})
    if after:
        joint = b"" if not before or before.endswith(b"\n") else b"\n"
        assert gone == before + joint + after
    else:
        assert gone == before


def test_a_line_written_behind_a_file_without_a_final_line_end() -> None:
    content = put(b"127.0.0.1 localhost") + b"10.0.0.1 nas\n"
    assert put(content, {}) == b"127.0.0.1 localhost\n10.0.0.1 nas\n"
    assert put(put(content, MORE), {}) == b"127.0.0.1 localhost\n10.0.0.1 nas\n"


def test_two_hutches() -> None:
    both = put(put(BEFORE), MORE, SECOND.instance)
    assert put(both, {}) == put(BEFORE, MORE, SECOND.instance)
    assert put(put(both, {}), {}, SECOND.instance) == BEFORE


BEGIN = b"# BEGIN hutch: written by hutch, do not edit\n"
END = b"# END hutch\n"
DAMAGED: dict[str, tuple[bytes, bytes]] = {
    "without its end": (BEGIN + b"192.168.83.2 workspace-web\n10.0.0.1 nas\n", b"10.0.0.1 nas\n"),
    "without its end, and the file ends": (BEGIN + b"192.168.83.2 workspace-web", b""),
    "only its begin": (BEGIN, b""),
    "with a line of somebody else's": (
        BEGIN + b"192.168.83.2 workspace-web\n10.0.0.1 nas\n192.168.83.3 workspace-lab\n" + END + b"tail\n",
        b"10.0.0.1 nas\ntail\n",
    ),
    "with Windows line ends": (
        BEGIN[:-1] + b"\r\n192.168.83.2 workspace-web\r\n" + END[:-1] + b"\r\ntail\r\n",
        b"tail\r\n",
    ),
    "without its end, before a foreign block": (
        BEGIN + b"192.168.83.2 workspace-web\n" + FOREIGN,
        FOREIGN,
    ),
    "without its end, before a line that is nearly ours": (
        BEGIN + b"10.0.0.1 nas workspace-web\n",
        b"10.0.0.1 nas workspace-web\n",
    ),
}


@pytest.mark.parametrize(("content", "rest"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_block(content: bytes, rest: bytes) -> None:
    assert put(b"head\n" + content, {}) == b"head\n" + rest
    assert put(b"head\n" + content) == put(b"head\n") + rest


# Writing.


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("hutch.host.services.lock.HOST_LOCK", str(tmp_path))
    path = tmp_path / "hosts"
    path.write_bytes(BEFORE)
    path.chmod(0o640)
    return path


def test_owner_and_mode_are_kept(hosts: Path) -> None:
    ensure_hosts(LAYOUT, ADDRESSES, hosts)
    assert hosts.read_bytes() == put(BEFORE)
    assert hosts.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(hosts.parent) == ["hosts"]


def test_nothing_is_written_twice(hosts: Path) -> None:
    ensure_hosts(LAYOUT, ADDRESSES, hosts)
    before = hosts.stat()
    ensure_hosts(LAYOUT, ADDRESSES, hosts)
    assert (hosts.stat().st_ino, hosts.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_symbolic_link_stays_one(hosts: Path) -> None:
    link = hosts.with_name("link")
    link.symlink_to("hosts")
    ensure_hosts(LAYOUT, ADDRESSES, link)
    assert link.is_symlink()
    assert hosts.read_bytes() == put(BEFORE)


def test_no_file_and_nothing_to_say(tmp_path: Path) -> None:
    ensure_hosts(LAYOUT, {}, tmp_path / "hosts")
    assert os.listdir(tmp_path) == []


def refuse(code: int) -> object:
    def rename(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code))

    return rename


def test_a_bind_mount_is_written_in_place(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.files.os.rename", refuse(errno.EBUSY))
    inode = hosts.stat().st_ino
    ensure_hosts(LAYOUT, ADDRESSES, hosts)
    ensure_hosts(LAYOUT, {}, hosts)
    assert hosts.read_bytes() == BEFORE
    assert hosts.stat().st_ino == inode
    assert os.listdir(hosts.parent) == ["hosts"]


def test_a_read_only_file_system_is_an_explained_failure(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.files.os.rename", refuse(errno.EROFS))
    with pytest.raises(HutchError, match="hosts cannot be written: Read-only file system"):
        ensure_hosts(LAYOUT, ADDRESSES, hosts)
    assert hosts.read_bytes() == BEFORE
