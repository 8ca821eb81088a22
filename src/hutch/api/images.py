"""The image cache of a hutch, and the workspaces that use its images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hutch.apply.building import ask_for_updates, ensure_images, recipes_for
from hutch.apply.refreshing import Refreshed, refresh
from hutch.apply.restoring import with_restored_records
from hutch.engines import by_engine
from hutch.errors import HutchError, ways_in
from hutch.frozen import dataclass
from hutch.host.services.lock import lock
from hutch.images.cache import collect_leftovers, remove_image
from hutch.images.machine import prune_machines
from hutch.images.record import observe_images
from hutch.spec.record import Age, ImageFacts, users_of
from hutch.state import read_ages, read_records

if TYPE_CHECKING:
    from hutch.api.engine import Hutch
    from hutch.images.record import Image
    from hutch.spec.model import Config
    from hutch.spec.record import UserView


@dataclass(frozen=True)
class ListedImage:
    """An image, and the workspaces that were booted from it or will be."""

    id: str
    facts: ImageFacts
    age: Age
    workspaces: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        facts, asked = asdict(self.facts), self.age.asked or None
        sources = dict(facts.pop("sources"))
        updates = sorted(self.age.updates) if asked else None
        rest = {"sources": sources, "updates": updates, "updates_asked": asked, "workspaces": self.workspaces}
        return {"id": self.id, **facts, **rest}


@ways_in
class Images:
    """The images that the workspaces of a hutch share."""

    def __init__(self, hutch: Hutch) -> None:
        self.hutch = hutch
        self.layout, self.listen = hutch.layout, hutch.listen

    @with_restored_records
    def build(self, config: Config, names: Sequence[str] = ()) -> list[str]:
        """Build the images of the named workspaces, or of all; returns their ids."""
        chosen = {name: config.workspaces[name] for name in config.select(names)}
        ensure_images(self.layout, chosen, config.network, config.file, self.hutch.progress)
        ask_for_updates(self.layout, self.listen)
        recipe_for = recipes_for(self.layout, read_records(self.layout))
        return sorted({recipe_for(name, workspace).id for name, workspace in chosen.items()})

    @with_restored_records
    def refresh(self, names: Sequence[str]) -> list[Refreshed]:
        """Make the images of workspaces anew, under the same recipes, from the present state of their sources. Raises
        NotAllRefreshed, which has those that were made, where some cannot be."""
        for name in names:
            self.hutch.record(name)  # raises for a name without a workspace
        return refresh(self.layout, dict.fromkeys(names), self.listen, self.hutch.progress)

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
        collect_leftovers(self.layout)
        found = self.observe()
        unused = [image.id for image, users in found.items() if not users]
        self.remove(unused)
        prune_machines(self.hutch.layout, keep=[image.id for image, users in found.items() if users])
        for engine, theirs in by_engine(self.layout, self.hutch.records()):
            unused += engine.prune(theirs)
        return unused

    def listed(self) -> list[ListedImage]:
        """The images in the cache. A caller other than root is told of those of the workspaces that it may see, as they
        were when something was last changed."""
        if os.geteuid() != 0:
            # Spares the start-up of `hutch image` for root.
            from hutch.host.identity.user_view import visible_views

            return images_of(visible_views(self.layout))
        ages = read_ages(self.layout)
        return [
            ListedImage(image.id, image.facts, ages.get(image.id, Age(image.created)), users)
            for image, users in self.observe().items()
        ]

    def observe(self) -> Mapping[Image, tuple[str, ...]]:
        """The images in the cache, each with the workspaces that were booted from it or will be."""
        records = self.hutch.records()
        return {image: users_of(image.id, records) for image in observe_images(self.hutch.layout)}


def images_of(views: Mapping[str, UserView]) -> list[ListedImage]:
    """The images of workspaces, as their users see them. Where an older hutch has noted nothing of one, its recipe is
    unknown until something changes."""
    records = {name: view.record for name, view in views.items()}
    ages = {id: age for view in views.values() for id, age in view.ages.items()}
    found = {id: facts for view in views.values() for id, facts in view.images.items()}
    ids = {id for record in records.values() for id in record.images}
    return [
        ListedImage(id, facts, ages.get(id, Age(facts.created)), users_of(id, records))
        for id in sorted(ids)
        for facts in [found.get(id, ImageFacts("unknown", (), "", 0))]
    ]
