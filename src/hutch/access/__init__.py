"""Ways into a running workspace: commands, copies, ssh."""
