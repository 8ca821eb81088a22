"""explain: what is shown is what is run."""

from __future__ import annotations

import shlex

from hutch.apply.explaining import describe, explain_names, explain_start, fed, guards
from hutch.backends.launch import File, Launch, Limits, Step
from hutch.host.network import router
from hutch.spec.model import Mount
from hutch.spec.names import Places
from hutch.state import Record
from tests.unit.facts import NETWORK, PLACES, workspace

LAUNCH = Launch(
    workspace="web",
    backend="nspawn",
    network_namespace="/run/netns/hutch",
    cgroup="hutch/web",
    directories=("/run/a b",),
    files=(File("/run/f", "one\ntwo\n"),),
    prepare=((Step(("mount", "a b"), "why"),),),
    connect=((Step(("ip", "link"), "join"),),),
    argv=("systemd-nspawn", "--boot"),
    cleanup=(Step(("ip", "link", "delete"), "leave"),),
    limits=Limits(cpus=2, memory=1 << 30, tasks=10),
    runtime="/run",
)


def record(places: Places = PLACES) -> Record:
    declared = workspace(home="/srv/my home", mounts=(Mount("/a", "/a"), Mount("/b", "/b", readonly=True)))
    return Record("web", "/f", declared, "image-1", 0, "0" * 32)


def test_a_launch() -> None:
    texts = {section.title: section.text for section in explain_start(LAUNCH)}
    assert texts["files, root's only, before each start"] == "/run/f\n    one\n    two"
    assert texts["limits, in the cgroup hutch/web"].splitlines()[:3] == [
        "echo 100 >cpu.weight",
        "echo 200000 100000 >cpu.max",
        "echo 1073741824 >memory.max",
    ]
    start = texts["start: in namespaces of its own"].splitlines()
    assert start[1:] == ["mkdir -p '/run/a b'", "mount 'a b'  # why", "ip link  # join"]
    assert texts["then, in the cgroup hutch/web/machine"] == "systemd-nspawn --boot"
    assert texts["after it ended"] == "ip link delete  # leave"


def test_guards_are_for_what_can_be_written() -> None:
    lines = [shlex.split(line) for line in guards(record()).splitlines()]
    assert [line[-3:] for line in lines] == [[path, "=", "nosuid,nodev"] for path in ("/srv/my home", "/a")]


def test_a_batch_is_a_here_document() -> None:
    text = fed(["ip", "-batch", "-"], router.render_bridge(NETWORK))
    assert text.startswith(f"ip -batch - <<'END'\nlink add {NETWORK.bridge} address 02:")
    assert text.endswith("\nEND")
    assert "link add" not in router.render_bridge(NETWORK, is_there=True)


def test_names_without_secrets() -> None:
    (section,) = explain_names(PLACES, record())
    assert f"{record().wanted.ip} workspace-web" in section.text
    assert "PRIVATE" not in section.text


def test_which_start_it_is_about() -> None:
    assert describe(PLACES, record()).endswith("it does not run; what follows is its next start")
