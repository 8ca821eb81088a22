"""Hosts with many workspaces on an Incus cluster, for the tests of what grows with them.

The cluster answers in text, through the client's own reading of answers, and counts what is asked. What it answers is
made beforehand, so a time that is taken here is hutch's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hutch.backends.incus import ID, home_volume
from hutch.engines.incus import IncusEngine
from hutch.engines.incus.client import Client
from hutch.engines.incus.network import acl_name, network_name, render_acl, render_network
from hutch.engines.incus.preparing import Pools, render_instance
from hutch.engines.incus.server import NEEDED, render_project
from hutch.plan.actions import Plan
from hutch.plan.decide import Facts, Ownership, decide, noted
from hutch.run import CommandFailed, Completed
from hutch.spec.model import Config, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Place, Record
from tests.unit.facts import KEY, NETWORK

IMAGE = "debian-trixie-0123456789ab"
FINGERPRINT = "0123456789abcdef" * 4
FILE = "/srv/farm/hutch.toml"
OWNER = "0123456789abcdef0123456789abcdef"
PLACE = Place("farm", "hutch", "auto", "10.83.0.0/16", 1000, "/home/alice/.config/incus")
PUBLIC = f"{KEY} hutch@host"


def name_of(number: int) -> str:
    return f"work-{number:05}"


def declared(number: int, **keys: Any) -> dict[str, WorkspaceSpec]:
    """So many workspaces as a file declares them: without what follows."""
    spec = WorkspaceSpec(type="container", engine="incus", authorized_keys=(f"{KEY} alice@host",), **keys)
    return {name_of(each): spec for each in range(number)}


class Farm:
    """A host that has `records`, and the cluster that runs them. `asked` are the client's questions and changes."""

    def __init__(self, workspaces: int, members: int, directory: Path) -> None:
        self.layout = Layout(directory / "state", directory / "run")
        self.layout.key(0).parent.mkdir(parents=True)
        self.layout.key(0).with_name("id_ed25519.pub").write_text(f"{PUBLIC}\n")
        self.members = [f"m{number:03}" for number in range(members)]
        self.config = Config(FILE, NETWORK, declared(workspaces))
        self.records: dict[str, Record] = {}
        self.asked: list[str] = []
        self.answers: dict[str, bytes] = {}
        self.engine = IncusEngine(self.layout, lambda place: Client(place, exchange=self.exchange))
        self.answer()

    def plan(self) -> Plan:
        """A plan as `hutch plan` has it made, without what it looks for on this host."""
        facts = self.facts()
        plan = decide(self.layout, self.config, (), facts, Ownership(), start=True, prune=False)
        self.engine.check(plan.wanted, facts.records)
        return plan

    def facts(self) -> Facts:
        seen = self.engine.observe(self.records)
        broken = self.engine.broken(self.records)
        return Facts(
            records=self.records,
            applied=None,
            network=NETWORK,
            owner=1000,
            origin=(1, 2),
            observe=lambda name: seen[name],
            sessions_of=lambda name: (),
            keys_of=lambda name, owner: (),
            image_of=lambda name, workspace: IMAGE,
            real=str,
            exists=lambda path: True,
            broken=broken,
            place=PLACE,
        )

    def bring_up(self) -> None:
        """Have the records, the host keys and the instances that `hutch up` would leave, with members in turn."""
        for number, action in enumerate(self.plan().actions):
            assert action.wanted is not None
            new = Record(action.workspace, FILE, action.wanted.workspace, IMAGE, 0, f"{number:032x}")
            record = noted(new, action, action.wanted, FILE, (1, 2)).with_booted()
            self.records[action.workspace] = record
            self.layout.host_key(record.name).parent.mkdir(parents=True)
            self.layout.host_key(record.name).write_text("private\n")
        self.answer()

    def answer(self) -> None:
        """Make the answers of the cluster as it is now."""
        question = "?project=hutch"
        told = {
            "/1.0": {
                "auth": "trusted",
                "api_extensions": [*NEEDED],
                "environment": {
                    "server": "incus",
                    "server_name": self.members[0],
                    "server_version": "6.0.4",
                    "server_clustered": True,
                    "architectures": ["x86_64"],
                },
            },
            "/1.0/cluster/members?recursion=1": [
                {"server_name": name, "status": "Online", "architecture": "x86_64", "url": f"https://10.0.{n}.1:8443"}
                for n, name in enumerate(self.members)
            ],
            "/1.0/projects/hutch": {**render_project(PLACE, OWNER, "word"), "used_by": []},
            f"/1.0/networks/{network_name(PLACE)}": {
                **render_network(PLACE, OWNER),
                "managed": True,
                "status": "Created",
            },
            f"/1.0/network-acls/{acl_name(PLACE)}": render_acl(PLACE, (), OWNER),
            "/1.0/storage-pools": ["/1.0/storage-pools/default"],
            f"/1.0/storage-pools/default/volumes/custom?recursion=1&{question[1:]}": [
                {"name": home_volume(name), "location": "m1", "config": {ID: record.machine_id}}
                for name, record in self.records.items()
            ],
            f"/1.0/instances?recursion=1&{question[1:]}": [
                self.instance(number, record) for number, record in enumerate(self.records.values())
            ],
        }
        self.answers = {path: _answer(metadata) for path, metadata in told.items()}

    def instance(self, number: int, record: Record) -> dict[str, Any]:
        """A workspace's instance, with what a server adds to it."""
        made = render_instance(self.layout, record, record.wanted, record.image, Pools("default", "default"))
        config = {
            **made.config,
            "image.description": f"debian:trixie for hutch's workspaces ({IMAGE})",
            "volatile.base_image": FINGERPRINT,
            "volatile.last_state.idmap": '[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":65536}]',
            "volatile.uuid": f"{number:032x}",
        }
        return {
            "name": record.name,
            "status": "Running",
            "status_code": 103,
            "location": self.members[number % len(self.members)],
            "config": config,
            "devices": made.devices,
            "expanded_config": config,
            "expanded_devices": made.devices,
            "profiles": [],
            "architecture": "x86_64",
            "last_used_at": "2026-11-28T12:00:00Z",
            "description": f"hutch's workspace {record.name}",
        }

    def exchange(
        self, commands: Sequence[Sequence[str]], *, stdin: Sequence[bytes] = (), timeout: float = 30.0, most: int = 0
    ) -> list[Completed | CommandFailed]:
        ends: list[Completed | CommandFailed] = []
        for argv in commands:
            path = argv[-1].partition(":")[2]
            self.asked.append(path)
            ends.append(Completed(0, self.answers.get(path) or NOT_FOUND, b""))
        return ends


def _answer(metadata: object) -> bytes:
    return json.dumps({"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata}).encode()


NOT_FOUND = json.dumps({"type": "error", "error": "not found", "error_code": 404}).encode()
