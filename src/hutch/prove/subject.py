"""The workspace under test, and looks at it: in /proc, and by a deadline where file systems of its own may answer."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hutch.backends import traits_named
from hutch.backends.traits import Traits
from hutch.frozen import dataclass
from hutch.prove.model import Fact
from hutch.run import PIPE, TimeoutExpired, start
from hutch.runtime.observe import observe_facts
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record

PATIENCE, GOING = 5.0, 1.0  # seconds for a look at what a guest may answer itself; and until it is killed


class HeldUp(Exception):
    """Raised when a guest keeps a look at it from ending."""


@dataclass(frozen=True)
class Subject:
    """The workspace under test."""

    layout: Layout
    record: Record
    now: Observation

    @property
    def booted(self) -> WorkspaceSpec:
        return self.record.booted.workspace if self.record.booted else self.record.wanted

    @property
    def traits(self) -> Traits:
        return traits_named(self.booted, observe_facts(self.layout, self.name).get("hypervisor", ""))

    @property
    def name(self) -> str:
        return self.record.name


def held(is_so: bool, detail: str = "") -> Fact:
    return Fact("held" if is_so else "broken", detail)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def leader_of(subject: Subject) -> int:
    if subject.now.leader is None:
        raise ValueError("it has no first process")
    return subject.now.leader[0]


def processes_of(subject: Subject) -> list[int]:
    """The processes of the guest, by its cgroup as the kernel tells it of each. systemd leaves a machine's in the
    service's own."""
    inside = re.compile(rf"^0::.*/{re.escape(subject.now.cgroup)}(/machine(/.*)?)?$", re.MULTILINE)
    found = []
    for pid in all_processes():
        with suppress(OSError):  # it has ended
            if inside.search(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")):
                found.append(pid)
    return found


def all_processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def output_of(argv: Sequence[str], seconds: float = PATIENCE) -> str:
    """The output of a command that looks where a guest may have put a file system of its own (FUSE). A command that the
    guest holds up cannot even be killed, so it is left behind then: it goes when the guest does."""
    process = start(argv, stdout=PIPE)
    assert process.stdout is not None
    try:
        output, _ = process.communicate(timeout=seconds)
    except TimeoutExpired:
        process.kill()
        process.stdout.close()
        with suppress(TimeoutExpired):
            process.wait(GOING)
        raise HeldUp(f"{argv[0]} did not end within {seconds:g} s") from None
    return output.decode("utf-8", "replace")
