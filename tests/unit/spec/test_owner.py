"""Owners and keys: whose home it is, and that reading keys as root shows nothing else."""

from __future__ import annotations

import glob
import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from hutch.errors import HutchError
from hutch.spec import owner
from hutch.spec.field_types import Invalid
from hutch.spec.model import Config, Incus, Network, WorkspaceSpec
from hutch.spec.names import UID_FIRST
from hutch.spec.owner import (
    Owner,
    Search,
    default_owner,
    expand,
    expand_keys,
    find_owner,
    owner_keys,
    place_of,
    unique,
)
from hutch.spec.record import Place
from tests.unit.spec.conftest import key_line


@pytest.mark.parametrize(
    ("environ", "uid", "expected"),
    [
        ({}, 1234, 1234),
        ({}, 65534, 1000),
        ({"SUDO_UID": "1001"}, 1234, 1234),
        ({"SUDO_UID": "1001", "DOAS_USER": "alice"}, 0, 1001),
        ({"SUDO_UID": "0", "DOAS_USER": "bob"}, 0, 1001),
        ({"DOAS_USER": "carol", "PKEXEC_UID": "1002"}, 0, 1002),
        ({"SUDO_UID": "65534"}, 0, 1000),
        ({"SUDO_UID": "x", "DOAS_USER": "root", "PKEXEC_UID": "-1"}, 0, 1000),
        ({"SUDO_UID": "9" * 30}, 0, 1000),
        ({"SUDO_UID": "4294967295"}, 0, 1000),  # no uid at all
        ({"SUDO_UID": "3000000000"}, 0, 3000000000),  # one that is refused, not taken for somebody else
        ({"SUDO_UID": str(UID_FIRST)}, 0, UID_FIRST),
        ({}, 0, 1000),
    ],
)
def test_who_is_behind_it(home: Path, environ: dict[str, str], uid: int, expected: int) -> None:
    assert default_owner(environ, uid) == expected


def config(incus: Incus | None = None, **engines: Literal["local", "incus"]) -> Config:
    """A file that declares workspaces with these engines."""
    workspaces = {name: WorkspaceSpec(type="container", engine=engine) for name, engine in engines.items()}
    return Config("/srv/hutch.toml", Network(), workspaces, incus)


@pytest.mark.parametrize(
    ("environ", "euid", "account", "conf"),
    [
        ({}, 1000, 1000, "HOME/.config/incus"),
        ({"SUDO_UID": "1001"}, 1000, 1000, "HOME/.config/incus"),  # only root's environment is believed
        ({"SUDO_UID": "1000"}, 0, 1000, "HOME/.config/incus"),
        ({"DOAS_USER": "bob"}, 0, 1001, "/home/bob/.config/incus"),
        ({}, 0, 0, "/root/.config/incus"),
        ({"INCUS_CONF": "/srv/incus"}, 1001, 1001, "/srv/incus"),
        ({"INCUS_CONF": "/srv/incus"}, 1002, 1002, "/srv/incus"),  # who has no home
        ({"INCUS_CONF": "incus"}, 1001, 1001, "/home/bob/.config/incus"),
    ],
)
def test_whose_client_asks_a_server(home: Path, environ: dict[str, str], euid: int, account: int, conf: str) -> None:
    found = place_of(config(web="incus", lab="local"), environ, euid)
    conf = conf.replace("HOME", str(home))
    assert found == Place("local", "hutch", "auto", "10.83.0.0/16", account, conf)


def test_places(home: Path) -> None:
    incus = Incus(remote="cluster", project="work", target="@fast", subnet="10.9.0.0/24")
    assert place_of(config(incus, lab="local"), {}, 0) is None
    found = place_of(config(incus, web="incus"), {"SUDO_UID": "1001"}, 0)
    assert found == Place("cluster", "work", "@fast", "10.9.0.0/24", 1001, "/home/bob/.config/incus")
    assert found.identity == replace(found, target="one", account=0, conf="/root").identity
    others = replace(found, remote="other"), replace(found, project="other"), replace(found, subnet="10.8.0.0/24")
    assert found.identity not in {other.identity for other in others}


@pytest.mark.parametrize("account", [1002, 4321])
def test_a_client_without_a_home(home: Path, account: int) -> None:
    with pytest.raises(HutchError, match=f"uid {account} has no home") as caught:
        place_of(config(web="incus"), {}, account)
    assert "INCUS_CONF" in caught.value.resolution


def test_owners(home: Path) -> None:
    alice = Owner(uid=1000, gid=100, home=home, name="alice")
    assert find_owner("alice") == find_owner(1000) == alice
    assert find_owner(4321) == Owner(uid=4321, gid=4321, home=None, name="4321")
    assert find_owner("homeless").home is None
    for wrong in ("carol", "root", "nobody", 0, 65534):
        with pytest.raises(Invalid):
            find_owner(wrong)


@pytest.mark.parametrize(
    ("uid", "gid", "words"),
    [
        (UID_FIRST, 100, f"has uid {UID_FIRST}, which hutch keeps for workspaces"),
        (2**31, 100, "has uid 2147483648, which is too large"),
        (1003, UID_FIRST + 5, f"has group {UID_FIRST + 5}, which hutch keeps for workspaces"),
        (1003, 2**31, "has group 2147483648, which is too large"),
    ],
)
def test_ids_that_are_hutchs_own(home: Path, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, words: str) -> None:
    dave = pwd.struct_passwd(("dave", "x", uid, gid, "", "/home/dave", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {"dave": dave}.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", {uid: dave}.__getitem__)
    for said in ("dave", uid):
        with pytest.raises(Invalid, match=words) as caught:
            find_owner(said)
        assert caught.value.hint == f"an account whose uid and group are below {UID_FIRST}"


def test_a_uid_without_an_account_may_be_hutchs_own_too(home: Path) -> None:
    with pytest.raises(Invalid, match="which hutch keeps"):
        find_owner(UID_FIRST + 7)
    assert find_owner(UID_FIRST - 1).uid == UID_FIRST - 1


def test_paths(home: Path, tmp_path: Path) -> None:
    alice = find_owner("alice")
    assert expand("~", alice, tmp_path) == str(home)
    assert expand("~/a/../b", alice, tmp_path) == str(home / "b")
    assert expand("../c", alice, tmp_path / "x") == str(tmp_path / "c")
    assert expand("/d", alice, tmp_path) == "/d"
    with pytest.raises(Invalid, match="needs a home"):
        expand("~", find_owner("homeless"), tmp_path)


def test_keys_by_default(home: Path) -> None:
    ssh = home / ".ssh"
    assert owner_keys(find_owner("alice")) == ()
    (ssh / "b.pub").write_text(f"# mine\n\n{key_line(2, 'two')}\n{key_line(1, 'one again')}\n")
    (ssh / "a.pub").write_bytes(key_line(1, "one").encode() + b"\r\n")
    (ssh / "notes.pub").write_text("nothing here\n")
    (ssh / "large.pub").write_text(key_line(4) + "\n" * 70_000)
    (ssh / "binary.pub").write_bytes(b"\xff\xfe")
    (ssh / "directory.pub").mkdir()
    (ssh / "link.pub").symlink_to(home / "elsewhere")
    (home / "elsewhere").write_text(key_line(5))
    os.mkfifo(ssh / "fifo.pub")
    assert owner_keys(find_owner("alice")) == (key_line(1, "one"), key_line(2, "two"))
    assert owner_keys(find_owner("homeless")) == ()


def test_keys_that_were_said(home: Path, tmp_path: Path) -> None:
    alice, search = find_owner("alice"), Search()
    (home / ".ssh" / "id.pub").write_text(key_line(1, "one"))
    (tmp_path / "team").mkdir()
    for seed in (3, 2):
        (tmp_path / "team" / f"{seed}.pub").write_text(key_line(seed))
    said = [key_line(9), "~/.ssh/id.pub", "team/*.pub", key_line(1)]
    lines = unique(line for entry in said for line in expand_keys(entry, alice, tmp_path, search))
    assert lines == (key_line(9), key_line(1, "one"), key_line(2), key_line(3))
    (tmp_path / "[odd].pub").write_text(key_line(6))
    assert expand_keys("[odd].pub", alice, tmp_path, search) == (key_line(6),)


def test_a_pattern_means_what_glob_finds(tmp_path: Path) -> None:
    for path in ("a/one.pub", "a/.two.pub", "b/three.pub", "b/.ssh/four.pub", "[odd]/five.pub", "file"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a" / "gone.pub").symlink_to("nowhere")
    for pattern in "*/*.pub ?/.*.pub b/.ssh/* */one.pub * [[]odd]/*.pub file/* x/* */x **/*".split():
        whole = str(tmp_path / pattern)
        assert Search().matching(whole) == sorted(glob.glob(whole))


def test_a_pattern_that_leads_through_all_of_the_host_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "MOST_LOOKED_AT", 6)
    search, alice = Search(), find_owner("alice")
    for name in "abcd":
        (tmp_path / "many" / name).mkdir(parents=True)
    with pytest.raises(Invalid, match="matches no file"):
        expand_keys("many/*.pub", alice, tmp_path, search)
    with pytest.raises(Invalid, match="takes a look at more than 6 files and directories"):
        expand_keys("many/*/*.pub", alice, tmp_path, search)  # one bound for all entries


def test_no_secret_is_shown(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text(f"{key_line(1)}\nroot:$6$secret:19000::::::\n")
    (tmp_path / "id.pub").symlink_to(secret)
    with pytest.raises(Invalid, match="line 2 is not a public key") as caught:
        expand_keys("id.pub", find_owner("alice"), tmp_path, Search())
    assert "$6$" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "fifo", "directory", "large", "empty", "binary"])
def test_files_without_keys(home: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "id.pub"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes({"large": b"#" * 70_000, "empty": b"", "binary": b"\xff"}[kind])
    with pytest.raises(Invalid) as caught:
        expand_keys("id.pub", find_owner("alice"), tmp_path, Search())
    assert caught.value.hint
