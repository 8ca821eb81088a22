"""Known hosts and the drop-in for the ssh client."""

from __future__ import annotations

import base64
import fcntl
import os
import pwd
import signal
import time
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.identity import ssh
from hutch.host.identity.ssh import Peer, check_include, ensure_trust, owner_of, render_config, render_known_hosts
from hutch.spec.names import Layout
from tests.unit.facts import KEY, LAYOUT, check_golden

PEERS = (
    Peer("web", "192.168.83.2", "dev", f"{KEY} workspace-web"),
    Peer("lab", "192.168.83.3", "me", KEY),
)
KEYS = {"0": ("web", "lab"), "1000": ("web", "lab"), "1001": ("lab",), "@1200": ("web",), "@1300": ("gone",)}


def test_drop_in() -> None:
    check_golden("ssh/50-hutch.conf", render_config(LAYOUT, PEERS, KEYS).decode())


def test_known_hosts() -> None:
    text = render_known_hosts(PEERS).decode()
    check_golden("ssh/known_hosts", text)
    assert "@" not in text  # no comment of a key


def key_pair(blob: bytes = b"\x07" * 51) -> tuple[bytes, bytes]:
    body = base64.b64encode(ssh.PLAIN_KEY + blob + b"secret")
    private = b"%s\n%s\n%s\n%s\n" % (ssh.BEGIN, body[:40], body[40:], ssh.END)
    return private, b"ssh-ed25519 " + base64.b64encode(blob) + b" comment\n"


def test_a_key_pair_is_believed_only_when_it_is_whole() -> None:
    private, public = key_pair()
    assert ssh.is_pair(private, public)
    for broken in (None, b"", private[:-20], private.replace(b"Bw", b"Bx"), b"\0" * len(private)):
        assert not ssh.is_pair(broken, public)
    for broken in (None, b"", public[:20], b"\0" * 80, key_pair(b"\x08" * 51)[1]):
        assert not ssh.is_pair(private, broken)


def test_a_key_that_its_holder_has_made_huge_is_none(tmp_path: Path) -> None:
    private, public = key_pair()
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(public)
    assert ssh.read_key(tmp_path / "key") == public.decode().strip()
    os.truncate(tmp_path / "key", 1 << 40)
    assert ssh.read_key(tmp_path / "key") == ""


def test_a_key_that_its_holder_has_a_lease_on_is_not_waited_for(tmp_path: Path) -> None:
    """The kernel would have whoever opens it wait for 45 seconds, and the holder would do it again."""
    private, public = key_pair()
    path = tmp_path / "key"
    path.write_bytes(private)
    (tmp_path / "key.pub").write_bytes(public)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        since = time.monotonic()
        assert ssh.read_key(path) == ssh.ensure_key(path, "comment") == public.decode().strip()
        (tmp_path / "key.pub").write_bytes(public[:20])
        assert ssh.read_key(path) == ""
        assert time.monotonic() - since < 5
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)
    assert path.read_bytes() == private


def test_a_damaged_host_key_that_others_trust_is_not_replaced(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    assert not ssh.is_published(layout, "web")
    layout.state.mkdir()
    layout.known_hosts.write_bytes(render_known_hosts(PEERS))
    assert ssh.is_published(layout, "web")
    assert not ssh.is_published(layout, "we")
    path = tmp_path / "key"
    path.write_bytes(key_pair()[0][:-20])
    with pytest.raises(HutchError, match="damaged"):
        ssh.ensure_key(path, "workspace-web", published=ssh.is_published(layout, "web"))
    private, public = key_pair()
    path.write_bytes(private)
    path.with_name("key.pub").write_bytes(public)
    assert ssh.ensure_key(path, "workspace-web", published=True) == public.decode().strip()


def test_the_public_half_of_a_key_is_written_again(tmp_path: Path) -> None:
    private, public = key_pair()
    (tmp_path / "key").write_bytes(private)
    assert ssh.ensure_key(tmp_path / "key", "comment", published=True) == public.decode().strip()
    assert (tmp_path / "key.pub").read_bytes() == public
    for broken in (None, b"", private[:-20], private.replace(ssh.BEGIN, b"BEGIN"), b"\0" * len(private)):
        assert ssh.public_of(broken) == ""


def test_what_follows_the_drop_in_is_for_all_hosts_again() -> None:
    assert render_config(LAYOUT, PEERS, KEYS).endswith(b"\nMatch all\n")


def test_ensure_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(Layout, "ssh_config", property(lambda self: tmp_path / "ssh_config.d" / "50-hutch.conf"))
    ensure_trust(layout, PEERS, KEYS)
    assert layout.known_hosts.read_bytes() == render_known_hosts(PEERS)
    assert layout.ssh_config.read_bytes() == render_config(layout, PEERS, KEYS)
    assert layout.known_hosts.stat().st_mode & 0o7777 == 0o644
    before = layout.known_hosts.stat().st_ino, layout.ssh_config.stat().st_ino
    ensure_trust(layout, PEERS, KEYS)
    assert (layout.known_hosts.stat().st_ino, layout.ssh_config.stat().st_ino) == before
    for _ in range(2):
        ensure_trust(layout, (), KEYS)
        assert not layout.known_hosts.exists()
        assert not layout.ssh_config.exists()


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("Include /etc/ssh/ssh_config.d/*.conf\n", True),
        ("  include /etc/ssh/ssh_config.d/*.conf\n", True),
        ('Include "/etc/ssh/ssh_config.d/*.conf"\n', True),
        ("Include /etc/mine /etc/ssh/ssh_config.d/*.conf\n", True),
        ("Include ssh_config.d/*.conf\n", True),
        ("# Include /etc/ssh/ssh_config.d/*.conf\n", False),
        ("Include /home/x/etc/ssh/ssh_config.d/*.conf\n", False),
        ("Host *\n", False),
        ("", False),
    ],
)
def test_check_include(text: str, reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(text)
    monkeypatch.setattr(ssh, "SYSTEM_CONFIG", config)
    assert (check_include() == "") is reads


def test_no_ssh_configuration_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "SYSTEM_CONFIG", tmp_path / "absent")
    assert "does not include" in check_include()


def test_owner_of(monkeypatch: pytest.MonkeyPatch) -> None:
    people = {1000: pwd.struct_passwd(("alice", "x", 1000, 100, "", "/home/alice", "/bin/sh"))}
    monkeypatch.setattr(pwd, "getpwuid", people.__getitem__)
    assert owner_of(1000) == (100, "alice")
    assert owner_of(1234) == (1234, "1234")
