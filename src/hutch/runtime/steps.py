"""One short command at a time, with a deadline. Programs of ours that start often use it: imports stay few."""

from __future__ import annotations

import os
import select

from hutch.search_path import SEARCH_PATH

TYPE_CHECKING = False  # typing's own constant costs the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence

ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
KILLED_WITHIN = 2.0  # seconds; a killed command that the kernel does not let go of is not waited for any longer


class StepFailed(Exception):
    """A command failed; the text is for people."""


def do(why: str, argv: Sequence[str], seconds: float) -> None:
    """Run a command to its end. Raises StepFailed when it fails, or has not ended in time; then it is killed, with all
    that it started."""
    output = os.memfd_create("output")
    try:
        pid = os.posix_spawnp(argv[0], list(argv), ENVIRONMENT, file_actions=_streams(output), setpgroup=0)
        pidfd = os.pidfd_open(pid)
        try:
            if not _ends(pidfd, seconds):
                os.killpg(pid, 9)  # it is not reaped yet, so the number is still its own
                if _ends(pidfd, KILLED_WITHIN):
                    os.waitpid(pid, 0)
                raise _failure(why, argv, f"it had not ended after {seconds:g} s")
        finally:
            os.close(pidfd)
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            said = os.pread(output, 8192, 0).decode("utf-8", "replace").strip()
            raise _failure(why, argv, said or f"code {code}")
    except FileNotFoundError:
        raise _failure(why, argv, f"{argv[0]} is not installed") from None
    finally:
        os.close(output)


def _streams(output: int) -> list[tuple[int, ...] | tuple[int, int, str, int, int]]:
    return [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]


def _ends(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _failure(why: str, argv: Sequence[str], how: str) -> StepFailed:
    return StepFailed(f"cannot {why}: {how}\n  replay: {' '.join(argv)}")
