"""`hutch prove`: hutch's promises, tried on this host from inside a workspace and judged from outside."""
