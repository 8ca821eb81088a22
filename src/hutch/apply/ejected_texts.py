"""Pure: a workspace as plain units and files that go on working without hutch.

They are made by the renderers that hutch itself goes by. What hutch decides anew each time that it reconciles the host
is decided here once, and becomes a shell script.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hutch.backends import backends_of, is_machine
from hutch.backends.launch import Launch
from hutch.frozen import dataclass
from hutch.host.network import egress_proxy, firewall, router, ruleset
from hutch.host.network.firewall import Endpoint
from hutch.host.network.watch import FILTER, LIST, render_filter
from hutch.host.services import unit_texts
from hutch.host.services.service import Service
from hutch.host.services.units import WRITTEN_BY
from hutch.runtime import units
from hutch.runtime.units import function
from hutch.search_path import SEARCH_PATH
from hutch.spec import names
from hutch.spec.decisions import REFUSING
from hutch.spec.ejected import Ejected, Note, render_note
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.programs import own_program
from hutch.spec.record import writable_paths

VIEWS = "views.json"
NETWORK_LIBRARY = Path(__file__).with_name("ejected_network.sh")
REMOVAL_LIBRARY = Path(__file__).with_name("ejected_remove.sh")
README = Path(__file__).with_name("ejected_readme.txt")
PYTHON = "/usr/bin/python3"
"""The host's own Python, for the programs that steps run, and for services: all that they need beside its standard
library goes along."""
PROGRAMS = (
    *("host/storage/bind.py", "host/storage/unbind.py", "host/storage/mountinfo.py", "host/storage/hot_mount.py"),
    *("host/storage/protecting.py", "host/storage/protected.py", "host/storage/guest_paths.py"),
    *("host/storage/git_config.py", "host/storage/placeholders.py", "host/storage/protection_watch.py"),
    *("host/storage/mount_calls.py", "host/storage/disk.py", "seccomp/install.py", "seccomp/filters.py"),
    *("runtime/pre_exec.py", "runtime/steps.py", "host/services/cgroup.py", "host/storage/sys.sh"),
    *("trees/changing.py", "trees/cursor.py", "failure.py", "files.py", "inotify.py", "libc.py", "search_path.py"),
    *("texts.py", "runtime/hear.py", "host/services/listen.py", "host/hardware/tap.py", "host/hardware/context_id.py"),
)
PACKAGES = tuple(
    f"{package}__init__.py"
    for package in (
        *("", "backends/", "host/", "host/hardware/", "host/services/", "host/storage/"),
        *("egress/", "runtime/", "seccomp/", "spec/", "trees/"),
    )
)
EGRESS_PROGRAMS = (
    *(f"egress/{name}.py" for name in ("__main__", "answers", "front", "journal", "keeper", "known", "nflog", "proxy")),
    *(f"egress/{name}.py" for name in ("reasons", "record", "sets", "telling", "upstream", "views")),
    *(
        f"spec/{name}.py"
        for name in ("decisions", "entries", "field_types", "kinds", "model", "names", "policy", "ranges")
    ),
    *("spec/record.py", "spec/values.py", "errors.py", "frozen.py", "inboxes.py"),
)
"""Those of the egress proxy, for a workspace whose traffic is watched."""


def modules_of(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """Those that only what may run the workspace needs."""
    return tuple(module for backend in backends_of(workspace) for module in backend.TRAITS.modules)


DNSPYTHON = "dns"
"""The name of dnspython's package, beside hutch's."""
PARTS = (
    *("image", "keys", "network", "programs", "units", "known_hosts", "hosts", "README", "remove", "egress", "log"),
    *(f"workspace/{part}" for part in ("root", "ssh", "unit", "disk", "disk.new")),
)
"""The parts that the script `remove` deletes: everything but the home."""


@dataclass(frozen=True)
class Text:
    """A file of an ejected workspace; a script where it `runs`. One that holds secrets is root's alone."""

    content: str
    runs: bool = False
    is_secret: bool = False

    @property
    def mode(self) -> int:
        return (0o755 if self.runs else 0o644) & (0o700 if self.is_secret else 0o777)


@dataclass(frozen=True)
class Ejection:
    """A workspace to be ejected: its layout, its Launch there, its settings and network, and the services for it. One
    whose traffic is watched has views, by which the egress proxy goes."""

    layout: Ejected
    launch: Launch
    workspace: WorkspaceSpec
    endpoint: Endpoint
    network: Network
    uid_base: int
    services: tuple[Service, ...]
    views: str = ""


def render_units(subject: Ejection) -> dict[str, str]:
    """The units by their names. The workspace's own comes first."""
    layout, launch = subject.layout, subject.launch
    note = Note(layout.name, str(layout.state), subject.endpoint.ip, subject.uid_base)
    serving = {layout.service_unit(service.pid_file): service for service in subject.services}
    found = {
        launch.unit: units.render_service(launch, layout, {unit: each.pid_file for unit, each in serving.items()})
        + render_note(note),
        layout.slice(launch.workspace): units.render_slice(launch),
        layout.network_unit: unit_texts.network_unit(
            layout,
            "network",
            (str(layout.state), *writable_paths(subject.workspace)),
            ("/bin/sh", str(layout.network / "run")),
        ),
        **{
            unit: unit_texts.render_service(service, layout, (layout.network_unit,))
            for unit, service in serving.items()
        },
    }
    return {unit: _plain(text, layout) for unit, text in found.items()}


def _plain(text: str, layout: Ejected) -> str:
    """The text of a unit, with references to the directory in place of those to hutch."""
    header = f"# Of the workspace {layout.name}, see {layout.readme}. Nothing writes it anew.\n"
    text = text.replace(WRITTEN_BY, header).replace(unit_texts.DOCUMENTATION, f"Documentation=file:{layout.readme}")
    return text.replace("Description=hutch: ", f"Description=Workspace {layout.name}: ")


def render_files(subject: Ejection) -> dict[Path, Text]:
    """All other texts, by their paths."""
    layout, launch = subject.layout, subject.launch
    tables = firewall.router_tables(layout, subject.network, (subject.endpoint,), ())
    outer = firewall.host_tables(layout, subject.network, (subject.endpoint,))
    script = layout.unit_script(layout.name)
    return {
        script: Text(units.render_script(launch, PYTHON, layout.programs), runs=True, is_secret=True),
        script.with_name("launch.json"): Text(json.dumps(asdict(launch)), is_secret=True),
        layout.network / "run": Text(render_network(subject), runs=True),
        layout.network / "router.nft": Text(ruleset.render_tables(tables)),
        layout.network / "host.nft": Text(ruleset.render_tables(outer)),
        layout.network / FILTER: Text(render_filter(tables)),
        **({layout.network / VIEWS: Text(subject.views)} if subject.views else {}),
        layout.uplink_file: Text(f"{subject.network.uplink}\n"),
        layout.removal: Text(render_removal(subject), runs=True),
        layout.readme: Text(render_readme(subject)),
        **{layout.state / "units" / unit: Text(text) for unit, text in render_units(subject).items()},
        **{layout.programs / package: Text("") for package in PACKAGES},
    }


def render_network(subject: Ejection) -> str:
    """The script that makes the network and takes it away, as hutch does when it reconciles a host."""
    layout, network = subject.layout, subject.network
    settings = {
        "here": str(layout.state),
        "run": str(layout.run),
        "namespace": layout.namespace,
        "uplink": layout.uplink_host,
        "mac": layout.uplink_mac,
        "tag": router.tag(layout),
        "bind": shlex.join((PYTHON, "-I", "-S", str(layout.programs / "host" / "storage" / "bind.py"))),
        "list": LIST,
    }
    in_router = f"ip -n {layout.namespace} -batch -"
    sysctls = router.wanted_sysctls(layout, (subject.endpoint,))
    kernel = [f"echo {value} >/proc/sys/{name}" for name, value in sysctls.items() if name != router.FORWARDING]
    _, router_end = names.uplink_addresses(network.uplink)
    way_in = f"ip route replace {subject.endpoint.ip} via {router_end} dev {layout.uplink_host}"
    functions = (
        function("make_namespace", [shlex.join(router.render_namespace(layout))]),
        _fed(
            "make_uplink",
            ("ip -batch -", router.render_uplink(layout, network)),
            (in_router, router.render_router_end(layout, network)),
        ),
        _fed("make_bridge", (in_router, router.render_bridge(network)), (in_router, router.render_fence(network))),
        function("make_way_in", [way_in]),
        function("settings", kernel),
        function("watched", _for_egress_proxy(layout) if subject.views else ()),
        function("unbind", [_program(layout, "hutch.host.storage.unbind", '"$1"')]),
        function("writable", [f'"$1" {shlex.quote(path)}' for path in writable_paths(subject.workspace)]),
    )
    about = f"The network of the workspace {layout.name}: `start` makes it, `stop` takes it away."
    return _script(about, settings, functions) + NETWORK_LIBRARY.read_text(encoding="utf-8")


def _for_egress_proxy(layout: Ejected) -> list[str]:
    """Lines that make what the egress proxy finds at its start, as hutch does: its views, the directory of its socket,
    and those of its records, whose mode may have been changed since. There is no inbox: nobody reads what it has to
    tell, beside its records."""
    views, uid = egress_proxy.views_file(layout), str(layout.egress_uid)
    records = str(layout.egress_records(layout.name))
    commands = (
        ("install", "-d", str(egress_proxy.inboxes(layout))),
        ("chown", uid, records),
        ("install", "-d", "-m", "700", "-o", uid, str(layout.egress_control)),
        ("install", "-d", "-m", "750", "-g", uid, str(views.parent)),
        ("install", "-m", "644", str(layout.network / VIEWS), str(views)),
    )
    make = f"[ -d {shlex.quote(records)} ] || {shlex.join(('install', '-d', '-m', '700', records))}"
    return [make, *map(shlex.join, commands)]


def _program(layout: Ejected, module: str, arguments: str) -> str:
    """A line that runs a module which imports others; `arguments` in the words of the shell."""
    return f"{shlex.join(own_program(module, PYTHON, layout.programs))} {arguments}"


def render_removal(subject: Ejection) -> str:
    layout, workspace = subject.layout, subject.workspace
    all_units = render_units(subject)
    own = str(layout.home(layout.name))
    others = [path for path in writable_paths(workspace) if path != own]
    settings = {
        "name": layout.instance,
        "unit": layout.unit(layout.name),
        "units": " ".join(reversed(all_units)),
        "here": str(layout.state),
        "run": str(layout.run),
        "home": str(workspace.home),
        "drop_in": str(layout.ssh_config),
        "parts": " ".join(PARTS),
        "owner": str(workspace.owner),
        "first": str(subject.uid_base),
        "count": str(names.UID_COUNT),
    }
    functions = (
        function("shared", [f'"$1" {shlex.quote(path)}' for path in others]),
        function("take_setuid", [_program(layout, "hutch.trees.changing", '"$1" "$owner" "$first" "$count"')]),
    )
    about = f"Takes the workspace {layout.name} away, and keeps its home."
    return _script(about, settings, functions) + REMOVAL_LIBRARY.read_text(encoding="utf-8")


def _script(about: str, settings: Mapping[str, str], functions: Sequence[str]) -> str:
    words = {**settings, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    lines = [
        "#!/bin/sh",
        f"# {about}",
        "set -eu",
        *(f"{name}={shlex.quote(value)}" for name, value in words.items()),
        "export PATH LC_ALL",
        "",
        *functions,
    ]
    return "\n".join(lines) + "\n"


def _fed(name: str, *commands: tuple[str, str]) -> str:
    """A function of commands, each with its standard input."""
    fed = "".join(f"  {command} <<'END'\n{text}END\n" for command, text in commands)
    return f"{name}() {{\n{fed}}}\n"


def render_readme(subject: Ejection) -> str:
    layout, workspace = subject.layout, subject.workspace
    kind, needs, inside, image = _of_machine(subject) if is_machine(workspace) else _of_container(layout)
    return README.read_text(encoding="utf-8").format(
        subject=subject,
        layout=layout,
        workspace=workspace,
        name=layout.name,
        unit=layout.unit(layout.name),
        slice=layout.slice(layout.name),
        kind=kind,
        needs=f"{needs}, bubblewrap" if subject.views and "bubblewrap" not in needs else needs,
        inside=inside,
        image=image,
        hostname=names.hostname(layout.name),
        last=subject.uid_base + names.UID_COUNT - 1,
        proxy=_of_egress_proxy(subject),
        reach=_reach_of(subject),
        published="".join(f"Published, as host:guest: {item}\n" for item in workspace.publish),
        python=PYTHON,
    )


def _of_egress_proxy(subject: Ejection) -> str:
    """Words of the README about the files of the egress proxy, if it has one."""
    layout = subject.layout
    if not subject.views:
        return ""
    return (
        f"    network/{VIEWS}  what the egress proxy lets through\n"
        f"    egress/{layout.name}/\n"
        "                        its records of what was asked for and refused since it was ejected: root's, and its\n"
        f"                        account's, {layout.egress_uid}\n"
        "    log/inbox/          empty: nobody reads here what it tells beside that\n"
        "    programs/dns/       its dnspython, as it was then\n"
    )


def _reach_of(subject: Ejection) -> str:
    """Words of the README about what it may reach, and how that is changed."""
    policy = subject.endpoint.policy
    if policy.learn or policy.kind not in REFUSING:
        return (
            f'What it may reach does not change any more; it is what egress = "{subject.workspace.egress}" says'
            f"{', with learn' if policy.learn else ''}. The rules for\n"
            f"that are network/router.nft; restart {subject.layout.network_unit} after a change there."
        )
    return (
        "What it may reach is what egress said, with what people have decided, for as long as they said. To open one\n"
        f'name more, put ["name.example", true, 0, null] at the end of "decisions" in network/{VIEWS};\n'
        f"to close one of those, delete it there; and restart {subject.layout.network_unit}. Change none\n"
        "of the rest: network/router.nft knows the list by a checksum, and with another one no listed name is reached."
    )


def _of_container(layout: Ejected) -> tuple[str, str, str, str]:
    """Words of the README: its kind, the programs that it needs, the ways inside, and its image."""
    return (
        "a container of systemd-nspawn",
        "systemd-container",
        f"    journalctl -M {layout.machine(layout.name)}\n                                  its own journal\n",
        "    image/root/         the tree that the guest is made from, never written\n",
    )


def _of_machine(subject: Ejection) -> tuple[str, str, str, str]:
    """The same for a virtual machine."""
    launch, has_kvm = subject.launch, subject.launch.facts["accelerator"] == "kvm"
    inside, console = "", f"{launch.runtime}/console"
    if console in launch.argv:  # it listens there
        inside += (
            f"    socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{console}\n"
            "                                  its console; Ctrl-] leaves it\n"
        )
    if not has_kvm:
        inside += (
            "    workspace/unit/run            tells it the rate of this host's time stamp counter, by tsc_early_khz\n"
            "                                  and lpj: on other hardware, change both, or its clock is wrong\n"
        )
    image = (
        "    workspace/disk      the root's changes while it runs, if they have a disk and are not kept\n"
        "    image/boot/         the kernel, the initrd and the root that the machine boots from, never written\n"
    )
    kind = f"a virtual machine of {launch.backend}, {'under KVM' if has_kvm else 'without KVM'} for good"
    return kind, f"{launch.backend}, virtiofsd, bubblewrap, e2fsprogs, tar, socat", inside, image
