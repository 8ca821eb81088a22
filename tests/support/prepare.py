"""Brings what tests with effects need into the cache, so that none of them fetches it: images with what machines of
them boot from, and the stand's disks.

    python -m tests.support.prepare TIER...

runs in the namespaces of the host tier, before all tiers. What is there already is not asked for again.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hutch.images.kernel import Kernel, ensure_kernel
from hutch.images.machine import machine_directory
from hutch.images.progress import Meter, no_progress
from hutch.spec.names import Layout
from tests.host.opening import open_instance
from tests.support import stand_disks
from tests.support.enclosure import CACHE, IMAGES
from tests.support.world import World

TRIES = 3
KEPT = 3  # directories of images; those of older checkouts go
UNREACHED = ("a mirror did not answer", "could not be fetched", "Could not connect", "Failed to fetch")
"""Say hutch and apt of what they cannot download."""


@dataclass(frozen=True)
class Made:
    """The image of the tests' workspaces, the name of what machines of it boot from, and their kernel."""

    image: Path
    machine: str
    kernel: Kernel


def main() -> int:
    tiers = sys.argv[1:]
    for _ in range(TRIES):
        try:
            made = ensure_images()
            if {"smoke", "stand"} & set(tiers):
                ensure_disks(made, alone="stand" not in tiers)
            return 0
        except (AssertionError, RuntimeError) as error:  # of a command that failed
            print(error, flush=True)
            if not any(words in str(error) for words in UNREACHED):
                return 1
    print("could not download what the tests' images and disks are made of: see above")
    return os.EX_TEMPFAIL


def ensure_images() -> Made:
    """Make what is lacking, with the mirrors of this machine."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    os.utime(IMAGES.parent)
    for old in sorted(CACHE.glob("made-*"), key=lambda found: found.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old)
    world = World.build(with_mirrors=True)
    try:
        with open_instance(world, IMAGES) as builder:
            for boundary in ("container", "vm"):
                builder.declare(boundary, builder="")
                builder.hutch("up", "--no-start", timeout=900)
            image = IMAGES / builder.status("builder")["image_id"]
            layout = Layout(IMAGES.parent.resolve(), builder.run)
            kernel = ensure_kernel("debian:trixie", layout, Meter(no_progress))
            return Made(image, machine_directory(layout, image.name).name, kernel)
    finally:
        world.close()


def ensure_disks(made: Made, *, alone: bool) -> tuple[stand_disks.Boot, dict[str, Path]]:
    """What the stand boots from, and its disks by their names, but for the checkout's; see `ensure_host`."""
    cache = CACHE / "stand"
    cache.mkdir(parents=True, exist_ok=True)
    boot = stand_disks.ensure_boot(cache, made.kernel)
    host = stand_disks.ensure_host(cache, made.kernel, alone=alone)
    images = stand_disks.ensure_image(cache, made.image, made.machine)
    python, environment = stand_disks.ensure_python(cache)
    disks = {"host": host, "venv": environment, "images": images}
    return boot, disks if python is None else {**disks, "python": python}


if __name__ == "__main__":
    raise SystemExit(main())
