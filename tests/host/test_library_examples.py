"""The Python programs of examples/, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.host.instance import Completed, Instance

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(instance: Instance, example: str, *arguments: str) -> Completed:
    result = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=instance.directory,
        env=instance.environment(),
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def test_a_checkout_is_tested(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, agent="")
    checkout = instance.directory / "checkout"
    checkout.mkdir()
    (checkout / "test.sh").write_text(
        "mkdir results; echo $CI >results/log; ln -s /etc results/etc; echo tested; exit 4\n"
    )
    result = run(instance, "agent_checkout.py", "hutch.toml", "agent", "checkout", "out", "--", "sh", "test.sh")
    assert (result.returncode, result.stderr) == (4, "")
    assert result.stdout.splitlines() == [
        f"copied 1 files, {(checkout / 'test.sh').stat().st_size} bytes",
        "tested",
        "exit code 4",
        "1 results are in out",
        "left out: 'etc': a link to '/etc', which lies outside of the copy",
    ]
    assert {path.name: path.read_text() for path in (instance.directory / "out").iterdir()} == {"log": "1\n"}
    assert not (checkout / "results").exists()
    wrong = run(instance, "agent_checkout.py", "hutch.toml", "agent", "no-such", "out", "--", "true")
    assert (wrong.returncode, wrong.stderr.strip()) == (1, "no-such cannot be read: No such file or directory")


def test_many_at_once(instance: Instance, workspace_type: str) -> None:
    names = ("one", "two", "three")
    instance.declare(workspace_type, **dict.fromkeys(names, ""))
    script = "case $(hostname) in one) exit 1;; two) echo found;; *) exec sleep 4316;; esac"
    result = run(instance, "many_at_once.py", "hutch.toml", "--", "sh", "-c", script)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert {f"{name}: ready" for name in names} <= set(lines)  # "waiting for another hutch" may stand beside them
    assert lines[-1] == "two was first: found"
    assert instance.inside("three", "pgrep", "-f", "[s]leep 4316", check=False).returncode == 1


def test_careful_up(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, web="")
    first = run(instance, "careful_up.py", "hutch.toml")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("web: create\n")
    assert first.stdout.endswith(f"web is running at {instance.status('web')['ip']}\n")
    assert run(instance, "careful_up.py", "hutch.toml").stdout.startswith("web: no change\nweb is running")
    pid = instance.status("web")["pid"]
    instance.declare(workspace_type, web='user = "other"')
    refused = run(instance, "careful_up.py", "hutch.toml")
    assert refused.returncode == 3
    assert "    user: 'dev' -> 'other'\n" in refused.stdout
    assert refused.stdout.endswith("not done: it would interrupt web\n")
    assert instance.status("web")["pid"] == pid
    instance.file.write_text("nonsense = 1\n")
    wrong = run(instance, "careful_up.py", "hutch.toml")
    assert (wrong.returncode, "nonsense" in wrong.stderr) == (1, True)
