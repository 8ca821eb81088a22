"""What is ejected goes on without hutch, and beside a hutch that goes on; and leaves nothing when it is removed."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hutch
from hutch.host.services.units import directory
from hutch.spec.ejected import Ejected
from hutch.spec.names import Layout
from tests.host.instance import PROBE, Instance, Target
from tests.support.world import FAR, FAR_PORTS, PUBLIC, RESOLVERS, ZONE_RESOLVER, World
from tests.systemd.conftest import PATIENCE, call, open_instance
from tests.systemd.test_coexistence import BLOCKED, REACHED

SECONDS = 600.0  # for what takes 60 on an emulated host that has two processors for itself
UNIT, NETWORK, RESOLVER = (f"workspace-web{part}.service" for part in ("", ".network", ".dns"))


@pytest.fixture(scope="module")
def both(world: World) -> Iterator[Instance]:
    """Two workspaces of a hutch; `web` has something in its home."""
    with open_instance(world) as instance:
        instance.declare("container", web="", beside="")
        instance.hutch("up", timeout=SECONDS)
        instance.ssh("web", "echo kept >~/file")
        yield instance


def ejected(instance: Instance) -> Ejected:
    return Ejected.beside(Layout(instance.state, instance.run), "web")


def is_as_it_was(instance: Instance) -> bool:
    """The same home, by the same name and address, with a host key that is trusted."""
    said = instance.ssh("web", "cat ~/file; hostname; ip -4 -o addr show host0").stdout
    return said.startswith("kept\nweb\n") and f" {address(instance, 'web')}/24 " in said


def address(instance: Instance, name: str) -> str:
    return call("getent", "ahostsv4", f"workspace-{name}").split()[0]


def answers(instance: Instance, *more: Target) -> list[str]:
    """The names of the targets that answer, of those that may and those that must not."""
    internet = [Target("internet", PUBLIC, 80), Target("internet-udp", PUBLIC, 7000, "udp")]
    return answering(instance, *internet, Target("gateway-dns", instance.gateway, 53, "udp"), *BLOCKED, *more)


def answering(instance: Instance, *targets: Target) -> list[str]:
    """The names of those that answer, asked for without hutch."""
    wanted = json.dumps([target.as_json() for target in targets])
    program = ("doas", "python3", "-c", PROBE.read_text(), wanted, str(PATIENCE))
    found = json.loads(instance.ssh("web", shlex.join(program)).stdout)
    return [name for name, answer in found.items() if answer]


def main_process(unit: str) -> str:
    return call("systemctl", "show", "--value", "--property=MainPID", unit).strip()


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def without_hutch(empty: Path) -> Iterator[None]:
    """Neither its code is there, nor the interpreter that it has."""
    hidden = (Path(hutch.__file__).parent, Path(sys.executable).parent)
    empty.mkdir(exist_ok=True)
    for place in hidden:
        call("mount", "--bind", str(empty), str(place))
    try:
        yield
    finally:
        for place in hidden:
            call("umount", str(place))


@contextmanager
def before_it_starts(command: str) -> Iterator[None]:
    """Have the unit run something first."""
    drop_in = directory() / f"{UNIT}.d" / "first.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nExecStartPre={command}\n")
    try:
        yield
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()


def test_what_cannot_start_is_not_ejected(both: Instance) -> None:
    with before_it_starts("false"):
        failed = both.hutch("eject", "web", check=False, timeout=SECONDS)
    assert failed.returncode == 1
    assert f"web was not ejected: {UNIT} does not start" in failed.stderr
    assert nothing_of_it(both)
    assert both.status("web")["state"] == "running"
    assert is_as_it_was(both)


def test_what_is_cut_short_is_undone(both: Instance) -> None:
    with before_it_starts("sleep infinity"):
        process = both.spawn("eject", "web")
        until(lambda: call("systemctl", "is-active", UNIT, check=False) == "activating\n")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ejected(both).home("web").exists()
    both.hutch("up", timeout=SECONDS)
    assert nothing_of_it(both)
    assert is_as_it_was(both)


def nothing_of_it(instance: Instance) -> bool:
    layout = ejected(instance)
    units = [path for path in directory().rglob("*") if path.name.startswith("workspace-web")]
    links = call("ip", "-o", "link")
    return not (units or layout.state.exists() or layout.uplink_host in links or layout.ssh_config.exists())


def test_it_is_a_unit_of_its_own(both: Instance) -> None:
    known = (both.state / "known_hosts").read_text()
    (line,) = (line for line in known.splitlines() if line.startswith("workspace-web,"))
    said = both.hutch("eject", "web", timeout=SECONDS)
    assert said.stdout == f"{ejected(both).state}\n"
    assert call("systemctl", "is-active", UNIT) == "active\n"
    assert "workspace-web" in call("machinectl", "list", "--no-legend")
    assert is_as_it_was(both)
    assert (ejected(both).state / "known_hosts").read_text() == f"{line}\n"
    assert both.names() == ["beside"]


def test_without_hutch(both: Instance) -> None:
    neighbour = Target("neighbour", address(both, "beside"), 22)
    with without_hutch(both.directory / "empty"):
        with pytest.raises(FileNotFoundError):
            both.hutch("ls")
        call("systemctl", "restart", UNIT)
        assert is_as_it_was(both)
        assert answers(both, neighbour) == REACHED
        call("systemctl", "stop", NETWORK)
        assert "wu-web" not in call("ip", "-o", "link")
        assert call("systemctl", "is-active", UNIT, check=False) == "inactive\n"
        call("systemctl", "start", UNIT)
        assert is_as_it_was(both)
        assert answers(both, neighbour) == REACHED


def test_it_goes_on_while_what_serves_it_is_started_again(both: Instance) -> None:
    before, resolver = main_process(UNIT), main_process(RESOLVER)
    call("kill", "-KILL", resolver)
    until(lambda: main_process(RESOLVER) not in ("0", resolver))
    until(lambda: call("systemctl", "is-active", RESOLVER, check=False) == "active\n")
    assert main_process(UNIT) == before
    assert "gateway-dns" in answers(both)


def test_rules_that_somebody_changes_stop_it(both: Instance) -> None:
    layout = ejected(both)
    inside = ("ip", "netns", "exec", layout.namespace)
    call(*inside, "nft", "flush", "chain", "inet", layout.table, "forward")
    until(lambda: "state DOWN" in call(*inside, "ip", "-o", "link", "show", "hutch0"))
    call("systemctl", "restart", NETWORK)
    call("systemctl", "start", UNIT)
    assert answers(both) == REACHED


def test_hutch_goes_on_beside_it(both: Instance) -> None:
    refused = both.hutch("plan", check=False)
    assert refused.returncode == 1
    assert "declares web, which hutch has ejected" in refused.stderr
    refused = both.hutch("rm", "--purge", "web", check=False)
    assert refused.returncode == 1
    assert "is still there" in refused.stderr
    both.declare("container", beside="", other="")
    both.hutch("up", timeout=SECONDS)
    both.hutch("restart", "beside", timeout=SECONDS)
    assert address(both, "other") != address(both, "web")
    reach = both.probe("beside", [Target("web", address(both, "web"), 22), Target("internet", PUBLIC, 80)])
    assert (reach["web"], reach["internet"].partition(" ")[0]) == ("", "internet")  # and from which address
    found = json.loads(both.hutch("doctor", "--json", check=False).stdout)
    assert [item["state"] for item in found if item["name"] == "addresses"] == ["ok"]
    assert is_as_it_was(both)


def test_it_goes_on_when_hutch_has_nothing_left(both: Instance) -> None:
    both.remove_all()
    assert is_as_it_was(both)
    assert answers(both) == REACHED


def test_it_is_removed(both: Instance) -> None:
    """What else would be left, the fixture sees."""
    layout = ejected(both)
    said = call(str(layout.removal))
    assert said == f"the home is kept in {layout.home('web')}\n"
    assert (layout.home("web") / "file").read_text() == "kept\n"
    left = {path.name for path in layout.state.rglob("*") if layout.home("web") not in path.parents}
    assert left == {"workspace", "home"}
    assert "workspace-web" not in call("machinectl", "list", "--no-legend")
    subprocess.run(["rm", "-r", layout.state], check=True)
    assert nothing_of_it(both)
    both.hutch("rm", "--purge", "web", timeout=SECONDS)


@pytest.mark.slow
def test_a_machine_that_boots_is_stopped_where_it_is_undone(world: World) -> None:
    """Its guest hears nothing yet, so that it is killed in the end."""
    with open_instance(world) as instance:
        instance.declare("vm", web="")
        instance.hutch("up", timeout=SECONDS)
        instance.ssh("web", "echo kept >~/file && sync")
        process = instance.spawn("eject", "web")
        until(lambda: call("systemctl", "is-active", UNIT, check=False) == "activating\n")
        process.send_signal(signal.SIGKILL)
        process.wait()
        instance.hutch("up", timeout=SECONDS)
        assert nothing_of_it(instance)
        assert instance.ssh("web", "cat ~/file").stdout == "kept\n"


def test_a_machine_is_a_unit_of_its_own(world: World) -> None:
    with open_instance(world) as instance:
        instance.declare("vm", web='persist = "all"\ndisk = "1GiB"')
        instance.hutch("up", timeout=SECONDS)
        instance.ssh("web", "echo kept >~/file && echo kept | doas tee /root/file && sync")
        instance.hutch("eject", "web", timeout=SECONDS)
        with without_hutch(instance.directory / "empty"):
            assert call("systemctl", "is-active", UNIT) == "active\n"
            said = instance.ssh("web", "cat ~/file; doas cat /root/file; systemd-detect-virt").stdout
            assert said.split() == ["kept", "kept", "qemu"]
            assert answers(instance) == REACHED
            call("systemctl", "stop", NETWORK)
            assert call("systemctl", "is-active", UNIT, check=False) == "inactive\n"
        instance.remove_all()
        layout = ejected(instance)
        call(str(layout.removal))
        assert {path.name for path in (layout.state / "workspace").iterdir()} == {"home"}
        subprocess.run(["rm", "-r", layout.state], check=True)
        assert nothing_of_it(instance)
        instance.hutch("rm", "--purge", "web", timeout=SECONDS)


def test_its_egress_proxy_goes_along(world: World) -> None:
    """With its list, what people allowed, and its records."""
    world.zone.put("*.example", a=[FAR[0]])
    world.use_resolver(ZONE_RESOLVER)
    try:
        with open_instance(world) as instance:
            instance.declare("container", web='egress = ["listed.example"]')
            instance.hutch("up", timeout=SECONDS)
            instance.hutch("allow", "web", "allowed.example")
            instance.hutch("eject", "web", timeout=SECONDS)
            layout = ejected(instance)
            with without_hutch(instance.directory / "empty"):
                assert reached(instance) == ["listed.example", "allowed.example"]
                call("systemctl", "stop", NETWORK)
                call("systemctl", "start", UNIT)
                assert reached(instance) == ["listed.example", "allowed.example"]
                records = (layout.egress_records("web") / "records.jsonl").read_text()
                assert "other.example" in records
                open_one_more(layout.network / "views.json", ZONE_NAMES[2])
                call("systemctl", "restart", NETWORK)
                call("systemctl", "start", UNIT)
                assert reached(instance) == list(ZONE_NAMES)
            instance.remove_all()
            call(str(layout.removal))
            assert {path.name for path in layout.state.iterdir()} == {"workspace"}
            subprocess.run(["rm", "-r", layout.state], check=True)
            assert nothing_of_it(instance)
            instance.hutch("rm", "--purge", "web", timeout=SECONDS)
    finally:
        world.use_resolver(RESOLVERS[0])


ZONE_NAMES = ("listed.example", "allowed.example", "other.example")
"""One is listed, one allowed, one neither."""


def reached(instance: Instance) -> list[str]:
    """Those of the names that are reached."""
    return answering(instance, *(Target(name, name, FAR_PORTS[0]) for name in ZONE_NAMES))


def open_one_more(views: Path, name: str) -> None:
    """As the README says."""
    told = json.loads(views.read_text())
    told["views"][0]["decisions"].append([name, True, 0, None])
    views.write_text(json.dumps(told))


@pytest.mark.slow
def test_a_workspace_whose_egress_proxy_does_not_serve_does_not_start(world: World) -> None:
    with open_instance(world) as instance:
        instance.declare("container", web='egress = ["listed.example"]')
        instance.hutch("up", "--no-start", timeout=SECONDS)
        instance.hutch("eject", "web", timeout=SECONDS)
        views = ejected(instance).network / "views.json"
        told = views.read_text()
        views.write_text("{")
        call("systemctl", "start", UNIT, check=False)
        assert "web.egress.service does not serve" in call("journalctl", "--unit", UNIT)
        assert call("systemctl", "is-active", UNIT, check=False) != "active\n"
        views.write_text(told)
        call("systemctl", "stop", NETWORK)
        call("systemctl", "start", UNIT)
        instance.remove_all()
        call(str(ejected(instance).removal))
        subprocess.run(["rm", "-r", ejected(instance).state], check=True)
        assert nothing_of_it(instance)
        instance.hutch("rm", "--purge", "web", timeout=SECONDS)


@pytest.mark.slow
def test_it_goes_on_after_a_purge_of_all_that_hutch_has(both: Instance) -> None:
    both.declare("container", beside="", web="")
    both.hutch("up", timeout=SECONDS)
    both.ssh("web", "echo kept >~/file")
    both.hutch("eject", "web", "--yes", timeout=SECONDS)
    call("umount", str(both.state / "images"))  # the tier's
    both.hutch("uninstall", "--purge", "--force", "--yes", timeout=SECONDS)
    assert not both.state.exists(), [str(path) for path in both.state.rglob("*")]
    both.state.mkdir()  # for whoever cleans up
    refused = both.hutch("plan", check=False)
    assert "declares web, which hutch has ejected" in refused.stderr
    found = json.loads(both.hutch("doctor", "--json", check=False).stdout)
    assert [item["state"] for item in found if item["name"] == "addresses"] == ["ok"]
    assert is_as_it_was(both)
    assert answers(both) == REACHED
    layout = ejected(both)
    call(str(layout.removal))
    subprocess.run(["rm", "-r", layout.state], check=True)
    assert nothing_of_it(both)
