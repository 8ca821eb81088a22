"""hutch beside those who also have a say in a host's network. Whatever they do, a workspace reaches what it may, at
once or after `hutch doctor --fix`, and what it must not reach stays out of its reach. What is repaired is found by
`hutch doctor` first, and is taken back: by `--undo`, or with the last workspace.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.spec.names import Layout
from tests.host.instance import Instance, Target
from tests.support.world import CGNAT, HOST, HOST_LAN, HOST_PORT, LAN, METADATA, PUBLIC, PUBLIC_NAME, World
from tests.systemd.conftest import PATIENCE, call, open_instance

pytestmark = [pytest.mark.long, pytest.mark.own_kernel]

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
PUBLISHED = 18022
FIREWALLS = ("Docker", "ufw", "firewalld", "iptables")
DOCKER = ("docker.socket", "docker", "containerd")
VIRSH = ("virsh", "--connect", "network:///system")
MANAGED = Path("/etc/NetworkManager/conf.d/50-managed.conf")
IMAGE = "tar -C /usr/bin -c busybox | docker import - box"
IN_DOCKER = ("docker", "run", "--rm", "box", "/busybox", "wget", "-q", "-T", "20", "-O", "-", f"http://{PUBLIC}/")


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Instance]:
    with open_instance(world, alone=False) as instance:
        instance.declare("container", web=f'publish = ["{PUBLISHED}:22"]')
        instance.hutch("up", timeout=300)
        yield instance


def reached(instance: Instance, name: str = "web") -> list[str]:
    """The names of the targets that answer, of those that may and those that must not."""
    internet = [Target("internet", PUBLIC, 80), Target("internet-udp", PUBLIC, 7000, "udp")]
    dns = Target("gateway-dns", instance.gateway, 53, "udp")
    answers = instance.probe(name, [*internet, dns, *BLOCKED], patience=PATIENCE)
    return [name for name, answer in answers.items() if answer]


def is_published(instance: Instance) -> bool:
    """Whether the LAN reaches what the workspace publishes: its sshd, which speaks first."""
    script = f"exec 3<>/dev/tcp/{HOST_LAN}/{PUBLISHED}; head -c 4 <&3"
    return instance.world.inside("lan", "timeout", str(PATIENCE), "bash", "-c", script).stdout == "SSH-"


def uplink_of(instance: Instance) -> str:
    return Layout(instance.state, instance.run).uplink_host


def examine(instance: Instance) -> dict[str, tuple[str, str]]:
    """What `hutch doctor` finds of others: state and meaning, by name. Its code is 1 where there is a conflict."""
    result = instance.hutch("doctor", "--json", check=False)
    found = {item["name"]: (item["state"], item["means"]) for item in json.loads(result.stdout)}
    assert result.returncode == (1 if {"conflict", "missing"} & {state for state, _ in found.values()} else 0), found
    return found


def in_the_way(instance: Instance) -> list[str]:
    """Who stops workspaces; `hutch plan` tells of firewalls, too."""
    found = [name for name, (state, _) in examine(instance).items() if state == "conflict"]
    notes = json.loads(instance.hutch("plan", "--json").stdout)["notes"]
    assert {note.partition(" ")[0] for note in notes} == {name for name in found if name in FIREWALLS}
    return found


def fix(instance: Instance) -> list[str]:
    """The commands that `hutch doctor --fix` has given; given again, it has nothing to do."""
    result, again = (instance.hutch("doctor", "--fix", check=False, timeout=300) for _ in range(2))
    assert "hutch: " not in result.stderr, result.stderr  # its code is 1 here: this host builds no images
    assert "nothing to repair" in again.stderr, again.stderr
    return [line.removeprefix("+ ") for line in result.stderr.splitlines() if line.startswith("+ ")]


@contextmanager
def after_it(instance: Instance, *units: str) -> Iterator[None]:
    """Take back what was repaired, stop what the test has started, and give back what it took."""
    try:
        yield
        instance.hutch("doctor", "--undo", timeout=300)
        assert not Layout(instance.state, instance.run).repairs.exists()
        assert uplink_of(instance) not in theirs(instance)
    except BaseException:
        instance.hutch("doctor", "--undo", check=False, timeout=300)
        raise
    finally:
        if units:
            call("systemctl", "stop", *units)
        call("nft", "flush", "ruleset")
        instance.hutch("up", timeout=300)


def theirs(instance: Instance) -> str:
    """The rules of all others."""
    own = Layout(instance.state, instance.run).table
    tables = [line.split()[1:] for line in call("nft", "list", "tables").splitlines()]
    return "".join(call("nft", "list", "table", family, name) for family, name in tables if name != own)


def test_a_flush_of_all_rules_opens_nothing(web: Instance) -> None:
    assert reached(web) == REACHED
    assert is_published(web)
    call("nft", "flush", "ruleset")
    assert set(reached(web)) <= set(REACHED)  # this Internet knows a way back to what is not translated any more
    web.hutch("up", timeout=300)
    assert reached(web) == REACHED


def test_docker_started_beside_workspaces(web: Instance) -> None:
    with after_it(web, *DOCKER):
        call("systemctl", "start", "docker")
        # Forwarding was on already, so Docker leaves the policy as it is.
        assert examine(web)["Docker"] == ("ok", "it is here, and stops nothing of workspaces")
        assert reached(web) == REACHED
        call("sh", "-c", IMAGE)
        assert call(*IN_DOCKER).strip() == f"internet {HOST}"


def test_docker_that_was_there_first(web: Instance) -> None:
    with after_it(web, *DOCKER):
        call("sysctl", "-w", "net.ipv4.ip_forward=0")  # as when the host boots; Docker turns it on
        call("systemctl", "start", "docker")
        assert in_the_way(web) == ["Docker"]
        assert reached(web) == ["gateway-dns"]
        assert any("-I DOCKER-USER -i" in command for command in fix(web))
        assert in_the_way(web) == []
        assert reached(web) == REACHED
        assert is_published(web)
        call("systemctl", "restart", "docker")
        assert in_the_way(web) == []
        assert reached(web) == REACHED
        call("sh", "-c", IMAGE)
        assert call(*IN_DOCKER).strip() == f"internet {HOST}"
        call("iptables", "-F", "DOCKER-USER")  # as a reboot does; the next start opens it again
        assert in_the_way(web) == ["Docker"]
        web.hutch("restart", "web", timeout=300)
        assert in_the_way(web) == []
        assert reached(web) == REACHED


def test_ufw_that_denies_by_default(web: Instance) -> None:
    with after_it(web):
        call("ufw", "--force", "enable")
        try:
            assert in_the_way(web) == ["ufw"]
            assert reached(web) == []
            assert not is_published(web)
            assert [command.split()[0] for command in fix(web) if "write" not in command] == ["ufw"] * 3
            call("ufw", "reload")
            assert in_the_way(web) == []
            assert reached(web) == REACHED
            assert is_published(web)
            web.hutch("doctor", "--undo")
            assert in_the_way(web) == ["ufw"]
            assert call("ufw", "show", "added").splitlines()[1:] == ["(None)"]
        finally:
            call("ufw", "--force", "reset")


def test_firewalld(web: Instance) -> None:
    with after_it(web, "firewalld"):
        call("systemctl", "start", "firewalld")
        assert in_the_way(web) == ["firewalld"]
        fix(web)
        call("firewall-cmd", "--reload")
        assert in_the_way(web) == []
        assert reached(web) == REACHED
        assert is_published(web)
        call("systemctl", "stop", "firewalld")
        web.hutch("doctor", "--undo")  # of what is written down, though it does not run
        call("systemctl", "start", "firewalld")
        assert in_the_way(web) == ["firewalld"]


def test_networkmanager_leaves_the_uplink_alone(web: Instance) -> None:
    uplink = uplink_of(web)
    before = call("ip", "-4", "address", "show", "dev", uplink)
    call("systemctl", "start", "NetworkManager")
    try:
        assert examine(web)["NetworkManager"] == ("ok", f"it leaves {uplink} alone")
        assert reached(web) == REACHED
        web.hutch("restart", "web", timeout=300)
        assert reached(web) == REACHED
    finally:
        call("systemctl", "stop", "NetworkManager")
    assert call("ip", "-4", "address", "show", "dev", uplink) == before


def test_networkmanager_told_to_manage_it(web: Instance) -> None:
    """By itself, it leaves such interfaces alone."""
    uplink = uplink_of(web)
    MANAGED.write_text("[device-hutch]\nmatch-device=interface-name:hutch*\nmanaged=1\n")
    with after_it(web):
        call("systemctl", "start", "NetworkManager")
        try:
            assert examine(web)["NetworkManager"][0] == "warning"
            (drop_in,) = [command.split()[1] for command in fix(web) if "NetworkManager" in command]
            assert examine(web)["NetworkManager"] == ("ok", f"it leaves {uplink} alone")
            web.hutch("restart", "web", timeout=300)
            assert reached(web) == REACHED
            web.hutch("doctor", "--undo")
            assert not Path(drop_in).exists()
            assert examine(web)["NetworkManager"][0] == "warning"
        finally:
            MANAGED.unlink()
            call("systemctl", "stop", "NetworkManager")


def test_libvirt_and_its_network(web: Instance) -> None:
    """Its network has a bridge, rules and a dnsmasq of its own; one with the workspaces' addresses is named."""
    call("systemctl", "start", "libvirtd")
    try:
        call(*VIRSH, "net-start", "default")
        assert examine(web)["libvirt"] == ("ok", "it is here, and stops nothing of workspaces")
        web.hutch("restart", "web", timeout=300)
        assert reached(web) == REACHED
        call(*VIRSH, "net-destroy", "default")
        call("ip", "link", "add", "virbr9", "type", "bridge")  # libvirt itself refuses what is in use
        call("ip", "address", "add", web.subnet.replace(".0/", ".254/"), "dev", "virbr9")
        state, means = examine(web)["addresses"]
        assert state == "conflict" and "of virbr9" in means
    finally:
        call("ip", "link", "delete", "virbr9", check=False)
        call(*VIRSH, "net-destroy", "default", check=False)
        call("systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd")


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


def test_resolved_answers_for_workspaces(web: Instance) -> None:
    state, means = examine(web)["systemd-resolved"]
    assert state == "ok", means
    assert call("resolvectl", "query", "--legend=no", "workspace-web").split()[1] == web.status("web")["ip"]


def test_split_dns_is_followed(web: Instance) -> None:
    """A VPN brings a server for its own names: only resolved knows which is asked for what."""
    call("ip", "link", "add", "vpn0", "type", "dummy")
    try:
        call("ip", "address", "add", "10.99.0.1/24", "dev", "vpn0")
        call("ip", "link", "set", "vpn0", "up")
        options = ("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--bind-interfaces")
        answers = ("--listen-address=10.99.0.1", "--address=/corp.example/203.0.113.99")
        call("systemd-run", "--unit=vpn-resolver", "dnsmasq", *options, *answers)
        assert ask(web, "outer.corp.example") != "203.0.113.99"
        call("resolvectl", "dns", "vpn0", "10.99.0.1")
        call("resolvectl", "domain", "vpn0", "~corp.example")
        assert ask(web, "inner.corp.example") == "203.0.113.99"
        assert ask(web, PUBLIC_NAME) == PUBLIC
    finally:
        call("systemctl", "stop", "vpn-resolver", check=False)
        call("ip", "link", "delete", "vpn0")


def test_forwarding_that_somebody_turned_off(web: Instance) -> None:
    call("sysctl", "-w", "net.ipv4.ip_forward=0")
    assert in_the_way(web) == ["forwarding"]
    assert "sysctl -w net.ipv4.ip_forward=1" in fix(web)
    assert in_the_way(web) == []
    assert reached(web) == REACHED
    web.hutch("doctor", "--undo")  # of the aliases; forwarding is the workspaces', and goes with them
    assert in_the_way(web) == []


def test_the_last_workspace_takes_it_all_back(web: Instance, world: World) -> None:
    """Docker's chain, NetworkManager's configuration, shells: byte for byte as they were. `web` is another hutch's."""
    with after_it(web, *DOCKER, "NetworkManager"):
        call("sysctl", "-w", "net.ipv4.ip_forward=0")
        MANAGED.write_text("[device-hutch]\nmatch-device=interface-name:hutch*\nmanaged=1\n")
        try:
            call("systemctl", "start", "docker", "NetworkManager")
            with open_instance(world) as instance:  # which leaves the host as it was
                instance.declare("container", lab="")
                instance.hutch("up", timeout=300)
                commands = "\n".join(fix(instance))
                assert "DOCKER-USER" in commands and "write /etc/NetworkManager" in commands, commands
                assert "write /etc/profile.d" in commands
                assert in_the_way(instance) == []
                assert reached(instance, "lab") == REACHED
                assert uplink_of(instance) in theirs(instance)
                instance.hutch("rm", "--force", "lab")
                assert uplink_of(instance) in theirs(instance)
                instance.hutch("rm", "--purge", "--force", "lab")
                assert uplink_of(instance) not in theirs(instance)
        finally:
            MANAGED.unlink()


def ask(instance: Instance, name: str) -> str:
    """What the gateway answers."""
    dig = ("dig", "+short", "+time=5", "+tries=2", f"@{instance.gateway}", name)
    try:
        return instance.inside("web", *dig, check=False).stdout.strip()
    except subprocess.TimeoutExpired:
        return "(no answer)"
