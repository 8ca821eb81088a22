"""Small processes that serve all workspaces: observed by their arguments, started, and ended.

Where systemd is process 1, each is a unit of its own, which is started again when it fails. Elsewhere none of them
watches over another: what has gone is started again by the next command that reconciles the host. While it is gone,
less works and nothing is open.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import kept_open, remove_flat
from hutch.frozen import dataclass
from hutch.host.services.cgroup import (
    JOIN,
    SERVICE_MEMORY,
    SERVICE_TASKS,
    Cgroup,
    control_files,
    memory_for_workspaces,
)
from hutch.host.services.process import arguments, start_time, terminate
from hutch.host.services.units import (
    directory,
    ensure_units,
    has_systemd,
    last_words,
    remove_units,
    systemctl,
    written_units,
)
from hutch.run import PIPE, Popen, TimeoutExpired, start
from hutch.spec.names import Layout
from hutch.state import make_directory

READY_SECONDS = 20.0
END_SECONDS = 5.0
UNIT_SECONDS = 100.0  # that systemd has to start or end one, by force in the end


@dataclass(frozen=True)
class Service:
    """One such process. `name` is shown to people; `pid_file` names it, and stands in its arguments; `namespace` is
    where it runs ("" for the host's own). `argv` starts it: a program that goes into the background once it serves, or
    one that `says_pid`: it stays, and writes the serving pid to its output then. `shown` are the arguments that this
    has, where they are others. `sandbox` are lines of its unit that take away needless rights."""

    name: str
    pid_file: str
    namespace: str
    argv: tuple[str, ...]
    says_pid: bool = False
    shown: tuple[str, ...] = ()
    sandbox: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """The command that starts it, as a sysadmin may replay it."""
        return (*(("nsenter", f"--net={self.namespace}", "--") if self.namespace else ()), *self.argv)


def only_writes(directory: Path) -> tuple[str, ...]:
    """The lines of a sandbox in which this directory can be written, wherever it is."""
    return f"BindPaths={directory}", f"ReadWritePaths={directory}"


def observe_service(service: Service) -> int | None:
    """The pid of that very process, None when it does not run. A pid file alone proves nothing; its arguments do, and
    where it runs: its namespace may have been made anew."""
    try:
        with open(service.pid_file, encoding="ascii") as file:
            pid = int(file.read())
        found = arguments(pid)
        is_there = os.path.samefile(f"/proc/{pid}/ns/net", service.namespace or "/proc/self/ns/net")
    except (OSError, ValueError):
        return None
    return pid if found == (service.shown or service.argv) and is_there else None


def start_services(layout: Layout, services: Sequence[Service]) -> None:
    """Start services, each in place of the rest of an earlier one. Raises HutchError for one that does not run then."""
    make_directory(layout.services)
    for service in services:
        stop_service(layout, service.pid_file)
    if services and has_systemd():
        _start_units(layout, services)
        return
    for service in services:
        _start_here(layout, service)


def _start_units(layout: Layout, services: Sequence[Service]) -> None:
    """Start services as units, all at once."""
    # Spares the start-up of `hutch start`.
    from hutch.host.services.unit_texts import render_service, render_slice

    units = {layout.service_unit(service.pid_file): service for service in services}
    texts = {unit: render_service(service, layout) for unit, service in units.items()}
    ensure_units({layout.slice_of_all: render_slice(layout, memory_for_workspaces()), **texts})
    systemctl("start", *units, check=False, timeout=UNIT_SECONDS)  # its result is looked at
    deadline = time.monotonic() + UNIT_SECONDS
    for unit, service in units.items():
        while observe_service(service) is None:
            if time.monotonic() > deadline:
                details = last_words(unit, 15)
                systemctl("stop", unit, check=False)  # it would be tried for ever
                raise HutchError(
                    f"{service.name} does not run although {unit} was started",
                    details=details,
                    resolution=f"`systemctl start {unit}` tries again; to replay it: {shlex.join(service.command)}",
                )
            time.sleep(0.01)


def _start_here(layout: Layout, service: Service) -> None:
    """Start a service in a cgroup of its own, within bounds, outside of the caller's session."""
    log = Path(service.pid_file).with_suffix(".log")
    log.unlink(missing_ok=True)
    with closing(Cgroup(f"{layout.services_cgroup}/{_group_of(service.pid_file)}")) as cgroup:
        cgroup.make()
        # One of several processes is no service any more.
        cgroup.limit({**control_files(None, SERVICE_MEMORY, SERVICE_TASKS), "memory.oom.group": "1"})
        with (
            kept_open(cgroup.open("")) as group,
            open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as errors,
        ):
            joining = (*JOIN, "/dev/null", *service.command)
            process = start(joining, stdin=group, stdout=PIPE, stderr=errors, new_session=True)
        if not _serves(service, process):
            cgroup.kill()
            process.kill()  # where it has not come as far as that
            process.wait()
    if observe_service(service) is None:
        raise HutchError(
            f"{service.name} does not run although it was started",
            details=log.read_text(encoding="utf-8", errors="replace"),
            resolution=f"to replay it: {shlex.join(service.command)}",
        )


def _serves(service: Service, process: Popen[bytes]) -> bool:
    """Wait until a service serves, as it says or shows by going into the background; False for one that does not."""
    assert process.stdout is not None
    with process.stdout as said, suppress(TimeoutExpired):
        if not service.says_pid:
            process.wait(READY_SECONDS)
            return True
        line = said.readline(16) if select.select([said], [], [], READY_SECONDS)[0] else b""
        if line.strip().isdigit():
            Path(service.pid_file).write_bytes(line)
            return True
    return False


def stop_service(layout: Layout, pid_file: str) -> None:
    """End the service that this pid file names, and all that it has started, whatever became of these. It may be a
    unit, or what was started before there were units. Raises HutchError for what does not end."""
    if has_systemd() and (directory() / layout.service_unit(pid_file)).is_file():
        systemctl("stop", layout.service_unit(pid_file), timeout=UNIT_SECONDS)
    with closing(Cgroup(layout.services_cgroup)) as cgroup:
        own = _group_of(pid_file)
        with suppress(OSError, ValueError):
            pid = int(Path(pid_file).read_text(encoding="ascii"))
            started = start_time(pid)
            # Those of an older hutch are all in the cgroup above, and known by their pid files.
            if started is not None and pid in {*cgroup.processes(own), *cgroup.processes()}:
                terminate(pid, started, patience=END_SECONDS)  # it may have something to write down
        if not cgroup.kill(own):
            raise HutchError(
                f"processes in the cgroup {cgroup.path}/{own} do not end", resolution="look what they wait for"
            )
        cgroup.remove(own)
    Path(pid_file).unlink(missing_ok=True)


def _group_of(pid_file: str) -> str:
    """The name of a service's cgroup, among those of all services. Its processes are known by that alone: names and
    sessions are theirs to change."""
    return Path(pid_file).stem


def remove_retired(layout: Layout) -> None:
    """End another version's services that this one lacks, or has by another name, by pid files and by units."""
    pid_files = {str(path) for path in layout.services.glob("*.pid")}
    named = re.compile(rf"{re.escape(str(layout.services))}/[a-z-]+\.pid")
    for text in written_units(f"{layout.instance}-*.service"):
        pid_files.update(named.findall(text))
    for pid_file in pid_files:
        unit = layout.service_unit(pid_file)
        if unit not in layout.service_units:
            remove_units([unit])
            stop_service(layout, pid_file)
            remove_flat(layout.run / Path(pid_file).stem)


def remove_services(layout: Layout) -> None:
    """End all services, and remove their files."""
    # Spares the start-up of `hutch start`.
    from hutch.trees.removing import remove_tree

    remove_retired(layout)
    remove_units(layout.service_units)
    for pid_file in layout.services.glob("*.pid"):
        stop_service(layout, str(pid_file))
    with closing(Cgroup(layout.services_cgroup)) as cgroup:
        cgroup.kill()  # processes that have lost their pid file
        cgroup.remove()
    for told in (layout.services, layout.egress_control):
        remove_tree(told)  # a service may write there
    with suppress(OSError):
        layout.run.rmdir()
