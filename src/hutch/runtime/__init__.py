"""The running of workspaces: a unit and its script, and the managers that run it."""
