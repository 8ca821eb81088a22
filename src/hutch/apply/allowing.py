"""The ceiling of members at work: who is bound by it here, and the plans that are refused for it.

Reads /etc/hutch/policy.toml and the user database, changes nothing. The rules are in spec/allowance and plan/totals.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence

from hutch.apply.restoring import sound_network
from hutch.errors import HutchError, Problem, UsageError
from hutch.files import real_path
from hutch.host.identity.user_view import visible_views
from hutch.plan.actions import Plan
from hutch.plan.decide import Facts
from hutch.plan.totals import check_totals, running_of
from hutch.runtime.observe import observe
from hutch.spec.allowance import Allowance, Look, ceiling_policy, check_allowance, is_entry_within
from hutch.spec.ceiling import POLICY_FILE, ceiling_of_host
from hutch.spec.member import concerned, has_entry, member_of
from hutch.spec.model import Config, Network
from hutch.spec.names import Layout
from hutch.spec.owner import owner_of_path
from hutch.spec.record import Record
from hutch.spec.refusing import refuse_files
from hutch.spec.validation import dotted


def find_allowance(layout: Layout, file: str | None = None) -> Allowance | None:
    """What the member has who is bound by it in this process, for a hutch.toml if there is one; None for everybody
    else. Raises ConfigError where the host's file says it wrongly.

    Without the entry point, a member's changes go through all of root, under no ceiling, so their plans are as root's.
    """
    member = concerned(os.geteuid()) if os.geteuid() == 0 or has_entry() else None
    if member is None:
        return None
    is_own = file is None or owner_of_path(file) == member.uid
    return Allowance(member, ceiling_of_host(), network_of_host(layout) or usual_network(), is_own)


def policy_problem() -> HutchError | None:
    """What is wrong with the host's file, for which nothing is allowed to members; None where nothing is."""
    try:
        ceiling_of_host()
    except HutchError as error:
        return error
    return None


def usual_network() -> Network | None:
    """The network of a host where none was set up yet, as far as one can tell: without root, one may not see it."""
    return Network() if os.geteuid() == 0 else None


def network_of_host(layout: Layout) -> Network | None:
    """The network as it was last set up, as far as the caller may see it: a file in a checkout, one of `hutch run`'s,
    and a member's do not change it."""
    if os.geteuid() == 0:
        record = sound_network(layout)
        return None if record is None else record.network
    return next((view.network for view in visible_views(layout).values() if view.network is not None), None)


def refuse_above(config: Config, plan: Plan, facts: Facts, allowance: Allowance) -> None:
    """Refuse a member's plan with all that is above the ceiling: what its workspaces are, since the ceiling may have
    been lowered after the file was loaded, and what they come to together. Raises ConfigError."""
    wanted = {name: target.workspace for name, target in plan.wanted.items()}
    removed = [action.workspace for action in plan.actions if action.action == "remove"]
    running = running_of(facts.records, facts.observe, [action.workspace for action in plan.actions if action.stops])
    is_member = functools.cache(lambda uid: member_of(uid) is not None)
    problems = [
        *check_declared(config, list(wanted), allowance),
        *check_totals(allowance, wanted, removed, facts.records, is_member, running),
    ]
    uses = {name: workspace.use for name, workspace in wanted.items()}
    refuse_files([(config.file, problem) for problem in problems], uses)


def check_declared(config: Config, names: Sequence[str], allowance: Allowance) -> Iterator[Problem]:
    """The problems of workspaces as they are declared."""
    look = Look(functools.cache(real_path), owner_of_path)
    for name in names:
        for finding in check_allowance(
            config.workspaces[name], allowance, look, functools.partial(place_in, "workspaces", name)
        ):
            yield Problem(finding.message, dotted(finding.path), "", finding.hint)


def place_in(*path: str | int) -> tuple[str | int, ...]:
    return path


def refuse_brought(layout: Layout, record: Record, records: Mapping[str, Record]) -> None:
    """Refuse to bring back a workspace with which a member would have too much. Raises HutchError."""
    allowance = find_allowance(layout)
    if allowance is None:
        return
    is_member = functools.cache(lambda uid: member_of(uid) is not None)
    running = running_of(records, functools.partial(observe, layout))
    problems = list(check_totals(allowance, {record.name: record.wanted}, (), records, is_member, running))
    if problems:
        raise HutchError(
            f"{record.name} cannot be brought back: it would be above the ceiling of members",
            details="\n".join(map(str, problems)),
        )


def refuse_opening(layout: Layout, name: str, entry: str) -> None:
    """Refuse a name that a member allows beyond what the ceiling lets any workspace of theirs reach."""
    allowance = find_allowance(layout)
    if allowance is not None and not is_entry_within(entry, ceiling_policy(allowance.ceiling)):
        raise UsageError(
            f"{entry} is not {name}'s to reach: {allowance.ceiling.says('egress')}",
            resolution=f"root raises the ceiling of members in {POLICY_FILE}",
        )
