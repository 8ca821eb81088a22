"""hutch beside those who also have a say in a host's network. Whatever they do, a workspace reaches what it may, at
once or after the repair that `hutch plan` names, and what it must not reach stays out of its reach.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hutch.host.strangers import Obstacle, check_strangers
from hutch.spec.names import Places
from tests.host.instance import Instance, Target
from tests.support.world import CGNAT, HOST, HOST_LAN, HOST_PORT, LAN, METADATA, PUBLIC, PUBLIC_NAME, World
from tests.systemd.conftest import call, open_instance

BLOCKED = [
    Target("metadata", METADATA, 80),
    Target("lan", LAN, 80),
    Target("lan-udp", LAN, 7000, "udp"),
    Target("cgnat", CGNAT, 80),
    Target("host", HOST, HOST_PORT),
    Target("host-udp", HOST, HOST_PORT, "udp"),
    Target("host-lan", HOST_LAN, HOST_PORT),
]
REACHED = ["internet", "internet-udp", "gateway-dns"]
PATIENCE = 5.0
HOST_END = "192.168.84.1"
IMAGE = "tar -C /usr/bin -c busybox | docker import - box"
IN_DOCKER = ("docker", "run", "--rm", "box", "/busybox", "wget", "-q", "-T", "20", "-O", "-", f"http://{PUBLIC}/")


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Instance]:
    with open_instance(world, alone=False) as instance:
        instance.declare("container", web="")
        instance.hutch("up", timeout=300)
        yield instance


def reached(instance: Instance) -> list[str]:
    """The names of the targets that answer, of those that may and those that must not."""
    internet = [Target("internet", PUBLIC, 80), Target("internet-udp", PUBLIC, 7000, "udp")]
    dns = Target("gateway-dns", instance.gateway, 53, "udp")
    answers = instance.probe("web", [*internet, dns, *BLOCKED], patience=PATIENCE)
    return [name for name, answer in answers.items() if answer]


def obstacles(instance: Instance) -> tuple[Obstacle, ...]:
    """What hutch finds, which it tells as well."""
    uplink = Places(instance.state, instance.run).uplink_host
    found = check_strangers(call("nft", "-j", "list", "ruleset"), uplink, HOST_END)
    notes = json.loads(instance.hutch("plan", "--json").stdout)["notes"]
    assert notes == [str(obstacle) for obstacle in found]
    return found


def repair(found: tuple[Obstacle, ...]) -> None:
    for obstacle in found:
        for argv in obstacle.repair:
            call(*argv)


@contextmanager
def after_it(instance: Instance, *units: str) -> Iterator[None]:
    """Stop what the test has started, take away what it left, and give back what it took."""
    try:
        yield
    finally:
        if units:
            call("systemctl", "stop", *units)
        call("nft", "flush", "ruleset")
        instance.hutch("up", timeout=300)


def test_a_flush_of_all_rules_opens_nothing(web: Instance) -> None:
    assert reached(web) == REACHED
    call("nft", "flush", "ruleset")
    assert set(reached(web)) <= set(REACHED)  # this Internet knows a way back to what is not translated any more
    web.hutch("up", timeout=300)
    assert reached(web) == REACHED


def test_docker_started_beside_workspaces(web: Instance) -> None:
    with after_it(web, "docker.socket", "docker", "containerd"):
        call("systemctl", "start", "docker")
        assert obstacles(web) == ()  # forwarding was on already, so Docker leaves the policy as it is
        assert reached(web) == REACHED
        call("sh", "-c", IMAGE)
        assert call(*IN_DOCKER).strip() == "internet"


def test_docker_that_was_there_first(web: Instance) -> None:
    with after_it(web, "docker.socket", "docker", "containerd"):
        call("sysctl", "-w", "net.ipv4.ip_forward=0")  # as when the host boots; Docker turns it on
        call("systemctl", "start", "docker")
        found = obstacles(web)
        assert [obstacle.who for obstacle in found] == ["Docker"]
        assert reached(web) == ["gateway-dns"]
        repair(found)
        assert reached(web) == REACHED
        call("systemctl", "restart", "docker")
        assert obstacles(web) == ()
        assert reached(web) == REACHED
        call("sh", "-c", IMAGE)
        assert call(*IN_DOCKER).strip() == "internet"


def test_ufw_that_denies_by_default(web: Instance) -> None:
    with after_it(web):
        call("ufw", "--force", "enable")
        try:
            found = obstacles(web)
            assert [obstacle.who for obstacle in found] == ["ufw", "ufw"]
            assert reached(web) == []
            repair(found)
            call("ufw", "reload")
            assert obstacles(web) == ()
            assert reached(web) == REACHED
        finally:
            call("ufw", "--force", "reset")


def test_firewalld(web: Instance) -> None:
    with after_it(web, "firewalld"):
        call("systemctl", "start", "firewalld")
        found = obstacles(web)
        assert [obstacle.who for obstacle in found] == ["firewalld"]
        repair(found)
        call("firewall-cmd", "--reload")
        assert obstacles(web) == ()
        assert reached(web) == REACHED


def test_networkmanager_leaves_the_uplink_alone(web: Instance) -> None:
    uplink = Places(web.state, web.run).uplink_host
    before = call("ip", "-4", "address", "show", "dev", uplink)
    call("systemctl", "start", "NetworkManager")
    try:
        states = dict(line.split(":") for line in call("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines())
        assert states[uplink] == "unmanaged", shlex.join(states)
        assert reached(web) == REACHED
        web.hutch("restart", "web", timeout=300)
        assert reached(web) == REACHED
    finally:
        call("systemctl", "stop", "NetworkManager")
    assert call("ip", "-4", "address", "show", "dev", uplink) == before


def test_a_resolver_of_somebody_elses(web: Instance) -> None:
    """As libvirt starts one for each of its networks."""
    options = ("--keep-in-foreground", "--conf-file=/dev/null", "--bind-dynamic", f"--listen-address={HOST_LAN}")
    call("systemd-run", "--unit=other-resolver", "dnsmasq", *options)
    try:
        web.hutch("restart", "web", timeout=300)
        assert reached(web) == REACHED
        assert call("systemctl", "is-active", "other-resolver").strip() == "active"
    finally:
        call("systemctl", "stop", "other-resolver")


def test_names_are_found_through_resolved(web: Instance) -> None:
    assert "127.0.0.53" in call("cat", "/etc/resolv.conf")
    assert ask(web, PUBLIC_NAME) == PUBLIC
    for own in ("stand", "stand.example", "workspace-web", "localhost"):
        assert ask(web, own) == "", own


def ask(instance: Instance, name: str) -> str:
    """What the gateway answers."""
    dig = ("dig", "+short", "+time=5", "+tries=2", f"@{instance.gateway}", name)
    try:
        return instance.inside("web", *dig, check=False).stdout.strip()
    except subprocess.TimeoutExpired:
        return "(no answer)"
