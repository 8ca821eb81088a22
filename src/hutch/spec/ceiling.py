"""The ceiling of members: what root allows those in the group `hutch`, as /etc/hutch/policy.toml says it.

Reads that file and changes nothing. What a workspace may say below the ceiling is judged by spec/allowance.
"""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from hutch.errors import ConfigError, Problem
from hutch.files import real_path
from hutch.frozen import dataclass
from hutch.spec import values
from hutch.spec.clashes import Real, is_inside
from hutch.spec.entries import Egress, Publish
from hutch.spec.field_types import FieldType, Invalid, ipv4_address, matches, path_text, port_number, text
from hutch.spec.model import STRICT, key
from hutch.spec.names import UID_RANGES
from hutch.spec.reading import locate, parse_toml, read_file
from hutch.spec.validation import FieldProblem, nearest, validate

POLICY_FILE = Path("/etc/hutch/policy.toml")
TABLE = "members"
OTHER_NAME = "total_workspaces"
"""The name of `workspaces` by which it is like the other keys for one person."""
AMOUNTS = ("memory", "vcpus", "disk")
"""The keys with a ceiling for each workspace, one for each person and one for all members."""


@dataclass(frozen=True)
class Ports:
    """Ports of one address of the host; "" is every address."""

    host_ip: str
    first: int
    last: int

    def covers(self, port: Publish) -> bool:
        return self.host_ip in ("", port.host_ip) and self.first <= port.host_port <= self.last

    def __str__(self) -> str:
        return f"{self.host_ip or '0.0.0.0'}:{self.first}-{self.last}"


class PortRange(FieldType):
    pattern = r"[0-9.]+:[0-9]{1,5}(-[0-9]{1,5})?"
    form = '"host_ip:from-to", such as "127.0.0.1:1024-65535"; 0.0.0.0 is every address'

    def parse(self, value: object) -> Ports:
        match = matches(r"([0-9.]+):([0-9]+)(?:-([0-9]+))?", text(value, self.form))
        if not match:
            raise Invalid("is not a range of ports", self.form)
        ip = ipv4_address(match[1], self.form)
        first = port_number(match[2], self.form)
        last = port_number(match[3], self.form) if match[3] else first
        if last < first:
            raise Invalid("ends before it begins", self.form)
        return Ports("" if ip == "0.0.0.0" else ip, first, last)


class ImageRange(FieldType):
    """Images that members may have: one of them, or all whose reference begins so, with a * at the end."""

    form = '"debian:trixie", "oci:docker.io/library/*" or "rootfs:/srv/trees/*"'

    def parse(self, value: object) -> str:
        entry = text(value, self.form)
        stem = entry.removesuffix("*")
        scheme, _, rest = stem.partition(":")
        if stem == entry:
            values.ImageReference().parse(entry)
        elif scheme not in ("oci", "rootfs", "nix") or "*" in stem:
            raise Invalid("is no image, and not all images of a place", self.form)
        if scheme in ("rootfs", "nix"):
            if stem != entry and not stem.endswith("/"):
                raise Invalid(
                    "ends within the name of a directory", 'a * stands behind a /, as in "rootfs:/srv/trees/*"'
                )
            RootPath().parse(rest.rstrip("/"), is_absolute=True)
        return entry


class RootPath(FieldType):
    """A directory in which members share what is theirs; "~" is the home of each."""

    form = '"~", "~/src" or an absolute path such as "/srv/projects"'

    def parse(self, value: object, *, is_absolute: bool = False) -> str:
        path = path_text(value, self.form)
        is_home = (path == "~" or path.startswith("~/")) and not is_absolute
        if not is_home and not path.startswith("/"):
            raise Invalid("is not absolute", self.form)
        if path.startswith("/") and not posixpath.normpath(path).strip("/"):
            raise Invalid("is the whole host", self.form)
        if posixpath.normpath(path) != path:
            raise Invalid("is not a plain path", f'write "{posixpath.normpath(path)}"')
        return path


COUNT, CPUS, SIZE = values.WholeNumber(0, UID_RANGES), values.WholeNumber(1, 2**20), values.Size(minimum=64 * 2**20)


def limit(meaning: str, default: Any = None) -> Any:
    return key(meaning, default=default)


@dataclass(frozen=True)
class Members:
    """The `[members]` table. Sizes are bytes. A `total_…` that is None has no ceiling but the number of workspaces and
    that of each, and so has an `all_…`."""

    __pydantic_config__ = STRICT

    workspaces: Annotated[int, COUNT] = limit(
        f"how many workspaces one person has, those of which a home is kept too; `{OTHER_NAME}` is the same", 8
    )
    all_workspaces: Annotated[int, COUNT] = limit("how many all members have together", 64)
    memory: Annotated[int, SIZE] = limit("of one workspace", 4 << 30)
    total_memory: Annotated[int | None, SIZE] = limit("of all of a person's; default: `workspaces` times that of one")
    all_memory: Annotated[int | None, SIZE] = limit(
        "of all members' together; default: `all_workspaces` times that of one"
    )
    vcpus: Annotated[int, CPUS] = limit("of one workspace", 4)
    total_vcpus: Annotated[int | None, CPUS] = limit("of all of a person's; default: `workspaces` times that of one")
    all_vcpus: Annotated[int | None, CPUS] = limit(
        "of all members' together; default: `all_workspaces` times that of one"
    )
    disk: Annotated[int, SIZE] = limit("of one workspace", 20 << 30)
    total_disk: Annotated[int | None, SIZE] = limit("of all of a person's; default: `workspaces` times that of one")
    all_disk: Annotated[int | None, SIZE] = limit(
        "of all members' together; default: `all_workspaces` times that of one"
    )
    types: tuple[Literal["container", "vm"], ...] = limit("kinds of workspaces", ("container", "vm"))
    images: tuple[Annotated[str, ImageRange()], ...] = limit(
        "guest operating systems; a * at the end stands for all that begin so", values.ImageReference.distributions
    )
    mounts: tuple[Annotated[str, RootPath()], ...] = limit(
        "where shared directories and files lie, which are the caller's own in any case; ~ is the caller's home", ("~",)
    )
    egress: Annotated[str | tuple[str, ...], Egress()] = limit("their widest egress", "internet")
    publish: tuple[Annotated[Ports, PortRange()], ...] = limit(
        "ports of the host, as host_ip:from-to", (Ports("127.0.0.1", 1024, 65535),)
    )
    nesting: bool = limit("user namespaces inside a container", False)
    gpu: bool = limit("the host's GPU render nodes", False)
    nix_store: bool = limit("the host's /nix/store", False)
    vsock: bool = limit("a machine's way to the host's vsock listeners", False)


@dataclass(frozen=True)
class Ceiling:
    """What members may have at most. `said` are the keys that the file has; the rest is built in."""

    members: Members = Members()
    said: frozenset[str] = frozenset()

    def shown(self, key: str) -> str:
        """The value of a key as the file has it, without quotes; "" where there is none."""
        value = getattr(self.members, key)
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return values.render_size(value) if key.endswith(("memory", "disk")) else str(value)
        return value if isinstance(value, str) else ", ".join(map(str, value)) or "nothing"

    def says(self, key: str) -> str:
        """A key of the ceiling with its value, and whose word that is."""
        whose = f"as {POLICY_FILE} says" if key in self.said else f"the default of {POLICY_FILE}"
        return f"members.{key} is {self.shown(key)}, {whose}"

    def most(self, key: str) -> int | None:
        """The number of a key of the ceiling; None for none."""
        number: int | None = getattr(self.members, key)
        return number


BUILT_IN = Ceiling()


def read_ceiling(text: str, file: str = str(POLICY_FILE)) -> Ceiling:
    """The ceiling that a file with this text sets. Raises ConfigError with all problems, by key and line: one that is
    half understood would be none."""
    data = parse_toml(file, text)
    findings = [
        FieldProblem((section,), "is not known in this file", nearest(section, (TABLE,)))
        for section in data
        if section != TABLE
    ]
    table = data.get(TABLE, {})
    if not isinstance(table, dict):
        findings.append(FieldProblem((TABLE,), "must be a table", f"[{TABLE}]"))
        table = {}
    if "workspaces" not in table:  # beside that, the other name is one too many
        table = {"workspaces" if name == OTHER_NAME else name: value for name, value in table.items()}
    checked = validate(Members, table, (TABLE,))
    findings += checked.findings
    if findings:
        raise ConfigError(locate(file, text, findings))
    return Ceiling(checked.value, frozenset(table))


def ceiling_of_host(file: Path = POLICY_FILE) -> Ceiling:
    """The ceiling of this host. No file means the built-in one. Raises ConfigError for a file that says it wrongly, or
    that somebody else than root could have written: members have nothing then."""
    found = str(file)
    try:
        os.lstat(found)
    except FileNotFoundError:
        return BUILT_IN
    except OSError as error:
        raise unusable(found, f"cannot be looked for: {error.strerror}") from None
    for link in (found, os.path.dirname(found)):
        status = os.lstat(link)
        if status.st_uid != 0 or (not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022):
            raise unusable(
                found, f"could be written by others than root: see {link}", f"chown root {link}; chmod go-w {link}"
            )
    real = real_path(found)
    if not is_open(real):
        raise unusable(found, "is closed to members, who plan by it", f"chmod a+r {found}")
    return read_ceiling(read_file(real, frozenset((0,)), way="make it root's"), real)


def is_open(file: str) -> bool:
    """Whether everybody may read a file. One that is not there is told of when it is read."""
    try:
        return bool(os.stat(file).st_mode & stat.S_IROTH)
    except OSError:
        return True


def unusable(file: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(message, hint=hint, file=file)])


# What images and directories the ceiling names.


def has_image(ceiling: Ceiling, image: str, real: Real) -> bool:
    """Whether an image is among those of the ceiling. `real` resolves symbolic links: one in a place that the ceiling
    names must not lead out of it."""
    return any(_is_among(image, entry, real) for entry in ceiling.members.images)


def _is_among(image: str, entry: str, real: Real) -> bool:
    stem, is_range = entry.removesuffix("*"), entry.endswith("*")
    (scheme, _, tree), (kind, _, place) = image.partition(":"), stem.partition(":")
    if scheme not in ("rootfs", "nix"):
        return image.startswith(stem) if is_range else image == entry
    tree, place = real(tree), real(place.rstrip("/"))
    return kind == scheme and (is_inside(tree, place) and tree != place if is_range else tree == place)


def roots(ceiling: Ceiling, home: str | None) -> tuple[str, ...]:
    """The directories in which a person with that home shares what is theirs."""
    return tuple(
        f"{home}{root[1:]}" if root.startswith("~") else root
        for root in ceiling.members.mounts
        if home is not None or not root.startswith("~")
    )
