"""image ls, build, rm, prune: the cache that all workspaces share."""

from __future__ import annotations

from contextlib import closing

import click

from hutch.api import Hutch
from hutch.api.images import Images
from hutch.cli.common import Options, needs_root, print_json, print_table
from hutch.cli.completing import declared_names, image_ids


@click.group()
def image() -> None:
    """The image cache: each image is built once and shared read-only."""


@image.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@needs_root
def list_images(options: Options, as_json: bool) -> None:
    """List the images and who uses them."""
    images = Images(Hutch()).observe()
    if as_json:
        keys = ("id", "image", "packages", "created", "size")
        entries = [{key: getattr(image, key) for key in keys} for image in images]
        print_json([{**entry, "workspaces": users} for entry, users in zip(entries, images.values(), strict=True)])
        return
    rows = [
        (image.id, image.image, f"{image.size / 2**20:.0f} MiB", ", ".join(users) or "-")
        for image, users in images.items()
    ]
    print_table(("ID", "IMAGE", "SIZE", "USED BY"), rows)


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
