"""Pure: the host's side as units of systemd's: shared services, the network, the target, the slice of all.

The services are started by what reconciles the host, which the network's unit is at boot. So they wait for no other
unit, but end with that one; and the network is there before any workspace is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hutch.host.services.cgroup import SERVICE_MEMORY, SERVICE_TASKS
from hutch.host.services.units import WRITTEN_BY, quoted, quoted_path
from hutch.search_path import SEARCH_PATH
from hutch.spec.names import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, PACKAGE, Layout
from hutch.spec.programs import own_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hutch.host.services.service import Service

DOCUMENTATION = "Documentation=man:hutch(1)"
FIREWALLS = ("nftables.service", "ufw.service", "firewalld.service")  # each begins with rules of its own
ORDER = (
    f"After=systemd-sysctl.service network-pre.target network.target {' '.join(FIREWALLS)}",
    "Before=docker.service",
)
"""The order in which a network begins: after all programs that load rules for the host's packets, but for Docker."""
START_SECONDS, STOP_SECONDS = 300, 300
END_SECONDS = 10  # that a service has to end: the longest has something to write down, for three
FOLD_SECONDS = 900
SPREAD_SECONDS, REFRESH_TRIES = 21600, 3
PERIODS = ("daily", "weekly", "monthly")
"""The periods of `auto_refresh`, as systemd's calendar calls them."""
SANDBOX = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "KeyringMode=private",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
)
"""The sandbox of every service; each adds lines of its own."""


def render_service(service: Service, layout: Layout, needs: Sequence[str] = ()) -> str:
    """The unit of a service for all workspaces. One that says its pid writes it to the pid file. It waits for the units
    that it `needs`."""
    pid: tuple[str, ...] = (f"PIDFile={service.pid_file}",)
    if service.says_pid:
        pid = (f"StandardOutput=truncate:{service.pid_file}", "StandardError=journal")
    lines = [
        "[Unit]",
        f"Description=hutch: {service.name}",
        DOCUMENTATION,
        f"PartOf={' '.join((layout.network_unit, *layout.stopped_by))}",
        *(f"{relation}={unit}" for relation in ("Requires", "After") for unit in needs),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"Type={'exec' if service.says_pid else 'forking'}",
        f"Slice={layout.slice_of_all}",
        f"MemoryMax={SERVICE_MEMORY}",
        "MemorySwapMax=0",
        f"TasksMax={SERVICE_TASKS}",
        "OOMPolicy=kill",
        f"TimeoutStopSec={END_SECONDS}",
        f"ExecSearchPath={SEARCH_PATH}",
        f"ExecStart={' '.join(map(quoted, service.argv))}",
        *pid,
        *((f"NetworkNamespacePath={service.namespace}",) if service.namespace else ()),
        "Restart=on-failure",
        "RestartSec=1",
        "RestartSteps=5",
        "RestartMaxDelaySec=60",
        *SANDBOX,
        *service.sandbox,
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_network(layout: Layout, python: str) -> str:
    """The unit that reconciles the host for all workspaces, and clears it. It comes after all programs that load rules
    for the host's packets, but for Docker: that leaves forwarded packets alone if the host forwards them already."""
    command = own_program("hutch.apply.boot", python, needs_others=True)
    about = "network, names and keys of all workspaces"
    lasting = f"TimeoutStartSec={START_SECONDS}\nTimeoutStopSec={STOP_SECONDS}\n"
    return network_unit(layout, about, needed(layout, python), command, own_environment(layout)) + lasting


def needed(layout: Layout, python: str) -> tuple[str, ...]:
    """The paths that a program of hutch's own works with."""
    return (str(layout.state), str(layout.run), python, str(PACKAGE))


def own_environment(layout: Layout) -> tuple[str, ...]:
    """The settings by which such a program finds a hutch that is not in the usual places."""
    is_usual = (str(layout.state), str(layout.run)) == (DEFAULT_STATE_DIR, DEFAULT_RUN_DIR)
    return () if is_usual else (f"HUTCH_STATE_DIR={layout.state}", f"HUTCH_RUN_DIR={layout.run}")


def render_fold(layout: Layout, python: str) -> str:
    """The unit that folds into the records what others than root have told for them."""
    words = " ".join(map(quoted, own_program("hutch.apply.boot", python, needs_others=True)))
    lines = [
        "[Unit]",
        "Description=hutch: the records of what workspaces did",
        DOCUMENTATION,
        f"RequiresMountsFor={' '.join(map(quoted_path, (*needed(layout, python), str(layout.audits))))}",
        "",
        "[Service]",
        "Type=oneshot",
        *(f"Environment={setting}" for setting in own_environment(layout)),
        f"ExecStart={words} fold",
        f"TimeoutStartSec={START_SECONDS}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_fold_timer(layout: Layout) -> str:
    """The timer for that, where no command of root's comes before it. It runs while workspaces may."""
    lines = [
        "[Unit]",
        "Description=hutch: when the records of what workspaces did are brought up to date",
        DOCUMENTATION,
        *(f"PartOf={unit}" for unit in layout.stopped_by),
        "",
        "[Timer]",
        f"OnActiveSec={FOLD_SECONDS}",
        f"OnUnitInactiveSec={FOLD_SECONDS}",
        "",
        "[Install]",
        f"WantedBy={layout.target}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def occasional_units(layout: Layout) -> list[str]:
    """The host's own units that are there for some workspaces only."""
    return [layout.guards_unit, *(unit for period in PERIODS for unit in refresh_units(layout, period))]


def refresh_units(layout: Layout, period: str) -> tuple[str, str]:
    """The timer, and the service that it starts, by which images are made anew once in each `period`."""
    return f"{layout.instance}-refresh-{period}.timer", f"{layout.instance}-refresh-{period}.service"


def render_refresh(layout: Layout, python: str, period: str) -> str:
    """The unit that makes the images anew of the workspaces whose `auto_refresh` this period is. Where it fails, the
    images that are there stay in use."""
    words = " ".join(map(quoted, own_program("hutch.apply.boot", python, needs_others=True)))
    lines = [
        "[Unit]",
        f"Description=hutch: images that are made anew {period}",
        DOCUMENTATION,
        *(f"PartOf={unit}" for unit in layout.stopped_by),
        f"RequiresMountsFor={' '.join(map(quoted_path, needed(layout, python)))}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=1d",
        f"StartLimitBurst={REFRESH_TRIES}",
        "",
        "[Service]",
        "Type=oneshot",
        *(f"Environment={setting}" for setting in own_environment(layout)),
        f"ExecStart={words} refresh {period}",
        "Restart=on-failure",  # a host that has just been resumed may have no network yet
        "RestartSec=1h",
        "TimeoutStartSec=infinity",  # each step of a build has a deadline of its own
        "Nice=10",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_refresh_timer(layout: Layout, period: str) -> str:
    """The timer for that. A host that was off makes up for it, and many hosts do not ask an archive all at once."""
    lines = [
        "[Unit]",
        f"Description=hutch: when images are made anew {period}",
        DOCUMENTATION,
        *(f"PartOf={unit}" for unit in layout.stopped_by),
        "",
        "[Timer]",
        f"OnCalendar={period}",
        f"RandomizedDelaySec={SPREAD_SECONDS}",
        "Persistent=yes",
        "",
        "[Install]",
        f"WantedBy={layout.target}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_guards(layout: Layout, python: str) -> str:
    """The unit that guards what workspaces have written, when the host boots and before anybody logs in, once disks of
    other hosts are there. What runs later, systemd or hutch guards when it starts it."""
    words = " ".join(map(quoted, own_program("hutch.apply.boot", python, needs_others=True)))
    lines = [
        "[Unit]",
        "Description=hutch: nosuid and nodev for what workspaces have written",
        DOCUMENTATION,
        f"RequiresMountsFor={' '.join(map(quoted_path, needed(layout, python)))}",
        "After=remote-fs.target",
        f"Before=systemd-user-sessions.service {layout.network_unit}",
        "",
        "[Service]",
        "Type=oneshot",
        *(f"Environment={setting}" for setting in own_environment(layout)),
        f"ExecStart={words} guard",
        f"TimeoutStartSec={START_SECONDS}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def network_unit(
    layout: Layout, about: str, mounts: Iterable[str], command: Iterable[str], environment: Iterable[str] = ()
) -> str:
    """The unit of a network: it begins by the command with the word `start`, ends by that with `stop`, and needs the
    mounts on the way to `mounts`."""
    words = " ".join(map(quoted, command))
    lines = [
        "[Unit]",
        f"Description=hutch: {about}",
        DOCUMENTATION,
        *(f"PartOf={unit}" for unit in layout.stopped_by),
        f"RequiresMountsFor={' '.join(map(quoted_path, mounts))}",
        *ORDER,
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"Slice={layout.slice_of_all}",
        *(f"Environment={setting}" for setting in environment),
        f"ExecStart={words} start",
        f"ExecStop={words} stop",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_slice(layout: Layout, memory: int) -> str:
    """The slice of all that runs of this hutch, with `memory`, in bytes, as its limit. It is there for as long as
    anything in it is."""
    lines = [
        "[Unit]",
        "Description=hutch: workspaces, and what serves them",
        DOCUMENTATION,
        "StopWhenUnneeded=yes",
        "",
        "[Slice]",
        f"MemoryMax={memory}",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"


def render_target(layout: Layout) -> str:
    """The target of all workspaces that start when the host boots: systemd has it wait for what it wants, and the
    host's own target wait for it."""
    lines = [
        "[Unit]",
        "Description=hutch: workspaces",
        DOCUMENTATION,
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return WRITTEN_BY + "\n".join(lines) + "\n"
