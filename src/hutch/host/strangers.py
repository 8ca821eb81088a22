"""Others' firewalls on this host that stop what workspaces may do, and what lets it pass: Docker, ufw, firewalld.

Pure: reads what `nft` lists. A packet must pass the chains of all tables, so nothing in hutch's own can make up for
what another's drops; the repair belongs to whoever dropped it. What it opens is no more than what hutch's rules let
through: these come earlier, and know what may come from the uplink.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from hutch.frozen import dataclass

Rules = dict[str, list[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Obstacle:
    """`who` stops it, `why` in words; the commands of `repair` let it pass, and are to be given again after a reboot
    unless it `lasts`."""

    who: str
    why: str
    repair: tuple[tuple[str, ...], ...]
    lasts: bool

    def __str__(self) -> str:
        commands = " and ".join(f"`{shlex.join(argv)}`" for argv in self.repair)
        once = "" if self.lasts else ", until this host reboots"
        return f"{self.who} {self.why}; {commands} lets it pass{once}"


def check_strangers(listing: str, uplink: str, host_end: str) -> tuple[Obstacle, ...]:
    """What stops the packets that come by the interface `uplink`, whose address is `host_end`; `listing` is the output
    of `nft -j list ruleset`."""
    chains, rules = parse(listing)
    return (*_iptables(chains, rules, uplink, host_end), *_firewalld(rules, uplink))


def parse(listing: str) -> tuple[dict[str, str], Rules]:
    """The policies of base chains, and the expressions of each chain's rules, by "family table chain"."""
    policies: dict[str, str] = {}
    rules: Rules = {}
    for entry in json.loads(listing)["nftables"]:
        ((kind, body),) = entry.items()
        if kind == "chain":
            name = f"{body['family']} {body['table']} {body['name']}"
            rules.setdefault(name, [])
            policies[name] = body.get("policy", "")
        elif kind == "rule":
            rules.setdefault(f"{body['family']} {body['table']} {body['chain']}", []).append(body["expr"])
    return policies, rules


def _iptables(policies: dict[str, str], rules: Rules, uplink: str, host_end: str) -> Iterator[Obstacle]:
    """The chains of iptables, which ufw and Docker share. The first whose policy is to drop is whose the policy is."""

    def drops(chain: str) -> bool:
        return policies.get(f"ip filter {chain}") == "drop"

    def lets_in(*names: str) -> bool:
        return any(_accepts(rule, uplink) for name in names for rule in rules.get(f"ip filter {name}", ()))

    is_ufw = any(_jumps(rule, "ufw-before-input") for rule in rules.get("ip filter INPUT", ()))
    has_docker = "ip filter DOCKER-USER" in rules
    accept = ("-i", uplink, "-j", "ACCEPT")
    back = ("-o", uplink, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "ACCEPT")
    if drops("FORWARD") and not lets_in("FORWARD", "DOCKER-USER", "ufw-user-forward"):
        why = "drops what goes through this host, which is all that workspaces send"
        if is_ufw:
            yield Obstacle("ufw", why, (("ufw", "route", "allow", "in", "on", uplink),), lasts=True)
        else:
            chain = "DOCKER-USER" if has_docker else "FORWARD"
            repair = (("iptables", "-I", chain, *accept), ("iptables", "-I", chain, *back))
            yield Obstacle("Docker" if has_docker else "iptables", why, repair, lasts=False)
    if drops("INPUT") and not lets_in("INPUT", "ufw-user-input"):
        why = "drops what workspaces ask this host: no name is found"
        if is_ufw:
            command = ("ufw", "allow", "in", "on", uplink, "to", host_end, "port", "53")
            yield Obstacle("ufw", why, (command,), lasts=True)
        else:
            yield Obstacle("iptables", why, (("iptables", "-I", "INPUT", *accept),), lasts=False)


def _firewalld(rules: Rules, uplink: str) -> Iterator[Obstacle]:
    """It has a zone for each interface, and rejects what goes from the usual one to another."""
    ours = [rule for name, found in rules.items() if name.startswith("inet firewalld ") for rule in found]
    if ours and not any(_comes_by(rule, uplink) for rule in ours):
        command = ("firewall-cmd", "--zone=trusted", f"--add-interface={uplink}")
        repair = (command, ("firewall-cmd", "--permanent", *command[1:]))
        yield Obstacle("firewalld", "rejects what workspaces send and ask", repair, lasts=True)


def _accepts(rule: list[dict[str, Any]], uplink: str) -> bool:
    return _comes_by(rule, uplink) and any("accept" in part for part in rule)


def _comes_by(rule: list[dict[str, Any]], uplink: str) -> bool:
    wanted = {"meta": {"key": "iifname"}}
    return any(
        part["match"]["left"] == wanted and part["match"]["op"] == "==" and part["match"]["right"] == uplink
        for part in rule
        if "match" in part
    )


def _jumps(rule: list[dict[str, Any]], chain: str) -> bool:
    return any(part["jump"]["target"] == chain for part in rule if "jump" in part)
