"""The files of the Debian package, laid out in a directory as they are to lie on a host, and packed. The same source
gives the same bytes: nothing of the time, the place or the user of a build is in it.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from hutch.cli import cli
from hutch.cli.completing import render_completion
from hutch.host.doctor.entry import render_entry, render_rule
from hutch.spec.member import ENTRY
from package.control import (
    ARCHITECTURE,
    LIBC,
    MACHINE,
    Distribution,
    dotted,
    render_bundle,
    render_changelog,
    render_control,
    render_metadata,
)
from package.manual import render_pages

HERE = Path(__file__).parent / "debian"
MODULES = "usr/lib/python3/dist-packages"
DOC = "usr/share/doc/hutch"
SCRIPTS = ("postinst", "prerm", "postrm")
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/hutch",
    "zsh": "usr/share/zsh/vendor-completions/_hutch",
    "fish": "usr/share/fish/vendor_completions.d/hutch.fish",
}
RULE = "etc/sudoers.d/hutch"
CONFIGURATION = {
    "etc/needrestart/conf.d/hutch.conf": (HERE / "needrestart.conf").read_bytes(),
    RULE: render_rule().encode(),
}
"""What an administrator may change: where it lies, and what is in it."""
PYTHON = "/usr/bin/python3"
NO_FILES_OF_OURS = ("__pycache__", "*.pyc")
WHEELS_LEAVE_OUT = ("__pycache__", "*.dist-info", "bin", ".lock", "*.c")  # what is for pip alone, scripts, sources


class BuildFailed(Exception):
    """A command of the build did; it says why."""


def build(top: Path, distribution: Distribution, output: Path, revision: str, maintainer: str, epoch: int) -> Path:
    """Build the package of the checkout `top`; returns its file in `output`. `epoch` is the time that all of it has."""
    project = tomllib.loads((top / "pyproject.toml").read_text())["project"]
    version = f"{project['version']}-{revision}{distribution.mark}"
    with tempfile.TemporaryDirectory(prefix="hutch-package-") as scratch:
        tree = Path(scratch) / "tree"
        lay_code(top, tree, render_metadata(project), str(project["version"]))
        lock = tomllib.loads((top / "uv.lock").read_text())
        bundle(render_bundle(lock, distribution), distribution, tree)
        lay_documents(top, tree, str(project["version"]), render_changelog(version, maintainer, epoch))
        size = sum(-(-path.lstat().st_size // 1024) or 1 for path in tree.rglob("*"))
        control = tree / "DEBIAN"
        control.mkdir()
        (control / "control").write_text(render_control(project, distribution, version, maintainer, size))
        (control / "md5sums").write_text("".join(sums(tree)))
        (control / "conffiles").write_text("".join(f"/{path}\n" for path in CONFIGURATION))
        for name in (*SCRIPTS, "templates"):
            shutil.copyfile(HERE / name, control / name)
        settle(tree, epoch)
        output.mkdir(parents=True, exist_ok=True)
        target = output / f"hutch_{version}_{ARCHITECTURE}.deb"
        options = ("--root-owner-group", "-Zxz", "-z3", "--threads-max=1", "--build")
        call("dpkg-deb", *options, str(tree), str(target), SOURCE_DATE_EPOCH=str(epoch))
    return target


def lay_code(top: Path, tree: Path, metadata: str, version: str) -> None:
    """hutch itself, as a module for Debian's Python, and the command."""
    modules = tree / MODULES
    ignore = shutil.ignore_patterns(*NO_FILES_OF_OURS)
    shutil.copytree(top / "src/hutch", modules / "hutch", ignore=ignore, copy_function=shutil.copyfile)
    information = modules / f"hutch-{version}.dist-info"
    write(information / "METADATA", metadata.encode())
    write(information / "INSTALLER", b"debian\n")
    write(tree / "usr/bin/hutch", (HERE / "hutch").read_bytes())
    write(tree / ENTRY.lstrip("/"), render_entry(PYTHON).encode())
    for path, content in CONFIGURATION.items():
        write(tree / path, content)


def bundle(requirements: str, distribution: Distribution, tree: Path) -> None:
    """The packages to bring along, for every Python: what is compiled lies side by side, all else is the same; and
    their licences."""
    with tempfile.TemporaryDirectory(prefix="hutch-wheels-") as scratch:
        listed = Path(scratch) / "requirements.txt"
        listed.write_text(requirements)
        for python in distribution.pythons:
            place = Path(scratch) / dotted(python)
            platform = f"{MACHINE}-manylinux_{LIBC[0]}_{LIBC[1]}"
            which = ("--python-version", dotted(python), "--python-platform", platform, "--target", str(place))
            strict = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy")
            call(str(Path(sys.executable).with_name("uv")), "pip", "install", "-q", *strict, *which, "-r", str(listed))
            merge(place, tree / MODULES / "hutch/vendor")
            for information in place.glob("*.dist-info"):
                if not (told := [*information.rglob("LICENSE*")]):
                    raise BuildFailed(f"{information.name} tells no licence")
                for path in told:
                    write(tree / DOC / "licenses" / information.name.partition("-")[0] / path.name, path.read_bytes())


def merge(source: Path, target: Path) -> None:
    """Add a tree to another one. Files that both have are the same."""
    ignore = shutil.ignore_patterns(*WHEELS_LEAVE_OUT)

    def copy(one: str, other: str) -> str:
        if os.path.exists(other) and Path(one).read_bytes() != Path(other).read_bytes():
            raise BuildFailed(f"{other} is another file for another Python")
        return str(shutil.copyfile(one, other))

    shutil.copytree(source, target, ignore=ignore, copy_function=copy, dirs_exist_ok=True)


def lay_documents(top: Path, tree: Path, version: str, changelog: str) -> None:
    """Manual pages and completion, made from the commands, and what Debian wants of every package."""
    for name, text in render_pages(cli, version).items():
        write(tree / f"usr/share/man/man{name[-1]}/{name}.gz", compressed(text.encode()))
    for shell, path in COMPLETIONS.items():
        write(tree / path, f"{render_completion(shell)}\n".encode())
    write(tree / DOC / "changelog.Debian.gz", compressed(changelog.encode()))
    write(tree / DOC / "changelog.gz", compressed((top / "CHANGELOG.md").read_bytes()))
    write(tree / DOC / "copyright", (HERE / "copyright").read_bytes())
    write(tree / "usr/share/lintian/overrides/hutch", (HERE / "lintian-overrides").read_bytes())
    for page in sorted((top / "docs").glob("*.md")):
        write(tree / DOC / page.name, page.read_bytes())
    for example in sorted((top / "examples").glob("*.*")):
        write(tree / DOC / "examples" / example.name, example.read_bytes())


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def compressed(content: bytes) -> bytes:
    """As gzip -9n does, without name and time."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def sums(tree: Path) -> Iterator[str]:
    import hashlib

    for path in (path for path in files(tree) if str(path.relative_to(tree)) not in CONFIGURATION):
        yield f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"


def files(tree: Path) -> list[Path]:
    """Those that are installed, in order."""
    return sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_relative_to(tree / "DEBIAN"))


def settle(tree: Path, epoch: int) -> None:
    """Give everything the mode that it is to have, whatever the builder's umask, and one time."""
    programs = {tree / "usr/bin/hutch", tree / ENTRY.lstrip("/"), *(tree / "DEBIAN" / name for name in SCRIPTS)}
    for path in (tree, *tree.rglob("*")):
        is_open = stat.S_ISDIR(path.lstat().st_mode) or path in programs
        path.chmod(0o755 if is_open else 0o440 if path == tree / RULE else 0o644)
        os.utime(path, (epoch, epoch))


def call(*argv: str, **environment: str) -> None:
    """A command of the build; what it says is told when it fails."""
    result = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    if result.returncode != 0:
        raise BuildFailed(f"{argv[0]}: code {result.returncode}\n{result.stdout}{result.stderr}".rstrip())
