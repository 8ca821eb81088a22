"""The name of this hutch on servers, which others may use too."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.files import read_or_none

if TYPE_CHECKING:
    from hutch.spec.names import Layout

MACHINE_ID = Path("/etc/machine-id")


def owner_of(layout: Layout) -> str:
    """The id of this hutch on servers, by which it knows a project and a network as its own. It follows from the host
    and the state directory, so it cannot get lost; it does not tell the host's own id."""
    host = read_or_none(MACHINE_ID) or os.uname().nodename.encode()
    return hashlib.sha256(b"hutch on a server\0" + host.strip() + b"\0" + bytes(layout.state)).hexdigest()[:32]
