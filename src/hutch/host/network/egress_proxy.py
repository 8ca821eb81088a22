"""The egress proxy (hutch.egress) as a service: its jail, and its input.

It reads what guests and name servers send, so it is given next to nothing: an account without rights, the router's
network namespace, and programs to read. The right to fill sets and the directories to write in stay with its keeper
(hutch.egress.keeper), which leaves the other right once it has made the proxy namespaces of its own.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from hutch.backends.jail import PROGRAMS
from hutch.egress.views import digest
from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.network.firewall import EGRESS_PORT, UPSTREAM_PORT, Endpoint
from hutch.host.services.service import Service
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import PACKAGE, Layout
from hutch.state import make_directory
from hutch.trees.removing import remove_tree

SANDBOX = (
    "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_NET_ADMIN",
    "RestrictAddressFamilies=AF_INET AF_NETLINK AF_UNIX",
    "RestrictNamespaces=mnt ipc uts cgroup pid",
    "SystemCallFilter=@system-service @mount",
)
"""The rights that bwrap needs to make its jail, which has less. With RestrictSUIDSGID= it would have no openat2()."""
RENEW_SECONDS = 10.0
OWN = "/hutch"  # the directory of its programs inside


@dataclass(frozen=True)
class Programs:
    """What the egress proxy is run from: Python, the directories of hutch's package and of dnspython, and a mark by
    which one that has other code is known."""

    python: str
    package: Path
    dnspython: Path
    mark: str


def own_programs() -> Programs:
    """Those of this hutch. An upgrade puts others in their place, and an egress proxy of before is to go then."""
    code = os.stat(PACKAGE / "egress" / "__main__.py")
    return Programs(os.path.realpath(sys.executable), PACKAGE, find_dnspython(), f"{code.st_ino}-{code.st_mtime_ns}")


def wanted_egress_proxy(layout: Layout, programs: Programs) -> Service:
    """The egress proxy, as a service."""
    pid = str(pid_file(layout))
    named = (f"--pid-file={pid}", f"--code={programs.mark}")
    places = (views_file(layout), control_socket(layout), layout.egress, inboxes(layout))
    told = (*map(str, places), *named)
    uid = layout.egress_uid
    command = (programs.python, "-s", "-S", "-m", "hutch.egress", *told)
    only = "-all,+net_admin,+sys_admin"
    sandbox = (*SANDBOX, f"ReadWritePaths={layout.egress_control} {layout.egress} {inboxes(layout)}")
    argv = (
        *("bwrap", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", *_shown(programs), *_directories(layout)),
        *(word for capability in KEPT for word in ("--cap-add", capability)),
        *("--", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
        *(f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", "--no-new-privs", "--", *command),
    )
    return Service("the egress proxy", pid, str(layout.namespace_path), argv, True, command, sandbox)


KEPT = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_NET_ADMIN", "CAP_SYS_ADMIN")
"""The capabilities inside, until setpriv has dropped all but the last two."""


def trial(layout: Layout, programs: Programs) -> tuple[str, ...]:
    """The command that imports the egress proxy as its account, with what it has there to read."""
    rights = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    account = ("setpriv", f"--reuid={layout.egress_uid}", f"--regid={layout.egress_uid}", "--clear-groups")
    python = (programs.python, "-s", "-S", "-c", "import hutch.egress.__main__")
    return ("bwrap", *_shown(programs), *rights, "--", *account, "--", *python)


def _shown(programs: Programs) -> tuple[str, ...]:
    """Options of bwrap that show the programs, and have Python find them."""
    return (
        *(*PROGRAMS, *_interpreter(programs.python), "--dir", OWN),
        *("--ro-bind", str(programs.package), f"{OWN}/hutch", "--ro-bind", str(programs.dnspython), f"{OWN}/dns"),
        *("--chdir", "/", "--clearenv", "--setenv", "PYTHONPATH", OWN, "--setenv", "PYTHONDONTWRITEBYTECODE", "1"),
    )


def _interpreter(python: str) -> tuple[str, ...]:
    """Options of bwrap that show Python, unless it is the distribution's."""
    base = os.path.realpath(sys.base_prefix)
    if Path(python).is_relative_to("/usr"):
        return ()
    return (*_ways_to(Path(base)), "--ro-bind", base, base)


def _ways_to(*paths: Path) -> tuple[str, ...]:
    """Options of bwrap that make the directories above paths: those that bwrap makes itself are root's alone."""
    above = sorted({str(parent) for path in paths for parent in path.parents if str(parent) != "/"})
    return tuple(word for parent in above for word in ("--dir", parent))


def find_dnspython() -> Path:
    """The directory of dnspython, found without importing it."""
    found = find_spec("dns")
    if found is None or not found.submodule_search_locations:
        raise HutchError("the Python package dnspython is not installed", resolution="install hutch anew")
    return Path(found.submodule_search_locations[0]).resolve()


def _directories(layout: Layout) -> tuple[str, ...]:
    """Options of bwrap for the directories in which its keeper writes; and for the one in which its views stand."""
    written = (layout.egress_control, layout.egress, inboxes(layout))
    shown = ((views_file(layout).parent, "--ro-bind"), *((path, "--bind") for path in written))
    return (
        *_ways_to(*(path for path, _ in shown)),
        *(word for path, how in shown for word in (how, str(path), str(path))),
    )


def pid_file(layout: Layout) -> Path:
    return layout.services / "egress.pid"


def views_file(layout: Layout) -> Path:
    """The path of the views: whom the egress proxy serves, and by which policies. Only it may see what is in that
    directory of root's."""
    return layout.services / "egress" / "views.json"


def inboxes(layout: Layout) -> Path:
    """The directory with those of workspaces' inboxes: the egress proxy tells their records by a file in each."""
    return layout.audits / "inbox"


def control_socket(layout: Layout) -> Path:
    """The path of a socket: a client that connects has the views read again, and hears when they are in force."""
    return layout.egress_control / "control"


def render_views(layout: Layout, network: Network, endpoints: Iterable[Endpoint]) -> str:
    """The views of the watched among the endpoints, as hutch.egress.views reads them; "" where nobody is."""
    views = [
        {
            "workspace": endpoint.name,
            "address": endpoint.ip,
            "kind": endpoint.policy.kind,
            "learn": endpoint.policy.learn,
            "domains": [[item.name, item.is_wildcard, item.port] for item in endpoint.policy.domains],
            "networks": [[item.network, item.port] for item in endpoint.policy.networks],
            "decisions": [[d.host, d.is_allowed, d.since, d.until] for d in endpoint.decisions],
        }
        for endpoint in endpoints
        if endpoint.policy.is_watched
    ]
    if not views:
        return ""
    upstream, _ = names.uplink_addresses(network.uplink)
    document = {
        "listen": [names.gateway(network.subnet), EGRESS_PORT],
        "upstream": [upstream, UPSTREAM_PORT],
        "table": layout.table,
        "views": views,
    }
    return json.dumps(document, indent=1) + "\n"


def has_views(layout: Layout, views: str) -> bool:
    """Whether these are the views that an egress proxy reads at its start, with places for its records."""
    is_written = (read_or_none(views_file(layout)) or b"").decode("utf-8", "replace") == views
    directories = [inboxes(layout), *map(layout.egress_records, watched_names(views))] if is_written else []
    return is_written and is_roots(layout.egress) and all(directory.is_dir() for directory in directories)


def watched_names(views: str) -> list[str]:
    """The workspaces that these views watch."""
    return [view["workspace"] for view in json.loads(views)["views"]]


def is_roots(directory: Path) -> bool:
    """Whether only root can put anything into a directory."""
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0


def write_views(layout: Layout, views: str) -> None:
    """Write the views for an egress proxy that is about to start, or about to be renewed. Its own directories lie in
    one of root's, so that it can put nothing in root's way; an older hutch had given it that one too."""
    if not is_roots(layout.egress):
        remove_tree(layout.egress)
        make_directory(layout.egress)
    for directory in (layout.audits, inboxes(layout)):
        make_directory(directory, 0o755 if directory == layout.audits else 0o711)
    for directory in (layout.egress_control, *map(layout.egress_records, watched_names(views))):
        if not directory.is_dir():
            make_directory(directory, 0o700)
        os.chown(directory, layout.egress_uid, -1, follow_symlinks=False)  # a hutch that was killed may not have
    make_directory(views_file(layout).parent, 0o750)
    os.chown(views_file(layout).parent, 0, layout.egress_uid, follow_symlinks=False)
    write_atomic(views_file(layout), views.encode(), is_lasting=False)


def renew_egress_proxy(layout: Layout, views: str) -> bool:
    """Have an egress proxy that runs take its views anew; whether these are in force then. That they stand in the file
    is not enough: a hutch that was killed may have written it and told nobody."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(RENEW_SECONDS)
        try:
            client.connect(str(control_socket(layout)))
            return client.recv(16).decode("ascii", "replace").strip() == digest(views)
        except OSError:
            return False


def forget_views(layout: Layout) -> None:
    """Remove the views, when nobody is watched any more."""
    for directory in (views_file(layout).parent, layout.egress_control):
        remove_tree(directory)
