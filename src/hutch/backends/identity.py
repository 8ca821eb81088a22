"""The identity of a guest, from what was declared and allocated: the same for every backend."""

from __future__ import annotations

import ipaddress

from hutch.guest.context import render_context
from hutch.guest.credentials import Identity
from hutch.spec import names
from hutch.spec.model import WorkspaceSpec, has_effect
from hutch.spec.record import Decision

SUBORDINATES = range(10_000, names.GUEST_UIDS.stop)  # below are people, above are services of systemd's


def guest_uid(owner: int) -> int:
    """The login user's uid inside: the owner's own, where it is a person's; 1000 for the rest, mapped to the owner."""
    return owner if owner in names.GUEST_UIDS else 1000


def subordinates(uid: int) -> tuple[tuple[int, int], ...]:
    """(the first, how many) uids inside that a login user may hand out, beside its own. They are of the workspace's own
    range, so there are fewer than the 65,536 that people are used to."""
    ranges = range(SUBORDINATES.start, uid), range(max(uid + 1, SUBORDINATES.start), SUBORDINATES.stop)
    return tuple((ids.start, len(ids)) for ids in ranges if ids)


def identify(
    name: str,
    workspace: WorkspaceSpec,
    subnet: str,
    keys: tuple[str, ...],
    match: str,
    decisions: tuple[Decision, ...] = (),
) -> Identity:
    """The identity of a workspace's guest. `subnet` is the workspaces' network, `keys` are the public keys of hutch's
    own that open it, `match` is the line of a .network file that finds the guest's interface, and `decisions` are those
    of people about names."""
    assert workspace.ip is not None and isinstance(workspace.owner, int)
    return Identity(
        hostname=name,
        user=workspace.user,
        uid=guest_uid(workspace.owner),
        shell=workspace.shell,
        address=workspace.ip,
        prefix=ipaddress.IPv4Network(subnet).prefixlen,
        gateway=names.gateway(subnet),
        authorized_keys=(*(workspace.authorized_keys or ()), *keys),
        env=workspace.env,
        match=match,
        context=render_context(name, workspace, decisions, is_machine=workspace.type == "vm"),
        subordinates=subordinates(guest_uid(workspace.owner))
        if workspace.nesting and has_effect("nesting", workspace.type)
        else (),
    )
