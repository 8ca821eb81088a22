"""Runs the tiers for script/test, times them, and checks that the machine is left as it was found.

`lint` and `unit` touch nothing and run side by side, as the owner of the checkout. `host` and `vm` run as root in
mount, network and process namespaces of their own: what they start ends with them. `systemd` runs its tests where
systemd is process 1 of such namespaces (see native); `stand` runs all of them in a machine that is a host by itself
(see stand), and those that need a kernel of their own, of which `smoke` is what every run has. These run side by side:
while one waits, another computes. What a run leaves out, it says at its end.

A test with effects that fails in whole tiers is tried once more, alone, when all else has ended (see again).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.support import again, machine
from tests.support.again import Result
from tests.support.enclosure import CACHE, ROOT, enclose

BOUNDARIES = {"host": "container", "vm": "vm"}
TIERS = ("stand", "smoke", "systemd", "vm", "host", "unit", "lint")  # in this order: what takes longest is begun first
LONGEST = {"stand", "smoke", "systemd", "host-1"}  # jobs before all others; the last has the tests with a cluster
USUAL = tuple(tier for tier in TIERS if tier != "stand")
FOLDERS = {"vm": "host", "smoke": "systemd", "stand": "systemd"}  # whose tests they run
PARTS = {"unit": 3, "host": 16, "vm": 4}  # small enough to fill all processors until the end
DEPTHS = {"--slow", "--long"}
MORE = 2  # jobs at once than processors
HANGS, HANGS_LONG = 1500, 5000  # seconds after which a test hangs: more than what one waits for, less than a stand has
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Job:
    """A tier, or a part of one, as a command and its environment; without one, that of this process. Tests with effects
    note there how they went."""

    name: str
    tier: str
    argv: Sequence[str]
    environment: Mapping[str, str] | None = None
    notes: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """With which code a job ended, after so many seconds, how many of a processor's these were, and how its tests with
    effects went."""

    job: Job
    code: int
    seconds: float
    computed: float
    results: Sequence[Result] = ()

    @property
    def passed(self) -> bool:
        return self.code == 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """The second try of a file in which tests had failed, and whether all of them passed."""

    failures: Sequence[Result]
    outcome: Outcome
    passed: bool


def main() -> int:
    tiers, pytest, is_only_prepared = _options()
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
    is_whole = not set(pytest) - DEPTHS  # who chooses tests wants to see them fail
    outcomes: list[Outcome] = []
    attempts: list[Attempt] = []
    left: list[str] = []
    code = 0
    try:
        code = _prepare(tiers, work)
        if not code and not is_only_prepared:
            outcomes += _side_by_side(_jobs(tiers, pytest, work), work)
        left += _end_children()
        if is_whole and not left:
            attempts = _try_again(outcomes, pytest, work, before)
    finally:
        left += _end_children()
        changed = _difference(before)
        is_well = _report(outcomes, attempts, left, changed)
        if any(outcome.job.notes and not outcome.passed for outcome in outcomes):
            print(f"what the tests left to look at: {work}", flush=True)
        else:
            shutil.rmtree(work)
    if code or is_only_prepared:
        return code or int(bool(left or changed))
    flaky = [failure for attempt in attempts for failure in attempt.failures if attempt.passed]
    if is_well and is_whole and set(USUAL) <= {outcome.job.tier for outcome in outcomes}:
        is_well = _remember(outcomes, flaky)
    print(f"{'passed' if is_well else 'FAILED'}; flaky tests: {len(flaky)}", flush=True)
    return 0 if is_well else 1


def _options() -> tuple[list[str], list[str], bool]:
    """The tiers to run, in their order, the options for pytest, and whether to prepare only."""
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="script/test",
        usage="script/test [--slow | --all] [TIER…] [-- PYTEST OPTION…]",
        description="Run the tests: every tier, but of the stand the smoke tests only; or the named tiers.",
        epilog="example: sudo script/test host -- -x -k ssh",
    )
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=f"one of {', '.join(TIERS)}")
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--slow", action="store_true", help="also slow tests and the stand")
    more.add_argument("--all", action="store_true", help="also the sets that take many minutes each")
    parser.add_argument("--prepare", action="store_true", help="only bring into the cache what these tests need")
    options = parser.parse_args(argv[:split])
    for tier in options.tiers:
        if tier not in TIERS:
            parser.error(f"there is no tier {tier!r}; there are {', '.join(TIERS)}")
    pytest = argv[split + 1 :]
    named = [tier for tier in TIERS if tier not in FOLDERS and _tests_of(tier, pytest)]
    wanted = options.tiers or named or (TIERS if options.slow or options.all else USUAL)
    if "stand" in wanted:
        wanted = [tier for tier in wanted if tier != "smoke"]  # it has those, too
    if named and {FOLDERS.get(tier, tier) for tier in wanted} != set(named):
        parser.error(f"those tests are of {' and '.join(named)}; name no other tier with them")
    depth = [*(["--slow"] if options.slow or options.all or named else []), *(["--long"] if options.all else [])]
    return [tier for tier in TIERS if tier in wanted], [*pytest, *depth], options.prepare


def _tests_of(tier: str, pytest: Sequence[str]) -> list[str]:
    """The files and directories of a tier among the options for pytest."""
    top = ROOT / "tests" / tier
    paths = [(option, (ROOT / option.partition("::")[0]).resolve()) for option in pytest if not option.startswith("-")]
    return [option for option, path in paths if path.is_relative_to(top) and path.exists()]


def _selection(folder: str, pytest: Sequence[str]) -> list[str]:
    """What pytest is to run: all tests of a folder, unless its options name some."""
    named = _tests_of(folder, pytest)
    return [*(named or [f"tests/{folder}"]), *(option for option in pytest if option not in named)]


def _prepare(tiers: Sequence[str], work: Path) -> int:
    """Bring into the cache what tests with effects need; with which code that ended."""
    if {"lint", "unit"}.issuperset(tiers):
        return 0
    argv, environment = enclose([sys.executable, "-m", "tests.support.prepare", *tiers], work / "outer-netns-prepare")
    outcome = _run(Job("prepare", "prepare", argv, environment), None)
    told = "could not prepare" if outcome.code else "prepared"
    print(f"{told} in {outcome.seconds:.1f} s", flush=True)
    return outcome.code


def _side_by_side(jobs: Sequence[Job], work: Path) -> Iterator[Outcome]:
    """Run jobs, some more at once than there are processors, since tests wait a lot: with yet more they would make each
    other late, and they have deadlines. A stand counts as three, since it computes on two processors all the time. The
    first is shown as it goes, the others when they end."""
    stands = sum(job.name == "stand" for job in jobs)
    pool = ThreadPoolExecutor((os.cpu_count() or 1) + MORE - 2 * stands)
    try:
        outputs = [None, *(work / f"{job.name}.txt" for job in jobs[1:])]
        running = {pool.submit(_run, job, output): output for job, output in zip(jobs, outputs, strict=True)}
        for future in as_completed(running):
            if output := running[future]:
                print(output.read_text(errors="replace"), end="", flush=True)
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what runs when somebody ends this, `_end_children` ends


def _jobs(tiers: Sequence[str], pytest: Sequence[str], work: Path) -> list[Job]:
    """The jobs of these tiers."""
    found = []
    for tier in tiers:
        if tier == "lint":
            found.append(Job(tier, tier, _as_owner([sys.executable, "-m", "tests.support.lint"])))
            continue
        parts = 1 if set(pytest) - DEPTHS else PARTS.get(tier, 1)  # chosen tests stay together
        for part in range(parts):
            name = tier if parts == 1 else f"{tier}-{part + 1}"
            found.append(_job(name, tier, f"{part}/{parts}", pytest, work))
    return sorted(found, key=lambda job: job.name not in LONGEST)


def _job(name: str, tier: str, part: str, pytest: Sequence[str], work: Path) -> Job:
    """The tests of a part of a tier. Those that act as a host have namespaces of their own."""
    command = [sys.executable, "-m", *_command(tier, part, pytest, work / name)]
    if tier == "unit":
        return Job(name, tier, _as_owner(command))
    argv, environment = enclose(command, work / f"outer-netns-{name}")
    notes = work / f"{name}.failed"
    return Job(name, tier, argv, {**environment, again.NOTES: str(notes)}, notes)


def _try_again(
    outcomes: Sequence[Outcome], pytest: Sequence[str], work: Path, before: machine.Snapshot | None
) -> list[Attempt]:
    """Run the files of failed tests once more, one by one, until one fails again; none where that cannot have been
    chance, or the machine is not as it was `before`. A file passes in which every one of them has run to its end this
    time."""
    failed = [(one.job, again.failures_of(one.results, one.code)) for one in outcomes if not one.passed]
    if refusal := again.refusal({job.name: failures for job, failures in failed}):
        print(f"nothing is tried again: {refusal}", flush=True)
        return []
    if failed and before is not None:
        for group in machine.remove_cgroups(before):
            print(f"left by what failed, and removed: {group}", flush=True)
    if _difference(before):
        return []
    places = [(job.tier, *each) for job, failures in failed for each in again.places(job.tier, failures).items()]
    attempts: list[Attempt] = []
    for tier, place, failures in places:
        print(f"trying again, alone: {place}", flush=True)
        job = _job(f"again-{len(attempts) + 1}", tier, "0/1", [place, *pytest], work)
        (outcome,) = _side_by_side([job], work)
        passed = again.passed_of(outcome.results).issuperset(failure.test for failure in failures)
        attempts.append(Attempt(again.by_cause(failures), outcome, outcome.passed and passed))
        if not attempts[-1].passed:
            break
    return attempts


def _command(tier: str, part: str, pytest: Sequence[str], own: Path) -> list[str]:
    """The module, with its arguments, that runs a part of a tier."""
    hangs = f"--override-ini=faulthandler_timeout={HANGS_LONG if '--long' in pytest else HANGS}"
    if tier == "unit":
        return ["pytest", hangs, f"--part={part}", *_selection(tier, pytest)]
    lean = (hangs, "-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # which loads all of hypothesis at the end
    if tier in BOUNDARIES:
        options = [*lean, f"--basetemp={own}", f"--boundary={BOUNDARIES[tier]}", f"--part={part}"]
        return ["pytest", *options, *_selection("host", pytest)]
    if tier == "systemd":
        return ["tests.support.native", sys.executable, "-m", "pytest", *lean, *_selection(tier, pytest)]
    # Beside other jobs, two emulated processors also compute while they wait for each other.
    some, processors = (["--smoke"], "1") if tier == "smoke" else (["--slow"], "2")
    command = [sys.executable, "-m", "pytest", *lean, *some, *_selection("systemd", pytest)]
    return ["tests.support.stand", str(own), processors, *command]


def _run(job: Job, output: Path | None) -> Outcome:
    start = time.monotonic()
    with open(output, "wb") if output else nullcontext() as file:
        process = subprocess.Popen(
            job.argv, stdin=subprocess.DEVNULL, env=job.environment, stdout=file, stderr=file and subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, computed = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    return Outcome(job, process.returncode, seconds, computed, again.read_notes(job.notes))


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
                with suppress(ProcessLookupError):  # a thread that waits for it has reaped it
                    os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):
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


def _difference(before: machine.Snapshot | None) -> str:
    return machine.settled_difference(before) if before else ""


def _report(outcomes: Sequence[Outcome], attempts: Sequence[Attempt], left: Sequence[str], changed: str) -> bool:
    """Say how it went, and whether all is well."""
    if left:
        print("the tests left processes, which were killed:", *left, sep="\n  ")
    if changed:
        print(f"the machine is not as it was before the tests:\n{changed}")
    for outcome in outcomes:
        how = "passed" if outcome.passed else "FAILED"
        print(f"{outcome.job.name:<8}{how} in {outcome.seconds:.1f} s, {outcome.computed:.0f} s of a processor")
    for attempt in attempts:
        word, how = ("FLAKY", "passed") if attempt.passed else ("FAILED", "failed")
        for failure in attempt.failures:
            first = f"failed at load {failure.load:.1f} after {failure.seconds:.1f} s"
            print(f"{word} {failure.test} ({first}; its file {how} alone in {attempt.outcome.seconds:.1f} s)")
    passed = all(each.passed for each in (attempts or outcomes))
    return bool(outcomes) and passed and not left and not changed


def _remember(outcomes: Sequence[Outcome], flaky: Sequence[Result]) -> bool:
    """Add a run that passed to the history. False where a test of it was flaky too often in the last runs."""
    today = datetime.now(UTC).date()
    often = again.remember(Path(f"{CACHE}.flaky.jsonl"), flaky, commit=_commit(), today=today)
    often &= {result.test for outcome in outcomes for result in outcome.results}
    blamed = again.without_excused(often, ROOT / "tests" / "flaky.toml", today)
    for test in blamed:
        print(f"{test} was flaky {again.OFTEN} times in {again.REMEMBERED} runs: mend it, or take it out of the gate")
    return not blamed


def _commit() -> str:
    argv = _as_owner(["git", "rev-parse", "HEAD"])
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
