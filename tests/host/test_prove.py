"""`hutch prove`: all promises hold, a broken one shows, and behind each rule of the firewall stands a probe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hutch.host.services.service import stop_service
from hutch.prove.subject import HeldUp, output_of
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import PUBLIC_NAME, World

TARGET = ("--target", f"{PUBLIC_NAME}:80")
KEYS = {"workspace", "type", "promise", "probe", "says", "command", "result", "detail"}
UNENFORCED = {"memory", "cpus", "tasks", "cgroup-options"}
"""What a host without controllers of cgroup v2 cannot enforce, and without systemd cannot tell."""


def prove(instance: Instance, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    result = instance.hutch("prove", "--json", *TARGET, *arguments, check=False, timeout=300)
    assert result.stdout, result.stderr
    results: list[dict[str, Any]] = json.loads(result.stdout)
    wrong = [f"{item['workspace']} {item['probe']}: {item['detail']}" for item in results if item["result"] == "broken"]
    assert result.returncode == code, "\n".join([*wrong, result.stderr])
    return results


def broken(results: list[dict[str, Any]]) -> dict[str, str]:
    return {item["probe"]: item["detail"] for item in results if item["result"] == "broken"}


# The whole of it.


@pytest.mark.slow
def test_all_promises_hold_in_throw_away_workspaces_of_both_kinds(instance: Instance) -> None:
    """And nothing is left of them: the fixture looks at the whole host."""
    instance.declare("container", web="")  # what the image is taken from; it is not started
    results = prove(instance)
    assert all(set(item) == KEYS for item in results)
    for kind, fewest in (("container", 120), ("vm", 100)):
        held = [item for item in results if item["workspace"] == f"prove-{kind}" and item["result"] == "held"]
        assert len(held) >= fewest
        assert {item["promise"][0] for item in held} >= {"3", "4", "6", "7"}
    unlisted = {item["probe"] for item in results if item["workspace"] == "prove-list"}
    assert unlisted >= {"unlisted-name", "unlisted-tcp", "unlisted-udp"}
    unknown = {item["probe"] for item in results if item["result"] == "unknown"}
    assert unknown <= UNENFORCED, unknown
    assert instance.names() == []


class TestARunningWorkspace:
    """One that is there already, and stays."""

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, world: World, images: Path) -> Iterator[Instance]:
        with open_instance(world, images) as instance:
            instance.declare("container", web="", other="")
            instance.up()
            yield instance

    def test_it_is_tried_and_goes_on(self, running: Instance) -> None:
        before = running.status("web")["pid"]
        result = running.hutch("prove", *TARGET, "web", timeout=60)
        assert "out of reach" in result.stdout
        assert "broken" not in result.stdout
        assert running.status("web")["pid"] == before
        assert running.inside("web", "ls", "-A").stdout.count("hutch-prove") == 0
        assert running.plan()["other"]["action"] == "no change"

    def test_a_broken_promise_shows(self, running: Instance) -> None:
        home = running.status("web")["home"]
        subprocess.run(["mount", "-o", "remount,bind,suid,dev", home], check=True, timeout=10)
        try:
            assert set(broken(prove(running, "--only", "6", "web", code=1))) == {"guarded"}
        finally:
            subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev", home], check=True, timeout=10)
        assert prove(running, "--only", "guarded", "web")[0]["result"] == "held"

    @pytest.mark.parametrize(
        ("probe", "change", "back"),
        [
            ("port-isolated", "bridge link set dev ve-web isolated off", "bridge link set dev ve-web isolated on"),
            (
                "port-address",
                "ip neigh change {ip} lladdr {mac} dev hutch0 nud stale",
                "ip neigh change {ip} lladdr {mac} dev hutch0 nud permanent",
            ),
            ("fence", "ip rule del pref 83", "ip rule add pref 83 iif hutch0 lookup 83"),
        ],
    )
    def test_what_else_keeps_workspaces_apart(self, running: Instance, probe: str, change: str, back: str) -> None:
        status = running.status("web")
        router = ["ip", "netns", "exec", Layout(running.state, running.run).namespace]
        words = {"ip": status["ip"], "mac": status["mac"]}
        subprocess.run([*router, *change.format(**words).split()], check=True, timeout=10)
        try:
            assert probe in broken(prove(running, "--only", probe, "web", code=1))
        finally:
            subprocess.run([*router, *back.format(**words).split()], check=True, timeout=10)

    def test_a_readable_host_key_is_told(self, running: Instance) -> None:
        key = Layout(running.state, running.run).host_key("web")
        key.chmod(0o644)
        try:
            assert "host-key" in broken(prove(running, "--only", "host-key", "web", code=1))
        finally:
            key.chmod(0o600)

    @pytest.mark.parametrize("said", ["", "done\\n", "done\\ndone\\ndone\\n", "answer\\tmetadata\\tunknown: no\\n"])
    def test_a_workspace_that_will_not_be_tried_is_broken(self, running: Instance, said: str) -> None:
        """Its root may put anything in the place of what would try it."""
        running.inside("web", "sh", "-c", "mv /usr/bin/perl /usr/bin/real-perl", root=True)
        try:
            program = f"printf '#!/bin/sh\\nprintf {said!r}\\n' >/usr/bin/perl; chmod 755 /usr/bin/perl"
            running.inside("web", "sh", "-c", program, root=True)
            only = ("--only", "metadata", "--only", "host-key")
            found = broken(prove(running, *only, "web", code=1))
            assert {"metadata", "conversation"} <= set(found)
        finally:
            running.inside("web", "mv", "/usr/bin/real-perl", "/usr/bin/perl", root=True)

    def test_what_a_killed_run_left_goes_with_the_next(self, running: Instance) -> None:
        home, runtime = Path(running.status("web")["home"]), Layout(running.state, running.run).runtime("web")
        process = running.spawn("prove", "--only", "3", "--only", "6", *TARGET, "web")
        deadline = time.monotonic() + 30
        while not (home / ".hutch-prove-setuid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        assert [path for path in home.iterdir() if "hutch-prove" in path.name]
        assert list(runtime.glob("marker.*"))
        prove(running, "--only", "gateway-arp", "other")
        assert not [path for path in home.iterdir() if "hutch-prove" in path.name]
        assert not list(runtime.glob("marker.*"))

    def test_who_holds_up_a_look_is_not_waited_for(self) -> None:
        began = time.monotonic()
        with pytest.raises(HeldUp):
            output_of(["sleep", "30"], seconds=0.2)
        assert time.monotonic() - began < 5

    def test_what_cannot_be_tried_is_told(self, running: Instance) -> None:
        for arguments, words in (
            (("nobody",), "no workspace nobody"),
            (("--target", "localhost", "web"), "not a name and a port"),
            (("--only", "none-such", "web"), "no probe 'none-such'"),
            (("--only", "3", "--only", "typo"), "no probe 'typo'"),
            (("--only", "vmm-uid", "web"), "nothing was tried"),
            (("--type", "container", "web"), "leave one out"),
        ):
            result = running.hutch("prove", *arguments, check=False)
            assert result.returncode == 2
            assert words in result.stderr
        assert running.names() == ["other", "web"]
        running.hutch("stop", "other")
        result = running.hutch("prove", "other", check=False)
        assert result.returncode == 2
        assert "does not run" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_a_run_leaves_that_was_cut_short(instance: Instance, number: int) -> None:
    """Nothing when it is interrupted; what is left of one that is killed goes with the next."""
    instance.declare("container", web="")
    process = instance.spawn("prove", "--type", "container", "--only", "3", *TARGET)
    deadline = time.monotonic() + 60
    while not instance.names() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, number)
    process.wait(60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert instance.names() == []
        return
    assert instance.names()
    prove(instance, "--type", "container", "--only", "gateway-ping")
    assert instance.names() == []


# Behind each rule stands a probe.


@dataclass(frozen=True)
class Rule:
    """A rule as it stands in the kernel; `where` is a namespace, "" for the host's own."""

    where: str
    family: str
    chain: str
    name: str
    handle: int
    counts: bool

    @property
    def key(self) -> str:
        """As probes call it."""
        return f"{'router' if self.where else 'host'} {self.family} {self.chain}/{self.name}"


ON = {
    "listed": {
        "watched-udp",
        "watched-tcp",
        "watched-dns",
        "epoch",
        "private",
        "network",
        "listed-port",
    },
    "named": {"listed"},
    "learning": {"learned"},
    "free": {"everywhere"},
}
"""The workspaces by whose policy a rule is for; all others are for each."""


class TestRules:
    """Rules of the firewall are taken out. That they are gone must show in what the workspace reaches, or does not."""

    @pytest.fixture(scope="class")
    @classmethod
    def ruled(cls, world: World, images: Path) -> Iterator[Instance]:
        with open_instance(world, images) as instance:
            instance.declare(
                "container",
                web='publish = ["127.0.0.1:18081:4243", "18080:4242"]',
                listed=f'egress = ["{PUBLIC_NAME}:80", "192.0.2.0/30", "192.168.77.0/24"]',
                named=f'egress = ["{PUBLIC_NAME}"]',
                learning='egress = ["other.example"]\nlearn = true',
                free='egress = "all"',
            )
            instance.up()
            layout = Layout(instance.state, instance.run)
            # What is to be tried is what the rules do, not that traffic stops when they change.
            stop_service(layout, str(layout.services / "watch.pid"))
            yield instance

    def test_all_held_before(self, ruled: Instance) -> None:
        assert set(broken(prove(ruled, *NETWORK, "web", code=1))) == {"watch"}

    def test_a_port_that_takes_what_is_for_others_is_missed(self, ruled: Instance) -> None:
        """As the rules did that publish a port at an address of another's."""
        only = ("--only", "published-elsewhere", "web")
        assert {item["result"] for item in prove(ruled, *only)} == {"held"}
        with intercepting(f"tcp dport 18080 dnat to {ruled.status('web')['ip']}:4242"):
            assert set(broken(prove(ruled, *only, "--only", "listen-4242", code=1))) == {"published-elsewhere"}

    def test_what_drops(self, ruled: Instance) -> None:
        """All at once, and the policies of their chains are open. Each is missed, and but for those in UNSEEN for more
        than that it is not there."""
        rules = [rule for rule in rules_of(ruled) if rule.counts]
        assert len(rules) > 15
        with without(ruled, rules, opened=True):
            details = [
                detail for name in ("web", "listed") for detail in broken(prove(ruled, *NETWORK, name, code=1)).values()
            ]
        silent = {rule.key for rule in rules if not any(missing(rule) in detail for detail in details)}
        assert not silent, "no probe is about these rules"
        unseen = {rule.key for rule in rules if not any(shows(rule, detail) for detail in details)}
        assert unseen <= UNSEEN

    def test_what_nothing_stands_behind(self, ruled: Instance) -> None:
        """With all other rules in place."""
        alone = ("never", "denied", "host", "invalid")
        rules = [rule for rule in rules_of(ruled) if rule.where and rule.chain == "forward" and rule.name in alone]
        assert len(rules) == len(alone)
        with without(ruled, rules):
            details = broken(prove(ruled, *TO_ADDRESSES, "web", code=1)).values()
        assert {rule.name for rule in rules if any(shows(rule, detail) for detail in details)} == set(alone)

    def test_an_element_of_a_set(self, ruled: Instance) -> None:
        """Of one address or range that is not denied, the probe of that one tells, and no other."""
        probes = {"never": "link-local", "denied": "private-10", "host": "uplink-host"}
        table = Layout(ruled.state, ruled.run).table
        uplink = next(rule for rule in elements_of(ruled, "host") if rule.startswith("192.168.84."))
        with without(ruled, []) as where:
            for name, element in (("never", "169.254.0.0/16"), ("denied", "10.0.0.0/8"), ("host", uplink)):
                nft(where, "delete", "element", "inet", table, name, f"{{ {element} }}")
            found = broken(prove(ruled, *TO_ADDRESSES, "web", code=1))
        assert set(probes.values()) <= set(found)
        assert set(found) <= {*probes.values(), "metadata", "host-ping", "uplink-resolver"}
        assert all("came out" in found[name] for name in ("link-local", "private-10")), found
        assert "counted 0" in found["uplink-host"]  # it is in a private range, too

    @pytest.mark.parametrize(
        "names",
        [
            pytest.param({"internet", "host-ssh", "listed-port"}, id="some"),
            pytest.param(None, id="all", marks=pytest.mark.long),
        ],
    )
    def test_what_lets_through(self, ruled: Instance, names: set[str] | None) -> None:
        """One by one: what they let through is missed."""
        silent = []
        rules = [rule for rule in rules_of(ruled) if not rule.counts and not rule.name.startswith(UNTRIED)]
        assert len(rules) > 30
        keys = [rule.key for rule in rules if names is None or rule.name in names]
        assert len(keys) >= len(names or ())
        for key in keys:
            rule = next(rule for rule in rules_of(ruled) if rule.key == key)
            on = next((name for name, names in ON.items() if rule.name in names), "web")
            with without(ruled, [rule]):
                result = ruled.hutch("prove", "--json", *TARGET, *POSITIVE, on, check=False, timeout=60)
            if not set(broken(json.loads(result.stdout))):
                silent.append(rule.key)
        assert not silent, "nobody misses these rules"
        for name in ("web", *ON) if names is None else ():  # and what is missed is not missed for another reason
            prove(ruled, *POSITIVE, name)


UNSEEN = {
    *("router inet door/no-ipv6", "router inet door/foreign-source", "router inet forward/between-workspaces"),
    *("router inet door/packets", "router inet door/questions", "router inet tracked/connections"),
    *("router inet tracked/full", "router inet forward/over"),
    *("router inet door/behind-the-door", "host inet from-router/no-ipv6", "host inet from-router/untranslated"),
    *("host inet from-router/loopback-from-afar", "host inet from-router/resolver-from-afar"),
    *("host inet answers/answers", "router inet own/proxy-denied", "router inet own/proxy-unwatched"),
    "router inet own/own-denied",
}
"""Behind these stands something else that no rule of ours is, or only a flood gets to them: that they are not loaded is
all that shows when they are gone. Of those that are not about floods, packets are counted while they stand."""


UNTRIED = ("hear-", "private-port", "network-port", "resets", "lent", "met-ssh", "own-questions")
"""What only tells the egress proxy, or the record; what no workspace here has a list for, or a person's word; by what a
refusal comes at once; and what is for a host that publishes the resolver's own port."""


def missing(rule: Rule) -> str:
    return f"the rule {rule.key} is not loaded"


def shows(rule: Rule, detail: str) -> bool:
    """Whether it is broken for more than that."""
    return missing(rule) in detail and detail != missing(rule)


TO_ADDRESSES = [
    word
    for name in (
        *("link-local", "reserved", "private-10", "private-172", "cgnat", "metadata", "invalid"),
        *("uplink-host", "host-ping", "uplink-resolver"),
    )
    for word in ("--only", name)
]
POSITIVE = [
    word
    for name in (
        *("gateway-arp", "gateway-ping", "dns-udp", "dns-tcp", "internet", "translated", "opened-192.168.77.2"),
        *("host-ssh", "host-to-workspace-ping", "host-to-gateway-ping", "router-to-itself"),
        *("listen-4242", "listen-4243", "published-here", "published-outside"),
        *("untracked", "untracked-answers", "open"),
    )
    for word in ("--only", name)
]
"""What is let through, and rules that only a flood would get to."""
NETWORK = ("--only", "3", "--only", "4", "--only", "5", "--only", "11")


@contextmanager
def intercepting(rule: str) -> Iterator[None]:
    """With a rule for connections that the host makes, in a table of the test's own."""
    table = "ip hutch_test_intercepts"
    nft("", "-f", "-", stdin=f"table {table} {{ chain out {{ type nat hook output priority -150; {rule}; }}; }}")
    try:
        yield
    finally:
        nft("", "delete", "table", *table.split())


def rules_of(instance: Instance) -> list[Rule]:
    """All that hutch has loaded, in both places."""
    layout = Layout(instance.state, instance.run)
    found = []
    for where in ("", layout.namespace):
        for item in json.loads(nft(where, "-j", "list", "ruleset"))["nftables"]:
            rule = item.get("rule")
            if rule and rule["table"] == layout.table:
                counts = any("counter" in part for part in rule["expr"])
                found.append(Rule(where, rule["family"], rule["chain"], rule["comment"], rule["handle"], counts))
    return found


def nft(where: str, *arguments: str, stdin: str = "") -> str:
    inside = ["ip", "netns", "exec", where] if where else []
    command = [*inside, "nft", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=20).stdout


def elements_of(instance: Instance, name: str) -> list[str]:
    layout = Layout(instance.state, instance.run)
    listing = json.loads(nft(layout.namespace, "-j", "list", "set", "inet", layout.table, name))["nftables"]
    return [str(element) for item in listing if "set" in item for element in item["set"]["elem"]]


@contextmanager
def without(instance: Instance, rules: list[Rule], *, opened: bool = False) -> Iterator[str]:
    """These rules gone for a while, chains `opened` that let nothing through of themselves, and all as it was after it.
    Yields the router's namespace."""
    layout = Layout(instance.state, instance.run)
    try:
        for rule in rules:
            nft(rule.where, "delete", "rule", rule.family, layout.table, rule.chain, "handle", str(rule.handle))
        listing = json.loads(nft(layout.namespace, "-j", "list", "ruleset"))["nftables"] if opened else []
        for chain in (item["chain"] for item in listing if item.get("chain", {}).get("policy") == "drop"):
            change = f"chain {chain['family']} {chain['table']} {chain['name']} {{ policy accept; }}\n"
            nft(layout.namespace, "-f", "-", stdin=change)
        yield layout.namespace
    finally:
        for where in {layout.namespace, *(rule.where for rule in rules)}:
            nft(where, "-f", "-", stdin=written(instance, where))


def written(instance: Instance, where: str) -> str:
    """The rules as hutch loads them. What nft lists is not the same: it leaves out what it takes to go without saying,
    such as the type of a frame, and a frame with a VLAN's tag passes then."""
    of = f"# firewall of the {'router' if where else 'host'}"
    sections = f"\n{instance.hutch('explain', 'web').stdout}".split("\n# ")
    return next(text for text in sections if f"# {text}".startswith(of)).partition("\n")[2]
