"""What this host has for virtual machines."""
