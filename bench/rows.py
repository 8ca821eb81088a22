"""What is measured of containers and commands, and what is promised: one function per scenario, each yielding the
rows it fills. Those of virtual machines are in vms.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bench import cluster, egress, vms
from bench.bare import Bare
from bench.incus import Incus
from bench.machine import has_systemd
from bench.measure import BenchError, Samples, Usage, blocks_below, interleave, run, say, seconds, usage
from bench.messages import echo
from bench.ours import Hutch
from bench.table import Row, Scenario, Setting

MANY = 20
SEVERAL, LARGE = 200, 10_000  # declared, and not running
START_UP = "import argparse, json"


def new_workspace(setting: Setting) -> Iterator[Row]:
    """From a declaration to a first ssh, for a workspace and an Incus container that were never there before."""
    hutch = setting.hutch
    incus = Incus(setting.tree, setting.work)
    hutch.declare("first")
    hutch("up")  # both sides have their network, as on any day but the first
    grown: list[float] = []

    def ours(number: int) -> float:
        name = f"new-{number}"
        hutch.declare("first", name)
        before = blocks_below(str(hutch.state))
        took = seconds(hutch.argv("up", name)) + seconds(["ssh", f"workspace-{name}", "true"])
        os.sync()
        grown.append(float(blocks_below(str(hutch.state)) - before))
        hutch.remove(name)
        return took

    samples, reference = interleave(setting.rounds, ours, incus.new_to_ssh)
    hutch.remove("first")
    incus.stop()
    yield Row(
        "new",
        "a workspace never seen before: `hutch up` and `ssh workspace-NAME true`",
        "s",
        samples,
        reference,
        "`incus init`, `incus start` and the same ssh, same root tree",
        0.35,
    )
    yield Row(
        "disk",
        "disk taken by one more workspace of an image in use",
        "bytes",
        Samples(tuple(grown)),
        bound=2**20,
        note="allocated blocks below the state directory, while it runs",
    )


def start(setting: Setting) -> Iterator[Row]:
    """`hutch start` against systemd-nspawn by hand."""
    hutch = setting.hutch
    bare = Bare(setting.tree, setting.work)
    hutch.declare("web")
    hutch("up")
    hutch("stop", "web")

    def ours(_number: int) -> float:
        took = seconds(hutch.argv("start", "web"))
        hutch("stop", "web")
        return took

    samples, reference = interleave(setting.rounds * 3, ours, bare.start_to_ready)  # a third of a second each
    hutch.remove("web")
    yield Row(
        "start",
        "`hutch start` of an existing workspace, to ready",
        "s",
        samples,
        reference,
        "`systemd-nspawn` by hand, from its start to sshd's banner, same root tree",
        1.25,
    )


def here(setting: Setting) -> Iterator[Row]:
    """`hutch run -- true` in a directory that was never seen before, against systemd-nspawn by hand and ssh; and in one
    whose workspace runs, against ssh."""
    hutch = setting.hutch
    bare = Bare(setting.tree, setting.work)
    hutch.declare("first")
    hutch("up")
    template = Path("~/.config/hutch/run.toml").expanduser()
    if template.exists():
        raise BenchError(f"{template} would count: move it away")

    def into(number: int) -> list[str]:
        place = setting.work / f"hutchbench-{number}"
        place.mkdir(exist_ok=True)
        return ["env", "-C", str(place), "-u", "HUTCH_FILE", *hutch.argv("run", "--", "true")]

    def forget(number: int) -> None:
        hutch.remove(f"hutchbench-{number}")
        for place in (".config/hutch/run/{}.toml", ".local/state/hutch/run/{}.json"):
            path = Path("~", place.format(f"hutchbench-{number}")).expanduser()
            path.unlink(missing_ok=True)
            for directory in (path.parent, path.parent.parent):
                with suppress(OSError):  # it has something of somebody's in it
                    directory.rmdir()

    def ours(number: int) -> float:
        took = seconds(into(number))
        forget(number)
        return took

    new, reference = interleave(setting.rounds * 3, ours, bare.start_to_ssh)
    run(into(99))
    again, ssh = interleave(
        setting.rounds * 4,
        lambda _: seconds(into(99)),
        lambda _: seconds(["ssh", "workspace-hutchbench-99", "true"]),
    )
    forget(99)
    hutch.remove("first")
    name = "`systemd-nspawn` by hand, from its start, and a command by ssh, same root tree"
    what = "`hutch run -- true` in a new directory"
    yield Row("run", what, "s", new, bound=1.0)
    yield Row("run-nspawn", what, "s", new, reference, name, 1.6)
    late = Samples(tuple(one - other for one, other in zip(again.values, ssh.values, strict=True)))
    what = "`hutch run -- true` in a directory whose workspace runs, longer than `ssh workspace-NAME true`"
    yield Row(
        "run-again",
        what,
        "s",
        late,
        bound=0.1,
        note=f"{again.median * 1000:.0f} ms, of which ssh {ssh.median * 1000:.0f} ms",
    )


def messages(setting: Setting) -> Iterator[Row]:
    """A million messages through `hutch exec` and back, against ssh."""
    hutch = setting.hutch
    hutch.declare("web")
    hutch("up")
    count = 100_000 if setting.quick else 1_000_000
    ours = echo(hutch.argv("exec", "web", "--", "cat"), count)
    theirs = echo(["ssh", "workspace-web", "cat"], count)
    hutch.remove("web")
    what = f"of {count} messages through `hutch exec NAME -- cat` and back"
    shares = ((0.5, "the median"), (0.99, "the 99th percentile"), (1.0, "the last"))
    told = [
        f"{name} {ours.late(share) * 1000:.2f} ms, by ssh {theirs.late(share) * 1000:.2f} ms" for share, name in shares
    ]
    late = Samples((ours.late(0.99) - theirs.late(0.99),))
    yield Row("late", f"99 of 100 {what}, later than by ssh", "s", late, bound=0.05, note="; ".join(told))
    yield Row("lost", f"{what}, those lost", "", _one(ours.lost), bound=0)


def many(setting: Setting) -> Iterator[Row]:
    """Twenty at once, and everyday commands with twenty there."""
    hutch = setting.hutch
    names = [f"n{number:02}" for number in range(MANY)]
    hutch.declare("one", *names)
    hutch("up", "--no-start")

    def together(*chosen: str) -> float:
        took = seconds(hutch.argv("up", *chosen))
        hutch.must_run(*chosen)
        hutch("down", *chosen)
        return took

    all_at_once, one = interleave(setting.rounds, lambda _: together(*names), lambda _: together("one"))
    yield Row(
        "twenty",
        f"`hutch up` of {MANY} stopped workspaces, to all ready, none failed",
        "s",
        all_at_once,
        one,
        "`hutch up` of one",
        8,
    )
    hutch.remove("one")
    hutch.declare(*names)
    hutch("up")
    hutch.must_run(*names)
    yield _memory(hutch, names)
    yield from _commands(setting)
    yield from _nothing_to_do(hutch)
    hutch("down")
    hutch.remove(*names)


def _memory(hutch: Hutch, names: list[str]) -> Row:
    time.sleep(5)  # let start-up work end
    sizes = [float(sum(_proportional_size(pid) for pid in hutch.pids(name))) for name in names]
    if not all(sizes):
        raise BenchError("a running workspace without a process in its cgroup")
    return Row(
        "memory",
        f"memory of an idle workspace (proportional set size, {MANY} running)",
        "bytes",
        Samples(tuple(sizes)),
        bound=(11 if has_systemd() else 15) * 2**20,
        note="every process of its cgroup, whatever serves it included",
    )


def _proportional_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _commands(setting: Setting) -> Iterator[Row]:
    hutch = setting.hutch
    rounds = setting.rounds * 4  # they are short, so more of them cost nothing
    labels = {"ls": ("ls",), "status": ("status", "--json"), "again": ("up",)}
    contenders = [lambda _, words=words: seconds(hutch.argv(*words)) for words in labels.values()]
    pythons = [setting.python, setting.system_python]
    contenders += [lambda _, python=python: seconds([python, "-c", START_UP]) for python in pythons]
    ls, status, again, own, system = interleave(rounds, *contenders)
    reference = f"`python3 -c '{START_UP}'`"
    note = f"with the system's python3: {system.median * 1000:.0f} ms"
    yield Row("ls", f"`hutch ls`, {MANY} workspaces running", "s", ls, own, reference, 6, note)
    yield Row("status", f"`hutch status --json`, {MANY} workspaces running", "s", status, own, reference, 6, note)
    what = f"`hutch up` with nothing to do, {MANY} workspaces running"
    yield Row("again", what, "s", again, own, reference, 25, note)


def _nothing_to_do(hutch: Hutch) -> Iterator[Row]:
    """That an `up` without work is one: no file's change time moves, no workspace's process is another."""
    folders = [str(hutch.state), str(hutch.runtime), "/etc"]
    files, processes = _change_times(folders), _machines(hutch)
    hutch("up")
    written = sorted(path for path, stamp in _change_times(folders) ^ files)
    started = _machines(hutch) - processes
    note = ", ".join(sorted({os.path.basename(path) for path in written})) or "by the change times of every file"
    yield Row("written", "files written by it (state, runtime, /etc)", "", _one(len(written)), bound=0, note=note)
    yield Row("started", "workspace processes started by it", "", _one(len(started)), bound=0)


def declared(setting: Setting) -> Iterator[Row]:
    """Files of many workspaces, none of which runs."""
    hutch = setting.hutch
    names = distinct_names(LARGE)
    small, large = hutch.file.with_name("small.toml"), hutch.file.with_name("large.toml")
    for file, count in ((small, LARGE // 10), (large, LARGE)):
        hutch.declare(*names[:count], subnet="10.83.0.0/16")
        hutch.file.rename(file)
    plans: dict[Path, list[Usage]] = {small: [], large: []}

    def plan(file: Path) -> float:
        plans[file].append(usage(hutch.argv("plan", "-f", str(file))))
        return plans[file][-1].seconds

    many, few = interleave(setting.rounds, lambda _: plan(large), lambda _: plan(small))
    what = f"`hutch plan` of {LARGE} declared workspaces"
    yield Row("plan", what, "s", many, bound=5, note=processor_time(plans[large]))
    yield Row("plan-growth", what, "s", many, few, f"`hutch plan` of {LARGE // 10}", 12, processor_time(plans[small]))
    memory = Samples(tuple(used.memory for used in plans[large]))
    yield Row("plan-memory", "memory that it takes, at the most", "bytes", memory, bound=200e6)
    hutch.declare(*names[:SEVERAL])
    hutch("up", "--no-start")
    again = [usage(hutch.argv("up", "--no-start")) for _ in range(setting.rounds)]
    samples = Samples(tuple(used.seconds for used in again))
    what = f"`hutch up --no-start` with nothing to do, {SEVERAL} workspaces stopped"
    yield Row("no-op", what, "s", samples, bound=1, note=processor_time(again))
    hutch.declare()
    hutch("up", "--prune")


def processor_time(samples: Sequence[Usage]) -> str:
    """What does not depend on what else the machine does."""
    return f"processor time: {min(used.processor for used in samples):.2f} s at the least"


def distinct_names(count: int) -> list[str]:
    """Names that are told apart by their vsock context ids, too: of ten thousand, a few would share one."""
    names: dict[str, str] = {}
    numbers = itertools.count()
    while len(names) < count:
        name = f"w{next(numbers):05}"
        names.setdefault(hashlib.sha256(name.encode()).hexdigest()[:6], name)
    return list(names.values())


def _one(count: int) -> Samples:
    return Samples((float(count),))


def _change_times(folders: list[str]) -> frozenset[tuple[str, int]]:
    found = set()
    for path, names, files in itertools.chain.from_iterable(map(os.walk, folders)):
        for name in [*names, *files]:
            entry = os.path.join(path, name)
            try:
                found.add((entry, os.lstat(entry).st_ctime_ns))
            except FileNotFoundError:
                continue
    return frozenset(found)


def _machines(hutch: Hutch) -> frozenset[tuple[str, int, str]]:
    """The workspaces' processes that hutch itself starts, with their start times."""
    found = set()
    for row in hutch.status():
        stat = Path(f"/proc/{row['pid']}/stat").read_text().rsplit(")", 1)[1].split()
        found.add((row["name"], row["pid"], stat[19]))
    return frozenset(found)


SCENARIOS = (
    Scenario(("new", "disk"), new_workspace),
    Scenario(("start",), start),
    Scenario(("run", "run-nspawn", "run-again"), here),
    Scenario(("late", "lost"), messages),
    Scenario(("twenty", "memory", "ls", "status", "again", "written", "started"), many),
    *cluster.SCENARIOS,
    *egress.SCENARIOS,
    *vms.SCENARIOS,
    Scenario(("plan", "plan-growth", "plan-memory", "no-op"), declared),
)


def names_of_rows() -> list[str]:
    return [name for scenario in SCENARIOS for name in scenario.rows]


def measure(setting: Setting) -> list[Row]:
    """Every wanted row, each said aloud as it comes."""
    rows = []
    for scenario in SCENARIOS:
        wanted = [name for name in scenario.rows if setting.wants(name)]
        if not wanted:
            continue
        say(f"measuring {', '.join(wanted)} …")
        rows += [row for row in scenario.run(setting) if setting.wants(row.name)]
    return rows


def warm(setting: Setting) -> None:
    """Read the tree once, so that no contender pays for the first look at the disk."""
    run(["tar", "-C", str(setting.tree), "--one-file-system", "-cf", "/dev/null", "."], timeout=300)
