"""Files in checkouts: which those are, and what they may say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import ConfigError, HutchError, Problem
from hutch.spec import checkouts
from hutch.spec.checkouts import FREE, JUDGED, Checkout, find_checkout
from hutch.spec.loading import config_of
from hutch.spec.model import WORKSPACE_KEYS, Config
from hutch.spec.names import Layout
from hutch.spec.person import Person, caller
from tests.unit.spec.conftest import RUN, STATE, key_line


@pytest.fixture
def person(home: Path) -> Person:
    return caller({"SUDO_UID": "1000"}, 0)


def find(path: Path, person: Person) -> Checkout | None:
    return find_checkout(str(path), os.path.realpath(path), person)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A file in a checkout."""
    file = tmp_path / "shop" / "deep" / "hutch.toml"
    (tmp_path / "shop" / ".git").mkdir(parents=True)
    file.parent.mkdir()
    file.touch()
    return file


def test_a_checkout_is_what_has_git_above_it(shop: Path, person: Person, tmp_path: Path) -> None:
    top = str(tmp_path / "shop")
    assert find(shop, person) == Checkout(top, top)
    assert find(shop.parents[1] / "hutch.toml", person) == Checkout(top, top)
    assert find(tmp_path / "hutch.toml", person) is None
    assert find(tmp_path / "shop-2" / "hutch.toml", person) is None


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_git_is_whatever_has_the_name(shop: Path, person: Person, kind: str) -> None:
    """A worktree and a submodule have a file; the nearest one counts."""
    git = shop.parent / ".git"
    if kind == "file":
        git.touch()
    elif kind == "link":
        git.symlink_to("nowhere")
    else:
        os.mkfifo(git)
    assert find(shop, person) == Checkout(str(shop.parent), str(shop.parent))


def test_where_nobody_can_look_is_a_checkout(shop: Path, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: str, **how: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.stat", closed)
    assert checkouts.has_git(str(shop.parent), 1000)


def test_a_strangers_git_in_everybodys_directory_does_not_count(shop: Path, person: Person) -> None:
    """Nor does a mode alone make a checkout vanish."""
    top, owner = shop.parents[1], shop.stat().st_uid
    top.chmod(0o1777)
    assert checkouts.has_git(str(top), 4000)  # the directory is its owner's
    top.chmod(0o777)
    assert checkouts.has_git(str(top), 4000)
    if owner == 0:
        os.chown(top / ".git", 4000, 4000)
        assert checkouts.has_git(str(top), 4001)
        top.chmod(0o1777)
        assert not checkouts.has_git(str(top), 4001)
        assert checkouts.has_git(str(top), 4000)
        assert find(shop, person) is None


def test_a_link_to_a_checkout_leads_into_it(shop: Path, person: Person, tmp_path: Path) -> None:
    link = tmp_path / "hutch.toml"
    link.symlink_to(shop)
    found = find(link, person)
    assert found is not None
    assert found.top == str(tmp_path / "shop")


def test_a_link_in_a_checkout_does_not_lead_out_of_it(shop: Path, person: Person, tmp_path: Path) -> None:
    (tmp_path / "own.toml").touch()
    (tmp_path / "shop" / "hutch.toml").symlink_to("../own.toml")
    (tmp_path / "shop" / "way").symlink_to("..")
    (tmp_path / "shop" / "inner.toml").symlink_to("deep/hutch.toml")
    for path in ("hutch.toml", "way/own.toml", "way/shop/way/own.toml"):
        with pytest.raises(HutchError, match="leads by a link out of the checkout"):
            find(tmp_path / "shop" / path, person)
    assert find(tmp_path / "shop" / "inner.toml", person) is not None


def test_ones_own_directory_and_the_hosts_may_be_in_git(
    home: Path, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = home / ".config" / "hutch", tmp_path / "etc" / "hutch"
    for directory in (own, system, own / "clone"):
        directory.mkdir(parents=True)
    for directory in (home, own, system.parent, own / "clone"):
        (directory / ".git").mkdir()
    monkeypatch.setattr(checkouts, "SYSTEM_FILE", system / "hutch.toml")
    assert find(own / "shop.toml", person) is None
    assert find(own / "deep" / "shop.toml", person) is None
    assert find(system / "hutch.toml", person) is None
    assert find(own / "clone" / "hutch.toml", person) is not None
    assert find(home / ".config" / "other" / "hutch.toml", person) is not None


def test_a_home_in_git_is_not_a_files_to_give(home: Path, person: Person) -> None:
    (home / ".git").mkdir()
    assert find(home / "src" / "hutch.toml", person) == Checkout(str(home), str(home / "src"))
    assert find(home / "hutch.toml", person) == Checkout(str(home), None)


def test_the_caller_is_who_is_behind_sudo(home: Path) -> None:
    assert caller({"SUDO_UID": "1000"}, 0) == Person(
        1000, 100, "alice", home, home / ".config" / "hutch", home / ".local" / "state" / "hutch"
    )
    assert caller({"SUDO_UID": "1000", "XDG_STATE_HOME": "/else"}, 1001).name == "bob"
    assert caller({"DOAS_USER": "bob", "XDG_STATE_HOME": "/else"}, 0).state == Path("/else/hutch")
    assert caller({"XDG_STATE_HOME": "relative"}, 0).state == Path("/root/.local/state/hutch")
    assert caller({}, 1002) == Person(1002, 1002, "homeless", None, None, None)
    assert caller({}, 4000).name == "4000"


# What such a file may say.

Judge = Callable[..., list[Problem]]


@pytest.fixture
def judge(shop: Path, person: Person) -> Judge:
    """The problems of a text in the file of a checkout."""

    def problems(text: str, *, is_home: bool = False) -> list[Problem]:
        found = find(shop, person)
        assert found is not None
        try:
            load(shop, text, replace(found, grounds=None) if is_home else found)
        except ConfigError as error:
            return list(error.problems)
        return []

    return problems


def load(file: Path, text: str, checkout: Checkout | None) -> Config:
    return config_of(str(file), text, layout=Layout(Path(STATE), Path(RUN)), checkout=checkout)


HEAD = '[workspaces.web]\ntype = "container"\n'
WIDENING = {
    "owner": 'owner = "bob"',
    "authorized_keys": f'authorized_keys = ["{key_line(1)}"]',
    "share_with": 'share_with = ["bob"]',
    "ip": 'ip = "192.168.83.9"',
    "home": 'home = "./home"',
    "autostart": "autostart = true",
    "auto_refresh": 'auto_refresh = "weekly"',
    "nix_store": "nix_store = true",
    "protect_default": "protect_default = false",
    "gpu": "gpu = true",
    "nesting": "nesting = true",
    "vsock": "vsock = true",
    "engine": 'engine = "incus"',
    "egress": 'egress = "all"',
    "egress[1]": 'egress = ["example.org", "10.0.0.0/8:443"]',
    "publish[1]": 'publish = ["127.0.0.1:8080:80", "8081:80"]',
    "publish[0]": 'publish = ["127.0.0.1:80:80"]',
    "mounts[0].source": 'mounts = [{ source = "~/src", target = "/src" }]',
    "image": 'image = "rootfs:/srv/tree"',
}


@pytest.mark.parametrize("key", WIDENING)
@pytest.mark.parametrize("table", ["workspaces.web", "defaults"])
def test_what_widens_is_refused_by_key_and_line(judge: Judge, key: str, table: str) -> None:
    text = f"[{table}]\n{WIDENING[key]}\n" + (HEAD if table == "defaults" else 'type = "container"\n')
    assert [(problem.key, problem.line) for problem in judge(text)] == [(f"{table}.{key}", 2)]


def test_the_same_is_a_persons_own_to_say(shop: Path, home: Path) -> None:
    for line in WIDENING.values():
        load(shop, f"{HEAD}{line}\n", None)


def test_the_host_and_its_servers_are_not_a_checkouts_to_say(judge: Judge) -> None:
    text = f'[network]\nbridge = "hutch0"\n[engines.incus]\nremote = "mine"\n{HEAD}'
    assert [(problem.key, problem.line) for problem in judge(text)] == [("network.bridge", 2), ("engines.incus", 3)]


def test_all_problems_are_told_at_once(judge: Judge) -> None:
    lines = [line for key, line in WIDENING.items() if key not in ("egress", "publish[0]")]
    problems = judge(HEAD + "\n".join([*lines, "nonsense = 1"]))
    assert {problem.line for problem in problems} == set(range(3, 3 + len(lines) + 1))
    assert problems[-1].message == "unknown key"


def test_what_is_about_the_inside_is_free(judge: Judge) -> None:
    text = f"""{HEAD}
hypervisor = "qemu"
packages = ["nodejs"]
setup = "true"
user = "node"
shell = "/bin/sh"
mac = "02:00:00:00:00:01"
cid = 300
vcpus = 2
memory = "4GiB"
disk = "8GiB"
restart_if_changed = false
persist = "all"
env = {{ EDITOR = "vim" }}
learn = true
egress = ["example.org", "198.51.100.0/24", "0.0.0.0/0"]
publish = ["127.0.0.1:8080:80", "127.0.0.2:1024:53/udp"]
mounts = [
    {{ source = "../src", target = "/src", create = true }},
    {{ source = ".", target = "/deep", readonly = true }},
    {{ source = "..", target = "/shop" }},
]
image = "rootfs:tree"
"""
    assert judge(text) == []
    assert judge(f'{HEAD}egress = "none"\nimage = "ubuntu:noble"') == []


@pytest.mark.parametrize("source", ["../../else", "out", "out/deep", "..//../shop-2", "/etc", "~/.ssh"])
def test_it_shares_nothing_outside(judge: Judge, shop: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "else").mkdir()
    (shop.parent / "out").symlink_to(tmp_path / "else")
    problems = judge(f'{HEAD}mounts = [{{ source = "{source}", target = "/x" }}]')
    assert [problem.key for problem in problems] == ["workspaces.web.mounts[0].source"]
    assert f"is not inside {tmp_path / 'shop'}" in problems[0].message


def test_the_tree_of_an_image_is_the_one_that_was_judged(
    judge: Judge, shop: Path, person: Person, tmp_path: Path
) -> None:
    """A guest that the checkout is shared with has a link lead elsewhere while root builds."""
    config = f'{HEAD}image = "rootfs:link"'
    (tmp_path / "else").mkdir()
    (shop.parent / "tree").mkdir()
    link = shop.parent / "link"
    link.symlink_to("tree")
    assert load(shop, config, find(shop, person)).workspaces["web"].image == f"rootfs:{shop.parent}/tree"
    link.unlink()
    link.symlink_to(tmp_path / "else")
    assert [problem.key for problem in judge(config)] == ["workspaces.web.image"]


@pytest.mark.parametrize("source", ["../.git", "../.git/hooks", "../.GIT/hooks", "../x/.vscode", "way", ".envrc"])
def test_it_shares_nothing_that_the_host_runs(judge: Judge, shop: Path, source: str) -> None:
    """A share protects such names in it; it would not protect itself."""
    (shop.parent / "way").symlink_to("../.git")
    problems = judge(f'{HEAD}mounts = [{{ source = "{source}", target = "/x", readonly = true }}]')
    assert [problem.message for problem in problems] == ["holds files that host tools run"]


def test_a_home_that_is_a_checkout_shares_nothing(judge: Judge) -> None:
    problems = judge(f'{HEAD}mounts = [{{ source = "src", target = "/x" }}]', is_home=True)
    assert "a checkout that is your home" in problems[0].message


def test_the_config_tells_of_its_checkout(shop: Path, person: Person, tmp_path: Path) -> None:
    assert load(shop, HEAD, find(shop, person)).checkout == str(tmp_path / "shop")
    assert load(shop, HEAD, None).checkout is None


def test_every_free_key_is_one() -> None:
    assert set(WORKSPACE_KEYS) >= FREE | JUDGED
    assert not FREE & JUDGED


def test_the_page_names_them() -> None:
    """docs/trust.md has a row of all that is free, and one for each key that is judged."""
    page = (Path(__file__).parents[3] / "docs" / "trust.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")]
    assert ", ".join(f"`{key}`" for key in WORKSPACE_KEYS if key in FREE) in rows
    assert {f"`{key}`" for key in JUDGED} <= set(rows)
    (others,) = (line for line in page.splitlines() if line.startswith("| every other key"))
    assert all(f"`{key}`" in others for key in set(WORKSPACE_KEYS) - FREE - JUDGED)
