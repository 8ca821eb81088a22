"""Others' firewalls that stop workspaces' packets, and repairs that let them pass: Docker, ufw, firewalld.

Pure: reads what `nft` lists. A packet must pass the chains of all tables, so nothing in hutch's own can make up for
what another's drops; the repair belongs to whoever dropped it. What it opens is no more than what hutch's rules let
through: these come earlier, and know what may come from the uplink.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hutch.frozen import dataclass
from hutch.host.doctor.repairs import RepairStep
from hutch.host.network.firewall import UPSTREAM_PORT

Rules = dict[str, list[list[dict[str, Any]]]]

SIGNS = {
    "Docker": ("ip filter DOCKER-USER", "ip docker-bridges "),
    "ufw": ("ip filter ufw-before-input",),
    "firewalld": ("inet firewalld ",),
    "libvirt": ("ip filter LIBVIRT_FWI", "ip libvirt_network "),
}
"""The known firewalls, by the beginnings of their chains' names."""
THEIRS = ("ip filter ", "ip nat ", "ip libvirt_network ", "ip docker-bridges ", "inet firewalld ")


@dataclass(frozen=True)
class Obstacle:
    """A firewall, `who`, that stops workspaces' packets, `why` in words; the steps of `repair` let them pass. The last
    step is looked for: a repair that is half made leaves an obstacle. One that does not last until after a reboot, or a
    restart of `who`, is made again by hutch at the next start."""

    who: str
    why: str
    repair: tuple[RepairStep, ...]
    lasts: bool

    def __str__(self) -> str:
        commands = " and ".join(f"`{step}`" for step in self.repair)
        return f"{self.who} {self.why}; `hutch doctor --fix` lets it pass, with {commands}"


@dataclass(frozen=True)
class Listing:
    """The output of `nft -j list ruleset`: the policies of base chains, the hooks that they are at, and the expressions
    of each chain's rules, by "family table chain"."""

    policies: dict[str, str]
    hooks: dict[str, str]
    rules: Rules


def check_foreign_firewalls(listing: str, uplink: str, host_end: str) -> tuple[Obstacle, ...]:
    """The obstacles to packets that come by the interface `uplink`, whose address is `host_end`; `listing` is the
    output of `nft -j list ruleset`."""
    found = parse(listing)
    return (*_iptables(found, uplink, host_end), *_firewalld(found.rules, uplink))


def who_filters(listing: str) -> tuple[str, ...]:
    """The known firewalls that have rules in the listing."""
    chains = parse(listing).rules
    return tuple(who for who, signs in SIGNS.items() if any(name.startswith(signs) for name in chains))


def unknown_droppers(listing: str, uplink: str) -> tuple[str, ...]:
    """Others' chains that drop by default packets through this host, or to it, and have no rule for packets that come
    by the uplink. Another rule may let those pass all the same."""
    found = parse(listing)
    return tuple(
        name
        for name, hook in found.hooks.items()
        if hook in ("forward", "input")
        and found.policies[name] == "drop"
        and name.startswith(("ip ", "inet "))
        and not name.startswith(THEIRS)
        and not any(_goes_by(rule, "iifname", uplink) for rule in found.rules[name])
    )


def parse(listing: str) -> Listing:
    policies: dict[str, str] = {}
    hooks: dict[str, str] = {}
    rules: Rules = {}
    for entry in json.loads(listing)["nftables"]:
        ((kind, body),) = entry.items()
        if kind == "chain":
            name = f"{body['family']} {body['table']} {body['name']}"
            rules.setdefault(name, [])
            policies[name] = body.get("policy", "")
            hooks[name] = body.get("hook", "")
        elif kind == "rule":
            rules.setdefault(f"{body['family']} {body['table']} {body['chain']}", []).append(body["expr"])
    return Listing(policies, hooks, rules)


def _iptables(found: Listing, uplink: str, host_end: str) -> Iterator[Obstacle]:
    """Obstacles in the chains of iptables, which ufw and Docker share: a policy to drop is ufw's, if that is here."""
    policies, rules = found.policies, found.rules

    def drops(chain: str) -> bool:
        return policies.get(f"ip filter {chain}") == "drop"

    def lets(way: str, *names: str, port: int | None = None) -> bool:
        ours = (r for name in names for r in rules.get(f"ip filter {name}", ()) if _goes_by(r, way, uplink))
        return any("accept" in part for rule in ours if port is None or _is_for_port(rule, port) for part in rule)

    input_ = (part for rule in rules.get("ip filter INPUT", ()) for part in rule)
    is_ufw = any(part["jump"]["target"] == "ufw-before-input" for part in input_ if "jump" in part)
    has_docker = "ip filter DOCKER-USER" in rules
    accept = ("-i", uplink, "-j", "ACCEPT")
    back = ("-o", uplink, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "ACCEPT")
    passing = ("FORWARD", "DOCKER-USER", "ufw-user-forward")
    # To a published port, others come; ufw lets nothing but answers go there by itself.
    if drops("FORWARD") and not (lets("iifname", *passing) and (lets("oifname", *passing) or not is_ufw)):
        why = "drops forwarded traffic, which is all that workspaces send and publish"
        if is_ufw:
            repair = (_ufw("route", "allow", "out", "on", uplink), _ufw("route", "allow", "in", "on", uplink))
            yield Obstacle("ufw", why, repair, lasts=True)
        else:
            chain = "DOCKER-USER" if has_docker else "FORWARD"
            repair = (_rule(chain, *back), _rule(chain, *accept))
            yield Obstacle("Docker" if has_docker else "iptables", why, repair, lasts=False)
    if drops("INPUT") and not lets("iifname", "INPUT", "ufw-user-input", port=UPSTREAM_PORT):
        why = "drops DNS queries of workspaces: no name is found"
        if is_ufw:
            step = _ufw("allow", "in", "on", uplink, "to", host_end, "port", str(UPSTREAM_PORT))
            yield Obstacle("ufw", why, (step,), lasts=True)
        else:
            yield Obstacle("iptables", why, (_rule("INPUT", *accept),), lasts=False)


def _rule(chain: str, *words: str) -> RepairStep:
    make, undo, test = (("iptables", "--wait", action, chain, *words) for action in ("-I", "-D", "-C"))
    return RepairStep(make, undo, test)


def _ufw(*words: str) -> RepairStep:
    """A repair by ufw, which lists its rules as the commands that made them, whether it is on or off."""
    kind = words[:1] if words[0] == "route" else ()
    make = ("ufw", *words)
    return RepairStep(make, ("ufw", *kind, "delete", *words[len(kind) :]), ("ufw", "show", "added"), " ".join(make))


def _firewalld(rules: Rules, uplink: str) -> Iterator[Obstacle]:
    """Obstacles of firewalld: a zone for each interface, and packets from the usual zone to another are rejected."""
    ours = [rule for name, found in rules.items() if name.startswith("inet firewalld ") for rule in found]
    if ours and not any(_goes_by(rule, "iifname", uplink) for rule in ours):
        add, remove, query = (("--zone=trusted", f"--{verb}-interface={uplink}") for verb in ("add", "remove", "query"))
        now = RepairStep(("firewall-cmd", *add), ("firewall-cmd", *remove), ("firewall-cmd", *query))
        # The permanent part can be asked for, and taken back, when firewalld does not run.
        offline = "firewall-offline-cmd"
        later = RepairStep(("firewall-cmd", "--permanent", *add), (offline, *remove), (offline, *query))
        yield Obstacle("firewalld", "rejects traffic and DNS of workspaces", (later, now), lasts=True)


def _is_for_port(rule: list[dict[str, Any]], port: int) -> bool:
    """Whether the rule is about packets to that port, or to every one."""

    def holds(right: Any) -> bool:
        if isinstance(right, dict):
            first, last = right.get("range", (1, 0))
            return first <= port <= last or any(map(holds, right.get("set", ())))
        return bool(right == port)

    matches = (part["match"] for part in rule if "match" in part)
    ports = (m for m in matches if isinstance(m["left"], dict) and m["left"].get("payload", {}).get("field") == "dport")
    return all(holds(match["right"]) is (match["op"] == "==") for match in ports)


def _goes_by(rule: list[dict[str, Any]], way: str, uplink: str) -> bool:
    """Whether the rule is about packets that come ("iifname") or leave ("oifname") by the uplink."""
    wanted = {"meta": {"key": way}}
    return any(
        part["match"]["left"] == wanted and part["match"]["op"] == "==" and part["match"]["right"] == uplink
        for part in rule
        if "match" in part
    )
