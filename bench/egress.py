"""What a list of names costs: the first connection to a listed name, and what passes through the filter.

The Internet is a network namespace of its own, with a name server and a server that says when it has read all.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.measure import BenchError, interleave, run
from bench.ours import Hutch
from bench.table import Row, Scenario, Setting

INTERNET = "bench-internet"
ROUTER, HOST, FAR, FAR_NETWORK = "198.51.100.1", "198.51.100.2", "203.0.113.129", "203.0.113.128/25"
PORT = 8001
DOMAIN = "bench.example"
SECONDS_AWAY = 0.01  # how long a name server takes to answer that is not next door
NAMES = 20  # new ones in each round
SIZE = 2**30
SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"

SEND = f"dd if=/dev/zero bs=1M count={SIZE // 2**20} 2>&1 >/dev/tcp/through.{DOMAIN}/{PORT}"
CURL = ("curl", "--silent", "--show-error", "--fail", "--write-out", "%{time_total}\\n")
COPIED = re.compile(r"copied, ([0-9.]+) s")


def egress(setting: Setting) -> Iterator[Row]:
    with _internet(setting.work), _two_workspaces(setting.hutch) as hutch:
        if setting.wants("egress-first"):
            yield _first(setting, hutch)
        if setting.wants("egress-through"):
            yield _through(setting, hutch)


def _first(setting: Setting, hutch: Hutch) -> Row:
    def connect(workspace: str, number: int) -> float:
        urls = [f"http://{workspace}-{number}-{count}.{DOMAIN}:{PORT}/" for count in range(NAMES)]
        nowhere = [word for _ in urls for word in ("--output", "/dev/null")]
        said = hutch("exec", workspace, "--", *CURL, *nowhere, *urls)
        return statistics.median(map(float, said.split()))

    with_list, without = interleave(
        setting.rounds * 3, lambda number: connect("listed", number), lambda number: connect("free", number)
    )
    return Row(
        "egress-first",
        "first connection to a listed name: asked for, opened, connected, answered",
        "s",
        with_list,
        without,
        "the same from a workspace without a list",
        1.2,
        f"a new name each time; the name server is {SECONDS_AWAY * 1000:.0f} ms away, the server next door",
    )


def _through(setting: Setting, hutch: Hutch) -> Row:
    def send() -> float:
        copied = COPIED.search(hutch("exec", "listed", "--", "bash", "-c", SEND))
        if copied is None:
            raise BenchError("dd did not say how long it took")
        return SIZE / float(copied[1])

    def filtered(_number: int) -> float:
        hutch("up")
        return send()

    def unfiltered(_number: int) -> float:
        _drop_filter(hutch)
        return send()

    samples, reference = interleave(setting.rounds * 2, filtered, unfiltered)
    hutch("up")
    return Row(
        "egress-through",
        f"{SIZE // 2**20} MiB from a workspace with a list to a listed name",
        "bytes/s",
        samples,
        reference,
        "the same connection with a filter that accepts everything",
        0.9,
        at_least=True,
    )


def _drop_filter(hutch: Hutch) -> None:
    """From now on, all that the router's forward chain does is to accept. The watch over its rules would stop traffic,
    so it goes first; the next `hutch up` brings both back."""
    os.killpg(int((hutch.runtime / "services" / "watch.pid").read_text()), signal.SIGKILL)
    (namespace,) = (path.name for path in Path("/run/netns").iterdir() if path.name.startswith("hutch-"))
    nft = ["ip", "netns", "exec", namespace, "nft"]
    tables = json.loads(run([*nft, "-j", "list", "tables"]))["nftables"]
    (table,) = (item["table"]["name"] for item in tables if item.get("table", {}).get("family") == "inet")
    run([*nft, "-f", "-"], stdin=f"flush chain inet {table} forward\nadd rule inet {table} forward accept\n")


@contextmanager
def _two_workspaces(hutch: Hutch) -> Iterator[Hutch]:
    """`listed` has a list, `free` has none."""
    hutch.declare("listed", "free")
    text = hutch.file.read_text()
    head = "[workspaces.listed]\n"
    hutch.file.write_text(text.replace(head, f'{head}egress = ["*.{DOMAIN}"]\n'))
    hutch("up")
    hutch.must_run("listed", "free")
    try:
        yield hutch
    finally:
        hutch.remove("listed", "free")


@contextmanager
def _internet(work: Path) -> Iterator[None]:
    """A name server that the host asks, and a server at a public address."""
    zone, resolvers = work / "zone.json", Path("/etc/resolv.conf")
    zone.write_text(json.dumps({f"*.{DOMAIN}": {"a": [FAR], "ttl": 1, "delay": SECONDS_AWAY}}))
    before = resolvers.read_bytes()
    run(["ip", "netns", "add", INTERNET])
    run(["ip", "-batch", "-"], stdin=OUTSIDE)
    run(["ip", "-n", INTERNET, "-batch", "-"], stdin=INSIDE)
    with ExitStack() as stack:
        for script in (
            [str(SUPPORT / "world_dns.py"), str(zone), str(work / "asked"), ROUTER],
            [str(Path(__file__).with_name("far.py")), str(PORT)],
        ):
            stack.callback(_end, _start(script))
        resolvers.unlink()
        resolvers.write_text(f"nameserver {ROUTER}\n")
        try:
            yield
        finally:
            resolvers.write_bytes(before)
            run(["ip", "link", "del", "far0"])
            run(["ip", "netns", "del", INTERNET])


OUTSIDE = f"""
link add far0 type veth peer name far0 netns {INTERNET}
address add {HOST}/24 dev far0
link set far0 up
route add {FAR_NETWORK} via {ROUTER}
"""
INSIDE = f"""
link set lo up
address add {ROUTER}/24 dev far0
link set far0 up
route add local {FAR_NETWORK} dev lo
"""


def _start(script: list[str]) -> subprocess.Popen[str]:
    argv = ["ip", "netns", "exec", INTERNET, sys.executable, *script]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise BenchError(f"{script[0]} did not become ready")
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


SCENARIOS = (Scenario(("egress-first", "egress-through"), egress),)
