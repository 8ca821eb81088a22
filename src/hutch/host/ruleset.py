"""Firewall tables as data: rendered for nft, and compared with what the kernel says it has.

Every rule carries a comment that names it. Reading back compares, for each chain, its hook, priority and
policy and the names of its rules in order, and for each set its elements; nft's own text differs between
versions and is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hutch.frozen import dataclass


@dataclass(frozen=True)
class Rule:
    """`text` in nft's grammar, without the comment."""

    name: str
    text: str


@dataclass(frozen=True)
class Chain:
    """A base chain; `hook` as in "type filter hook forward priority 0", the policy apart."""

    name: str
    type: str
    hook: str
    priority: int
    policy: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class ElementSet:
    """A named set; `type` is its type or typeof clause, with flags."""

    name: str
    type: str
    elements: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A whole table of one family."""

    family: str
    name: str
    sets: tuple[ElementSet, ...]
    chains: tuple[Chain, ...]


Shape = dict[str, Any]
"""What is compared: "family table/chain" -> [type, hook, priority, policy, names of rules]; "…/@set" -> elements."""


def render_tables(tables: Sequence[Table]) -> str:
    """One transaction that puts the tables in place of whatever they were before."""
    return "".join(_render_table(table) for table in tables)


def render_removal(tables: Sequence[tuple[str, str]]) -> str:
    """Remove (family, name) tables, whether they exist or not."""
    return "".join(f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family, name in tables)


def _render_table(table: Table) -> str:
    lines = [render_removal([(table.family, table.name)]) + f"table {table.family} {table.name} {{"]
    for item in table.sets:
        elements = f"\n    elements = {{ {', '.join(item.elements)} }}" if item.elements else ""
        lines.append(f"  set {item.name} {{\n    {item.type}{elements}\n  }}")
    for chain in table.chains:
        lines.append(
            f"  chain {chain.name} {{\n"
            f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy {chain.policy};"
        )
        lines += [f'    {rule.text} comment "{rule.name}"' for rule in chain.rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def shape_of(tables: Sequence[Table]) -> Shape:
    """What reading back must find."""
    shape: Shape = {}
    for table in tables:
        prefix = f"{table.family} {table.name}/"
        for chain in table.chains:
            names = [rule.name for rule in chain.rules]
            shape[prefix + chain.name] = [chain.type, chain.hook, chain.priority, chain.policy, names]
        for item in table.sets:
            shape[f"{prefix}@{item.name}"] = sorted(item.elements)
    return shape


def observed_shape(listing: str, table: str) -> Shape:
    """The shape of the tables called `table` in the output of `nft -j list ruleset`."""
    shape: Shape = {}
    for entry in json.loads(listing)["nftables"]:
        ((kind, body),) = entry.items()
        if kind not in ("chain", "rule", "set") or (body["table"] != table):
            continue
        prefix = f"{body['family']} {table}/"
        if kind == "chain":
            hook = [body.get("type"), body.get("hook"), body.get("prio"), body.get("policy")]
            shape[prefix + body["name"]] = [*hook, []]
        elif kind == "rule":
            shape[prefix + body["chain"]][4].append(body.get("comment", ""))
        else:
            shape[f"{prefix}@{body['name']}"] = sorted(_element(element) for element in body.get("elem", []))
    return shape


def _element(value: Any) -> str:
    """One element of nft's JSON in the form that we write it."""
    if isinstance(value, dict):
        if "concat" in value:
            return " . ".join(_element(part) for part in value["concat"])
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "elem" in value:
            return _element(value["elem"]["val"])
    return str(value)


NAMED = 3  # differences that are told one by one


def describe(found: Sequence[str]) -> str:
    """Differences on one line, "" for none."""
    more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{', '.join(found[:NAMED])}{more}"


def differences(wanted: Shape, found: Shape) -> list[str]:
    """Where the two differ, in words; empty when they do not."""
    return [
        f"{where}: {'missing' if where not in found else 'unexpected' if where not in wanted else 'changed'}"
        for where in sorted({*wanted, *found})
        if wanted.get(where) != found.get(where)
    ]
