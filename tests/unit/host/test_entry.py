"""The entry point of members and its rule, as text; and why there must be none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from hutch.apply.doctor import check_entrance
from hutch.host.doctor import entry
from hutch.host.doctor.entry import Entrance, entry_files, observe_entrance, render_entry, render_rule, why_not
from hutch.spec.member import ENTRY
from hutch.spec.names import DEFAULT_STATE_DIR, Layout

PYTHON = "/usr/bin/python3"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the entry point is found to load."""
    files: list[str] = []

    def run(argv: list[str], **options: Any) -> CompletedProcess[str]:
        assert argv[:2] == [PYTHON, "-I"]
        return CompletedProcess(argv, 0, json.dumps(files), "")

    monkeypatch.setattr(entry, "run", run)
    monkeypatch.setattr(entry, "open_to_others", lambda path: path if "loose" in str(path) else None)
    monkeypatch.setattr(entry, "_has_group", lambda: True)
    return files


def test_the_program_believes_nothing_of_its_caller_s_python() -> None:
    assert render_entry(PYTHON).splitlines()[0] == "#!/usr/bin/python3 -I"
    compile(render_entry(PYTHON), ENTRY, "exec")
    assert render_rule().splitlines()[-1] == f"%hutch ALL=(root) NOPASSWD: {ENTRY}"


def test_there_is_no_rule_where_somebody_else_can_change_the_program(loaded: list[str], tmp_path: Path) -> None:
    assert why_not(PYTHON) == ""
    loose = tmp_path / "loose.py"
    loose.touch()
    loaded.append(str(loose))
    assert why_not(PYTHON) == f"{loose} can be changed by others than root, who would be root by it"
    assert entry_files(PYTHON) == ()
    assert "cannot stand in the first line" in why_not("/opt/a b/python")


@pytest.mark.parametrize(
    ("program", "path", "text"),
    [
        ("sudo", "/etc/sudoers.d/hutch", f"%hutch ALL=(root) NOPASSWD: {ENTRY}\n"),
        ("doas", "/etc/doas.conf", f"permit nopass :hutch as root cmd {ENTRY}\n"),
        ("pkexec", "/etc/polkit-1/rules.d/60-hutch.rules", f'action.lookup("program") == "{ENTRY}"'),
    ],
)
def test_the_rule_is_that_of_the_first_program_that_is_there(
    loaded: list[str], monkeypatch: pytest.MonkeyPatch, program: str, path: str, text: str
) -> None:
    monkeypatch.setattr(entry, "find_program", lambda name: name if name == program else None)
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    made, rule = entry_files(PYTHON)
    assert (made.path, made.mode, made.lasts) == (ENTRY, 0o755, True)
    assert (rule.path, rule.lasts) == (path, True)
    assert text in rule.content
    assert "{" not in rule.content or program == "pkexec"


def test_each_rule_is_for_root_s_process_alone() -> None:
    """`pkexec --user alice` and the like would have it run as somebody else."""
    as_root = {"sudo": "ALL=(root) ", "doas": " as root ", "pkexec": 'action.lookup("user") == "root"'}
    assert [way.name for way in entry.WAYS if as_root[way.name] not in way.rule.content] == []


def test_another_hutch_than_the_host_s_has_no_entrance(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert observe_entrance(Layout(Path("/srv/hutch"), Path("/run/other"))) is None
    monkeypatch.setattr("sys.executable", PYTHON)
    assert observe_entrance(Layout(Path(DEFAULT_STATE_DIR), Path("/run/hutch"))) is not None


@pytest.mark.parametrize(
    ("found", "state", "means"),
    [
        (Entrance("sudo", True, "", True), "ok", "by sudo"),
        (Entrance("sudo", True, "", False), "ok", "there is no group hutch yet"),
        (Entrance("sudo", False, "", True), "warning", "needs root"),
        (Entrance("", False, "", True), "warning", "there is none of sudo, doas and pkexec"),
        (Entrance("sudo", False, "/x can be changed", True), "warning", "/x can be changed"),
    ],
)
def test_findings(found: Entrance, state: str, means: str) -> None:
    (finding,) = check_entrance(found)
    assert (finding.name, finding.state) == ("members", state)
    assert means in finding.means


def test_a_rule_that_is_gone_is_found(loaded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    way = replace(entry.WAYS[0], rule=replace(entry.WAYS[0].rule, path=str(tmp_path / "rule")))
    assert not entry.has_rule(way)
    (tmp_path / "rule").write_text("# emptied by root\n")
    assert not entry.has_rule(way)
    (tmp_path / "rule").write_text(render_rule())
    assert entry.has_rule(way)


def test_without_a_group_nothing_is_found() -> None:
    assert list(check_entrance(None)) == []
    assert list(check_entrance(Entrance("sudo", False, "", False))) == []
