"""Who a guest is, from what was declared and allocated: the same for every backend."""

from __future__ import annotations

import ipaddress

from hutch.backends.launch import Surroundings
from hutch.guest.credentials import Identity
from hutch.spec import names
from hutch.spec.model import Workspace


def guest_uid(owner: int) -> int:
    """The login user's uid inside: the owner's own, where it is a person's; 1000 for the rest, mapped to the owner."""
    return owner if owner in names.GUEST_UIDS else 1000


def identify(name: str, workspace: Workspace, host: Surroundings, match: str) -> Identity:
    """`match` is the line of a .network file that finds the guest's interface."""
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
    )
