"""The pages with outputs happen as they say: docs/up.md, egress.md, host.md, recovery.md and run.md."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest

from hutch.host.services.lock import find_holder
from tests.host.conftest import MakeInstance
from tests.host.egress import open_hutch
from tests.host.faults import count, layout_of, strike
from tests.host.instance import Instance
from tests.host.pages import Story, check_page
from tests.support.world import FAR, World

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("deb.example.org", "api.example.org", *(f"{letter}.cdn.example.net" for letter in "abc"))
ADDRESSES = dict(zip(NAMES, FAR[60:], strict=False))
NAMELESS = "203.0.113.240"  # an address of egress.md that no name leads to
LONG = 2.5  # seconds, for which others wait long enough to say so
Begin = Callable[[list[str]], None]


@pytest.fixture
def begin() -> Iterator[Callable[[Instance], Begin]]:
    """Starts commands that go on: an ssh session until its workspace stops; one of hutch for a while under its lock."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin_in(instance: Instance) -> Begin:
        def start(argv: list[str]) -> None:
            null = subprocess.DEVNULL
            if argv[0] == "hutch":
                begun.append(instance.spawn(*argv[1:]))
                hold(instance, begun[-1])
                return
            process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=instance.environment())
            begun.append(process)
            name = argv[1].removeprefix("workspace-")
            deadline = time.monotonic() + 20
            while instance.inside(name, "pgrep", "-u", "dev", "-x", argv[2], check=False).returncode:
                assert time.monotonic() < deadline and process.poll() is None

        return start

    yield begin_in
    for process in begun:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(timeout=10)


def hold(instance: Instance, process: subprocess.Popen[bytes]) -> None:
    """Stop a command while it holds the lock; it goes on after a while."""
    descriptor = os.open(layout_of(instance).lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + 20
        while (holder := find_holder(descriptor)) is None or holder.pid != process.pid:
            assert time.monotonic() < deadline and process.poll() is None
        process.send_signal(signal.SIGSTOP)
    finally:
        os.close(descriptor)
    timer = Timer(LONG, process.send_signal, (signal.SIGCONT,))
    timer.daemon = True
    timer.start()


def strike_half_way(instance: Instance, argv: list[str]) -> None:
    """Have a command killed right after it has noted what it is about to do. It is run once before, to find out when
    that is, so it must be one that may be repeated after a `stop`."""
    effects = count(instance, *argv[1:])
    noted = [n for n, effect in enumerate(effects, 1) if "os.rename" in effect and "journal.json" in effect]
    instance.hutch("stop", "web")
    assert strike(instance, "kill", noted[0] + 2, *argv[1:]).is_struck
    assert layout_of(instance).journal.exists()


def test_up(instance: Instance, begin: Callable[[Instance], Begin]) -> None:
    check_page(DOCS / "up.md", Story(instance, begin(instance)))


def test_egress(world: World, images: Path, begin: Callable[[Instance], Begin]) -> None:
    world.zone.put_all({name: {"a": [address]} for name, address in ADDRESSES.items()})
    services = [f"tcp:{address}:80:{name}" for name, address in {**ADDRESSES, "nobody": NAMELESS}.items()]
    with world.serving(*services), open_hutch(world, images) as instance:
        check_page(DOCS / "egress.md", Story(instance, begin(instance)))


def test_run(instance: Instance, begin: Callable[[Instance], Begin]) -> None:
    """By root alone, who enters without a plan too."""
    config = instance.world.accounts["root"].home / ".config"
    template = config / "hutch" / "run.toml"
    template.parent.mkdir(parents=True)
    template.write_text(f"{instance.defaults}\n")
    os.chown(instance.directory, 1000, 1000)
    try:
        check_page(DOCS / "run.md", Story(instance, begin(instance)))
    finally:
        shutil.rmtree(config)


@pytest.mark.slow
def test_host(instance: Instance, begin: Callable[[Instance], Begin]) -> None:
    """A host on which somebody turns forwarding off."""
    check_page(DOCS / "host.md", Story(instance, begin(instance)))


@pytest.mark.slow
def test_recovery(make_instance: MakeInstance, images: Path, begin: Callable[[Instance], Begin]) -> None:
    """On a disk that is soon full."""
    instance = make_instance(with_images=False)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", str(instance.state)]
    subprocess.run(mount, check=True, timeout=10)
    (instance.state / "images").mkdir(mode=0o700)
    subprocess.run(["mount", "--bind", images, instance.state / "images"], check=True, timeout=10)
    story = Story(instance, begin(instance), lambda argv: strike_half_way(instance, argv))
    check_page(DOCS / "recovery.md", story)
    (instance.state / "filler").unlink(missing_ok=True)  # of a story that broke off
