"""The images of the cache on an Incus server: each is uploaded once into the project, as a squashfs of its tree.

An image there is known by its properties: hutch.id is the id in the cache, and hutch.digest says which tree it is, so
two hosts that share a project share images as well. There is no alias: it would come after the image, a property comes
with it. The files for an upload are made in the scratch directory of the image, which the next build removes where
hutch was killed.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch.backends.nspawn import TASKS
from hutch.engines.incus.answers import NOT_FOUND, listing, text, texts
from hutch.engines.incus.client import path_to
from hutch.engines.incus.failures import Refused, printable
from hutch.engines.incus.owner import owner_of
from hutch.errors import HutchError
from hutch.host.doctor.tools import check_tools
from hutch.images.build import Workshop, last_lines, pack_tree
from hutch.images.cache import ensure
from hutch.images.contain import run_contained
from hutch.images.progress import Meter, Progress, no_progress
from hutch.images.recipe import is_id
from hutch.images.record import Image, whole_image
from hutch.run import CommandFailed

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client
    from hutch.spec.names import Layout

ID = "hutch.id"
DIGEST = "hutch.digest"
OWNER = "hutch.owner"
"""The property that says which hutch has uploaded an image."""
IMAGES = path_to("images", recursion=1)
METADATA = "metadata.tar"
ROOT = "root/root.squashfs"
PACKING = "packing the image"
UPLOADING = "uploading the image"
PACKED, UPLOADED = 0.4, 0.95
"""The fractions of the whole that are done after each of the two."""
LONGEST_UPLOAD = 4 * 3600.0  # seconds
FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)
SENT = re.compile(r"Transferring image: ([0-9.]{1,12})(B|kB|MB|GB|TB) ", re.ASCII)
UNITS = {unit: 1000**power for power, unit in enumerate(("B", "kB", "MB", "GB", "TB"))}


def render_metadata(image: Image, machine: str, owner: str) -> bytes:
    """The metadata of an image, as a tar archive with metadata.yaml; JSON is YAML. `machine` is its architecture,
    `owner` the hutch that uploads it. The same image gives the same bytes."""
    created = int(datetime.fromisoformat(image.created).timestamp())
    properties = {
        "architecture": machine,
        "description": f"{image.image} for hutch's workspaces ({image.id})",
        DIGEST: digest(image),
        ID: image.id,
        OWNER: owner,
    }
    record = {"architecture": machine, "creation_date": created, "properties": properties}
    content = json.dumps(record, indent=2).encode() + b"\n"
    entry = tarfile.TarInfo("metadata.yaml")
    entry.size, entry.mtime = len(content), created
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def digest(image: Image) -> str:
    """What tells trees apart; the id in an image that an older hutch built, which has no digest."""
    return image.digest or image.id


def find_image(client: Client, image: Image) -> str | None:
    """The fingerprint of an image in the project; None where it is not there."""
    for fingerprint, properties in _observe(client):
        if properties[DIGEST] == digest(image) and properties[ID] == image.id:
            return fingerprint
    return None


def _observe(client: Client) -> Iterator[tuple[str, dict[str, str]]]:
    """The images of the project that are hutch's, with their properties; none where there is no such project."""
    try:
        images = listing(client.get(IMAGES), IMAGES)
    except Refused as error:
        if error.code != NOT_FOUND:
            raise
        return
    for image in images:
        fingerprint, properties = text(image, "fingerprint"), texts(image.get("properties"))
        if FINGERPRINT.fullmatch(fingerprint) and DIGEST in properties and is_id(properties.get(ID, "")):
            yield fingerprint, properties


def ensure_image(client: Client, layout: Layout, id: str, tell: Progress = no_progress) -> str:
    """The fingerprint of the cache's image `id` in the project, packed and uploaded unless it is there. May be called
    again, and by several at once: one of them does it. Raises HutchError for an image that is not in the cache."""
    image = whole_image(layout, id)
    if image is None:
        raise HutchError(f"the image {id} has been removed meanwhile", resolution="`hutch up` builds it")
    if (found := find_image(client, image)) is not None:
        return found
    check_tools(("mksquashfs", "systemd-nspawn", "incus"), "this host cannot bring images to an Incus server yet")
    meter = Meter(tell)
    return ensure(layout, id, meter, partial(find_image, client, image), partial(_make, client, layout, image, meter))


def _make(client: Client, layout: Layout, image: Image, meter: Meter, scratch: Path) -> None:
    """Pack an image and upload it. The caller holds the image's lock."""
    shop = Workshop(scratch, layout.build_cgroup(image.id), layout.builder_uid, meter)
    meter.advance(PACKING, 0.0)
    try:
        pack_tree(shop, "squash.sh", image.root)
    except CommandFailed as error:
        raise HutchError(
            f"{image.id} could not be packed for Incus", details=last_lines(error.stderr), resolution=error.resolution
        ) from error
    shop.tree.chmod(0o755)  # whatever the umask: the client is another user
    (scratch / METADATA).write_bytes(render_metadata(image, os.uname().machine, owner_of(layout)))
    (scratch / METADATA).chmod(0o644)
    meter.advance(UPLOADING, PACKED)
    _upload(client, shop, image)
    if find_image(client, image) is None:
        raise HutchError(
            f"the Incus server of the remote {client.place.remote} took the image {image.id}, and does not have it",
            resolution=f"`incus image list {client.place.remote}: --project {client.place.project}` shows its images",
        )
    meter.advance(UPLOADING, 1.0)


def _upload(client: Client, shop: Workshop, image: Image) -> None:
    """Import the files. The client may not look into the cache: it is started in the scratch directory, and opens the
    files there by relative paths, which needs no right to the directories above."""
    total = sum((shop.scratch / name).stat().st_size for name in (METADATA, ROOT))

    def feed(line: str) -> None:
        if (sent := bytes_sent(line)) is not None:
            shop.meter.advance(UPLOADING, PACKED + (UPLOADED - PACKED) * min(sent / total, 1.0))

    command = client.argv("image", "import", METADATA, ROOT, f"{client.place.remote}:")
    inside = ["sh", "-euc", 'cd "$1"; shift; exec "$@"', "sh", str(shop.scratch), *command]
    try:
        run_contained(inside, group=shop.group, tasks=TASKS, on_line=feed, timeout=LONGEST_UPLOAD)
    except CommandFailed as error:
        if find_image(client, image) is not None:  # another host has uploaded it meanwhile
            return
        said = [printable(line) for line in error.stderr.splitlines() if line.strip() and bytes_sent(line) is None]
        raise HutchError(
            f"the image {image.id} could not be brought to the Incus remote {client.place.remote}",
            details="\n".join(said[-5:]),
            resolution="see to the server's error; `hutch up` tries it again",
        ) from error


def bytes_sent(line: str) -> float | None:
    """The bytes that a line of the client's output says it has sent; None where it is about something else."""
    found = SENT.search(line)
    try:
        return float(found[1]) * UNITS[found[2]] if found else None
    except ValueError:
        return None


def prune_images(client: Client, owners: Collection[str], used: Collection[str]) -> tuple[str, ...]:
    """Remove the images of the project that one of the `owners` has uploaded, "" for nobody knows who, whose id is not
    in `used`, and that no instance was made from. Another hutch may just have uploaded one for its first workspace. May
    be called again. Returns the ids of those that are removed."""
    removed = []
    unused = [
        (fingerprint, properties[ID])
        for fingerprint, properties in _observe(client)
        if properties.get(OWNER, "") in owners and properties[ID] not in used
    ]
    bases = _bases(client) if unused else set()
    for fingerprint, id in unused:
        if fingerprint in bases:  # of a workspace that another host's hutch has here
            continue
        try:
            client.change("DELETE", path_to("images", fingerprint))
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
        removed.append(id)
    return tuple(sorted(removed))


def _bases(client: Client) -> set[str]:
    """The fingerprints of the images that instances of the project were made from."""
    question = path_to("instances", recursion=1)
    instances: list[dict[str, Any]] = listing(client.get(question), question)
    return {texts(instance.get("config")).get("volatile.base_image", "") for instance in instances}
