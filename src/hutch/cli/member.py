"""The entry point of members: the one program that sudo, doas or polkit start as root for the group `hutch`.

Whoever starts it chose the arguments, the directory, the streams, and all else that a process inherits. It believes
none of that: it makes everything as a service of root's has it, learns who called, and runs one of a closed list of
commands, with a closed list of options, and with `Member` set for the whole call. Files of the member are read with the
member's rights (spec/rights), and what is another's is refused (apply/membership).
"""

from __future__ import annotations

import copy
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from hutch.cli import LazyGroup, cli, main
from hutch.cli.common import FOR_ALL, MEMBERS, print_error
from hutch.cli.streams import finish, make_patient
from hutch.errors import HutchError, UsageError
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.lock import COMMANDS as COMMANDS_AT_ONCE
from hutch.host.services.lock import take_place
from hutch.libc import call
from hutch.run import BASE_ENVIRONMENT
from hutch.spec import member, rights
from hutch.spec.ceiling import ceiling_of_host
from hutch.spec.member import GROUP, Member, behind_entry
from hutch.spec.names import Layout
from hutch.spec.rights import as_person

PATIENCE = 30.0  # seconds until a command is refused because of others of the same member
TERMINAL = r"[A-Za-z0-9._+-]{1,40}"
TYPED = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGQUIT)
"""Signals from a terminal that would hold up a process of root's while it has a lock, or end it between two effects."""
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
BEFORE = (
    *("encodings.ascii", "encodings.idna", "encodings.utf_8_sig", "difflib", "glob", "hashlib", "tomllib"),
    *("idna", "pydantic_core.core_schema", "tree_sitter", "tree_sitter_toml"),
    *("hutch.api.checking", "hutch.apply.planning", "hutch.spec.positions", "hutch.spec.validators"),
)
"""The modules that reading a file takes. They are imported with root's rights: with a member's, who may be kept out of
where hutch lies, nothing is imported."""
OWN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Members(LazyGroup):
    """The commands of members, each with the options that they have."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            return None
        if cmd_name not in MEMBERS:
            raise UsageError(
                f"`hutch {cmd_name}` is not for members of the group {GROUP}",
                resolution=f"they have {', '.join(MEMBERS)}; for the rest, call hutch as yourself, or root does it",
            )
        own = copy.copy(command)
        own.params = [each if is_theirs(cmd_name, each) else refused(each) for each in command.params]
        return own


def is_theirs(command: str, parameter: click.Parameter) -> bool:
    """Whether members may give a command this argument or option."""
    return isinstance(parameter, click.Argument) or parameter.name in FOR_ALL | MEMBERS[command]


def refused(parameter: click.Parameter) -> click.Parameter:
    """The option as one that is refused by its name."""

    def refuse(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if ctx.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT:
            raise UsageError(f"{param.opts[0]} is not for members of the group {GROUP}")
        return value

    own = copy.copy(parameter)
    own.callback = refuse
    return own


COMMANDS = Members(name="hutch", params=cli.params, callback=cli.callback, context_settings=cli.context_settings)


def entry() -> NoReturn:
    """Begin as root's process, and run the command that a member gave."""
    try:
        begin(os.environ)
        main(sys.argv[1:], COMMANDS)
    except HutchError as error:
        print_error(error)
        sys.exit(error.exit_code)
    finally:
        finish()


def begin(environ: Mapping[str, str]) -> None:
    """Become a process of root's that works for a member. Raises HutchError for any other caller, and for all of them
    where nobody knows what root allows."""
    if os.getuid() != 0 or os.geteuid() != 0:
        raise HutchError("this is for sudo, doas and polkit to start", resolution="call `hutch`, which does so")
    reset_streams()
    who = behind_entry(environ)
    terminal = environ.get("TERM", "")
    os.environ.clear()
    os.environ.update(BASE_ENVIRONMENT, SUDO_UID=str(who.uid))
    if re.fullmatch(TERMINAL, terminal, re.ASCII):
        os.environ["TERM"] = terminal
    reset_process()
    # In the cgroup of the member still, who may start any number of these.
    what = f"{len(COMMANDS_AT_ONCE)} commands"
    take_place(Layout.from_environment(), who.uid, COMMANDS_AT_ONCE, what, patience=PATIENCE)
    leave_cgroup()
    reset_signals()
    make_patient()
    leave_directory(who)
    for name in BEFORE:
        import_module(name)
    ceiling_of_host()
    member.acting = who


def reset_streams() -> None:
    """Have three streams, and nothing else open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):  # that of the list itself
                os.close(int(name))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def reset_process() -> None:
    """Have the limits, the priority and the processors that a service has."""
    call("personality", 0)
    for limit in LIMITS:
        try:
            resource.setrlimit(limit, resource.prlimit(1, limit))
        except (OSError, ValueError):  # in a container, root may not be allowed to have more than it was given
            most = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # what this host does not have, or a container of its own may not do
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("0")


def leave_cgroup() -> None:
    """Be in nobody's cgroup: who may write in one could stop all that is in it."""
    with suppress(OSError):
        root = Cgroup("")
        root.leave()
        root.close()


def reset_signals() -> None:
    """Have signals as they are for a process that nobody has prepared, but for those that are typed: Ctrl-C alone ends
    it, and it undoes what is half done."""
    for timer in TIMERS:
        signal.setitimer(timer, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        with suppress(OSError):  # the two that the C library keeps for itself
            signal.signal(number, signal.SIG_IGN)  # this takes away what waits since before
            signal.signal(number, signal.SIG_IGN if number in TYPED else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def leave_directory(who: Member) -> None:
    """Go to the root directory, and keep the member's own for when their files are looked at, with their rights."""
    with as_person(who), suppress(OSError):
        rights.place = os.open(".", OWN)
    os.chdir("/")
