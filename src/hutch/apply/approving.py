"""`hutch allow` and `hutch deny`: a person's decision about a name, put on record and in force.

The record comes first: what the egress proxy is told follows from it, so the next command finishes what a killed one
has begun. No rule changes, so that nothing else is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from hutch.apply import reconcile
from hutch.apply.allowing import refuse_opening
from hutch.apply.live import refresh_context
from hutch.apply.recording import note
from hutch.apply.serving import endpoints_of, in_force, views_of
from hutch.audit.events import shown
from hutch.errors import HutchError, UsageError
from hutch.host.network.namespace import has_namespace
from hutch.host.services.lock import lock
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.decisions import MOST, is_listed, is_partly_listed, parse_host, why_not, with_decision
from hutch.spec.field_types import Invalid
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Decision, Record, stamp
from hutch.state import read_network, read_records, write_record


def decide(
    layout: Layout,
    name: str,
    host: str,
    find: Callable[[str], Record],
    listen: Listener,
    *,
    is_allowed: bool,
    seconds: int | None = None,
) -> Decision | None:
    """Allow or deny `host` to a workspace, for so many seconds or for good; `find` gives the record of one. None where
    its list allows that anyway. A workspace that runs has it at once."""
    entry = checked_host(host, is_allowed=is_allowed)
    with lock(layout):
        record, now = find(name), time.time()
        policy = policy_of(record.wanted)
        if why := why_not(name, record.wanted, policy):
            raise UsageError(why, resolution="`egress` in hutch.toml sets its network access")
        if is_allowed and is_listed(policy, entry):
            return None
        if is_allowed:
            refuse_opening(layout, name, entry)
        if not is_allowed and is_partly_listed(policy, entry):
            raise HutchError(
                f"{record.file} itself opens {entry}, in egress of {name}",
                resolution="take it out there, and run `hutch up`",
            )
        decision = Decision(entry, is_allowed, now, None if seconds is None else now + seconds)
        decisions = with_decision(record.decisions, decision, now)
        if len(decisions) > MOST:
            raise HutchError(
                f"{name} has {MOST} decisions on record, which is all that are kept",
                resolution=f"put the list of `hutch egress {name} --suggest` into hutch.toml, and run `hutch up`",
            )
        record = replace(record, decisions=decisions)
        write_record(layout, record)
        applied = read_network(layout)
        records = read_records(layout)
        if applied is not None:
            put_in_force(layout, applied.network, records)
        until = None if decision.until is None else stamp(decision.until)
        note(layout, name, "allowed" if is_allowed else "denied", listen, host=shown(decision.host), until=until)
        reconcile.reconcile_user_views(layout, records)
        if applied is not None and observe(layout, name).state == "running":
            tell_guest(layout, applied.network, record, listen)
    return decision


def checked_host(host: str, *, is_allowed: bool) -> str:
    """The one form of a name. Raises UsageError."""
    try:
        return parse_host(host, is_allowed=is_allowed)
    except Invalid as error:
        raise UsageError(f"{host[:80]!r} {error.message}", resolution=error.hint) from error


def put_in_force(layout: Layout, network: Network, records: Mapping[str, Record]) -> None:
    """Tell the egress proxy, where there is a network; otherwise the next start does."""
    if has_namespace(layout):
        views = views_of(layout, network, endpoints_of(in_force(layout, records), network))
        reconcile.renew_views(layout, views)
        reconcile.ensure_services(layout, network, views)


def tell_guest(layout: Layout, network: Network, record: Record, listen: Listener) -> None:
    """Have the guest's own text say so too. It opens and closes nothing, so a guest that does not take it is no failure
    of the decision."""
    try:
        refresh_context(layout, network, record)
    except HutchError as error:
        listen(record.name, "warning", f"its context file is out of date: {error.brief}")
