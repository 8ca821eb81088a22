"""Fixtures of the host tier: the world, one image for all, and hutches of their own that leave nothing behind."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance, open_instances
from tests.support.leaving import leave_out
from tests.support.world import World, WorldError

CHECKOUT = Path(__file__).parents[2]
MakeInstance = Callable[..., Instance]


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The host under test and what is around it."""
    try:
        world = World.build()
    except WorldError as error:
        pytest.exit(str(error), returncode=4)
    try:
        yield world
    finally:
        world.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each tier takes its own: `host` what is about containers or no boundary at all; `vm` the same tests with
    machines, as far as they are marked `vm` (each boot takes seconds there), and those in the folder of that name."""
    wanted = config.getoption("--boundary")
    others = {item for item in items if boundary_of(item) != wanted}
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=list(others))
    leave_out(config, items, lambda item: takes_too_long(item, config))


def boundary_of(item: pytest.Item) -> str:
    """ "container", "vm", or "" for what is not to run at all."""
    callspec = getattr(item, "callspec", None)
    asked = callspec.params.get("workspace_type", "") if callspec else ""
    if item.path.parent.name == "vm":
        return "vm"
    if asked == "vm":
        return "vm" if item.get_closest_marker("vm") and not item.get_closest_marker("container") else ""
    return "container"


def takes_too_long(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether a run that was not asked for it leaves this out. What is `vm(slow=True)` is so with machines only."""
    machines = item.get_closest_marker("vm") if config.getoption("--boundary") == "vm" else None
    is_slow = bool(item.get_closest_marker("slow") or (machines and machines.kwargs.get("slow")))
    is_long = bool(item.get_closest_marker("long"))
    return (is_slow and not config.getoption("--slow")) or (is_long and not config.getoption("--long"))


@pytest.fixture(scope="session", params=["container", "vm"])
def workspace_type(request: pytest.FixtureRequest) -> str:
    """The boundary under test: a test that asks for it runs with each, in the tier of that boundary."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="session")
def images(world: World, request: pytest.FixtureRequest) -> Path:
    """The directory of built images. It outlives the run: an image is built anew only when its inputs change."""
    cache = Path(os.environ.get("HUTCH_TEST_CACHE") or CHECKOUT / ".cache" / "hutch-test") / "images"
    cache.mkdir(parents=True, exist_ok=True)
    with open_instance(world, cache) as builder:
        builder.declare(request.config.getoption("--boundary"), builder="")
        builder.hutch("image", "build", timeout=900)
    return cache


@pytest.fixture
def instance(world: World, images: Path) -> Iterator[Instance]:
    """A hutch for one test."""
    with open_instance(world, images) as instance:
        yield instance


@pytest.fixture(scope="module")
def shared(world: World, images: Path) -> Iterator[Instance]:
    """A hutch for the tests of one file, which must not disturb each other; see `name`."""
    with open_instance(world, images) as instance:
        yield instance


@pytest.fixture
def name(shared: Instance, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name in `shared` for one test's workspace, which is gone after it."""
    name = f"w{zlib.crc32(request.node.name.encode()):x}"
    yield name
    shared.remove_all()


@pytest.fixture
def make_instance(world: World, images: Path) -> Iterator[MakeInstance]:
    """Makes several hutches at once, or one without the common images."""
    with open_instances(world) as make:
        yield lambda with_images=True: make(images if with_images else None)


@pytest.fixture
def own_image(make_instance: MakeInstance, shared: Instance) -> Callable[[str], Instance]:
    """Makes a hutch with an image of its own, of the common one's tree, from which `own` runs, of a type."""

    def make(workspace_type: str) -> Instance:
        shared.declare("container", any="")
        tree = shared.state / "images" / shared.hutch("image", "build").stdout.strip() / "root"
        instance = make_instance(with_images=False)
        instance.defaults = f'image = "rootfs:{tree}"\npackages = []'
        instance.declare(workspace_type, own="")
        instance.hutch("up", timeout=300)
        return instance

    return make
