"""The keys that hutch makes for users and groups of the host, and who may have kept one that is another's by now."""

from __future__ import annotations

import grp
import pwd
from contextlib import suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import entries, read_or_none, write_atomic
from hutch.host.identity.ssh import ensure_key, owner_of
from hutch.host.identity.user_view import viewers_of
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.spec.sharing import RETIRED, gid_of, holder_words, is_group


def key_holders(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The holders of the keys that hutch makes for a workspace: root always, the owner when it has no keys of its own,
    and those that it is shared with."""
    owner = () if workspace.authorized_keys is not None else (str(workspace.uid),)
    return tuple(dict.fromkeys(("0", *owner, *workspace.share_with)))


def public_key_files(layout: Layout, workspace: WorkspaceSpec) -> list[Path]:
    """The files of hutch's own keys that open a workspace."""
    return [layout.key(holder).with_name("id_ed25519.pub") for holder in key_holders(workspace)]


def read_public_keys(layout: Layout, name: str, workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The lines of hutch's own keys that open a workspace. Raises HutchError where one is gone: somebody could not log
    in."""
    keys = []
    for path in public_key_files(layout, workspace):
        text = read_or_none(path)
        if text is None:
            raise HutchError(f"{path} is not there", resolution=f"`hutch up {name}` makes it")
        keys.append(text.decode("ascii", "replace").strip())
    return tuple(keys)


def ensure_holders_key(layout: Layout, holder: str) -> None:
    """Make the key of a user or a group of the host, unless there is one. Members of a group read it; ssh takes it from
    them, since it is root's file."""
    path, comment = layout.key(holder), f"hutch key of {holder_words(holder)}"
    if is_group(holder):
        ensure_key(path, comment, gid=gid_of(holder), mode=0o640)
        note_people(layout, holder)
    elif holder != RETIRED:  # which nobody makes
        gid, _ = owner_of(int(holder))
        ensure_key(path, comment, uid=int(holder), gid=gid)


def lost_holders(layout: Layout) -> frozenset[str]:
    """The holders of keys that others have: groups that somebody has left since, and root, whose key an older hutch
    copied for the members of the group `hutch`."""
    left = {each.name for each in entries(layout.keys) if is_group(each.name) and has_lost_people(layout, each.name)}
    return frozenset(left | ({"0"} if layout.old_group_key.parent.exists() else set()))


def has_lost_people(layout: Layout, group: str) -> bool:
    people = people_of(group)
    return people is not None and not noted_people(layout, group) <= people


def people_of(group: str) -> frozenset[str] | None:
    """The names of the accounts in a group, as far as the host lists them; None where nobody can tell now."""
    try:
        entry = grp.getgrgid(gid_of(group))
    except (KeyError, OverflowError):
        return None
    return frozenset((*entry.gr_mem, *(each.pw_name for each in pwd.getpwall() if each.pw_gid == entry.gr_gid)))


def entering(record: Record) -> set[int]:
    """The accounts other than root that may enter a workspace, as far as the host lists who is in groups."""
    found = viewers_of(record)
    uids = set(found.uids)
    for name in (name for gid in found.gids for name in people_of(f"@{gid}") or ()):
        with suppress(KeyError):
            uids.add(pwd.getpwnam(name).pw_uid)
    return uids - {0}


def note_people(layout: Layout, group: str) -> None:
    """Note who has come to a group that has a key. Who has left stays noted, until it has another one."""
    people, noted = people_of(group), noted_people(layout, group)
    if people is not None and noted < people:
        write_atomic(_note(layout, group), "".join(f"{name}\n" for name in sorted(people)).encode(), is_lasting=False)


def noted_people(layout: Layout, group: str) -> frozenset[str]:
    return frozenset((read_or_none(_note(layout, group)) or b"").decode("utf-8", "replace").splitlines())


def _note(layout: Layout, group: str) -> Path:
    return layout.key(group).with_name("members")
