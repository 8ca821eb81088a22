"""Old images are made anew, workspaces move to them, and their waiting updates are told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hutch.spec.programs import own_program
from tests.host.conftest import MakeInstance
from tests.host.instance import Instance

RESTLESS = 'setup = "date +%s%N >/etc/made"'
"""A setup script that gives another tree each time."""
CACHES = "apt-get install --yes --no-install-recommends hello; python3 -c 'import json, email, pydoc'"
NOWHERE = {"http_proxy": "http://127.0.0.1:9"}


def listed(instance: Instance) -> dict[str, dict[str, Any]]:
    """The images by id."""
    return {entry["id"]: entry for entry in json.loads(instance.hutch("image", "ls", "--json").stdout)}


def made(instance: Instance, name: str) -> str:
    """The time at which the setup script of a workspace's image ran."""
    return instance.inside(name, "cat", "/etc/made").stdout


@pytest.mark.slow
def test_workspaces_move_at_their_next_start(make_instance: MakeInstance, images: Path) -> None:
    instance = make_instance(with_images=False)
    instance.defaults = f'image = "rootfs:{next(images.glob("[!.]*/root"))}"\npackages = []\n{RESTLESS}'
    instance.declare("container", one="", pet='persist = "all"', two="")
    instance.up()
    first, before = instance.status("one")["image_id"], {name: made(instance, name) for name in ("one", "pet")}
    second = f"{first}.2"
    instance.inside("pet", "touch", "/etc/own", root=True)
    instance.hutch("stop", "two")

    assert instance.hutch("image", "refresh").stdout.splitlines() == [
        f"{second} replaces {first}",
        "one moves to it at the next start",
        "two moves to it at the next start",
        "pet keeps its root, and so its image; update it from inside",
    ]
    assert [instance.status(name)["image_id"] for name in ("one", "pet", "two")] == [second, first, second]
    assert (instance.status("one")["pending"], made(instance, "one")) == ("restart", before["one"])
    plan = instance.plan()
    assert {name: action["action"] for name, action in plan.items()} == {
        "one": "restart",
        "pet": "no change",
        "two": "start",
    }
    (reason,) = plan["one"]["reasons"]
    assert (reason["key"], reason["old"], reason["new"]) == ("image", first, second)
    instance.hutch("image", "prune")
    assert listed(instance).keys() == {first, second}

    instance.hutch("restart", "one")
    instance.hutch("up")
    assert made(instance, "one") == made(instance, "two") != before["one"]
    assert {action["action"] for action in instance.plan().values()} == {"no change"}

    third = f"{first}.3"
    found = json.loads(instance.hutch("image", "refresh", "--all", "--json").stdout)
    assert found == [
        {"id": third, "before": second, "moving": ["one", "two"], "staying": ["pet"], "booting": [], "kernel": ""}
    ]
    assert listed(instance).keys() == {first, second, third}
    instance.hutch("restart", "one", "two")
    instance.hutch("image", "prune")
    assert listed(instance).keys() == {first, third}
    instance.hutch("restart", "pet")
    assert made(instance, "pet") == before["pet"]
    instance.inside("pet", "test", "-e", "/etc/own")

    # As the timer has it done for those that ask for it.
    instance.declare("container", one='auto_refresh = "weekly"', pet='persist = "all"', two="")
    instance.up()
    assert refreshed(instance, "daily") == ""
    assert refreshed(instance, "weekly").splitlines()[:2] == [
        f"{first}.4 replaces {third}",
        "one moves to it at the next start",
    ]
    assert [instance.status(name)["image_id"] for name in ("one", "pet", "two")] == [f"{first}.4", first, f"{first}.4"]


def refreshed(instance: Instance, period: str) -> str:
    """What the program says that the service of a timer runs."""
    program = own_program("hutch.apply.boot", sys.executable, needs_others=True)
    argv = [*program, "refresh", period]
    result = subprocess.run(argv, env=instance.environment(), capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    return "".join(line for line in result.stderr.splitlines(keepends=True) if "security updates" not in line)


@pytest.mark.slow
def test_the_same_sources_give_the_same_image(make_instance: MakeInstance) -> None:
    """The trees are equal to the last bit, with all that scripts write. A mirror may have changed in between."""
    instance = make_instance(with_images=False)
    instance.defaults = f'packages = ["man-db", "python3"]\nsetup = """{CACHES}"""'
    instance.declare("container", one="")
    instance.hutch("up", "--no-start", timeout=600)
    (id,) = listed(instance)
    for _ in range(3):
        told = instance.hutch("image", "refresh", "one", timeout=600).stdout
        if told == f"{id} is up to date with its sources\n":
            break
        (before, after) = [entry for _, entry in sorted(listed(instance).items())]
        assert before["sources"] != after["sources"], told
        id = after["id"]
    else:
        pytest.skip("the mirror changes all the time")
    (image,) = [entry for entry in listed(instance).values() if entry["id"] == id]
    assert re.fullmatch("[0-9a-f]{64}", image["digest"])
    assert {name.rpartition("/")[2] for name in image["sources"]} == {"trixie", "trixie-security", "trixie-updates"}
    assert max(image["sources"].values()) < image["created"]
    # An update came with it, if there was one.
    assert (image["updates"], image["updates_asked"] >= image["created"]) == ([], True)


@pytest.mark.slow  # asks a mirror
def test_updates_that_wait_are_told(cached: Instance) -> None:
    """Every package of the image is given the oldest version there is."""
    cached.declare("container", one='owner = "alice"')
    cached.hutch("up", "--no-start")
    image, today = cached.status("one")["image_id"], datetime.now(UTC).date().isoformat()
    packages = cached.state / "images" / image / "root/var/lib/dpkg/status"
    packages.write_text(re.sub(r"^Version: .*", "Version: 0", packages.read_text(), flags=re.MULTILINE))
    known = cached.state / "ages.json"
    known.unlink(missing_ok=True)
    assert cached.status("one")["updates"] is None  # nothing is asked in order to list
    cached.hutch("image", "build")
    found = cached.status("one")
    count = found["updates"]
    assert count > 0 and found["updates_asked"].startswith(today)
    words = f"{count} security update{'s' * (count > 1)} waiting (asked {today})"
    assert found["warnings"] == [f"image: {words}; `hutch image refresh` makes it anew"]
    for account in ("root", "alice"):
        assert f"debian:trixie ({count} security update" in cached.hutch("ls", as_user=account).stdout
        assert json.loads(cached.hutch("status", "one", "--json", as_user=account).stdout) == [found]
        assert "image of one" in cached.hutch("doctor", check=False, as_user=account).stdout
    assert words in cached.hutch("image", "ls").stdout
    assert len(listed(cached)[image]["updates"]) == count

    asked = known.read_bytes()
    cached.hutch("image", "build", env=NOWHERE)  # nobody is asked a second time that day
    assert known.read_bytes() == asked
    known.unlink()
    told = cached.hutch("image", "build", env=NOWHERE)
    assert told.stderr.startswith("hutch: warning: debian:trixie: nothing is known of its security updates: ")
    assert cached.status("one")["updates"] is None


def test_what_cannot_be_made_anew_is_said(instance: Instance) -> None:
    assert instance.hutch("image", "refresh", "--all").stderr == (
        "hutch: there is no workspace whose image could be made anew\n"
    )
    unknown = instance.hutch("image", "refresh", "web", check=False)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "there is no workspace web" in unknown.stderr
    assert instance.hutch("image", "refresh", "--all", "web", check=False).returncode == 2
