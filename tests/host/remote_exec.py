"""`hutch exec` by the way into virtual machines, for any workspace: what follows is exec's own arguments."""

from __future__ import annotations

from hutch.__main__ import entry
from hutch.access import inside

if __name__ == "__main__":
    inside.enter_container = inside.reach_by_ssh
    entry()
