"""Names, keys, and the view of workspaces for people without root."""
