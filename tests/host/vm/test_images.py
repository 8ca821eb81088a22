"""Each image that a machine can have, built and booted for real. The world's internet has the mirrors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import PUBLIC_NAME, World

pytestmark = pytest.mark.long

ARCHIVES = {
    "debian:bookworm": "http://deb.debian.org/debian/dists/bookworm/InRelease",
    "ubuntu:noble": "http://archive.ubuntu.com/ubuntu/dists/noble/InRelease",
}
RELEASES = {"debian:bookworm": "bookworm", "ubuntu:noble": "noble", "rootfs": "trixie"}
FACTS = ". /etc/os-release; echo $VERSION_CODENAME; hostname; ip -4 -o address show eth0; cat ~/file"


@pytest.mark.parametrize("image", RELEASES)
def test_a_machine_of_any_image(world: World, images: Path, image: str) -> None:
    if image in ARCHIVES and not is_reached(ARCHIVES[image]):
        pytest.skip(f"the archive of {image} cannot be reached")
    with open_instance(world, images) as instance:
        instance.declare("vm", light="")
        source = image if image in ARCHIVES else f"rootfs:{images / build(instance) / 'root'}"
        instance.defaults = f'image = "{source}"\npackages = []\n'
        instance.declare("vm", light="", kept='persist = "all"\ndisk = "1GiB"')
        build(instance)
        instance.up()
        for name in ("light", "kept"):
            assert_is_as_declared(instance, name, RELEASES[image])
        instance.hutch("down")
        assert [instance.status(name)["state"] for name in ("light", "kept")] == ["stopped"] * 2


def is_reached(url: str) -> bool:
    """Whether the world relays to an archive that this machine can reach."""
    command = ["curl", "--silent", "--head", "--fail", "--max-time", "20", url]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=30).returncode == 0


def build(instance: Instance) -> str:
    """The image's id, once all that machines boot from is made."""
    return instance.hutch("image", "build", timeout=1200).stdout.strip()


def assert_is_as_declared(instance: Instance, name: str, release: str) -> None:
    status = instance.status(name)
    assert (status["state"], status["type"]) == ("running", "vm")
    file = Path(status["home"], "file")
    instance.ssh(name, "echo from inside >~/file")
    with file.open("a") as opened:
        opened.write("from outside\n")
    codename, hostname, address, *content = instance.ssh(name, FACTS).stdout.splitlines()
    assert (codename, hostname) == (release, name)
    assert f" {status['ip']}/24 " in address
    assert content == ["from inside", "from outside"]
    assert instance.inside(name, "systemctl", "--failed", "--no-legend", root=True).stdout == ""
    assert instance.inside(name, "getent", "ahostsv4", PUBLIC_NAME).stdout
    assert instance.inside(name, "id", "-un").stdout == "dev\n"
