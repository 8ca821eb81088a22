"""Executes plans: the only caller of effects. Under the host's lock, journaled, each step repeatable."""
