"""Clones: git work that goes from a repository of the host into a workspace, and comes back as objects."""
