"""What a workspace did is told by its record: on a page, and as a stream of events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.host.egress import REFUSED, eventually, kill_egress_proxy, start_agent
from tests.host.instance import Instance
from tests.support.world import FAR, RESOLVERS, ZONE_RESOLVER

NAMED = FAR[20]
COMMIT = "git -c user.email=a@b.c -c user.name=a commit -q -a -m"
INSIDE = f"""set -e
cd /src/x
echo more >>file && {COMMIT} inside
echo again >>file
printf x >'new
$(touch hit)'
git init -q deep/made && git init -q --bare deep/bare
git -C deep/made config core.fsmonitor 'touch /src/x/hit; false'
git init -q ~/clone && cd ~/clone && echo 1 >one && git add one && {COMMIT} one
"""


HOSTILE = f"""set -e
cd /src/x
make() {{ git init -q "$1" && cd "$1" && echo 1 >one && git add one && {COMMIT} one && echo 2 >one; }}
(make pipe && mkfifo .git/index.lock .gitattributes)
(make filter && git config filter.x.clean 'touch /src/x/hit' && echo '* filter=x' >.gitattributes)
(make runs && git config core.fsmonitor 'touch /src/x/hit; false' && git config diff.external 'touch /src/x/hit' &&
  git config diff.x.textconv 'touch /src/x/hit' && echo '* diff=x' >.gitattributes &&
  printf '#!/bin/sh\ntouch /src/x/hit\n' >.git/hooks/post-index-change && chmod +x .git/hooks/post-index-change)
(make hooks && git config core.worktree / && seq -f '.git/hooks/a-hook-whose-name-is-as-long-as-it-may-be-%06g' 40000 |
  xargs touch)
(mkdir -p link && ln -s /etc link/.git)
(mkdir -p away && echo 'gitdir: /proc/1/root' >away/.git)
(cd /src/x && mkdir -p "$(printf 'esc\033[2J<b>')" && git init -q "$(printf 'esc\033[2J<b>')")
"""


@pytest.fixture
def watched(shared: Instance) -> Iterator[Instance]:
    """The hutch, with a resolver that knows what the test's zone says."""
    shared.world.zone.put("*.example", a=[FAR[0]])
    shared.world.use_resolver(ZONE_RESOLVER)
    yield shared
    shared.world.use_resolver(RESOLVERS[0])


def report(shared: Instance, *words: str, code: int = 0, as_user: str = "root") -> dict[str, Any]:
    result = shared.hutch("report", *words, "--format", "json", check=False, as_user=as_user)
    assert result.returncode == code, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def check_out(shared: Instance) -> Path:
    """A checkout of the host's, with one commit of long ago, and a repository in it."""
    top = shared.directory / "checkout"
    old = {"GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}
    for place in (top, top / "lib"):
        place.mkdir()
        (place / "file").write_text("one\n")
        script = f"git init -q && echo /lib >.git/info/exclude && git add file && {COMMIT} one"
        subprocess.run(["sh", "-euc", script], cwd=place, check=True, timeout=30, env={**os.environ, **old})
    for each in (top, *top.rglob("*")):
        os.chown(each, 1000, 1000, follow_symlinks=False)
    return top


@pytest.mark.vm(slow=True)
def test_changed_files_and_new_repositories_are_named_and_nothing_of_theirs_runs(
    shared: Instance, name: str, workspace_type: str
) -> None:
    top = check_out(shared)
    subprocess.run(["sleep", "1.1"], check=True, timeout=5)  # times of files are compared by the second
    shared.declare(workspace_type, **{name: f'mounts = [{{ source = "{top}", target = "/src/x" }}]'})
    shared.up()
    shared.inside(name, "sh", "-c", INSIDE)
    told = report(shared, name, "--since", "1h")
    assert told["peaks"]["cpu_seconds"] > 0
    changes = told["changes"]
    assert changes["problem"] == ""
    clone, checkout = changes["repositories"]
    assert clone["path"].endswith("/clone")
    assert (clone["commits"], [each["path"] for each in clone["files"]]) == (1, ["one"])
    assert (checkout["path"], checkout["commits"]) == ("/src/x", 1)
    files = {each["path"]: (each["added"], each["deleted"], each["is_tracked"]) for each in checkout["files"]}
    assert files["file"] == (2, 0, True)
    assert files['"new\\n$(touch hit)"'] == (None, None, False)
    assert [path for path in changes["new"] if "/lib" not in path] == ["/src/x/deep/bare", "/src/x/deep/made"]
    assert not (top / "hit").exists()
    page = shared.hutch("report", name, "--format", "html").stdout
    assert "deep/made" in page
    assert "<script" not in page


def test_names_that_were_asked_for_are_in_the_record(watched: Instance, name: str) -> None:
    watched.world.zone.put("named.example", a=[NAMED])
    watched.declare("container", **{name: 'egress = ["named.example"]'})
    watched.up()
    with (
        watched.spawn("events", "-f", name, stdout=subprocess.PIPE, text=True) as process,
        start_agent(watched, name) as agent,
    ):
        try:
            assert agent.reach("named.example") == NAMED
            assert agent.ask("other.example").code == REFUSED

            def told() -> dict[tuple[str, str], str]:
                found = report(watched, name, "--no-files")["destinations"]
                return {(each["verdict"], each["where"]): each["why"] for each in found}

            assert eventually(lambda: len(told()) >= 3)
            assert told()["asked", "named.example"] == ""
            assert told()["allowed", "named.example"] == ""
            assert told()["refused", "other.example"] == "not listed"
            assert process.stdout is not None
            lines = [json.loads(process.stdout.readline()) for _ in range(3)]
            assert {line["workspace"] for line in lines} == {name}
            assert "egress" in {line["event"] for line in lines}
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert report(watched, name, "--no-files", "--verify")["damages"] == []
    record = watched.state / "log" / f"{name}.jsonl"
    record.write_text(record.read_text().replace("other.example", "never.example"))
    damaged = report(watched, name, "--no-files", "--verify", code=1)["damages"]
    assert "does not follow from the one before it" in damaged[0]
    assert damaged == report(watched, name, "--no-files")["damages"]


def test_an_egress_proxy_that_is_stopped_tells_what_it_has_counted(watched: Instance, name: str) -> None:
    watched.declare("container", **{name: 'egress = ["t.example"]'})
    watched.up()
    with start_agent(watched, name) as agent:
        for _ in range(7):
            assert agent.ask("t.example").ips == [FAR[0]]
    watched.declare("container", **{name: ""})
    watched.up()
    counts = {each["where"]: each["count"] for each in report(watched, name, "--no-files")["destinations"]}
    assert counts == {"t.example": 7}


def test_a_page_of_metrics_tells_what_it_does_and_asks_for(watched: Instance, name: str) -> None:
    def page(*names: str) -> dict[str, float]:
        families = text_string_to_metric_families(watched.hutch("status", "--openmetrics", *names).stdout)
        samples = (sample for family in families for sample in family.samples)
        return {
            sample.name + sample.labels.get("state", ""): sample.value
            for sample in samples
            if sample.labels["workspace"] == name
        }

    watched.declare("container", **{name: 'egress = ["t.example"]'})
    assert page()["hutch_workspace_stateabsent"] == 1
    watched.up()
    with start_agent(watched, name) as agent:
        assert agent.ask("other.example").code == REFUSED
        assert eventually(lambda: page(name).get("hutch_workspace_day_refusals") == 1)
    found = page(name)
    assert found["hutch_workspace_staterunning"] == found["hutch_workspace_day_starts"] == 1
    assert found["hutch_workspace_ready_seconds"] > 0
    assert found.get("hutch_workspace_memory_bytes", 1 << 20) >= 1 << 20  # not every host's cgroups count it
    assert watched.hutch("status", "--openmetrics", "--json", check=False).returncode == 2


@pytest.mark.slow
def test_a_flood_of_names_is_counted_and_takes_little_of_the_record(watched: Instance, name: str) -> None:
    watched.declare("container", **{name: 'egress = ["*.t.example"]'})
    watched.up()
    with start_agent(watched, name) as agent:
        agent.flood("t.example", "u.example", 3000, 8)
        kill_egress_proxy(watched, signal.SIGTERM)  # which has it tell at once what it would tell within an hour

        def told() -> list[dict[str, Any]]:
            found = report(watched, name, "--no-files")["destinations"]
            assert isinstance(found, list)
            return found

        # All are counted, those that have a line and those that have none.
        assert eventually(lambda: sum(each["count"] for each in told()) == 3000, 30, pause=0.5)
        assert {each["where"] for each in told() if each["verdict"] == "lost"} == {None}
        assert (watched.state / "log" / f"{name}.jsonl").stat().st_size < 400_000
        watched.hutch("stop", name)
    assert report(watched, name, "--no-files", "--verify")["life"][-1]["event"] == "stopped"


@pytest.mark.slow
def test_its_owner_reads_it_and_with_whom_it_is_shared(watched: Instance, name: str) -> None:
    watched.declare("container", **{name: 'owner = "alice"\negress = ["named.example"]'})
    watched.up()
    with start_agent(watched, name) as agent:
        agent.ask("other.example")
        assert eventually(lambda: report(watched, name)["destinations"])
    found = report(watched, name, as_user="alice")
    assert [each["where"] for each in found["destinations"]] == ["other.example"]
    assert found["changes"] is None
    assert "root alone" in found["unseen"]
    assert watched.hutch("report", name, as_user="bob", check=False).returncode == 1
    assert '"egress"' in watched.hutch("events", as_user="alice").stdout
    assert watched.hutch("events", as_user="bob").stdout == ""
    watched.declare("container", **{name: 'owner = "alice"\negress = ["named.example"]\nshare_with = ["bob"]'})
    watched.up()
    assert report(watched, name, as_user="bob")["destinations"] == found["destinations"]
    assert '"egress"' in watched.hutch("events", as_user="bob").stdout


@pytest.mark.slow
def test_a_repository_that_is_in_the_way_is_named_and_runs_nothing(shared: Instance, name: str) -> None:
    top = shared.directory / "hostile"
    top.mkdir()
    os.chown(top, 1000, 1000)
    shared.declare("container", **{name: f'mounts = [{{ source = "{top}", target = "/src/x" }}]'})
    shared.up()
    shared.inside(name, "sh", "-c", HOSTILE)
    result = shared.hutch("report", name, "--format", "json")
    changes = json.loads(result.stdout)["changes"]
    assert changes["problem"] == ""
    told = {each["path"].removeprefix("/src/x/"): each for each in changes["repositories"]}
    assert "a pipe or a device" in told["pipe"]["problem"]
    assert "filters" in told["filter"]["problem"]
    assert [each["path"] for each in told["runs"]["files"]] == ["one", ".gitattributes"]
    assert "cannot read" in told["away"]["problem"]
    new = {path.removeprefix("/src/x/") for path in changes["new"]}
    assert new >= {"pipe", "filter", "runs", "hooks", "link", "away", "esc?[2J<b>"}
    assert not (top / "hit").exists()
    assert "\x1b" not in shared.hutch("report", name).stdout
    assert "&lt;b&gt;" in shared.hutch("report", name, "--format", "html").stdout


@pytest.mark.parametrize("ends", ["signal", "pipe"])
def test_a_stream_of_events_ends_with_its_reader(shared: Instance, name: str, ends: str) -> None:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with shared.spawn("events", "-f", **options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert eventually(lambda: is_waiting(process.pid))
            if ends == "pipe":
                process.stdout.close()
            else:
                process.terminate()
            assert process.wait(timeout=30) == (0 if ends == "pipe" else 128 + signal.SIGTERM)
            assert process.stderr.read() == ""
        finally:
            process.kill()


def is_waiting(pid: int) -> bool:
    """Whether a process has asked the kernel to tell it of changes."""
    return any("inotify" in os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink())


def test_what_is_asked_wrongly_is_refused(shared: Instance, name: str) -> None:
    said = ""
    for words in (("report", "nobody"), ("events", "nobody"), ("report", "nobody", "--since", "noon")):
        result = shared.hutch(*words, check=False)
        assert result.returncode == 2, result.stderr
        said = result.stderr
    assert "30min, 2h or 3d" in said
