"""Runs a Launch: `control` is the command's side, `embedded` the one small process that each workspace has."""
