"""Starting workspaces: the path that people wait for, so it imports what settles the host only when it gets there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.errors import ConfigError, HutchError, Unmet
from hutch.files import read_or_none
from hutch.host.identity.ssh import key_holders, owner_of
from hutch.host.network.namespace import has_namespace, look
from hutch.host.services.units import has_systemd, systemctl, waiting_mounts
from hutch.host.storage.shares import check_shares as check_directories
from hutch.host.storage.shares import has_mount_points
from hutch.runtime import control
from hutch.runtime.control import Listener, Settle
from hutch.spec.model import Network, Workspace
from hutch.spec.names import PACKAGE, Places
from hutch.state import Record, read_network, write_record

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Surroundings
    from hutch.host.hardware.accelerator import Accelerator


MOUNT_SECONDS = 120.0  # systemd waits 90 for a device


class StartsFailed(Unmet):
    """Some workspaces did not come up; `failures` says why for each."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        super().__init__(
            f"{', '.join(failures)} did not start",
            details="\n".join(f"{name}: {why}" for name, why in failures.items()),
            resolution=f"see `hutch logs {next(iter(failures))}`; the next `hutch up` tries again",
        )


def start(
    places: Places, network: Network, file: str, records: dict[str, Record], names: Iterable[str], listen: Listener
) -> None:
    """Settle the host, and start workspaces side by side. Raises StartsFailed when any did not come up.

    On a host that is set up already, settling takes as long as the workspaces' own mounts do; so both are done at
    once, and no workspace joins the network before it is settled.
    """

    starting = [records[name] for name in names]
    for record in starting:
        mount_shares(record, listen)
    accelerator = None
    if any(record.wanted.type == "vm" for record in starting):
        from hutch.apply.machines import prepare_machines

        accelerator = prepare_machines(places, starting, listen)
    if not is_prepared(places, network, starting):
        from hutch.apply.converge import settle

        settle(places, network, file, records)

    @contextmanager
    def settling() -> Iterator[Settle]:
        with closing(look(places)) as looking:  # it goes on while the rest is imported
            from hutch.apply.converge import settle

            yield lambda connect: settle(places, network, file, records, looking, connect)

    def make(name: str) -> Launch:
        if lacks_shell(places, records[name]):
            shell = records[name].wanted.shell
            listen(name, "warning", f"its image has no {shell}, so nobody can log in; add what has it to `packages`")
        launch = make_launch(places, records[name], network, accelerator)
        records[name] = records[name].with_booted()
        write_record(places, records[name])
        return launch

    failures = control.start_all(places, [record.name for record in starting], make, listen, settling)
    for record in starting:  # now that the host is settled
        if text := unlimited_home(places, record):
            listen(record.name, "warning", text)
    if failures:
        raise StartsFailed(failures)


def unlimited_home(places: Places, record: Record) -> str:
    """Why `disk` does not limit the home here, or not all of it, in words; "" where it does, or is not to."""
    home, size = record.wanted.home, record.wanted.disk
    if size is None or home is None:
        return ""
    from hutch.host.storage.quota import why_partly, why_unlimited

    if why := why_unlimited(home):
        return f"`disk` does not limit its home here: {why}"
    why = why_partly(home, record.uid_base, size, places.quota(record.name))
    return f"`disk` does not limit all of its home: {why}" if why else ""


def lacks_shell(places: Places, record: Record) -> bool:
    """Whether the login user's shell is missing from the image. A root that is kept may have its own."""
    tree, shell = str(places.image_root(record.image)), record.wanted.shell
    return record.wanted.persist != "all" and not any(os.path.lexists(f"{tree}{top}{shell}") for top in ("", "/usr"))


def check_shares(starting: Iterable[tuple[str, str, Workspace]]) -> None:
    """Refuse to start workspaces, given as (file, name, workspace), whose directories are not as they must be."""
    problems = [
        replace(problem, file=file)
        for file, name, workspace in starting
        for problem in check_directories(f"workspaces.{name}", workspace)
    ]
    if problems:
        raise ConfigError(problems)


def mount_shares(record: Record, listen: Listener) -> None:
    """Have systemd mount what its directories lie on, before any of them is made where that is to be. Where it cannot,
    the workspace will not start, and others may."""
    for path in (str(record.wanted.home), *(mount.source for mount in record.wanted.mounts)):
        if os.path.lexists(path):
            continue
        for unit in waiting_mounts(path):
            try:
                systemctl("start", unit, timeout=MOUNT_SECONDS)
            except HutchError as error:
                why = f"it lies on {unit}, which cannot be mounted: {error.details or error.brief}"
                listen(record.name, "warning", f"{path} is not there: {why}")
                break


def is_prepared(places: Places, network: Network, starting: Iterable[Record]) -> bool:
    """Whether everything is there that a workspace needs before it joins the network."""
    before = read_network(places)
    return (
        before is not None
        and before.network == network
        and has_namespace(places)
        and all(_has_home_and_keys(places, record) for record in starting)
    )


def _has_home_and_keys(places: Places, record: Record) -> bool:
    keys = (places.host_key(record.name), *public_keys(places, record))
    return (
        record.booted is not None
        and os.path.isdir(str(record.wanted.home))
        and has_mount_points(record.wanted)
        and all(key.exists() for key in keys)
    )


def public_keys(places: Places, record: Record) -> list[Path]:
    """The files of hutch's own keys that open the workspace."""
    assert isinstance(record.wanted.owner, int)
    holders = key_holders(record.wanted.authorized_keys, record.wanted.owner)
    return [places.key(uid).with_name("id_ed25519.pub") for uid in holders]


def make_launch(
    places: Places,
    record: Record,
    network: Network,
    accelerator: Accelerator | None = None,
    *,
    ceiling: int | None = None,
) -> Launch:
    """The Launch of a workspace as recorded; a machine needs to know what it runs under, and one that runs already with
    how much memory it was started (`ceiling`). The backends are imported while its supervisor starts up."""
    from hutch.backends import launch

    keys = []
    for path in public_keys(places, record):
        text = read_or_none(path)
        if text is None:  # without it, somebody could not log in
            raise HutchError(f"{path} is not there", resolution=f"`hutch up {record.name}` makes it")
        keys.append(text.decode("ascii", "replace").strip())
    surroundings = surroundings_of(places, record, network, tuple(keys), accelerator)
    return launch(record.name, record.wanted, replace(surroundings, ceiling=ceiling))


def surroundings_of(
    places: Places,
    record: Record,
    network: Network,
    keys: tuple[str, ...],
    accelerator: Accelerator | None = None,
) -> Surroundings:
    """What a backend must know beside the workspace itself; `keys` are hutch's own that open it."""
    from hutch.backends.launch import Surroundings

    workspace = record.wanted
    assert isinstance(workspace.owner, int)
    gid, _ = owner_of(workspace.owner)
    hardware = None
    if accelerator is not None and workspace.type == "vm":
        from hutch.apply.hardware import hardware_of

        hardware = hardware_of(places, record.image, accelerator)
    return Surroundings(
        places=places,
        network=network,
        image_root=str(places.image_root(record.image)),
        uid_base=record.uid_base,
        owner_gid=gid,
        machine_id=record.machine_id,
        keys=keys,
        python=sys.executable,
        package=str(PACKAGE),
        hardware=hardware,
        by_systemd=has_systemd(),
    )
