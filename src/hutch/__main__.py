"""`python -m hutch`."""

from hutch.cli import main

main()
