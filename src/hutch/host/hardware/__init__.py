"""This host's hardware for virtual machines."""
