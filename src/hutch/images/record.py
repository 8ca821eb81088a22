"""The record of an image, images/<id>/image.json, written once. It is read at each start: imports stay few."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.frozen import dataclass
from hutch.images.recipe import Recipe, is_id
from hutch.spec.names import Layout
from hutch.spec.record import ImageFacts

DAMAGED = "damaged"
SCRATCH, KERNELS = ".build-", "kernels"
"""The beginning of the names of images that are being made, and the directory of kernels, both beside the images."""
FORMAT = 1
Sources = tuple[tuple[str, str], ...]
"""The archives of packages, or the path, that an image was made from; each with its date, ISO 8601 in UTC."""


@dataclass(frozen=True)
class Image:
    """An image in the cache. `size` is bytes on disk; `created` is ISO 8601, in UTC; `digest` is the SHA-256 of the
    tree as a tar archive. Digest and sources are empty in an image that an older hutch built."""

    id: str
    image: str
    packages: tuple[str, ...]
    setup: str
    created: str
    size: int
    root: Path
    digest: str = ""
    sources: Sources = ()

    @property
    def facts(self) -> ImageFacts:
        """What its users are told of it: neither where it is, nor how it is set up."""
        return ImageFacts(self.image, self.packages, self.created, self.size, self.digest, self.sources)


def image_ids(layout: Layout) -> list[str]:
    """The ids of the images in the cache, damaged ones too; none for a caller other than root."""
    try:
        return sorted(entry.name for entry in os.scandir(layout.images) if is_id(entry.name))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def observe_images(layout: Layout, among: Collection[str] | None = None) -> tuple[Image, ...]:
    """The images in the cache, all or those of these ids; one whose record cannot be read is called "damaged"."""
    found = []
    for name in image_ids(layout):
        if among is not None and name not in among:
            continue
        try:
            image = observe_image(layout, name)
        except (HutchError, OSError):  # it can still be removed
            image = Image(name, DAMAGED, (), "", "", 0, layout.image_root(name))
        found += [image] if image is not None else []
    return tuple(found)


def observe_image(layout: Layout, id: str) -> Image | None:
    """One image; None when it is not in the cache. Raises HutchError when its record cannot be read."""
    directory = layout.images / id
    text = read_or_none(directory / "image.json")
    if text is None and not directory.is_dir():
        return None
    try:
        return parse_image(id, layout.image_root(id), text or b"")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise HutchError(
            f"{directory / 'image.json'} is damaged",
            details=str(error),
            resolution=f"`hutch up` writes it anew where a workspace uses the image; `hutch image rm {id}` removes it",
        ) from error


def whole_image(layout: Layout, id: str) -> Image | None:
    """An image with its tree and a record that can be read; None where it has to be made."""
    try:
        image = observe_image(layout, id)
    except HutchError:
        return None
    return image if image is not None and image.root.is_dir() else None


def render_image(recipe: Recipe, created: str, size: int, digest: str = "", sources: Sources = ()) -> bytes:
    """The content of image.json."""
    record = {"format": FORMAT, "recipe": recipe.as_json(), "created": created, "size": size, "digest": digest}
    return json.dumps({**record, "sources": dict(sources)}, indent=2, sort_keys=True).encode() + b"\n"


def parse_image(id: str, root: Path, text: bytes) -> Image:
    record = json.loads(text)
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}, not {FORMAT}")
    recipe = record["recipe"]
    packages = tuple(str(name) for name in recipe["packages"])
    setup, created, size = str(recipe["setup"]), str(record["created"]), int(record["size"])
    sources = tuple((str(name), str(date)) for name, date in record.get("sources", {}).items())
    return Image(id, str(recipe["image"]), packages, setup, created, size, root, str(record.get("digest", "")), sources)
