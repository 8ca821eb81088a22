"""`hutch move`: the file is the truth, so a move to another engine is an `up` of a file that says so."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.api.checking import host_check
from hutch.apply.cluster_moves import move_to_member
from hutch.apply.declaring import read_exactly, replace_text
from hutch.apply.ownership import believing, judge_of
from hutch.apply.planning import make_plan
from hutch.apply.up import up
from hutch.engines import mover_of
from hutch.errors import HutchError, UsageError
from hutch.spec.editing import with_value
from hutch.spec.loading import config_of
from hutch.spec.lookup import believed_owners, find_file

if TYPE_CHECKING:
    from hutch.api.engine import Hutch
    from hutch.apply.up import Confirm
    from hutch.plan.actions import Plan
    from hutch.spec.model import Config


def move(
    hutch: Hutch, name: str, engine: str, member: str, path: Path | None, *, write: bool, force: bool, confirm: Confirm
) -> Plan:
    """Move a workspace; see `Hutch.move`."""
    if engine not in ("local", "incus") or (member and engine == "local"):
        raise UsageError(
            f"{engine}{f':{member}' if member else ''} is no place for a workspace",
            resolution="use local, incus, or incus:MEMBER for a member of a cluster",
        )
    config = hutch.load(path)
    config.select([name])
    record = hutch.record(name)
    if config.workspaces[name].engine != engine:
        config = _declared(hutch, config, name, engine, member, path, write=write)
    elif member:
        _check_member(hutch, hutch.plan(config, [name]), name, member)
    if record.wanted.engine == engine:
        return _to_member(hutch, name, member, confirm, force=force) if member else hutch.plan(config, [name])
    make = partial(make_plan, hutch.layout, config, [name], start=True, prune=False, checked={}, looked={})
    members = {name: member} if member else {}
    plan = up(
        hutch.layout,
        config,
        make,
        confirm=confirm,
        listen=hutch.listen,
        progress=hutch.progress,
        members=members,
        force=force,
    )
    if plan.actions[0].action != "move" and hutch.record(name).wanted.engine != engine:
        raise HutchError(f"{name} was not moved", details="\n".join(plan.actions[0].notes))
    return plan


def _to_member(hutch: Hutch, name: str, member: str, confirm: Confirm, *, force: bool) -> Plan:
    return move_to_member(hutch.layout, name, member, confirm, hutch.listen, force=force)


def _check_member(hutch: Hutch, plan: Plan, name: str, member: str) -> None:
    """Refuse a member that is not there, before anything is written or brought there."""
    target = plan.wanted[name]
    after = replace(hutch.record(name), wanted=target.workspace, image=target.image, place=target.place)
    mover_of(hutch.layout, after).check_member(member)


def _declared(
    hutch: Hutch, config: Config, name: str, engine: str, member: str, path: Path | None, *, write: bool
) -> Config:
    """The configuration once its file says so, which is written only if it can be carried out."""
    if config.checkout is not None:
        raise UsageError(
            f"{config.file} is in a checkout, and such a file has no say in where a workspace runs",
            resolution=f"declare {name} in a file of your own, outside of {config.checkout}",
        )
    if not write:
        raise UsageError(
            f'{config.file} has engine = "{config.workspaces[name].engine}" for {name}, and the file decides',
            resolution=f'write engine = "{engine}" there, and `hutch up {name}` moves it; or --write changes that line',
        )
    owners = believed_owners(path, find_file(path))
    before = read_exactly(config.file, owners, judge_of(hutch.layout, config))
    after = with_value(before, name, "engine", engine)
    as_read = after.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").replace("\r\n", "\n")
    meant = config_of(config.file, as_read, layout=hutch.layout, check=host_check(), believe=believing(hutch.layout))
    plan = make_plan(hutch.layout, meant, [name], start=True, prune=False)
    if member:
        _check_member(hutch, plan, name, member)
    replace_text(config.file, before, after)
    hutch.listen(name, "warning", f'{config.file} has engine = "{engine}" for it from now on')
    return hutch.load(path)
