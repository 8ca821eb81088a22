"""An Incus cluster for unit tests: instances and volumes by what has been done to them, and every step that was asked
for. It can stop answering at any step, before or after that is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hutch.backends.incus import ID
from hutch.engines.incus.client import Client, Make
from hutch.engines.incus.failures import NoAnswer, Refused
from hutch.engines.incus.server import FEATURES, NEEDED, WORD
from hutch.errors import HutchError
from hutch.run import Completed
from hutch.spec.record import Place, Record
from tests.unit.engines.incus.fake import PLACE, refused
from tests.unit.facts import workspace

NEVER, ONCE = "1970-01-01T00:00:00Z", "2026-11-28T12:00:00Z"
WORD_OF_IT = "a-word"
IMAGE = "debian-trixie-0123456789ab"
SILENT: dict[str, Any] = {"status": "Error", "config": None, "devices": None, "profiles": None}
"""What a cluster tells of an instance whose member does not answer, beside its name and its member."""


def record(name: str = "web", number: int = 2, place: Place = PLACE, **keys: Any) -> Record:
    """The record of a workspace that was never started."""
    declared = workspace(name, **{"engine": "incus", "home": None, "ip": f"10.83.0.{number}", **keys})
    return Record(name, "/srv/hutch.toml", declared, IMAGE, 0, f"{number:032x}", place=place)


class Gone(NoAnswer):
    """Nobody answers any more: hutch, or the server, was killed."""


class World:
    """What a cluster has: `instances` by name, `volumes` by (pool, member, name), and the `steps` that were asked for.
    Before the step with the number `cut` it stops answering, or after it where `is_done`."""

    def __init__(self, members: Sequence[str] = ("m1", "m2"), pools: Sequence[str] = ("default",)) -> None:
        self.members = {name: {"server_name": name, "status": "Online", "architecture": "x86_64"} for name in members}
        self.pools = pools
        self.instances: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.volumes: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.steps: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.failing: dict[tuple[str, str], HutchError] = {}
        self.exits: dict[str, int] = {}
        self.cut: int | None = None
        self.is_done = False
        self.meanwhile: Callable[[], None] | None = None
        self.is_slow = False  # a list is not answered
        self.silent: set[str] = set()  # members
        self.room = 1 << 40  # bytes of each pool
        self.running: list[dict[str, str]] = []  # operations
        self.snapshots: list[str] = []  # of each instance
        self.word = WORD_OF_IT  # of the project; "" where there is none
        self.unheard: HutchError | None = None  # what becomes of a command in a guest

    def client(self, place: Place = PLACE) -> Client:
        return ClusterClient(self, place)

    def state(self) -> Any:
        """All that counts, for a comparison."""
        return deepcopy((self.instances, self.files, self.volumes))


class ClusterClient(Client):
    def __init__(self, world: World, place: Place) -> None:
        super().__init__(place)
        self.world = world

    def get(self, path: str, *, seconds: float = 5.0, project: bool = True) -> Any:
        world, bare = self.world, path.partition("?")[0]
        if path == "/1.0":
            environment: dict[str, Any] = {"server": "incus", "server_name": "m1", "server_version": "6.0.4"}
            environment |= {"server_clustered": bool(world.members), "architectures": ["x86_64"]}
            known = {"auth": "trusted", "auth_user_method": "tls"}
            return {**known, "api_extensions": [*NEEDED], "environment": environment}
        if bare == "/1.0/cluster/members":
            return [deepcopy(member) for member in world.members.values()]
        if bare == "/1.0/projects/hutch" and world.word:
            return {"config": {**FEATURES, ID: "owner", WORD: world.word}, "used_by": []}
        if bare == "/1.0/instances":
            if world.is_slow:
                raise NoAnswer("no answer")
            return [self._instance(name) for name in world.instances]
        if found := re.fullmatch(r"/1\.0/instances/([A-Za-z0-9-]+)", bare):
            return self._instance(found[1])
        if bare == "/1.0/networks":
            return []
        if bare == "/1.0/operations":
            return {"running": world.running} if world.running else {}
        if bare.startswith("/1.0/storage-pools"):
            return self._of_pools(bare, _target(path))
        if found := re.fullmatch(r"/1\.0/instances/([a-z0-9-]+)/snapshots", bare):
            self._instance(found[1])
            return world.snapshots
        if found := re.fullmatch(r"/1\.0/cluster/members/(\w+)/state", bare):
            return {"sysinfo": {"free_ram": 1 << 30}}
        raise refused(404, "not found")

    def _of_pools(self, bare: str, target: str) -> Any:
        world = self.world
        if bare == "/1.0/storage-pools":
            return [f"/1.0/storage-pools/{pool}" for pool in world.pools]
        if found := re.fullmatch(r"/1\.0/storage-pools/(\w+)/volumes/custom", bare):
            return [deepcopy(each) for (pool, *_), each in world.volumes.items() if pool == found[1]]
        found = re.fullmatch(r"/1\.0/storage-pools/(\w+)/volumes/custom/([a-z0-9-]+)", bare)
        if found and (volume := world.volumes.get((found[1], target, found[2]))):
            return deepcopy(volume)
        if found := re.fullmatch(r"/1\.0/storage-pools/(\w+)/resources", bare):
            return {"space": {"total": world.room, "used": 0}}
        raise refused(404, "not found")

    def _instance(self, name: str) -> Any:
        found = self.world.instances.get(name)
        if found is None:
            raise refused(404, "Instance not found")
        if found["location"] in self.world.silent:
            raise NoAnswer("no answer")
        return deepcopy(found)

    def ask_ahead(self, questions: Mapping[str, bool], *, seconds: float = 5.0) -> None:
        """Nothing here takes time."""

    def get_all(
        self, paths: Sequence[str], *, seconds: float = 5.0, project: bool = True, within: float | None = None
    ) -> list[Any]:
        answers: list[Any] = []
        for path in paths:
            try:
                answers.append(self.get(path, project=project))
            except (NoAnswer, Refused) as error:
                answers.append(error)
        return answers

    def update(self, path: str, make: Make, *, seconds: float = 120.0, project: bool = True) -> Any:
        """As the real one. What another does `meanwhile`, it does once, after the first reading."""
        while True:
            seen = self.get(path)
            body = make(deepcopy(seen))
            if body is None:
                return seen
            if self.world.meanwhile is None:
                break
            meanwhile, self.world.meanwhile = self.world.meanwhile, None
            meanwhile()
        self._change("PUT", path, body)
        return seen

    def change(self, method: str, path: str, body: Any = None, *, seconds: float = 120.0, project: bool = True) -> Any:
        assert method in ("POST", "DELETE") or path.endswith("/state"), "what a thing is to be is changed by `update`"
        self._change(method, path, body)

    def _change(self, method: str, path: str, body: Any) -> None:
        bare, target = path.partition("?")[0], _target(path)
        self._step(method, bare, body, lambda: self._do(method, bare, deepcopy(body), target))

    def _step(self, what: str, path: str, body: Any, do: Any) -> None:
        world = self.world
        world.steps.append((what, path))
        world.bodies.append(deepcopy(body))
        if (what, path) in world.failing:
            raise world.failing[what, path]
        is_cut = world.cut is not None and len(world.steps) > world.cut
        if not is_cut or (world.is_done and len(world.steps) == (world.cut or 0) + 1):
            do()
        if is_cut:
            raise Gone("no answer")

    def _do(self, method: str, path: str, body: Any, target: str) -> None:
        instances, files = self.world.instances, self.world.files
        name = path.split("/")[3] if path.count("/") >= 3 else ""
        if path == "/1.0/instances":
            found = {**body, "status": "Stopped", "location": target or "none", "architecture": "x86_64"}
            instances[body["name"]] = {**found, "last_used_at": NEVER, "root": 1}
            instances[body["name"]]["config"]["volatile.base_image"] = body["source"]["fingerprint"]
            files[body["name"]] = {}
        elif path.endswith("/rebuild"):
            assert instances[name]["status"] == "Stopped"
            instances[name]["config"]["volatile.base_image"] = body["source"]["fingerprint"]
            files[name] = {}
        elif path.endswith("/state"):
            self._turn(name, body)
        elif path.startswith("/1.0/instances/"):
            if method == "DELETE":
                del instances[name], files[name]
            elif method == "POST":  # a migration
                instances[name]["location"] = target
            else:
                parts = ("config", "description", "devices", "ephemeral", "profiles")
                instances[name] |= {key: body[key] for key in parts}
        else:
            self._do_volume(method, path, body, target)

    def _turn(self, name: str, body: Mapping[str, Any]) -> None:
        found = self.world.instances[name]
        if (found["status"] == "Running") == (body["action"] == "start"):
            raise refused(400, "The instance is already there")
        found["status"] = "Running" if body["action"] == "start" else "Stopped"
        if body["action"] == "start":
            found["last_used_at"] = ONCE

    def _do_volume(self, method: str, path: str, body: Any, target: str) -> None:
        pool, volumes = path.split("/")[3], self.world.volumes
        if method == "POST" and body.get("migration"):
            source = volumes.pop((pool, body["source"]["location"], body["name"]))
            volumes[pool, target, body["name"]] = {**source, "location": target, "config": {}, "description": ""}
        elif method == "POST":
            assert (pool, target, body["name"]) not in volumes
            volumes[pool, target, body["name"]] = {**body, "location": target or "none"}
        elif method == "PUT":
            volumes[pool, target, path.split("/")[-1]]["config"] = body["config"]
        else:
            del volumes[pool, target, path.split("/")[-1]]

    def push(self, name: str, files: Mapping[str, bytes], *, seconds: float = 30.0) -> None:
        self._step("PUSH", name, None, lambda: self.world.files[name].update(files))

    def unlink(self, name: str, paths: Sequence[str], *, seconds: float = 30.0) -> None:
        def do() -> None:
            self.world.files[name] = {path: held for path, held in self.world.files[name].items() if path not in paths}

        self._step("UNLINK", name, None, do)

    def run(
        self, *words: str, stdin: bytes | None = None, seconds: float = 30.0, check: bool = True, most: int = 0
    ) -> Completed:
        self._step(words[0].upper(), words[1].partition(":")[2], stdin, lambda: None)
        if self.world.unheard is not None:
            raise self.world.unheard
        return Completed(self.world.exits.get(words[0], 0), b"", b"why\n")

    def text(self, path: str, *, seconds: float = 10.0, most: int = 2**22) -> str:
        return "one\ntwo\nthree\n"


def _target(path: str) -> str:
    return dict(pair.split("=") for pair in path.partition("?")[2].split("&") if pair).get("target", "")


def moved(found: Record, **keys: Any) -> Record:
    """A record whose workspace is to have other keys."""
    return replace(found, wanted=replace(found.wanted, **keys))
