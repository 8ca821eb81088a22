"""What `egress` and `learn` mean."""

from __future__ import annotations

import pytest

from hutch.spec.entries import Egress
from hutch.spec.field_types import Invalid
from hutch.spec.model import WorkspaceSpec
from hutch.spec.policy import Domain, Policy, Reach, policy_of


def policy(*egress: str, learn: bool = False) -> Policy:
    return policy_of(WorkspaceSpec(type="container", egress=Egress().parse(egress), learn=learn))


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("API.Example.com:443", "api.example.com:443"),
        ("api.example.com.", "api.example.com"),
        ("api.example.com.:8443", "api.example.com:8443"),
        ("*.Bücher.example", "*.xn--bcher-kva.example"),
        ("ex\u3002ample.org", "ex.ample.org"),  # an ideographic full stop is a dot to a resolver too
        ("198.51.100.0/24:443", "198.51.100.0/24:443"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("0.0.0.0/0:443", "0.0.0.0/0:443"),
    ],
)
def test_a_destination_has_one_form(written: str, kept: str) -> None:
    assert Egress().parse_destination(written) == kept


@pytest.mark.parametrize(
    "written",
    [
        *("..", "a..b", ".example.org", "*", "*.", "a.*.org", "*a.org", "a.org:0", "a.org:443:1", "a.org:"),
        *("bü cher.org", "a.org\0.b", "-a.org", "a-.org", "\u2488.org", "localhost"),
        *("169.254.169.254/32", "127.0.0.0/8", "224.0.0.0/4"),
    ],
)
def test_what_is_no_destination(written: str) -> None:
    with pytest.raises(Invalid):
        Egress().parse_destination(written)


def test_a_list() -> None:
    assert policy("*.example.org", "api.example.com:443", "10.1.0.0/16", "0.0.0.0/0:80") == Policy(
        "list",
        (Domain("example.org", True, None), Domain("api.example.com", False, 443)),
        (Reach("10.1.0.0/16", None), Reach("0.0.0.0/0", 80)),
    )


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("a.example.org", True),
        ("a.b.example.org", True),
        ("example.org", False),
        ("evilexample.org", False),
        ("example.org.evil", False),
        ("", False),
    ],
)
def test_all_names_below_one(name: str, is_covered: bool) -> None:
    assert Domain("example.org", True, None).covers(name) is is_covered


def test_one_name() -> None:
    assert Domain("example.org", False, None).covers("example.org")
    assert not Domain("example.org", False, None).covers("a.example.org")


def test_only_a_network_that_is_private_as_a_whole_opens_private_addresses() -> None:
    found = policy("10.1.0.0/16", "0.0.0.0/0:80", "203.0.113.0/24")
    assert found.private_networks == (Reach("10.1.0.0/16", None),)
    assert found.public_networks == (Reach("0.0.0.0/0", 80), Reach("203.0.113.0/24", None))
    assert found.opens("10.1.2.3")
    assert not found.opens("10.2.0.1")
    assert Policy("all").opens("192.168.1.1")
    assert not Policy().opens("192.168.1.1")


def test_the_epoch_changes_with_all_that_counts_and_with_nothing_else() -> None:
    policies = [policy("a.org"), policy("a.org", learn=True), policy("a.org:1"), policy("*.a.org"), policy(), Policy()]
    assert len({found.epoch for found in policies}) == len(policies)
    assert policy("a.org", "b.org").epoch == policy("b.org", "a.org").epoch


@pytest.mark.parametrize(
    ("found", "is_watched"),
    [
        (Policy(), False),
        (Policy("all"), False),
        (Policy("none"), True),
        (Policy("list"), True),
        (Policy(learn=True), True),
    ],
)
def test_who_is_watched(found: Policy, is_watched: bool) -> None:
    assert found.is_watched is is_watched
