"""Processes, units, cgroups and locks of this host."""
