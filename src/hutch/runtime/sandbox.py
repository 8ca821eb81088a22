"""A program of its own: runs systemd-nspawn as a workspace's service does, for untrusted programs outside of
workspaces, such as the setup of an image.

    main(WANTED, ARGV...)

WANTED is JSON, `seccomp` and `pre_exec` of a Launch. It runs in a cgroup that nothing else uses and that whoever
started it will kill; its code is that of ARGV.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from hutch.host.services.cgroup import Cgroup
from hutch.runtime.pre_exec import PAYLOAD, run_pre_exec
from hutch.runtime.steps import StepFailed
from hutch.seccomp.install import install_seccomp, leave_counts, leave_keyring

TYPE_CHECKING = False  # see runtime/steps
if TYPE_CHECKING:
    from typing import NoReturn

PATIENCE = 60.0  # seconds, for nspawn to get as far as its payload


def main(text: str, *argv: str) -> NoReturn:
    wanted = json.loads(text)
    try:
        leave_keyring()
        leave_counts()
        install_seccomp(**wanted["seccomp"])
        cgroup = Cgroup(own_group())
        cgroup.freeze(PAYLOAD)
        pid = os.posix_spawnp(argv[0], argv, os.environ)
    except (OSError, ValueError) as error:
        refuse(error)
    try:
        steps = [(step["why"], step["argv"]) for step in wanted["pre_exec"]]
        run_pre_exec(cgroup, PAYLOAD, steps, os.pidfd_open(pid), PATIENCE)
    except (OSError, StepFailed) as error:
        os.kill(pid, signal.SIGKILL)  # its children die with it
        refuse(error)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.exit(code if code >= 0 else 128 - code)


def refuse(error: Exception) -> NoReturn:
    sys.exit(f"the command in the image's tree cannot be sandboxed, so it is not run: {error}")


def own_group() -> str:
    """The cgroup of this process, as cgroup v2 has it."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        return next(line.rstrip("\n").partition("::")[2].lstrip("/") for line in file if line.startswith("0::"))
