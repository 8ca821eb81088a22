"""Other people's packages that a distribution's package of hutch brings along, since the distribution has none of them.
They lie beside hutch's own modules; installed in other ways, hutch has no such directory, and this does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

VENDOR = Path(__file__).with_name("vendor")


def use_bundled() -> None:
    """Let bundled packages be imported. Those that are installed by themselves come first."""
    if VENDOR.is_dir() and str(VENDOR) not in sys.path:
        sys.path.append(str(VENDOR))
