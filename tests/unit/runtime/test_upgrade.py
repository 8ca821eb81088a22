"""An upgrade puts other files in place of those that a running runner has read: what it imports later on must not need
what it has already, which is of another version.
"""

from __future__ import annotations

import ast
from pathlib import Path

import hutch

SOURCE = Path(hutch.__file__).parents[1]


def parse(module: str) -> tuple[set[str], set[str]]:
    """The modules of hutch's that it imports at once, and those that its functions import."""
    found = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text())
    functions = [node for node in ast.walk(found) if isinstance(node, ast.FunctionDef)]
    return of_hutch(found.body), of_hutch([node for function in functions for node in ast.walk(function)])


def of_hutch(nodes: list[ast.stmt] | list[ast.AST]) -> set[str]:
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.startswith("hutch.")}


def loaded_with(modules: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = set(modules)
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= parse(module)[0] - found
    return found


def test_what_is_imported_late_needs_nothing_that_is_there() -> None:
    there = loaded_with({"hutch.runtime.runner"})
    late = {module for one in there for module in parse(one)[1]} - there
    assert late == {"hutch.failure"}  # of the filters of a guest, which are no affair of a runner's
    assert loaded_with(late) & there == set()


def test_a_runner_is_small() -> None:
    """Each workspace has one, and a MiB of imports is a MiB for each."""
    assert loaded_with({"hutch.runtime.runner"}) <= {
        "hutch.runtime.runner",
        "hutch.seccomp.install",
        "hutch.seccomp.filters",
        "hutch.host.services.cgroup",
        "hutch.host.services.process",
        "hutch.host.storage.mountinfo",
        "hutch.libc",
        "hutch.search_path",
    }
