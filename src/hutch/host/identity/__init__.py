"""Names, keys, and what people without root see of workspaces."""
