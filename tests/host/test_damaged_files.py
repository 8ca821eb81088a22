"""Damaged state files, as the command line meets them: refused in words or rebuilt, never read as "nothing there"."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.conftest import MakeInstance
from tests.host.faults import check_idle, check_reconciled, fill_home, home_digest, layout_of, shape
from tests.host.instance import Completed, Instance
from tests.host.opening import open_instance
from tests.support.world import World

FILES = {
    "record": "{state}/workspaces/web/workspace.json",
    "record-copy": "{state}/workspaces/web/workspace.json.copy",
    "network": "{state}/network.json",
    "network-copy": "{state}/network.json.copy",
    "journal": "{state}/journal.json",
    "known-hosts": "{state}/known_hosts",
    "accelerator": "{state}/accelerator.json",
    "shares": "{run}/shares.json",
    "status": "{run}/workspaces/web/status.json",
    "launch": "{run}/workspaces/web/launch.json",
    "resolver": "{run}/services/host.pid",
}
OFTEN = ("record", "network", "status", "launch")
SPOIL = ("empty", "torn", "flipped", "zeros")


@pytest.fixture(scope="module")
def running(world: World, images: Path, workspace_type: str) -> Iterator[tuple[Instance, list[str], str]]:
    """A hutch with `web` running, what it looks like, and what is in the home."""
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web='publish = ["18090:80"]')
        instance.up()
        fill_home(instance, "web")
        yield instance, shape(instance), home_digest(instance, "web")


def spoil(content: bytes, how: str, chance: random.Random) -> bytes:
    data = bytearray(content)
    if how == "flipped":
        for _ in range(3):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return {"empty": b"", "torn": bytes(data[: len(data) // 2]), "zeros": bytes(len(data))}.get(how, bytes(data))


@pytest.mark.parametrize(
    "file", [file if file in OFTEN else pytest.param(file, marks=pytest.mark.slow) for file in FILES]
)
def test_a_damaged_file(running: tuple[Instance, list[str], str], file: str, request: pytest.FixtureRequest) -> None:
    """Reading commands name the file or show the workspace; `up` leads back to what was, with the same identity."""
    instance, wanted, home = running
    path = Path(FILES[file].format(state=instance.state, run=instance.run))
    chance = random.Random(file)
    every_one = request.config.getoption("--long")
    identity = who(instance)
    for how in SPOIL if every_one else (SPOIL[list(FILES).index(file) % len(SPOIL)],):
        content = path.read_bytes() if path.exists() else b'{"schema": 1, "crc32": 5, "body":\n{}\n}\n'
        path.write_bytes(spoil(content, how, chance))
        check_told(instance.hutch("ls", "--json", check=False), path)
        check_told(instance.hutch("status", "web", "--json", check=False), path)
        instance.up()
        check_tidy(instance)
        assert home_digest(instance, "web") == home
        assert who(instance) == identity, how
        check_reconciled(instance, wanted, "web")
        check_idle(instance)


def check_tidy(instance: Instance) -> None:
    """The damaged record that was kept goes, so that the rest can be compared."""
    for directory in (instance.state, layout_of(instance).workspace("web")):
        for aside in directory.glob("*.json.damaged*"):
            aside.unlink()


def check_told(result: Completed, path: Path) -> None:
    """Either the workspace is there, or the file is named and what to do."""
    if result.returncode == 0:
        assert {entry["state"] for entry in json.loads(result.stdout)} <= {"running", "failed"}, result.stdout
        assert "web" in result.stdout
    else:
        assert result.returncode == 1
        assert str(path) in result.stderr, result.stderr
        assert "→" in result.stderr


def who(instance: Instance) -> tuple[object, ...]:
    """What of a workspace is its own and is not to change."""
    record = json.loads(layout_of(instance).record("web").read_text())["body"]
    key = layout_of(instance).host_key("web").with_suffix(".pub").read_text()
    return record["wanted"]["ip"], record["uid_base"], record["machine_id"], key, record["wanted"]["home"]


def test_a_record_that_is_gone(running: tuple[Instance, list[str], str]) -> None:
    instance, wanted, _ = running
    identity = who(instance)
    for path in (layout_of(instance).record("web"), layout_of(instance).network_record):
        path.unlink()
        check_told(instance.hutch("ls", "--json", check=False), path)
        assert "it is gone; it was rebuilt from its copy" in instance.up().stderr
        assert who(instance) == identity
        check_reconciled(instance, wanted, "web")


@pytest.mark.parametrize("file", ["status", "launch", "shares", "resolver", "known-hosts", "accelerator"])
def test_a_file_that_is_gone(running: tuple[Instance, list[str], str], file: str) -> None:
    instance, wanted, home = running
    Path(FILES[file].format(state=instance.state, run=instance.run)).unlink(missing_ok=True)
    instance.hutch("restart", "web") if file == "launch" else instance.up()
    assert home_digest(instance, "web") == home
    check_reconciled(instance, wanted, "web")
    check_idle(instance)


@pytest.mark.parametrize("which", ["record", "network"])
def test_the_advice_where_a_record_and_its_copy_are_damaged(world: World, images: Path, which: str) -> None:
    """Nothing changes until somebody follows it; then all is as it was but for what only the record knew."""
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwards = forwarding.read_text()  # another hutch of this file may run
    with open_instance(world, images) as instance:
        instance.declare("container", twice="")
        instance.up()
        fill_home(instance, "twice")
        before, home, layout = instance.status("twice"), home_digest(instance, "twice"), layout_of(instance)
        path = layout.record("twice") if which == "record" else layout.network_record
        key = layout.host_key("twice").read_bytes()
        for each in (path, path.with_name(f"{path.name}.copy")):
            each.write_bytes(b"{")
        commands = [["up"], ["rm", "--force", "twice"], ["rm", "--purge", "--force", "twice"]]
        said = ""
        for command in [["ls"], ["stop", "twice"], *commands] if which == "record" else commands:
            result = instance.hutch(*command, check=False)
            said = result.stderr
            assert result.returncode == 1, command
            assert str(path) in said
        advice = next(line for line in said.splitlines() if "→" in line).partition("again: ")[2]
        assert advice.startswith("mv ")
        subprocess.run(advice, shell=True, check=True, timeout=10)
        instance.up()
        assert instance.ssh("twice", "cat ~/precious/file").stdout == "precious\n"
        after = instance.status("twice")
        assert (after["ip"], after["home"], after["state"]) == (before["ip"], before["home"], "running")
        if which == "network":
            assert after["pid"] == before["pid"]  # it runs on
        assert layout.host_key("twice").read_bytes() == key
        assert home_digest(instance, "twice") == home
        check_idle(instance)
        if which == "network":  # what the host had before stood there, and nowhere else
            instance.remove_all()
            forwarding.write_text(forwards)


def test_the_record_of_an_image_is_written_anew(make_instance: MakeInstance, images: Path) -> None:
    """On a layer over the common images, so that theirs is not touched."""
    instance = make_instance(with_images=False)
    over = instance.state / "over"
    for name in ("upper", "work"):
        (over / name).mkdir(parents=True)
    (instance.state / "images").mkdir(mode=0o700)
    layers = f"lowerdir={images},upperdir={over}/upper,workdir={over}/work"
    mount = ["mount", "-t", "overlay", "overlay", "-o", layers, str(instance.state / "images")]
    subprocess.run(mount, check=True, timeout=10)
    try:
        instance.declare("container", web="")
        instance.hutch("up", "--no-start")
        id = instance.status("web")["image_id"]
        record = instance.state / "images" / id / "image.json"
        content = record.read_bytes()
        for damage in (b"", content[:-20]):
            record.write_bytes(damage)
            assert "damaged" in instance.hutch("image", "ls").stdout
            instance.hutch("up", "--no-start", timeout=300)
            found = json.loads(record.read_text())
            assert found["recipe"] == json.loads(content)["recipe"]
        assert (instance.state / "images" / id / "root" / "etc" / "built-by-setup").exists()
        instance.remove_all()
    finally:
        subprocess.run(["umount", instance.state / "images"], check=True, timeout=10)
        shutil.rmtree(over)


# The disk.


def test_a_disk_that_is_full(make_instance: MakeInstance, images: Path) -> None:
    """A real one. It is told in words what could not be written, and once there is room `up` goes on from there."""
    instance = make_instance(with_images=False)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", str(instance.state)]
    subprocess.run(mount, check=True, timeout=10)
    (instance.state / "images").mkdir(mode=0o700)
    subprocess.run(["mount", "--bind", images, instance.state / "images"], check=True, timeout=10)
    instance.declare("container", full="")
    instance.up()
    fill_home(instance, "full")
    home, record = home_digest(instance, "full"), layout_of(instance).record("full").read_bytes()
    instance.declare("container", full='shell = "/bin/sh"\n')
    filler = instance.state / "filler"
    for command in (["up"], ["rm", "--force", "full"]):
        with pytest.raises(OSError, match="No space"):  # each command may make some room
            filler.write_bytes(bytes(4 << 20))
        result = instance.hutch(*command, check=False)
        assert result.returncode == 1
        assert "No space left on device" in result.stderr
        assert str(instance.state) in result.stderr
        assert instance.status("full")["state"] == "running", f"{command}: {result.stderr}"
    assert layout_of(instance).record("full").read_bytes() == record
    assert not list(instance.state.glob(".*"))
    filler.unlink()
    instance.up()
    instance.ssh("full")
    assert home_digest(instance, "full") == home
    check_idle(instance)
