"""Members of the group `hutch` on hosts that have no sudo: doas brings them in there, or polkit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hutch.host.doctor.entry import WAYS
from tests.host.egress import eventually
from tests.host.members import ENTRY, RULE, HostsOwn, mount, open_host
from tests.support.world import World

OPTIONS = {way.name: way.options for way in WAYS}
RULES = {way.name: Path(way.rule.path) for way in WAYS}
BUS = Path("/run/dbus")
POLKIT = "/usr/lib/polkit-1/polkitd"


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    mount(*words)
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True, timeout=10)


@contextmanager
def running(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def polkit() -> Iterator[None]:
    """The daemon that pkexec asks, and the bus by which it does."""
    is_there = BUS.exists()
    BUS.mkdir(exist_ok=True)
    with mounted("-t", "tmpfs", "tmpfs", BUS), running("dbus-daemon", "--system", "--nofork", "--nopidfile"):
        assert eventually((BUS / "system_bus_socket").is_socket)
        with running(POLKIT, "--no-debug"):
            yield
    if not is_there:
        BUS.rmdir()


@pytest.fixture(scope="module", params=["doas", "pkexec"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The only program of the host's that may become root."""
    with ExitStack() as stack:
        for name in OPTIONS.keys() - {request.param}:
            stack.enter_context(mounted("--bind", "/dev/null", Path("/usr/bin", name)))
        if request.param == "pkexec":
            stack.enter_context(polkit())
        yield request.param


@pytest.fixture(scope="module")
def host(world: World, images: Path, way: str) -> Iterator[HostsOwn]:
    with open_host(world, images) as host:
        yield host
    assert not RULES[way].exists()


@pytest.mark.container
def test_a_daily_round_and_nobody_else_comes_in(host: HostsOwn, way: str, tmp_path: Path) -> None:
    assert not RULE.exists()
    assert str(ENTRY) in RULES[way].read_text()
    found = {item["name"]: item for item in json.loads(host.hutch("doctor", "--json", check=False).stdout)}
    assert found["members"]["state"] == "ok" and f"by {way}" in found["members"]["means"]

    host.declare_for("carol", "container", mine="")
    project = host.home("carol") / "project"
    for words in (("up",), ("stop", "mine"), ("start", "mine")):
        host.hutch(*words, as_user="carol", cwd=project)
    assert host.hutch("exec", "mine", "--", "id", "-u", as_user="carol", cwd=project).stdout == "1002\n"
    (status,) = json.loads(host.hutch("status", "--json", as_user="carol", cwd=project).stdout)
    assert status["state"] == "running"

    def enter(name: str, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
        environment = {**host.environment({}, name), **options}
        return host.as_user(name, way, *OPTIONS[way], *words, check=False, env=environment)

    for name, line in (("alice", f"{ENTRY} ls"), ("carol", "id -u"), ("carol", f"/bin/sh {ENTRY}")):
        refused = enter(name, *line.split())
        assert refused.returncode != 0 and refused.stdout == "", refused
    os.chown(tmp_path, 1002, 1002)  # what they say of themselves counts for nothing
    lies = {"DOAS_USER": "bob", "SUDO_UID": "0", "PKEXEC_UID": "1001", "HUTCH_STATE_DIR": str(tmp_path)}
    forged = enter("carol", str(ENTRY), "ls", "--json", **lies)
    assert (forged.returncode, [each["name"] for each in json.loads(forged.stdout)]) == (0, ["mine"])
    assert list(tmp_path.iterdir()) == []
    host.hutch("rm", "--purge", "--force", "mine", as_user="carol", cwd=project)
