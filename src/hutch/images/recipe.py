"""Recipes: the input of an image, and the name that follows. Pure: reads nothing but the package's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hutch.frozen import dataclass
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import Record

BASE_VERSION = 1
"""The base's version, raised when images must be made anew although no package, setup or script of theirs changed."""

BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "libnss-resolve", "dbus", "udev", "kmod"),
    *("iproute2", "iputils-ping", "openssh-server", "opendoas", "ca-certificates", "less", "procps"),
)
GUEST = Path(__file__).parents[1] / "guest"


@dataclass(frozen=True)
class Distribution:
    """The sources of a distribution. Without `mirror`, mmdebstrap knows suites, mirrors and keys by itself."""

    suite: str
    keyring: str
    mirror: str = ""
    ports_mirror: str = ""  # for every architecture but amd64
    pockets: tuple[str, ...] = ()
    components: str = "main"

    def sources(self, machine: str) -> tuple[str, ...]:
        """apt source lines for a host with this `uname -m`."""
        mirror = self.mirror if machine == "x86_64" else self.ports_mirror
        return tuple(f"deb {mirror} {self.suite}{pocket} {self.components}" for pocket in self.pockets)

    def security_source(self, machine: str) -> str:
        """The apt source line of its security updates alone."""
        ours = f"deb http://security.debian.org/debian-security {self.suite}-security {self.components}"
        return next((line for line in self.sources(machine) if f" {self.suite}-security " in line), ours)


DISTRIBUTIONS = {
    "debian:trixie": Distribution("trixie", "debian-archive-keyring"),
    "debian:bookworm": Distribution("bookworm", "debian-archive-keyring"),
    "ubuntu:noble": Distribution(
        "noble",
        "ubuntu-archive-keyring",
        mirror="http://archive.ubuntu.com/ubuntu",
        ports_mirror="http://ports.ubuntu.com/ubuntu-ports",
        pockets=("", "-updates", "-security"),
        components="main universe",  # opendoas is in universe
    ),
}


@dataclass(frozen=True)
class Recipe:
    """All input that decides the content of an image. Equal recipes have equal ids; `make_recipe` makes them.

    `edition` tells apart the images that one recipe gave at different times, when its sources had other packages. It
    is no part of the digest.
    """

    image: str
    packages: tuple[str, ...]
    setup: str
    fingerprint: str
    """The fingerprint of the source of a rootfs image (see source.observe_fingerprint); "" for a distribution."""
    base: str
    edition: int = 1

    @property
    def rootfs(self) -> str | None:
        """The directory or tarball that the image is made from, if any."""
        scheme, _, path = self.image.partition(":")
        return path if scheme == "rootfs" else None

    @property
    def wants_network(self) -> bool:
        """Whether anything that runs in the tree may want to download: mmdebstrap downloads from outside it."""
        return bool(self.setup or (self.rootfs and self.packages))

    @property
    def digest(self) -> str:
        return _sha256(json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True))

    @property
    def id(self) -> str:
        """A name for people and paths: "debian-trixie-0123456789ab", with ".2" behind it for a second edition."""
        name = f"rootfs-{Path(self.rootfs).name}" if self.rootfs else self.image
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-")
        return f"{slug}-{self.digest[:12]}{f'.{self.edition}' if self.edition > 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        values = {key: value for key, value in self.__dict__.items() if key != "edition"}
        return {**values, "packages": list(self.packages)}

    def edition_of(self, id: str) -> int:
        """The number of an image among the editions of this recipe; 0 where it is none."""
        first, _, number = id.partition(".")
        return int(number or 1) if is_id(id) and first == self.first.id else 0

    @property
    def first(self) -> Recipe:
        """The recipe in its first edition."""
        return replace(self, edition=1)

    def newest(self, ids: Iterable[str]) -> Recipe:
        """The recipe in its newest edition among these images; in its first one where none is an edition of it."""
        return replace(self, edition=max((1, *map(self.edition_of, ids))))

    def for_workspace(self, workspace: WorkspaceSpec, record: Record | None, ids: Iterable[str]) -> Recipe:
        """The edition that a workspace with this record starts from: the newest of `ids`, or the recorded one where
        that is newer and gone. A kept root stays on its edition, and gets updates from inside."""
        kept = record.kept_root if record else None
        is_same = kept is not None and (workspace.persist, workspace.type) == ("all", kept.workspace.type)
        if kept and is_same and self.edition_of(kept.image):
            return self.newest([kept.image])
        return self.newest([*ids, record.image] if record else ids)


def make_recipe(image: str, packages: tuple[str, ...] = (), setup: str = "", *, fingerprint: str = "") -> Recipe:
    """The recipe of an image that a hutch.toml asks for. Order and repetition of packages do not matter."""
    return Recipe(image, tuple(sorted(set(packages))), setup, fingerprint, base_digest())


@cache
def adaptation() -> dict[str, str]:
    """The files that make any tree a guest of hutch's, by relative path: adapt.sh, the files that it installs, and the
    list of those that it masks. They are part of every recipe."""
    files = [Path(__file__).with_name("adapt.sh"), GUEST / "masked"]
    texts = {path.name: path.read_text() for path in files}
    tree = sorted(path for path in (GUEST / "tree").rglob("*") if path.is_file())
    return texts | {str(path.relative_to(GUEST)): path.read_text() for path in tree}


@cache
def base_digest() -> str:
    """The digest of all that hutch itself puts into every image."""
    base = [BASE_VERSION, BASE_PACKAGES, adaptation()]
    return _sha256(json.dumps(base))


def _sha256(text: str) -> str:
    # Spares the start-up of `hutch status`.
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def is_id(text: str) -> bool:
    """Whether `text` could be the id of an image; it becomes part of paths, so everything asks first."""
    return re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,62})-[0-9a-f]{12}(\.[1-9][0-9]{0,8})?", text, re.ASCII) is not None
