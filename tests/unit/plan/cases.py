"""Golden cases of the planner: a hutch.toml and facts in, a plan out. golden/plan/README.md says how to read them."""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hutch.apply.allowing import refuse_above
from hutch.apply.inspecting import Findings, with_findings
from hutch.apply.planning import decide_ownership
from hutch.plan.actions import Change, Plan, Repair
from hutch.plan.decide import Facts, decide
from hutch.plan.resolve import resolve
from hutch.spec import loading
from hutch.spec.allowance import Allowance
from hutch.spec.ceiling import read_ceiling
from hutch.spec.kit_files import Kits
from hutch.spec.member import Member
from hutch.spec.model import Config, Incus, Network, WorkspaceSpec
from hutch.spec.owner import place_of
from hutch.spec.record import Booted, Decision, Observation, Place, Record, is_local
from hutch.spec.values import Size
from tests.unit.facts import GOLDEN, KEY, LAYOUT

FOLDER = GOLDEN / "plan"
FILE = "/srv/project/hutch.toml"
ORIGIN = (11, 10)
"""The inode numbers of the file and of its directory."""
OWNER = 1000
UPLINK = "192.168.84.0/30"
SINCE = 1_700_000_000.0
KEYS = (f"{KEY} alice@host",)
IMAGE_KEYS = ("image", "packages", "setup")
KNOWN = frozenset(
    ("state", "applied", "booted", "image", "booted_image", "started_with", "file", "origin", "removed")
) | {*("since", "sessions", "unsaved", "reason", "broken", "unbuilt", "lost", "place", "decisions")}
Table = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One folder of golden/plan."""

    name: str

    def text(self, file: str) -> str:
        path = FOLDER / self.name / file
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @cached_property
    def declared(self) -> Table:
        return tomllib.loads(self.text("hutch.toml"))

    @cached_property
    def said(self) -> Table:
        """What facts.toml says."""
        return tomllib.loads(self.text("facts.toml"))

    @cached_property
    def words(self) -> list[str]:
        """The command line, behind `hutch`."""
        words: list[str] = self.said.get("command", "plan").split()
        assert words[0] == "plan"
        return words[1:]

    def load(self, directory: Path) -> Config:
        """The file, read as any hutch.toml is; it lies in `directory` for that."""
        file = directory / "hutch.toml"
        file.write_text(self.text("hutch.toml"), encoding="utf-8")
        file.chmod(0o644)
        return replace(loading.load(str(file), layout=LAYOUT, allowance=self.allowance), file=FILE)

    @cached_property
    def allowance(self) -> Allowance | None:
        """alice's, where the folder has a policy.toml."""
        text = self.text("policy.toml")
        alice = Member(OWNER, OWNER, "alice", Path("/home/alice"))
        return Allowance(alice, read_ceiling(text), Network()) if text else None

    def plan(self, config: Config) -> Plan:
        """As `hutch plan` makes it."""
        options = {word for word in self.words if word.startswith("--")}
        assert options <= {"--no-start", "--prune", "--adopt"}
        facts = self.facts(config)
        found = decide(
            LAYOUT,
            config,
            [word for word in self.words if word not in options],
            facts,
            decide_ownership(config, facts, config.select(()), adopt="--adopt" in options),
            start="--no-start" not in options,
            prune="--prune" in options,
        )
        if self.allowance is not None:
            refuse_above(config, found, facts, self.allowance)
        repairs = tuple(Repair(*words) for words in self.said.get("repairs", ()))
        stand = self.standing.items()
        seen = Findings(repairs, facts.broken, {name: table["lost"] for name, table in stand if "lost" in table})
        unbuilt = {name: table["unbuilt"] for name, table in stand if "unbuilt" in table}
        return with_findings(found, seen, unbuilt, facts.records)

    # Facts.

    def facts(self, config: Config) -> Facts:
        said, stand = self.said, self.standing
        assert said.keys() <= {"command", "network", "workspaces", "gone", "links", "keys", "repairs"}, said.keys()
        assert all(table.keys() <= KNOWN for table in stand.values()), stand
        applied = Network(**{"uplink": UPLINK, **(said.get("network") or self.declared.get("network", {}))})
        links: dict[str, str] = said.get("links", {})

        def observe(name: str) -> Observation:
            table = stand.get(name, {})
            state = table.get("state", "stopped")
            since = table.get("since", SINCE) if state == "running" else None
            return Observation(state, since=since, reason=table.get("reason", ""))

        def broken(table: Table) -> tuple[Change, ...]:
            return tuple(Change(key, old, new, "restart") for key, (old, new) in table.get("broken", {}).items())

        def unsaved(name: str, deletes: bool) -> tuple[str, ...]:
            return tuple(stand.get(name, {}).get("unsaved", {}).get(str(deletes).lower(), ()))

        return Facts(
            records=dict(self.records(applied)),
            applied=applied if stand else None,
            network=replace(config.network, uplink=config.network.uplink or applied.uplink),
            owner=OWNER,
            origin=ORIGIN,
            observe=observe,
            sessions_of=lambda name: tuple(stand[name].get("sessions", ())),
            keys_of=lambda _, owner: tuple(said.get("keys", KEYS)),
            image_of=lambda name, workspace: image_of(workspace),
            real=lambda path: links.get(path, path),
            exists=lambda path: path not in said.get("gone", ()),
            broken={name: broken(table) for name, table in stand.items() if "broken" in table},
            place=place_of(config, {"SUDO_UID": str(OWNER)}, 0),
            unsaved_of=unsaved,
            now=SINCE,
        )

    @cached_property
    def standing(self) -> dict[str, Table]:
        found: dict[str, Table] = self.said.get("workspaces", {})
        return found

    def records(self, network: Network) -> Iterator[tuple[str, Record]]:
        """What was written down when the workspaces became what facts.toml says."""
        declared, stand = self.declared.get("workspaces", {}), self.standing
        tables = {n: t["applied"] if "applied" in t else declared[n] for n, t in stand.items()}
        wanted, brought = self.resolved(tables, network), self.read(tables, network).brought
        booted = self.resolved({n: t["booted"] for n, t in stand.items() if t.get("booted")}, network, wanted)
        for index, (name, table) in enumerate(stand.items()):
            record = Record(
                name=name,
                file=table.get("file", FILE),
                wanted=wanted[name],
                image=table.get("image", image_of(wanted[name])),
                uid_base=0x7000_0000 + 0x1_0000 * index,
                machine_id=f"{index:032x}",
                removed=table.get("removed", False),
                brought=brought[name],
                origin=tuple(table.get("origin", ORIGIN)),
                place=None if is_local(wanted[name]) else replace(self.place, **table.get("place", {})),
                decisions=tuple(Decision(*decision) for decision in table.get("decisions", ())),
            )
            if not record.removed and table.get("booted") is not False:
                runs = booted.get(name, record.wanted)
                image = table.get("booted_image", image_of(runs) if name in booted else record.image)
                ceiling = replace(record, wanted=runs).with_booted().booted
                assert ceiling is not None
                memory = Size().parse(table["started_with"]) if "started_with" in table else ceiling.memory
                record = replace(record, booted=Booted(runs, image, memory))
            yield name, record

    @property
    def place(self) -> Place:
        """The place of [engines.incus], for alice's client."""
        incus = Incus(**self.declared.get("engines", {}).get("incus", {}))
        return Place(incus.remote, incus.project, incus.target, incus.subnet, OWNER, "/home/alice/.config/incus")

    def resolved(
        self, tables: Table, network: Network, kept: Mapping[str, WorkspaceSpec] | None = None
    ) -> dict[str, WorkspaceSpec]:
        """These tables of workspaces, loaded and resolved."""
        config = self.read(tables, network)
        own = {name: workspace for name, workspace in (kept or {}).items() if name in tables}
        found = resolve(config.workspaces, own, network, LAYOUT, OWNER, place=self.place)
        return {name: replace(w, authorized_keys=w.authorized_keys or KEYS) for name, w in found.items()}

    def read(self, tables: Table, network: Network) -> Config:
        """These tables of workspaces, with what else the file says."""
        kinds = {key: self.declared.get(key, {}) for key in ("defaults", "engines")}
        shared = {**kinds, "network": {"subnet": network.subnet}}
        findings: list[Any] = []
        kits = Kits(FILE, self.declared.get("kits", {}))
        config = loading.read_config(FILE, {**shared, "workspaces": tables}, findings, LAYOUT, loading.no_check, kits)
        assert not findings, findings
        return config


def image_of(workspace: WorkspaceSpec) -> str:
    """An id as a recipe gives it, which does not change when hutch's own part of the recipe does."""
    made_from = repr([getattr(workspace, key) for key in IMAGE_KEYS])
    slug = re.sub(r"[^a-z0-9]+", "-", workspace.image).strip("-")
    return f"{slug}-{zlib.crc32(made_from.encode()):08x}"


def all_cases() -> list[Case]:
    return [Case(path.name) for path in sorted(FOLDER.iterdir()) if path.is_dir()]
