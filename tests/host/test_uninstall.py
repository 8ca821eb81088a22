"""hutch leaves the host, and comes back; or leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.host.conftest import MakeInstance
from tests.host.instance import Instance
from tests.host.residue import differences, observe

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@pytest.mark.vm(slow=True)
def test_the_host_is_bare_and_the_next_up_finds_all(make_instance: MakeInstance, workspace_type: str) -> None:
    instance = make_instance()
    before = observe()
    own = instance.directory / "own"
    declare(instance, workspace_type)
    instance.up()
    instance.hutch("aliases", "--install")
    instance.ssh("web", "echo kept > ~/kept; echo kept > /src/kept; cp /bin/sh /src/sh; chmod u+s /src/sh")
    key, status = (instance.state / "known_hosts").read_text(), instance.status("web")

    told = instance.hutch("uninstall").stderr
    assert f"kept in {instance.state}" in told
    assert differences(before) == ""
    assert not instance.run.exists()
    assert (instance.state / "workspaces/web/home/kept").read_text() == "kept\n"
    assert os.stat(own / "sh").st_mode & 0o4000 == 0  # nothing guards it any more
    assert instance.status("web")["state"] == "stopped"
    instance.hutch("uninstall")
    assert differences(before) == ""

    instance.up()
    assert instance.ssh("web", "cat ~/kept /src/kept").stdout == "kept\nkept\n"
    assert (instance.state / "known_hosts").read_text() == key
    again = instance.status("web")
    assert [again[item] for item in ("ip", "mac", "home")] == [status[item] for item in ("ip", "mac", "home")]


def test_with_purge_nothing_is_left_but_what_is_peoples_own(make_instance: MakeInstance) -> None:
    before = observe()
    instance = make_instance()
    declare(instance, "container")
    instance.up()
    instance.ssh("web", "echo kept > /src/kept; git init -q ~/work; touch ~/work/new")
    instance.hutch("rm", "other")
    instance.hutch("doctor", "--fix", check=False)
    assert (instance.state / "repairs.json").exists()
    refused = instance.hutch("uninstall", "--purge", "--yes", check=False)
    assert refused.returncode == 1
    assert "web: ~/work: uncommitted changes" in refused.stderr.replace("./", "~/")
    assert instance.status("web")["state"] == "running"

    instance.hutch("uninstall")
    assert not (instance.state / "repairs.json").exists()
    instance.up()
    instance.hutch("doctor", "--fix", check=False)
    subprocess.run(["umount", instance.state / "images"], check=True, timeout=10)  # the tier's
    try:
        instance.hutch("uninstall", "--purge", "--force", "--yes")
        assert not instance.state.exists()
        assert differences(before) == ""
        assert (instance.directory / "own/kept").read_text() == "kept\n"
        instance.hutch("uninstall")
        assert not instance.state.exists()
    finally:
        instance.state.mkdir(exist_ok=True)  # for whoever cleans up


@pytest.mark.vm(slow=True)
def test_doctor_takes_away_what_a_deleted_state_directory_has_left(
    make_instance: MakeInstance, workspace_type: str
) -> None:
    before, forwarding = observe(), FORWARDING.read_text()
    instance = make_instance()
    instance.declare(workspace_type, web="autostart = true\npublish = ['18093:80']")
    instance.up()
    subprocess.run(["umount", "--lazy", instance.state / "images"], check=True, timeout=10)  # the tier's
    subprocess.run(["rm", "-rf", instance.state], check=False, timeout=60)  # what is mounted there stays
    (finding,) = [
        f for f in json.loads(instance.hutch("doctor", "--json", check=False).stdout) if "behind" in f["name"]
    ]
    assert finding["state"] == "conflict" and "`sudo hutch doctor --fix` stops them" in finding["do"]
    assert str(instance.state) in finding["means"]
    assert "left behind" in instance.hutch("doctor", "--fix", check=False).stdout  # nobody was there to say yes
    assert instance.run.exists()
    told = instance.hutch("doctor", "--fix", "--yes", check=False)
    assert f"+ take away the leftovers of {instance.state}'s workspaces" in told.stderr
    assert "+ leave forwarding on: " in told.stderr  # nobody knows any more what it was
    assert "left behind" not in told.stdout
    FORWARDING.write_text(forwarding)
    instance.hutch("doctor", "--undo")
    assert differences(before) == ""
    assert not instance.run.exists()


def declare(instance: Instance, workspace_type: str) -> None:
    """One with a directory of its owner's, and another one."""
    own = instance.directory / "own"
    own.mkdir()
    os.chown(own, 1000, 1000)
    mount = f'mounts = [{{ source = "{own}", target = "/src" }}]'
    instance.declare(workspace_type, web=mount, **({"other": ""} if workspace_type == "container" else {}))


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        pytest.param("network.json*", None, marks=pytest.mark.slow),
        ("network.json*", b"damaged"),
        ("workspaces/*/workspace.json*", None),
        pytest.param("workspaces/*/workspace.json*", b"damaged", marks=pytest.mark.slow),
    ],
)
def test_a_state_directory_that_has_lost_something_is_not_gone(
    make_instance: MakeInstance, pattern: str, content: bytes | None
) -> None:
    instance = make_instance()
    instance.declare("container", web="", other="")
    instance.up()
    lost = {path: path.read_bytes() for path in instance.state.glob(pattern)}
    assert lost
    try:
        for path in lost:
            path.unlink() if content is None else path.write_bytes(content)
        found = {finding["name"] for finding in json.loads(instance.hutch("doctor", "--json", check=False).stdout)}
        assert "left behind" not in found and "KVM" in found
        instance.hutch("doctor", "--fix", "--yes", check=False)
        assert instance.ssh("web", "echo alive").stdout == "alive\n"
    finally:
        for path, before in lost.items():
            path.write_bytes(before)


def test_directories_that_were_named_by_mistake_are_left_alone(make_instance: MakeInstance) -> None:
    instance = make_instance(with_images=False)
    foreign = instance.directory / "foreign"
    for name in ("documents/thesis", "workspaces/somebody/file", "services/file", "egress/file"):
        (foreign / name).parent.mkdir(parents=True, exist_ok=True)
        (foreign / name).touch()
    before = sorted(foreign.rglob("*"))
    for arguments in (("uninstall",), ("uninstall", "--purge", "--yes")):
        told = instance.hutch(*arguments, env={"HUTCH_STATE_DIR": str(foreign), "HUTCH_RUN_DIR": str(foreign)})
        assert f"{foreign} holds nothing of hutch's, and was left alone" in told.stderr
    refused = instance.hutch("uninstall", check=False, env={"HUTCH_RUN_DIR": str(foreign)})
    assert refused.returncode == 2 and f"{foreign} is not hutch's runtime directory" in refused.stderr
    assert sorted(foreign.rglob("*")) == before


@pytest.mark.parametrize("variable", ["HUTCH_STATE_DIR", "HUTCH_RUN_DIR"])
def test_nothing_is_believed_that_others_can_put_there(make_instance: MakeInstance, variable: str) -> None:
    instance = make_instance(with_images=False)
    place = instance.directory / "alices"
    place.mkdir()
    os.chown(place, 1000, 1000)
    for command in (("ls",), ("doctor", "--undo"), ("uninstall", "--purge", "--yes")):
        refused = instance.hutch(*command, check=False, env={variable: str(place / "hutch")})
        assert refused.returncode == 2 and f"{place} can be changed by others than root" in refused.stderr
    assert list(place.iterdir()) == []
