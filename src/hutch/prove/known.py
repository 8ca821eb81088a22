"""All probes of a workspace, and the names that they have, so that one which nobody knows is refused before anything is
started. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from hutch.errors import UsageError
from hutch.prove.local import CONVERSATION, local_probes
from hutch.prove.model import PROMISES, Ground, Outside, Probe
from hutch.prove.network import network_probes
from hutch.spec.entries import Publish
from hutch.spec.policy import Policy

SAMPLE = Ground(
    workspace="web",
    type="container",
    is_machine=False,
    ip="192.168.83.2",
    mac="02:4b:5e:57:f6:eb",
    user="dev",
    uid=1000,
    token="0123456789abcdef",
    table="hutch",
    bridge="hutch0",
    gateway="192.168.83.1",
    gateway_mac="02:00:00:00:00:01",
    uplink=("192.168.84.1", "192.168.84.2"),
    uplink_macs=("02:00:00:00:00:02", "02:00:00:00:00:03"),
    host_listeners=(("198.51.100.2", 40000), ("192.168.77.1", 40000)),
    host_port=40000,
    resolvers=("10.53.0.1", "8.8.8.8"),
    resolves_by_tcp=True,
    hostname="host.example",
    state="/var/lib/hutch",
    marker="/run/hutch/marker.0123456789abcdef",
    target=("public.example", 80),
    other=("lab", "192.168.83.3"),
    builder="192.168.83.254",
    alone="fe:ff:ff:ff:ff:01",
    plain="fe:ff:ff:ff:ff:02",
    outside=Outside("192.0.2.1", "02:00:00:00:00:04", False, "192.0.2.2", "02:00:00:00:00:05", 50000),
    published=(Publish("127.0.0.1", 8080, 4242, "tcp"), Publish("", 8081, 4242, "tcp")),
    boot_id="00000000-0000-0000-0000-000000000000",
)
"""The ground of a workspace that does not exist. Probes depend on the workspace's type and policy, and on addresses."""
OF_ADDRESSES = r"(host|host-ssh|opened)-[0-9.]+|(host-[0-9.]+|resolver|listen|gateway|resolver-port)-[0-9]{1,5}"


POLICIES = (Policy(), Policy("none"))


def probes_of(ground: Ground, only: Collection[str] = ()) -> tuple[Probe, ...]:
    """The probes of a workspace: those of the promises that `only` numbers and those that it names; all without."""
    probes = (*network_probes(ground), *local_probes(ground))
    return tuple(probe for probe in probes if not only or {str(probe.promise), probe.name} & set(only))


def check_known(only: Iterable[str]) -> None:
    """Raise UsageError for a word that is neither the number of a promise nor the name of a probe."""
    known = {*map(str, PROMISES), CONVERSATION.name}
    for ground in (replace(SAMPLE, is_machine=kind, policy=policy) for kind in (False, True) for policy in POLICIES):
        known |= {probe.name for probe in probes_of(ground)}
    unknown = [word for word in only if word not in known and not re.fullmatch(OF_ADDRESSES, word, re.ASCII)]
    if unknown:
        raise UsageError(
            f"there is no promise and no probe {unknown[0]!r}",
            resolution=f"--only takes the name of a probe, or the number of a promise: {', '.join(map(str, PROMISES))}",
        )
