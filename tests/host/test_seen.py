"""`hutch egress` while a workspace asks and connects, and what is left of it afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import tomllib
from threading import Timer
from typing import Any

from tests.host.instance import Instance
from tests.support.world import PUBLIC, PUBLIC_NAME

LATEST = 3.0  # seconds after which what happened is shown, on a busy host


def test_what_happens_is_shown_as_it_happens_and_forgotten_with_the_workspace(instance: Instance) -> None:
    instance.declare("container", web='owner = "alice"\negress = ["listed.example"]\nlearn = true', lab="")
    warned = instance.up().stderr
    assert "web: learn = true" in warned
    assert "nothing is recorded with this policy" in instance.hutch("egress", "lab").stderr
    with instance.spawn("egress", "web", "-f", "--json", stdout=subprocess.PIPE, text=True) as follower:
        begun = time.time()
        instance.hutch("exec", "web", "--", "curl", "--silent", "--max-time", "10", f"http://{PUBLIC_NAME}/")
        instance.hutch("exec", "web", "--", "curl", "--silent", "--max-time", "1", "http://10.9.8.7/", check=False)
        assert follower.stdout is not None
        seen: list[dict[str, Any]] = []
        late = Timer(20, follower.kill)
        late.start()
        while not any(entry["address"] == "10.9.8.7" for entry in seen):
            seen.append(json.loads(follower.stdout.readline()))
        shown = time.time()
        late.cancel()
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 0
    found = {(e["what"], e["verdict"], e["name"], e["address"], e["port"]) for e in seen}
    assert ("dns", "learned", PUBLIC_NAME, PUBLIC, None) in found
    assert ("connection", "learned", PUBLIC_NAME, PUBLIC, 80) in found
    assert ("connection", "refused", None, "10.9.8.7", 80) in found
    assert shown - begun < LATEST + 2  # the two commands
    suggested = instance.hutch("egress", "web", "--suggest").stdout
    assert tomllib.loads(suggested)["egress"] == ["listed.example", f"{PUBLIC_NAME}:80"]
    assert "10.9.8.7:80" in suggested
    directory = instance.state / "egress"
    assert [str(path.relative_to(directory)) for path in directory.glob("*/*")] == ["web/records.jsonl"]
    seen_by_root = instance.hutch("egress", "web", "--json").stdout
    assert instance.hutch("egress", "web", "--json", as_user="alice").stdout == seen_by_root
    other = instance.hutch("egress", "web", as_user="bob", check=False)
    assert other.returncode == 1 and "web is not yours" in other.stderr
    instance.hutch("rm", "--force", "--purge", "web")
    time.sleep(1.5)  # what was seen last would have been written by now
    assert not (directory / "web").exists()
