"""The limits and restrictions of a project, looked at before its first new instance is made.

A project that hutch made has none. An administrator may set them, or hand hutch an empty project that has them; then
Incus refuses an instance in the middle of an `up`, and what is said here comes before anything is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hutch.engines.incus.answers import found, mapping, shown, texts
from hutch.engines.incus.server import project_path
from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.backends.incus import Instance
    from hutch.engines.incus.client import Client

SIZE = re.compile(r"(\d{1,20}) ?(?:B|bytes|(?:([kKMGTPE])(i?)B))?", re.ASCII)
POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
SUMS = {"limits.cpu": "vcpus", "limits.memory": "memory", "limits.processes": ""}
"""The limits that a project has over all its instances -> the key of hutch.toml that says how much one may use."""


def check_limits(
    client: Client,
    project: Mapping[str, Any],
    instances: Mapping[str, Instance],
    present: frozenset[str],
    *,
    is_clustered: bool = False,
) -> None:
    """Raise one HutchError that names each limit and restriction of the project that these instances would meet.
    `present` are the names of those that are there."""
    config = texts(project.get("config"))
    new = {name: instance for name, instance in instances.items() if name not in present}
    problems: list[str] = []
    if config.get("restricted", "").lower() in ("true", "1", "yes", "on"):
        problems += restricted(config, instances)
        if is_clustered and new and config.get("restricted.cluster.target", "block") != "allow":
            problems.append("restricted.cluster.target forbids to choose their members")
    if new and any(key.startswith("limits.") for key in config):
        state = found(client, project_path(client.place, "state")) or {}
        problems += limited(config, mapping(state.get("resources", {}), "the state of a project"), new)
    if problems:
        raise HutchError(
            f"the Incus project {client.place.project} of {client.place.remote} does not allow these workspaces",
            details="\n".join(problems),
            resolution="ask who administers the server, or name another `project` in [engines.incus]",
        )


def restricted(config: Mapping[str, str], instances: Mapping[str, Instance]) -> Iterator[str]:
    """What a restricted project forbids of these instances, with Incus's own defaults for keys that are not set."""
    networks = [name.strip() for name in config.get("restricted.networks.access", "").split(",") if name.strip()]
    for name, instance in sorted(instances.items()):
        devices = list(instance.devices.values())
        if (
            instance.config.get("security.nesting") == "true"
            and config.get("restricted.containers.nesting", "block") == "block"
        ):
            yield f"{name}: restricted.containers.nesting forbids `nesting`"
        if _has(devices, "proxy") and config.get("restricted.devices.proxy", "block") != "allow":
            yield f"{name}: restricted.devices.proxy forbids `publish`"
        if _has(devices, "nic") and config.get("restricted.devices.nic", "managed") == "block":
            yield f"{name}: restricted.devices.nic forbids its network"
        for device in devices:
            if networks and device.get("type") == "nic" and device.get("network") not in networks:
                yield f"{name}: restricted.networks.access does not have its network, {device.get('network')}"
        if config.get("restricted.devices.disk", "managed") == "block":
            yield f"{name}: restricted.devices.disk forbids its home, which is a volume"


def _has(devices: list[Mapping[str, str]], type: str) -> bool:
    return any(device.get("type") == type for device in devices)


def limited(
    config: Mapping[str, str], resources: Mapping[str, Any], instances: Mapping[str, Instance]
) -> Iterator[str]:
    """The limits of a project that these new instances would pass, by what is in use now."""
    for key, resource in (("limits.instances", "instances"), ("limits.containers", "containers")):
        if key in config and (count := _size(config[key])) is not None:
            used = _used(resources, resource)
            if used + len(instances) > count:
                yield f"{key} is {count}: {used} are there, and {len(instances)} would come"
    for key, ours in SUMS.items():
        if key not in config:
            continue
        unbound = sorted(name for name, instance in instances.items() if key not in instance.config)
        if unbound:
            hint = f": say `{ours}` in hutch.toml" if ours else ""
            yield f"{key} is {shown(config[key])}, so each needs a limit of its own{hint}: {', '.join(unbound)}"
            continue
        limit, used = _size(config[key]), _used(resources, key.removeprefix("limits."))
        wanted = sum(_size(instance.config[key]) or 0 for instance in instances.values())
        if limit is not None and used + wanted > limit:
            yield f"{key} is {limit}: {used} are in use, and {wanted} would come"
    if "limits.disk" in config:
        unbound = sorted(name for name, instance in instances.items() if "size" not in instance.devices.get("root", {}))
        if unbound:
            yield f"limits.disk is {shown(config['limits.disk'])}, so each workspace needs `disk`: {', '.join(unbound)}"


def _used(resources: Mapping[str, Any], name: str) -> int:
    known = resources.get(name)
    used = known.get("usage") if isinstance(known, dict) else None
    return used if isinstance(used, int) else 0


def _size(value: str) -> int | None:
    """Bytes of "4GiB", or the number of "4"; None for a text of another form, which is the server's to judge."""
    found = SIZE.fullmatch(value)
    if found is None:
        return None
    base = 1024 if found[3] else 1000
    return int(found[1]) * (base ** POWERS[found[2]] if found[2] else 1)
