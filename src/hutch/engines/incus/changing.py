"""Changes of a workspace that runs on a server, without a restart.

Each group of keys is one request, so what the server refuses is told by its keys, and the others are in force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hutch.backends.incus import PROXY
from hutch.engines.incus.homes import ensure_home, find_homes
from hutch.engines.incus.observing import Found
from hutch.engines.incus.turning import Parts, edit, own, refresh_identity
from hutch.errors import HutchError
from hutch.plan.actions import Wanted
from hutch.plan.planner import differences
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.backends.incus import Instance
    from hutch.engines.incus.client import Client

SETTINGS = {"vcpus": "limits.cpu", "memory": "limits.memory", "autostart": "boot.autostart"}
"""Keys of hutch.toml -> keys of an instance's configuration."""
INSIDE = frozenset({"env", "authorized_keys", "share_with"})


def apply(client: Client, record: Record, wanted: Instance) -> dict[str, str]:
    """Put in force what differs between what was booted and what is wanted. Returns key -> why not, for those keys that
    are not in force. Raises HutchError where the workspace does not run."""
    assert record.booted is not None
    old = Wanted(record.booted.workspace, record.booted.image)
    changed = {change.key for change in differences(old, Wanted(record.wanted, record.booted.image))}
    failures: dict[str, str] = {}
    for keys, action in _actions(client, record, wanted):
        if concerned := changed & keys:
            try:
                action()
            except HutchError as error:
                failures |= dict.fromkeys(concerned, error.brief)
    return failures


def _actions(client: Client, record: Record, wanted: Instance) -> list[tuple[frozenset[str], Callable[[], None]]]:
    """The actions in their order, each with the keys that it puts in force; other keys need none."""

    def settings(key: str) -> Callable[[], None]:
        return lambda: change_config(client, record, wanted, SETTINGS[key])

    return [
        *((frozenset({key}), settings(key)) for key in SETTINGS),
        (frozenset({"disk"}), lambda: change_sizes(client, record, wanted)),
        (frozenset({"publish"}), lambda: change_ports(client, record, wanted)),
        (INSIDE, lambda: refresh_identity(client, wanted)),
    ]


def running(client: Client, record: Record) -> Found:
    """The workspace's instance, which is to run."""
    return check_running(record, own(client, record))


def check_running(record: Record, found: Found | None) -> Found:
    if found is None or found.status != "Running":
        raise HutchError(f"{record.name} does not run any more", resolution=f"`hutch up {record.name}` starts it")
    return found


def edit_running(client: Client, record: Record, change: Callable[[Found], Parts]) -> None:
    """Change the workspace's instance, which is to run. See turning.edit."""
    check_running(record, edit(client, record, lambda found: change(check_running(record, found))))


def change_config(client: Client, record: Record, wanted: Instance, key: str) -> None:
    """Set one key of the configuration, or take it away."""

    def changed(found: Found) -> Parts:
        config = {name: value for name, value in found.config.items() if name != key}
        if key in wanted.config:
            config[key] = wanted.config[key]
        return config, found.devices

    edit_running(client, record, changed)


def change_sizes(client: Client, record: Record, wanted: Instance) -> None:
    """Set the size of the root and of the home."""

    def changed(found: Found) -> Parts:
        others = {name: value for name, value in found.devices.get("root", {}).items() if name != "size"}
        size = {name: value for name, value in wanted.devices["root"].items() if name == "size"}
        return found.config, {**found.devices, "root": {**others, **size}}

    edit_running(client, record, changed)
    home = find_homes(client, {record.name: record}).get(record.name)
    if home is None:
        raise HutchError(f"the home of {record.name} is not there")
    ensure_home(client, record.name, wanted.home, home, home.member)


def change_ports(client: Client, record: Record, wanted: Instance) -> None:
    """Publish exactly the ports that are to be published."""

    def changed(found: Found) -> Parts:
        return found.config, {**_without_ports(found.devices), **_ports(wanted.devices)}

    edit_running(client, record, changed)


def _ports(devices: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    return {name: device for name, device in devices.items() if device.get("type") == PROXY}


def _without_ports(devices: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    return {name: device for name, device in devices.items() if device.get("type") != PROXY}
