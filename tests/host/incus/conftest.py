"""Fixtures for workspaces on an Incus server: a cluster for all tests of this folder, and hutches that use it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instances
from tests.support.incus_cluster import REMOTE, Cluster, find_server, start_cluster
from tests.support.world import World


@dataclass
class Elsewhere(Instance):
    """A hutch whose workspaces are on the cluster, in a project of its own. Made with `on` its cluster."""

    cluster: Cluster | None = field(default=None)
    project: str = ""
    target: str = "auto"
    left: dict[str, list[str]] = field(default_factory=dict)
    """The things on the cluster after hutch has removed its last workspace."""

    @property
    def there(self) -> str:
        """The subnet of its workspaces on the cluster."""
        return f"10.{100 + self.number}.0.0/16"

    def write(self, body: str) -> None:
        keys = {"remote": REMOTE, "project": self.project, "target": self.target, "subnet": self.there}
        super().write("[engines.incus]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items()) + body)

    def declare(self, workspace_type: str = "container", /, **workspaces: str) -> None:
        super().declare(workspace_type, **{name: f'engine = "incus"\n{keys}' for name, keys in workspaces.items()})

    def remove_all(self) -> None:
        """All at once: one by one, each would ask the cluster about the others."""
        if names := self.names():
            self.hutch("rm", "--purge", "--force", *names)

    def close(self) -> None:
        """As those of this host, and nothing is on the cluster afterwards, whatever has become of it."""
        assert self.cluster is not None
        try:
            self.cluster.mend()
            super().close()
            self.left = self.cluster.remains()
        finally:
            self.cluster.wipe(self.project)


@pytest.fixture(scope="session")
def cluster(world: World, images: Path) -> Iterator[Cluster]:
    """Three Incus servers, which root of the host under test knows as the remote `lab`."""
    server = find_server()
    if server is None:
        pytest.skip("Incus is not installed")
    with start_cluster(world, server) as cluster:
        cluster.ensure_remote(world.accounts["root"])
        yield cluster


@pytest.fixture
def hutch(world: World, images: Path, cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    """A hutch for one test."""
    with open_elsewhere(world, images, cluster, request.node.name) as instance:
        yield instance


@contextmanager
def open_elsewhere(world: World, images: Path, cluster: Cluster, name: str) -> Iterator[Elsewhere]:
    """A hutch for a while, with a project that is called after `name`."""
    before = cluster.remains()
    with open_instances(world) as make:
        instance = make(images, kind=Elsewhere)
        assert isinstance(instance, Elsewhere)
        instance.cluster, instance.project = cluster, f"t{zlib.crc32(name.encode()):x}"
        yield instance
    assert instance.left == before


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """What a test does to members is over with it."""
    yield
    cluster.mend()
