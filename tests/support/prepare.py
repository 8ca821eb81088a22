"""Brings what tests with effects need into the cache, so that none of them fetches it: images with what machines of
them boot from, and the stand's disks.

    python -m tests.support.prepare TIER...

runs in the namespaces of the host tier, before all tiers. What is there already is not asked for again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
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
from tests.support.stand_disks import forget_old
from tests.support.world import World

TRIES = 3
UNREACHED = (
    "a mirror did not answer",
    "could not be fetched",
    "timed out after",
    "Could not connect",
    "Failed to fetch",
)
"""Say hutch, its tests and apt of what they cannot download."""


@dataclass(frozen=True)
class Made:
    """The image of the tests' workspaces, the name of what machines of it boot from, and their kernel."""

    image: Path
    machine: str
    kernel: Kernel


def main() -> int:
    tiers = sys.argv[1:]
    forget_old(CACHE.glob("made-*"), shutil.rmtree)
    world = World.build(with_mirrors=True)
    try:
        for _ in range(TRIES):
            try:
                made = ensure_images(world)
                if {"smoke", "stand"} & set(tiers):
                    ensure_disks(made, alone="stand" not in tiers)
                return 0
            except (AssertionError, RuntimeError, subprocess.TimeoutExpired) as error:  # of a command that failed
                print(error, flush=True)
                if not any(words in str(error) for words in UNREACHED):
                    return 1
    finally:
        world.close()
    print("could not download what the tests' images and disks are made of: see above")
    return os.EX_TEMPFAIL


def ensure_images(world: World) -> Made:
    """Make what is lacking, by the mirrors that the world has a way to."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    os.utime(IMAGES.parent)
    with open_instance(world, IMAGES) as builder:
        for boundary in ("container", "vm"):
            builder.declare(boundary, builder="")
            builder.hutch("up", "--no-start", timeout=900)
        image = IMAGES / builder.status("builder")["image_id"]
        layout = Layout(IMAGES.parent.resolve(), builder.run)
        kernel = ensure_kernel("debian:trixie", layout, Meter(no_progress))
        return Made(image, machine_directory(layout, image.name).name, kernel)


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
