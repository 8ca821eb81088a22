"""Workspaces as services of systemd's: what an administrator sees and does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.host.services.unit_texts import refresh_units
from hutch.host.services.units import directory
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.support.world import PUBLIC_NAME, World
from tests.systemd.conftest import call, open_instance

HERS = 'owner = "alice"\n'
SECONDS = 400.0  # for what takes one or two on a host that is not emulated


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Instance]:
    with open_instance(world) as instance:
        instance.declare("container", web=HERS)
        instance.hutch("up", timeout=300)
        yield instance


def layout(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


def service(instance: Instance) -> dict[str, str]:
    names = ("ActiveState", "Type", "MainPID", "Slice", "Result")
    words = [word for name in names for word in ("--property", name)]
    lines = call("systemctl", "show", *words, layout(instance).unit("web")).splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def until(look: Callable[[], dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not is_so(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.2)


def await_another(instance: Instance, pid: str) -> None:
    """It runs again, with another main process."""
    until(lambda: service(instance), lambda now: now["ActiveState"] == "active" and now["MainPID"] not in ("0", pid))
    assert instance.ssh("web", "uname -n").stdout == "web\n"


def test_it_is_a_service_that_says_when_it_is_ready(web: Instance) -> None:
    found = service(web)
    assert (found["ActiveState"], found["Type"], found["Slice"]) == ("active", "notify", layout(web).slice("web"))
    assert Path(f"/proc/{found['MainPID']}/comm").read_text() == "systemd-nspawn\n"
    status = web.status("web")
    assert status["state"] == "running" and status["ready_seconds"] > 0
    assert str(status["pid"]) == found["MainPID"]
    assert web.ssh("web", "uname -n").stdout == "web\n"
    assert web.hutch("exec", "web", "--", "uname", "-n").stdout == "web\n"


def test_what_others_tell_goes_into_the_record_by_a_timer(web: Instance) -> None:
    timer, unit = layout(web).fold_units
    assert call("systemctl", "is-active", timer) == "active\n"
    assert call("systemctl", "is-enabled", timer) == "enabled\n"
    web.hutch("exec", "web", "--", "echo", "told")  # which no command has put there yet
    assert '"told"' not in layout(web).audit("web").read_text()
    call("systemctl", "start", unit)
    assert '"told"' in layout(web).audit("web").read_text()


def test_its_image_is_made_anew_by_a_timer_where_its_file_says_so(web: Instance) -> None:
    timer, unit = refresh_units(layout(web), "weekly")
    web.declare("container", web=f'{HERS}auto_refresh = "weekly"\n')
    web.hutch("up", timeout=300)
    assert call("systemctl", "is-active", timer) == "active\n"
    assert call("systemctl", "is-enabled", timer) == "enabled\n"
    assert call("systemctl", "show", "--property=NextElapseUSecRealtime", "--value", timer).strip()
    assert "refresh weekly" in call("systemctl", "show", "--property=ExecStart", unit)
    web.declare("container", web=HERS)
    web.hutch("up", timeout=300)
    assert not any((directory() / name).exists() for name in (timer, unit))


def test_nothing_of_hutch_stays(web: Instance) -> None:
    """No Python, in no unit of it."""
    group = Path("/sys/fs/cgroup") / layout(web).slice_of_all
    programs = {
        Path(f"/proc/{pid}/comm").read_text().strip()
        for procs in group.rglob("cgroup.procs")
        if "payload" not in procs.parts
        for pid in procs.read_text().split()
    }
    assert programs <= {"systemd-nspawn", "dnsmasq", "bash", "nft"}


def test_machinectl_and_the_journal_know_it(web: Instance) -> None:
    machine = layout(web).machine("web")
    assert machine in call("machinectl", "list", "--no-legend")
    assert "Server listening" in call("journalctl", "--no-pager", "-M", machine, "-u", "ssh.service")
    assert "Detected virtualization" in call("journalctl", "--no-pager", "-u", layout(web).unit("web"))
    assert "Detected virtualization" in web.hutch("logs", "web").stdout


def test_its_owner_enters_and_changes_nothing(web: Instance) -> None:
    """What changes it goes through sudo or polkit, as with all services. What the owner reads to see it is readable."""
    assert web.ssh("web", "uname -n", as_user="alice").stdout == "web\n"
    refused = web.ssh("web", as_user="bob", check=False)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr
    status, alice = str(layout(web).status("web")), web.world.accounts["alice"]
    assert (
        '"running"' in subprocess.run(alice.command("cat", status), capture_output=True, text=True, timeout=30).stdout
    )
    for account in (alice, web.world.accounts["bob"]):
        stop = account.command("systemctl", "--no-ask-password", "stop", layout(web).unit("web"))
        assert subprocess.run(stop, capture_output=True, timeout=30).returncode != 0
    assert service(web)["ActiveState"] == "active"


def test_systemctl_stops_and_starts_it(web: Instance) -> None:
    unit = layout(web).unit("web")
    call("systemctl", "stop", unit)
    assert web.status("web")["state"] == "stopped"
    call("systemctl", "start", unit)
    assert web.status("web")["state"] == "running"
    web.ssh("web")
    call("systemctl", "restart", unit)
    web.ssh("web")
    web.hutch("restart", "web", timeout=SECONDS)
    web.ssh("web")


def test_a_reboot_inside_starts_it_anew(web: Instance) -> None:
    before = service(web)["MainPID"]
    web.inside("web", "systemctl", "reboot", root=True, check=False)
    await_another(web, before)


def test_what_powers_off_is_stopped(web: Instance) -> None:
    web.inside("web", "systemctl", "poweroff", root=True, check=False)
    until(lambda: web.status("web"), lambda status: bool(status["state"] == "stopped"))
    assert service(web)["Result"] == "success"
    web.hutch("start", "web", timeout=SECONDS)


def test_what_is_killed_starts_again(web: Instance) -> None:
    before = service(web)["MainPID"]
    os.kill(int(before), signal.SIGKILL)
    await_another(web, before)


def test_mounts_come_and_go(web: Instance) -> None:
    source = web.directory / "shown"
    source.mkdir()
    (source / "file").write_text("text")
    web.declare("container", web=f'{HERS}mounts = [{{ source = "{source}", target = "/shown" }}]')
    web.hutch("up", timeout=SECONDS)
    assert web.ssh("web", "cat /shown/file").stdout == "text"
    web.hutch("restart", "web", timeout=SECONDS)
    assert web.ssh("web", "cat /shown/file").stdout == "text"
    before = service(web)["MainPID"]
    web.declare("container", web=HERS)
    web.hutch("up", timeout=SECONDS)
    assert web.ssh("web", "ls /shown").stdout == ""
    assert service(web)["MainPID"] == before


def test_all_promises_hold(web: Instance) -> None:
    result = web.hutch("prove", "web", "--json", "--target", f"{PUBLIC_NAME}:80", check=False, timeout=600)
    probes = json.loads(result.stdout)
    assert [probe for probe in probes if probe["result"] == "broken"] == []
    assert [probe["result"] for probe in probes if probe["probe"] == "log-size"] == ["held"]
    assert result.returncode == 0


def test_a_start_that_fails_says_why_and_is_not_tried_again(web: Instance) -> None:
    """Something has the name of one end of its port."""
    web.hutch("stop", "web", timeout=SECONDS)
    inside = ("ip", "-n", layout(web).namespace, "link")
    call(*inside, "add", "vi-web", "type", "bridge")
    failed = web.hutch("start", "web", check=False, timeout=SECONDS)
    call(*inside, "delete", "vi-web")
    assert failed.returncode == 1
    assert "cannot make the port: RTNETLINK answers: File exists" in failed.stderr
    assert service(web)["ActiveState"] in ("failed", "inactive")
    web.hutch("start", "web", timeout=SECONDS)


def test_the_last_removal_takes_the_units_away(web: Instance) -> None:
    """What else would be left, the fixture sees."""
    own = directory() / f"{layout(web).slice('web')}.d"
    own.mkdir()
    said = web.hutch("rm", "--purge", "--force", "web", timeout=SECONDS).stderr
    assert f"{own} is your own and was left alone" in said
    own.rmdir()
    assert [path for path in directory().rglob("*") if layout(web).instance in path.name] == []
    assert layout(web).machine("web") not in call("machinectl", "list", "--no-legend")
