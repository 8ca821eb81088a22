"""A program of its own: changes what a container is shown, in the mount namespace of its service, where it is started.

It reads JSON, what is `shown`, what is `wanted` (grafts of a Launch), the step that may `resize` the root, and the
`leader`, the guest's PID 1, with when that was `started`; and writes JSON, by key, why something is not so.
"""

from __future__ import annotations

import json
import sys
import time

from hutch.host.services.process import start_time
from hutch.runtime.grafts import Grafts
from hutch.runtime.steps import SideBySide, StartFailed

PATIENCE = 10.0  # seconds for a root to be given another size


def main() -> None:
    change = json.load(sys.stdin)
    grafts = Grafts()
    grafts.shown = change["shown"]
    complaints = {"mounts": "", "disk": ""}
    try:
        if start_time(change["leader"]) == change["started"]:
            grafts.renew(change["wanted"], change["leader"])
    except (StartFailed, OSError) as error:
        complaints["mounts"] = str(error)
    complaints["disk"] = resize(change["resize"])
    json.dump(complaints, sys.stdout)


def resize(step: dict[str, object] | None) -> str:
    """Give a root in memory the size that the Launch says. Returns why not."""
    try:
        SideBySide([[step]] if step else []).finish(time.monotonic(), PATIENCE)
    except StartFailed as error:
        said = str(error).partition("\n")[0]
        return f"the root cannot become so small while more of it is in use ({said})"
    return ""
