"""Changes what a running workspace has, in the mount namespace of its service: a machine's memory by its balloon, and
the hot mounts of a container, and the size of its root, by a program of its own, `main`, that `renew_mounts` starts.

It reads JSON: the hot mounts that are `shown` and `wanted`, the step that may `resize` the root, and the `leader`, the
guest's PID 1, with the time when that was `started`. It writes JSON: the places that are `shown` now, and the problems.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from hutch.backends.launch import HotMount, Step, rebuild
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.host.services.process import start_time
from hutch.run import PIPE, TimeoutExpired, run, start
from hutch.runtime.hot_mounts import HotMounts
from hutch.runtime.steps import StepFailed, do
from hutch.spec.programs import own_program

if TYPE_CHECKING:
    from hutch.backends.launch import Launch
    from hutch.spec.record import Observation

PATIENCE = 10.0  # seconds for a root to be given another size
RENEWAL_SECONDS = 60.0  # that a guest can hold up a change of what it is shown


def renew_mounts(shown: Sequence[HotMount], launch: Launch, now: Observation) -> tuple[tuple[HotMount, ...], str, str]:
    """Bring a running container's hot mounts and the size of its root to its Launch. Returns (the hot mounts that it
    has now, problems with mounts, the problem with its root's size)."""
    name, pid = launch.workspace, now.pid
    assert pid is not None and now.leader is not None
    wanted = {"shown": [asdict(mount) for mount in shown], "wanted": [asdict(mount) for mount in launch.hot_mounts]}
    resize = asdict(launch.resize) if launch.resize else None
    change = {**wanted, "resize": resize, "leader": now.leader[0], "started": now.leader[1]}
    with in_mounts_of(pid) as nsenter:
        program = own_program("hutch.runtime.renewal", sys.executable)
        process = start((*nsenter, *program), stdin=PIPE, stdout=PIPE, stderr=PIPE)
        try:
            said, error = process.communicate(json.dumps(change).encode(), timeout=RENEWAL_SECONDS)
        except TimeoutExpired:
            process.kill()
            process.communicate()
            raise HutchError(f"{name}: its mounts cannot be changed: the guest is in the way") from None
    if process.returncode:
        raise HutchError(f"{name}: its mounts cannot be changed", details=error.decode("utf-8", "replace"))
    found = json.loads(said)
    known = {mount.place: mount for mount in (*shown, *launch.hot_mounts)}
    return tuple(known[place] for place in found["shown"]), found["mounts"], found["disk"]


def tell_balloon(step: Step, pid: int) -> str:
    """Run the step for a machine whose service has this main process: its sockets may be in mounts of the service's
    own. Returns the problem, "" for none."""
    with in_mounts_of(pid) as nsenter:
        result = run([*nsenter, *step.argv], check=False)
    return result.stderr.strip() if result.returncode else ""


@contextmanager
def in_mounts_of(pid: int) -> Iterator[tuple[str, ...]]:
    """The beginning of a command line, whose command runs among the mounts of a service's main process, of the very
    one that has this pid now."""
    with kept_open(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as mounts:
        yield ("nsenter", f"--mount=/proc/{os.getpid()}/fd/{mounts}", "--")


def main() -> None:
    change = json.load(sys.stdin)
    shown, wanted = (tuple(rebuild(HotMount, mount) for mount in change[key]) for key in ("shown", "wanted"))
    hot_mounts = HotMounts(shown, change["leader"])
    trouble = ""
    if start_time(change["leader"]) == change["started"]:
        trouble = hot_mounts.renew(wanted)
    disk = resize(rebuild(Step, change["resize"])) if change["resize"] else ""
    json.dump({"shown": [mount.place for mount in hot_mounts.shown], "mounts": trouble, "disk": disk}, sys.stdout)


def resize(step: Step) -> str:
    """Give a root in memory the size that the Launch says. Returns the problem, "" for none."""
    try:
        do(step.why, step.argv, PATIENCE)
    except StepFailed as error:
        said = str(error).partition("\n")[0]
        return f"the root cannot become so small while more of it is in use ({said})"
    return ""
