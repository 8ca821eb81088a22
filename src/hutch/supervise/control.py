"""The command's side of supervision: start, observe, stop, and clean up after a supervisor that was killed."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hutch import run
from hutch.backends.launch import Launch
from hutch.host.cgroup import Cgroup
from hutch.host.process import open_process
from hutch.spec.names import Places
from hutch.supervise.status import read_status, write_status

PACKAGE = Path(__file__).resolve().parent.parent
BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hutch.supervise.embedded import main; main(*sys.argv[2:])"
)
GRACE = 5.0  # seconds beyond its own deadlines that a supervisor is given

Listener = Callable[[str, str, str], None]
"""Called with (workspace, event, text); events are "warning", "ready" and "failed"."""


def start_all(
    places: Places, launches: Mapping[str, Launch], listen: Listener, meanwhile: Callable[[], None]
) -> dict[str, str]:
    """Start workspaces side by side and wait until each is ready or has failed; returns name -> why for the failed.

    `meanwhile` puts the network in place while the supervisors make their mounts; none of them joins the
    network before it has returned. When interrupted, those that are not ready yet are stopped.
    """
    starting: list[Starting] = []
    try:
        for name, launch in launches.items():
            starting.append(spawn(places, name, launch))
        meanwhile()
        for start in starting:
            start.go()
        return _await_all(starting, listen)
    except BaseException:
        stop_all(places, [start.name for start in starting if not start.is_ready])
        raise
    finally:
        for start in starting:
            start.close()


@dataclass(slots=True)
class Starting:
    """A supervisor on its way. `report` is where it tells how it goes, `gate` where it waits for the network."""

    name: str
    report: int
    gate: int
    is_ready: bool = False
    rest: bytes = b""

    def go(self) -> None:
        try:
            os.write(self.gate, b"1")
        except BrokenPipeError:
            pass  # it has failed already, and says so on the other descriptor

    def close(self) -> None:
        os.close(self.report)
        os.close(self.gate)


def _await_all(starting: list[Starting], listen: Listener) -> dict[str, str]:
    failures: dict[str, str] = {}
    waiting = {start.report: start for start in starting}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        for descriptor, _ in poll.poll():
            start = waiting[descriptor]
            data = os.read(descriptor, 65536)
            *lines, start.rest = (start.rest + data).split(b"\n")
            for message in map(json.loads, lines):
                start.is_ready |= message["event"] == "ready"
                if message["event"] == "failed":
                    failures[start.name] = message["text"]
                listen(start.name, message["event"], message["text"])
            if start.is_ready or not data:
                poll.unregister(descriptor)
                del waiting[descriptor]
            if not data and not start.is_ready and start.name not in failures:
                failures[start.name] = "its supervisor ended unexpectedly"
    return failures


def spawn(places: Places, name: str, launch: Launch) -> Starting:
    """Start the supervisor of one workspace."""
    runtime = places.runtime(name)
    if read_status(str(places.status(name))) is not None:
        clean_up(places, name)
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    places.launch(name).write_text(json.dumps(asdict(launch)), encoding="utf-8")
    places.launch(name).chmod(0o600)
    report, their_report = os.pipe2(os.O_CLOEXEC)
    their_gate, gate = os.pipe2(os.O_CLOEXEC)
    log = os.open(places.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        run.start(
            [
                *("unshare", "--mount", "--propagation", "slave", "--"),
                *("nsenter", f"--net={launch.network_namespace}", "--"),
                *(sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(PACKAGE.parent)),
                *(str(places.launch(name)), str(their_report), str(their_gate)),
            ],
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(their_report, their_gate),
            new_session=True,
        )
    finally:
        for descriptor in (their_report, their_gate, log):
            os.close(descriptor)
    return Starting(name, report, gate)


def stop_all(places: Places, names: Iterable[str], *, patience: float = 20.0) -> None:
    """Stop workspaces side by side: in order first, by force at the deadline (seconds); then leave nothing behind."""
    waiting: dict[int, str] = {}
    names = list(names)
    for name in names:
        status = read_status(str(places.status(name)))
        descriptor = None if status is None else open_process(status["pid"], status["started"])
        if descriptor is not None:
            waiting[descriptor] = name
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience + GRACE
    while waiting and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            poll.unregister(descriptor)
            del waiting[descriptor]
            os.close(descriptor)
    for descriptor in waiting:
        os.close(descriptor)
    for name in names:
        clean_up(places, name)


def clean_up(places: Places, name: str) -> None:
    """Make sure that nothing of a workspace runs or lies about, by what was booted; harmless when all is well."""
    cgroup = Cgroup(places.cgroup(name))
    try:
        cgroup.kill()
        cgroup.remove()
    finally:
        cgroup.close()
    status = read_status(str(places.status(name)))
    if status is None or status["state"] == "stopped":
        return
    launch = json.loads(places.launch(name).read_bytes())
    if os.path.exists(launch["network_namespace"]):
        for step in launch["cleanup"]:
            run.run(["nsenter", f"--net={launch['network_namespace']}", "--", *step["argv"]], check=False)
    if status["state"] != "failed":
        status |= {"state": "stopped", "reason": "", "since": time.time(), "leader": None}
        write_status(str(places.status(name)), status)


def forget(places: Places, name: str) -> None:
    """Remove the runtime directory of a stopped workspace; it is root's own, nothing in it is a guest's."""
    import shutil

    shutil.rmtree(places.runtime(name), ignore_errors=True)
    for parent in (places.run / "workspaces", places.run):
        try:
            parent.rmdir()
        except OSError:
            return
