"""`hutch doctor --fix` on a host without systemd: what it finds and repairs, and that it takes back just that. What it
does beside Docker, ufw, NetworkManager and the like is tried in tests/systemd/test_coexistence.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.spec.names import Layout
from tests.host.instance import Instance, Target
from tests.host.residue import observe
from tests.support.world import HOST, HOST6, HOST_PORT, LAN, PUBLIC, ROUTER

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
DROPPING = """
table ip filter {
  chain FORWARD { type filter hook forward priority 0; policy drop; }
}
"""


def states(instance: Instance, *options: str) -> dict[str, str]:
    found = json.loads(instance.hutch("doctor", "--json", *options, check=False).stdout)
    return {item["name"]: item["state"] for item in found}


def means(instance: Instance) -> dict[str, str]:
    found = json.loads(instance.hutch("doctor", "--json", check=False).stdout)
    return {item["name"]: item["means"] for item in found}


def test_aliases_come_and_go_and_nothing_else(instance: Instance) -> None:
    instance.declare("container", web="")
    instance.hutch("up", "--no-start")
    before = observe()["etc"]
    assert "+ write /etc/profile.d/" in instance.hutch("doctor", "--fix", check=False).stderr
    written = observe()["etc"]
    assert written != before
    again = instance.hutch("doctor", "--fix", check=False).stderr
    assert again == "nothing to repair\n" or again.startswith(
        "+ boot a guest under KVM: "
    )  # with an image for machines
    assert len(again.splitlines()) == 1
    assert observe()["etc"] == written
    instance.hutch("doctor", "--undo")
    assert observe()["etc"] == before
    assert "nothing to take back" in instance.hutch("doctor", "--undo").stderr
    instance.hutch("aliases", "--install")
    instance.hutch("doctor", "--fix", check=False)
    instance.hutch("doctor", "--undo")  # they are there at somebody else's word
    assert observe()["etc"] == written


def test_forwarding_that_somebody_turned_off(instance: Instance) -> None:
    instance.declare("container", web="")
    instance.up()
    FORWARDING.write_text("0")
    assert states(instance)["forwarding"] == "conflict"
    assert instance.hutch("doctor", check=False).returncode == 1
    assert "+ sysctl -w net.ipv4.ip_forward=1" in instance.hutch("doctor", "--fix", check=False).stderr
    assert states(instance)["forwarding"] == "ok"
    assert instance.inside("web", "curl", "-sS", "--max-time", "10", f"http://{PUBLIC}/").stdout


def test_another_way_out(instance: Instance) -> None:
    """The host's way to the Internet gets another name, as when a cable is left for the radio."""
    instance.declare("container", web="")
    instance.up()
    rename("eth0", "wan7")
    try:
        assert means(instance)["way out"] == "by wan7; workspaces follow when that changes"
        assert instance.inside("web", "curl", "-sS", "--max-time", "10", f"http://{PUBLIC}/").stdout
        assert not any(instance.probe("web", [Target("lan", LAN, 80), Target("host", HOST, HOST_PORT)]).values())
    finally:
        rename("wan7", "eth0")
    assert means(instance)["way out"] == "by eth0; workspaces follow when that changes"


def rename(old: str, new: str) -> None:
    for command in (
        f"link set {old} down",
        f"link set {old} name {new}",
        f"link set {new} up",
        f"route replace default via {ROUTER} dev {new}",
        f"-6 address replace {HOST6}/64 dev {new} nodad",
    ):
        subprocess.run(["ip", *command.split()], check=True, timeout=10)


@contextmanager
def somebody_with(address: str) -> Iterator[None]:
    """Another interface of the host's with that address, and the route that comes with it."""
    for words in ("add other0 type bridge", "set other0 up"):
        subprocess.run(["ip", "link", *words.split()], check=True, timeout=10)
    try:
        subprocess.run(["ip", "address", "add", address, "dev", "other0"], check=True, timeout=10)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", "other0"], check=True, timeout=10)


@contextmanager
def somebody_beyond(network: str) -> Iterator[None]:
    """A way to that network, as a VPN has it."""
    way = (network, "via", ROUTER)
    subprocess.run(["ip", "route", "add", *way], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "delete", *way], check=True, timeout=10)


def test_addresses_that_somebody_else_has(instance: Instance) -> None:
    instance.declare("container", web="")
    assert states(instance)["addresses"] == "ok"
    address = f"{instance.gateway}/24"
    with somebody_with(address):
        (found,) = [
            item
            for item in json.loads(instance.hutch("doctor", "--json", check=False).stdout)
            if item["name"] == "addresses"
        ]
        assert found["state"] == "conflict"
        assert f"overlaps {address} of other0" in found["means"]
        assert 'subnet = "192.168.' in found["do"]
        for command in ("plan", "up"):
            refused = instance.hutch(command, check=False)
            assert refused.returncode == 1
            assert "which this host already uses" in refused.stderr
        assert not (instance.state / "network.json").exists() and instance.names() == []


def test_addresses_that_somebody_else_has_taken_meanwhile(instance: Instance) -> None:
    """As while the host was off. What wants another network, or none, is not held up by the one that cannot be."""
    instance.declare("container", web="", other="")
    instance.up()
    layout = Layout(instance.state, instance.run)
    instance.hutch("stop", "web", "other")
    subprocess.run(["ip", "link", "delete", layout.uplink_host], check=True, timeout=10)
    with somebody_beyond(instance.subnet):
        refused = instance.hutch("start", "web", check=False)
        assert refused.returncode == 1
        assert "which this host already uses" in refused.stderr
        instance.file.write_text(instance.file.read_text().replace(instance.subnet, "192.168.219.0/24"))
        instance.up()
        assert instance.ssh("web", "uname -n").stdout == "web\n"
    instance.hutch("stop", "web", "other")
    subprocess.run(["ip", "link", "delete", layout.uplink_host], check=True, timeout=10)
    with somebody_beyond("192.168.219.0/24"):
        assert instance.hutch("start", "web", check=False).returncode == 1
        instance.hutch("uninstall", "--yes")


@pytest.mark.skipif(shutil.which("iptables") is not None, reason="it is about a host without iptables")
def test_a_repair_that_fails_holds_up_no_other(instance: Instance) -> None:
    instance.declare("container", web="")
    instance.up()
    subprocess.run(["nft", "--file", "-"], input=DROPPING, text=True, check=True, timeout=10)
    try:
        assert states(instance)["iptables"] == "conflict"
        FORWARDING.write_text("0")
        result = instance.hutch("doctor", "--fix", check=False)
        assert result.returncode == 1
        assert "hutch: iptables is not installed" in result.stderr
        assert "+ sysctl -w net.ipv4.ip_forward=1" in result.stderr
        instance.hutch("doctor", "--undo")
        assert not Layout(instance.state, instance.run).repairs.exists()
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "filter"], check=True, timeout=10)


def test_who_is_not_root_sees_what_anybody_may(instance: Instance) -> None:
    found = json.loads(instance.hutch("doctor", "--json", check=False, as_user="alice").stdout)
    by_name = {item["name"]: item for item in found}
    assert by_name["other firewalls"]["state"] == "unknown"
    assert by_name["addresses"]["state"] == "ok"
    result = instance.hutch("doctor", "--fix", check=False, as_user="alice")
    assert (result.returncode, "needs root" in result.stderr) == (1, True)


def test_a_damaged_note_is_told_and_stops_no_purge(instance: Instance) -> None:
    instance.declare("container", web="")
    instance.hutch("up", "--no-start")
    instance.hutch("doctor", "--fix", check=False)
    note = Layout(instance.state, instance.run).repairs
    note.write_bytes(note.read_bytes()[:-20])
    assert f"{note} is damaged" in instance.hutch("doctor", "--undo", check=False).stderr
    result = instance.hutch("rm", "--purge", "web")
    assert "this stays" in result.stdout + result.stderr
