"""What a declaration leaves open is filled in once, and kept."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import HutchError
from hutch.plan.resolve import allocate, allocate_uids, collisions, resolve, still_used
from hutch.spec import names
from hutch.spec.model import Publish, WorkspaceSpec
from hutch.spec.record import Place
from tests.unit.facts import LAYOUT, NETWORK, SECOND, workspace

OPEN = WorkspaceSpec(type="container")
SUBNET = {"local": "192.168.83.0/24", "incus": "10.83.0.0/16"}
TINY = {"local": "192.168.83.0/29", "incus": "10.83.0.0/29"}  # .1 is the gateway, .6 is kept for builds: four are left


def at(ip: str | None) -> WorkspaceSpec:
    return replace(OPEN, ip=ip)


def test_everything_is_filled_in() -> None:
    assert resolve({"web": OPEN}, {}, NETWORK, LAYOUT, 1000)["web"] == replace(
        OPEN,
        packages=("curl", "dnsutils", "git", "htop", "rsync", "tmux", "vim", "wget"),
        ip="192.168.83.2",
        mac="02:4b:5e:57:f6:eb",
        cid=4939451,
        owner=1000,
        home="/var/lib/hutch/workspaces/web/home",
    )


def test_what_is_declared_stays() -> None:
    said = replace(
        OPEN, packages=("git",), ip="192.168.83.9", mac="02:00:00:00:00:01", cid=9, owner=7, home="/srv/home"
    )
    assert resolve({"web": said}, {"web": workspace()}, NETWORK, LAYOUT, 1000) == {"web": said}


def test_the_order_of_packages_does_not_matter() -> None:
    """Nor that one is named twice: it is the same image."""
    (one, two) = (replace(OPEN, packages=packages) for packages in (("vim", "git"), ("git", "vim", "git")))
    found = [resolve({"web": said}, {}, NETWORK, LAYOUT, 1000)["web"].packages for said in (one, two)]
    assert found == [("git", "vim")] * 2


def test_the_owner_is_kept_whoever_calls() -> None:
    kept = {"web": workspace(owner=1234)}
    assert resolve({"web": OPEN, "new": OPEN}, kept, NETWORK, LAYOUT, 1000)["web"].owner == 1234


def test_an_unsaid_home_is_the_default_again() -> None:
    kept = {"web": workspace(home="/srv/home")}
    assert resolve({"web": OPEN}, kept, NETWORK, LAYOUT, 1000)["web"].home == str(LAYOUT.home("web"))


ADDRESSES: dict[str, tuple[dict[str, str | None], dict[str, str], dict[str, str]]] = {
    "in order": ({"a": None, "b": None}, {}, {"a": "192.168.83.2", "b": "192.168.83.3"}),
    "around a given one": ({"a": None, "b": "192.168.83.2"}, {}, {"a": "192.168.83.3", "b": "192.168.83.2"}),
    "kept": ({"a": None}, {"a": "192.168.83.7"}, {"a": "192.168.83.7"}),
    "kept beside a new one": (
        {"b": None, "a": None},
        {"a": "192.168.83.2"},
        {"b": "192.168.83.3", "a": "192.168.83.2"},
    ),
    "of a workspace elsewhere": ({"a": None}, {"other": "192.168.83.2"}, {"a": "192.168.83.3"}),
    "given away by the file": (
        {"a": None, "b": "192.168.83.2"},
        {"a": "192.168.83.2"},
        {"a": "192.168.83.3", "b": "192.168.83.2"},
    ),
    "swapped by the file": (
        {"a": "192.168.83.3", "b": "192.168.83.2"},
        {"a": "192.168.83.2", "b": "192.168.83.3"},
        {"a": "192.168.83.3", "b": "192.168.83.2"},
    ),
    "one that is being given up": (
        {"a": "192.168.83.9", "new": None},
        {"a": "192.168.83.2"},
        {"a": "192.168.83.9", "new": "192.168.83.3"},
    ),
    "of another subnet": ({"a": None}, {"a": "10.0.0.7"}, {"a": "192.168.83.2"}),
    "kept, but now the gateway's": ({"a": None}, {"a": "192.168.83.1"}, {"a": "192.168.83.2"}),
    "kept, but now the builder's": ({"a": None}, {"a": "192.168.83.254"}, {"a": "192.168.83.2"}),
    "kept, but now the network": ({"a": None}, {"a": "192.168.83.0"}, {"a": "192.168.83.2"}),
    "kept, but now the broadcast": ({"a": None}, {"a": "192.168.83.255"}, {"a": "192.168.83.2"}),
}


@pytest.mark.parametrize("case", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_addresses(case: tuple[dict[str, str | None], dict[str, str], dict[str, str]]) -> None:
    declared, kept, expected = case
    found = allocate({n: at(ip) for n, ip in declared.items()}, {n: at(ip) for n, ip in kept.items()}, SUBNET)
    assert found == expected


def test_an_address_of_a_workspace_elsewhere_is_refused() -> None:
    with pytest.raises(HutchError, match=r"a: the address 192\.168\.83\.2 belongs to workspace other") as caught:
        allocate({"a": at("192.168.83.2")}, {"other": at("192.168.83.2")}, SUBNET)
    assert "hutch rm --purge other" in caught.value.resolution


def test_a_full_subnet() -> None:
    four = dict.fromkeys("abcd", OPEN)
    assert sorted(allocate(four, {}, TINY).values()) == [f"192.168.83.{last}" for last in (2, 3, 4, 5)]
    with pytest.raises(HutchError, match=r"no address is left in 192\.168\.83\.0/29 for e"):
        allocate({**four, "e": OPEN}, {}, TINY)


some_names = st.sampled_from("abcdefgh")
addresses = st.sampled_from([str(address) for address in ipaddress.IPv4Network("192.168.83.0/28").hosts()])
usable = addresses.filter(lambda ip: ip not in ("192.168.83.1", "192.168.83.14"))


def distinct(table: dict[str, str | None]) -> bool:
    given_ones = [ip for ip in table.values() if ip is not None]
    return len(given_ones) == len(set(given_ones))


@given(
    declared=st.dictionaries(some_names, st.none() | usable).filter(distinct),
    kept=st.dictionaries(some_names, addresses).filter(lambda table: distinct({**table})),
)
def test_no_address_is_given_twice(declared: dict[str, str | None], kept: dict[str, str]) -> None:
    subnet = {"local": "192.168.83.0/28"}
    elsewhere = {ip for name, ip in kept.items() if name not in declared}
    try:
        found = allocate({n: at(ip) for n, ip in declared.items()}, {n: at(ip) for n, ip in kept.items()}, subnet)
    except HutchError as error:
        assert "belongs to" in error.brief or "no address is left" in error.brief  # noqa: PT017 - both ways are fine
        return
    assert found.keys() == declared.keys()
    assert len(set(found.values())) == len(found)
    assert elsewhere.isdisjoint(found.values())
    assert not {"192.168.83.1", "192.168.83.14"} & set(found.values())
    for name, ip in declared.items():
        before = kept.get(name)
        if ip is not None:
            assert found[name] == ip
        elif before not in (None, "192.168.83.1", "192.168.83.14") and before not in declared.values():
            assert found[name] == before
    assert allocate({n: at(ip) for n, ip in declared.items()}, {n: at(ip) for n, ip in found.items()}, subnet) == found


PLACE = Place("local", "hutch", "auto", "10.83.0.0/29", 1000, "/home/alice/.config/incus")
FAR = replace(OPEN, engine="incus")


def test_a_workspace_of_another_host_has_no_home_here() -> None:
    found = resolve({"web": OPEN, "far": FAR}, {}, NETWORK, LAYOUT, 1000, place=PLACE)
    assert (found["far"].home, found["far"].ip, found["far"].owner) == (None, "10.83.0.2", 1000)
    assert (found["web"].home, found["web"].ip) == (str(LAYOUT.home("web")), "192.168.83.2")
    assert resolve({"web": OPEN, "far": FAR}, found, NETWORK, LAYOUT, 1000, place=PLACE) == found


def test_addresses_of_another_host() -> None:
    """The first and the last are the server's; the rest is given out, but for those that others were given."""
    far = dict.fromkeys("abcd", FAR)
    kept = {"gone": replace(FAR, ip="10.83.0.4"), "here": replace(OPEN, ip="192.168.83.2")}
    found = allocate({"web": OPEN, **dict.fromkeys("abc", FAR)}, kept, {"local": NETWORK.subnet, "incus": PLACE.subnet})
    assert found == {
        "web": "192.168.83.3",
        **dict(zip("abc", [f"10.83.0.{last}" for last in (2, 3, 5)], strict=True)),
    }
    with pytest.raises(HutchError, match=r"no address is left in 10\.83\.0\.0/29 for d") as caught:
        allocate(far, kept, {"local": NETWORK.subnet, "incus": PLACE.subnet})
    assert caught.value.resolution == "choose a wider subnet in [engines.incus]"
    with pytest.raises(HutchError, match=r"belongs to workspace gone"):
        allocate({"a": replace(FAR, ip="10.83.0.4")}, kept, {"local": NETWORK.subnet, "incus": PLACE.subnet})


def test_an_address_of_another_engine_is_not_kept() -> None:
    kept = {"a": replace(OPEN, ip="192.168.83.7")}
    assert allocate({"a": FAR}, kept, {"local": NETWORK.subnet, "incus": PLACE.subnet}) == {"a": "10.83.0.2"}


def test_what_two_engines_share_is_no_collision() -> None:
    """But for addresses: this host reaches both by them."""
    port = (Publish("", 80, 80, "tcp"),)
    web = workspace("web", publish=port)
    far = replace(web, engine="incus", home=None, ip="10.83.0.2")
    assert collisions({"web": web, "far": far}) == []
    other = replace(far, ip="10.83.0.3", mac=names.mac("other"))
    assert collisions({"far": far, "other": other}) == []  # context ids and ports are a matter of members
    assert collisions({"far": far, "other": replace(far, ip="10.83.0.3")}) == [
        f"far and other have the same mac {names.mac('web')}"
    ]
    assert collisions({"web": web, "far": replace(far, ip=web.ip)}) == [f"web and far have the same ip {web.ip}"]


def test_collisions() -> None:
    assert collisions({"a": workspace("a"), "b": workspace("b", ip="192.168.83.3")}) == []
    twins = {"a": workspace("a"), "b": workspace("a", home="/srv/b")}
    assert collisions(twins) == [
        "a and b have the same ip 192.168.83.2",
        f"a and b have the same mac {names.mac('a')}",
        f"a and b have the same cid {names.cid('a')}",
    ]


def pair(first: dict[str, Any], second: dict[str, Any]) -> dict[str, WorkspaceSpec]:
    homes = {"a": str(LAYOUT.home("a")), "b": str(LAYOUT.home("b"))}
    return {
        "a": workspace("a", **{"home": homes["a"], **first}),
        "b": workspace("b", **{"ip": "192.168.83.3", "home": homes["b"], **second}),
    }


@pytest.mark.parametrize(
    ("first", "second", "port"),
    [
        ((("", 80, 80, "tcp"),), (("", 80, 81, "tcp"),), "80/tcp"),
        ((("", 53, 53, "udp"),), (("127.0.0.1", 53, 53, "udp"),), "53/udp"),
        ((("127.0.0.1", 80, 80, "tcp"),), (("", 80, 80, "tcp"),), "80/tcp"),
        ((("10.0.0.1", 80, 80, "tcp"),), (("10.0.0.2", 80, 80, "tcp"),), None),
        ((("", 80, 80, "tcp"),), (("", 80, 80, "udp"), ("", 81, 80, "tcp")), None),
        ((("", 80, 80, "tcp"), ("127.0.0.1", 80, 81, "tcp")), (), None),  # within one file that is refused earlier
    ],
)
def test_host_ports_of_two_files(first: tuple[Any, ...], second: tuple[Any, ...], port: str | None) -> None:
    found = collisions(
        pair({"publish": tuple(Publish(*p) for p in first)}, {"publish": tuple(Publish(*p) for p in second)})
    )
    assert found == ([f"a and b both publish host port {port}"] if port else [])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("/srv/x", "/srv/x", "a and b have the same home /srv/x"),
        ("/srv/x", "/srv/x/deep/y", "the home of b, /srv/x/deep/y, is inside that of a, /srv/x"),
        ("/srv/x/y", "/srv/x", "the home of a, /srv/x/y, is inside that of b, /srv/x"),
        ("/link", "/srv/x", "a and b have the same home /srv/x"),
        ("/srv/x", "/srv/xy", None),
    ],
)
def test_homes_of_two_files(first: str, second: str, words: str | None) -> None:
    found = collisions(pair({"home": first}, {"home": second}), lambda path: {"/link": "/srv/x"}.get(path, path))
    assert found == ([words] if words else [])


def test_interfaces_of_long_names_can_collide() -> None:
    some = [f"a-long-prefix-{number}" for number in range(2000)]
    seen: dict[str, str] = {}
    pairs = [(seen.setdefault(names.port(name, "container"), name), name) for name in some]
    other, name = next((other, name) for other, name in pairs if other != name)
    both = {
        other: workspace(other, home=str(LAYOUT.home(other))),
        name: workspace(name, ip="192.168.83.3", home=str(LAYOUT.home(name))),
    }
    (found,) = collisions(both)
    assert found.startswith(f"{other} and {name} have the same interface ve-a-long-p")


def test_two_hutches_give_out_different_uids() -> None:
    assert LAYOUT.uid_index == 0
    assert names.BUILDER_RANGES <= SECOND.uid_index < names.UID_RANGES


def test_uid_ranges() -> None:
    first, second = names.UID_FIRST, names.UID_FIRST + names.UID_COUNT
    assert allocate_uids((), 0) == []
    assert allocate_uids((), 2) == [first, second]
    assert allocate_uids({first}, 1) == [second]
    assert allocate_uids({second}, 2) == [first, second + names.UID_COUNT]
    last = (names.UID_RANGES - 1) * names.UID_COUNT + first
    assert allocate_uids((), 2, names.UID_RANGES - 1) == [last, first]  # it goes round
    full = {names.UID_FIRST + index * names.UID_COUNT for index in range(names.UID_RANGES)}
    assert max(full) + names.UID_COUNT <= 1 << 31
    assert allocate_uids(full - {second, last}, 2) == [second, last]
    with pytest.raises(HutchError, match="left for 1 of 3 new workspaces"):
        allocate_uids(full - {second, last}, 3)


def test_an_address_that_a_workspace_runs_on_with_is_not_given_away() -> None:
    kept = {"web": workspace(ip="192.168.83.9")}
    found = resolve({"new": OPEN}, kept, NETWORK, LAYOUT, 1000, ["192.168.83.2"])
    assert found["new"].ip == "192.168.83.3"


@pytest.mark.parametrize(
    ("keys", "clash"),
    [
        ({"ip": "192.168.83.2"}, "the same ip 192.168.83.2"),
        ({"mac": names.mac("web")}, "the same mac 02:4b:5e:57:f6:eb"),
        ({"cid": names.cid("web")}, "the same cid 4939451"),
    ],
)
def test_what_a_workspace_runs_on_with_is_not_for_another(keys: Any, clash: str) -> None:
    """It is to have something else, from its next restart on."""
    was = workspace("web")
    wanted = {
        "web": replace(was, ip="192.168.83.9", mac="02:00:00:00:00:01", cid=9, home="/srv/web"),
        "lab": replace(workspace("lab", ip="192.168.83.3"), **keys),
    }
    assert collisions(wanted) == []
    assert still_used(wanted, {"web": was}, ["web"]) == []
    (found,) = still_used(wanted, {"web": was}, [])
    assert found == f"web and lab have {clash}, with which one still runs"
    assert still_used(wanted, {}, []) == []
