"""The questions and connections of workspaces: how these are heard, written down and read again."""
