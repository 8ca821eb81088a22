"""The shell that a service runs, one command of it at a time: what it says of a workspace that has ended or is ready,
and what it lets through of a console."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch.runtime.status import Status, read_status
from hutch.runtime.units import LIBRARY

CGROUP = "hutch.slice/hutch-a\\x2db.slice/hutch@a-b.service"
STUBS = f"""
set -eu
reboot=133 calm=120 patience=60 overdue=6000 backend=nspawn unit=hutch@web.service
cgroup=none where='{json.dumps(CGROUP)}'
cleanup() {{ :; }}
systemctl() {{ echo "$*" >>"$runtime/told"; }}
"""


def said(runtime: Path, verb: str, record: Path | str = "", **environment: str) -> Status:
    script = runtime / "run"
    script.write_text(f"runtime={runtime} record={record}\n{STUBS}{LIBRARY.read_text()}")
    path = {"PATH": os.environ["PATH"]}
    subprocess.run(["sh", script, verb], env={**path, **environment}, check=True, timeout=20, stdout=subprocess.PIPE)
    found = read_status(str(runtime / "status.json"))
    assert found is not None
    return found


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    (tmp_path / "noted").mkdir()
    (tmp_path / "noted" / "begun").write_text("100")
    return tmp_path


ENDS = {
    "it was asked to": ({"asked", "ready_seconds"}, ("success", "exited", "0"), "stopped", ""),
    "it powered off": ({"ready_seconds"}, ("success", "exited", "0"), "stopped", "it powered off by itself"),
    "it reboots": ({"ready_seconds"}, ("success", "exited", "133"), "stopped", "rebooting"),
    "called off": (set(), ("success", "killed", "TERM"), "stopped", "the start was called off"),
    "by force": ({"asked", "ready_seconds"}, ("timeout", "killed", "KILL"), "stopped", ""),
    "in disorder": ({"asked", "ready_seconds"}, ("exit-code", "exited", "7"), "stopped", ""),
    "overdue": (set(), ("timeout", "killed", "TERM"), "failed", "not ready after 60 s"),
    "overdue, once ready": ({"ready_seconds"}, ("timeout", "killed", "KILL"), "failed", "it did not end in time"),
    "too early": (set(), ("protocol", "exited", "0"), "failed", "the guest ended before it was ready"),
    "reboots too early": (set(), ("protocol", "exited", "133"), "failed", "the guest rebooted before it was ready"),
    "never begun": (set(), ("exit-code", None, None), "failed", "nspawn ended with code none"),
    "with a code": ({"ready_seconds"}, ("exit-code", "exited", "7"), "failed", "nspawn ended with code 7"),
    "killed": ({"ready_seconds"}, ("signal", "killed", "KILL"), "failed", "nspawn was killed by SIGKILL"),
    "else": ({"ready_seconds"}, ("oom-kill", "killed", "KILL"), "failed", "systemd ended it: oom-kill"),
}


@pytest.mark.parametrize(("noted", "how", "state", "reason"), ENDS.values(), ids=ENDS)
def test_how_it_ended(
    runtime: Path, noted: set[str], how: tuple[str, str | None, str | None], state: str, reason: str
) -> None:
    for name in noted:
        (runtime / "noted" / name).write_text("1.5")
    told = zip(("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"), how, strict=True)
    found = said(runtime, "stopped", **{name: value for name, value in told if value is not None})
    assert (found.state, found.reason, found.leader, found.cgroup) == (state, reason, None, CGROUP)


def test_a_start_that_was_called_off_by_force(runtime: Path) -> None:
    """A guest that is held, or has just begun, hears nobody, and its time to end runs out before that to start."""
    (runtime / "noted" / "begun").write_text(str(round(float(Path("/proc/uptime").read_text().split()[0]) * 100)))
    found = said(runtime, "stopped", SERVICE_RESULT="timeout", EXIT_CODE="killed", EXIT_STATUS="KILL")
    assert (found.state, found.reason) == ("stopped", "the start was called off")


def test_which_step_was_overdue(runtime: Path) -> None:
    for name, text in {"step": "", "step0": "", "step1": "wait for the far end", "step2": ""}.items():
        (runtime / "noted" / name).write_text(text)
    found = said(runtime, "stopped", SERVICE_RESULT="timeout", EXIT_CODE="killed", EXIT_STATUS="TERM")
    assert found.reason == "cannot wait for the far end: it had not ended after 60 s"


@pytest.mark.parametrize(("begun", "is_forgiven"), [("100", True), (None, False)], ids=["calm", "at once"])
def test_reboots_count_unless_it_ran_for_a_while(runtime: Path, begun: str | None, is_forgiven: bool) -> None:
    now = Path("/proc/uptime").read_text().split()[0].replace(".", "")
    for name, text in (("ready_seconds", "1.5"), ("begun", begun or now)):
        (runtime / "noted" / name).write_text(text)
    said(runtime, "stopped", SERVICE_RESULT="success", EXIT_CODE="exited", EXIT_STATUS="133")
    told = runtime / "told"
    assert (told.read_text() if told.exists() else "") == (
        "--no-block reset-failed hutch@web.service\n" if is_forgiven else ""
    )


def test_what_failed_is_told_whatever_it_says(runtime: Path) -> None:
    text = "cannot 'share \\x' \"y\": a\tb\nc\x1b[31m"
    (runtime / "noted" / "reason").write_text(text)
    found = said(runtime, "stopped", SERVICE_RESULT="exit-code", EXIT_CODE="exited", EXIT_STATUS="1")
    assert found.reason == "cannot 'share \\x' \"y\": a b\nc[31m"


def test_when_it_is_ready(runtime: Path) -> None:
    for name, text in (("shown", "yes"), ("leader", f"[{os.getpid()}, 7]"), ("begun", "100")):
        (runtime / "noted" / name).write_text(text)
    found = said(runtime, "ready", MAINPID=str(os.getpid()))
    assert (found.state, found.pid, found.leader) == ("running", os.getpid(), (os.getpid(), 7))
    assert found.ready_seconds is not None and found.ready_seconds > 0
    began = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert found.started == int(began)


def test_that_it_is_told_to_end(runtime: Path) -> None:
    found = said(runtime, "stopping", MAINPID=str(os.getpid()))
    assert (found.state, found.pid, found.reason) == ("stopping", os.getpid(), "")
    found = said(runtime, "stopped", SERVICE_RESULT="success", EXIT_CODE="exited", EXIT_STATUS="0")
    assert (found.state, found.reason) == ("stopped", "")


def test_who_asked(runtime: Path) -> None:
    """Whoever waits for it just now; not a command that is gone, and nobody where it ends by itself."""
    record, ended = (
        runtime / "box" / "service",
        {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"},
    )
    record.parent.mkdir()
    for asker in (f"1000 {os.getpid()}", "1000 4194305", "", None):
        (runtime / "by").unlink(missing_ok=True)
        if asker is not None:
            (runtime / "by").write_text(asker)
        said(runtime, "stopping", record, MAINPID=str(os.getpid()))
        said(runtime, "stopped", record, **ended)
    (runtime / "by").write_text(f"1000 {os.getpid()}")
    (runtime / "noted" / "asked").unlink()
    (runtime / "noted" / "by").write_text("1000")  # who started it
    said(runtime, "stopped", record, **ended)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["by"] for line in lines] == [1000, None, None, None, None]


@contextmanager
def relay(*prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """What passes on at most 5000 bytes and 50 lines in two seconds."""
    script = f"set -eu\nperiod=2 most_bytes=5000 most_lines=50\n{LIBRARY.read_text()}"
    pipe = subprocess.PIPE
    with subprocess.Popen([*prefix, "sh", "-c", script, "sh", "relay"], stdin=pipe, stdout=pipe, bufsize=0) as process:
        yield process
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "flood", [b"x" * 100_000, b"x\n" * 50_000, b"\\x %s\t\xff" * 10_000], ids=["long", "short", "odd"]
)
@pytest.mark.parametrize("is_alone", [False, True], ids=["as root", "alone"])
def test_a_console_that_floods_is_cut_short(flood: bytes, is_alone: bool) -> None:
    """What comes before and after the flood is said, with how much of it is not; single words come at once. It takes no
    process more than it has: a workspace may have no more of them to give."""
    alone = ("prlimit", "--nproc=1", "--", "setpriv", "--reuid=54321", "--clear-groups", "--")
    with relay(*(alone if is_alone else ())) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"first")
        assert process.stdout.read(100) == b"first"
        process.stdin.write(flood)
        heard = b""
        while not heard.endswith(b" left out\n"):
            heard += process.stdout.read(1 << 16)
        passed = heard[: heard.rindex(b"\n", 0, -1)]
        assert flood.startswith(passed)
        assert heard == passed + b"\n%d bytes more were said, and are left out\n" % (len(flood) - len(passed))
        assert len(passed) <= 5000 and passed.count(b"\n") <= 50
        process.stdin.write(b"last")
        process.stdin.close()
        assert process.stdout.read(100) == b"last"
        assert process.stdout.read(100) == b""
