"""Ways into a workspace that runs: commands, copies, ssh."""
