"""The ways into a workspace on a cluster: bulk, exit codes, terminals and signals, all through the server's proxy."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.incus.conftest import Elsewhere, open_elsewhere
from tests.host.ports import ask, fetch, forwarding, listening, served
from tests.support.incus_cluster import Cluster
from tests.support.world import World

BULK = 512 << 20


@pytest.fixture(scope="module")
def box(world: World, images: Path, cluster: Cluster) -> Iterator[Elsewhere]:
    with open_elsewhere(world, images, cluster, "ways") as instance:
        instance.declare(box="")
        instance.up()
        yield instance


@pytest.mark.slow
def test_half_a_gibibyte_arrives_intact(box: Elsewhere) -> None:
    there, back = box.directory / "bulk", box.directory / "bulk-back"
    block = os.urandom(1 << 20)
    with there.open("wb") as file:
        for number in range(BULK >> 20):
            file.write(number.to_bytes(4) + block[4:])
    box.hutch("cp", str(there), "box:bulk", timeout=300)
    with there.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert box.ssh("box", "sha256sum bulk").stdout.split()[0] == digest
    box.hutch("cp", "box:bulk", str(back), timeout=300)
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    for path in (there, back):
        path.unlink()


def test_exit_codes(box: Elsewhere) -> None:
    codes = range(0, 100, 9)
    assert [box.inside("box", "sh", "-c", f"exit {code}", check=False).returncode for code in codes] == list(codes)


@pytest.mark.slow
def test_a_hundred_commands_side_by_side_keep_their_codes(box: Elsewhere) -> None:
    def spawn(code: int) -> subprocess.Popen[bytes]:
        return box.spawn("exec", "box", "--", "sh", "-c", f"cat >/dev/null; exit {code}")

    for first in range(0, 100, 10):
        running = {code: spawn(code) for code in range(first, first + 10)}
        assert {code: process.wait(120) for code, process in running.items()} == {code: code for code in running}


def test_a_command_has_a_terminal_of_its_own(box: Elsewhere) -> None:
    outer, inner = pty.openpty()
    process = box.spawn("exec", "box", "--", "sh", "-c", "tty && stty size", stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    said = b""
    with os.fdopen(outer, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(1024):
                said += piece
        except OSError:  # the other end is closed
            pass
    assert process.wait(30) == 0
    assert said.startswith(b"/dev/pts/"), said


def test_a_signal_reaches_the_command(box: Elsewhere) -> None:
    process = box.spawn("exec", "box", "--", "sh", "-c", "echo ready; exec sleep 4321", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT
    process.stdout.close()
    deadline = time.monotonic() + 15
    while box.inside("box", "pgrep", "-f", "[s]leep 4321", check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ports_go_both_ways(box: Elsewhere) -> None:
    with served() as port, listening(box, 3000, name="box"):
        (found,) = (item for item in json.loads(box.hutch("ports", "box", "--json").stdout) if item["port"] == 3000)
        assert found == {"address": "127.0.0.1", "port": 3000, "program": "python3"}
        with forwarding(box, "auto", "--reverse", str(port), name="box") as forward:
            forward.says(rf"host\.internal:{port} -> 127\.0\.0\.1:{port}")
            forward.says(r"127\.0\.0\.1:3000 -> box:3000")
            assert (fetch(3000), ask(box, port, name="box")) == ("inside", "outside")
            assert forward.end() == (0, "nothing of box is forwarded any more")
