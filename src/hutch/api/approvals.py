"""What workspaces were refused by name and may want: from their records, for whoever may see them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hutch.egress.approvals import Refusal, refusals
from hutch.errors import UsageError
from hutch.spec.decisions import why_not
from hutch.spec.policy import policy_of

if TYPE_CHECKING:
    from hutch.api.engine import Hutch


def refusals_of(hutch: Hutch, name: str | None) -> list[Refusal]:
    """The refusals of one workspace, or of all that the caller may see. Raises UsageError for one that is refused
    nothing by name."""
    found: list[Refusal] = []
    for each, record in (hutch.records() if name is None else {name: hutch.record(name)}).items():
        policy = policy_of(record.wanted)
        if not (why := why_not(each, record.wanted, policy)):
            found += refusals(each, hutch.egress(each), policy, record.decisions, time.time())
        elif name is not None:
            raise UsageError(why, resolution="`egress` in hutch.toml sets its network access")
    return found
