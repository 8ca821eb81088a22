"""What the host looks at by itself: in a home where the guest is faster, and of a machine's processes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hutch.backends import cloud_hypervisor, nspawn, qemu
from hutch.backends.traits import Traits
from hutch.prove import facts, machine
from hutch.prove.run import sweep
from hutch.prove.subject import Subject
from hutch.spec.names import Layout


def subject(home: Path, traits: Traits = nspawn.TRAITS, **booted: Any) -> Subject:
    record = SimpleNamespace(uid_base=os.getuid(), booted=SimpleNamespace(memory=512 << 20))
    now = SimpleNamespace(pid=2, leader=(3, 0))
    workspace = SimpleNamespace(home=str(home), **booted)
    return cast(Subject, SimpleNamespace(booted=workspace, traits=traits, record=record, now=now))


# A home.


@pytest.mark.parametrize("kind", ["link", "link to a directory", "fifo", "file", "directory", "nothing"])
def test_nothing_that_lies_there_is_followed_or_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".hutch-prove-link"
    match kind:
        case "link":
            path.symlink_to("/etc/shadow")
        case "link to a directory":
            path.symlink_to("/etc")
        case "fifo":
            os.mkfifo(path)
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
    assert facts.link_to_the_host(subject(tmp_path)).verdict == "held"


def test_that_it_is_the_hosts_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".hutch-prove-link").touch()
    monkeypatch.setattr(facts, "LED_TO", str(tmp_path / ".hutch-prove-link"))
    assert facts.link_to_the_host(subject(tmp_path)).verdict == "broken"


def test_what_was_left_is_swept(tmp_path: Path) -> None:
    """Whatever it is by now; nothing else."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    home, runtime = tmp_path / "home", layout.runtime("web")
    (home / ".hutch-prove-setuid" / "deep").mkdir(parents=True)
    (home / "kept").touch()
    os.mkfifo(home / ".hutch-prove-device")
    (home / ".hutch-prove-link").symlink_to("kept")
    runtime.mkdir(parents=True)
    for name in ("marker.1", "marker.2", "status.json"):
        (runtime / name).touch()
    record = SimpleNamespace(name="web", wanted=SimpleNamespace(home=str(home)), booted=None)
    sweep(layout, cast(Any, record))
    assert [path.name for path in home.iterdir()] == ["kept"]
    assert [path.name for path in runtime.iterdir()] == ["status.json"]
    sweep(layout, cast(Any, record))


def test_the_home_of_a_servers_workspace_is_not_looked_for(tmp_path: Path) -> None:
    record = SimpleNamespace(name="far", wanted=SimpleNamespace(home=None), booted=None)
    sweep(Layout(tmp_path / "state", tmp_path / "run"), cast(Any, record))


# Processes.


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ((0, 1, 7), "held"),
        ((0, 0, 6), "broken"),
        ((1, 1, 7), "broken"),
        ((0, 1, 1), "broken"),
        ((None,) * 3, "unknown"),
    ],
)
def test_hutchs_own_filter_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counts: tuple[int | None, ...], verdict: str
) -> None:
    left = [{} if count is None else {"Seccomp_filters": str(count)} for count in counts]
    monkeypatch.setattr(facts, "status_of", lambda pid: left.pop(0))
    assert facts.seccomp(subject(tmp_path)).verdict == verdict


def test_a_process_outside_of_the_cgroup_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here they are whatever runs as our own user."""
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    monkeypatch.setattr(machine, "processes_of", lambda subject: [pid for pid in found if pid != os.getpid()])
    fact = machine.vmm_cgroup(subject(tmp_path))
    assert fact.verdict == "broken"
    assert f"({os.getpid()}) is elsewhere" in fact.detail


@pytest.mark.parametrize(
    ("program", "command", "verdicts"),
    [
        ("qemu-system-x86_64", "qemu -M microvm -m 512M -smp 2 -nographic", ("held", "held")),
        ("qemu-system-x86_64", "qemu -M microvm -m 1024M -smp 64", ("broken", "broken")),
        ("cloud-hypervisor", "ch --cpus boot=2 --memory size=512M,shared=on", ("held", "held")),
        ("cloud-hypervisor", "ch --cpus boot=3 --memory size=513M,shared=on", ("broken", "broken")),
    ],
)
def test_what_a_machine_was_made_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, command: str, verdicts: tuple[str, str]
) -> None:
    monkeypatch.setattr(machine, "machine_processes", lambda subject: {1: {"program": program}})
    monkeypatch.setattr(machine, "output_of", lambda argv: command.replace(" ", "\0") + "\0")
    looked_at = subject(tmp_path, {"cloud-hypervisor": cloud_hypervisor}.get(program, qemu).TRAITS, vcpus=2)
    assert (machine.guest_processors(looked_at).verdict, machine.guest_memory(looked_at).verdict) == verdicts


def test_a_command_line_that_says_nothing_is_no_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "machine_processes", lambda subject: {1: {"program": "qemu-system-x86_64"}})
    monkeypatch.setattr(machine, "output_of", lambda argv: "")
    with pytest.raises(ValueError, match="does not say"):
        machine.guest_processors(subject(tmp_path, qemu.TRAITS, vcpus=2))
