"""The rules that docs/architecture.md states about imports, checked against the source.

An import counts wherever it stands, in a function as well as at the top: where one is needed upwards, the
cut between the layers is wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
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
    ("engines",),
    ("plan", "backends", "guest", "runtime", "access", "clones", "host", "images", "state", "audit"),
    ("egress", "seccomp"),
    ("spec",),
    ("run", "files", "inboxes", "trees"),
    ("errors",),
    ("failure", "frozen", "inotify", "libc", "search_path", "texts"),
)
RANK = {layer: len(LAYERS) - row for row, layers in enumerate(LAYERS) for layer in layers}

# These compute and touch nothing, so they import none that does.
PURE = ("plan", "backends", "guest")
IMPURE_LAYERS = frozenset(
    {
        "run",
        "files",
        "inboxes",
        "trees",
        "host",
        "runtime",
        "access",
        "clones",
        "seccomp",
        "images",
        "state",
        "audit",
        "inotify",
        "libc",
    }
)
IMPURE_MODULES = frozenset(
    {"asyncio", "ctypes", "fcntl", "glob", "io", "multiprocessing", "pty", "shutil", "signal", "socket", "subprocess"}
    | {"tempfile", "threading", "time"}
)

# Programs of their own, which nobody imports and which talk to whoever ran them.
PROGRAMS = frozenset({"host/doctor/packages.py", "backends/qemu_monitor.py", "backends/cloud_hypervisor_calls.py"})
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


def file_imports(path: Path) -> Iterator[Path]:
    """Every file of hutch's own that `path` imports when it is run, but for the packages that these are in."""
    for node in running(tree(path)):
        for alias in node.names:
            whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            found = file_of(whole) or file_of(whole.rpartition(".")[0])
            if found is not None:
                yield found


def file_of(module: str) -> Path | None:
    """Where a module of hutch's own is; None for anything else."""
    place = SOURCE.parent.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def running(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below a node, but for those that only who checks types looks at."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            child = ast.Module(child.orelse, [])
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from running(child)


SPARING = re.compile(r" *# Spares the start-up of `(hutch [a-z]+|import hutch)`|.* import .*  # (?!noqa)")
"""What stands before imports in a function, or behind the first of them: whom they would make wait at the top."""
DONE = tuple(RANK)
"""The layers whose imports stand at the top, or say why not."""


def unexplained(path: Path) -> Iterator[str]:
    """Imports in functions that do not say whose start-up they spare."""
    lines = path.read_text().splitlines()
    for function in ast.walk(tree(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in blocks(function):
            runs = (node for before, node in pairwise([None, *block]) if is_import(node) and not is_import(before))
            yield from (
                where(path, node)
                for node in runs
                if node and not any(map(SPARING.match, lines[node.lineno - 2 : node.end_lineno]))
            )


def is_import(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements in a node, but for those of functions inside."""
    for _, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from blocks(child)
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield value


def test_imports_stand_at_the_top_or_say_whom_they_spare() -> None:
    assert [place for path in modules() if layer_of(path) in DONE for place in unexplained(path)] == []


def test_no_circle_of_files() -> None:
    graph = {
        str(path.relative_to(SOURCE)): {str(file.relative_to(SOURCE)) for file in file_imports(path)}
        for path in modules()
    }
    TopologicalSorter(graph).prepare()


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in modules()} <= RANK.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downwards(path: Path) -> None:
    own = layer_of(path)
    upwards = [f"{place}: {own} imports {layer}" for layer, place in layer_imports(path) if RANK[layer] > RANK[own]]
    assert upwards == []


def test_contributors_are_told_the_same_order() -> None:
    """The listing has one more row where a layer has a line of its own, but none that stands upside down."""
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"Imports go downwards only:\n\n```\n(.*?)```", text, re.DOTALL)
    told = [re.split(r" {2,}", line)[:-1] for line in block.splitlines()]
    ranks = [RANK[layer] for row in told for layer in row]
    assert ranks == sorted(ranks, reverse=True)
    assert {layer for row in told for layer in row} >= {layer for row in LAYERS[2:-1] for layer in row}


def test_no_circle_of_layers() -> None:
    graph: dict[str, set[str]] = {layer: set() for layer in RANK}
    for path in modules():
        graph[layer_of(path)] |= {layer for layer, _ in layer_imports(path)} - {layer_of(path)}
    TopologicalSorter(graph).prepare()


def test_pure_layers_import_no_effects() -> None:
    found = []
    for path in modules():
        if layer_of(path) in PURE and str(path.relative_to(SOURCE)) not in PROGRAMS:
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
    "hutch/host/network/egress_proxy.py": "a directory of the state or runtime directory",
    "hutch/images/source.py": "the tree that a file names as its image, which is only looked at",
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


# What tells one backend from another. Outside of backends/ and spec/, everybody asks for a trait.
KINDS = frozenset({"container", "vm", "nspawn", "qemu", "cloud-hypervisor"})
VMM_WORDS = ("qemu", "qmp", "cloud-hypervisor")
COMPARING: dict[str, str] = {}
NAMING = {
    "guest/initrd.py": "names a module of the guest's kernel",
    "host/doctor/tools.py": "names the programs that hutch needs",
    "host/hardware/accelerator.py": "tries KVM with a guest that is no workspace",
    "images/disk.py": "names the program that packs a disk",
    "images/machine.py": "finds the firmware, which comes with QEMU",
}


def words(node: ast.AST) -> set[object]:
    return {item.value for item in ast.walk(node) if isinstance(item, ast.Constant)}


def tells_apart(node: ast.AST) -> bool:
    """Whether it compares a type or a hypervisor, looks something up by it, or asks whether a Launch has links."""
    if isinstance(node, ast.Compare):
        return bool(words(node) & KINDS) or "hypervisor" in {getattr(side, "attr", "") for side in ast.walk(node)}
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Attribute) and node.slice.attr in ("type", "hypervisor")
    asked = (
        node.values if isinstance(node, ast.BoolOp) else [getattr(node, "test", None), getattr(node, "operand", None)]
    )
    return any(isinstance(item, ast.Attribute) and ast.unparse(item) == "launch.links" for item in asked)


def outside_of_backends() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(SOURCE)): tree(path) for path in modules() if layer_of(path) not in ("backends", "spec")
    }


def test_nobody_but_a_backend_tells_types_and_hypervisors_apart() -> None:
    found = {name for name, module in outside_of_backends().items() if any(map(tells_apart, ast.walk(module)))}
    assert found == COMPARING.keys()


def test_nobody_but_a_backend_knows_the_words_of_a_monitor() -> None:
    found = {
        name
        for name, module in outside_of_backends().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "\n" not in node.value
        and len(node.value) < 60
        and any(word in node.value.lower() for word in VMM_WORDS)
    }
    assert found == NAMING.keys()


ASKING = {
    "apply/ejecting.py": "units are what a workspace is ejected as",
    "apply/planning.py": "a plan says where nothing can start a workspace when the host boots",
    "apply/units.py": "there is somebody to write units for",
    "host/services/service.py": "who runs what serves all workspaces",
    "host/services/units.py": "the answer itself",
    "runtime/control.py": "who runs a workspace",
    "prove/facts.py": "who mounted the host's cgroups, and with which options",
}


def test_who_runs_a_workspace_is_asked_in_few_places() -> None:
    found = {name for name, module in outside_of_backends().items() if "has_systemd(" in ast.unparse(module)}
    assert found == ASKING.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_can_be_held_in_mind(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST
