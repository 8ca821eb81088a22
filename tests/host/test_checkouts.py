"""The hutch.toml of a checkout: nothing happens by it before somebody has accepted it, and for that person alone."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.apply.ownership import load_found
from hutch.errors import HutchError, Untrusted
from hutch.spec.names import Layout
from tests.host.instance import DEFAULTS, HUTCH, Instance
from tests.support import world_files
from tests.support.world_files import Account

BEHIND_ALICE = {"SUDO_UID": "1000", "SUDO_GID": "1000", "SUDO_USER": "alice"}
TEXT = f'[defaults]\n{DEFAULTS}\n[workspaces.web]\ntype = "container"\n'


@pytest.fixture
def checkout(instance: Instance) -> Iterator[Instance]:
    """A hutch whose project is a checkout, with a file that nobody has accepted."""
    forget_all(instance)
    (instance.directory / ".git").mkdir()
    instance.file.write_text(TEXT)
    yield instance
    forget_all(instance)


def forget_all(instance: Instance) -> None:
    """Have nobody's answers in the world, whichever test was the last."""
    for account in instance.world.accounts.values():
        if (account.home / ".local").exists():
            world_files.remove_directory(account.home / ".local")


def answers(instance: Instance, name: str) -> list[Path]:
    return list((instance.world.accounts[name].home / ".local/state/hutch/trust").glob("*"))


def test_nothing_happens_by_it(checkout: Instance) -> None:
    for arguments in (("plan",), ("up",), ("image", "build"), ("prove",), ("up", "--adopt", "--yes")):
        for extra in ({}, BEHIND_ALICE):
            refused = checkout.hutch(*arguments, check=False, env=extra)
            assert refused.returncode == 1, refused
            assert f"{checkout.file} is in a checkout, and {'alice' if extra else 'root'} has not" in refused.stderr
            assert f"hutch trust {checkout.file}" in refused.stderr
    assert checkout.hutch("plan", check=False, as_user="bob").returncode == 1
    assert checkout.hutch("trust", check=False, as_user="alice").returncode == 1
    assert answers(checkout, "alice") == []
    assert sorted(os.listdir(checkout.state)) in (["images"], ["images", "lock"])


def test_one_persons_word_counts_for_that_person(checkout: Instance) -> None:
    shown = checkout.hutch("trust", "--yes", as_user="alice").stdout
    assert "type: unset → container" in shown
    assert "+curl --fail" in shown
    assert checkout.hutch("up", check=False).returncode == 1  # root itself
    assert checkout.hutch("up", check=False, env={**BEHIND_ALICE, "SUDO_UID": "1001"}).returncode == 1
    checkout.hutch("up", env=BEHIND_ALICE)
    assert checkout.ssh("web", "id -un", as_user="alice").stdout == "dev\n"

    checkout.file.write_text(f"{TEXT}vcpus = 2\n")
    refused = checkout.hutch("up", check=False, env=BEHIND_ALICE)
    assert refused.returncode == 1
    assert "has changed since alice accepted it" in refused.stderr
    assert "vcpus: unset → 2" in checkout.hutch("trust", check=False, as_user="alice").stdout
    # What is there goes on without the file.
    for command in ("stop", "start", "restart"):
        checkout.hutch(command, "web", env=BEHIND_ALICE)
    assert checkout.ssh("web", "id -un", as_user="alice").stdout == "dev\n"
    assert checkout.names() == ["web"]
    checkout.hutch("down", env=BEHIND_ALICE)
    checkout.hutch("rm", "--purge", "web", env=BEHIND_ALICE)


def test_the_answer_is_written_as_the_person(checkout: Instance) -> None:
    """Also by root behind sudo, whom a link in that person's home would lead astray."""
    checkout.hutch("trust", "--yes", env=BEHIND_ALICE)
    (answer,) = answers(checkout, "alice")
    for path in (answer, *list(answer.parents)[:4]):
        assert path.stat().st_uid == 1000
    assert answers(checkout, "root") == []
    checkout.hutch("plan", as_user="alice")
    directory = answer.parent
    directory.rename(directory.with_name("moved"))
    target = checkout.directory / "roots-own"
    target.mkdir()
    directory.symlink_to(target)
    refused = checkout.hutch("trust", "--yes", check=False, env=BEHIND_ALICE)
    assert refused.returncode == 1
    assert list(target.iterdir()) == []
    refused = checkout.hutch("plan", check=False, env=BEHIND_ALICE)
    assert refused.returncode == 1
    assert "symbolic link" in refused.stderr


def test_the_terminal_is_asked(checkout: Instance) -> None:
    account = checkout.world.accounts["alice"]

    def say(word: bytes) -> int:
        ours, theirs = pty.openpty()
        try:
            process = subprocess.Popen(
                account.command(*HUTCH, "trust"),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=checkout.directory,
                env=checkout.environment(as_user="alice"),
            )
            os.write(ours, word)
            return process.wait(60)
        finally:
            os.close(ours)
            os.close(theirs)

    assert say(b"\n") == 1
    assert say(b"n\n") == 1
    assert answers(checkout, "alice") == []
    assert say(b"y\n") == 0
    assert len(answers(checkout, "alice")) == 1


FLIP = """
import ctypes, os, sys
own, link = map(os.fsencode, sys.argv[1:])
exchange = ctypes.CDLL(None, use_errno=True).renameat2
while True:
    assert exchange(-100, own, -100, link, 2) == 0, ctypes.get_errno()
"""
LOADS = 400


def test_no_exchange_of_a_file_and_a_link_makes_it_count(checkout: Instance) -> None:
    """What is judged is what is read, however fast somebody else puts one in place of the other."""
    alice = checkout.world.accounts["alice"]
    hers, link = alice.home / "hutch.toml", alice.home / "link.toml"
    text = '[workspaces.hers]\ntype = "container"\n'
    subprocess.run(alice.command("tee", str(hers)), input=text, text=True, stdout=subprocess.DEVNULL, check=True)
    subprocess.run(alice.command("ln", "-s", str(checkout.file), str(link)), check=True)
    seen = flip(checkout, alice, hers, link, hers)
    for path in (hers, link):
        path.unlink()
    assert seen["web"] == 0


def flip(checkout: Instance, account: Account, one: Path, other: Path, file: Path) -> Counter[str]:
    """How often a file was loaded with which workspace, or refused, while an account exchanges two of its own."""
    layout, seen = Layout(checkout.state, checkout.run), Counter[str]()
    with subprocess.Popen(account.command(sys.executable, "-c", FLIP, str(one), str(other)), cwd="/") as process:
        try:
            while sum(seen.values()) < LOADS or len(seen) == 1:
                try:
                    (name,) = load_found(layout, file).workspaces
                except HutchError as error:
                    name = type(error).__name__
                seen[name] += 1
                assert process.poll() is None
        finally:
            process.kill()
    assert seen["hers"] > 0
    return seen


def test_no_exchange_of_two_directories_makes_it_count(checkout: Instance) -> None:
    """Hers, and a clone of root's that lies beside it: the path stays, and has no link."""
    alice = checkout.world.accounts["alice"]
    hers, clone = alice.home / "hers", alice.home / "clone"
    for directory in (hers, clone):
        subprocess.run(alice.command("mkdir", str(directory)), check=True)
    subprocess.run(["chown", "0:0", clone], check=True)
    (clone / ".git").mkdir()
    (clone / "hutch.toml").write_text(TEXT)
    text = '[workspaces.hers]\ntype = "container"\n'
    subprocess.run(
        alice.command("tee", str(hers / "hutch.toml")), input=text, text=True, stdout=subprocess.DEVNULL, check=True
    )
    assert flip(checkout, alice, hers, clone, hers / "hutch.toml")["web"] == 0
    for directory in (hers, clone):
        world_files.remove_directory(directory)


def test_a_directory_that_is_mounted_on_one_of_its_own_is_in_the_checkout(checkout: Instance) -> None:
    """Upwards from there, the same directory comes twice before the top of the checkout does."""
    inner = checkout.directory / "one/inner"
    inner.mkdir(parents=True)
    (inner.parent / "hutch.toml").write_text(TEXT)
    subprocess.run(["mount", "--bind", inner.parent, inner], check=True, timeout=10)
    try:
        with pytest.raises(Untrusted, match=f"{inner}/hutch.toml is in a checkout"):
            load_found(Layout(checkout.state, checkout.run), inner / "hutch.toml")
    finally:
        world_files.remove_directory(inner.parent)


def test_a_directory_that_becomes_a_link_is_not_shared(checkout: Instance) -> None:
    """The content was accepted, and what it leads to is looked at each time."""
    source = checkout.directory / "src"
    source.mkdir()
    os.chown(source, 1000, 1000)
    checkout.file.write_text(f'{TEXT}mounts = [{{ source = "src", target = "/src" }}]\n')
    checkout.hutch("trust", "--yes", env=BEHIND_ALICE)
    source.rename(checkout.directory / "moved")
    source.symlink_to("/etc")
    refused = checkout.hutch("up", check=False, env=BEHIND_ALICE)
    assert refused.returncode == 2
    line = checkout.file.read_text().count("\n")
    assert f"{checkout.file}:{line}: workspaces.web.mounts[0].source" in refused.stderr
    source.unlink()
    (checkout.directory / "moved").rename(source)
    checkout.hutch("up", env=BEHIND_ALICE)
    checkout.ssh("web", "touch /src/made", as_user="alice")
    assert (source / "made").stat().st_uid == 1000
    assert "nothing to do" in checkout.hutch("up", env=BEHIND_ALICE).stderr


def test_a_checkout_shares_itself_with_its_file(checkout: Instance) -> None:
    """A guest may get at the file that declares it: what it writes there counts for nothing."""
    checkout.file.write_text(f'{TEXT}mounts = [{{ source = ".", target = "/shop" }}]\n')
    for path in (checkout.directory, checkout.file):
        os.chown(path, 1000, 1000)
    checkout.hutch("trust", "--yes", env=BEHIND_ALICE)
    checkout.hutch("up", env=BEHIND_ALICE)
    assert "nothing to do" in checkout.hutch("up", env=BEHIND_ALICE).stderr
    checkout.ssh("web", "echo mine >/shop/made; rm -f /shop/hutch.toml", as_user="alice", check=False)
    assert (checkout.directory / "made").read_text() == "mine\n"
    checkout.file.unlink(missing_ok=True)
    checkout.file.write_text(f"{TEXT}vcpus = 1\n")
    refused = checkout.hutch("up", check=False, env=BEHIND_ALICE)
    assert refused.returncode == 1
    assert "has changed since alice accepted it" in refused.stderr


def test_what_widens_is_refused_by_key_and_line(checkout: Instance) -> None:
    (checkout.directory / "out").symlink_to("/srv")
    widening = [
        'mounts = [{ source = "out", target = "/src" }]',
        'egress = ["192.168.0.0/16"]',
        'publish = ["8080:80"]',
        'owner = "bob"',
        "nesting = true",
        "nix_store = true",
        'home = "/home/alice"',
    ]
    checkout.file.write_text("\n".join([TEXT, *widening]))
    first = TEXT.count("\n") + 2
    for arguments in (("trust", "--yes"), ("trust", "--json")):
        refused = checkout.hutch(*arguments, check=False)
        assert refused.returncode == 2
        for number, line in enumerate(widening, first):
            assert f"{checkout.file}:{number}: workspaces.web.{line.split()[0]}" in refused.stderr
    assert json.loads(checkout.hutch("trust", "--list", "--json").stdout) == []
