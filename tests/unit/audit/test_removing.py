"""The end of records: what is left of hutch's own, and of others'."""

from __future__ import annotations

from pathlib import Path

from hutch.audit.removing import remove_all_records
from hutch.spec.names import Layout


def test_all_records_go_and_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    for path in (layout.audit("kept"), layout.audits / "kept.jsonl.1", layout.inboxes("ejected") / "1000"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    theirs = layout.audits / "notes.txt"
    theirs.touch()
    remove_all_records(layout)
    assert [path for path in layout.state.rglob("*") if not path.is_dir()] == [theirs]
    theirs.unlink()
    remove_all_records(layout)
    assert list(layout.audits.iterdir()) == []
