"""An Incus server for unit tests: objects by their paths, which changes of projects, networks, ACLs and images make and
remove; and every change that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from hutch.engines.incus.client import Client, Make
from hutch.engines.incus.failures import Refused
from hutch.spec.record import Place

PLACE = Place("lab", "hutch", "auto", "10.83.0.0/16", 1000, "/home/alice/.config/incus")


def refused(code: int, said: str = "no") -> Refused:
    return Refused(f"the remote lab refuses: {said}", code=code, text=said)


class Fake(Client):
    """Answers from `objects`. A change whose (method, path) is in `failing` raises that error, after it was noted."""

    def __init__(self, objects: Mapping[str, Any] = {}, place: Place = PLACE) -> None:
        super().__init__(place)
        self.objects: dict[str, Any] = deepcopy(dict(objects))
        self.failing: dict[tuple[str, str], Exception] = {}
        self.changes: list[tuple[str, str, Any]] = []
        self.asked: list[str] = []
        self.meanwhile: Callable[[], None] | None = None

    def get(self, path: str, *, seconds: float = 5.0, project: bool = True) -> Any:
        whole = self._whole(path, project)
        self.asked.append(whole)
        if whole not in self.objects:
            raise refused(404, "not found")
        if isinstance(self.objects[whole], Exception):
            raise self.objects[whole]
        return deepcopy(self.objects[whole])

    def ask_ahead(self, questions: Mapping[str, bool], *, seconds: float = 5.0) -> None:
        """Nothing here takes time."""

    def get_all(
        self, paths: Sequence[str], *, seconds: float = 5.0, project: bool = True, within: float | None = None
    ) -> list[Any]:
        answers: list[Any] = []
        for path in paths:
            try:
                answers.append(self.get(path, project=project))
            except Refused as error:
                answers.append(error)
        return answers

    def update(self, path: str, make: Make, *, seconds: float = 120.0, project: bool = True) -> Any:
        """As the real one. What another does `meanwhile`, it does once, after the first reading."""
        while True:
            seen = self.get(path, project=project)
            body = make(deepcopy(seen))
            if body is None:
                return seen
            if self.meanwhile is None:
                break
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        whole = self._whole(path, project)
        self._note("PUT", whole, body)
        self.objects[whole].update(deepcopy(body))
        return seen

    def change(self, method: str, path: str, body: Any = None, *, seconds: float = 120.0, project: bool = True) -> Any:
        assert method in ("POST", "DELETE"), "what a thing is to be is changed by `update`"
        whole = self._whole(path, project)
        self._note(method, whole, body)
        if method == "DELETE":
            del self.objects[whole]
        elif "?" not in whole:
            made = {"used_by": [], "status": "Created", "managed": True, **deepcopy(body)}
            if body["config"] or f"{whole}/{body['name']}" not in self.objects:
                self.objects[f"{whole}/{body['name']}"] = made
            else:  # a half-made network, which has its configuration
                self.objects[f"{whole}/{body['name']}"]["status"] = "Created"

    def _note(self, method: str, whole: str, body: Any) -> None:
        self.changes.append((method, whole, deepcopy(body)))
        if (method, whole) in self.failing:
            raise self.failing[method, whole]

    def told(self) -> list[tuple[str, str]]:
        """The changes, without their bodies."""
        return [(method, path) for method, path, _ in self.changes]
