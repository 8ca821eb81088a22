"""Makes sure that images are in the cache, and lends builds that need one a guarded place on the network."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from hutch.apply.reconcile import dismantle, first_network, reconcile_network, with_uplink
from hutch.backends import is_machine
from hutch.backends.port import Port
from hutch.errors import HutchError
from hutch.files import write_atomic
from hutch.host.services.lock import lock
from hutch.images.build import BuilderNetwork
from hutch.images.cache import (
    WAITING,
    collect_leftovers,
    ensure_image,
    locked,
    prepare_directory,
    whole_image,
)
from hutch.images.progress import Stage
from hutch.images.recipe import Recipe, make_recipe
from hutch.images.source import observe_fingerprint
from hutch.spec import names
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import present
from hutch.state import make_directory, read_network, read_records


def recipe_of(layout: Layout, workspace: WorkspaceSpec) -> Recipe:
    """The recipe of the workspace's image. For a rootfs it looks at the source, to see whether it changed."""
    scheme, _, path = workspace.image.partition(":")
    fingerprint = observe_fingerprint(path, layout) if scheme == "rootfs" else ""
    return make_recipe(workspace.image, workspace.packages, workspace.setup, fingerprint=fingerprint)


def ensure_images(
    layout: Layout,
    workspaces: Mapping[str, WorkspaceSpec],
    network: Network,
    file: str,
    progress: Callable[[str, str, float], None],
) -> None:
    """Build the images of workspaces, by name, that are not in the cache. The host's lock is not held meanwhile."""
    users: dict[Recipe, list[str]] = {}
    machines: set[Recipe] = set()
    for name, workspace in workspaces.items():
        recipe = recipe_of(layout, workspace)
        users.setdefault(recipe, []).append(name)
        if is_machine(workspace):
            machines.add(recipe)
    collect_leftovers(layout)
    for recipe in [recipe for recipe in users if not whole_image(layout, recipe.id)]:
        report = partial(_report, progress, recipe.id)
        with named(users[recipe]):
            if not recipe.wants_network:
                ensure_image(recipe, layout, progress=report)
                continue
            prepare_directory(layout)
            # There is one builder's place in the network, and whoever leaves it may take the network away.
            with locked(layout, "network", waiting=partial(progress, recipe.id, WAITING, 0.0)):
                if not whole_image(layout, recipe.id):
                    with builder_network(layout, network, file) as builder:
                        ensure_image(recipe, layout, progress=report, builder=builder)
    for recipe in machines:
        # Spares the start-up of `hutch up` for containers.
        from hutch.images.machine import ensure_machine

        with named(users[recipe]):
            ensure_machine(recipe, layout, progress=partial(_report, progress, recipe.id))


def missing_of(layout: Layout, image: str, boots_machine: bool) -> str:
    """The part that a start of a workspace lacks in the cache, in words; "" for nothing."""
    if not whole_image(layout, image):
        return image
    if not boots_machine:
        return ""
    # Spares the start-up of `hutch up` for containers.
    from hutch.images.machine import observe_machine

    return "" if observe_machine(layout, image) else f"what machines boot of {image}"


def _report(progress: Callable[[str, str, float], None], id: str, stage: Stage) -> None:
    progress(id, stage.name, stage.fraction)


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
    with lock(layout), first_network(layout):
        record = read_network(layout)
        network = record.network if record else with_uplink(layout, network)
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
            if not present(read_records(layout)):
                dismantle(layout)
