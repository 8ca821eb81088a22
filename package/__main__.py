"""script/package: builds dist/hutch_VERSION_amd64.deb, for Debian or Ubuntu."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from package.control import DEFAULT, DISTRIBUTIONS, distribution_of
from package.tree import BuildFailed, build

TOP = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print the file that was built."""
    parser = argparse.ArgumentParser(prog="script/package", description="Build the Debian package of this checkout.")
    parser.add_argument("--output", type=Path, default=TOP / "dist", metavar="DIRECTORY", help="default: dist")
    parser.add_argument("--revision", default="1", help="what stands behind the version of hutch; default: 1")
    host = this_host()
    parser.add_argument("--for", dest="distribution", choices=DISTRIBUTIONS, default=host, help="default: %(default)s")
    options = parser.parse_args()
    try:
        print(build(TOP, DISTRIBUTIONS[options.distribution], options.output, options.revision, maintainer(), epoch()))
    except BuildFailed as error:
        print(f"script/package: {error}", file=sys.stderr)
        return 1
    return 0


def this_host() -> str:
    """The name of the distribution that the package is for unless another one is told."""
    try:
        return distribution_of(platform.freedesktop_os_release())
    except OSError:
        return DEFAULT


def maintainer() -> str:
    """Who builds, by the variables of Debian's tools."""
    name, address = os.environ.get("DEBFULLNAME", "hutch"), os.environ.get("DEBEMAIL", "hutch@localhost.localdomain")
    return f"{name} <{address}>"


def epoch() -> int:
    """The time of the last commit, unless the environment says another; without git, that of pyproject.toml."""
    if told := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(told)
    git = subprocess.run(["git", "-C", str(TOP), "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return int(git.stdout) if git.returncode == 0 else int((TOP / "pyproject.toml").stat().st_mtime)


if __name__ == "__main__":
    raise SystemExit(main())
