"""Makes a list to paste of the records. Pure.

The names come from inside the workspace, so one is only suggested when it is a name and nothing else that a list may
hold: not a pattern, not a network. Comments tell what the list would not open.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from hutch.egress.record import DENIED, NOT_LISTED, EgressEvent
from hutch.spec.decisions import Ruled, is_denied, is_listed, ruled
from hutch.spec.entries import Egress
from hutch.spec.field_types import Invalid
from hutch.spec.model import WorkspaceSpec
from hutch.spec.policy import Domain, Policy, Reach, domain_of, policy_of
from hutch.spec.ranges import is_never, is_private
from hutch.spec.record import Decision

SIBLINGS = 3
"""The least number of names under one parent that become one entry."""
MOST_PORTS = 2
"""The most ports of a name; with more, an entry opens all ports."""
NAMED = 8
"""The most names in a comment of what is left out."""

LISTABLE = ("", NOT_LISTED, DENIED)
"""Reasons of refusals that a list can open; a no may have been taken back."""
CLOSED = "private, or closed to every workspace"
NO_NAME = "not a name that a list can hold"
NO_PORT = "a protocol without ports, which only an entry without a port opens"


def suggest(records: Iterable[EgressEvent], workspace: WorkspaceSpec, decisions: Sequence[Decision] = ()) -> str:
    """A TOML document that sets `egress`: the entries of the workspace's list as they are, names that people have
    allowed for good, then destinations beyond them that were used, or asked for in vain. Comments say what is left out,
    which includes what people have denied."""
    everything = list(records)
    policy = policy_of(workspace)
    lasting = [each for each in decisions if each.is_allowed and each.until is None]
    allowed = tuple(domain_of(each.host) for each in lasting if not is_listed(policy, each.host))
    policy = replace(policy, domains=(*policy.domains, *allowed))
    seen = _Seen(policy, names_by_address(everything), ruled(decisions))
    for record in everything:
        seen.add(record)
    denied = [domain_of(each.host) for each in decisions if not each.is_allowed]
    folded, remarks = _fold(seen.names, denied)
    single = [Domain(name, False, port) for name, ports in seen.names.items() for port in entry_ports(ports)]
    domains = [*folded, *(item for item in single if not _covers(folded, item.name, item.port))]
    reaches = [Reach(f"{address}/32", port) for address, ports in seen.addresses.items() for port in entry_ports(ports)]
    present = workspace.egress if isinstance(workspace.egress, tuple) else ()
    entries = (
        *present,
        *map(_words, allowed),
        *map(_words, sorted(domains, key=_order)),
        *map(_words, sorted(reaches, key=_order)),
    )
    comments = [*remarks, *(f"left out, {why}: {_some(what)}" for why, what in sorted(seen.left_out.items()))]
    if not everything:
        comments.append("nothing has been recorded yet")
    if seen.lost:
        comments.append(f"{seen.lost} more were not recorded, so the list may lack something")
    lines = [f"# {comment}" for comment in comments]
    body = ["egress = [", *(f'    "{entry}",' for entry in entries), "]"] if entries else ["egress = []"]
    return "\n".join([*lines, *body, ""])


def names_by_address(records: Iterable[EgressEvent]) -> dict[str, set[str]]:
    """The names through which addresses were learned. Several may lead to one address, and a connection to it does not
    say by which of them it came: a list needs them all."""
    found: dict[str, set[str]] = {}
    for record in records:
        if record.name and record.address and (record.what == "connection" or record.verdict != "refused"):
            found.setdefault(record.address, set()).add(one_form(record.name))
    return found


def one_form(name: str) -> str:
    return name.removesuffix(".").lower()


class _Seen:
    """The destinations that a list would have to open beyond the present one: ports by name and by address, none where
    a name was only asked for and refused; and those that no list is to open, by the reason."""

    def __init__(self, policy: Policy, names_of: Mapping[str, Collection[str]], decided: tuple[Ruled, ...]) -> None:
        self._policy = policy
        self._decided = decided
        self._names_of = names_of
        self.names: dict[str, set[int]] = {}
        self.addresses: dict[str, set[int]] = {}
        self.left_out: dict[str, set[str]] = {}
        self.lost = 0

    def add(self, record: EgressEvent) -> None:
        if record.verdict == "lost":
            self.lost += record.count
        elif record.what == "connection" and record.address is not None:
            self._add_connection(record, record.address)
        elif record.what == "dns" and record.verdict == "refused" and record.name:
            self._add_refused(record, one_form(record.name))

    def _add_refused(self, record: EgressEvent, name: str) -> None:
        if any(item.covers(name) for item in self._policy.domains):
            return
        if self._is_denied(name, None):
            self._leave_out(DENIED, name)
        elif record.why not in LISTABLE:
            self._leave_out(record.why, name)
        elif is_plain_name(name):
            self.names.setdefault(name, set())
        else:
            self._leave_out(NO_NAME, name)

    def _add_connection(self, record: EgressEvent, address: str) -> None:
        port = record.port or None
        is_denied = record.verdict == "refused" and record.why not in LISTABLE
        if is_denied or is_private(address) or is_never(address):
            if not self._is_open(address, port):
                self._leave_out(CLOSED, _place(record, record.name or address))
            return
        names = self._names_of.get(address, ())
        for name in names:
            if self._is_denied(name, port):
                self._leave_out(DENIED, _place(record, name))
            elif not _covers(self._policy.domains, name, port):
                self._add_use(self.names, name, record, is_sound=is_plain_name(name))
        if not names and not self._is_open(address, port):
            self._add_use(self.addresses, address, record)

    def _add_use(self, uses: dict[str, set[int]], what: str, record: EgressEvent, *, is_sound: bool = True) -> None:
        if not is_sound:
            self._leave_out(NO_NAME, _place(record, what))
        elif not record.port:
            self._leave_out(NO_PORT, _place(record, what))
        else:
            uses.setdefault(what, set()).add(record.port)

    def _is_denied(self, name: str, port: int | None) -> bool:
        return is_denied(self._decided, name, port, 0.0)

    def _is_open(self, address: str, port: int | None) -> bool:
        """Whether a network of the present list opens an address."""
        where = ipaddress.IPv4Address(address)
        return any(
            where in ipaddress.IPv4Network(reach.network) and reach.port in (None, port)
            for reach in self._policy.networks
        )

    def _leave_out(self, why: str, what: str) -> None:
        self.left_out.setdefault(why, set()).add(what)


def _place(record: EgressEvent, what: str) -> str:
    return f"{what}:{record.port}" if record.port else f"{what} ({record.protocol})"


def is_plain_name(name: str) -> bool:
    """Whether a list may hold a name, and takes it for that one name."""
    try:
        return not set(name) & set("*:/") and Egress().parse_destination(name) == name
    except Invalid:
        return False


def entry_ports(ports: Collection[int]) -> Sequence[int | None]:
    """The ports of the entries that open them: None for all."""
    return sorted(ports) if 1 <= len(ports) <= MOST_PORTS else [None]


def _covers(domains: Iterable[Domain], name: str, port: int | None) -> bool:
    return any(item.covers(name) and item.port in (None, port) for item in domains)


def _fold(names: dict[str, set[int]], denied: Collection[Domain]) -> tuple[list[Domain], list[str]]:
    """Entries for siblings that were used at the same ports, so that no port is opened that none of them needs, nor a
    name that somebody has denied; and what each stands for."""
    families: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, ports in names.items():
        parent = name.partition(".")[2]
        opens_denied = any(Domain(parent, True, None).contains(each) for each in denied)
        if "." in parent and not is_registry(parent) and not opens_denied:
            families.setdefault((parent, tuple(sorted(ports))), []).append(name)
    found, remarks = [], []
    for (parent, shared), children in sorted(families.items()):
        if len(children) >= SIBLINGS:
            found += [Domain(parent, True, port) for port in entry_ports(shared)]
            remarks.append(f"*.{parent} stands for {_some(children)}")
    return found, remarks


def is_registry(parent: str) -> bool:
    """Whether the names below a parent are rather different people's, as under co.uk and com.au. This is a guess: there
    are others (github.io, say), so a person has to look at what an entry stands for."""
    second, _, top = parent.rpartition(".")
    return len(top) == 2 and len(second) <= 3 and "." not in second


def _order(item: Domain | Reach) -> tuple[object, ...]:
    """Names by their labels from the right, so that what belongs together stands together; addresses by number."""
    port = item.port or 0
    if isinstance(item, Reach):
        return int(ipaddress.IPv4Network(item.network).network_address), port
    return item.name.split(".")[::-1], item.is_wildcard, port


def _words(item: Domain | Reach) -> str:
    where = item.network if isinstance(item, Reach) else f"{'*.' if item.is_wildcard else ''}{item.name}"
    return where if item.port is None else f"{where}:{item.port}"


def _some(what: Collection[str]) -> str:
    """A few of the words, in order, and the number of the rest."""
    ordered = sorted(what)
    more = f", and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return f"{', '.join(ordered[:NAMED])}{more}"
