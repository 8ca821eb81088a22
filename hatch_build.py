"""Puts the manual pages into a wheel, where pipx and pip look for them. An editable install, a checkout's, has none."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface):
    """hatchling finds this class by its base."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        sys.path[:0] = [self.root, str(Path(self.root) / "src")]
        from package.manual import main

        self.pages = tempfile.TemporaryDirectory()
        main(self.pages.name)
        for page in Path(self.pages.name).iterdir():
            build_data["shared_data"][str(page)] = f"share/man/man{page.suffix[1:]}/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.pages.cleanup()
