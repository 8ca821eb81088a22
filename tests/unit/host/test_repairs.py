"""What is changed of others' is noted first, made once, and taken back, on a host whose commands do as they say."""

from __future__ import annotations

import errno
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.host.doctor import repairs
from hutch.host.doctor.repairs import (
    DropIn,
    Made,
    RepairStep,
    ensure_file,
    ensure_step,
    ensure_steps,
    read_made,
    take_back,
    write_made,
)
from hutch.spec.names import Layout
from hutch.state import Damaged


def step(name: str, line: str = "") -> RepairStep:
    return RepairStep(("tool", "add", name), ("tool", "remove", name), ("tool", "list", name), line)


class Host:
    """One whose commands do what their words say."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.has_tool = True

    def run(self, argv: tuple[str, ...], *, check: bool = True, **options: Any) -> CompletedProcess[str]:
        _, verb, name = argv
        if verb in self.broken:
            raise HutchError("tool failed", resolution="to replay it")
        if verb == "list":
            return CompletedProcess(
                argv, 0 if name in self.there else 1, "\n".join(f" tool add {n}" for n in self.there)
            )
        self.ran.append(f"{verb} {name}")
        (self.there.discard if verb == "remove" else self.there.add)(name)
        return CompletedProcess(argv, 0, "")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(repairs, "run", host.run)
    monkeypatch.setattr(repairs, "find_program", lambda name: name if host.has_tool else None)
    monkeypatch.setattr("hutch.host.identity.shells.remove", lambda layout, shells: [])
    return host


def test_a_note_is_read_as_it_was_written(layout: Layout) -> None:
    assert read_made(layout) == Made()
    made = Made((step("a"), step("b", "line")), (DropIn("/etc/x", "text\n", ("tool", "reload", "it")),), ("bash",))
    write_made(layout, made)
    assert read_made(layout) == made
    assert layout.repairs.stat().st_mode & 0o777 == 0o600
    write_made(layout, Made())
    assert not layout.repairs.exists()


def test_a_step_is_made_once_and_taken_back(layout: Layout, host: Host) -> None:
    said: list[str] = []
    for _ in range(2):
        ensure_step(layout, step("a"), said.append)
    assert host.ran == ["add a"] and said == ["tool add a"]
    assert read_made(layout).steps == (step("a"),)
    assert take_back(layout, said.append) == []
    assert (host.there, said[1:]) == (set(), ["tool remove a"])
    assert take_back(layout, said.append) == [] and len(said) == 2


def test_what_was_there_already_is_not_ours(layout: Layout, host: Host) -> None:
    host.there = {"a"}
    ensure_step(layout, step("a"), print)
    assert take_back(layout, print) == []
    assert host.there == {"a"} and host.ran == []


def test_it_is_noted_before_it_is_made(layout: Layout, host: Host) -> None:
    noted: list[tuple[RepairStep, ...]] = []
    ensure_step(layout, step("a"), lambda text: noted.append(read_made(layout).steps))
    assert noted == [(step("a"),)]


def test_one_that_failed_is_not_ours_when_somebody_makes_it_by_hand(layout: Layout, host: Host) -> None:
    ensure_step(layout, step("a"), print)
    host.broken = {"add"}
    with pytest.raises(HutchError):
        ensure_step(layout, step("b"), print)
    assert read_made(layout).steps == (step("a"),)
    host.there.add("b")
    assert take_back(layout, print) == [] and host.there == {"b"}


def test_one_that_was_made_although_it_failed_stays_noted(
    layout: Layout, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(argv: tuple[str, ...], **options: Any) -> CompletedProcess[str]:
        result = host.run(argv, **options)
        if argv[1] == "add":
            raise HutchError("tool came to no end")
        return result

    monkeypatch.setattr(repairs, "run", run)
    with pytest.raises(HutchError):
        ensure_step(layout, step("a"), print)
    assert read_made(layout).steps == (step("a"),)


def test_after_one_that_fails_the_last_is_not_made(layout: Layout, host: Host) -> None:
    host.broken = {"add"}
    with pytest.raises(HutchError):
        ensure_steps(layout, (step("a"), step("b")), host.ran.append)
    assert host.ran == ["tool add a"]
    host.broken = set()
    ensure_steps(layout, (step("a"), step("b")), print)
    assert read_made(layout).steps == (step("a"), step("b"))


def test_one_that_cannot_be_taken_back_stays_noted_and_holds_up_no_other(
    layout: Layout, host: Host, tmp_path: Path
) -> None:
    for name in "ab":
        ensure_step(layout, step(name), print)
    file = DropIn(str(tmp_path / "etc" / "x"), "text\n", ("tool", "reload", "it"))
    ensure_file(layout, file, print)
    host.broken = {"remove"}
    assert take_back(layout, print) == ["tool failed; to replay it"] * 2
    assert read_made(layout) == Made((step("a"), step("b")))
    assert not Path(file.path).exists()
    host.broken = set()
    assert take_back(layout, print) == []
    assert not layout.repairs.exists()


def test_what_cannot_be_written_stays_noted_and_holds_up_no_other(
    layout: Layout, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    file = DropIn(str(path), "text\n", ("tool", "reload", "it"))
    ensure_step(layout, step("a"), print)
    ensure_file(layout, file, print)
    write_made(layout, Made(read_made(layout).steps, (file,), ("bash",)))

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("hutch.host.identity.shells.remove", refuse)
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **options: refuse() if self == path else unlink(self, **options))
    failures = take_back(layout, print)
    assert len(failures) == 2 and all("Read-only file system" in failure for failure in failures)
    assert read_made(layout) == Made((), (file,), ("bash",)) and host.there == {"it"}


def test_a_program_that_is_gone_took_what_it_did_with_it(layout: Layout, host: Host) -> None:
    ensure_step(layout, step("a"), print)
    host.has_tool = False
    assert take_back(layout, print) == []


def test_a_line_among_those_that_are_listed(layout: Layout, host: Host) -> None:
    host.there = {"b"}
    assert repairs.is_made(step("b", "tool add b"))
    assert not repairs.is_made(step("b", "tool add"))


def test_a_file_of_somebody_elses_is_left_alone(layout: Layout, host: Host, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("theirs\n")
    file = DropIn(str(path), "text\n", ("tool", "reload", "it"))
    with pytest.raises(HutchError, match="hutch did not write that"):
        ensure_file(layout, file, print)
    path.unlink()
    ensure_file(layout, file, print)
    path.write_text("changed\n")
    with pytest.raises(HutchError, match="hutch did not write that"):
        ensure_file(layout, file, print)
    assert "has been changed since" in take_back(layout, print)[0]
    assert path.read_text() == "changed\n"
    path.unlink()
    assert take_back(layout, print) == []


def test_a_file_that_is_as_it_should_be_is_not_ours(layout: Layout, host: Host, tmp_path: Path) -> None:
    file = DropIn(str(tmp_path / "x"), "text\n", ("tool", "reload", "it"))
    Path(file.path).write_text(file.content)
    ensure_file(layout, file, print)
    assert host.ran == ["reload it"] and take_back(layout, print) == []
    assert Path(file.path).exists()


def test_a_damaged_note_is_named(layout: Layout) -> None:
    write_made(layout, Made((step("a"),)))
    layout.repairs.write_bytes(layout.repairs.read_bytes().replace(b"tool", b"fool"))
    with pytest.raises(Damaged, match="checksum"):
        read_made(layout)


def test_a_file_is_asked_about_before_it_is_put_in_place(layout: Layout, host: Host, tmp_path: Path) -> None:
    file = DropIn(str(tmp_path / "rule"), "text\n", mode=0o440, check=("tool", "check"))
    host.broken = {"check"}
    with pytest.raises(HutchError):
        ensure_file(layout, file, print)
    assert not Path(file.path).exists()
    assert not layout.repairs.exists()
    host.broken = set()
    ensure_file(layout, file, print)
    assert Path(file.path).stat().st_mode & 0o777 == 0o440
    assert read_made(layout).files == (file,)
    assert {path.name for path in layout.state.iterdir()} == {"repairs.json"}


def test_a_part_of_somebody_else_s_file_comes_and_goes_alone(layout: Layout, host: Host, tmp_path: Path) -> None:
    path = tmp_path / "doas.conf"
    path.write_text("permit :wheel")
    path.chmod(0o400)
    part = DropIn(str(path), "permit nopass :hutch\n", is_part=True)
    for _ in range(2):
        ensure_file(layout, part, print)
        assert path.read_text() == "permit :wheel\npermit nopass :hutch\n"
    assert path.stat().st_mode & 0o777 == 0o400
    assert take_back(layout, print) == []
    assert path.read_text() == "permit :wheel\n"
    path.unlink()
    ensure_file(layout, part, print)
    assert take_back(layout, print) == []
    assert not path.exists()


def test_a_part_that_somebody_has_taken_out_is_gone(layout: Layout, host: Host, tmp_path: Path) -> None:
    path = tmp_path / "doas.conf"
    ensure_file(layout, DropIn(str(path), "permit nopass :hutch\n", is_part=True), print)
    path.write_text("deny :hutch\n")
    assert take_back(layout, print) == []
    assert path.read_text() == "deny :hutch\n"


def test_what_lasts_goes_with_hutch_alone(layout: Layout, host: Host, tmp_path: Path) -> None:
    lasting = DropIn(str(tmp_path / "hutch" / "member"), "program\n", lasts=True)
    other = DropIn(str(tmp_path / "x"), "text\n")
    for file in (lasting, other):
        ensure_file(layout, file, print)
    assert take_back(layout, print, is_leaving=False) == []
    assert read_made(layout).files == (lasting,)
    assert Path(lasting.path).exists() and not Path(other.path).exists()
    assert take_back(layout, print) == []
    assert not Path(lasting.path).parent.exists()
