"""A host with known people, so that no test depends on the accounts of the machine."""

from __future__ import annotations

import base64
import grp
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.errors import ConfigError, Problem
from hutch.spec import loading
from hutch.spec.model import Config
from hutch.spec.names import Layout

STATE = "/var/lib/hutch"
RUN = "/run/hutch"


def key_line(seed: int, comment: str = "") -> str:
    """An Ed25519 public key that nobody has the private half of."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([seed]) * 32
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}".rstrip()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of alice, uid 1000, who is behind sudo; bob is uid 1001. Both are in the group devs."""
    directory = tmp_path / "alice"
    (directory / ".ssh").mkdir(parents=True)
    people = [
        pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/sh")),
        pwd.struct_passwd(("alice", "x", 1000, 100, "", str(directory), "/bin/sh")),
        pwd.struct_passwd(("bob", "x", 1001, 1001, "", "/home/bob", "/bin/sh")),
        pwd.struct_passwd(("homeless", "x", 1002, 1002, "", "", "/bin/sh")),
        pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/nonexistent", "/bin/sh")),
    ]
    by_name = {entry.pw_name: entry for entry in people}
    by_uid = {entry.pw_uid: entry for entry in people}
    monkeypatch.setattr(pwd, "getpwnam", by_name.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", by_uid.__getitem__)
    groups = [("root", 0, []), ("devs", 1200, ["alice", "bob"]), ("nogroup", 65534, []), ("hutchs", 1879048192, [])]
    by_group = {name: grp.struct_group((name, "x", gid, members)) for name, gid, members in groups}
    monkeypatch.setattr(grp, "getgrnam", by_group.__getitem__)
    monkeypatch.setattr("os.getuid", lambda: 0)
    for variable in ("DOAS_USER", "PKEXEC_UID", "HUTCH_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SUDO_UID", "1000")
    return directory


@pytest.fixture
def load(tmp_path: Path, home: Path) -> Callable[..., Config]:
    """Loads a file with this text."""
    directory = tmp_path / "project"
    directory.mkdir()

    def load_text(text: str | bytes, *, check: loading.Check = loading.no_check, mode: int = 0o644) -> Config:
        file = directory / "hutch.toml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)
        return loading.load(str(file), layout=Layout(Path(STATE), Path(RUN)), check=check)

    return load_text


@pytest.fixture
def problems(load: Callable[..., Config]) -> Callable[..., tuple[Problem, ...]]:
    """The problems of a file with this text, of which there must be some."""

    def problems_of(text: str | bytes, **options: object) -> tuple[Problem, ...]:
        with pytest.raises(ConfigError) as caught:
            load(text, **options)
        return caught.value.problems

    return problems_of
