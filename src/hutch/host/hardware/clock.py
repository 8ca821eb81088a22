"""The rate of the host's time stamp counter, measured once per boot.

A guest under TCG reads the host's own counter, and a microvm has no other clock worth the name. Left to find out the
counter's rate by itself, its kernel fails on a busy host, distrusts the counter, and waits for a tick that never comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

TOLD = "/sys/devices/system/cpu/cpu0/tsc_freq_khz"  # the kernel's own value, where it has one
BOOT = "/proc/sys/kernel/random/boot_id"
POINTS, PAUSE, READINGS = 8, 0.025, 20
PLAUSIBLE = range(50_000, 20_000_000)  # kHz
READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret

Point = tuple[float, int]
"""A time in nanoseconds and the counter at that time."""


def read_boot() -> str:
    """The id that tells this boot of the host from all others."""
    with open(BOOT, encoding="ascii") as file:
        return file.read().strip()


def observe_rate(memory: dict[str, Any]) -> int | None:
    """The rate in kHz; None when it cannot be measured. `memory` holds it for the rest of this boot, and is updated."""
    boot = read_boot()
    known = memory.get("khz")
    if memory.get("boot") == boot and isinstance(known, int) and known in PLAUSIBLE:
        return known
    rate = told_rate() or measure_rate()
    if rate is None or rate not in PLAUSIBLE:
        return None
    memory.update(boot=boot, khz=rate)
    return rate


def told_rate(path: str = TOLD) -> int | None:
    """The rate in kHz that the kernel tells; None where it tells none."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def measure_rate() -> int | None:
    """The rate by the kernel's own unadjusted clock. None where the counter cannot be read."""
    try:
        read = make_reader()
    except OSError:  # a kernel that has no memory for code made at run time
        return None
    points = []
    for _ in range(POINTS):
        points.append(take_point(read))
        time.sleep(PAUSE)
    return estimate(points)


def take_point(read: Callable[[], int]) -> Point:
    """The closest of several readings of both clocks: an interrupted one takes longer."""

    def bracket() -> tuple[int, float, int]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return after - before, (before + after) / 2, counter

    _, at, counter = min(bracket() for _ in range(READINGS))
    return at, counter


def estimate(points: Sequence[Point]) -> int | None:
    """Rate in kHz: the median of the slopes between all pairs (Theil and Sen), which a few bad points cannot move."""
    slopes = sorted((b - a) / (then - now) for (now, a), (then, b) in combinations(points, 2) if then > now)
    return round(slopes[len(slopes) // 2] * 1e6) if slopes else None


def make_reader() -> Callable[[], int]:
    """A function that reads the counter, which Python cannot do by itself. OSError where that is not allowed."""
    import ctypes  # once per boot: the starts of machines do without
    import mmap

    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
    page.write(READ_COUNTER)
    code = ctypes.c_char.from_buffer(page)  # keeps the page, as long as it is kept itself
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))

    def read() -> int:
        assert code is not None
        return int(function())

    return read
