"""What a host lacks, and what is said of it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hutch.apply.doctor import (
    FEATURES,
    LIMITS,
    Finding,
    check_images,
    check_policy,
    check_published,
    check_records,
    examine,
    is_broken,
)
from hutch.audit.chain import GENESIS, Damage, chained
from hutch.audit.events import Entry
from hutch.errors import ConfigError, HutchError, Problem
from hutch.host.doctor import abilities
from hutch.host.doctor.abilities import Abilities
from hutch.host.doctor.packages import REQUIREMENTS
from hutch.spec.names import Layout
from hutch.spec.record import Freshness, Record
from hutch.state import write_record
from tests.unit.apply.test_coexistence import QUIET, SCENES
from tests.unit.cli.conftest import Result, Run
from tests.unit.facts import workspace

GOOD = Abilities(
    is_root=True,
    missing=(),
    manager="apt",
    features=dict.fromkeys(FEATURES, True),
    controllers=frozenset({"cpu", "io", "memory", "pids"}),
    state="/var/lib/hutch",
    unlimited="",
    lists_tasks=False,
    watchers=8192,
    old_virtiofsd="",
    kvm="",
    has_kvm_device=True,
)
NSPAWN = next(item for item in REQUIREMENTS if "systemd-nspawn" in item.proof)
EXTRA = next(item for item in REQUIREMENTS if item.optional and item.set == "runtime")


def found(**facts: Any) -> dict[str, Finding]:
    """The findings that are not good, by name."""
    return {finding.name: finding for finding in examine(replace(GOOD, **facts)) if finding.state != "ok"}


def test_a_host_that_has_everything() -> None:
    assert found() == {}
    assert not is_broken(examine(GOOD))
    assert [finding.do for finding in examine(GOOD) if finding.do] == []


def test_a_broken_policy_is_a_conflict() -> None:
    """It stops members, who may do nothing then."""
    assert list(check_policy(None)) == []
    problem = Problem("is not a size", "members.memory", '"2GB"', file="/etc/hutch/policy.toml", line=2)
    (finding,) = check_policy(ConfigError([problem]))
    assert is_broken([finding])
    assert '/etc/hutch/policy.toml:2: members.memory = "2GB": is not a size' in finding.means


def test_records_that_are_damaged() -> None:
    wrong = [Damage(3, "line 3 is odd", "web.jsonl"), Damage(4, "it is gone")]
    (deaf,) = check_published({"web": ["postgres hears nothing", "sshd hears nothing"]})
    assert (deaf.name, deaf.means) == ("ports of web", "postgres hears nothing; sshd hears nothing")
    (finding,) = check_records({"lab": [], "web": wrong})
    assert (finding.name, finding.state) == ("record of web", "warning")
    assert finding.means == "it is not as it was written: web.jsonl: line 3 is odd, and 1 more"
    assert "hutch report web --verify" in finding.do


def test_programs_are_named_with_their_packages() -> None:
    (finding,) = found(missing=(NSPAWN,)).values()
    assert (finding.name, finding.state) == ("systemd-nspawn", "missing")
    assert finding.do == "`apt-get install systemd-container`"
    assert found(missing=(NSPAWN,), manager=None)["systemd-nspawn"].do == "install systemd-nspawn"
    (other,) = found(missing=(EXTRA,)).values()
    assert other.state == "warning"


@pytest.mark.parametrize("name", FEATURES)
def test_each_part_of_the_kernel_that_is_needed(name: str) -> None:
    (finding,) = found(features={**GOOD.features, name: False}).values()
    assert (finding.name, finding.state) == (name, "missing")
    assert finding.do
    (unknown,) = found(features={**GOOD.features, name: None}).values()
    assert unknown.state == "unknown"


@pytest.mark.parametrize("controller", LIMITS)
def test_each_limit_that_cannot_be_enforced(controller: str) -> None:
    (finding,) = found(controllers=frozenset(LIMITS) - {controller}).values()
    assert finding.name == f"limit of {LIMITS[controller][0]}"
    assert finding.state == "warning"
    assert "cannot be enforced here" in finding.means
    assert [finding.state for finding in found(controllers=None).values()] == ["unknown"] * len(LIMITS)


def test_what_is_slower_or_less_but_works() -> None:
    assert "emulated" in found(kvm="a guest did not come up")["KVM"].means
    assert "not tried yet" in found(kvm=None)["KVM"].means
    assert found(kvm=None)["KVM"].state == "unknown"
    for known in (None, "no /dev/kvm"):
        missing = found(kvm=known, has_kvm_device=False)["KVM"]
        assert "there is no /dev/kvm" in missing.means and "enable virtualisation" in missing.do
    assert found(old_virtiofsd="/x/virtiofsd 1.10")["virtiofsd"].means.startswith(
        "/x/virtiofsd 1.10 is older than 1.13"
    )
    assert found(unlimited="no quotas")["limit of homes"].do == "no quotas"
    assert "homes in /var/lib/hutch may" in found(unlimited="no quotas")["limit of homes"].means
    assert [item.name for item in examine(replace(GOOD, lists_tasks=True)) if "oom_dump_tasks" in item.do] == [
        "kernel log"
    ]
    assert "128 watchers" in found(watchers=128)["inotify"].means
    assert "fs.inotify.max_user_instances=8192" in found(watchers=128)["inotify"].do
    assert not found(watchers=None)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command sees: of the host itself, and of others on it."""
    facts: dict[str, Any] = {"own": GOOD, "others": QUIET}
    monkeypatch.setattr("hutch.cli.doctor.observe_abilities", lambda layout: facts["own"])
    monkeypatch.setattr("hutch.apply.repairing.look", lambda layout, file: facts["others"])
    monkeypatch.setattr("hutch.apply.repairing.is_left_behind", lambda layout: False)
    return facts


def test_the_command(hutch: Run, looked: dict[str, Any]) -> None:
    good = hutch("doctor", "--json")
    assert good.code == 0
    assert {"name", "state", "means", "do"} == set(json.loads(good.out)[0])
    looked["own"] = replace(GOOD, missing=(NSPAWN,))
    bad = hutch("doctor")
    assert bad.code == 1
    assert "systemd-nspawn" in bad.out
    assert "→ systemd-nspawn: `apt-get install systemd-container`" in bad.out


@pytest.fixture
def recorded(layout: Layout) -> Layout:
    """Two workspaces whose records have a line each."""
    layout.audits.mkdir(parents=True)
    for name in ("lab", "web"):
        write_record(layout, Record(name, "/srv/hutch.toml", workspace(name), "image", 100_000, "0" * 32))
        line, link = chained(GENESIS, Entry(0.0, "removed", "ann", {"kept": None}), workspace=name)
        layout.audit(name).write_bytes(line)
        layout.audit_head(name).write_text(json.dumps({"seq": link.seq, "hash": link.hash, "first": 1}))
    return layout


def of_records(found: Result) -> list[tuple[str, str]]:
    return [(each["name"], each["means"]) for each in json.loads(found.out) if each["name"].startswith("record of ")]


def test_a_record_that_is_no_file_hides_no_other(hutch: Run, looked: dict[str, Any], recorded: Layout) -> None:
    lab, web = recorded.audit("lab"), recorded.audit("web")
    assert of_records(hutch("doctor", "--json")) == []
    lab.unlink()
    lab.symlink_to(web)
    web.write_bytes(web.read_bytes().replace(b"ann", b"bob"))
    [(_, foreign), (_, changed)] = of_records(hutch("doctor", "--json"))
    assert foreign.endswith(f"{lab} is not a file of hutch's")
    assert "line 1 does not follow" in changed


def test_a_record_of_which_nothing_is_left(hutch: Run, looked: dict[str, Any], recorded: Layout) -> None:
    recorded.audit("lab").unlink()
    [(name, means)] = of_records(hutch("doctor", "--json"))
    assert (name, means.rpartition(": ")[2]) == ("record of lab", "the line of number 1 is missing at its end")


def test_a_record_that_is_not_the_caller_s_hides_no_other(
    hutch: Run, looked: dict[str, Any], recorded: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Any, *rest: Any, **more: Any) -> int:
        if path == recorded.audit("lab"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *rest, **more)

    opened = os.open
    recorded.audit("web").write_text("{}\n")
    monkeypatch.setattr("os.open", closed)
    assert [name for name, _ in of_records(hutch("doctor", "--json"))] == ["record of web"]


def test_a_conflict_counts_only_where_it_stops_workspaces(hutch: Run, looked: dict[str, Any]) -> None:
    looked["others"] = SCENES["docker"]
    assert hutch("doctor").code == 1
    looked["others"] = SCENES["docker-first"]
    found = hutch("doctor")
    assert found.code == 0 and "→ Docker: `sudo hutch doctor --fix`, which gives `iptables" in found.out


def test_what_failed_is_told_and_the_rest_is_done(
    hutch: Run, looked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def repair(layout: Layout, file: object, tell: Callable[[str], None]) -> list[HutchError]:
        tell("ufw route allow in on hutch-up")
        return [HutchError("iptables failed with code 4")]

    monkeypatch.setattr("hutch.apply.repairing.repair", repair)
    found = hutch("doctor", "--fix")
    assert found.code == 1
    assert "+ ufw route allow in on hutch-up" in found.err and "hutch: iptables failed" in found.err
    monkeypatch.setattr("hutch.apply.repairing.repair", lambda layout, file, tell: [])
    assert "nothing to repair" in hutch("doctor", "--fix").err


def test_packages_wait_for_a_word(hutch: Run, looked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that are needed; without a terminal nobody is asked, and nothing is installed."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr("hutch.apply.repairing.install", commands.append)
    monkeypatch.setattr("hutch.apply.repairing.repair", lambda layout, file, tell: [])
    looked["own"] = replace(GOOD, missing=(NSPAWN, EXTRA))
    hutch("doctor", "--fix")
    assert commands == []
    hutch("doctor", "--fix", "--yes")
    assert commands == [("apt-get", "install", "--yes", "systemd-container")]
    looked["own"] = replace(GOOD, missing=(NSPAWN,), manager=None)
    assert hutch("doctor", "--fix", "--yes").code == 1
    assert len(commands) == 1


def test_options_that_exclude_each_other(hutch: Run) -> None:
    assert hutch("doctor", "--fix", "--undo").code == 2
    assert hutch("doctor", "--yes").code == 2


def test_what_cannot_be_taken_back_is_told(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.apply.repairing.take_back", lambda layout, tell: ["/etc/x has been changed"])
    found = hutch("doctor", "--undo")
    assert (found.code, found.err) == (1, "hutch: this stays: /etc/x has been changed\n")


@pytest.mark.usefixtures("not_root")
@pytest.mark.parametrize("option", ["--fix", "--undo"])
def test_changing_needs_root(hutch: Run, option: str) -> None:
    found = hutch("doctor", option)
    assert found.code == 1 and "needs root" in found.err


def test_looking_needs_no_root(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """What takes a command is not asked of a host that has none, and counts as not there."""

    def nothing(argv: list[str], **options: object) -> None:
        raise HutchError(f"{argv[0]} is not installed")

    monkeypatch.setattr(abilities, "run", nothing)
    monkeypatch.setattr("hutch.run.run", nothing)
    monkeypatch.setattr("hutch.host.doctor.tools.find_program", lambda name: f"/{name}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    seen = abilities.observe_abilities(layout)
    assert (seen.is_root, seen.features["idmapped mounts"], seen.features["nf_tables"]) == (False, None, None)
    assert seen.features["openat2"] and seen.features["pidfd"]
    assert seen.state in str(layout.state)
    assert not abilities.can_filter()


DAY, DUE = "2026-11-27T12:00:00+00:00", ("image: 7 security updates waiting (asked 2026-11-27)", "refresh it")


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ({}, []),
        ({"web": Freshness(DAY, DAY, 0)}, [("images", "ok", "no security updates waiting (asked 2026-11-27)", "")]),
        (
            {
                "web": Freshness(DAY, DAY, 7, (DUE,)),
                "api": Freshness(DAY, DAY, 7, (DUE,)),
                "lab": Freshness(DAY, DAY, 0),
            },
            [("image of web, api", "warning", "7 security updates waiting (asked 2026-11-27)", "refresh it")],
        ),
    ],
)
def test_what_was_heard_of_images(seen: dict[str, Freshness], told: list[tuple[str, ...]]) -> None:
    assert list(check_images(seen)) == [Finding(*each) for each in told]  # type: ignore[arg-type]


def test_images_that_nobody_has_asked_for() -> None:
    (finding,) = check_images({"web": Freshness(DAY)})
    assert (finding.state, finding.means) == ("unknown", "it is not known whether security updates are waiting")
