"""What would be lost with a workspace: live sessions, and git work that exists nowhere else.

Git is never run on the host in a home that a guest wrote: repositories carry configuration that git obeys.
It runs in a throw-away container made from the workspace's image: no network, the home read-only.
"""

from __future__ import annotations

from hutch.apply.starting import surroundings_of
from hutch.backends.nspawn import inspection
from hutch.errors import HutchError
from hutch.host.hardware import vsock
from hutch.host.services.cgroup import Cgroup
from hutch.images.contain import run_contained
from hutch.run import CommandFailed, run
from hutch.runtime.observe import observe
from hutch.spec.model import Network
from hutch.spec.names import Places
from hutch.state import Record
from hutch.trees.cursor import is_empty

PATIENCE = 60.0  # seconds that looking for repositories may take
FOUND = "hutch-unsaved "
LOOK = r"""
repo=${1%/.git}
say() { printf 'hutch-unsaved %s: %s\n' "$repo" "$1"; }
command -v git >/dev/null || { say "there is no git in the image to look into it"; exit; }
odd=$(find "$repo" -xdev '(' -path '*/.git/*' -o -name '.git*' ')' ! -xtype f ! -xtype d ! -xtype l -print -quit \
  2>/dev/null)
[ -z "$odd" ] || { say "git would wait for ever for what is in it, a pipe or a device"; exit; }
ulimit -v 4194304 # KiB; a link to something without end would take all memory
git() {
  timeout -k 1 20 git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c safe.directory="*" \
    -c core.packedGitWindowSize=32m -c core.packedGitLimit=256m -C "$repo" "$@"
}
fail() { say "git cannot read it"; exit; }
changed=$(git status --porcelain 2>&1) || fail
[ -z "$changed" ] || say "uncommitted changes"
stashed=$(git stash list 2>&1) || fail
[ -z "$stashed" ] || say "stashed changes"
head=HEAD  # which may be detached, or a branch that has no commit yet
git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || head=
local=$(git log --oneline --max-count=1 $head --branches --tags --not --remotes 2>&1) || fail
[ -z "$local" ] || say "commits that were not pushed"
"""
FIND = ("find", ".", "-xdev", "-name", ".git", "-prune", "-exec", "sh", "-c", LOOK, "sh", "{}", ";")


def obstacles(places: Places, record: Record) -> list[str]:
    """Why the workspace should not be removed without a second thought; empty when it may go."""
    found = []
    if observe(places, record.name).is_up:
        found += live_sessions(places, record)
    return found + unsaved_git_work(places, record)


def live_sessions(places: Places, record: Record) -> list[str]:
    """Open ssh connections from this host, and commands that `hutch exec` runs."""
    ip = (record.booted.workspace if record.booted else record.wanted).ip
    listing = run(["ss", "--no-header", "--tcp", "--numeric", "state", "established", "dst", f"{ip}:22"])
    count = len(listing.stdout.splitlines()) + vsock_connections(record)
    found = [f"{count} open ssh connection{'s' if count > 1 else ''}"] if count else []
    cgroup = Cgroup(observe(places, record.name).cgroup)
    if cgroup.is_populated("exec"):
        found.append("a command started by `hutch exec` is running")
    cgroup.close()
    return found


def vsock_connections(record: Record) -> int:
    """Those that do not use the network."""
    booted = record.booted.workspace if record.booted else record.wanted
    if booted.type != "vm" or booted.cid is None or not vsock.can_open(vsock.DEVICE):
        return 0
    listing = run(["ss", "--no-header", "--vsock", "--numeric"])
    return count_vsock(listing.stdout, booted.cid)


def count_vsock(listing: str, cid: int) -> int:
    """The established connections to the sshd of a machine, as ss lists them: kind, state, two queues, two ends."""
    rows = (line.split() for line in listing.splitlines())
    return sum(row[1:2] == ["ESTAB"] and row[5:6] == [f"{cid}:22"] for row in rows)


def unsaved_git_work(places: Places, record: Record) -> list[str]:
    """Repositories in the home with changes that are committed or pushed nowhere."""
    if record.wanted.home is None or is_empty(record.wanted.home):
        return []
    # It needs no network, so it does not matter whether there is one.
    look = inspection(record.name, record.wanted, surroundings_of(places, record, Network(), ()), FIND)
    found: list[str] = []

    def take(line: str) -> None:
        if line.startswith(FOUND):
            found.append("".join(c for c in line.removeprefix(FOUND) if c.isprintable())[:200])

    try:
        run_contained(look, group=places.inspection_cgroup(record.name), on_line=take, timeout=PATIENCE)
    except CommandFailed as error:
        raise HutchError(
            f"{record.name}: cannot tell whether its home holds unsaved git work",
            details=error.details,
            resolution="--force removes it all the same",
        ) from error
    return found
