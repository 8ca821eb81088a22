"""Parts of a tier, which run side by side: each reads its own files only, since reading all takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Share = Callable[[int, int], Sequence[Path]]
"""The files of a part, of so many parts."""


def is_of_another(path: Path, config: pytest.Config, files_of: Share) -> bool:
    """Whether the part that `--part` names leaves a file of tests to another one."""
    part, parts = map(int, config.getoption("--part").split("/"))
    return path.suffix == ".py" and path not in files_of(part, parts)
