"""The answers of a person about files in checkouts, and those that root does not believe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.identity import answers
from hutch.host.identity.answers import (
    Answer,
    digest,
    directory_of,
    read_answer,
    read_answers,
    remove_answer,
    write_answer,
)
from hutch.spec.person import Person

FILE, ASKS = "/src/shop/hutch.toml", {"web": {"type": "container"}}


@pytest.fixture
def person(tmp_path: Path) -> Person:
    own = Path(os.path.realpath(tmp_path))
    return Person(os.getuid(), os.getgid(), "alice", own, own / ".config" / "hutch", own / ".local" / "state" / "hutch")


def stored(person: Person) -> Path:
    (path,) = directory_of(person).iterdir()
    return path


def test_what_is_written_is_read(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_answer(person, FILE) is None
    assert read_answers(person) == []
    monkeypatch.setattr("time.time", lambda: 1795000000.0)
    write_answer(person, FILE, b"one", ASKS)
    assert read_answer(person, FILE) == Answer(FILE, digest(b"one"), 1795000000.0, ASKS)
    assert read_answer(person, "/src/other/hutch.toml") is None
    write_answer(person, FILE, b"two", {})
    (answer,) = read_answers(person)
    assert (answer.sha256, answer.asks) == (digest(b"two"), {})
    assert directory_of(person).stat().st_mode & 0o777 == 0o700
    assert stored(person).stat().st_mode & 0o777 == 0o600


def test_an_answer_is_taken_back(person: Person) -> None:
    assert not remove_answer(person, FILE)
    write_answer(person, FILE, b"", ASKS)
    assert remove_answer(person, FILE)
    assert read_answer(person, FILE) is None


def test_a_name_that_is_no_text(person: Person) -> None:
    file = os.fsdecode(b"/src/\xff/hutch.toml")
    write_answer(person, file, b"", ASKS)
    assert [answer.file for answer in read_answers(person)] == [file]


def loosen(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def damage(path: Path) -> None:
    path.write_text("{")


def lengthen(path: Path) -> None:
    path.write_text(f"{path.read_text()}{' ' * answers.LARGEST}")


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def become_another_files(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "file": "/else"}))


def hold_no_text(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "file": "\ud800"}))


def be_endless(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "when": float("inf")}))


@pytest.mark.parametrize(
    "change",
    [loosen, link, damage, lengthen, become_a_fifo, become_another_files, hold_no_text, be_endless],
    ids=lambda change: change.__name__,
)
def test_an_answer_that_is_not_believed(person: Person, change: Callable[[Path], None]) -> None:
    write_answer(person, FILE, b"", ASKS)
    change(stored(person))
    with pytest.raises(HutchError, match="so nothing counts as accepted"):
        read_answer(person, FILE)
    assert read_answers(person) == []


@pytest.mark.parametrize("above", [0, 1, 2, 3])
def test_no_link_leads_there(person: Person, above: int) -> None:
    """Also not for the person, who would wonder why root has not heard of it."""
    write_answer(person, FILE, b"", ASKS)
    link([directory_of(person), *directory_of(person).parents][above])
    with pytest.raises(HutchError, match="behind, a symbolic link"):
        read_answer(person, FILE)
    with pytest.raises(HutchError, match="behind, a symbolic link"):
        write_answer(person, FILE, b"", ASKS)


def test_a_directory_that_others_can_write(person: Person) -> None:
    write_answer(person, FILE, b"", ASKS)
    loosen(directory_of(person))
    for read in (lambda: read_answer(person, FILE), lambda: read_answers(person)):
        with pytest.raises(HutchError, match="can be written by its group or by others"):
            read()


def test_another_persons_answer(person: Person) -> None:
    """Unless it is root's, who can do everything anyway."""
    write_answer(person, FILE, b"", ASKS)
    other = replace(person, uid=person.uid + 1)
    if os.getuid() == 0:
        assert read_answer(other, FILE) is not None
        os.chown(directory_of(person), 4000, 4000)
        with pytest.raises(HutchError, match="belongs to uid 4000, who is neither root nor alice"):
            read_answer(person, FILE)
    else:
        with pytest.raises(HutchError, match="who is neither root nor alice"):
            read_answer(other, FILE)


def test_a_person_without_a_home_says_nothing(person: Person) -> None:
    with pytest.raises(HutchError, match="alice has no home"):
        read_answer(replace(person, state=None), FILE)


def test_a_place_that_cannot_be_written(person: Person) -> None:
    assert person.state is not None
    person.state.parent.mkdir(parents=True)
    person.state.write_text("")
    with pytest.raises(HutchError, match="the answer cannot be written"):
        write_answer(person, FILE, b"", ASKS)
