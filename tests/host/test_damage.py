"""What somebody breaks by hand is named by `status` and `plan`, and put right by `up` without a restart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.spec import names
from hutch.spec.names import Layout
from tests.host.egress import eventually
from tests.host.golden import assert_as_declared, make_golden
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import ended
from tests.support.world import World


@dataclass(frozen=True)
class Victim:
    """A hutch with a running workspace `web`, and what the host looks like with it."""

    instance: Instance
    golden: list[str]
    kind: str

    @property
    def layout(self) -> Layout:
        return Layout(self.instance.state, self.instance.run)

    @property
    def port(self) -> str:
        return names.port("web", self.kind)

    def inside(self, *argv: str) -> None:
        """Run a command in the router."""
        run("nsenter", f"--net={self.layout.namespace_path}", "--", *argv)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=10)


@pytest.fixture(scope="module")
def victim(world: World, images: Path, workspace_type: str) -> Iterator[Victim]:
    with open_instance(world, images) as instance:
        yield Victim(instance, make_golden(instance, workspace_type), workspace_type)


def kill_resolver(victim: Victim, which: str) -> None:
    descriptor = os.pidfd_open(int((victim.layout.services / f"{which}.pid").read_text()))
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    ended(descriptor)


def edit_hosts(victim: Victim) -> None:
    path = Path("/etc/hosts")
    path.write_bytes(path.read_bytes().replace(b"workspace-web", b"workspace-wep"))


DAMAGES: dict[str, tuple[str, Callable[[Victim], object]]] = {
    "router": ("router", lambda v: run("ip", "netns", "delete", v.layout.namespace)),
    "router-rules": ("router rules", lambda v: v.inside("nft", "flush", "ruleset")),
    "router-binding": (
        "router rules",
        lambda v: v.inside("nft", "flush", "set", "bridge", v.layout.table, "bound"),
    ),
    "host-rules": ("host rules", lambda v: run("nft", "delete", "table", "inet", v.layout.table)),
    "bridge": ("bridge", lambda v: v.inside("ip", "link", "delete", "hutch0")),
    "bridge-down": ("bridge", lambda v: v.inside("ip", "link", "set", "hutch0", "down")),
    "port-off": ("port", lambda v: v.inside("ip", "link", "set", v.port, "nomaster")),
    "port-down": ("port", lambda v: v.inside("ip", "link", "set", v.port, "down")),
    "port-open": ("port", lambda v: v.inside("bridge", "link", "set", "dev", v.port, "isolated", "off")),
    "uplink": ("uplink", lambda v: run("ip", "link", "delete", v.layout.uplink_host)),
    "uplink-down": ("uplink", lambda v: run("ip", "link", "set", v.layout.uplink_host, "down")),
    "way-in": ("way in", lambda v: run("ip", "route", "delete", v.instance.subnet)),
    "way-out": ("way out", lambda v: v.inside("ip", "route", "delete", "default")),
    "resolver-host": ("service", lambda v: kill_resolver(v, "host")),
    "resolver-router": ("service", lambda v: kill_resolver(v, "router")),
    "watch": ("service", lambda v: kill_resolver(v, "watch")),
    "forwarding": (
        "net.ipv4.ip_forward",
        lambda v: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"),
    ),
    "names": ("names", edit_hosts),
    "known-hosts": ("ssh", lambda v: v.layout.known_hosts.unlink()),
    "drop-in": ("ssh", lambda v: v.layout.ssh_config.write_text("# mine\n")),
    "guard": ("guard", lambda v: run("umount", str(v.layout.home("web")))),
    "closed": ("home", lambda v: v.layout.workspace("web").chmod(0o755)),
    "key": ("key", lambda v: v.layout.key(0).with_name("id_ed25519.pub").write_text("")),
    "host-key": ("host key", lambda v: v.layout.host_key("web").with_suffix(".pub").unlink()),
}
BOTH = (
    "router",
    "bridge",
    "bridge-down",
    "port-off",
    "port-down",
    "router-rules",
    "uplink",
    "resolver-router",
    "guard",
)


ALONE = ("router", "bridge", "bridge-down", "port-off", "uplink")
"""Without one of these, others cannot be asked for."""
TOGETHER = {
    "links": ("way-in", "way-out", "port-open", "port-down", "uplink-down"),
    "rules": ("router-rules", "host-rules", "forwarding"),
    "services": ("resolver-host", "resolver-router", "watch"),
    "files": ("names", "known-hosts", "drop-in", "guard", "closed", "key", "host-key"),
}


@pytest.mark.parametrize("damages", TOGETHER.values(), ids=TOGETHER)
def test_all_damages_of_a_kind_are_named_and_repaired(victim: Victim, damages: tuple[str, ...]) -> None:
    check_named_and_repaired(victim, *damages)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            name,
            marks=[
                *([] if name in ALONE else [pytest.mark.slow]),
                *([pytest.mark.vm(slow=True)] if name in BOTH else []),
            ],
        )
        for name in DAMAGES
    ],
)
def test_damage_is_named_and_repaired(victim: Victim, damage: str) -> None:
    check_named_and_repaired(victim, damage)


def check_named_and_repaired(victim: Victim, *damages: str) -> None:
    instance = victim.instance
    before = instance.status("web")
    assert before["warnings"] == []
    for damage in damages:
        DAMAGES[damage][1](victim)
    named = {DAMAGES[damage][0] for damage in damages}

    warnings = instance.status("web")["warnings"]
    assert named <= {warning.partition(": ")[0] for warning in warnings}, warnings
    checked = instance.hutch("plan", "--check", "--json", check=False)
    assert checked.returncode == 3
    plan = json.loads(checked.stdout)
    assert [action["action"] for action in plan["actions"]] == ["no change"]
    assert named <= {repair["what"] for repair in plan["repairs"]}, plan

    said = instance.up().stderr
    assert all(f"{what}: " in said for what in named), said
    assert_as_declared(instance, victim.golden)
    assert "internet" in instance.ssh("web", "curl --silent --max-time 10 http://public.example/").stdout
    after = instance.status("web")
    assert (after["pid"], after["warnings"]) == (before["pid"], [])


def test_looking_repairs_nothing(victim: Victim) -> None:
    kill_resolver(victim, "host")
    for _ in range(2):
        shown = victim.instance.hutch("status", "web").stdout
        assert "warnings  service: the resolver of the router does not run (`hutch up` repairs it)\n" in shown
        planned = victim.instance.hutch("plan", "--check", check=False)
        assert planned.returncode == 3
        assert planned.stdout.splitlines()[-2:] == [
            "host  repair",
            "        service: the resolver of the router does not run",
        ]
    victim.instance.up()
    assert victim.instance.hutch("plan", "--check", check=False).returncode == 0


@pytest.mark.vm(slow=True)
def test_a_port_that_was_deleted_costs_a_restart(victim: Victim) -> None:
    instance = victim.instance
    before = instance.status("web")["pid"]
    victim.inside("ip", "link", "delete", victim.port)
    assert f"port: {victim.port} is gone (a restart brings it back)" in instance.status("web")["warnings"]
    planned = instance.plan()["web"]
    assert planned["action"] == "restart"
    reason = {"key": "port", "old": f"{victim.port} is gone", "new": victim.port, "weight": "restart"}
    assert planned["reasons"] == [reason]
    if instance.status("web")["type"] == "vm":  # only from inside can be told what would be lost, and nobody gets there
        refused = instance.hutch("up", check=False)
        assert refused.returncode == 1 and "whether its root holds unsaved git work" in refused.stderr
        assert instance.status("web")["pid"] == before
        instance.hutch("up", "--force")
    else:
        instance.up()
    assert_as_declared(instance, victim.golden)
    assert instance.status("web")["pid"] != before
    assert instance.status("web")["warnings"] == []


@pytest.mark.slow
def test_an_image_that_vanished_is_built_again(own_image: Callable[[str], Instance]) -> None:
    instance = own_image("container")
    image = instance.status("own")["image_id"]
    tree = instance.state / "images" / image / "root"
    before = instance.status("own")["pid"]
    # It goes elsewhere: what runs goes on.
    tree.rename(tree.with_name("elsewhere"))
    assert instance.status("own")["warnings"] == [f"image: {image} is not in the cache (`hutch up` repairs it)"]
    checked = instance.hutch("plan", "--check", check=False)
    assert (checked.returncode, f"image: {image} is not in the cache" in checked.stdout) == (3, True)
    assert f"image: {image}" in instance.hutch("up", timeout=300).stderr
    assert (instance.status("own")["pid"], instance.status("own")["warnings"]) == (before, [])
    assert instance.hutch("plan", "--check", check=False).returncode == 0
    # It is deleted, under a workspace that is stopped: a start needs it.
    instance.hutch("down")
    shutil.rmtree(tree.parent)
    (action,) = json.loads(instance.hutch("plan", "--json").stdout)["actions"]
    assert (action["action"], action["notes"]) == ("start", [f"{image} is not in the cache: it is built first"])
    instance.hutch("up", timeout=300)
    instance.ssh("own")
    # It is deleted under one that runs, which is then left with what it has in memory.
    before = instance.status("own")["pid"]
    shutil.rmtree(tree)
    assert "image: its tree was deleted (a restart brings it back)" in instance.status("own")["warnings"]
    instance.hutch("image", "build", timeout=300)  # a new tree is not the one that it runs on
    (reason,) = instance.plan()["own"]["reasons"]
    assert (reason["key"], reason["old"], reason["weight"]) == ("image", "its tree was deleted", "restart")
    instance.up()
    instance.ssh("own")
    assert (instance.status("own")["pid"] != before, instance.status("own")["warnings"]) == (True, [])


@pytest.mark.vm(slow=True)
def test_why_a_workspace_stopped_is_said(victim: Victim) -> None:
    instance = victim.instance
    main = os.pidfd_open(instance.status("web")["pid"])
    instance.inside("web", "systemctl", "poweroff", root=True, check=False)
    ended(main)
    assert eventually(lambda: instance.status("web")["reason"] == "it powered off by itself")  # said after its end
    main = json.loads(instance.hutch("plan", "--json").stdout)["actions"][0]
    assert (main["action"], main["notes"]) == ("start", ["it is stopped: it powered off by itself"])
    instance.up()
    assert instance.status("web")["reason"] == ""


@pytest.mark.vm(slow=True)
def test_what_is_said_of_a_running_workspace_is_deleted(victim: Victim) -> None:
    instance = victim.instance
    shutil.rmtree(victim.layout.runtime("web"))
    found = instance.status("web")
    assert found["state"] == "stopped"
    assert [text.partition(":")[0] for text in found["warnings"]] == ["state"]
    assert instance.plan()["web"]["action"] == "start"
    instance.up()
    assert_as_declared(instance, victim.golden)
    assert instance.status("web")["warnings"] == []


def test_status_tells_what_it_cannot_look_at(victim: Victim, tmp_path: Path) -> None:
    broken, nft = tmp_path / "nft", shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert nft is not None
    run("mount", "--bind", str(broken), nft)
    try:
        (warning,) = victim.instance.status("web")["warnings"]
    finally:
        run("umount", nft)
    assert warning == "the host cannot be looked at: nft failed with code 1"
