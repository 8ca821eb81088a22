"""The examples that hypothesis tries. It takes longer to import than pytest, so only tests that use it do."""

from __future__ import annotations

from hypothesis import settings


def fix_examples() -> None:
    """The same examples on every run, and none kept on disk: a test that fails here fails everywhere. No deadline,
    because the machine may be busy with something else."""
    settings.register_profile("hutch", derandomize=True, database=None, deadline=None)
    settings.load_profile("hutch")
