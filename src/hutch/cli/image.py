"""image ls, build, refresh, rm, prune: the cache that all workspaces share."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

import click

from hutch.api import Hutch
from hutch.api.images import Images
from hutch.cli.common import Options, global_options, needs_root, print_json, print_table
from hutch.cli.completing import declared_names, existing_names, image_ids
from hutch.errors import UsageError
from hutch.images.recipe import DISTRIBUTIONS


@click.group()
def image() -> None:
    """The image cache: each image is built once and shared read-only."""


@image.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def list_images(options: Options, as_json: bool) -> None:
    """List the images with their age, the security updates that wait for them, and the workspaces that use them.

    Without root, those of the workspaces that one may see.
    """
    images = Images(Hutch()).listed()
    if as_json:
        print_json([image.to_json() for image in images])
        return
    rows = [
        (
            image.id,
            image.facts.image,
            f"{image.facts.size / 2**20:.0f} MiB",
            image.facts.created[:10],
            image.age.words if image.facts.image in DISTRIBUTIONS else "-",
            ", ".join(image.workspaces) or "-",
        )
        for image in images
    ]
    print_table(("ID", "IMAGE", "SIZE", "BUILT", "UPDATES", "USED BY"), rows)


@image.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=declared_names)
@needs_root
def build(options: Options, names: tuple[str, ...]) -> None:
    """Build the images of the named workspaces of the file, or of all, unless they are there."""
    # Spares the start-up of `hutch image`.
    from hutch.cli.progress import Bar

    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        built = Images(hutch).build(hutch.load(options.path), names)
    for found in built:
        click.echo(found)


@image.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=existing_names)
@click.option("--all", "is_all", is_flag=True, help="Those of all workspaces of this host, whoever declared them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@needs_root
def refresh(options: Options, names: tuple[str, ...], is_all: bool, as_json: bool) -> None:
    """Make images anew under the same recipe, with the packages and kernels that their distributions have by now.

    It makes those of the named workspaces, or of all that the file has brought up. Workspaces move to a new image at
    their next start; the old one stays as long as one of them has it. A root that is kept (persist = "all") stays on
    its image, and gets its updates from inside.
    """
    # Spares the start-up of `hutch image`.
    from hutch.apply.refreshing import NotAllRefreshed
    from hutch.cli.progress import Bar

    if names and is_all:
        raise UsageError("--all excludes names of workspaces")
    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        chosen = names or (list(hutch.records()) if is_all else hutch.brought_up(options.path))
        failure: NotAllRefreshed | None = None
        try:
            found = Images(hutch).refresh(chosen)
        except NotAllRefreshed as error:
            found, failure = error.done, error
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        for line in (line for each in found for line in each.words):
            click.echo(line)
    if failure is not None:
        raise failure
    if not found and not as_json:
        options.say("hutch: there is no workspace whose image could be made anew")


@image.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=image_ids)
@needs_root
def rm(options: Options, ids: tuple[str, ...]) -> None:
    """Remove images that no workspace uses."""
    Images(Hutch(listen=options.listen)).remove(ids)


@image.command()
@needs_root
def prune(options: Options) -> None:
    """Remove every image that no workspace uses."""
    for found in Images(Hutch(listen=options.listen)).prune():
        click.echo(found)
