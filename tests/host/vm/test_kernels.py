"""Old kernels are fetched anew: a machine boots a newer one at its next start, over a kept root too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hutch.images.machine import machine_directory
from hutch.spec.names import Layout
from tests.host.conftest import MakeInstance
from tests.host.instance import Instance


def digest_of(instance: Instance, image: str) -> str:
    """The digest of the root file system of an image's machines."""
    (root,) = (instance.state / "images" / image).glob("machine-*/root.erofs")
    return hashlib.sha256(root.read_bytes()).hexdigest()


def told_of_kernel(instance: Instance) -> list[str]:
    """The warnings about the machine's kernel."""
    return [text for text in instance.status("pet")["warnings"] if text.startswith("kernel: ")]


@pytest.mark.slow
def test_a_newer_kernel_is_booted_at_the_next_start(make_instance: MakeInstance, images: Path) -> None:
    """A machine with a kept root, which stays on its image, boots the newer kernel too."""
    instance = make_instance(with_images=False)
    instance.defaults = (
        f'image = "rootfs:{next(images.glob("[!.]*/root"))}"\npackages = []\nsetup = "date +%s%N >/etc/made"'
    )
    instance.declare("vm", pet='persist = "all"\ndisk = "1GiB"')
    instance.hutch("up", timeout=600)
    instance.inside("pet", "touch", "/etc/own", root=True)
    (kernel,) = (instance.state / "images" / "kernels").iterdir()
    # As if it had been fetched when its distribution had an older one.
    before = instance.status("pet")
    (machine,) = (instance.state / "images" / before["image_id"]).glob("machine-*")
    for listed in (kernel / "kernel.json", machine / "kernel.json"):
        older = {**json.loads(listed.read_text()), "packages": ["linux-image-cloud-amd64_0_amd64.deb"]}
        listed.write_text(json.dumps(older))
    image, packed = before["image_id"], digest_of(instance, before["image_id"])
    assert told_of_kernel(instance) == []

    told = instance.hutch("image", "refresh", "pet", timeout=600).stdout.splitlines()
    release = instance.inside("pet", "uname", "-r").stdout.strip()
    assert told == [
        f"{image}.2 replaces {image}",
        "pet keeps its root, and so its image; update it from inside",
        f"pet boots Linux {release} at the next start",
    ]
    assert digest_of(instance, image) == packed  # made anew, and it is the same kernel in fact
    found = instance.status("pet")
    assert (found["pid"], found["image_id"], found["pending"]) == (before["pid"], image, "none")
    (warning,) = told_of_kernel(instance)
    assert warning.startswith("kernel: a newer one is there since ") and warning.endswith("; a restart boots it")

    instance.hutch("restart", "pet")
    assert told_of_kernel(instance) == []
    assert instance.inside("pet", "uname", "-r").stdout.strip() == release
    instance.inside("pet", "test", "-e", "/etc/own")
    assert instance.plan()["pet"]["action"] == "no change"


@pytest.mark.slow  # asks a mirror
def test_updates_of_a_kernel_are_asked_for(cached: Instance) -> None:
    cached.declare("vm", one="")
    cached.hutch("up", "--no-start", timeout=900)
    image = cached.status("one")["image_id"]
    # The cache that all tests share has those of older versions of hutch, too.
    listed = machine_directory(Layout(cached.state, cached.run), image) / "kernel.json"
    record = json.loads(listed.read_text())
    packages = [f"{name.partition('_')[0]}_0_amd64.deb" for name in record["packages"]]
    listed.write_text(json.dumps({**record, "packages": packages}))
    Path(cached.state / "ages.json").unlink(missing_ok=True)
    cached.hutch("image", "build")
    assert cached.status("one")["updates"] > 0
    (entry,) = [each for each in json.loads(cached.hutch("image", "ls", "--json").stdout) if each["id"] == image]
    assert "linux-image-cloud-amd64" in entry["updates"]
