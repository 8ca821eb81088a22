"""Pure: a Launch as units of systemd's, and as the script that they run.

A workspace is one service. Its main process is what the Launch says, in a mount namespace of its own and in the
router's network namespace; a shell makes what it needs there and becomes it. The service lies in a slice of its own,
which has the limits, with the helpers of a machine.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from hutch.backends.launch import File, Graft, Helper, Launch, Limits, Step
from hutch.host.services.cgroup import DEPTH, DESCENDANTS
from hutch.host.services.units import WRITTEN_BY, quoted, quoted_path
from hutch.run import SEARCH_PATH
from hutch.spec.names import PACKAGE, Places
from hutch.spec.programs import own_program

LIBRARY, MACHINE = (Path(__file__).with_name(name) for name in ("unit.sh", "machine.sh"))
RESTART_SECONDS, MOST_RESTART_SECONDS = 2, 60  # from a failure to the next start, at first and at last
STEPS = 5  # from the first to the last of these
MOST_STARTS, STARTS_SECONDS = 8, 120  # for a systemd before 254, which knows no steps
LOG_SECONDS, LOG_BYTES, LOG_LINES = 30, 1 << 18, 1000  # in so long, so much of what a console says goes to the journal
MACHINE_DIRECTIVES = (
    "DevicePolicy=closed",
    *(f"DeviceAllow={device} rw" for device in ("/dev/kvm", "/dev/net/tun", "/dev/vhost-vsock")),
    "SystemCallArchitectures=native",
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET",
    "ProtectClock=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
)
"""What binds a machine's processes beside the jails that they are in."""


def render_service(launch: Launch, places: Places, served_by: Sequence[str] = ()) -> str:
    """The workspace's own unit. It does not start unless the units are active that it is `served_by`; when one of them
    is started again later, it goes on."""
    script, booted = places.unit_script(launch.workspace), f"{launch.runtime}/unit"
    reboots = " ".join(map(str, launch.restart_codes))
    lines = [
        "[Unit]",
        f"Description=Workspace {launch.workspace} ({launch.backend})",
        "Documentation=man:hutch(1)",
        f"Requires={places.network_unit}",
        f"After={places.network_unit}",
        *(f"{relation}={unit}" for relation in ("Wants", "After") for unit in served_by),
        *(f"PartOf={unit}" for unit in places.stopped_by),
        f"RequiresMountsFor={' '.join(map(quoted_path, launch.shares))}",
        f"StartLimitIntervalSec={STARTS_SECONDS}",
        f"StartLimitBurst={MOST_STARTS}",
        "",
        "[Service]",
        "Type=notify",
        f"Slice={places.slice(launch.workspace)}",
        "TasksMax=infinity",  # but for the slice's: the host's own for a service may be lower
        "Delegate=yes",
        "PrivateMounts=yes",
        f"NetworkNamespacePath={launch.network_namespace}",
        "KeyringMode=private",
        "OOMPolicy=continue",
        # What the console says is the guest's: of no urgency, and nobody else's.
        f"SyslogIdentifier={places.machine(launch.workspace)}",
        "SyslogLevelPrefix=no",
        *(MACHINE_DIRECTIVES if launch.links else ()),
        *(f"ExecStartPre=systemctl is-active --quiet {unit}" for unit in served_by),
        f"ExecStart=/bin/sh {quoted(str(script))} start",
        f"ExecStartPost=/bin/sh {quoted(booted)} ready",
        f"ExecStop=-/bin/sh {quoted(booted)} stopping",
        f"ExecStopPost=-/bin/sh {quoted(booted)} stopped",
        "KillMode=mixed",
        f"TimeoutStartSec={launch.start_seconds:g}",
        f"TimeoutStopSec={launch.stop_seconds:g}",
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS}",
        f"RestartSteps={STEPS}",
        f"RestartMaxDelaySec={MOST_RESTART_SECONDS}",
        *((f"RestartForceExitStatus={reboots}", f"SuccessExitStatus={reboots}") if reboots else ()),
        "",
        "[Install]",
        f"WantedBy={places.target}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_slice(launch: Launch) -> str:
    """What the workspace and its helpers may use together."""
    lines = [
        "[Unit]",
        f"Description=What workspace {launch.workspace} may use",
        "StopWhenUnneeded=yes",
        "",
        "[Slice]",
        "IPAccounting=yes",
        "CPUWeight=100",
        *render_limits(launch.limits),
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_limits(limits: Limits) -> tuple[str, ...]:
    """Properties of a slice; an empty quota is none."""
    return (
        f"CPUQuota={f'{limits.cpus * 100}%' if limits.cpus else ''}",
        f"MemoryMax={limits.memory or 'infinity'}",
        f"MemorySwapMax={0 if limits.memory else 'infinity'}",
        f"TasksMax={limits.tasks or 'infinity'}",
    )


def render_script(launch: Launch, places: Places, python: str, package: Path = PACKAGE) -> str:
    """What the service runs: the Launch in the words of a shell, and what is the same for all. `package` is the
    directory of hutch's code, or of as much of it as that needs."""
    settings = {
        "runtime": launch.runtime,
        "unit": launch.unit,
        "calm": str(STARTS_SECONDS),
        "reboot": " ".join(map(str, launch.restart_codes[:1])),
        "depth": str(DEPTH),
        "descendants": str(DESCENDANTS),
        "balloon": str(launch.balloon or ""),
        "period": str(LOG_SECONDS),
        "most_bytes": str(LOG_BYTES),
        "most_lines": str(LOG_LINES),
        "PATH": SEARCH_PATH,
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "SYSTEMD_LOG_COLOR": "0",
    }
    functions = (
        function("files", [f"mkdir -p {shlex.join(launch.directories)}", *map(_put, launch.files)]),
        function("guard", map(_step, launch.guards)),
        function("prepare", side_by_side(launch.prepare)),
        function("connect", [line for stage in launch.connect for line in side_by_side([(step,) for step in stage])]),
        function("launch", [f"exec {shlex.join(confined(launch, python, package))}"]),
        function("inward", [_step(step, ' "$1"') for step in (*launch.inward, *_attaching(launch.grafts))]),
        function("cleanup", [_step(step) for step in launch.cleanup]),
        *(_machine(launch) if launch.links else _container(launch)),
    )
    lines = [
        "#!/bin/sh",
        f"# What {launch.workspace} is made of, and how it starts. Written by hutch, root's alone: it holds secrets.",
        "set -eu",
        "umask 022",
        *(f"{name}={shlex.quote(value)}" for name, value in settings.items()),
        "export PATH LC_ALL TERM SYSTEMD_LOG_COLOR",
        "",
        *functions,
    ]
    return "\n".join(lines) + "\n" + library(launch)


def _container(launch: Launch) -> tuple[str, ...]:
    return function("begin", ["contain"]), function("held", [_step(step, PID='"$1"') for step in launch.held])


def _machine(launch: Launch) -> tuple[str, ...]:
    return function("begin", ["emulate"]), function("helpers", map(_serve, launch.helpers))


def library(launch: Launch) -> str:
    """What is the same for all workspaces of its kind."""
    parts = (MACHINE, LIBRARY) if launch.links else (LIBRARY,)
    return "".join(part.read_text(encoding="utf-8") for part in parts)


def confined(launch: Launch, python: str, package: Path = PACKAGE) -> tuple[str, ...]:
    """The main process, bound to what is forbidden to it: a program of ours sees to that and becomes it. systemd's own
    filters know nothing of the other ABIs that a kernel offers."""
    if launch.forbidden is None:
        return launch.argv
    program = own_program("hutch.confine.install", python, package)
    return (*program, json.dumps(asdict(launch.forbidden)), *launch.argv)


def side_by_side(chains: Sequence[Sequence[Step]]) -> list[str]:
    """Lines that run chains of steps beside each other, and wait for all."""
    if len(chains) == 1:
        return [_step(step) for step in chains[0]]
    lines = []
    for number, chain in enumerate(chains):
        lines += ["{", *(f"  {_step(step)}" for step in chain), "} &", f"chain{number}=$!"]
    return [*lines, f"all_ended {' '.join(f'$chain{number}' for number in range(len(chains)))}"] if chains else []


def function(name: str, lines: Iterable[str]) -> str:
    body = "".join(f"  {line}\n" for line in lines) or "  :\n"
    return f"{name}() {{\n{body}}}\n"


def _put(file: File) -> str:
    return f"put {shlex.quote(file.path)} {file.uid} {shlex.quote(file.content)}"


def _serve(helper: Helper) -> str:
    words = (helper.why, helper.socket, str(helper.open_files), *helper.argv)
    return f"serve {shlex.join(words)}"


def _step(step: Step, more: str = "", **words: str) -> str:
    """A line that runs it. `words` stand for something else, in the words of the shell."""
    argv = (words.get(word) or shlex.quote(word) for word in step.argv)
    return f"{'attempt' if step.may_fail else 'step'} {shlex.quote(step.why)} {' '.join(argv)}{more}"


def _attaching(grafts: Iterable[Graft]) -> Iterator[Step]:
    return (graft.attach for graft in grafts)
