"""Runs every linter, whether or not another one complains; prints what those say that do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.enclosure import ROOT

SHELL = re.compile(rb"#! ?/\S+( \S*/?busybox)?[ /](ba|da)?sh\b")
SHELL_IN = (".ci", "bench", "examples", "package", "script", "src", "tests")
GOLDEN = ROOT / "tests" / "unit" / "golden"  # what is written there, others make


def main() -> int:
    tools = Path(sys.executable).parent
    programs, libraries = shell_files()
    commands = [
        [f"{tools}/ruff", "check", "--output-format=concise"],
        [f"{tools}/ruff", "format", "--check"],
        [f"{tools}/mypy"],
        ["shellcheck", "--format=gcc", *programs],
        # What they are given is assigned by what is written before them.
        ["shellcheck", "--format=gcc", "--shell=sh", "--exclude=SC2154", *libraries],
        [str(ROOT / "script" / "docs"), "--check"],
    ]
    failures = 0
    for command in commands:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode != 0:
            failures += 1
            print(f"$ {shlex.join(command)}\n{result.stdout}", end="")
    return min(failures, 1)


def shell_files() -> tuple[list[str], list[str]]:
    """Every program in shell, and every file that is a part of one."""
    programs, libraries = [], []
    for path in sorted(path for top in SHELL_IN for path in (ROOT / top).rglob("*")):
        if not path.is_file() or path.suffix not in ("", ".sh") or path.is_relative_to(GOLDEN):
            continue
        with path.open("rb") as file:
            first = file.readline()
        if SHELL.match(first):
            programs.append(str(path))
        elif path.suffix == ".sh" and not first.startswith(b"#!"):
            libraries.append(str(path))
    return programs, libraries


if __name__ == "__main__":
    raise SystemExit(main())
