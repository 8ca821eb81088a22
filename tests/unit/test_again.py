"""A failed test is tried again where that can have been chance, and a flaky one is not forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import again, tiers
from tests.support.again import Result

TODAY = date(2026, 12, 1)
LOGIN = Result("tests/host/test_login.py::test_owner[container]", 12.3, 3.9, "of its own")


def failures(*tests: str) -> list[Result]:
    return [Result(test, 1.0, 2.0, f"call: {test}") for test in tests]


def report(**given: Any) -> Any:
    passed = given.get("outcome", "failed") == "passed"
    whole = {"when": "call", "nodeid": "a.py::one", "duration": 1.5, "longrepr": None}
    return SimpleNamespace(**{**whole, **given, "passed": passed, "failed": not passed})


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(again.NOTES, str(tmp_path / "notes"))
    return tmp_path / "notes"


def test_what_pytest_notes_is_read(notes: Path) -> None:
    assert again.read_notes(notes) == again.read_notes(None) == []
    again.note(report(outcome="passed", when="setup"))
    assert not notes.exists()
    again.note(report())
    again.note(report(when="teardown"))
    again.note(report(outcome="passed", nodeid="a.py::two"))
    assert again.read_notes(notes) == []  # it hangs, perhaps
    again.note_end()
    again.note_end()
    results = again.read_notes(notes)
    (failure,) = again.failures_of(results, 1)
    assert (failure.test, failure.seconds) == ("a.py::one", 1.5)
    assert again.passed_of(results) == {"a.py::two"}


def test_a_test_that_fails_while_it_cleans_up_has_not_passed(notes: Path) -> None:
    again.note(report(outcome="passed"))
    again.note(report(when="teardown"))
    again.note_end()
    assert again.passed_of(again.read_notes(notes)) == set()


def test_a_fixture_of_a_file_fails_once_in_each_file(notes: Path) -> None:
    crash = SimpleNamespace(reprcrash="conftest.py:3: no image")
    for test in ("a.py::one", "a.py::two", "b.py::one", "b.py::two"):
        again.note(report(when="setup", nodeid=test, longrepr=crash))
    again.note_end()
    found = again.failures_of(again.read_notes(notes), 1)
    assert [failure.test for failure in found] == ["a.py::one", "a.py::two", "b.py::one", "b.py::two"]
    assert [failure.test for failure in again.by_cause(found)] == ["a.py::one", "b.py::one"]
    assert {place: len(those) for place, those in again.places("host", found).items()} == {"a.py": 2, "b.py": 2}
    assert not again.refusal({"host-1": found})


@pytest.mark.parametrize("code", [2, 3, 5, -9])
def test_what_ends_otherwise_has_no_failed_tests(code: int) -> None:
    assert again.failures_of([LOGIN], code) == []


@pytest.mark.parametrize(
    ("failed", "refusal"),
    [
        ({}, ""),
        ({"host-2": ["a.py::one", "b.py::one"], "vm-1": ["a.py::one[vm]"]}, ""),
        ({"lint": []}, "lint failed, and not by a test with effects"),
        ({"host-2": ["a.py::one"], "unit-1": []}, "unit-1 failed, and not by a test with effects"),
        ({"host-2": ["a.py::one", "a.py::two"]}, "2 tests of a.py failed"),
        ({"host-2": ["a.py::one", "b.py::one"], "vm-1": ["c.py::one", "d.py::one"]}, "4 tests failed"),
    ],
)
def test_refusals(failed: dict[str, list[str]], refusal: str) -> None:
    assert again.refusal({job: failures(*tests) for job, tests in failed.items()}) == refusal


@pytest.mark.parametrize("tier", ["systemd", "smoke", "stand"])
def test_a_host_that_boots_is_run_again_with_all_its_files(tier: str) -> None:
    """A test that fails in its first boot leaves out the boots that come after."""
    found = failures("tests/systemd/test_units.py::test_stop", "tests/systemd/test_boot.py::test_reboot")
    assert again.places(tier, found) == {"tests/systemd": found}


def test_three_times_flaky_is_too_often(tmp_path: Path) -> None:
    history = tmp_path / "new" / "flaky.jsonl"
    other = failures("tests/host/test_ssh.py::test_other")[0]
    runs = [[LOGIN], [], [LOGIN, other], [], [LOGIN], []]
    told = [again.remember(history, flaky, commit="af30c42", today=TODAY) for flaky in runs]
    assert told == [set(), set(), set(), set(), {LOGIN.test}, {LOGIN.test}]
    *_, last = (again.remember(history, [], commit="af30c42", today=TODAY) for _ in range(again.REMEMBERED))
    assert len(history.read_text().splitlines()) == again.REMEMBERED
    assert last == set()


@pytest.mark.parametrize(
    ("since", "reason", "is_excused"),
    [
        ("2026-11-30", "a clock, see issue 23", True),
        ("2026-11-18", "a clock", True),
        ("2026-11-17", "a clock", False),
        ("2026-12-02", "a clock", False),
        ("2026-11-30", " ", False),
    ],
)
def test_an_excuse_has_a_reason_and_an_end(since: str, reason: str, is_excused: bool, tmp_path: Path) -> None:
    excuses = tmp_path / "flaky.toml"
    excuses.write_text(f'[[excuse]]\ntest = "{LOGIN.test}"\ndate = {since}\nreason = "{reason}"\n')
    assert again.without_excused([LOGIN.test], excuses, TODAY) == ([] if is_excused else [LOGIN.test])


PASSED, FAILED, SKIPPED, BROKEN = "passed", "failed", "skipped", "broken"
CODES = {PASSED: 0, FAILED: 1, SKIPPED: 0, BROKEN: 2}


@pytest.mark.parametrize(
    ("second", "is_well", "said"),
    [
        ([PASSED, PASSED], True, ["FLAKY a.py::one", "FLAKY b.py::two"]),
        ([PASSED, FAILED], False, ["FLAKY a.py::one", "FAILED b.py::two"]),
        ([FAILED], False, ["FAILED a.py::one"]),
        ([SKIPPED], False, ["FAILED a.py::one"]),
        ([BROKEN], False, ["FAILED a.py::one"]),
    ],
)
def test_verdict(
    second: list[str],
    is_well: bool,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two files of one part had a failed test: each is run alone, in namespaces of its own, until one fails again."""
    failed = failures("a.py::one", "b.py::two")
    hows = iter(second)
    ran: list[tiers.Job] = []

    def run(jobs: Sequence[tiers.Job], work: Path) -> list[tiers.Outcome]:
        ran.extend(jobs)
        how, failure = next(hows), failed[len(ran) - 1]
        results = {PASSED: [replace(failure, cause="")], FAILED: [failure]}.get(how, [])
        return [tiers.Outcome(job, CODES[how], 1.1, 0.5, results) for job in jobs]

    monkeypatch.setattr(tiers, "_side_by_side", run)
    outcomes = [tiers.Outcome(tiers.Job("host-2", "host", ["pytest"]), 1, 300.0, 100.0, failed)]
    attempts = tiers._try_again(outcomes, ["--slow"], tmp_path, None)
    assert tiers._report(outcomes, attempts, [], "") is is_well
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in lines if "alone in" in line] == said
    assert [job.argv[:2] for job in ran] == [["unshare", "--mount"]] * len(second)
    assert [job.argv[-2:] for job in ran] == [[file, "--slow"] for file in ("a.py", "b.py")][: len(second)]


def test_what_is_left_behind_is_no_chance() -> None:
    passed = [tiers.Outcome(tiers.Job("host", "host", ["pytest"]), 0, 1.0, 1.0)]
    assert tiers._report(passed, [], [], "")
    assert not tiers._report(passed, [], ["123: dnsmasq"], "")
    assert not tiers._report(passed, [], [], "mounts:\n  + /run/hutch")
    assert not tiers._report([], [], [], "")
