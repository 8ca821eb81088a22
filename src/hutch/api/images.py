"""The image cache of a hutch, and the workspaces that use its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hutch.apply.building import ensure_images, recipe_of
from hutch.errors import HutchError, ways_in
from hutch.host.services.lock import lock
from hutch.images.cache import observe_images, remove_image
from hutch.images.machine import prune_machines

if TYPE_CHECKING:
    from hutch.api.engine import Hutch
    from hutch.images.cache import Image
    from hutch.spec.model import Config


@ways_in
class Images:
    """The images that the workspaces of a hutch share."""

    def __init__(self, hutch: Hutch) -> None:
        self.hutch = hutch

    def build(self, config: Config, names: Sequence[str] = ()) -> list[str]:
        """Build the images of the named workspaces, or of all; returns their ids."""
        chosen = {name: config.workspaces[name] for name in config.select(names)}
        ensure_images(self.hutch.layout, chosen, config.network, config.file, self.hutch.progress)
        return sorted({recipe_of(self.hutch.layout, workspace).id for workspace in chosen.values()})

    def remove(self, ids: Sequence[str]) -> None:
        """Remove images; HutchError, before anything is removed, when a workspace uses one."""
        with lock(self.hutch.layout):
            users = {image.id: those for image, those in self.observe().items()}
            wrong = [f"{id} is used by {', '.join(users[id])}" for id in ids if users.get(id)]
            wrong += [f"there is no image {id}" for id in ids if id not in users]
            if wrong:
                raise HutchError("no image was removed", details="\n".join(wrong))
            for id in dict.fromkeys(ids):
                remove_image(id, self.hutch.layout)

    def prune(self) -> list[str]:
        """Remove every image that no workspace uses; returns their ids."""
        found = self.observe()
        unused = [image.id for image, users in found.items() if not users]
        self.remove(unused)
        prune_machines(self.hutch.layout, keep=[image.id for image, users in found.items() if users])
        return unused

    def observe(self) -> Mapping[Image, tuple[str, ...]]:
        """The images in the cache, each with the workspaces that were booted from it or will be."""
        used = {r.name: (r.image, r.booted.image if r.booted else None) for r in self.hutch.records().values()}
        return {
            image: tuple(name for name, those in used.items() if image.id in those)
            for image in observe_images(self.hutch.layout)
        }
