"""The same rows on a host with systemd: the one that the tests boot (tests/support/stand), with this checkout in it.

It is emulated where there is no KVM, so only what it says within one run means something: the ratios. It has neither
Incus nor a network, and machines in it would be emulated by an emulated host; rows that need those stay outside.
"""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.measure import BenchError, run
from bench.ours import Hutch
from bench.place import add_route
from bench.table import Row
from tests.host.instance import DEFAULTS
from tests.support.enclosure import enclose

ROWS = ("start", "twenty", "memory", "ls", "status", "again", "written", "started")
PLACE = Path("/var/tmp/hutch-bench")  # in there
MEASURED = b"measured there: "
PATIENT = "[Service]\nTimeoutStartSec=900\n"  # twenty guests start at once on an emulated host

Measured = tuple[list[Row], dict[str, str]]  # and what the machine is


def measure(arguments: Sequence[str], work: Path) -> Measured:
    """Boot the stand and run the benchmark there. What it says meanwhile is passed on."""
    inside = [sys.executable, "-m", "bench", *arguments, "--inside", str(PLACE)]
    command = [sys.executable, "-m", "tests.support.stand", str(work / "console"), "2", *inside]
    argv, environment = enclose(command, work / "outer-netns")
    found: Measured | None = None
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as stand:
        assert stand.stdout is not None
        for line in stand.stdout:
            if line.startswith(MEASURED):
                found = pickle.loads(base64.b64decode(line.removeprefix(MEASURED)))
            else:
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
    if stand.returncode or found is None:
        raise BenchError(f"the stand ended with code {stand.returncode}")
    return found


def tell(measured: Measured) -> None:
    """From inside, what was measured."""
    print((MEASURED + base64.b64encode(pickle.dumps(measured))).decode(), flush=True)


def furnish(command: Sequence[str], work: Path) -> Hutch:
    """A hutch in there: with the image that is there, patience with starts, and a default route."""
    work.mkdir()
    work.chmod(0o711)  # containers' users pass through
    hutch = Hutch(command, work, DEFAULTS)
    images = hutch.state / "images"
    images.mkdir()
    run(["mount", "--bind", f"{os.environ['HUTCH_TEST_CACHE']}/images", str(images)])
    drop_in = Path(f"/etc/systemd/system/{hutch.instance}@.service.d/patient.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(PATIENT)
    add_route()
    return hutch
