"""The image cache: listed, pruned and removed without harm to workspaces; builds that are stopped leave nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hutch.host.services import cgroup
from hutch.host.storage.mountinfo import observe_mountinfo
from hutch.images import build
from tests.host.conftest import MakeInstance
from tests.host.instance import Instance


def listed(instance: Instance) -> list[dict[str, Any]]:
    found = json.loads(instance.hutch("image", "ls", "--json").stdout)
    assert isinstance(found, list)
    return found


def test_an_image_in_use_stays(cached: Instance) -> None:
    cached.declare("container", one="")
    cached.hutch("up", "--no-start")
    used = cached.status("one")["image_id"]
    assert used in json.dumps(listed(cached))
    cached.hutch("image", "prune")
    assert used in json.dumps(listed(cached))
    refused = cached.hutch("image", "rm", used, check=False)
    assert refused.returncode == 1
    assert "one" in refused.stderr
    cached.hutch("rm", "--purge", "one")
    cached.hutch("image", "rm", used)
    assert used not in json.dumps(listed(cached))


def test_prune_removes_what_nobody_uses(cached: Instance) -> None:
    assert listed(cached)
    cached.hutch("image", "prune")
    assert listed(cached) == []


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_image_can_be_removed(cached: Instance, text: str) -> None:
    cached.declare("container", one="")
    image = cached.hutch("image", "build").stdout.strip()
    (cached.state / "images" / image / "image.json").write_text(text)
    assert "damaged" in cached.hutch("image", "ls").stdout
    cached.hutch("image", "rm", image)
    assert image not in [entry["id"] for entry in listed(cached)]


def test_the_record_of_an_image_is_written_anew_while_its_tree_is_there(cached: Instance) -> None:
    cached.declare("container", one="")
    image = cached.hutch("image", "build").stdout.strip()
    (before,) = [entry for entry in listed(cached) if entry["id"] == image]
    tree = (cached.state / "images" / image / "root").stat().st_ino
    (cached.state / "images" / image / "image.json").write_text("{")
    cached.hutch("image", "build")
    (after,) = [entry for entry in listed(cached) if entry["id"] == image]
    # In this layer, du does not count what lies below; and the sources were in the record alone. An image of another
    # day may have been built when nobody noted digests.
    assert before["digest"] in ("", after["digest"]) and len(after["digest"]) == 64
    again = {key: before[key] for key in ("created", "size", "sources", "digest", "updates_asked")}
    assert {**after, **again} == before
    assert (cached.state / "images" / image / "root").stat().st_ino == tree


def test_an_unknown_image_is_an_error(cached: Instance) -> None:
    result = cached.hutch("image", "rm", "no-such-image", check=False)
    assert result.returncode in (1, 2)
    assert "no-such-image" in result.stderr


def test_a_second_build_does_nothing(shared: Instance) -> None:
    shared.declare("container", one="")

    def images() -> list[tuple[str, int]]:
        """Without scratch directories: the tests of other files, which have the same images, may build just then."""
        found = (path for path in (shared.state / "images").glob("[!.]*") if path.is_dir())
        return sorted((path.name, path.stat().st_ino) for path in found)

    before = images()
    shared.hutch("image", "build")
    assert images() == before


def test_a_build_that_is_interrupted_leaves_nothing(make_instance: MakeInstance, images: Path) -> None:
    instance = make_instance(with_images=False)
    tree = next(images.glob("[!.]*/root"))
    instance.defaults = f'image = "rootfs:{tree}"\npackages = []'
    instance.declare("container", one='setup = "sleep infinity"')
    build = instance.spawn("image", "build", "-v", stderr=subprocess.PIPE, text=True)
    assert build.stderr is not None
    with build.stderr:
        images = instance.state / "images"
        while build.poll() is None and not (images.is_dir() and any(images.iterdir())):
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        said = build.stderr.read()
        assert build.wait(30) != 0
    assert "Traceback" not in said
    assert listed(instance) == []
    left = [path for path in images.rglob("*") if path.is_dir() and path.name in ("usr", "var")]
    assert left == []


@pytest.mark.slow
def test_two_first_builds_share_the_network(make_instance: MakeInstance, images: Path) -> None:
    """Each needs the network, which is there for neither before; the one that is done leaves it to the other."""
    instance = make_instance(with_images=False)
    tree = next(images.glob("[!.]*/root"))
    fetch = "for n in 1 2 3 4; do curl --fail --silent --max-time 10 http://public.example/ >/dev/null; sleep 0.3; done"
    tables = [
        f'[workspaces.{name}]\ntype = "container"\nimage = "rootfs:{tree}"\nsetup = "set -eu; : {name}; {fetch}"\n'
        for name in ("one", "two")
    ]
    instance.defaults = ""
    instance.write("".join(tables))
    builds = [instance.spawn("image", "build", name, stderr=subprocess.PIPE, text=True) for name in ("one", "two")]
    told = [build.communicate(timeout=300)[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], told
    assert len(listed(instance)) == 2


@pytest.mark.slow
def test_a_setup_script_installs_packages(make_instance: MakeInstance, images: Path) -> None:
    """Though neither a tree nor an image comes with apt's lists. What fails is told with who wanted it."""
    instance = make_instance(with_images=False)
    tree = next(images.glob("[!.]*/root"))
    instance.defaults = f'image = "rootfs:{tree}"\npackages = []'
    instance.declare("container", one='setup = "apt-get install --yes --no-install-recommends hello"')
    instance.hutch("image", "build")
    (built,) = (instance.state / "images").glob("*/root")
    assert (built / "usr/bin/hello").exists()
    assert list((built / "var/lib/apt/lists").iterdir()) == []
    instance.declare("container", one='setup = "exit 3"', two='setup = "exit 3"')
    refused = instance.hutch("image", "build", check=False)
    assert refused.returncode == 1
    assert "hutch: one, two: " in refused.stderr
    assert "its setup script failed with code 3" in refused.stderr


def test_a_tree_that_another_has_replaced_is_not_unpacked(tmp_path: Path) -> None:
    """Between the look at it and the mount, by who can write around it."""
    script = Path(build.__file__).with_name("container.sh")
    tree, looked_at, replaced, copy = (tmp_path / name for name in ("root", "looked-at", "replaced", "copy"))
    for directory in (tree, looked_at, replaced, copy):
        directory.mkdir()
    found = looked_at.stat()

    def contain(source: Path) -> subprocess.CompletedProcess[str]:
        words = [
            *("1000000", "", str(tree), str(source), f"{found.st_dev}:{found.st_ino}", str(copy)),
            "echo",
            "unpacked",
        ]
        command = ["unshare", "--mount", "--propagation", "private", "sh", str(script), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert contain(looked_at).stdout == "unpacked\n"
    refused = contain(replaced)
    assert (refused.returncode, refused.stdout) == (1, f"{replaced} is another directory by now\n")


def test_the_options_of_the_hosts_cgroups_are_told_or_read(tmp_path: Path) -> None:
    """A build is told them: where it runs, process 1 is not the host's. The mount here only says what it is given."""
    script = Path(cgroup.__file__).parents[1] / "storage" / "sys.sh"
    (tmp_path / "mount").write_text('#!/bin/sh\n[ "$2" != cgroup2 ] || echo "$4"\necho "$2" >>"$0.order"\n')
    (tmp_path / "mount").chmod(0o755)

    def given(*words: str) -> set[str]:
        command, path = ["sh", str(script), *words], f"{tmp_path}:{os.environ['PATH']}"
        result = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=30, check=True)
        return set(result.stdout.strip().split(",")) - {"nosuid", "nodev", "noexec", "rw"}

    assert given("rw,nsdelegate,memory_recursiveprot") == {"nsdelegate", "memory_recursiveprot"}
    assert given("rw,seclabel,nsdelegate") == {"nsdelegate"}
    (tmp_path / "mount.order").unlink()
    assert given() == set(cgroup.find_flags(observe_mountinfo()))
    assert (tmp_path / "mount.order").read_text().split() == ["tmpfs", "sysfs", "cgroup2"]


def test_a_tree_that_is_not_there_is_said(make_instance: MakeInstance) -> None:
    instance = make_instance(with_images=False)
    instance.defaults = 'image = "rootfs:/nonexistent"'
    instance.declare("container", one="")
    result = instance.hutch("image", "build", check=False)
    assert result.returncode in (1, 2)
    assert "/nonexistent" in result.stderr
    assert listed(instance) == []
