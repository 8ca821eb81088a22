"""The rules that docs/architecture.md states about imports, checked against the source.

An import counts wherever it stands, in a function as well as at the top: where one is needed upwards, the
cut between the layers is wrong.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "hutch"

# From the top down. A layer imports those below it, and others in its row as long as no circle closes.
LAYERS = (
    ("__main__", "cli"),
    ("__init__",),
    ("aio",),
    ("api",),
    ("prove",),
    ("apply",),
    ("plan", "backends", "guest", "runtime", "access", "confine", "host", "images", "state"),
    ("egress",),
    ("spec",),
    ("run", "files", "trees"),
    ("errors",),
    ("frozen", "bundled"),
)
RANK = {layer: len(LAYERS) - row for row, layers in enumerate(LAYERS) for layer in layers}

# These compute and touch nothing, so they import none that does.
PURE = ("plan", "backends", "guest")
IMPURE_LAYERS = frozenset({"run", "files", "trees", "host", "runtime", "access", "confine", "images"})
IMPURE_MODULES = frozenset(
    {"asyncio", "ctypes", "fcntl", "glob", "io", "multiprocessing", "pty", "shutil", "signal", "socket", "subprocess"}
    | {"tempfile", "threading", "time"}
)

# Programs of their own, which are run by path and talk to whoever ran them.
PROGRAMS = frozenset({"host/doctor/packages.py"})
STREAM_WRITES = frozenset(f"sys.{stream}.{method}" for stream in ("stdout", "stderr") for method in ("write", "buffer"))
LONGEST = 450


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its whole name, and where."""

    module: str
    where: str


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def where(path: Path, node: ast.stmt | ast.expr) -> str:
    return f"src/hutch/{path.relative_to(SOURCE)}:{node.lineno}"


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    """Every module that `path` imports; `from hutch import spec` is an import of hutch.spec."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, where(path, node))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path, node)}: a relative import"
            assert node.module
            if node.module == "hutch":
                for alias in node.names:
                    is_module = alias.name in RANK or (SOURCE / alias.name).exists()
                    yield Import(f"hutch.{alias.name if is_module else '__init__'}", where(path, node))
            else:
                yield Import(node.module, where(path, node))


def layer_imports(path: Path) -> Iterator[tuple[str, str]]:
    """(layer, where) of every import of hutch's own."""
    for item in imports(path):
        if item.module == "hutch":
            yield "__init__", item.where
        elif item.module.startswith("hutch."):
            yield item.module.split(".")[1], item.where


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in modules()} <= RANK.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downwards(path: Path) -> None:
    own = layer_of(path)
    upwards = [f"{place}: {own} imports {layer}" for layer, place in layer_imports(path) if RANK[layer] > RANK[own]]
    assert upwards == []


def test_no_circle_of_layers() -> None:
    graph: dict[str, set[str]] = {layer: set() for layer in RANK}
    for path in modules():
        graph[layer_of(path)] |= {layer for layer, _ in layer_imports(path)} - {layer_of(path)}
    TopologicalSorter(graph).prepare()


def test_pure_layers_import_no_effects() -> None:
    found = []
    for path in modules():
        if layer_of(path) in PURE:
            found += [f"{place}: imports {layer}" for layer, place in layer_imports(path) if layer in IMPURE_LAYERS]
            found += [
                f"{item.where}: imports {item.module}"
                for item in imports(path)
                if item.module.split(".")[0] in IMPURE_MODULES
            ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("subprocess", "run"), ("click", "cli"), ("rich", "cli"), ("pydantic", "spec"), ("tree_sitter", "spec")],
)
def test_only_one_layer_imports(module: str, allowed: str) -> None:
    found = [
        item.where
        for path in modules()
        if layer_of(path) != allowed
        for item in imports(path)
        if item.module.split(".")[0] == module
    ]
    assert found == []


# What walks, deletes or gives away trees by name.
BY_NAME = frozenset({"rmtree", "walk", "fwalk", "copytree", "chown", "lchown"})
COMMANDS_BY_NAME = ({"rm", "-rf"}, {"rm", "-r"}, {"chown", "-R"}, {"chmod", "-R"}, {"cp", "-a"})
ROOTS_OWN = {
    "hutch/host/services/listen.py": "a socket in the runtime directory",
    "hutch/host/storage/shares.py": "ensure_closed: a workspace's own directory, whose parent is root's",
    "hutch/host/identity/ssh.py": "a key's file, in a directory of root's",
    "hutch/host/network/warden.py": "a directory of the state or runtime directory",
    "hutch/images/source.py": "the tree that a file names as its image, which is only looked at",
    "hutch/runtime/main_process.py": "a socket in the runtime directory",
}


def test_trees_that_guests_write_are_worked_on_in_one_place() -> None:
    found = []
    for path in modules():
        if layer_of(path) == "trees" or f"hutch/{path.relative_to(SOURCE)}" in ROOTS_OWN:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                f"{m}.{n}" for m in ("os", "shutil") for n in BY_NAME
            }:
                found.append(where(path, node))
            if isinstance(node, ast.List | ast.Tuple):
                words = {item.value for item in node.elts if isinstance(item, ast.Constant)}
                found += [where(path, node) for command in COMMANDS_BY_NAME if command <= words]
    assert found == []


def test_only_the_command_line_prints() -> None:
    found = []
    for path in modules():
        if layer_of(path) == "cli" or str(path.relative_to(SOURCE)) in PROGRAMS:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(where(path, node))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in STREAM_WRITES:
                found.append(where(path, node))
    assert found == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_can_be_held_in_mind(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
