"""What `uninstall` takes for hutch's own: nothing of a directory that was named by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.apply.holdings import check_runtime, has_state
from hutch.apply.leaving import delete_state, uninstall
from hutch.errors import UsageError
from hutch.spec.names import Layout

IMAGE = "debian-trixie-0123456789ab"
OWN = (
    *("lock", "network.json", "network.json.damaged", "known_hosts", ".ages.json.hutch-new", "ages.json"),
    *(f"images/{IMAGE}/image.json", f"images/{IMAGE}.2/root/bin/sh", f"images/.build-{IMAGE}/root/x"),
    *(f"images/{IMAGE}.lock", "images/kernels/0123/vmlinux"),
    *("workspaces/web/home/file", "keys/0/id_ed25519", "keys/hutch/id_ed25519.pub", "keys/@27/id_ed25519"),
    *("shown/web.json", "egress/web/records.jsonl"),
)
OTHERS = (
    *("thesis", "documents/thesis", "images/holidays/beach.jpg", "workspaces/somebody/file", "workspaces/notes"),
    *("keys/door/front", "shown/of hands", "egress/Paths"),
)
RUNTIME = ("file", "workspaces/somebody/file", "services/file", "egress/file")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("hutch.apply.leaving.has_namespace", lambda _: False)
    return Layout(tmp_path / "state", tmp_path / "run")


def make(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_directory_without_a_sign_of_hutch_is_left_alone(layout: Layout) -> None:
    make(layout.state, *OTHERS, "lock", "known_hosts")
    make(layout.run, *RUNTIME)
    assert not has_state(layout)
    for purge in (False, True):
        (note,) = uninstall(layout, lambda *_: None, purge=purge, force=True)
        assert note == f"{layout.state} holds nothing of hutch's, and was left alone"
    assert files(layout.state) == {*OTHERS, "lock", "known_hosts"}
    assert files(layout.run) == {*RUNTIME}


def test_one_that_hutch_has_only_locked_is_its_own(layout: Layout) -> None:
    make(layout.state, "lock")
    assert has_state(layout)
    make(layout.state, "documents/thesis")
    assert not has_state(layout)
    make(layout.state, "workspaces/web/workspace.json.damaged")
    assert has_state(layout)


@pytest.mark.parametrize("left", [f"images/.build-{IMAGE}/root/bin/sh", f"images/{IMAGE}.lock"])
def test_one_where_only_a_first_build_failed_is_its_own(layout: Layout, left: str) -> None:
    make(layout.state, "lock", left)
    assert has_state(layout)


def test_of_hutchs_directory_only_what_is_hutchs_goes(layout: Layout) -> None:
    make(layout.state, *OWN, *OTHERS)
    assert has_state(layout)
    assert delete_state(layout) == (f"{layout.state} stays: it holds foreign files",)
    assert files(layout.state) == {*OTHERS}


def test_with_nothing_else_in_it_the_directory_goes(layout: Layout) -> None:
    make(layout.state, *OWN)
    assert delete_state(layout) == ()
    assert not layout.state.exists()


def test_a_runtime_directory_of_somebody_elses_is_refused(layout: Layout) -> None:
    make(layout.state, "network.json")
    check_runtime(layout)
    (layout.run / "services").mkdir(parents=True)
    (layout.run / "workspaces" / "web").mkdir(parents=True)
    check_runtime(layout)
    make(layout.run, *RUNTIME)
    with pytest.raises(UsageError, match="not hutch's runtime directory"):
        uninstall(layout, lambda *_: None, purge=True, force=True)
    assert files(layout.run) == {*RUNTIME}
    make(layout.run, "workspaces/web/launch.json")
    check_runtime(layout)
