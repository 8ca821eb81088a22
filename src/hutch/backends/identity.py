"""The identity of a guest, from what was declared and allocated: the same for every backend."""

from __future__ import annotations

import ipaddress

from hutch.backends.launch import Surroundings
from hutch.guest.credentials import Identity
from hutch.spec import names
from hutch.spec.model import WorkspaceSpec, has_effect

SUBORDINATES = range(10_000, names.GUEST_UIDS.stop)  # below are people, above are services of systemd's


def guest_uid(owner: int) -> int:
    """The login user's uid inside: the owner's own, where it is a person's; 1000 for the rest, mapped to the owner."""
    return owner if owner in names.GUEST_UIDS else 1000


def subordinates(uid: int) -> tuple[tuple[int, int], ...]:
    """(the first, how many) uids inside that a login user may hand out, beside its own. They are of the workspace's own
    range, so there are fewer than the 65,536 that people are used to."""
    ranges = range(SUBORDINATES.start, uid), range(max(uid + 1, SUBORDINATES.start), SUBORDINATES.stop)
    return tuple((ids.start, len(ids)) for ids in ranges if ids)


def identify(name: str, workspace: WorkspaceSpec, host: Surroundings, match: str) -> Identity:
    """The identity of a workspace's guest. `match` is the line of a .network file that finds the guest's interface."""
    assert workspace.ip is not None and isinstance(workspace.owner, int)
    return Identity(
        hostname=name,
        user=workspace.user,
        uid=guest_uid(workspace.owner),
        shell=workspace.shell,
        address=workspace.ip,
        prefix=ipaddress.IPv4Network(host.network.subnet).prefixlen,
        gateway=names.gateway(host.network.subnet),
        authorized_keys=(*(workspace.authorized_keys or ()), *host.keys),
        env=workspace.env,
        match=match,
        subordinates=subordinates(guest_uid(workspace.owner))
        if workspace.nesting and has_effect("nesting", workspace.type)
        else (),
    )
