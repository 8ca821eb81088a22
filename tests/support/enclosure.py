"""Namespaces for what acts as a host: mounts, network and processes of its own, which end with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Images and disks that outlive a checkout, each under a digest of what it is made from, and the history of flaky tests.
CACHE = Path(os.environ.get("HUTCH_TEST_CACHE") or "/var/cache/hutch-test")


def digest_of(directory: Path) -> str:
    """Of the files in it, but for what Python keeps."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return hashlib.sha256(b"\0".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:12]


# Images are made anew where what makes them has changed: otherwise only a machine without a cache would show a defect.
IMAGES = CACHE / f"made-{digest_of(ROOT / 'src/hutch/images')}" / "images"

# Where the host tier finds the machine's own network namespace: downloads must pass through it.
OUTER_NETWORK = "HUTCH_TEST_OUTER_NETNS"

# $1 is a file to hold that namespace; the rest is the command. A shell stays process 1 of the new process
# namespace, because process 1 must reap what its grandchildren leave, and pytest does not.
ENTRY = """
set -e
mount --bind /proc/self/ns/net "$1"
[ ! -d /run/systemd/system ] || mount -t tmpfs -o mode=755 tmpfs /run/systemd # the host's systemd is not the tests'
shift
exec unshare --net --pid --fork --kill-child --mount-proc -- sh -c '"$@"; exit $?' sh "$@"
"""


def enclose(command: Sequence[str], outer: Path) -> tuple[list[str], dict[str, str]]:
    """A command in namespaces of its own, and its environment. The file `outer` is made, for the network outside."""
    outer.touch()
    environment = {**os.environ, OUTER_NETWORK: str(outer)}
    if ROOT.stat().st_uid != 0:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # root's files would be in the owner's way
    return ["unshare", "--mount", "sh", "-c", ENTRY, "sh", str(outer), *command], environment
