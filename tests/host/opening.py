"""Opens hutches for a while, and checks afterwards that the host is exactly as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.host.instance import DEFAULTS, Instance
from tests.host.residue import cgroups_of, differences, observe
from tests.support.world import World

NUMBERS = itertools.count(1)


@contextmanager
def open_instances(world: World) -> Iterator[Callable[..., Instance]]:
    """Yields what makes hutches; after the last has gone, the host must be as it was before the first."""
    before = observe()
    with ExitStack() as stack:
        made: list[Instance] = []

        def make(images: Path | None, defaults: str = DEFAULTS, kind: type[Instance] = Instance) -> Instance:
            instance = kind(world, next(NUMBERS), images, defaults)
            stack.callback(instance.close)
            made.append(instance)
            return instance

        yield make
    left = differences(before)
    assert not left, f"left on the host:\n{left}"
    groups = [group for instance in made for group in cgroups_of(instance)]
    assert not groups, groups


@contextmanager
def open_instance(world: World, images: Path | None, kind: type[Instance] = Instance) -> Iterator[Instance]:
    """A hutch for a while."""
    with open_instances(world) as make:
        yield make(images, kind=kind)
