"""`hutch prove`: what hutch promises, tried on this host from inside a workspace and judged from outside."""
