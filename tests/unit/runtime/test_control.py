"""The command's side: what it says of a start, and what it shows of a log where systemd keeps none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.backends.launch import Launch, Limits
from hutch.runtime import control
from hutch.runtime.control import unlimited_launch
from hutch.runtime.runners import TAIL_BYTES, Runners
from hutch.spec.names import Layout
from tests.unit.backends.test_qemu import machine
from tests.unit.facts import LAYOUT, launched


class Group:
    """The slice of a workspace, on a host that has these control files."""

    def __init__(self, *files: str) -> None:
        self.files, self.is_open = files, True

    def has(self, file: str) -> bool:
        return file in self.files

    def close(self) -> None:
        self.is_open = False


CPU, MEMORY = "cpu.max", "memory.max"
HOSTS: dict[str, tuple[Limits, tuple[str, ...], str]] = {
    "no limits": (Limits(), (), ""),
    "tasks alone": (Limits(tasks=100), (), ""),
    "all can be limited": (Limits(2, 1 << 30), (CPU, MEMORY), ""),
    "nothing can be": (Limits(2, 1 << 30), (), "vcpus and memory"),
    "no memory": (Limits(2, 1 << 30), (CPU,), "memory"),
    "no processors": (Limits(2, 1 << 30), (MEMORY,), "vcpus"),
    "what is not wanted does not matter": (Limits(memory=1 << 30), (MEMORY,), ""),
}


@pytest.mark.parametrize(("limits", "files", "what"), HOSTS.values(), ids=HOSTS)
def test_what_a_host_cannot_limit_is_told(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, files: tuple[str, ...], what: str
) -> None:
    group = Group(*files)
    monkeypatch.setattr(control, "Cgroup", lambda path: group if path == LAYOUT.slice_cgroup("web") else None)
    said = unlimited_launch(LAYOUT, launched(limits=limits))
    assert said == (f"this host's cgroups cannot limit {what}: the workspace may use all of it" if what else "")
    assert not group.is_open


def test_a_machines_hardware_holds_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "Cgroup", lambda path: Group())
    found: Launch = machine(memory=1 << 30)
    assert found.limits.memory is not None
    assert unlimited_launch(LAYOUT, found) == ""
    assert unlimited_launch(LAYOUT, None) == ""  # nothing is known of what runs


# A log, where it is a file.


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "run")
    found.runtime("web").mkdir(parents=True)
    return found


def test_the_last_lines_of_a_log(layout: Layout) -> None:
    runners, path = Runners(layout), layout.log("web")
    assert runners.log("web", 5) == ""
    path.write_bytes(b"three\r\nfour\r\n\r\nfive")
    path.with_name("machine.log.1").write_bytes(b"one\r\ntwo\r\n")
    assert runners.log("web", 100) == "one\ntwo\nthree\nfour\n\nfive"
    assert runners.log("web", 3) == "four\n\nfive"
    assert runners.log("web", 0) == ""


def test_the_tail_is_text_and_not_empty(layout: Layout) -> None:
    layout.log("web").write_bytes(b"first\r\n\r\n  \r\n\x1b[31mred \xff\xc3\xa9\r\n")
    assert Runners(layout).log("web", 10, last_start=True) == "first\n\x1b[31mred \N{REPLACEMENT CHARACTER}\u00e9"
    assert Runners(layout).log("web", 1, last_start=True).endswith("red \N{REPLACEMENT CHARACTER}\u00e9")


def test_the_tail_is_no_longer_than_it_is_to_be(layout: Layout) -> None:
    layout.log("web").write_bytes(b"x" * (2 * TAIL_BYTES) + b"end\n")
    tail = Runners(layout).log("web", 10, last_start=True)
    assert tail.endswith("xend") and len(tail) < TAIL_BYTES


def test_units_are_files_beside_the_script(layout: Layout) -> None:
    runners, directory = Runners(layout), layout.unit_directory("web")
    directory.mkdir(parents=True)
    texts = {layout.unit("web"): "[Service]\n", layout.slice("web"): "[Slice]\n"}
    for _ in range(2):
        runners.ensure({"web": texts})
        assert {path.name: path.read_text() for path in directory.iterdir()} == texts
    runners.ensure({"web": {layout.slice("web"): "[Slice]\nTasksMax=7\n"}})
    assert (directory / layout.slice("web")).read_text() == "[Slice]\nTasksMax=7\n"
    (directory / "run").write_text("")
    for _ in range(2):
        runners.remove("web")
        assert [path.name for path in directory.iterdir()] == ["run"]
