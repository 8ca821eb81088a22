"""The cluster of the unit tests with snapshots, restores and copies. What an instance's root and a volume have in them
is one word each, `root` and `files`."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from hutch.run import Completed
from hutch.spec.record import Place
from tests.unit.engines.incus.cluster import NEVER, ClusterClient, World
from tests.unit.engines.incus.fake import PLACE, refused

INSTANCE = re.compile(r"/1\.0/instances/([a-z0-9-]+)/snapshots(?:/([a-z0-9-]+))?")
VOLUME = re.compile(r"/1\.0/storage-pools/(\w+)/volumes/custom/([a-z0-9-]+)/snapshots(?:/([a-z0-9-]+))?")


class PointsWorld(World):
    """A cluster whose snapshots are in `roots`, by (instance, tag), and in `homes`, by (volume, tag)."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: dict[tuple[str, str], dict[str, Any]] = {}
        self.homes: dict[tuple[str, str], dict[str, Any]] = {}
        self.driver = "dir"
        self.clock = 0
        self.waited: list[str] = []
        self.operations: list[dict[str, Any]] = []

    def client(self, place: Place = PLACE) -> PointsClient:
        return PointsClient(self, place)

    def volume(self, name: str) -> dict[str, Any]:
        return next(each for (_, _, found), each in self.volumes.items() if found == name)

    def write(self, name: str, word: str) -> None:
        """Have a workspace write into its root and its home."""
        self.instances[name]["root"] = word
        self.volume(f"home-{name}")["files"] = word

    def words(self, name: str) -> tuple[Any, Any]:
        """What a workspace has in its root and its home."""
        return self.instances[name]["root"], self.volume(f"home-{name}").get("files")

    def now(self) -> str:
        self.clock += 1
        return f"2026-11-28T12:{self.clock // 60:02}:{self.clock % 60:02}.123456789Z"


class PointsClient(ClusterClient):
    world: PointsWorld

    def get(self, path: str, *, seconds: float = 5.0, project: bool = True) -> Any:
        bare = path.partition("?")[0]
        for pattern, points in ((INSTANCE, self.world.roots), (VOLUME, self.world.homes)):
            if found := pattern.fullmatch(bare):
                owner = found[1] if pattern is INSTANCE else found[2]
                return [deepcopy(point) for (name, _), point in points.items() if name == owner]
        if bare == "/1.0/operations":
            return {"running": deepcopy(self.world.operations)}
        if bare.startswith("/1.0/operations/"):
            self.world.waited.append(bare.split("/")[3])
            self.world.operations.clear()
            return {}
        if bare == "/1.0/storage-pools/default":
            return {"name": "default", "driver": self.world.driver}
        return super().get(path, seconds=seconds, project=project)

    def run(self, *words: str, stdin: bytes | None = None, **others: Any) -> Completed:
        if words[:2] == ("file", "push"):
            self._step("PUSH", words[-1].partition(":")[2], stdin, lambda: None)
            return Completed(0, b"", b"")
        return super().run(*words, stdin=stdin, **others)

    def _do(self, method: str, path: str, body: Any, target: str) -> None:
        world = self.world
        if found := INSTANCE.fullmatch(path):
            self._do_snapshot(method, found[1], found[2] or body["name"], world.roots, world.instances.get(found[1]))
        elif found := VOLUME.fullmatch(path):
            self._do_snapshot(method, found[2], found[3] or body["name"], world.homes, world.volume(found[2]))
        elif path.startswith("/1.0/instances/") and body is not None and "restore" in body:
            name = path.split("/")[3]
            assert world.instances[name]["status"] == "Stopped"
            point = world.roots[name, body["restore"]]
            world.instances[name] |= {key: deepcopy(point[key]) for key in ("root", "config", "devices")}
        elif "/volumes/custom/" in path and body is not None and "restore" in body:
            name = path.split("/")[-1]
            world.volume(name)["files"] = world.homes[name, body["restore"]].get("files")
            world.volume(name)["config"] = body["config"]
        elif path.endswith("/state") and body["action"] in ("freeze", "unfreeze"):
            world.instances[path.split("/")[3]]["status"] = "Frozen" if body["action"] == "freeze" else "Running"
        elif path == "/1.0/instances" and body["source"]["type"] == "copy":
            source, _, tag = body["source"]["source"].partition("/")
            of = world.roots[source, tag] if tag else world.instances[source]
            made = {
                **body,
                "config": {**of["config"], **body["config"]},
                "devices": {**of["devices"], **body["devices"]},
            }
            rest = {"status": "Stopped", "location": target, "architecture": "x86_64", "last_used_at": NEVER}
            world.instances[body["name"]] = {**made, **rest, "root": of["root"]}
            world.files[body["name"]] = {}
        elif path.endswith("/volumes/custom") and "source" in body:
            super()._do(method, path, body, target)
            source, _, tag = body["source"]["name"].partition("/")
            world.volume(body["name"])["files"] = (world.homes[source, tag] if tag else world.volume(source)).get(
                "files"
            )
        else:
            if path.endswith("/rebuild") and any(owner == path.split("/")[3] for owner, _ in world.roots):
                raise refused(400, "Cannot remove an instance volume that has snapshots")
            self._forget(method, path)
            super()._do(method, path, body, target)

    def _forget(self, method: str, path: str) -> None:
        """Have what goes with a root, an instance or a volume go."""
        if path.endswith("/rebuild"):
            self.world.instances[path.split("/")[3]]["root"] = "new"
        if method == "DELETE":
            points = self.world.homes if "/volumes/custom/" in path else self.world.roots
            for point in [each for each in points if each[0] == path.split("/")[-1]]:
                del points[point]

    def _turn(self, name: str, body: Any) -> None:
        super()._turn(name, body)
        if body["action"] == "start":
            self.world.instances[name]["last_used_at"] = self.world.now()

    def _do_snapshot(self, method: str, owner: str, tag: str, points: Any, of: Any) -> None:
        if method == "DELETE":
            if (owner, tag) not in points:
                raise refused(404, "not found")
            del points[owner, tag]
        else:
            assert (owner, tag) not in points
            points[owner, tag] = {**deepcopy(of), "name": tag, "created_at": self.world.now()}
