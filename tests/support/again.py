"""A test with effects that fails is tried once more, alone: where, and the history of those that passed then.

pytest notes how each test went as lines of JSON (`Result`) in the file that the variable `NOTES` names; tiers reads
them, and tries again. Nothing here starts a process.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

NOTES = "HUTCH_TEST_NOTES"
END = "end"  # of a session; a stand that boots again has several
MOST = 3  # more than these are no chance
REMEMBERED = 20  # runs
OFTEN = 3  # times in these runs, and the test is to be mended
EXCUSED = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Result:
    """How a test, by its node id, went: after so many seconds, at that load of the machine; and what it failed of, ""
    where it passed."""

    test: str
    seconds: float
    load: float
    cause: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


def note(report: pytest.TestReport) -> None:
    """For pytest's hook: write down each failure, and each test that has run to its end, where somebody reads it."""
    notes = os.environ.get(NOTES)
    if not notes or not (report.failed or (report.passed and report.when == "call")):
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    # A fixture of a whole file fails for each of its tests, with the same words.
    cause = f"setup: {crash}" if report.when == "setup" and crash else f"{report.when}: {report.nodeid}"
    result = Result(report.nodeid, report.duration, os.getloadavg()[0], cause if report.failed else "")
    with open(notes, "a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def note_end() -> None:
    """For pytest's hook: write down that a session has come to its end."""
    if notes := os.environ.get(NOTES):
        with open(notes, "a") as file:
            file.write(f"{END}\n")


def read_notes(notes: Path | None) -> list[Result]:
    """The results of a job. One that did not come to its end, since a test hung, has none: others never ran."""
    lines = notes.read_text().splitlines() if notes is not None and notes.exists() else []
    if lines[-1:] != [END]:
        return []
    return [Result(**json.loads(line)) for line in lines if line != END]


def failures_of(results: Iterable[Result], code: int) -> list[Result]:
    """The failed tests of a job of pytest's that ended with a code, each once. None where the job failed otherwise."""
    if code != pytest.ExitCode.TESTS_FAILED:
        return []
    by_test: dict[str, Result] = {}
    for result in results:
        if result.cause:
            by_test.setdefault(result.test, result)
    return list(by_test.values())


def passed_of(results: Sequence[Result]) -> set[str]:
    """The tests that ran to their end, and of which nothing failed."""
    return {result.test for result in results} - {result.test for result in results if result.cause}


def by_cause(failures: Iterable[Result]) -> list[Result]:
    """One failure for each cause in each file."""
    found: dict[tuple[str, str], Result] = {}
    for failure in failures:
        found.setdefault((failure.file, failure.cause), failure)
    return list(found.values())


def refusal(failed: Mapping[str, Sequence[Result]]) -> str:
    """The reason why these failures, by their jobs, are not tried again; "" where they are."""
    for job, failures in failed.items():
        if not failures:
            return f"{job} failed, and not by a test with effects"
        file, count = Counter(failure.file for failure in by_cause(failures)).most_common(1)[0]
        if count > 1:
            return f"{count} tests of {file} failed"
    total = sum(len(by_cause(failures)) for failures in failed.values())
    return f"{total} tests failed" if total > MOST else ""


def places(tier: str, failures: Iterable[Result]) -> dict[str, list[Result]]:
    """The files to be run again, with their failures. Tests of one file share workspaces, so a file is run as a whole,
    and a host of its own, where one boot waits for the tests of another, with all its files."""
    found: dict[str, list[Result]] = {}
    for failure in failures:
        place = "tests/systemd" if tier in ("systemd", "smoke", "stand") else failure.file
        found.setdefault(place, []).append(failure)
    return found


def remember(history: Path, flaky: Iterable[Result], *, commit: str, today: date) -> set[str]:
    """Add a run to the history, and return the tests that were flaky too often in the last runs."""
    run = {"date": today.isoformat(), "commit": commit, "flaky": [asdict(failure) for failure in flaky]}
    lines = [*(history.read_text().splitlines() if history.exists() else []), json.dumps(run)][-REMEMBERED:]
    history.parent.mkdir(parents=True, exist_ok=True)
    new = history.with_name(f"{history.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(history)
    counts = Counter(failure["test"] for line in lines for failure in json.loads(line)["flaky"])
    return {test for test, count in counts.items() if count >= OFTEN}


def without_excused(tests: Collection[str], excuses: Path, today: date) -> list[str]:
    """Those of `tests` that a file such as tests/flaky.toml does not excuse on that day."""
    excused = {
        entry["test"]
        for entry in tomllib.loads(excuses.read_text()).get("excuse", [])
        if entry["reason"].strip() and entry["date"] <= today < entry["date"] + EXCUSED
    }
    return sorted(set(tests) - excused)
