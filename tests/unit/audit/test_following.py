"""Following records: rotation, workspaces that come and go, and lines that come in pieces."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hutch.audit.chain import GENESIS, Link, chained
from hutch.audit.events import Entry
from hutch.audit.following import Follower, Watch, follow
from hutch.spec.names import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


class Written:
    """A record as root writes it."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.path, self.name, self.link = layout.audit(name), name, GENESIS
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def line(self) -> bytes:
        workspace = None if self.path.exists() else self.name
        values = {"host": f"n{self.link.seq + 1}", "until": None}
        data, self.link = chained(self.link, Entry(1e9, "allowed", "ann", values), workspace=workspace)
        return data

    def add(self, data: bytes | None = None) -> None:
        data = self.line() if data is None else data
        with self.path.open("ab") as file:
            file.write(data)

    def rotate(self) -> None:
        older = sorted(self.path.parent.glob(f"{self.path.name}.*"), reverse=True)
        for path in older:
            path.rename(self.path.with_name(f"{self.path.name}.{int(path.suffix[1:]) + 1}"))
        self.path.rename(self.path.with_name(f"{self.path.name}.1"))

    def remove(self) -> None:
        for path in self.path.parent.glob(f"{self.name}.jsonl*"):
            path.unlink()
        self.link = Link(0, GENESIS.hash)


Step = Callable[[], list[tuple[str, int]]]


@pytest.fixture
def make_step(layout: Layout) -> Iterator[Callable[..., Step]]:
    followers: list[Follower] = []

    def make(*names: str, fold: Callable[[str], None] | None = None) -> Step:
        follower = Follower(layout, names, fold)
        followers.append(follower)
        follower.begin()
        return lambda: [(name, line.seq) for name, line in follower.step()]

    yield make
    for follower in followers:
        follower.close()


def test_lines_come_once_and_only_new_ones(layout: Layout, make_step: Callable[..., Step]) -> None:
    web, lab = Written(layout, "web"), Written(layout, "lab")
    web.add()
    lab.add()
    step = make_step()
    assert step() == []
    web.add()
    lab.add()
    web.add()
    assert step() == [("lab", 2), ("web", 2), ("web", 3)]
    assert step() == []


def test_only_those_that_were_named(layout: Layout, make_step: Callable[..., Step]) -> None:
    web, lab = Written(layout, "web"), Written(layout, "lab")
    step = make_step("web", "new")
    for record in (web, lab, Written(layout, "new")):
        record.add()
    assert step() == [("new", 1), ("web", 1)]


def test_a_line_that_comes_in_pieces(layout: Layout, make_step: Callable[..., Step]) -> None:
    web = Written(layout, "web")
    web.add()
    step = make_step()
    data = web.line()
    web.add(data[:20])
    assert step() == []
    web.add(data[20:])
    assert step() == [("web", 2)]


def test_no_line_is_missed_where_files_are_rotated(layout: Layout, make_step: Callable[..., Step]) -> None:
    web = Written(layout, "web")
    web.add()
    step = make_step()
    web.add()
    web.rotate()
    web.add()
    assert step() == [("web", 2), ("web", 3)]
    web.rotate()
    assert step() == []
    web.add()
    assert step() == [("web", 4)]
    for _ in range(3):
        web.add()
        web.rotate()
    web.add()
    assert step() == [("web", 5), ("web", 6), ("web", 7), ("web", 8)]


def test_workspaces_come_and_go(layout: Layout, make_step: Callable[..., Step]) -> None:
    web = Written(layout, "web")
    web.add()
    step = make_step()
    lab = Written(layout, "lab")
    lab.add()
    web.add()
    web.remove()
    assert step() == [("lab", 1), ("web", 2)]
    web.add()
    assert step() == [("web", 1)]


def test_a_directory_that_comes_later(layout: Layout, make_step: Callable[..., Step]) -> None:
    step = make_step()
    assert step() == []
    layout.state.mkdir()
    assert step() == []
    web = Written(layout, "web")
    web.add()
    assert step() == [("web", 1)]
    web.add()
    assert step() == [("web", 2)]


def test_a_record_of_somebody_elses_is_passed_over_until_it_is_shown(
    layout: Layout, make_step: Callable[..., Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Written(layout, "web")
    web.add()
    opened = os.open

    def deny(path: object, *how: int, **more: int) -> int:
        if str(path).endswith("web.jsonl"):
            raise PermissionError(errno.EACCES, str(path))
        return opened(path, *how, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", deny)
    step = make_step()
    web.path.touch()
    assert step() == []
    monkeypatch.undo()
    web.path.chmod(0o644)  # as a new list does, that is an event
    assert step() == [("web", 1)]


def test_what_others_tell_is_folded_in(layout: Layout, make_step: Callable[..., Step]) -> None:
    web, folded = Written(layout, "web"), list[str]()
    web.add()
    (layout.inboxes("web")).mkdir(parents=True)

    def fold(name: str) -> None:
        folded.append(name)
        web.add()

    step = make_step(fold=fold)
    assert (step(), folded) == ([], [])
    (layout.inboxes("web") / "1000").write_text("line\n")
    step()
    assert folded == ["web"]
    assert step() == [("web", 2)]


def test_it_ends_when_nobody_reads_on(layout: Layout) -> None:
    reading, writing = os.pipe()
    with closing(follow(layout, until=[writing])) as lines:
        assert next(lines) is None
        os.close(reading)
        assert list(lines) == []
    os.close(writing)


def test_a_watch_says_what_happens(tmp_path: Path) -> None:
    watch = Watch()
    try:
        number = watch.add_present(tmp_path)
        assert watch.add_present(tmp_path / "absent") is None
        assert list(watch.read()) == []
        (tmp_path / "a").touch()
        assert {(found, name) for found, _, name in watch.read()} == {(number, "a")}
    finally:
        watch.close()
