"""What a member may say in a file, and what they get where they say nothing. golden/plan/ceiling-* have the words."""

from __future__ import annotations

import ipaddress
import pwd
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import ConfigError, UsageError
from hutch.spec.allowance import (
    FREE,
    JUDGED,
    REFUSED,
    SECTIONS,
    Allowance,
    Look,
    ceiling_policy,
    check_allowance,
    clamped,
    is_entry_within,
)
from hutch.spec.ceiling import BUILT_IN, Ceiling, Members, Ports
from hutch.spec.entries import Publish
from hutch.spec.loading import SECTIONS as TABLES
from hutch.spec.loading import config_of
from hutch.spec.member import Member
from hutch.spec.model import WORKSPACE_KEYS, Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.ranges import is_private
from tests.unit.spec.conftest import RUN, STATE

ALICE = Member(1000, 1000, "alice", Path("/home/alice"))
LINKS = {"/home/alice/link": "/etc", "/srv/way": "/home/alice/src"}
OWNERS = {"/home/alice": 1000, "/home/alice/src": 1000, "/home/alice/bobs": 1001, "/srv/own": 1000}
SIZED: dict[str, Any] = {"memory": 1 << 30, "vcpus": 1, "disk": 1 << 30}


def refused(ceiling: Ceiling = BUILT_IN, **keys: Any) -> list[str]:
    """The keys of a workspace, with these, that alice may not have."""
    workspace = WorkspaceSpec(**{"type": "container", **SIZED, **keys})
    look = Look(lambda path: LINKS.get(path, path), OWNERS.get)
    found = check_allowance(workspace, Allowance(ALICE, ceiling), look, lambda *path: path)
    return [".".join(map(str, finding.path)) for finding in found]


def with_ceiling(**members: Any) -> Ceiling:
    return Ceiling(Members(**members))


def test_no_key_is_forgotten() -> None:
    """A key that is new to the model is refused to members until it is in one of the sets."""
    sets = (FREE, JUDGED, frozenset(REFUSED))
    assert frozenset().union(*sets) == frozenset(WORKSPACE_KEYS)
    assert sum(map(len, sets)) == len(WORKSPACE_KEYS)
    assert set(SECTIONS) == set(TABLES)


def test_the_page_names_every_key() -> None:
    text = (Path(__file__).parents[3] / "docs/policy.md").read_text(encoding="utf-8")
    free, judged, refused_ones = (
        text.partition("## Keys of a workspace")[2].partition("What [kits]")[0].split("- **")[1:]
    )
    assert set(re.findall(r"`(\w+)`", free)) == FREE
    assert set(re.findall(r"`(\w+)`", judged)) == JUDGED
    assert set(re.findall(r"`(\w+)`", refused_ones)) == set(REFUSED)


def test_a_key_that_is_in_no_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.spec.allowance.FREE", FREE - {"autostart"})
    assert refused(autostart=True) == ["autostart"]
    assert refused() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("engine", "incus"),
        ("home", "/home/alice/x"),
        ("ip", "192.168.83.9"),
        ("mac", "02:00:00:00:00:07"),
        ("cid", 7),
        ("owner", 1001),
        ("image", "rootfs:/home/alice/src"),
        ("egress", "all"),
        ("memory", 5 << 30),
        ("memory", None),
        ("vcpus", 5),
        ("disk", 21 << 30),
        ("disk", None),
        ("nesting", True),
        ("gpu", True),
        ("nix_store", True),
        ("vsock", True),
    ],
)
def test_the_built_in_ceiling(key: str, value: Any) -> None:
    assert refused(**{key: value}) == [key]


def test_what_a_member_may_have() -> None:
    assert refused(owner=1000, learn=True, autostart=True, persist="all", protect_default=False) == []
    opened = {"egress": "all", "nesting": True, "gpu": True, "nix_store": True, "vsock": True}
    open_ceiling = with_ceiling(**opened, images=("rootfs:/srv/*",))
    assert refused(open_ceiling, image="rootfs:/srv/a", **opened) == []
    assert refused(with_ceiling(types=("container",)), type="vm") == ["type"]
    assert refused(with_ceiling(types=("vm",)), type="vm", memory=None, vcpus=None) == []
    assert refused(with_ceiling(types=("vm",), vcpus=1), type="vm", vcpus=None) == ["vcpus"]


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("/home/alice", False),
        ("/home/alice/src", False),
        ("/home/alice/bobs", True),  # another's, in alice's home
        ("/home/alice/link", True),  # leads out
        ("/home/alice-2", True),
        ("/srv/own", True),  # alice's own, elsewhere
        ("/srv/way", True),  # leads there from elsewhere
        ("/home/alice/unknown", True),  # nobody can tell whose it is
    ],
)
def test_shares_lie_below_a_root_and_are_the_callers_own(source: str, is_refused: bool) -> None:
    found = refused(mounts=(Mount(source, "/x"), Mount("/home/alice/src", "/src", readonly=True)))
    assert found == (["mounts.0.source"] if is_refused else [])


def test_other_roots() -> None:
    assert refused(with_ceiling(mounts=("/srv",)), mounts=(Mount("/srv/own", "/x"),)) == []
    assert refused(with_ceiling(mounts=()), mounts=(Mount("/home/alice", "/x"),)) == ["mounts.0.source"]


@pytest.mark.parametrize(
    ("port", "is_refused"),
    [
        (Publish("127.0.0.1", 1024, 80, "tcp"), False),
        (Publish("127.0.0.1", 1023, 80, "tcp"), True),
        (Publish("127.0.0.2", 8080, 80, "tcp"), True),
        (Publish("", 8080, 80, "udp"), True),
        (Publish("192.0.2.1", 8080, 80, "tcp"), True),
    ],
)
def test_ports_of_the_built_in_ceiling(port: Publish, is_refused: bool) -> None:
    assert refused(publish=(port,)) == (["publish.0"] if is_refused else [])
    assert refused(with_ceiling(publish=(Ports("", 1, 65535),)), publish=(port,)) == []


@pytest.mark.parametrize(
    ("most", "egress", "is_refused"),
    [
        ("all", "all", False),
        ("internet", "all", True),
        ("internet", ("10.0.0.0/8",), True),
        ("internet", ("example.org", "198.51.100.0/24"), False),
        ("none", "internet", True),
        ("none", ("example.org",), True),
        ("none", (), False),
        ("none", "none", False),
        (("*.example.org",), "internet", True),
        (("*.example.org",), ("a.example.org", "*.b.example.org:443"), False),
        (("*.example.org",), ("example.org",), True),
        (("a.example.org:443",), ("a.example.org",), True),
        (("a.example.org:443",), ("a.example.org:443",), False),
        (("a.example.org:443",), ("a.example.org:80",), True),
        (("198.51.100.0/24",), ("198.51.100.8/32:22",), False),
        (("198.51.100.0/24:22",), ("198.51.100.8/32",), True),
        (("198.51.100.0/25",), ("198.51.100.0/24",), True),
        (("0.0.0.0/0",), ("10.1.0.0/16",), True),  # a wide network in a list leaves private ones closed
        (("10.0.0.0/8",), ("10.1.0.0/16",), False),
    ],
)
def test_egress_at_most(most: Any, egress: Any, is_refused: bool) -> None:
    found = refused(with_ceiling(egress=most), egress=egress)
    assert [path.partition(".")[0] for path in found] == (["egress"] if is_refused else [])


NAMES = ("example.org", "a.example.org", "b.a.example.org", "other.example")
ADDRESSES = ("198.51.100.8", "198.51.100.200", "203.0.113.1", "10.1.2.3", "192.168.1.1")
NETWORKS = "198.51.100.0/24 198.51.100.0/25 198.51.100.8/32 0.0.0.0/0 192.0.0.0/2 10.0.0.0/8 10.1.2.0/24".split()
WHERE = st.sampled_from([*NAMES, *(f"*.{name}" for name in NAMES), *NETWORKS])
ENTRIES = st.builds("{}{}".format, WHERE, st.sampled_from(("", ":443", ":22")))
EGRESS = st.one_of(st.sampled_from(("internet", "none", "all")), st.lists(ENTRIES, max_size=3).map(tuple))


def opens(egress: str | tuple[str, ...], target: str, port: int) -> bool:
    """Whether a workspace reaches a name, or an address that it knows, at a port, as docs/egress.md says it."""
    policy = policy_of(WorkspaceSpec(type="container", egress=egress))
    if policy.kind in ("internet", "all"):
        return policy.kind == "all" or target in NAMES or not is_private(f"{target}/32")
    if target in NAMES:
        return any(domain.covers(target) and domain.port in (None, port) for domain in policy.domains)
    address = ipaddress.IPv4Address(target)
    networks = policy.private_networks if is_private(f"{target}/32") else policy.public_networks
    return any(address in ipaddress.IPv4Network(n.network) and n.port in (None, port) for n in networks)


@given(EGRESS, EGRESS)
def test_what_is_allowed_opens_nothing_that_the_ceiling_does_not(most: Any, egress: Any) -> None:
    if refused(with_ceiling(egress=most), egress=egress):
        return
    for target in (*NAMES, *ADDRESSES):
        for port in (22, 443):
            assert opens(most, target, port) or not opens(egress, target, port), (target, port)


@given(st.sampled_from(("container", "vm")), st.integers(2**26, 2**34), st.integers(1, 8), EGRESS)
def test_a_file_that_says_nothing_is_never_refused(type: Any, size: int, cpus: int, egress: Any) -> None:
    ceiling = with_ceiling(memory=size, disk=size, vcpus=cpus, egress=egress)
    workspace, _ = clamped(WorkspaceSpec(type=type), lambda key: False, ceiling)
    keys = ("image", "memory", "vcpus", "disk", "egress")
    assert refused(ceiling, type=type, **{key: getattr(workspace, key) for key in keys}) == []


def test_learning_lets_all_pass_that_a_list_would_not() -> None:
    assert refused(with_ceiling(egress=("a.example",)), egress=("a.example",), learn=True) == ["learn"]
    assert refused(egress=("a.example",), learn=True) == []


def test_what_allow_opens_is_bounded_too() -> None:
    assert is_entry_within("b.example:443", ceiling_policy(BUILT_IN))
    most = ceiling_policy(with_ceiling(egress=("*.example.org",)))
    assert is_entry_within("a.example.org", most)
    assert not is_entry_within("b.example", most)


# Files.

ABOVE = {
    "type": 'type = "vm"',
    "engine": 'engine = "incus"',
    "image": 'image = "rootfs:/etc"',
    "owner": 'owner = "bob"',
    "ip": 'ip = "192.168.83.9"',
    "mac": 'mac = "02:00:00:00:00:07"',
    "cid": "cid = 7",
    "auto_refresh": 'auto_refresh = "weekly"',
    "vcpus": "vcpus = 5",
    "memory": 'memory = "4097MiB"',
    "disk": 'disk = "1024TiB"',
    "home": 'home = "~/own"',
    "mounts[0].source": 'mounts = [{ source = "~/../bob", target = "/x", mode = "private" }]',
    "egress[1]": 'egress = ["a.example", "192.168.0.0/16"]',
    "publish[0]": 'publish = ["0.0.0.0:8080:80"]',
    "nix_store": "nix_store = true",
    "gpu": "gpu = true",
    "nesting": "nesting = true",
    "vsock": "vsock = true",
}
"""A line for each key that is not free, above a ceiling that allows containers alone."""


@pytest.mark.parametrize("key", ABOVE)
@pytest.mark.parametrize("table", ["workspaces.web", "defaults"])
def test_every_key_is_refused_where_it_stands(home: Path, key: str, table: str) -> None:
    head = "" if key == "type" else 'type = "container"\n'
    web = "" if table == "workspaces.web" else f"[workspaces.web]\n{head}"
    text = f"[{table}]\n{ABOVE[key]}\n{web or head}"
    allowance = Allowance(replace(ALICE, home=home), with_ceiling(types=("container",)))
    with pytest.raises(ConfigError) as caught:
        config_of("/srv/hutch.toml", text, layout=Layout(Path(STATE), Path(RUN)), allowance=allowance)
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [(f"{table}.{key}", 2)]


def test_a_home_behind_a_link_is_where_that_leads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members share nothing by a link; on some hosts /home is one."""
    link = home.with_name("link")
    link.symlink_to(home)
    (home / "src").mkdir()
    account = pwd.struct_passwd(("alice", "x", 1000, 100, "", str(link), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: account)
    monkeypatch.setattr("hutch.spec.loading.owner_of_path", lambda path: 1000)
    text = '[workspaces.web]\ntype = "container"\nmounts = [{ source = "~/src", target = "/src" }]\n'
    allowance = Allowance(replace(ALICE, home=link), BUILT_IN)
    config = config_of("/srv/hutch.toml", text, layout=Layout(Path(STATE), Path(RUN)), allowance=allowance)
    assert config.workspaces["web"].mounts[0].source == str(home / "src")


def test_every_key_that_is_not_free_has_a_line() -> None:
    assert {re.split(r"\W", key)[0] for key in ABOVE} | {"learn"} == JUDGED | set(REFUSED)


# Clamps.


@pytest.mark.parametrize(
    ("type", "members", "found"),
    [
        ("container", {}, {"memory": 4 << 30, "vcpus": 4, "disk": 20 << 30}),
        ("vm", {}, {"disk": 20 << 30}),
        ("vm", {"memory": 1 << 29, "vcpus": 1}, {"memory": 1 << 29, "vcpus": 1, "disk": 20 << 30}),
    ],
)
def test_sizes_that_are_not_said_are_clamped(type: Any, members: Any, found: dict[str, int]) -> None:
    workspace, keys = clamped(WorkspaceSpec(type=type), lambda key: False, with_ceiling(**members))
    assert {key: getattr(workspace, key) for key in keys} == found


def test_what_is_said_is_not_clamped() -> None:
    ceiling = with_ceiling(images=("oci:*", "ubuntu:noble"), egress=("a.example",))
    before = WorkspaceSpec(type="container", egress="internet")
    assert clamped(before, lambda key: True, ceiling) == (before, {})
    after, keys = clamped(before, lambda key: False, ceiling)
    assert (after.image, after.egress) == ("ubuntu:noble", ("a.example",))
    assert keys["egress"] == "members.egress is a.example, the default of /etc/hutch/policy.toml"
    none, _ = clamped(before, lambda key: False, with_ceiling(egress="none"))
    assert none.egress == "none"


def test_an_image_that_none_can_stand_for_is_refused() -> None:
    workspace, keys = clamped(WorkspaceSpec(type="container"), lambda key: False, with_ceiling(images=("oci:*",)))
    assert "image" not in keys
    assert refused(with_ceiling(images=("oci:*",)), image=workspace.image) == ["image"]


def test_a_shared_file_counts_for_what_is_the_members(home: Path) -> None:
    """What it says of others is left out; in a file of one's own, it is a mistake."""
    text = (
        '[engines.incus]\nremote = "mine"\n'
        '[workspaces.bobs]\ntype = "container"\nowner = "bob"\nengine = "incus"\n'
        '[workspaces.own]\ntype = "container"\nowner = "alice"\n'
        '[workspaces.unsaid]\ntype = "container"\n'
    )
    layout, shared = Layout(Path(STATE), Path(RUN)), Allowance(ALICE, BUILT_IN, is_own=False)
    config = config_of("/srv/hutch.toml", text, layout=layout, allowance=shared)
    assert set(config.workspaces) == {"own", "unsaid"}
    assert config.others == frozenset({"bobs"})
    with pytest.raises(UsageError, match="declares bobs for somebody else"):
        config.select(["bobs"])
    with pytest.raises(ConfigError) as caught:
        config_of("/srv/hutch.toml", text, layout=layout, allowance=replace(shared, is_own=True))
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["engines.incus", "workspaces.bobs.owner", "workspaces.bobs.engine"]
