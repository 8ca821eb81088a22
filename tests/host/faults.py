"""What must hold after any fault: nothing is more open, homes are intact, the next `up` reaches the declared state, and
the one after that writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hutch.audit.reading import damages
from hutch.spec.names import Layout
from tests.host import golden
from tests.host.instance import Instance
from tests.host.processes import processes
from tests.support import faulty, machine
from tests.support.world import CGNAT, HOST, HOST_LAN, HOST_PORT, LAN, METADATA, PUBLIC

FAULTY = Path(faulty.__file__)
HITS = ".hits"
INSIDE = f"""
import socket, sys, time
open_ones, reached = [("{LAN}", 80), ("{METADATA}", 80), ("{CGNAT}", 80), ("{HOST}", {HOST_PORT}),
    ("{HOST_LAN}", {HOST_PORT}), (sys.argv[1], 22)], 0
while True:
    for target in open_ones + [("{PUBLIC}", 80)]:
        with socket.socket() as stream:
            stream.settimeout(0.2)
            if stream.connect_ex(target) == 0:
                with open(sys.argv[2], "a") as file:
                    file.write(target[0] + "\\n")
    time.sleep(0.05)
"""
OUTSIDE = """
import socket, sys, time
print("ready", flush=True)
while True:
    for target in sys.argv[1:]:
        with socket.socket() as stream:
            stream.settimeout(0.2)
            if stream.connect_ex((target, 22)) == 0:
                print(target, flush=True)
    time.sleep(0.05)
"""


@dataclass
class Strike:
    """A command that was struck: `is_struck` unless it came to its end before, `last` is the last effect it got to."""

    is_struck: bool
    last: str
    code: int
    stderr: str


def strike(instance: Instance, how: str, number: int, *arguments: str, timeout: float = 90.0) -> Strike:
    """Run the command line with one fault in it, for so many seconds at most."""
    report = instance.directory / "report"
    report.unlink(missing_ok=True)
    result = subprocess.run(
        [sys.executable, str(FAULTY), how, str(number), str(report), *arguments],
        cwd=instance.directory,
        env={**instance.environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    seen = report.read_text().splitlines() if report.exists() else []
    assert "Traceback" not in result.stderr, f"{seen[-1:]}\n{result.stderr}"
    is_struck = result.returncode == -signal.SIGKILL if how == "kill" else 0 < number <= len(seen)
    return Strike(is_struck, seen[number - 1] if is_struck else "", result.returncode, result.stderr)


def count(instance: Instance, *arguments: str, timeout: float = 90.0) -> list[str]:
    """Run a command, and tell its effects."""
    report = instance.directory / "report"
    report.unlink(missing_ok=True)
    assert strike(instance, "count", 0, *arguments, timeout=timeout).code == 0
    return report.read_text().splitlines()


# Nothing opens.


@dataclass
class Guard:
    """Probers that never stop: one in a workspace `lab`, which nothing here is to disturb, and one in the LAN."""

    instance: Instance
    outside: subprocess.Popen[str]
    hits: Path
    main: int  # the main process of `lab`
    rules: dict[str, list[str]] = field(default_factory=dict)

    def check(self) -> None:
        assert self.outside.poll() is None
        said = (self.instance.directory / "outside").read_text().split()[1:]
        assert not said, f"reached from the LAN: {set(said)}"
        found = set(self.hits.read_text().split()) if self.hits.exists() else set()
        assert found <= {PUBLIC}, f"reached from inside: {found}"
        assert json.loads(layout_of(self.instance).status("lab").read_text())["pid"] == self.main
        check_ports(self.instance)

    def check_control(self) -> None:
        """The prober did probe: it reaches what it may."""
        self.hits.unlink(missing_ok=True)
        deadline = time.monotonic() + 20
        while not self.hits.exists():
            assert time.monotonic() < deadline, "the prober in lab reaches nothing at all"
            time.sleep(0.1)


def layout_of(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


@contextmanager
def guarded(instance: Instance) -> Iterator[Guard]:
    """Both probers, at work. `web` and `lab` run."""
    web, lab = (instance.status(name) for name in ("web", "lab"))
    hits = Path(lab["home"]) / HITS
    script = ["systemd-run", "--quiet", "--unit=prober", "python3", "-c", INSIDE, web["ip"], f"/home/dev/{HITS}"]
    instance.inside("lab", *script, root=True)
    with (instance.directory / "outside").open("w") as output:
        command = ["ip", "netns", "exec", "lan", sys.executable, "-c", OUTSIDE, web["ip"], lab["ip"]]
        outside = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, text=True, cwd="/")
    try:
        guard = Guard(instance, outside, hits, json.loads(layout_of(instance).status("lab").read_text())["pid"])
        guard.check_control()
        yield guard
        guard.check()
        guard.check_control()
    finally:
        outside.kill()
        outside.wait(10)


def check_ports(instance: Instance) -> None:
    """No port of a workspace is up unless its binding and the filters that refer to it are there, and the host's end of
    the uplink is not up without the host's own barrier."""
    layout = layout_of(instance)
    host = _links([])
    uplink = host.get(layout.uplink_host)
    if uplink is not None and "UP" in uplink["flags"]:
        assert "fib daddr type" in _nft([], layout.table), "the uplink is up without the host's barrier"
    if not os.path.ismount(layout.namespace_path):
        return
    inside = ["ip", "netns", "exec", layout.namespace]
    up = [name for name, link in _links(inside).items() if "UP" in link["flags"] and name not in ("lo", "up0")]
    ports = [name for name in up if name.startswith(("ve-", "vm-"))]
    if not up:
        return
    rules = _nft(inside, layout.table)
    assert rules.count("policy drop") == 5, f"{up} are up without filters"
    for name in ports:
        assert f'"{name}" . ' in rules or f"{name} . " in rules, f"{name} is up without its binding"


def _links(inside: list[str]) -> dict[str, dict[str, list[str]]]:
    result = subprocess.run([*inside, "ip", "-j", "link"], capture_output=True, text=True, timeout=10)
    return {link["ifname"]: link for link in json.loads(result.stdout or "[]")}


def _nft(inside: list[str], table: str) -> str:
    result = subprocess.run([*inside, "nft", "list", "ruleset"], capture_output=True, text=True, timeout=10)
    return result.stdout if table in result.stdout else ""


# Homes.


def fill_home(instance: Instance, name: str) -> None:
    """Something of the user's and something of root's in a home."""
    make = "mkdir -p ~/precious && echo precious > ~/precious/file && chmod 600 ~/precious/file"
    instance.inside(name, "sh", "-c", make)
    instance.inside(name, "sh", "-c", "echo root > /home/dev/precious/of-root", root=True)


def home_digest(instance: Instance, name: str) -> str:
    """Content, owner and mode of everything in it that is precious."""
    top = layout_of(instance).home(name) / "precious"
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        state = path.lstat()
        digest.update(f"{path.relative_to(top)} {state.st_mode:o} {state.st_uid}:{state.st_gid}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


# The declared state, and that nothing is written in it.


def shape(instance: Instance) -> list[str]:
    """The host and the two directories, as a clean run leaves them."""
    return sorted([*golden.shape(instance), *listing(instance)])


def listing(instance: Instance) -> list[str]:
    """Names, owners and modes of what hutch keeps, and the content of what it alone writes; not of a Launch, in which a
    machine's start may take longer while the host is busy."""
    lines = []
    for path in _files(instance):
        state = path.lstat()
        is_steady = path.suffix == ".json" and path.name != "launch.json" and path.is_relative_to(instance.state)
        content = path.read_text(errors="replace") if is_steady else ""
        digest = hashlib.sha256(content.encode()).hexdigest()[:12] if content else ""
        lines.append(f"file: {path} {state.st_mode:o} {state.st_uid}:{state.st_gid} {digest}")
    return lines


def _files(instance: Instance) -> Iterator[Path]:
    others = {"home", "root", "images", "log"}  # what guests write, and the records, which tell of the faults
    passing = {"accelerator.json", "record.json", "recording"}
    for top in (instance.state, instance.run):
        for directory, folders, files in os.walk(top):
            folders[:] = sorted(set(folders) - others)
            yield from (Path(directory, name) for name in sorted((*folders, *files)) if name not in passing)


def check_reconciled(instance: Instance, wanted: list[str], *names: str) -> None:
    """Running, answering, and the host as a clean run would have left it."""
    for name in names:
        status = json.loads(layout_of(instance).status(name).read_text())
        assert status["state"] == "running", (name, status)
        record = json.loads(layout_of(instance).record(name).read_text())["body"]
        with socket.create_connection((record["wanted"]["ip"], 22), 5) as stream:
            assert stream.recv(4) == b"SSH-", name
        assert damages(layout_of(instance), name) == []
    deadline = time.monotonic() + 5
    while (now := shape(instance)) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    difference = machine.difference({"shape": tuple(wanted)}, {"shape": tuple(now)})
    assert not difference, difference


def check_idle(instance: Instance) -> None:
    """One more `up` says so, starts nothing that stays and writes no file."""
    files, running = _stamps(instance), _lasting()
    said = instance.up().stderr
    assert "nothing to do" in said, said
    left = machine.difference({"files": files}, {"files": _stamps(instance)})
    assert not left, left
    deadline = time.monotonic() + 5
    while (changed := machine.difference(running, _lasting())) and time.monotonic() < deadline:
        continue
    assert not changed, changed


def _stamps(instance: Instance) -> tuple[str, ...]:
    paths = [*_files(instance), Path("/etc/hosts"), layout_of(instance).ssh_config]
    stamps = []
    for path in paths:
        if path.name in ("machine.log", "console", "status.json"):  # of the service, which lives its own life
            continue
        state = path.lstat()
        stamps.append(f"{path} {state.st_ino} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_size}")
    return tuple(sorted(stamps))


def _lasting() -> machine.Snapshot:
    """Processes of the host's that are there twice, a moment apart: those of guests, and what looks something up for a
    service or a shell, come and go."""
    first = _running()
    time.sleep(0.3)  # there is no event for "nobody runs a short command"
    return {"processes": tuple(sorted(first & _running()))}


def _running() -> set[str]:
    own = os.stat("/proc/self/ns/user").st_ino
    found = set()
    for process in processes():
        try:
            if os.stat(f"/proc/{process.pid}/ns/user").st_ino == own:
                found.add(f"{process.pid} {' '.join(process.command)}")
        except OSError:  # it has ended
            continue
    return found
