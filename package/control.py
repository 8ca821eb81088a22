"""What the Debian package says of itself, made of what is written down already: pyproject.toml, uv.lock, and the one
list of what hutch needs from a distribution. Pure text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from hutch.host.doctor.packages import REQUIREMENTS


@dataclass(frozen=True)
class Distribution:
    """A distribution that a package is for: `name`, which its version ends with but for Debian's, and what it has. Its
    own `modules` of Python are preferred, where they are new enough: it mends them, and all programs share them. What
    hutch needs beside them it brings along, compiled for these `pythons`: its own, and those of its next releases, so
    that a host can be upgraded. Of what is made of it, `codename` says so."""

    name: str
    codename: str
    modules: tuple[str, ...]
    pythons: tuple[tuple[int, int], ...]

    @property
    def mark(self) -> str:
        return "" if self.name == DEFAULT else f"~{self.name}"

    def packages(self) -> list[str]:
        """The names of the modules' packages."""
        return [f"python3-{name}" for name in self.modules]


DEFAULT = "debian13"
DISTRIBUTIONS = {
    each.name: each
    for each in (
        Distribution(DEFAULT, "trixie", ("click", "dnspython", "idna", "pydantic", "rich"), ((3, 13), (3, 14))),
        Distribution("ubuntu24.04", "noble", ("click", "rich"), ((3, 12), (3, 13), (3, 14))),
    )
}
LIBC = (2, 28)
"""That of the wheels of compiled packages, which their platform tag names."""
ARCHITECTURE = "amd64"
MACHINE = "x86_64"
ESSENTIAL = frozenset({"dpkg", "util-linux"})  # which no package is to depend on
DESCRIPTION = """\
 hutch gives every project, checkout or coding agent on a host a machine of
 its own: a container (systemd-nspawn) or a virtual machine (QEMU), with a
 home that stays, an ssh key, an address, and rules for what it may reach.
 .
 Workspaces are declared in one file, hutch.toml. "hutch plan" tells what
 "hutch up" would do, and nothing stays resident but what serves them.
"""


def distribution_of(os_release: Mapping[str, str]) -> str:
    """The name of the distribution that a host is, or is made of, by its os-release; where no package is for that, the
    default."""
    codename = os_release.get("UBUNTU_CODENAME", os_release.get("VERSION_CODENAME"))
    return next((each.name for each in DISTRIBUTIONS.values() if each.codename == codename), DEFAULT)


def render_control(
    project: Mapping[str, Any], distribution: Distribution, version: str, maintainer: str, size: int
) -> str:
    """The control file of the binary package; `size` in KiB."""
    needed, recommended = depends(project["dependencies"], distribution)
    fields = {
        "Package": "hutch",
        "Version": version,
        "Architecture": ARCHITECTURE,
        "Maintainer": maintainer,
        "Installed-Size": str(size),
        "Depends": ", ".join(needed),
        "Recommends": ", ".join(recommended),
        "Section": "admin",
        "Priority": "optional",
        "Description": "machines of their own for projects and coding agents",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value) + DESCRIPTION


def depends(dependencies: Iterable[str], distribution: Distribution) -> tuple[list[str], list[str]]:
    """What must be there, and what is better there: the runtime set of hutch.host.doctor.packages, the distribution's
    Python packages, and what the bundled and compiled ones were compiled for."""
    needed = programs(is_optional=False)
    recommended = programs(is_optional=True) - needed
    least = dict(map(parse, dependencies))
    own = zip(distribution.packages(), distribution.modules, strict=True)
    modules = [f"{package} (>= {least[name]})" for package, name in own]
    first, last = distribution.pythons[0], distribution.pythons[-1]
    pythons = [f"python3 (>= {dotted(first)})", f"python3 (<< {dotted((last[0], last[1] + 1))})"]
    common = [*pythons, f"libc6 (>= {dotted(LIBC)})", "debconf (>= 0.5) | debconf-2.0"]
    return [*common, *sorted(modules), *sorted(needed)], sorted(recommended)


def programs(*, is_optional: bool) -> set[str]:
    """The packages of what hutch runs."""
    items = (item for item in REQUIREMENTS if item.set == "runtime" and item.optional == is_optional)
    return {name for item in items for name in item.names("apt")} - ESSENTIAL


def parse(dependency: str) -> tuple[str, str]:
    """(name, least version) of an entry of pyproject.toml's `dependencies`."""
    found = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", dependency)
    if found is None:
        raise ValueError(f"{dependency!r} is more than a name and a least version: tell package/control what it means")
    return found[1], found[2]


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def render_changelog(version: str, maintainer: str, epoch: int) -> str:
    """Debian's, of this build; what changed in hutch stands in its own changelog, which is beside it."""
    date = format_datetime(datetime.fromtimestamp(epoch, UTC))
    entry = "  * A build of hutch as it is; changelog.gz, beside this, tells what changed."
    return f"hutch ({version}) unstable; urgency=medium\n\n{entry}\n\n -- {maintainer}  {date}\n"


def render_metadata(project: Mapping[str, Any]) -> str:
    """By which Python knows what is installed, and `hutch --version` its version."""
    return (
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        f"Summary: {project['description']}\nLicense: {project['license']}\n"
        f"Requires-Python: {project['requires-python']}\n"
        + "".join(f"Requires-Dist: {dependency}\n" for dependency in project["dependencies"])
    )


def bundled(lock: Mapping[str, Any], distribution: Distribution) -> list[str]:
    """The packages to bring along, by uv.lock: what hutch needs that the distribution has not, and all that these
    need."""
    known = {package["name"]: package for package in lock["package"]}
    found: set[str] = set()
    waiting = ["hutch"]
    while waiting:
        needed = {each["name"] for each in known[waiting.pop()].get("dependencies", ())}
        new = needed - found - {*distribution.modules}
        found |= new
        waiting += new
    return sorted(found)


def render_bundle(lock: Mapping[str, Any], distribution: Distribution) -> str:
    """These as pip's requirements: the versions of uv.lock, with the digests of their wheels."""
    found = {package["name"]: package for package in lock["package"]}
    lines = []
    for name in bundled(lock, distribution):
        digests = sorted({wheel["hash"] for wheel in found[name]["wheels"]})
        lines.append(" ".join([f"{name}=={found[name]['version']}", *(f"--hash={digest}" for digest in digests)]))
    return "".join(f"{line}\n" for line in lines)
