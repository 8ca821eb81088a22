"""What would be lost with a workspace: live sessions, and git work that exists nowhere else.

Git is never run on the host in a home that a guest wrote: repositories carry configuration that git obeys.
It runs in a throw-away container made from the workspace's image: no network, the home read-only.
"""

from __future__ import annotations

import os

from hutch.apply.starting import surroundings_of
from hutch.backends.nspawn import inspection
from hutch.errors import HutchError
from hutch.host.cgroup import Cgroup
from hutch.images.contain import run_contained
from hutch.run import CommandFailed, run
from hutch.spec.names import Places
from hutch.state import Record, read_network
from hutch.supervise.observe import observe

PATIENCE = 60.0  # seconds that looking for repositories may take
FOUND = "hutch-unsaved "
LOOK = r"""
repo=${1%/.git}
say() { echo "hutch-unsaved $repo: $1"; }
command -v git >/dev/null || { say "there is no git in the image to look into it"; exit; }
git() { command git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c safe.directory="*" -C "$repo" "$@"; }
changed=$(git status --porcelain 2>&1) || { say "git cannot read it"; exit; }
[ -z "$changed" ] || say "uncommitted changes"
[ -z "$(git stash list 2>/dev/null)" ] || say "stashed changes"
[ -z "$(git log --oneline --max-count=1 --branches --not --remotes 2>/dev/null)" ] || say "commits that were not pushed"
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
    listing = run(["ss", "--no-header", "--tcp", "--numeric", "state", "established", "dst", f"{record.wanted.ip}:22"])
    found = [f"{len(listing.stdout.splitlines())} open ssh connections"] if listing.stdout.strip() else []
    cgroup = Cgroup(places.cgroup(record.name))
    if cgroup.is_populated("exec"):
        found.append("a command started by `hutch exec` is running")
    cgroup.close()
    return found


def unsaved_git_work(places: Places, record: Record) -> list[str]:
    """Repositories in the home with changes that are committed or pushed nowhere."""
    network = read_network(places)
    home_is_there = record.wanted.home is not None and any(_entries(record.wanted.home))
    if network is None or not home_is_there:
        return []
    look = inspection(record.name, record.wanted, surroundings_of(places, record, network.network), FIND)
    found: list[str] = []

    def take(line: str) -> None:
        if line.startswith(FOUND):
            found.append("".join(c for c in line.removeprefix(FOUND) if c.isprintable())[:200])

    try:
        run_contained(look, group=f"{places.instance}/look.{record.name}", on_line=take, timeout=PATIENCE)
    except CommandFailed as error:
        raise HutchError(
            f"{record.name}: cannot tell whether its home holds unsaved git work",
            details=error.details,
            resolution="--force removes it all the same",
        ) from error
    return found


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
