"""What a workspace's service says of itself, written as runtime/unit.sh does: for tests in which none runs."""

from __future__ import annotations

import json
import os
from typing import Any

from hutch.host.services.process import start_time
from hutch.spec.names import Layout


def words(state: str, **more: Any) -> dict[str, Any]:
    """Those of a workspace whose main process is this very one."""
    said = {"state": state, "pid": os.getpid(), "started": start_time(os.getpid()), "ready_seconds": None}
    return {**said, "leader": None, "reason": "", "cgroup": "hutch.slice/hutch-ws_x.slice/hutch@x.service", **more}


def write_status(layout: Layout, name: str, state: str, **more: Any) -> None:
    path = layout.status(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(words(state, **more))}\n")
