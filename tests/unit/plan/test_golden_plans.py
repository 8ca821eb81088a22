"""Every folder of golden/plan: a hutch.toml, and facts of the host, and the plan that follows."""

from __future__ import annotations

import grp
import json
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.backends import weight_of
from hutch.cli.common import print_error
from hutch.cli.declare import print_plan
from hutch.errors import HutchError
from hutch.spec.model import WORKSPACE_KEYS
from tests.unit.facts import check_golden, workspace
from tests.unit.plan.cases import FILE, FOLDER, Case, all_cases

CASES = all_cases()


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """alice, uid 1000, is behind sudo; bob is uid 1001; devs is gid 1200. The clock is that of Greenwich."""
    accounts = [
        pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", "/bin/sh"))
        for name, uid in (("alice", 1000), ("bob", 1001))
    ]
    monkeypatch.setattr(pwd, "getpwnam", {account.pw_name: account for account in accounts}.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", {account.pw_uid: account for account in accounts}.__getitem__)
    devs = grp.struct_group(("devs", "x", 1200, []))
    monkeypatch.setattr(grp, "getgrnam", {"devs": devs}.__getitem__)
    monkeypatch.setattr(grp, "getgrgid", {1200: devs}.__getitem__)
    monkeypatch.setattr("os.getuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plan(case: Case, people: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        plan = case.plan(case.load(tmp_path))
    except HutchError as error:
        print_error(error)
        check_golden(f"plan/{case.name}/refused.txt", capsys.readouterr().err.replace(f"{tmp_path}/hutch.toml", FILE))
        return
    print_plan(plan)
    check_golden(f"plan/{case.name}/plan.txt", capsys.readouterr().out)
    check_golden(f"plan/{case.name}/plan.json", as_lines(plan.to_json()))
    if case.name.startswith("address-"):
        lines = [f"{name} {wanted.workspace.ip}\n" for name, wanted in plan.wanted.items()]
        check_golden(f"plan/{case.name}/addresses.txt", "".join(lines))


def as_lines(plan: dict[str, Any]) -> str:
    """A line for each action."""
    actions = ",\n".join(f"  {json.dumps(action)}" for action in plan["actions"])
    rest = "".join(f',\n "{key}": {json.dumps(value)}' for key, value in plan.items() if key != "actions")
    return f'{{"actions": [\n{actions}\n ]{rest}}}\n'


def planned(name: str) -> list[tuple[str, str]]:
    """(key, weight) of every reason of a case."""
    actions = json.loads((FOLDER / name / "plan.json").read_text())["actions"]
    return [(reason["key"], reason["weight"]) for action in actions for reason in action["reasons"]]


@pytest.mark.parametrize("kind", ["container", "vm"])
def test_every_key_has_a_case(kind: str) -> None:
    """In both types; the type itself in flips, and the engine in moves."""
    found = [change for weight in ("live", "restart", "recreate") for change in planned(f"{kind}-every-{weight}-key")]
    assert sorted(found) == sorted(
        (key, weight_of(key, workspace(type=kind))) for key in WORKSPACE_KEYS if key not in ("type", "engine")
    )


def test_every_action_has_a_case_and_none_is_there_twice() -> None:
    assert len(CASES) >= 60
    plans = [json.loads(path.read_text()) for path in FOLDER.glob("*/plan.json")]
    found = {action["action"] for plan in plans for action in plan["actions"]}
    assert found == {"no change", "create", "start", "live", "restart", "recreate", "move", "remove"}
    inputs = [(case.text("hutch.toml"), case.text("facts.toml")) for case in CASES]
    assert len(set(inputs)) == len(inputs)


def test_a_folder_holds_one_outcome() -> None:
    outcomes = ({"hutch.toml", "plan.txt", "plan.json"}, {"hutch.toml", "refused.txt"})
    for case in CASES:
        files = {path.name for path in (FOLDER / case.name).iterdir()}
        assert files - {"facts.toml", "addresses.txt", "policy.toml"} in outcomes, case.name
