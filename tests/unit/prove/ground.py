"""A workspace that is not there, to make probes for."""

from __future__ import annotations

from hutch.prove.model import Ground, Outside
from hutch.spec.entries import Publish

GROUND = Ground(
    workspace="web",
    type="container",
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
    host_addresses=("198.51.100.2", "192.168.77.1"),
    host_port=40000,
    resolvers=("10.53.0.1", "8.8.8.8"),
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
