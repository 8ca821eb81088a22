"""The rules as text, and what reading them back makes of them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from hutch.egress.proxy import RULES
from hutch.host.network import ruleset
from hutch.host.network.firewall import host_tables, router_tables
from hutch.host.network.ruleset import (
    Chain,
    ElementSet,
    Rule,
    Table,
    differences,
    observed_shape,
    render_tables,
    shape_of,
    with_frame,
)
from hutch.spec.entries import Publish
from hutch.spec.names import HEARD
from hutch.spec.policy import Domain, Policy, Reach
from hutch.spec.ranges import NEVER, PRIVATE
from tests.unit.facts import ENDPOINTS, GOLDEN, LAYOUT, NETWORK, SECOND, check_golden, check_golden_case, endpoint

HOST_ADDRESSES = ("10.0.0.5", "203.0.113.7")
POLICIES = {
    "all": Policy("all"),
    "all-learn": Policy("all", learn=True),
    "none": Policy("none"),
    "list": Policy(
        "list",
        (Domain("example.org", True, None), Domain("api.example.com", False, 443)),
        (
            *(
                Reach("10.1.0.0/16", None),
                Reach("10.1.2.0/24", 22),
                Reach("10.2.0.0/16", 22),
                Reach("10.1.2.3/32", None),
            ),
            *(Reach("0.0.0.0/0", 443), Reach("203.0.113.0/25", None), Reach("203.0.113.128/25", None)),
            Reach("198.51.100.7/32", 80),
        ),
    ),
    "learning": Policy("list", (Domain("example.org", False, None),), (), learn=True),
}
POLICED = tuple(
    replace(endpoint(name, f"192.168.83.{number}"), policy=policy)
    for number, (name, policy) in enumerate(POLICIES.items(), 10)
)
EMPTY = router_tables(LAYOUT, NETWORK, (), ())
ROUTER = router_tables(LAYOUT, NETWORK, (*ENDPOINTS, *POLICED), HOST_ADDRESSES)
HOST = host_tables(LAYOUT, NETWORK, ENDPOINTS)
LONGEST_COMMENT = 128  # bytes, in the kernel


@pytest.mark.parametrize("tables", [EMPTY, ROUTER], ids=["with nobody", "with some"])
def test_router_tables(tables: tuple[Table, ...]) -> None:
    check_golden_case("nft/router", render_tables(tables), render_tables(EMPTY))


def test_host_table() -> None:
    check_golden("nft/host.nft", render_tables(HOST))


def test_a_second_hutch_has_tables_of_its_own() -> None:
    assert {table.name for table in (*router_tables(SECOND, NETWORK, (), ()), *host_tables(SECOND, NETWORK, ()))} == {
        SECOND.table
    }
    assert SECOND.table != LAYOUT.table


def chain(tables: tuple[Table, ...], family: str, name: str) -> Chain:
    (found,) = [c for table in tables if table.family == family for c in table.chains if c.name == name]
    return found


def names_of(found: Chain) -> list[str]:
    return [rule.name for rule in found.rules]


def test_what_is_not_allowed_is_dropped() -> None:
    assert chain(ROUTER, "bridge", "prerouting").policy == "drop"
    assert chain(ROUTER, "bridge", "forward").policy == "drop"
    assert chain(ROUTER, "inet", "input").policy == "drop"
    assert chain(ROUTER, "inet", "forward").policy == "drop"


def test_what_is_closed_comes_before_what_is_let_out() -> None:
    order = names_of(chain(ROUTER, "inet", "forward"))
    accepted = [rule.name for rule in chain(ROUTER, "inet", "forward").rules if rule.text.endswith("accept")]
    for closed in ("between-workspaces", "never", "host"):
        assert all(order.index(closed) < order.index(name) for name in accepted if name != "answers-out"), closed
    for name in ("network", "network-port", "listed-port", "listed", "learned", "internet"):
        assert order.index("denied") < order.index(name)


def test_private_networks_are_closed() -> None:
    closed = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"}
    assert closed <= {*PRIVATE, *NEVER}


def elements_of(name: str) -> tuple[str, ...]:
    (found,) = [item for item in ROUTER[1].sets if item.name == name]
    return found.elements


def test_nobody_is_let_out_who_is_not_named() -> None:
    assert elements_of("internet") == ("192.168.83.2", "192.168.83.3")
    assert elements_of("everywhere") == ("192.168.83.10",)
    assert elements_of("watched") == ("192.168.83.11", "192.168.83.12", "192.168.83.13", "192.168.83.14")
    assert elements_of("learning") == ("192.168.83.11", "192.168.83.14")
    assert len({element.split(" : ")[1] for element in elements_of("epochs")}) == 4


def test_networks_that_are_listed_do_not_lie_within_each_other() -> None:
    assert elements_of("private") == ("192.168.83.11 . 0.0.0.0/0", "192.168.83.13 . 10.1.0.0/16")
    assert elements_of("private_ports") == ("192.168.83.13 . 10.1.2.0/24 . 22", "192.168.83.13 . 10.2.0.0/16 . 22")
    assert elements_of("networks") == ("192.168.83.13 . 203.0.113.0/24",)
    assert elements_of("network_ports") == ("192.168.83.13 . 198.51.100.7 . 80", "192.168.83.13 . 0.0.0.0/0 . 443")


def test_the_egress_proxy_knows_what_each_rule_means_that_tells_it() -> None:
    told = [
        rule.text.split(f'prefix "{HEARD}')[1].split('"')[0]
        for rule in chain(ROUTER, "inet", "forward").rules
        if " log " in rule.text
    ]
    assert set(told) == set(RULES)


def test_a_table_is_kept_when_all_its_chains_and_sets_are_there() -> None:
    found = shape_of(ROUTER)
    assert with_frame(ROUTER, found) == list(ROUTER)
    fewer_rules = {where: [*what[:4], []] if "/@" not in where else [] for where, what in found.items()}
    assert with_frame(ROUTER, fewer_rules) == list(ROUTER)
    assert with_frame(ROUTER, {**found, "inet hutch/@more": []}) == [ROUTER[0]]
    assert with_frame(ROUTER, {}) == []
    text = render_tables(ROUTER, kept=[ROUTER[1]])
    assert "flush table inet hutch\n" in text
    assert "delete table inet hutch\n" not in text
    assert "flush map inet hutch epochs\n" in text
    assert "inet hutch allowed\n" not in text


@pytest.mark.parametrize(
    ("publish", "text"),
    [
        (
            Publish("", 80, 8080, "tcp"),
            "meta nfproto ipv4 fib daddr type local tcp dport 80 dnat ip to 192.168.83.2:8080",
        ),
        (
            Publish("127.0.0.1", 53, 5353, "udp"),
            "meta nfproto ipv4 ip daddr 127.0.0.1 fib daddr type local udp dport 53 dnat ip to 192.168.83.2:5353",
        ),
    ],
)
def test_published_ports(publish: Publish, text: str) -> None:
    tables = host_tables(LAYOUT, NETWORK, (endpoint("web", "192.168.83.2", publish),))
    rule = Rule(f"published web {publish}", text)
    assert chain(tables, "inet", "publish-local").rules == (rule,)
    # From a network, nothing that claims to be for 127.0.0.1 gets that far.
    assert chain(tables, "inet", "publish").rules[1:] == (() if publish.host_ip else (rule,))


def test_names_of_rules_fit_in_a_comment() -> None:
    longest = Publish("255.255.255.255", 65535, 65535, "udp")
    tables = (*ROUTER, *host_tables(LAYOUT, NETWORK, (endpoint("a" * 32, "192.168.83.2", longest),)))
    rules = [rule for table in tables for c in table.chains for rule in c.rules]
    assert all(len(rule.name) < LONGEST_COMMENT and '"' not in rule.name for rule in rules)


def test_names_of_rules_are_told_apart() -> None:
    for table in (*ROUTER, *HOST):
        for found in table.chains:
            assert len(set(names_of(found))) == len(found.rules), found.name


# Reading back: router.json and host.json are what `nft -j list ruleset` of nft 1.1.3 said after it loaded the .nft
# files beside them in a network namespace of its own.


@pytest.fixture(params=["router", "host"])
def listing(request: pytest.FixtureRequest) -> tuple[str, tuple[Table, ...]]:
    text = (GOLDEN / "nft" / f"{request.param}.json").read_text()
    return text, ROUTER if request.param == "router" else HOST


def test_what_nft_says_is_what_was_wanted(listing: tuple[str, tuple[Table, ...]]) -> None:
    text, tables = listing
    assert observed_shape(text, LAYOUT.table) == shape_of(tables)
    assert differences(shape_of(tables), observed_shape(text, LAYOUT.table)) == []


def test_tables_of_others_are_not_looked_at(listing: tuple[str, tuple[Table, ...]]) -> None:
    text, _ = listing
    document = json.loads(text)
    foreign = [{"table": {"family": "inet", "name": "theirs", "handle": 9}}]
    foreign += [{"chain": {"family": "inet", "table": "theirs", "name": "forward", "handle": 1}}]
    foreign += [{"rule": {"family": "inet", "table": "theirs", "chain": "forward", "handle": 2, "expr": []}}]
    document["nftables"] += foreign
    assert observed_shape(json.dumps(document), LAYOUT.table) == observed_shape(text, LAYOUT.table)
    assert observed_shape(text, "theirs") == {}


def entries(document: Any, kind: str) -> list[dict[str, Any]]:
    return [entry[kind] for entry in document["nftables"] if kind in entry]


def drop_a_rule(document: Any) -> None:
    document["nftables"] = [e for e in document["nftables"] if e.get("rule", {}).get("comment") != "denied"]


def add_a_rule(document: Any) -> None:
    (rule,) = [rule for rule in entries(document, "rule") if rule.get("comment") == "denied"]
    document["nftables"].append({"rule": {**rule, "comment": "mine"}})


def add_an_unnamed_rule(document: Any) -> None:
    (rule,) = [rule for rule in entries(document, "rule") if rule.get("comment") == "denied"]
    document["nftables"].append({"rule": {key: value for key, value in rule.items() if key != "comment"}})


def open_a_policy(document: Any) -> None:
    for found in entries(document, "chain"):
        if found["name"] == "forward" and found["family"] == "inet":
            found["policy"] = "accept"


def swap_rules(document: Any) -> None:
    rules = [rule for rule in entries(document, "rule") if rule["chain"] == "forward" and rule["family"] == "inet"]
    rules[0]["comment"], rules[1]["comment"] = rules[1]["comment"], rules[0]["comment"]


def shrink_the_deny_set(document: Any) -> None:
    (found,) = [item for item in entries(document, "set") if item["name"] == "denied"]
    found["elem"] = found["elem"][1:]


@pytest.mark.parametrize(
    ("tamper", "where"),
    [
        (drop_a_rule, "inet hutch/forward"),
        (add_a_rule, "inet hutch/forward"),
        (add_an_unnamed_rule, "inet hutch/forward"),
        (open_a_policy, "inet hutch/forward"),
        (swap_rules, "inet hutch/forward"),
        (shrink_the_deny_set, "inet hutch/@denied"),
    ],
)
def test_tampering_is_seen(tamper: Any, where: str) -> None:
    document = json.loads((GOLDEN / "nft" / "router.json").read_text())
    changed = copy.deepcopy(document)
    tamper(changed)
    assert changed != document
    assert differences(shape_of(ROUTER), observed_shape(json.dumps(changed), "hutch")) == [f"{where}: changed"]


def test_another_port_of_the_resolver_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an older hutch has loaded: the names of rules are all that is read of the host's."""
    monkeypatch.setattr("hutch.host.network.firewall.UPSTREAM_PORT", 5302)
    assert differences(shape_of(HOST), shape_of(host_tables(LAYOUT, NETWORK, ENDPOINTS))) == [
        "inet hutch/from-router: changed"
    ]


def test_differences_in_words() -> None:
    assert differences({"a": [1], "b": [2]}, {"b": [3], "c": [4]}) == ["a: missing", "b: changed", "c: unexpected"]


def test_an_empty_host_has_no_shape() -> None:
    assert observed_shape('{"nftables": [{"metainfo": {}}]}', "hutch") == {}
    assert differences(shape_of(ROUTER), {}) == [f"{where}: missing" for where in sorted(shape_of(ROUTER))]


def test_elements_of_all_forms() -> None:
    elements = [
        "10.0.0.1",
        {"prefix": {"addr": "10.0.0.0", "len": 8}},
        {"elem": {"val": "10.0.0.2", "timeout": 3}},
        {"concat": ["192.168.83.2", "tcp", 80]},
        {"elem": {"val": {"concat": ["ve-a", "02:00:00:00:00:01"]}}},
        {"concat": ["192.168.83.2", {"range": [0, 65535]}]},
    ]
    body = {"family": "inet", "table": "t", "name": "s", "elem": elements}
    assert observed_shape(json.dumps({"nftables": [{"set": body}]}), "t") == {
        "inet t/@s": sorted(
            [
                *("10.0.0.1", "10.0.0.0/8", "10.0.0.2", "192.168.83.2 . tcp . 80", "ve-a . 02:00:00:00:00:01"),
                "192.168.83.2 . 0-65535",
            ]
        )
    }


def test_loading_replaces_the_whole_table() -> None:
    text = render_tables([Table("inet", "t", (ElementSet("s", "type ipv4_addr", ()),), ())])
    assert text == "table inet t {}\ndelete table inet t\ntable inet t {\n  set s {\n    type ipv4_addr\n  }\n}\n"
    assert ruleset.render_removal([("inet", "t")]) == "table inet t {}\ndelete table inet t\n"
    assert ruleset.render_removal([]) == ""
