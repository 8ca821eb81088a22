"""Clocks, samples and commands: how every number is taken. Knows nothing of what is measured."""

from __future__ import annotations

import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Sample = Callable[[int], float]  # takes the number of the round, returns seconds (or bytes)


class BenchError(Exception):
    """Something that was to be measured did not work: the run ends, and says so."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What one contender took, round by round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def run(argv: Sequence[str], *, timeout: float = 300.0, stdin: str = "") -> str:
    """Run `argv` and return its output; anything but success ends the benchmark with the command's own words."""
    try:
        result = subprocess.run(argv, check=False, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{shlex.join(argv)}: no end within {timeout:g} s") from error
    if result.returncode != 0:
        raise BenchError(f"{shlex.join(argv)}: code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def try_run(argv: Sequence[str], *, timeout: float = 60.0) -> bool:
    """Run `argv`, silently; whether it succeeded."""
    try:
        null = subprocess.DEVNULL
        return subprocess.run(argv, check=False, stdin=null, capture_output=True, timeout=timeout).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def spawn(argv: Sequence[str], log: str) -> subprocess.Popen[bytes]:
    """Start `argv` beside us, its output in the file `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def seconds(argv: Sequence[str], *, timeout: float = 300.0) -> float:
    """The wall time of a whole process, which must succeed."""
    start = time.perf_counter()
    run(argv, timeout=timeout)
    return time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took: wall and processor time, and the most memory at once, in bytes; its children included, but
    for their memory, of which the largest counts."""

    seconds: float
    processor: float
    memory: float


def usage(argv: Sequence[str], *, timeout: float = 300.0) -> Usage:
    """Run `argv` to its end, which must be a success."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        deadline = threading.Timer(timeout, process.kill)
        deadline.start()
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        deadline.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise BenchError(f"{shlex.join(argv)}: code {process.returncode}\n{said.read().decode(errors='replace')}")
    return Usage(took, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0)


def interleave(rounds: int, *contenders: Sample) -> tuple[Samples, ...]:
    """A B A B …, so that whatever else the machine does meets all alike."""
    columns: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds):
        for column, sample in zip(columns, contenders, strict=True):
            column.append(sample(number))
    return tuple(Samples(tuple(column)) for column in columns)


def wait_for_banner(address: str, *, limit: float = 300.0, alive: Callable[[], bool] = lambda: True) -> None:
    """Return as soon as sshd at `address` says its name.

    Each attempt is short: a packet sent before the guest has an address is lost, and TCP itself would wait
    a second before it sends another.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with socket.socket() as connection:
            connection.settimeout(0.03)
            try:
                connection.connect((address, 22))
                connection.settimeout(2)
                if connection.recv(16).startswith(b"SSH-"):
                    return
            except OSError:
                pass
        if not alive():
            raise BenchError(f"what should answer at {address} has ended")
        time.sleep(0.002)
    raise BenchError(f"no sshd at {address} within {limit:g} s")


def blocks_below(path: str) -> int:
    """Bytes that the files below `path` take on the disk, on its own file system only, hard links once."""
    device = os.lstat(path).st_dev
    seen: dict[int, int] = {}
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if os.lstat(os.path.join(folder, name)).st_dev == device]
        for name in [".", *files]:
            try:
                status = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def say(text: str) -> None:
    """Progress, for a person who waits."""
    print(text, file=sys.stderr, flush=True)
