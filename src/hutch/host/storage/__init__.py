"""The host's directories and disks that workspaces are shown, and their mounts."""
