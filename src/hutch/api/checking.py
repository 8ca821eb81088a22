"""The check of each workspace of a file, by what this host is like."""

from __future__ import annotations

from collections.abc import Iterable

from hutch.backends import check
from hutch.errors import Problem
from hutch.host.hardware import capacity
from hutch.spec.loading import Check
from hutch.spec.model import Network, WorkspaceSpec


def host_check() -> Check:
    """A function that checks one workspace; the host is looked at once."""
    host = capacity.observe_capacity()

    def check_here(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
        yield from check(name, workspace, network)
        yield from capacity.check_host({name: workspace}, host.memory, host.cpus)

    return check_here
