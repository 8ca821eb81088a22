"""Ways that `doctor --fix` opened in others' firewalls, opened again where they have been lost: by a reboot, say.
Imports stay few: starts wait for it.
"""

from __future__ import annotations

from contextlib import suppress

from hutch.errors import HutchError
from hutch.host.doctor.repairs import is_made, read_made
from hutch.host.network.foreign_firewalls import check_foreign_firewalls
from hutch.host.services.lock import host_lock
from hutch.run import run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout


def repeat_repairs(layout: Layout, network: Network, listing: str) -> None:
    """Repeat only noted repairs, and only where something is in the way. `plan` and `status` tell of a failed one as
    not repaired yet; it holds up no other. The caller holds the lock."""
    host_end, _ = names.uplink_addresses(network.uplink)
    try:
        steps = read_made(layout).steps
    except HutchError:
        return
    for obstacle in check_foreign_firewalls(listing, layout.uplink_host, host_end):
        with suppress(HutchError), host_lock():
            for step in obstacle.repair:
                if step in steps and not is_made(step):
                    run(step.make, timeout=60.0)
