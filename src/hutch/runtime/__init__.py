"""How a workspace runs: as a unit and its script; and who runs that."""
