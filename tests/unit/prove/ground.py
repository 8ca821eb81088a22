"""A workspace that is not there, to make probes for."""

from __future__ import annotations

from hutch.prove.known import SAMPLE

GROUND = SAMPLE
