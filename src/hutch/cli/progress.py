"""A bar for image builds, on a terminal; one line for each stage elsewhere; with -q one for each image, since it takes
minutes. rich is imported when a bar is drawn."""

from __future__ import annotations

import sys
from typing import Any

import click

from hutch.cli.common import Options
from hutch.images.progress import WAITING


class Bar:
    """A progress bar. Its `show` takes (image, stage, fraction). To be closed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.progress: Any = None
        self.tasks: dict[str, Any] = {}
        self.stages: dict[str, str] = {}

    def listen(self, name: str, event: str, text: str) -> None:
        """Print what the engine tells, below the bar, which is done by then."""
        self.close()
        self.options.listen(name, event, text)

    def show(self, image: str, stage: str, fraction: float) -> None:
        if self.options.quiet:
            self._tell(image, is_waiting=stage == WAITING)
        elif sys.stderr.isatty():
            self._draw(image, stage, fraction)
        elif self.stages.get(image) != stage:
            self.options.say(f"{image}: {stage}")
        self.stages[image] = stage

    def _tell(self, image: str, *, is_waiting: bool) -> None:
        if is_waiting == (self.stages.get(image) == WAITING) and image in self.stages:
            return
        what = WAITING if is_waiting else "being prepared, once; this may take minutes"
        click.echo(f"hutch: image {image}: {what}", err=True)

    def _draw(self, image: str, stage: str, fraction: float) -> None:
        if self.progress is None:
            # Spares the start-up of `hutch up`.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
            )
            self.progress = Progress(*columns, console=Console(stderr=True))
            self.progress.start()
        if image not in self.tasks:
            self.tasks[image] = self.progress.add_task(image, total=1.0)
        self.progress.update(self.tasks[image], completed=fraction, description=f"{image}: {stage}")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress, self.tasks = None, {}
