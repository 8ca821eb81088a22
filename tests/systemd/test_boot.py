"""A container and a virtual machine that start with the host: what systemd has of them, and two reboots.

They are those of the host's own hutch, in its usual places, since nobody sets variables when a host boots. Each boot
leaves its facts to the next. In the stand the machine runs under the stand's KVM: that is slow where the stand is
emulated, and yet faster than a machine that is emulated there.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hutch.host.network.namespace import has_namespace
from hutch.spec.names import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Layout
from tests.host.instance import DEFAULTS
from tests.support.enclosure import IMAGES
from tests.systemd.conftest import HAS_KERNEL, ask_for_another_boot, call
from tests.systemd.stand.start import OWN

TYPES = {"one": 'type = "container"', "two": 'type = "vm"\nvcpus = 1'}
NAMES = tuple(TYPES)
LAYOUT = Layout(Path(DEFAULT_STATE_DIR), Path(DEFAULT_RUN_DIR))
UNITS = Path("/etc/systemd/system")
FILE = OWN / "project" / "hutch.toml"
PATIENT = UNITS / f"{LAYOUT.instance}@.service.d" / "patient.conf"
"""This host may be emulated, on one that has other things to do, and several guests start at once."""
PATIENCE = 100  # seconds; what an emulated machine in an emulated host may take to answer
MEMORY, LESS_MEMORY = 512 << 20, 400 << 20
FACTS = OWN / "facts.json"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIE9a4D3FApx0bbUSIVYFwKsCfzCL1GKRWlPbwWhcCLx nobody"  # of accounts that go
SERVICES = LAYOUT.service_units
BOOTED = "multi-user.target"


def hutch(*words: str, timeout: float = 600.0) -> str:
    """The command line, as an administrator types it."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        [sys.executable, "-m", "hutch", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=FILE.parent,
        env=environment,
    )
    assert result.returncode == 0, f"hutch {' '.join(words)}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def declare(*, autostart: bool, memory: int = LESS_MEMORY) -> None:
    """The first one has a list of what it may reach, so that the egress proxy runs too."""
    keys = f'autostart = {str(autostart).lower()}\nauthorized_keys = ["{KEY}"]\nmemory = "{memory >> 20}MiB"'
    tables = [f"[workspaces.{name}]\n{type}\n{keys}\n" for name, type in TYPES.items()]
    FILE.write_text(f'[defaults]\n{DEFAULTS}\n{tables[0]}egress = ["public.example"]\n{"".join(tables[1:])}')


def show(units: Iterable[str], *names: str) -> dict[str, dict[str, str]]:
    """Properties of units, by unit and name. All at once: an emulated host takes most of a second for a command."""
    words = [word for name in ("Id", *names) for word in ("--property", name)]
    blocks = call("systemctl", "show", *words, *units).strip().split("\n\n")
    found = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in blocks]
    return {properties.pop("Id"): properties for properties in found}


def state(*units: str) -> dict[str, str]:
    return {unit: found["ActiveState"] for unit, found in show(units, "ActiveState").items()}


def moments(units: Iterable[str], what: str) -> dict[str, float]:
    """When each became so, in seconds since the kernel began; 0 for never."""
    name = f"{what}TimestampMonotonic"
    return {unit: int(found[name]) / 1e6 for unit, found in show(units, name).items()}


def facts() -> dict[str, Any]:
    """What a reboot is to leave as it is."""
    found = {item["name"]: item for item in json.loads(hutch("status", "--json"))}
    return {
        name: {
            "ip": found[name]["ip"],
            "mac": found[name]["mac"],
            "key": LAYOUT.host_key(name).with_suffix(".pub").read_text(),
            "kept": (LAYOUT.home(name) / "kept").read_text() if (LAYOUT.home(name) / "kept").exists() else "",
            "home": LAYOUT.home(name).stat().st_ino,
        }
        for name in NAMES
    }


def ssh(name: str, command: str) -> str:
    options = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={PATIENCE}")
    return call("ssh", *options, f"workspace-{name}", command, timeout=2 * PATIENCE)


def planned() -> tuple[set[str], list[object]]:
    """The actions of the plan, and the repairs."""
    found = json.loads(hutch("plan", "--json"))
    return {action["action"] for action in found["actions"]}, found["repairs"]


def guards() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for point in (line.split()[4] for line in lines) if point.startswith(f"{LAYOUT.workspaces}/")]


def left_running() -> dict[str, object]:
    """All that may be there only while the network is."""
    listed = call(
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--state=active,activating,deactivating",
        f"{LAYOUT.instance}*",
    )
    units = [line.split()[0] for line in listed.splitlines()]
    return {
        "units": [unit for unit in units if unit != "hutch-stand.service"],
        "namespace": has_namespace(LAYOUT),
        "uplink": LAYOUT.uplink_host in os.listdir("/sys/class/net"),
        "rules": LAYOUT.table in call("nft", "list", "tables").split(),
        "guards": guards(),
        "processes": processes(),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
    }


NOTHING = {
    "units": [],
    "namespace": False,
    "uplink": False,
    "rules": False,
    "guards": [],
    "processes": [],
    "forwarding": "0",
}


def processes() -> list[str]:
    """The command lines of all processes in the slices of this hutch, but for those of guests."""
    found = []
    for directory, _, _ in os.walk(Path("/sys/fs/cgroup") / LAYOUT.slice_of_all):
        if "/payload" not in directory:
            with suppress(OSError):  # it has just ended
                pids = Path(directory, "cgroup.procs").read_text().split()
                lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
                found += [line.replace("\0", " ") for line in lines]
    return found


@pytest.fixture(scope="module")
def project() -> None:
    """The images, and a file; for the boots to come as well. They need nothing around this host."""
    FILE.parent.mkdir(parents=True)
    LAYOUT.images.mkdir(parents=True)
    with open("/etc/fstab", "a") as file:
        file.write(f"{IMAGES} {LAYOUT.images} none bind 0 0\n")
    call("mount", str(LAYOUT.images))
    call("sysctl", "-w", "net.ipv4.ip_forward=0")
    PATIENT.parent.mkdir(exist_ok=True)
    PATIENT.write_text("[Service]\nTimeoutStartSec=900\nTimeoutStopSec=600\n")


@pytest.mark.boot(1)
def test_the_host_has_units_for_all_of_it(project: None) -> None:
    declare(autostart=True, memory=MEMORY)
    hutch("up", timeout=1200)
    units = [LAYOUT.target, LAYOUT.network_unit, *SERVICES, *map(LAYOUT.unit, NAMES)]
    assert state(*units) == dict.fromkeys(units, "active")
    enabled = call("systemctl", "is-enabled", LAYOUT.target, *map(LAYOUT.unit, NAMES)).split()
    assert enabled == ["enabled"] * (1 + len(NAMES))
    assert "python" not in "".join(item for item in processes() if "hutch.egress" not in item)
    call("systemctl", "status", LAYOUT.network_unit, *SERVICES)
    assert planned() == ({"no change"}, [])
    assert "Restart=on-failure" in hutch("explain", "one")


@pytest.mark.boot(1)
@pytest.mark.parametrize("unit", [*SERVICES, *map(LAYOUT.unit, NAMES)])
def test_what_is_killed_is_started_again(project: None, unit: str) -> None:
    before, run = int(show([unit], "MainPID")[unit]["MainPID"]), invocation(unit)
    assert before and run
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 600
    while (again := invocation(unit)) in ("", run):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    call("systemctl", "start", unit, timeout=600)  # it starts already: this waits for it, and starts nothing
    assert invocation(unit) == again
    now = show([unit], "MainPID", "ActiveState")[unit]
    assert now["ActiveState"] == "active" and now["MainPID"] != str(before)


def invocation(unit: str) -> str:
    """The id of a unit's present run, "" between two. It is read from a link: to ask systemd over and over again would
    take an emulated host more than the start does."""
    try:
        return os.readlink(f"/run/systemd/units/invocation:{unit}")
    except FileNotFoundError:
        return ""


@pytest.mark.boot(1)
def test_memory_changes_while_they_run(project: None) -> None:
    units = list(map(LAYOUT.unit, NAMES))
    before = show(units, "MainPID")
    declare(autostart=True, memory=LESS_MEMORY)
    hutch("up")
    assert show(units, "MainPID") == before
    assert planned() == ({"no change"}, [])
    if HAS_KERNEL:
        group = (Path("/sys/fs/cgroup") / LAYOUT.cgroup("one")).parent
        assert int((group / "memory.max").read_text()) == LESS_MEMORY
    total = f"until [ $(awk '/^MemTotal/ {{ print $2 }}' /proc/meminfo) -le {LESS_MEMORY >> 10} ]; do sleep 0.5; done"
    ssh("two", f"timeout {PATIENCE} sh -c {shlex.quote(total)}")


@pytest.mark.boot(1)
def test_the_host_is_rebooted(project: None) -> None:
    for name in NAMES:
        ssh(name, f"echo {name} >kept")
    FACTS.write_text(json.dumps(facts()))
    ask_for_another_boot()


@pytest.mark.boot(2)
def test_after_a_reboot_they_are_ready_in_order_before_the_host_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    workspaces = list(map(LAYOUT.unit, NAMES))
    units = [LAYOUT.network_unit, *SERVICES, *workspaces, LAYOUT.target, BOOTED]
    began, ready = moments(units, "InactiveExit"), moments(units, "ActiveEnter")
    with capsys.disabled():
        for unit in units:
            print(f"\n{unit}: {began[unit]:.2f} to {ready[unit]:.2f} s", end="")
    assert state(*units) == dict.fromkeys(units, "active")
    for unit in workspaces:
        assert ready[LAYOUT.network_unit] <= began[unit]
        assert ready[unit] <= ready[LAYOUT.target]
    assert ready[LAYOUT.target] <= ready[BOOTED]
    assert show(workspaces, "NRestarts") == {unit: {"NRestarts": "0"} for unit in workspaces}


@pytest.mark.boot(2)
def test_they_were_stopped_before_their_network() -> None:
    stopped = stops(LAYOUT.network_unit, *map(LAYOUT.unit, NAMES))
    assert set(stopped) == {LAYOUT.network_unit, *map(LAYOUT.unit, NAMES)}
    assert max(stopped.values()) == stopped[LAYOUT.network_unit]


def stops(*units: str) -> dict[str, float]:
    """When units were stopped at the end of the boot before this one."""
    words = ("--quiet", "--boot=-1", "--output=json", "JOB_TYPE=stop", "JOB_RESULT=done")
    lines = call("journalctl", *words, *(f"UNIT={unit}" for unit in units)).splitlines()
    return {entry["UNIT"]: int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6 for entry in map(json.loads, lines)}


@pytest.mark.boot(2)
def test_after_a_reboot_they_are_the_same() -> None:
    assert facts() == json.loads(FACTS.read_text())
    assert [ssh(name, "uname -n; cat kept") for name in NAMES] == [f"{name}\n{name}\n" for name in NAMES]
    assert len(guards()) == len(NAMES)
    assert [item["state"] for item in json.loads(hutch("status", "--json"))] == ["running"] * len(NAMES)


@pytest.mark.boot(2)
def test_stopping_the_target_leaves_nothing() -> None:
    call("systemctl", "stop", LAYOUT.target)
    deadline = time.monotonic() + 120  # systemctl waits for the target alone
    slice_of_all = Path("/sys/fs/cgroup") / LAYOUT.slice_of_all
    while slice_of_all.exists() and time.monotonic() < deadline:  # costs nothing to look at
        time.sleep(0.2)
    while left_running() != NOTHING and time.monotonic() < deadline:
        time.sleep(1)
    assert left_running() == NOTHING


@pytest.mark.slow
@pytest.mark.boot(2)
def test_starting_the_target_brings_all_back() -> None:
    call("systemctl", "start", LAYOUT.target, timeout=1200)
    assert state(*map(LAYOUT.unit, NAMES)) == dict.fromkeys(map(LAYOUT.unit, NAMES), "active")
    assert [ssh(name, "uname -n") for name in NAMES] == [f"{name}\n" for name in NAMES]
    assert facts() == json.loads(FACTS.read_text())
    assert len(guards()) == len(NAMES)
    hutch("up")
    assert planned() == ({"no change"}, [])


@pytest.mark.slow
@pytest.mark.boot(2)
def test_those_that_do_not_start_with_the_host_are_not_enabled() -> None:
    declare(autostart=False)
    hutch("up", timeout=1200)
    enabled = subprocess.run(
        ["systemctl", "is-enabled", *map(LAYOUT.unit, NAMES)], capture_output=True, text=True, timeout=60
    )
    assert enabled.stdout.split() == ["disabled"] * len(NAMES)
    ask_for_another_boot()


@pytest.mark.slow
@pytest.mark.boot(3)
def test_a_boot_that_starts_no_workspace_starts_nothing_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    others = [LAYOUT.network_unit, *SERVICES, *map(LAYOUT.unit, NAMES)]
    began, ready = moments([LAYOUT.target, *others], "InactiveExit"), moments([LAYOUT.target, BOOTED], "ActiveEnter")
    lasted = ready[LAYOUT.target] - began.pop(LAYOUT.target)
    with capsys.disabled():
        print(f"\n{LAYOUT.target} took {lasted:.3f} s of {ready[BOOTED]:.2f} s", end="")
    assert ready[LAYOUT.target] > 0
    assert began == dict.fromkeys(others, 0.0)
    assert left_running() == {**NOTHING, "units": [LAYOUT.target, LAYOUT.fold_units[0]]}
    assert planned() == ({"start"}, [])
    assert [item["warnings"] for item in json.loads(hutch("status", "--json"))] == [[]] * len(NAMES)


@pytest.mark.slow
@pytest.mark.boot(3)
def test_a_start_afterwards_reconciles_the_host() -> None:
    call("systemctl", "start", LAYOUT.unit("two"), timeout=900)
    assert ssh("two", "uname -n") == "two\n"
    assert state(LAYOUT.network_unit, LAYOUT.unit("one")) == {
        LAYOUT.network_unit: "active",
        LAYOUT.unit("one"): "inactive",
    }


@pytest.mark.slow
@pytest.mark.boot(3)
def test_the_last_purge_leaves_nothing() -> None:
    PATIENT.unlink()
    PATIENT.parent.rmdir()
    for name in NAMES:
        hutch("rm", "--purge", "--force", name)
    assert left_running() == NOTHING
    assert [path for path in UNITS.rglob("hutch*") if path.name != "hutch-stand.service"] == []
    assert not LAYOUT.run.exists()
    assert LAYOUT.instance not in Path("/etc/hosts").read_text()
