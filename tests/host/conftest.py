"""Fixtures of the host tier: the world, one image for all, and hutches of their own that leave nothing behind."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance, open_instances
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


@pytest.fixture(scope="session", params=["container"])
def workspace_type(request: pytest.FixtureRequest) -> str:
    """The boundary under test: every test that asks for it runs once for each."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="session")
def images(world: World) -> Path:
    """The directory of built images. It outlives the run: an image is built anew only when its inputs change."""
    cache = Path(os.environ.get("HUTCH_TEST_CACHE") or CHECKOUT / ".cache" / "hutch-test") / "images"
    cache.mkdir(parents=True, exist_ok=True)
    with open_instance(world, cache) as builder:
        builder.declare("container", builder="")
        builder.hutch("image", "build", timeout=600)
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
