"""Plan, up, change, stop, remove: what is planned is what happens, and nothing more."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.host.egress import eventually
from tests.host.instance import HUTCH, Instance
from tests.host.processes import ended
from tests.host.residue import cgroups_of


def reasons(action: dict[str, list[dict[str, object]]]) -> dict[object, tuple[object, object]]:
    return {reason["key"]: (reason["old"], reason["new"]) for reason in action["reasons"]}


def test_plan_up_plan(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    assert shared.plan()[name]["action"] == "create"
    assert shared.hutch("plan", "--check", check=False).returncode == 3
    assert name in shared.hutch("plan").stdout
    assert not (shared.state / "workspaces" / name).exists()  # a plan is only a plan

    shared.up()
    assert shared.plan()[name]["action"] == "no change"
    assert shared.hutch("plan", "--check", check=False).returncode == 0

    shared.hutch("down")
    assert shared.status(name)["state"] == "stopped"
    assert shared.plan()[name]["action"] == "start"
    shared.up(name)
    assert shared.status(name)["state"] == "running"


def test_no_start(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.hutch("up", "--no-start")
    assert shared.status(name)["state"] == "stopped"
    shared.hutch("start", name)
    shared.ssh(name)


def test_no_start_stops_nothing(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    before = shared.status(name)["pid"]
    shared.declare(workspace_type, **{name: 'shell = "/bin/sh"'})
    told = shared.hutch("up", "--no-start")
    assert "--no-start" in told.stdout + told.stderr
    found = shared.status(name)
    assert (found["state"], found["pid"], found["pending"]) == ("running", before, "restart")
    shared.up()
    assert shared.status(name)["pending"] == "none"


def seconds_to_refuse(instance: Instance, name: str) -> float:
    """The seconds that ssh takes to say that a stopped workspace is not there."""
    began = time.monotonic()
    assert "No route to host" in instance.ssh(name, check=False).stderr
    return time.monotonic() - began


def test_start_stop_restart_may_be_repeated(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    first = shared.status(name)["pid"]
    shared.hutch("start", name)
    assert shared.status(name)["pid"] == first
    shared.hutch("restart", name)
    assert shared.status(name)["pid"] != first
    shared.ssh(name)
    for _ in range(2):
        shared.hutch("stop", name)
        assert shared.status(name)["state"] == "stopped"
        assert shared.status(name)["pid"] is None
    # On a busy machine, ssh itself may be held up; with questions a second apart, no try takes less than three.
    assert min(seconds_to_refuse(shared, name) for _ in range(3)) < 2
    result = shared.inside(name, "true", check=False)
    assert result.returncode == 1
    assert "stopped" in result.stderr or "not running" in result.stderr


@pytest.mark.vm(slow=True)
def test_a_second_up_writes_nothing_and_starts_nothing(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: 'publish = ["18080:80"]'})
    shared.up()
    before = shared.status(name)
    running, image = before["pid"], before["image_id"]
    trace = shared.directory / "trace"
    calls = "trace=%file,fchmod,fchown,ftruncate"
    # A file for each process: in a common one, a call during which another process does something is torn in two.
    command = ["strace", "--follow-forks", "--output-separately", "--quiet=all", "--string-limit=300"]
    command += [f"--output={trace}", "-e", calls]
    subprocess.run(
        [*command, *HUTCH, "up"],
        check=True,
        timeout=60,
        cwd=shared.directory,
        env=shared.environment(),
        capture_output=True,
    )
    lines = []
    for part in shared.directory.glob("trace.*"):
        lines += [line for line in part.read_text().splitlines() if " = -1 " not in line]
        part.unlink()
    mine = (str(shared.state), str(shared.run), "/etc/", "/run/")
    writes = [line for line in lines if is_write(line) and any(f'"{place}' in line for place in mine)]
    # Other parts of the tier build in the same directory of images: whether they still do, their locks tell.
    theirs = re.compile(rf'"{re.escape(str(shared.state))}/images/(?!{re.escape(image)})[^/"]*\.lock"')
    assert [line for line in writes if not theirs.search(line)] == []
    started = [line for line in lines if "execve(" in line and any(word in line for word in STARTED)]
    assert started == []
    assert shared.status(name)["pid"] == running


def is_write(call: str) -> bool:
    """Whether a line of strace's shows a change of a file; taking the lock is none."""
    if call.startswith(("execve(", "+++", "---")):
        return False
    if call.startswith("open"):
        return any(flag in call for flag in ("O_WRONLY", "O_RDWR", "O_TRUNC")) and "/dev/" not in call
    return any(call.startswith(change) for change in CHANGES)


STARTED = ("nspawn", "qemu", "virtiofsd", "hutch.runtime")
CHANGES = (
    *("creat", "rename", "mkdir", "rmdir", "unlink", "link", "symlink", "mknod", "trunc", "utime"),
    *("chmod", "fchmod", "chown", "lchown", "fchown", "setxattr", "lsetxattr", "mount", "umount"),
)


def test_a_changed_shell_restarts(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: 'shell = "/bin/bash"'})
    shared.up()
    pid = shared.status(name)["pid"]
    shared.declare(workspace_type, **{name: 'shell = "/bin/sh"'})
    assert shared.status(name)["pending"] == "none"  # the file says so, nobody asked for it yet
    planned = shared.plan()[name]
    assert planned["action"] == "restart"
    assert list(reasons(planned)) == ["shell"]
    shared.up()
    assert shared.ssh(name, "echo $0").stdout == "sh\n"
    assert shared.status(name)["pid"] != pid


def test_restart_if_changed_false_leaves_it_running(shared: Instance, name: str, workspace_type: str) -> None:
    keys = 'restart_if_changed = false\nshell = "/bin/{}"'
    shared.declare(workspace_type, **{name: keys.format("bash")})
    shared.up()
    pid = shared.status(name)["pid"]
    shared.declare(workspace_type, **{name: keys.format("sh")})
    shared.up()
    assert shared.status(name)["pid"] == pid
    assert shared.status(name)["pending"] == "restart"
    assert shared.ssh(name, "echo $0").stdout == "bash\n"
    shared.hutch("restart", name)
    assert shared.ssh(name, "echo $0").stdout == "sh\n"
    assert shared.status(name)["pending"] == "none"


def test_a_live_change_restarts_nothing(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    pid = shared.status(name)["pid"]
    shared.inside(name, "python3", "-c", DAEMON)
    shared.declare(workspace_type, **{name: 'autostart = true\npublish = ["18081:8080"]'})
    planned = shared.plan()[name]
    assert planned["action"] == "live"
    assert set(reasons(planned)) == {"autostart", "publish"}
    assert fetch(18081) == ""
    shared.up()
    assert shared.status(name)["pid"] == pid
    assert "200" in fetch(18081)
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    assert fetch(18081) == ""
    assert shared.status(name)["pid"] == pid


DAEMON = """
import http.server, os
web = http.server.HTTPServer(("0.0.0.0", 8080), http.server.SimpleHTTPRequestHandler)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
web.serve_forever()
"""


def fetch(port: int) -> str:
    command = ["curl", "--silent", "--max-time", "2", "--write-out", "%{http_code}", f"http://127.0.0.1:{port}/"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return result.stdout if result.returncode == 0 else ""


def test_persist_all_is_recreated_with_its_home(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    shared.ssh(name, "echo kept > ~/kept")
    shared.declare(workspace_type, **{name: 'persist = "all"'})
    planned = shared.plan()[name]
    assert planned["action"] == "recreate"
    assert reasons(planned) == {"persist": ("home", "all")}
    shared.up()
    assert shared.ssh(name, "cat ~/kept").stdout == "kept\n"


@pytest.mark.parametrize("key", ["cid = 77", 'hypervisor = "qemu"'])
def test_a_key_without_effect_is_said(shared: Instance, name: str, key: str) -> None:
    shared.declare("container", **{name: key})
    assert f"{key.split()[0]} has no effect" in shared.hutch("plan").stdout


def test_a_guest_that_powers_itself_off_is_stopped(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    main = os.pidfd_open(shared.status(name)["pid"])
    shared.inside(name, "systemctl", "poweroff", root=True, check=False)
    ended(main)
    assert eventually(lambda: shared.status(name)["state"] == "stopped", 30)  # until then, it is cleaned up after it
    shared.hutch("start", name)
    shared.ssh(name)


def test_a_guest_that_reboots_comes_back_clean(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    shared.inside(name, "sh", "-c", "echo x > /etc/mark", root=True)
    before = shared.status(name)["pid"]
    main = os.pidfd_open(before)
    shared.inside(name, "systemctl", "reboot", root=True, check=False)
    ended(main)
    await_running(shared, name)
    assert shared.status(name)["pid"] != before
    assert shared.inside(name, "test", "-e", "/etc/mark", check=False).returncode != 0
    shared.ssh(name)


@pytest.mark.parametrize(
    "verb", ["up", "rm", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("start", "stop", "restart"))]
)
def test_one_that_is_about_to_come_back_obeys(shared: Instance, name: str, workspace_type: str, verb: str) -> None:
    """A command comes between the end and the next start, which is two seconds later."""
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    main = os.pidfd_open(shared.status(name)["pid"])
    shared.inside(name, "systemctl", "reboot", root=True, check=False)
    ended(main)
    shared.hutch(verb, *(() if verb == "up" else ("--force", name) if verb == "rm" else (name,)))
    if verb in ("stop", "rm"):
        time.sleep(4)  # by then it would have come back
        assert (name in shared.names()) == (verb == "stop")
        if verb == "stop":
            assert shared.status(name)["state"] == "stopped"
    else:
        assert shared.status(name)["state"] == "running"
        shared.ssh(name)


def await_running(shared: Instance, name: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while shared.status(name)["state"] != "running":
        assert time.monotonic() < deadline, shared.status(name)
        time.sleep(0.1)


@pytest.mark.vm
def test_explain_prints_commands_that_a_shell_can_read(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.hutch("up", "--no-start")
    text = shared.hutch("explain", name).stdout
    program = {"container": "systemd-nspawn", "vm": "qemu-system-"}[workspace_type]
    lines = [line.strip() for line in text.splitlines() if program in line and "--" in line]
    assert lines
    assert all(shlex.split(line.rstrip("\\")) for line in lines)


def test_limits(shared: Instance, name: str, workspace_type: str) -> None:
    """Where the host can, a workspace cannot take more than its memory; where it cannot, `up` says so."""
    shared.declare(workspace_type, **{name: 'memory = "256MiB"\nvcpus = 1'})
    result = shared.up()
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    enforced = controllers.exists() and {"memory", "cpu"} <= set(controllers.read_text().split())
    v1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
    if not enforced and not v1:
        assert "memory" in result.stderr
        return
    limits = [path.read_text().strip() for path in cgroup_files(shared, ("memory.max", "memory.limit_in_bytes"))]
    assert str(256 * 2**20) in limits or "memory" in result.stderr


def cgroup_files(shared: Instance, names: tuple[str, ...]) -> list[Path]:
    found = [path for top in cgroups_of(shared) for path in Path(top).rglob("*")]
    return [path for path in found if path.name in names]


def test_ls_of_json_is_status_of_all(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.hutch("up", "--no-start")
    assert [item["name"] for item in json.loads(shared.hutch("status", "--json").stdout)] == [name]
    unknown = shared.hutch("status", "absent", check=False)
    assert unknown.returncode in (1, 2)
    assert "absent" in unknown.stderr
