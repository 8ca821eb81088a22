"""The image cache of a hutch, and who uses what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hutch.errors import HutchError, ways_in
from hutch.host.services.lock import lock
from hutch.state import Record

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
        from hutch.apply.building import ensure_images, recipe_of

        chosen = {name: config.workspaces[name] for name in config.select(names)}
        ensure_images(self.hutch.places, chosen, config.network, config.file, self.hutch.progress)
        return sorted({recipe_of(self.hutch.places, workspace).id for workspace in chosen.values()})

    def remove(self, ids: Sequence[str]) -> None:
        """Remove images; HutchError, before anything is removed, when a workspace uses one."""
        from hutch.images.cache import remove_image

        with lock(self.hutch.places):
            used = {image.id: users for image, users in self.observe().items() if users}
            known = {image.id for image in self.observe()}
            wrong = [f"{id} is used by {', '.join(used[id])}" for id in ids if id in used]
            wrong += [f"there is no image {id}" for id in ids if id not in known]
            if wrong:
                raise HutchError("no image was removed", details="\n".join(wrong))
            for id in dict.fromkeys(ids):
                remove_image(id, self.hutch.places)

    def prune(self) -> list[str]:
        """Remove every image that no workspace uses; returns their ids."""
        from hutch.images.machine import prune_machines

        found = self.observe()
        unused = [image.id for image, users in found.items() if not users]
        self.remove(unused)
        prune_machines(self.hutch.places, keep=[image.id for image, users in found.items() if users])
        return unused

    def observe(self) -> Mapping[Image, tuple[str, ...]]:
        """The images in the cache, each with the workspaces that use it."""
        from hutch.images.cache import observe_images

        records = self.hutch.records()
        return {
            image: tuple(name for name, record in records.items() if uses(record, image.id))
            for image in observe_images(self.hutch.places)
        }


def uses(record: Record, image: str) -> bool:
    """Whether a workspace was booted from an image or will be."""
    return record.image == image or (record.booted is not None and record.booted.image == image)
