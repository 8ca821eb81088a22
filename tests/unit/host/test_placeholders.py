"""What holds a name in somebody's checkout: made for as long as a workspace needs it, and gone after it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from hutch.files import held, write_atomic
from hutch.host.storage import placeholders
from hutch.host.storage.placeholders import ensure_placeholders, held_by, remove_placeholders


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "placeholders.json"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "checkout").mkdir()
    return tmp_path / "checkout"


def ensure(note: Path, workspace: str, *paths: Path) -> None:
    ensure_placeholders(note, workspace, {str(path): "directory" for path in paths}, os.getuid(), os.getgid())


def test_they_come_and_go(note: Path, checkout: Path) -> None:
    wanted = {f"{checkout}/.vscode": "directory", f"{checkout}/inc": "file", f"{checkout}/self": "itself"}
    for _ in range(2):
        ensure_placeholders(note, "web", wanted, os.getuid(), os.getgid())
        assert (os.listdir(checkout / ".vscode"), (checkout / "inc").read_bytes()) == ([], b"")
        assert (checkout / "self").read_bytes() == b".\n"
        assert held_by(note) == {path: ["web"] for path in wanted}
    for _ in range(2):
        remove_placeholders(note, "web")
        assert (os.listdir(checkout), note.exists()) == ([], False)


def test_the_last_workspace_takes_them_away(note: Path, checkout: Path) -> None:
    ensure(note, "web", checkout / ".idea")
    ensure(note, "lab", checkout / ".idea")
    remove_placeholders(note, "web")
    assert held_by(note) == {f"{checkout}/.idea": ["lab"]}
    assert (checkout / ".idea").is_dir()
    remove_placeholders(note, "lab")
    assert os.listdir(checkout) == []


def test_what_another_holds_is_found_there(note: Path, checkout: Path) -> None:
    ensure(note, "web", checkout / ".idea")
    (checkout / ".vscode").mkdir()
    found = {f"{checkout}/.idea": "", f"{checkout}/.vscode": ""}
    assert ensure_placeholders(note, "lab", found, os.getuid(), os.getgid())
    assert held_by(note) == {f"{checkout}/.idea": ["lab", "web"]}
    remove_placeholders(note, "web")
    assert (checkout / ".idea").is_dir()
    remove_placeholders(note, "lab")
    assert os.listdir(checkout) == [".vscode"]


def test_a_way_stays_for_the_last(note: Path, checkout: Path) -> None:
    """The second workspace finds that it is there."""
    way, hooks = f"{checkout}/.github", f"{checkout}/.github/hooks"
    mine = os.getuid(), os.getgid()
    assert ensure_placeholders(note, "web", {way: "way", hooks: "directory"}, *mine)
    assert ensure_placeholders(note, "lab", {hooks: ""}, *mine)
    assert held_by(note) == {way: ["lab", "web"], hooks: ["lab", "web"]}
    remove_placeholders(note, "web")
    assert os.path.isdir(hooks)
    remove_placeholders(note, "lab")
    assert (os.listdir(checkout), note.exists()) == ([], False)


def test_a_way_that_is_used_stays(note: Path, checkout: Path) -> None:
    way, hooks = f"{checkout}/.github", f"{checkout}/.github/hooks"
    ensure_placeholders(note, "web", {way: "way", hooks: "directory"}, os.getuid(), os.getgid())
    (checkout / ".github/workflows").mkdir()
    remove_placeholders(note, "web")
    assert os.listdir(checkout / ".github") == ["workflows"]


@pytest.mark.parametrize("gone", [{"gone": ""}, {"gone/hooks": "directory"}, {"gone/self": "itself"}], ids=str)
def test_what_has_gone_is_not_in_the_way_of_the_rest(note: Path, checkout: Path, gone: dict[str, str]) -> None:
    found = {f"{checkout}/{path}": kind for path, kind in {**gone, ".idea": "directory"}.items()}
    assert not ensure_placeholders(note, "web", found, os.getuid(), os.getgid())
    assert os.listdir(checkout) == [".idea"]
    assert held_by(note)[f"{checkout}/.idea"] == ["web"]


@pytest.mark.parametrize("name", ["a file", "a directory"])
def test_what_has_come_is_not_in_the_way(
    note: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nor is it changed, nor held: it is the host's."""
    found = {f"{checkout}/a file": "itself", f"{checkout}/a directory": "directory", f"{checkout}/x": "directory"}
    link, mkdir = os.link, os.mkdir

    def come(path: str) -> str:
        if path == name:
            (checkout / name).write_text("host's")
        return path

    monkeypatch.setattr(os, "link", lambda source, path, **options: link(source, come(path), **options))
    monkeypatch.setattr(os, "mkdir", lambda path, *mode, **options: mkdir(come(path), *mode, **options))
    assert not ensure_placeholders(note, "web", found, os.getuid(), os.getgid())
    assert (checkout / name).read_text() == "host's"
    assert held_by(note) == {path: ["web"] for path in found if not path.endswith(name)}


def test_a_directory_that_comes_meanwhile_is_not_ours(
    note: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the note written again for what has only vanished."""
    written: list[bytes] = []

    def write(file: Path, content: bytes, mode: int) -> None:
        written.append(content)
        write_atomic(file, content, mode=mode)
        (checkout / ".idea").mkdir(exist_ok=True)

    monkeypatch.setattr(placeholders, "write_atomic", write)
    ensure(note, "web", checkout / ".vscode")
    (checkout / ".idea").rmdir()
    ensure(note, "web", checkout / ".vscode", checkout / ".idea")
    assert held_by(note) == {f"{checkout}/.vscode": ["web"]}
    assert len(written) == 3
    assert not ensure_placeholders(note, "web", {f"{checkout}/gone": ""}, os.getuid(), os.getgid())
    assert len(written) == 3


def test_one_that_is_made_again_is_held_for_all(note: Path, checkout: Path) -> None:
    ensure(note, "web", checkout / ".idea")
    (checkout / ".idea").rmdir()
    ensure(note, "lab", checkout / ".idea")
    assert held_by(note) == {f"{checkout}/.idea": ["lab", "web"]}


def test_what_another_has_just_taken_away_is_missed(note: Path, checkout: Path) -> None:
    assert not ensure_placeholders(note, "lab", {f"{checkout}/.idea": ""}, os.getuid(), os.getgid())


def test_what_was_there_before_stays(note: Path, checkout: Path) -> None:
    (checkout / ".idea").mkdir()
    ensure(note, "web", checkout / ".idea")
    remove_placeholders(note, "web")
    assert os.listdir(checkout) == [".idea"]


def test_what_is_not_empty_any_more_stays(note: Path, checkout: Path) -> None:
    ensure_placeholders(note, "web", {f"{checkout}/inc": "file"}, os.getuid(), os.getgid())
    ensure(note, "web", checkout / ".idea", checkout / ".vscode")
    (checkout / ".idea/mine").touch()
    (checkout / ".vscode").rmdir()
    (checkout / ".vscode").symlink_to(checkout / ".idea")
    (checkout / "inc").write_text("[core]")
    remove_placeholders(note, "web")
    assert sorted(os.listdir(checkout)) == [".idea", ".vscode", "inc"]
    assert not note.exists()


def test_nobody_else_holds_the_lock(note: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may open the directory of the note, and what can be opened can be locked."""
    directory = os.open(note.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    ensure(note, "web", checkout / ".idea")
    os.close(directory)
    lock = note.with_suffix(".lock")
    assert lock.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(placeholders, "PATIENCE", 0.0)
    with held(lock), pytest.raises(TimeoutError):
        ensure(note, "web", checkout / ".vscode")


def test_a_damaged_note_removes_nothing(note: Path, checkout: Path) -> None:
    ensure(note, "web", checkout / ".idea")
    note.write_text("{")
    remove_placeholders(note, "web")
    assert os.listdir(checkout) == [".idea"]
