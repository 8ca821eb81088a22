"""What workspaces ask for and connect to: how it is heard, written down and read again."""
