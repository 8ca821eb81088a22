"""Messages through a command that gives back what it gets, as an agent's protocol on standard streams: whether all of
them come back, and how late."""

from __future__ import annotations

import array
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError

SIZE = 32  # bytes of a message
UNDERWAY = 32  # messages that are on their way at once
SILENCE = 30.0  # seconds after which what has not come back is lost


@dataclass(frozen=True)
class Echo:
    """The time that each message took there and back, in seconds; and how many never came back."""

    times: Sequence[float]
    lost: int

    def late(self, share: float) -> float:
        """The time within which this share of the messages came back."""
        return sorted(self.times)[min(int(len(self.times) * share), len(self.times) - 1)]


def echo(
    argv: Sequence[str], count: int, *, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
) -> Echo:
    """Send `count` messages, each by a write of its own. BenchError when something else comes back."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=cwd)
    assert process.stdin and process.stdout
    sent, times, heard = array.array("d"), array.array("d"), b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    try:
        while len(times) < count:
            while len(sent) < min(count, len(times) + UNDERWAY):
                sent.append(time.perf_counter())
                os.write(process.stdin.fileno(), message(len(sent) - 1))
            if not poll.poll(SILENCE * 1000) or not (data := os.read(process.stdout.fileno(), SIZE * UNDERWAY)):
                break
            now, heard = time.perf_counter(), heard + data
            while len(heard) >= SIZE:
                if heard[:SIZE] != message(len(times)):
                    raise BenchError(f"message {len(times)} came back as {heard[:SIZE]!r}")
                times.append(now - sent[len(times)])
                heard = heard[SIZE:]
    except BrokenPipeError:
        pass  # what was not answered by then is lost
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(SILENCE)
    return Echo(times, count - len(times))


def message(number: int) -> bytes:
    return b"%0*d\n" % (SIZE - 1, number)
