"""Makes sure that images are in the cache, and lends builds that need one a guarded place on the network."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from hutch.apply.inspecting import missing_of
from hutch.apply.reconcile import first_network, leave_builds, reconcile_network, reconcile_user_views, with_uplink
from hutch.backends import is_machine
from hutch.backends.port import Port
from hutch.errors import HutchError
from hutch.files import write_atomic
from hutch.host.services.lock import lock
from hutch.images.progress import WAITING, BuildProgress, reporter
from hutch.images.recipe import Recipe, make_recipe
from hutch.images.record import Image, image_ids, whole_image
from hutch.runtime.control import Listener
from hutch.spec import names
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import make_directory, read_network, read_records

if TYPE_CHECKING:
    from hutch.images.build import BuilderNetwork


def recipes_for(layout: Layout, records: Mapping[str, Record]) -> Callable[[str, WorkspaceSpec], Recipe]:
    """A function from a workspace, with its name, to the recipe of its image, in the edition that it starts from. The
    source of a rootfs is looked at once, to see whether it changed."""

    cached = image_ids(layout)

    @cache
    def plain(image: str, packages: tuple[str, ...], setup: str) -> tuple[Recipe, list[str]]:
        """The recipe in its first edition, and its editions in the cache."""
        scheme, _, path = image.partition(":")
        fingerprint = ""
        if scheme == "rootfs":
            # Spares the start-up of `hutch up` where nobody brings a tree.
            from hutch.images.source import observe_fingerprint

            fingerprint = observe_fingerprint(path, layout)
        recipe = make_recipe(image, packages, setup, fingerprint=fingerprint)
        return recipe, [id for id in cached if recipe.edition_of(id)]

    def recipe_for(name: str, workspace: WorkspaceSpec) -> Recipe:
        recipe, editions = plain(workspace.image, workspace.packages, workspace.setup)
        return recipe.for_workspace(workspace, records.get(name), editions)

    return recipe_for


def ensure_images(
    layout: Layout,
    workspaces: Mapping[str, WorkspaceSpec],
    network: Network,
    file: str,
    progress: BuildProgress,
) -> bool:
    """Build the images of workspaces, by name, and what machines boot of them, where they are not in the cache; returns
    whether any was. The host's lock is not held meanwhile."""
    # Spares the start-up of `hutch up` where all images are there.
    from hutch.images.cache import collect_leftovers

    users: dict[Recipe, list[str]] = {}
    machines: set[Recipe] = set()
    recipe_for = recipes_for(layout, read_records(layout))
    for name, workspace in workspaces.items():
        recipe = recipe_for(name, workspace)
        users.setdefault(recipe, []).append(name)
        if is_machine(workspace):
            machines.add(recipe)
    collect_leftovers(layout)
    missing = [recipe for recipe in users if not whole_image(layout, recipe.id)]
    for recipe in missing:
        with named(users[recipe]):
            make_image(layout, recipe, network, file, progress)
    unpacked = [recipe for recipe in machines if missing_of(layout, recipe.id, True)]
    for recipe in unpacked:
        # Spares the start-up of `hutch up` for containers.
        from hutch.images.machine import ensure_machine

        with named(users[recipe]):
            ensure_machine(recipe.id, recipe.image, layout, progress=reporter(progress, recipe.id))
    return bool(missing or unpacked)


def make_image(
    layout: Layout, recipe: Recipe, network: Network, file: str, progress: BuildProgress, before: Image | None = None
) -> Image:
    """Build an image unless it is in the cache, with a place in the network if it wants one. For `before` see
    ensure_image."""
    # Spares the start-up of `hutch up` where all images are there.
    from hutch.images.cache import ensure_image, locked, prepare_directory

    report = reporter(progress, recipe.id)
    if not recipe.wants_network:
        return ensure_image(recipe, layout, progress=report, before=before)
    prepare_directory(layout)
    # There is one builder's place in the network, and whoever leaves it may take the network away.
    with locked(layout, "network", waiting=partial(progress, recipe.id, WAITING, 0.0)):
        if found := whole_image(layout, recipe.id):
            return found
        with builder_network(layout, network, file) as builder:
            return ensure_image(recipe, layout, progress=report, builder=builder, before=before)


def ask_for_updates(layout: Layout, listen: Listener) -> None:
    """Ask for the security updates of all images, at most daily, and show the answers to everybody. For commands that
    are online anyway."""
    # Spares the start-up of `hutch plan`.
    from hutch.images.updates import learn_ages

    if learn_ages(layout, lambda about, text: listen(about, "warning", text)) and layout.user_views.is_dir():
        with lock(layout):
            reconcile_user_views(layout, read_records(layout))


@contextmanager
def named(users: list[str]) -> Iterator[None]:
    """Say in an error of a build which workspaces wanted the image."""
    try:
        yield
    except HutchError as error:
        brief = f"{', '.join(users)}: {error.brief}"
        raise HutchError(brief, details=error.details, resolution=error.resolution) from error


@contextmanager
def builder_network(layout: Layout, network: Network, file: str) -> Iterator[BuilderNetwork]:
    """The network, up, with the place in it that is kept for builds; taken away again if nothing else needs it.

    The caller holds the images' lock "network".
    """
    # Spares the start-up of `hutch up` where all images are there.
    from hutch.images.build import BuilderNetwork

    with lock(layout), first_network(layout):
        record = read_network(layout)
        network = record.network if record else with_uplink(layout, network, None)
        reconcile_network(layout, network, file, read_records(layout))
        address = names.builder_address(network.subnet)
        port = Port(
            outer=names.port(names.BUILDER, "container"),
            inner=names.interface("vi", names.BUILDER),
            mac=names.BUILDER_MAC,
            ip=address,
            bridge=network.bridge,
            table=layout.table,
        )
        batch = layout.run / "builder-port"
        make_directory(layout.run)
        write_atomic(batch, port.render_batch().encode(), mode=0o600)
    prefix = ipaddress.IPv4Network(network.subnet).prefixlen
    try:
        yield BuilderNetwork(
            namespace_path=str(layout.namespace_path),
            interface=port.inner,
            before=(*port.cleanup(), port.make(), *(step for stage in port.connect(str(batch)) for step in stage)),
            after=port.cleanup(),
            address=f"{address}/{prefix}",
            gateway=names.gateway(network.subnet),
        )
    finally:
        with lock(layout):
            batch.unlink(missing_ok=True)
            leave_builds(layout)
