"""Diagnosis and repair of this host."""
