"""Firewall tables as data: rendered for nft, and compared with the kernel's.

Every rule carries a comment that names it. Reading back compares, for each chain, its hook, priority and
policy and the names of its rules in order, and for each set its elements; nft's own text differs between
versions and is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Literal

from hutch.frozen import dataclass


@dataclass(frozen=True)
class Rule:
    """A rule; `text` is in nft's grammar, without the comment."""

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
    """A named set or map; `type` is its type or typeof clause, with flags. The elements of one that `is_filled` come
    from packets and from the resolver, so it is neither written here nor compared."""

    name: str
    type: str
    elements: tuple[str, ...] = ()
    kind: Literal["set", "map"] = "set"
    is_filled: bool = False


@dataclass(frozen=True)
class Table:
    """A whole table of one family."""

    family: str
    name: str
    sets: tuple[ElementSet, ...]
    chains: tuple[Chain, ...]


Shape = dict[str, Any]
"""Compared parts: "family table/chain" -> [type, hook, priority, policy, names of rules]; "…/@set" -> elements."""


def render_tables(tables: Sequence[Table], kept: Collection[Table] = ()) -> str:
    """One transaction that puts the tables in place of whatever they were before. Those that are `kept` get new rules
    and elements, and keep what sets hold that others fill."""
    return "".join(_render_table(table, is_kept=table in kept) for table in tables)


def with_frame(tables: Sequence[Table], found: Shape) -> list[Table]:
    """The tables of which all chains and sets are there, and nothing else: their rules can be made anew in place."""

    def frame(shape: Shape, table: Table) -> Shape:
        prefix = f"{table.family} {table.name}/"
        parts = {where: what for where, what in shape.items() if where.startswith(prefix)}
        return {where: [] if "/@" in where else what[:4] for where, what in parts.items()}

    wanted = shape_of(tables)
    return [table for table in tables if frame(wanted, table) == frame(found, table)]


def render_removal(tables: Sequence[tuple[str, str]]) -> str:
    """Remove (family, name) tables, whether they exist or not."""
    return "".join(f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family, name in tables)


def _render_table(table: Table, *, is_kept: bool) -> str:
    where = f"{table.family} {table.name}"
    emptied = (f"flush {item.kind} {where} {item.name}\n" for item in table.sets if not item.is_filled)
    before = f"flush table {where}\n{''.join(emptied)}" if is_kept else render_removal([(table.family, table.name)])
    lines = [f"{before}table {where} {{"]
    for item in table.sets:
        elements = f"\n    elements = {{ {', '.join(item.elements)} }}" if item.elements else ""
        lines.append(f"  {item.kind} {item.name} {{\n    {item.type}{elements}\n  }}")
    for chain in table.chains:
        lines.append(
            f"  chain {chain.name} {{\n"
            f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy {chain.policy};"
        )
        lines += [f'    {rule.text} comment "{rule.name}"' for rule in chain.rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def shape_of(tables: Sequence[Table]) -> Shape:
    """The shape that reading back must find."""
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
        if kind not in ("chain", "rule", "set", "map") or (body["table"] != table):
            continue
        prefix = f"{body['family']} {table}/"
        if kind == "chain":
            hook = [body.get("type"), body.get("hook"), body.get("prio"), body.get("policy")]
            shape[prefix + body["name"]] = [*hook, []]
        elif kind == "rule":
            shape[prefix + body["chain"]][4].append(body.get("comment", ""))
        else:
            is_filled = {"dynamic", "timeout"} & set(body.get("flags", ()))
            elements = () if is_filled else body.get("elem", ())
            shape[f"{prefix}@{body['name']}"] = sorted(_element(element) for element in elements)
    return shape


def foreign_tables(listing: str, name: str) -> list[tuple[str, str]]:
    """(family, name) of the tables with another name in such an output."""
    tables = [entry["table"] for entry in json.loads(listing)["nftables"] if "table" in entry]
    return [(table["family"], table["name"]) for table in tables if table["name"] != name]


def _element(value: Any) -> str:
    """One element of nft's JSON in the form that we write it."""
    if isinstance(value, list):  # of a map
        return " : ".join(_element(part) for part in value)
    if isinstance(value, dict):
        if "concat" in value:
            return " . ".join(_element(part) for part in value["concat"])
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(_element(part) for part in value["range"])
        if "elem" in value:
            return _element(value["elem"]["val"])
    return str(value)


NAMED = 3  # differences that are told one by one


def describe(found: Sequence[str]) -> str:
    """Differences on one line, "" for none."""
    more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{', '.join(found[:NAMED])}{more}"


def differences(wanted: Shape, found: Shape) -> list[str]:
    """The differences between two shapes, in words; empty when there are none."""
    return [
        f"{where}: {'missing' if where not in found else 'unexpected' if where not in wanted else 'changed'}"
        for where in sorted({*wanted, *found})
        if wanted.get(where) != found.get(where)
    ]
