"""The shell that a service runs, here without systemd: what it says of a workspace that has ended or is ready."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hutch.runtime.status import read_status
from hutch.runtime.units import LIBRARY

STUBS = 'set -eu\nreboot=133 calm=120 unit=hutch@web.service\ncleanup() { :; }\nsystemctl() { echo "$*"; }\n'


def said(runtime: Path, verb: str, **environment: str) -> dict[str, Any]:
    script = runtime / "unit"
    script.write_text(f"runtime={runtime}\n{STUBS}{LIBRARY.read_text()}")
    path = {"PATH": os.environ["PATH"]}
    subprocess.run(["sh", script, verb], env={**path, **environment}, check=True, timeout=20, stdout=subprocess.PIPE)
    found = read_status(str(runtime / "status.json"))
    assert found is not None
    return found


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    (tmp_path / "noted").mkdir()
    (tmp_path / "noted" / "begun").write_text("100")
    (tmp_path / "noted" / "cgroup").write_text("hutch.slice/hutch-a\\x2db.slice/hutch@a-b.service")
    return tmp_path


ENDS = {
    "it was asked to": ({"asked", "ready_seconds"}, ("success", "exited", "0"), "stopped", ""),
    "it powered off": ({"ready_seconds"}, ("success", "exited", "0"), "stopped", "it powered off by itself"),
    "it reboots": ({"ready_seconds"}, ("success", "exited", "133"), "stopped", "rebooting"),
    "called off": (set(), ("success", "killed", "TERM"), "stopped", "the start was called off"),
    "by force": ({"asked", "ready_seconds"}, ("timeout", "killed", "KILL"), "stopped", ""),
    "in disorder": ({"asked", "ready_seconds"}, ("exit-code", "exited", "7"), "stopped", ""),
    "overdue": (set(), ("timeout", "killed", "TERM"), "failed", "it was not ready in time"),
    "too early": (set(), ("protocol", "exited", "0"), "failed", "the guest ended before it was ready"),
    "with a code": ({"ready_seconds"}, ("exit-code", "exited", "7"), "failed", "its main process ended with code 7"),
    "killed": ({"ready_seconds"}, ("signal", "killed", "KILL"), "failed", "its main process was killed by SIGKILL"),
    "else": ({"ready_seconds"}, ("oom-kill", "killed", "KILL"), "failed", "systemd ended it: oom-kill"),
}


@pytest.mark.parametrize(("noted", "how", "state", "reason"), ENDS.values(), ids=ENDS)
def test_how_it_ended(runtime: Path, noted: set[str], how: tuple[str, str, str], state: str, reason: str) -> None:
    for name in noted:
        (runtime / "noted" / name).write_text("1.5")
    found = said(runtime, "stopped", **dict(zip(("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"), how, strict=True)))
    assert (found["state"], found["reason"], found["leader"]) == (state, reason, None)
    assert found["cgroup"] == "hutch.slice/hutch-a\\x2db.slice/hutch@a-b.service"


def test_what_failed_is_told_whatever_it_says(runtime: Path) -> None:
    text = "cannot 'share \\x' \"y\": a\tb\nc\x1b[31m"
    (runtime / "noted" / "reason").write_text(text)
    found = said(runtime, "stopped", SERVICE_RESULT="exit-code", EXIT_CODE="exited", EXIT_STATUS="1")
    assert found["reason"] == "cannot 'share \\x' \"y\": a b\nc[31m"


def test_when_it_is_ready(runtime: Path) -> None:
    for name, text in (("shown", "yes"), ("leader", f"[{os.getpid()}, 7]"), ("begun", "100")):
        (runtime / "noted" / name).write_text(text)
    found = said(runtime, "ready", MAINPID=str(os.getpid()))
    assert (found["state"], found["pid"], found["leader"]) == ("running", os.getpid(), [os.getpid(), 7])
    assert found["ready_seconds"] > 0


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
