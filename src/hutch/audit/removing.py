"""The end of a record: it goes with the home of its workspace, and not before."""

from __future__ import annotations

from contextlib import suppress

from hutch.audit.reading import files_of, recorded_names
from hutch.audit.telling import inboxes_lock
from hutch.audit.writing import forget_missed, lock_of
from hutch.files import entries, remove_flat
from hutch.spec.names import Layout, is_name


def remove_record(layout: Layout, name: str) -> None:
    """Delete a workspace's record, its inboxes, and directories that are empty then. May be called again."""
    locks = (lock_of(layout, name), inboxes_lock(layout, name))
    for path in (*files_of(layout, name), layout.audit_head(name), *locks):
        path.unlink(missing_ok=True)
    forget_missed(layout, name)
    remove_flat(layout.inboxes(name))
    for directory in (layout.inboxes(name).parent, layout.audits):
        with suppress(OSError):  # others have theirs there
            directory.rmdir()


def remove_all_records(layout: Layout) -> None:
    """Delete the records of all workspaces, also of those that were ejected, and of those whose state is gone."""
    told = (entry.name for entry in entries(layout.audits / "inbox") if is_name(entry.name))
    for name in {*recorded_names(layout), *told}:
        remove_record(layout, name)
