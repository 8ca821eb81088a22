"""Pure: a Launch as a unit of systemd's, and as the script that this runs: the only description of a workspace that
runs. Where systemd is not process 1, runtime/runner does for such a unit what systemd does.

A workspace is one service. Its main process is what the Launch says, in a mount namespace of its own and in the
router's network namespace; a shell makes what it needs there and becomes it, or stays beside it. The service lies in a
slice of its own, which has the limits.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hutch.backends.launch import File, Helper, Launch, Limits, Step
from hutch.host.services.cgroup import DEPTH, DESCENDANTS
from hutch.host.services.units import WRITTEN_BY, quoted, quoted_path
from hutch.runtime.pre_exec import encode_steps
from hutch.search_path import SEARCH_PATH
from hutch.spec.names import PACKAGE, Layout
from hutch.spec.programs import own_program

LIBRARY = Path(__file__).with_name("unit.sh")
RESTART_SECONDS, MOST_RESTART_SECONDS = 2, 60  # from a failure to the next start, at first and at last
STEPS = 5  # from the first to the last of these
MOST_STARTS, STARTS_SECONDS = 8, 120  # for a systemd before 254, which knows no steps
SLACK = 0.5  # seconds that a start may have been under way before its script could look at the clock
SERVES = (
    'while systemctl is-active --quiet "$1"; do [ ! -s "$2" ] || exit 0; sleep 0.05; done; '
    'echo "$1 does not serve" >&2; exit 1'
)
"""Waits until an active unit has written its pid file, which it does when it serves."""
LOG_SECONDS, LOG_BYTES, LOG_LINES = 30, 1 << 18, 1000  # in so long, so much of what a console says is logged


def render_service(launch: Launch, layout: Layout, served_by: Mapping[str, str] = MappingProxyType({})) -> str:
    """The workspace's own unit. It does not start unless the units that it is `served_by` serve, each with a pid file;
    when one of them is started again later, it goes on."""
    script, booted = layout.unit_script(launch.workspace), f"{launch.runtime}/run"
    reboots = " ".join(map(str, launch.restart_codes))
    lines = [
        "[Unit]",
        f"Description=Workspace {launch.workspace} ({launch.backend})",
        "Documentation=man:hutch(1)",
        f"Requires={layout.network_unit}",
        f"After={layout.network_unit}",
        *(f"{relation}={unit}" for relation in ("Wants", "After") for unit in served_by),
        *(f"PartOf={unit}" for unit in layout.stopped_by),
        f"RequiresMountsFor={' '.join(map(quoted_path, launch.shares))}",
        f"StartLimitIntervalSec={STARTS_SECONDS}",
        f"StartLimitBurst={MOST_STARTS}",
        "",
        "[Service]",
        "Type=notify",
        f"Slice={layout.slice(launch.workspace)}",
        "TasksMax=infinity",  # but for the slice's: the host's own for a service may be lower
        "Delegate=yes",
        "PrivateMounts=yes",
        f"NetworkNamespacePath={launch.network_namespace}",
        "KeyringMode=private",
        "OOMPolicy=continue",
        # The console's output is the guest's: it has no priorities, and a name of its own in the journal.
        f"SyslogIdentifier={layout.machine(launch.workspace)}",
        "SyslogLevelPrefix=no",
        *launch.sandbox,
        *(f"ExecStartPre=/bin/sh -c {quoted(SERVES)} sh {unit} {quoted(file)}" for unit, file in served_by.items()),
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
        f"WantedBy={layout.target}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_slice(launch: Launch) -> str:
    """The slice, with the resources that the workspace and its helpers may use together."""
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
    """The limits as properties of a slice; an empty CPUQuota means no quota."""
    return (
        f"CPUQuota={f'{limits.cpus * 100}%' if limits.cpus else ''}",
        f"MemoryMax={limits.memory or 'infinity'}",
        f"MemorySwapMax={0 if limits.memory else 'infinity'}",
        f"TasksMax={limits.tasks or 'infinity'}",
    )


def render_script(launch: Launch, python: str, package: Path = PACKAGE, record: str = "") -> str:
    """The script that the service runs: the Launch in the words of a shell, and the code that all services share.
    `package` is the directory of hutch's code, or of the part that the script needs, and `record` the file in which it
    tells of starts and ends, "" for none."""
    settings = {
        "runtime": launch.runtime,
        "record": record,
        "unit": launch.unit,
        "backend": launch.backend,
        "cgroup": launch.cgroup,
        "where": json.dumps(launch.cgroup),
        "patience": f"{launch.start_seconds:g}",
        "overdue": str(int((launch.start_seconds - SLACK) * 100)),  # hundredths of a second
        "calm": str(STARTS_SECONDS),
        "reboot": " ".join(map(str, launch.restart_codes[:1])),
        "depth": str(DEPTH),
        "descendants": str(DESCENDANTS),
        "shows": "yes" if launch.post_start or launch.hot_mounts else "",
        "watches": "yes" if launch.watch else "",
        "period": str(LOG_SECONDS),
        "most_bytes": str(LOG_BYTES),
        "most_lines": str(LOG_LINES),
        "PATH": SEARCH_PATH,
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "SYSTEMD_LOG_COLOR": "0",
    }
    program = own_program("hutch.runtime.pre_exec", python, package)
    words = (f"{launch.start_seconds:g}", *encode_steps((step.why, step.argv) for step in launch.pre_exec))
    steps = (*launch.post_start, *(mount.attach for mount in launch.hot_mounts))
    functions = (
        function("forget", [f'rm -f -- "$@" {shlex.join(file.path for file in launch.files)}'.rstrip()]),
        function("files", files(launch.directories, launch.files)),
        function("guard", (_step(replace(step, argv=("on_the_host", *step.argv))) for step in launch.guards)),
        function("prepare", side_by_side(launch.prepare)),
        function("join", [line for stage in launch.connect for line in side_by_side([(step,) for step in stage])]),
        function("helpers", map(_serve, launch.helpers)),
        function("launch", [f"exec {shlex.join(with_seccomp(launch, python, package))}"]),
        function("pre_exec", [f'{shlex.join((*program, *words))} "$@"']),
        function("post_start", [_step(step, ' "$1"') for step in steps]),
        function("watch", [f'exec {shlex.join(launch.watch.argv)} "$1"'] if launch.watch else ()),
        function("shrink", [_step(launch.balloon)] if launch.balloon else ()),
        function("cleanup", map(_step, launch.cleanup)),
        *(function(name, [f'exec {shlex.join(argv)} "$@"']) for name, argv in launch.commands.items()),
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
    return "\n".join(lines) + f"\n{launch.dialect}\n" + LIBRARY.read_text(encoding="utf-8")


def with_seccomp(launch: Launch, python: str, package: Path = PACKAGE) -> tuple[str, ...]:
    """The main process, with its seccomp filter: a program of ours installs that, and becomes it."""
    if launch.seccomp is None:
        return launch.argv
    program = own_program("hutch.seccomp.install", python, package)
    wanted = (launch.seccomp.system_calls, launch.seccomp.other_families_than)
    return (*program, *map(",".join, wanted), *launch.argv)


def side_by_side(chains: Sequence[Sequence[Step]]) -> list[str]:
    """Lines that run chains of steps beside each other, and wait for all."""
    if len(chains) == 1:
        return [_step(step) for step in chains[0]]
    lines = []
    for number, chain in enumerate(chains):
        lines += ["{", f"  chain={number}", *(f"  {_step(step)}" for step in chain), "} &", f"chain{number}=$!"]
    return [*lines, f"all_ended {' '.join(f'$chain{number}' for number in range(len(chains)))}"] if chains else []


def files(directories: Iterable[str], contents: Sequence[File]) -> list[str]:
    """Lines that make directories, and files."""
    lines = [f"set -- {shlex.join(directories)}", 'are_there "$@" || mkdir -p "$@"']
    if contents:
        writing = [(f.is_public, f"printf %s {shlex.quote(f.content)} >{shlex.quote(f.path)}") for f in contents]
        lines += ["umask 077", *(line for is_public, line in writing if not is_public)]
        lines += ["umask 022", *(line for is_public, line in writing if is_public)]
    for uid in sorted({file.uid for file in contents} - {0}):
        lines.append(f"chown {uid}:{uid} -- {shlex.join(file.path for file in contents if file.uid == uid)}")
    return lines


def function(name: str, lines: Iterable[str]) -> str:
    body = "".join(f"  {line}\n" for line in lines) or "  :\n"
    return f"{name}() {{\n{body}}}\n"


def _serve(helper: Helper) -> str:
    words = (helper.why, helper.socket, str(helper.open_files), *helper.argv)
    return f"serve {shlex.join(words)}"


def _step(step: Step, more: str = "") -> str:
    """A line that runs the step."""
    return f"{'attempt' if step.may_fail else 'step'} {shlex.quote(step.why)} {shlex.join(step.argv)}{more}"
