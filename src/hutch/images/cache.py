"""The images of one hutch: images/<id>/{root,image.json}, built once, then never written again.

images/ is root's alone, since the trees hold setuid programs that no user of the host may reach. Each image
has a lock, images/<id>.lock, a file that is there while somebody holds it: they may make or remove images/<id> and
its scratch directory images/.build-<id>. An image appears and disappears by one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from hutch.errors import HutchError
from hutch.files import sync_directory, write_atomic
from hutch.host.services.lock import take
from hutch.images import progress as stages
from hutch.images.build import BuilderNetwork, Workshop, check_host, make_tree
from hutch.images.contain import end_contained
from hutch.images.progress import WAITING, Meter, Progress, no_progress
from hutch.images.recipe import Recipe, is_id
from hutch.images.record import SCRATCH, Image, Sources, render_image, whole_image
from hutch.run import PIPE, CommandFailed, describe, run, start
from hutch.spec.names import Layout
from hutch.spec.record import iso
from hutch.state import make_directory
from hutch.trees.removing import remove_tree

T = TypeVar("T")

CHUNK = 1 << 20
PATIENCE = 3600.0  # seconds that one waits for builds of others


def ensure_image(
    recipe: Recipe,
    layout: Layout,
    *,
    progress: Progress = no_progress,
    builder: BuilderNetwork | None = None,
    before: Image | None = None,
) -> Image:
    """The image of a recipe, built unless it is there. While somebody else builds it, waits for theirs. If the new tree
    is the same as that of `before`, an older edition, nothing is published, and `before` is returned.

    `builder` lends a network to what runs in the tree; without it, setup scripts have none. Whoever passes one holds
    the lock "network": there is one builder's place in it. That lock comes before an image's.
    """
    if (found := whole_image(layout, recipe.id)) is not None:
        return found
    check_host(recipe)
    meter, same = Meter(progress), False

    def make(scratch: Path) -> None:
        nonlocal same
        target, root = layout.images / recipe.id, layout.image_root(recipe.id)
        if root.is_dir():  # it was published whole, and only its record is damaged
            write_image(target, recipe, digest_tree(root))
            return
        shop = Workshop(scratch, layout.build_cgroup(recipe.id), layout.builder_uid, meter)
        sources = make_tree(recipe, shop, builder if recipe.wants_network else None)
        meter.advance(stages.PUBLISHING, 0.96)
        digest = digest_tree(shop.tree)
        same = before is not None and digest == before.digest
        if not same:
            for entry in list(scratch.iterdir()):
                if entry != shop.tree:
                    remove_tree(entry)
            write_image(scratch, recipe, digest, sources)
            publish(scratch, target)
        meter.advance(stages.PUBLISHING, 1.0)

    return ensure(layout, recipe.id, meter, lambda: before if same else whole_image(layout, recipe.id), make)


def ensure(layout: Layout, id: str, meter: Meter, observe: Callable[[], T | None], make: Callable[[Path], None]) -> T:
    """The entry that `observe` finds in the cache; where it finds none, `make` makes it, in a directory of its own,
    under the lock `id`. While somebody else makes it, waits for theirs. Whatever fails, nothing of it is left."""
    prepare_directory(layout)
    with locked(layout, id, waiting=lambda: meter.advance(WAITING, 0.0)):
        if observe() is None:
            with new_scratch(layout, id) as scratch:
                make(scratch)
        found = observe()
    assert found is not None
    return found


def digest_tree(root: Path) -> str:
    """The SHA-256 of a tree with all its names, owners, modes, times, attributes and content."""
    command = [
        *("timeout", "3600", "tar", "--create", f"--directory={root}", "--sort=name", "--format=posix", "--xattrs"),
        *("--acls", "--numeric-owner", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "."),
    ]
    digest = hashlib.sha256()
    with TemporaryFile() as errors, start(command, stdout=PIPE, stderr=errors) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(CHUNK):
            digest.update(chunk)
        if process.wait():
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
            raise CommandFailed(command, describe(process.returncode), said, process.returncode)
    return digest.hexdigest()


def write_image(directory: Path, recipe: Recipe, digest: str, sources: Sources = ()) -> None:
    """Write the record of the tree in an image's directory. The image was created when its top was last changed."""
    root = directory / "root"
    created = iso(os.stat(root).st_ctime)
    on_disk = run(["du", "--summarize", "--one-file-system", "--block-size=1", str(root)], timeout=600)
    content = render_image(recipe, created, int(on_disk.stdout.split()[0]), digest, sources)
    write_atomic(directory / "image.json", content, mode=0o600)


def publish(scratch: Path, target: Path) -> None:
    """Publish an image by one rename. One without its tree gets this one; machines may run from the files beside it."""
    if target.is_dir():
        os.rename(scratch / "root", target / "root")
        os.rename(scratch / "image.json", target / "image.json")
        sync_directory(target)
    else:
        os.rename(scratch, target)
    sync_directory(target.parent)


def remove_image(id: str, layout: Layout) -> None:
    """Remove an image. May be called again. The caller knows that no workspace uses it."""
    if not is_id(id):
        raise HutchError(f"{id!r} is not the id of an image", resolution="`hutch image ls` lists them")
    if not layout.images.is_dir():
        return
    with locked(layout, id):
        remove_scratch(layout, id)
        if (layout.images / id).exists():
            os.rename(layout.images / id, layout.images / f"{SCRATCH}{id}")
            sync_directory(layout.images)
            remove_scratch(layout, id)


def collect_leftovers(layout: Layout) -> tuple[str, ...]:
    """Remove leftovers of killed builds and removals; returns the ids. Running builds are not touched."""
    if not layout.images.is_dir():
        return ()
    removed = []
    for entry in sorted(layout.images.iterdir()):
        id = entry.name.removeprefix(SCRATCH)
        if id == entry.name or not is_id(id):
            continue
        try:
            with locked(layout, id, wait=False):
                remove_scratch(layout, id)
        except BlockingIOError:
            continue
        removed.append(id)
    return tuple(removed)


def prepare_directory(layout: Layout) -> None:
    make_directory(layout.state)
    make_directory(layout.images, 0o700)
    layout.images.chmod(0o700)


@contextmanager
def new_scratch(layout: Layout, id: str) -> Iterator[Path]:
    """An empty directory to build in; in the end it is removed, with its processes. The caller holds the image's
    lock."""
    remove_scratch(layout, id)  # leftovers of a killed build
    scratch = layout.images / f"{SCRATCH}{id}"
    try:
        make_open(scratch)
        yield scratch
    finally:
        remove_scratch(layout, id)


def make_open(directory: Path) -> None:
    """Make a directory that builds may look into, whatever the umask."""
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)


def remove_scratch(layout: Layout, id: str) -> None:
    """End and remove the leftovers of a build. The caller holds the image's lock."""
    scratch = layout.images / f"{SCRATCH}{id}"
    if scratch.exists():
        end_contained(layout.build_cgroup(id))
        remove_tree(scratch)


@contextmanager
def locked(
    layout: Layout, name: str, *, wait: bool = True, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold images/<name>.lock, and remove it in the end. Children do not inherit it.

    Without `wait`, raises BlockingIOError where another holds it; `waiting` is called before a wait, which names the
    holder, and ends some time: then Busy is raised.
    """
    path, deadline = layout.images / f"{name}.lock", time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if waiting is not None:
                    waiting()
                take(descriptor, max(0.0, deadline - time.monotonic()))
            if not is_still(path, descriptor):  # its last holder removed it
                continue
            try:
                yield
            finally:
                if is_still(path, descriptor):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` names the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
