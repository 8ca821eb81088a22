"""`hutch image refresh`: images made anew under the same recipes, and the workspaces that move to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from hutch.apply.building import ask_for_updates, make_image, named, recipes_for
from hutch.apply.reconcile import reconcile_again
from hutch.apply.recovery import recover
from hutch.backends import is_machine
from hutch.errors import HutchError, troubles_told
from hutch.frozen import dataclass
from hutch.host.services.lock import lock
from hutch.images import machine as machines
from hutch.images.cache import collect_leftovers, remove_image
from hutch.images.kernel import ensure_kernel
from hutch.images.progress import BuildProgress, Meter, reporter
from hutch.images.recipe import Recipe
from hutch.images.record import image_ids, whole_image
from hutch.plan.turning import no_network
from hutch.runtime.control import Listener
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import NetworkRecord, Record, present, served, users_of
from hutch.state import Damaged, read_network, read_records, write_record


@dataclass(frozen=True)
class Refreshed:
    """The outcome for one recipe: `id` is its newest edition, `before` the one until now, the same where the new tree
    is the same, "" where there was none. At their next start, workspaces that are `moving` start from the newest,
    those that are `staying` from an older one, on which their kept root lies; and those that are `booting` boot this
    `kernel`, which is newer than theirs."""

    id: str
    before: str
    moving: tuple[str, ...]
    staying: tuple[str, ...]
    booting: tuple[str, ...] = ()
    kernel: str = ""

    @property
    def words(self) -> list[str]:
        """The outcome for people, a line for each image and each workspace that it concerns."""
        what = "is up to date with its sources" if self.id == self.before else f"replaces {self.before}"
        told = {
            "moves to it at the next start": self.moving,
            "keeps its root, and so its image; update it from inside": self.staying,
            f"boots Linux {self.kernel} at the next start": self.booting,
        }
        lines = [f"{self.id} {what if self.before else 'was built'}"]
        return lines + [f"{name} {what}" for what, those in told.items() for name in those]


class NotAllRefreshed(HutchError):
    """Raised when some images could not be made anew; `done` are the others, which are in force."""

    def __init__(self, failures: Sequence[HutchError], done: list[Refreshed]) -> None:
        texts = ("\n".join(filter(None, (each.brief, each.details, each.resolution))) for each in failures[1:])
        first = failures[0]
        details = "\n".join(filter(None, (first.details, *texts)))
        super().__init__(first.brief, details=details, resolution=first.resolution)
        self.done = done


def refresh(layout: Layout, names: Collection[str], listen: Listener, progress: BuildProgress) -> list[Refreshed]:
    """Make the images of these workspaces anew, and the kernels that they boot, and ask for security updates. Editions
    that no workspace has any more are removed. The host's lock is not held during a build, so a workspace that asks for
    another image by then is left alone. An image that cannot be made stays as it is, and is no reason not to make the
    others: NotAllRefreshed comes at the end."""
    if not names:
        return []
    records = present(read_records(layout))
    network = read_network(layout)
    if network is None and served(records):
        raise no_network()
    network = network or NetworkRecord(Network(), "")  # a build makes it, and takes it away
    recipe_for, users = recipes_for(layout, records), dict[Recipe, list[str]]()
    done: list[Refreshed] = []
    failures: list[HutchError] = []
    for name in (name for name in names if name in records):
        with noted(failures), named([name]):
            users.setdefault(recipe_for(name, records[name].wanted).first, []).append(name)
    collect_leftovers(layout)
    for recipe, those in users.items():
        with noted(failures):
            now = present(read_records(layout))
            with named(those), troubles_told():
                each = refresh_recipe(layout, recipe, unchanged(those, records, now), now, network, progress)
            with lock(layout):
                recover(layout, listen)
                now = read_records(layout)
                move(layout, now, recipe, each.id, unchanged(those, records, now))
            done.append(each)
    with noted(failures), troubles_told():
        ask_for_updates(layout, listen)
    if failures:
        raise NotAllRefreshed(failures, done)
    return done


def unchanged(names: Collection[str], before: Mapping[str, Record], now: Mapping[str, Record]) -> list[str]:
    """The workspaces that still ask for the image that they asked for before."""

    def asked(record: Record) -> tuple[object, ...]:
        return record.wanted.image, record.wanted.packages, record.wanted.setup

    return [name for name in names if name in now and asked(now[name]) == asked(before[name])]


@contextmanager
def noted(failures: list[HutchError]) -> Iterator[None]:
    """Note why something failed, and go on. Damaged records are restored by whoever calls all of this."""
    try:
        yield
    except Damaged:
        raise
    except HutchError as error:
        failures.append(error)


def refresh_recipe(
    layout: Layout,
    recipe: Recipe,
    users: Collection[str],
    records: Mapping[str, Record],
    network: NetworkRecord,
    progress: BuildProgress,
) -> Refreshed:
    """Make one image of these users anew, and the files that its machines boot."""
    ids = [*image_ids(layout), *(id for record in records.values() for id in record.images)]
    newest = recipe.newest(ids)
    before = whole_image(layout, newest.id)
    wanted = replace(newest, edition=newest.edition + 1) if before else newest
    made = make_image(layout, wanted, network.network, network.file, progress, before)
    targets = targets_of(records, recipe, made.id, users)
    moving = tuple(name for name, id in targets.items() if id == made.id and records[name].images != {id})
    staying = tuple(name for name, id in targets.items() if id != made.id)
    now = Refreshed(made.id, before.id if before else "", moving, staying)
    booting = [name for name, id in targets.items() if is_machine(records[name].wanted) and whole_image(layout, id)]
    if not booting:
        return now
    machines.check_host()
    kernel = ensure_kernel(recipe.image, layout, Meter(reporter(progress, made.id)), anew=True)
    older = {id for id in ids if machines.observe_machine(layout, id) != machines.observe_machine(layout, id, kernel)}
    for id in {made.id, *(targets[name] for name in booting)}:
        machines.ensure_machine(id, recipe.image, layout, progress=reporter(progress, id), kernel=kernel)
    late = tuple(name for name in booting if records[name].images & older)
    return replace(now, booting=late, kernel=kernel.modules.name)


def targets_of(records: Mapping[str, Record], recipe: Recipe, newest: str, users: Collection[str]) -> dict[str, str]:
    """The ids of the images from which workspaces of this recipe start next, by name, with `newest` in the cache. Of
    its `users`, some may still be on an image of another recipe: of an older hutch, or of a rootfs as it was before."""
    found = {}
    for name, record in present(records).items():
        if recipe.edition_of(record.image):
            found[name] = recipe.for_workspace(record.wanted, record, [newest]).id
        elif name in users:
            found[name] = record.image if record.kept_root else newest
    return found


def move(layout: Layout, records: dict[str, Record], recipe: Recipe, newest: str, users: Collection[str]) -> None:
    """Record the editions that workspaces start from next, and remove older ones that none has. The caller holds the
    lock. Raises HutchError for an image that somebody has removed since it was made."""
    if not whole_image(layout, newest):
        raise HutchError(f"the image {newest} was removed meanwhile", resolution="run `hutch image refresh` again")
    targets = targets_of(records, recipe, newest, users)
    late = {name: id for name, id in targets.items() if records[name].image != id}
    for name, id in late.items():
        records[name] = replace(records[name], image=id)
        write_record(layout, records[name])
    if late:
        reconcile_again(layout, read_network(layout), records)
    for id in image_ids(layout):
        if 0 < recipe.edition_of(id) < recipe.edition_of(newest) and not users_of(id, records):
            remove_image(id, layout)
