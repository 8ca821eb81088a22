"""explain: what is shown is what is run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from hutch.apply.explaining import describe, explain_launch, explain_names, fed, guards
from hutch.backends import launch_of
from hutch.host.network import router
from hutch.runtime.units import render_script, render_service, render_slice
from hutch.spec.model import Mount
from hutch.spec.names import Layout
from hutch.spec.record import Record
from tests.unit.facts import LAYOUT, NETWORK, surroundings, workspace

LAUNCH = launch_of("web", workspace(vcpus=2, memory=1 << 30, mounts=(Mount("/srv/a b", "/src"),)), surroundings())


def record(layout: Layout = LAYOUT) -> Record:
    declared = workspace(home="/srv/my home", mounts=(Mount("/a", "/a"), Mount("/b", "/b", readonly=True)))
    return Record("web", "/f", declared, "image-1", 0, "0" * 32)


def test_a_launch() -> None:
    """What is shown is the unit, the slice and the script, word for word as they are written."""
    texts = {section.title: section.text for section in explain_launch(LAYOUT, LAUNCH)}
    unit, limits, script = texts.values()
    assert list(texts) == [
        "unit hutch@web.service",
        "unit hutch-ws_web.slice",
        "script of the service: /var/lib/hutch/workspaces/web/unit/run",
    ]
    assert f"{unit}\n" == render_service(LAUNCH, LAYOUT)
    assert f"{limits}\n" == render_slice(LAUNCH)
    assert f"{script}\n" == render_script(LAUNCH, sys.executable, record="/var/log/hutch/inbox/web/service")
    assert {"CPUWeight=100", "CPUQuota=200%", "MemoryMax=1073741824"} <= set(limits.splitlines())
    assert "ExecStart=/bin/sh /var/lib/hutch/workspaces/web/unit/run start" in unit.splitlines()
    parts = dict(re.findall(r"^(\w+)\(\) \{\n(.*?)^\}$", script, re.DOTALL | re.MULTILINE))
    assert f"printf %s web >{LAUNCH.runtime}/credentials/system.hostname\n" in parts["files"]
    assert f"{LAUNCH.runtime}/root" in parts["files"].split()
    assert "step 'share /srv/a b' " in parts["prepare"] and " '/srv/a b' " in parts["prepare"]
    assert "step 'raise the port' ip link set ve-web up\n" in parts["join"]
    assert shlex.split(parts["launch"])[-len(LAUNCH.argv) :] == list(LAUNCH.argv)
    assert "attempt 'remove the port' ip link delete ve-web\n" in parts["cleanup"]


def test_guards_are_for_what_can_be_written() -> None:
    lines = [shlex.split(line) for line in guards(record()).splitlines()]
    assert [line[-3:] for line in lines] == [[path, "=", "nosuid,nodev"] for path in ("/srv/my home", "/a")]


def test_a_batch_is_a_here_document() -> None:
    text = fed(["ip", "-batch", "-"], router.render_bridge(NETWORK))
    assert text.startswith(f"ip -batch - <<'END'\nlink add {NETWORK.bridge} address 02:")
    assert text.endswith("\nEND")
    assert "link add" not in router.render_bridge(NETWORK, is_there=True)


def test_names_without_secrets() -> None:
    (section,) = explain_names(LAYOUT, record())
    assert f"{record().wanted.ip} workspace-web" in section.text
    assert "PRIVATE" not in section.text


def test_which_start_it_is_about(tmp_path: Path) -> None:
    assert describe(Layout(tmp_path / "state", tmp_path / "run"), record()).endswith(
        "it does not run; its next start is shown below"
    )
