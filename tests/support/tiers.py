"""Runs the tiers for script/test, times them, and checks that the machine is left as it was found.

`lint` and `unit` touch nothing and run side by side, as the owner of the checkout. `host` and `vm` run as root in
mount, network and process namespaces of their own: what they start ends with them. `systemd` runs its tests in a
machine that is a host by itself (see stand); `smoke` is those of them that every run has. These run side by side:
while one waits, another computes. What a run leaves out, it says at its end.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support import machine
from tests.support.enclosure import ROOT, enclose

BOUNDARIES = {"host": "container", "vm": "vm"}
USUAL = ("lint", "unit", *BOUNDARIES, "smoke")
TIERS = (*USUAL, "systemd")
FOLDERS = {"vm": "host", "smoke": "systemd"}  # whose tests they run
SHELL = re.compile(rb"#! ?/\S+( \S*/?busybox)?[ /](ba|da)?sh\b")
SHELL_IN = (".ci", "bench", "examples", "package", "script", "src", "tests")
GOLDEN = ROOT / "tests" / "unit" / "golden"  # what is written there, others make
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tier ended."""

    tier: str
    passed: bool
    seconds: float


def main() -> int:
    tiers, pytest = _options()
    is_root = os.geteuid() == 0
    if not is_root and not {"lint", "unit"}.issuperset(tiers):
        print("that tier needs root: `sudo script/test`, or without it `script/test lint unit`", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    _handle_signals()
    _adopt_orphans()
    before = machine.snapshot() if is_root else None
    # Short, because paths of sockets are; open, because accounts other than root log in to workspaces.
    work = Path(tempfile.mkdtemp(prefix="hutch-test-", dir="/tmp"))
    work.chmod(0o755)
    outcomes: list[Outcome] = []
    try:
        with ThreadPoolExecutor() as pool:
            lint = pool.submit(_timed, "lint", lambda: _lint(work / "lint.txt")) if "lint" in tiers else None
            if "unit" in tiers:
                outcomes.append(_timed("unit", lambda: _unit(pytest)))
            if lint:
                outcomes.append(lint.result())
                print((work / "lint.txt").read_text(), end="", flush=True)
            outcomes += _hosts([tier for tier in tiers if tier not in ("lint", "unit")], pytest, work)
    finally:
        left = _end_children()
        changed = machine.settled_difference(before) if before else ""
        status = _report(outcomes, left, changed)
        if any(outcome.tier not in ("lint", "unit") and not outcome.passed for outcome in outcomes):
            print(f"what the tests left to look at: {work}", flush=True)
        else:
            shutil.rmtree(work)
    return status


def _options() -> tuple[list[str], list[str]]:
    """The tiers to run, in their order, and the options for pytest."""
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="script/test",
        usage="script/test [--ci | --all] [TIER…] [-- PYTEST OPTION…]",
        description="Run the tests: every tier, but of systemd the smoke tests only; or the named tiers.",
        epilog="example: sudo script/test host -- -x -k ssh",
    )
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=f"one of {', '.join(TIERS)}")
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--ci", action="store_true", help="also slow tests and all of systemd: what decides on a change")
    more.add_argument("--all", action="store_true", help="also the sets that take many minutes each")
    options = parser.parse_args(argv[:split])
    for tier in options.tiers:
        if tier not in TIERS:
            parser.error(f"there is no tier {tier!r}; there are {', '.join(TIERS)}")
    pytest = argv[split + 1 :]
    named = [tier for tier in TIERS if tier not in FOLDERS and _tests_of(tier, pytest)]
    wanted = options.tiers or named or (TIERS if options.ci or options.all else USUAL)
    if "systemd" in wanted:
        wanted = [tier for tier in wanted if tier != "smoke"]  # it has those, too
    if named and {FOLDERS.get(tier, tier) for tier in wanted} != set(named):
        parser.error(f"those tests are of {' and '.join(named)}; name no other tier with them")
    depth = [*(["--slow"] if options.ci or options.all or named else []), *(["--long"] if options.all else [])]
    return [tier for tier in TIERS if tier in wanted], [*pytest, *depth]


def _tests_of(tier: str, pytest: Sequence[str]) -> list[str]:
    """The files and directories of a tier among the options for pytest."""
    top = ROOT / "tests" / tier
    paths = [(option, (ROOT / option.partition("::")[0]).resolve()) for option in pytest if not option.startswith("-")]
    return [option for option, path in paths if path.is_relative_to(top) and path.exists()]


def _selection(folder: str, pytest: Sequence[str]) -> list[str]:
    """What pytest is to run: all tests of a folder, unless its options name some."""
    named = _tests_of(folder, pytest)
    return [*(named or [f"tests/{folder}"]), *(option for option in pytest if option not in named)]


def _timed(tier: str, run: Callable[[], bool]) -> Outcome:
    start = time.monotonic()
    passed = run()
    return Outcome(tier, passed, time.monotonic() - start)


def _lint(output: Path) -> bool:
    """Every linter, whether or not another one complains; what they say goes to `output`."""
    tools = Path(sys.executable).parent
    programs, libraries = _shell()
    commands = [
        [f"{tools}/ruff", "check", "--output-format=concise"],
        [f"{tools}/ruff", "format", "--check"],
        [f"{tools}/mypy"],
        ["shellcheck", "--format=gcc", *programs],
        # What they are given is assigned by what is written before them.
        ["shellcheck", "--format=gcc", "--shell=sh", "--exclude=SC2154", *libraries],
        [str(ROOT / "script" / "docs"), "--check"],
    ]
    passed = True
    with output.open("w") as file:
        for command in commands:
            result = subprocess.run(
                _as_owner(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if result.returncode != 0:
                passed = False
                file.write(f"$ {shlex.join(command)}\n{result.stdout}")
    return passed


def _shell() -> tuple[list[str], list[str]]:
    """Every program in shell, and every file that is a part of one."""
    programs, libraries = [], []
    for path in sorted(path for top in SHELL_IN for path in (ROOT / top).rglob("*")):
        if not path.is_file() or path.suffix not in ("", ".sh") or path.is_relative_to(GOLDEN):
            continue
        with path.open("rb") as file:
            first = file.readline()
        if SHELL.match(first):
            programs.append(str(path))
        elif path.suffix == ".sh" and not first.startswith(b"#!"):
            libraries.append(str(path))
    return programs, libraries


def _unit(pytest: Sequence[str]) -> bool:
    command = [sys.executable, "-m", "pytest", *_selection("unit", pytest)]
    return subprocess.run(_as_owner(command), stdin=subprocess.DEVNULL).returncode == 0


def _hosts(tiers: Sequence[str], pytest: Sequence[str], work: Path) -> Iterable[Outcome]:
    """As many at once as there are processors: more would make each other late, and tests have deadlines. The first is
    shown as it goes, the others when they end."""
    running: list[tuple[Future[Outcome], Path | None]] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for tier in tiers:
            output = work / f"{tier}.txt" if running else None
            run = partial(_enclosed, _command(tier, pytest, work), work, tier, output)
            running.append((pool.submit(_timed, tier, run), output))
        for future, output in running:
            yield future.result()
            if output is not None:
                print(output.read_text(errors="replace"), end="", flush=True)
    finally:
        pool.shutdown(wait=False)  # what still runs when somebody ends this, `_end_children` ends


def _command(tier: str, pytest: Sequence[str], work: Path) -> list[str]:
    """What runs the tests of a tier in namespaces of its own."""
    if tier in BOUNDARIES:
        boundary = BOUNDARIES[tier]
        options = ["-p", "no:cacheprovider", f"--basetemp={work}/{boundary}", f"--boundary={boundary}"]
        return [sys.executable, "-m", "pytest", *options, *_selection("host", pytest)]
    some = ["--smoke"] if tier == "smoke" else []
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *some, *_selection("systemd", pytest)]
    return [sys.executable, "-m", "tests.support.stand", f"{work}/console", *command]


def _enclosed(command: Sequence[str], work: Path, name: str, output: Path | None) -> bool:
    argv, environment = enclose(command, work / f"outer-netns-{name}")
    with open(output, "wb") if output else nullcontext() as file:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, env=environment, stdout=file, stderr=file).returncode == 0


def _as_owner(command: Sequence[str]) -> list[str]:
    """`command`, run as the owner of the checkout where root got here by sudo."""
    owner = ROOT.stat().st_uid
    if os.geteuid() != 0 or owner == 0:
        return list(command)
    account = pwd.getpwuid(owner)
    return ["runuser", "-u", account.pw_name, "--", "env", f"HOME={account.pw_dir}", *command]


def _handle_signals() -> None:
    """Ctrl-C reaches the tests as well: wait for them to clean up. SIGTERM ends them, and still reports."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)


def _adopt_orphans() -> None:
    """What the tests start and abandon becomes a child of this process, so that none can get away."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _end_children(grace: float = 3.0) -> list[str]:
    """Reap every child; kill those that are still there after `grace` seconds, and return their command lines."""
    deadline = time.monotonic() + grace
    left: list[str] = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return left
        if pid == 0 and time.monotonic() > deadline:
            for child in _children():
                left.append(f"{child}: {_command_line(child)}")
                os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)
        elif pid == 0:
            time.sleep(0.05)


def _children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"


def _report(outcomes: Sequence[Outcome], left: Sequence[str], changed: str) -> int:
    """Say how it went; 0 if all is well."""
    if left:
        print("the tests left processes, which were killed:", *left, sep="\n  ")
    if changed:
        print(f"the machine is not as it was before the tests:\n{changed}")
    for outcome in outcomes:
        print(f"{outcome.tier:<8}{'passed' if outcome.passed else 'FAILED'} in {outcome.seconds:.1f} s")
    sys.stdout.flush()
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) and not left and not changed else 1


if __name__ == "__main__":
    raise SystemExit(main())
