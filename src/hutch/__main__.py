"""`python -m hutch`."""

from hutch.cli import entry

entry()
