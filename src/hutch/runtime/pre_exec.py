"""Steps on the process that becomes a container's PID 1, before anything of the guest's has run; and a program of its
own that takes them for a container. nspawn puts it into the cgroup `payload` before it lets it go on, and there it is
frozen. Imports stay few: every container's start waits for this.
"""

from __future__ import annotations

import os
import select
import sys
import time

from hutch.host.services.cgroup import Cgroup
from hutch.runtime.steps import StepFailed, do

TYPE_CHECKING = False  # see runtime/steps
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAYLOAD = "payload"


def run_pre_exec(
    cgroup: Cgroup, group: str, steps: Iterable[tuple[str, Sequence[str]]], pidfd: int, seconds: float
) -> int | None:
    """Run steps, given as (why, command), on the coming PID 1 of the nspawn that `pidfd` is of: the word PID stands for
    it, and the word HALVES for what `halve_counts` finds. Then let it go on. Returns its pid; None where nspawn has
    ended, which has said why. Raises StepFailed where it runs and nothing came to be held within so many seconds: what
    it starts would not be bound."""
    deadline = time.monotonic() + seconds
    if not cgroup.await_process(group, seconds, unless=pidfd):
        if select.select([pidfd], [], [], 0)[0]:
            return None
        raise StepFailed("systemd-nspawn put no process into its cgroup payload, so PID 1 was not let go")
    found = cgroup.processes(group)
    if len(found) != 1:  # it may have been killed; any other process would not be bound
        raise StepFailed(f"systemd-nspawn put {len(found)} processes into its cgroup payload in the place of one")
    for why, argv in steps:
        try:
            filled = [meant for word in argv for meant in _fill(word, found[0])]
        except (OSError, ValueError) as error:
            raise StepFailed(f"cannot {why}: {error}") from None
        do(why, filled, deadline - time.monotonic())
    cgroup.thaw(group)
    return found[0]


def _fill(word: str, pid: int) -> list[str]:
    if word == "PID":
        return [str(pid)]
    return halve_counts() if word == "HALVES" else [word]


def halve_counts(directory: str = "/proc/sys/user") -> list[str]:
    """Half of each number that the kernel counts for a user namespace up to, as FILE=NUMBER. A step that has entered
    another user namespace sees that one's numbers only; and to be told costs less than to have a shell read them.
    Raises OSError or ValueError where they cannot be read: no guest goes on without bounds."""
    found = []
    for name in sorted(name for name in os.listdir(directory) if name.startswith("max_")):
        with open(f"{directory}/{name}", encoding="ascii") as count:
            found.append(f"{name}={int(count.read()) // 2}")
    if not found:
        raise ValueError(f"{directory} has none of the kernel's counts")
    return found


def encode_steps(steps: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Steps as words of a command line."""
    return [word for why, argv in steps for word in (why, str(len(argv)), *argv)]


def decode_steps(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    found = []
    while words:
        why, count, *rest = words
        found.append((why, rest[: int(count)]))
        words = rest[int(count) :]
    return found


def main(seconds: str, *words: str) -> None:
    """Run the steps; `words` end in the service's cgroup and the pid of nspawn. Prints the pid of the guest's PID 1."""
    *steps, group, pid = words
    try:
        pidfd = os.pidfd_open(int(pid))
        found = run_pre_exec(Cgroup(group), f"machine/{PAYLOAD}", decode_steps(steps), pidfd, float(seconds))
    except ProcessLookupError:
        sys.exit(1)
    except (OSError, StepFailed) as error:
        sys.exit(str(error))
    if found is None:
        sys.exit(1)
    os.write(1, str(found).encode())
