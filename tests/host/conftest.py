"""Fixtures of the host tier: the world, one image for all, and hutches of their own that leave nothing behind."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance, open_instances
from tests.support.enclosure import IMAGES
from tests.support.leaving import leave_out
from tests.support.parts import is_of_another
from tests.support.world import World, WorldError

INCUS = Path(__file__).parent / "incus"
FILES = sorted(Path(__file__).parent.rglob("test_*.py"))
MakeInstance = Callable[..., Instance]


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The host under test and what is around it. What every run has asks no mirror, so that none can make it fail."""
    try:
        world = World.build(with_mirrors=request.config.getoption("--slow"))
    except WorldError as error:
        pytest.exit(str(error), returncode=4)
    try:
        yield world
    finally:
        world.close()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    boundary = config.getoption("--boundary")
    return True if is_of_another(collection_path, config, partial(files_of, boundary)) else None


def files_of(boundary: str, part: int, parts: int) -> list[Path]:
    """The files of a part. Those in `incus` share a cluster, which takes seconds and memory; none of them is about
    machines. They are one part by themselves, the first, since nothing takes longer."""
    clustered = [path for path in FILES if path.parent == INCUS]
    others = [path for path in FILES if path.parent != INCUS]
    if boundary == "vm":
        return others[part::parts]
    if parts == 1:
        return FILES
    return clustered if part == 0 else others[part - 1 :: parts - 1]


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
def images() -> Path:
    """The directory of built images, which are there: see tests/support/prepare."""
    return IMAGES


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
def cached(make_instance: MakeInstance, images: Path) -> Iterator[Instance]:
    """A hutch whose image directory shows the common one and keeps changes to itself."""
    instance = make_instance(with_images=False)
    layers = {name: Path(f"/run/test-images/{name}") for name in ("upper", "work")}
    for layer in layers.values():
        layer.mkdir(parents=True)
    target = instance.state / "images"
    target.mkdir()
    options = f"lowerdir={images},upperdir={layers['upper']},workdir={layers['work']},redirect_dir=on"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", target], check=True, timeout=10)
    yield instance
    instance.remove_all()
    subprocess.run(["umount", target], check=True, timeout=10)
    subprocess.run(["rm", "-rf", "/run/test-images"], check=True, timeout=60)


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
