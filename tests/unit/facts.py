"""Made-up facts that tests start from, and the golden texts that they compare with.

A golden file holds what a renderer is expected to write. `HUTCH_UPDATE_GOLDEN=1` writes them anew; read the
difference before it is committed.
"""

from __future__ import annotations

import base64
import difflib
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hutch.backends import nspawn
from hutch.backends.launch import Hardware, Launch, Surroundings
from hutch.guest.credentials import WHY_PROGRAM
from hutch.host.network.firewall import Endpoint
from hutch.spec import names
from hutch.spec.entries import Publish
from hutch.spec.model import Mount, Network, WorkspaceSpec
from hutch.spec.names import Layout

GOLDEN = Path(__file__).with_name("golden")
LAYOUT = Layout(Path("/var/lib/hutch"), Path("/run/hutch"))
SECOND = Layout(Path("/srv/second"), Path("/run/second"))  # another hutch on the same host
NETWORK = Network(uplink="192.168.84.0/30")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
HARDWARE = Hardware(
    kernel="/var/lib/hutch/images/machine/vmlinux",
    initrd="/var/lib/hutch/images/machine/initrd",
    root="/var/lib/hutch/images/machine/root.erofs",
    firmware="qboot.rom",
    accelerator="kvm",
    tsc_khz=None,
    kvm_gid=104,
    hypervisors={
        "qemu": {"program": "/usr/bin/qemu-system-x86_64", "library": "/usr/lib/python3/dist-packages"},
        "cloud-hypervisor": {"program": "/usr/local/bin/cloud-hypervisor"},
    },
    virtiofsd="/usr/libexec/virtiofsd",
    has_vsock=False,
)
"""A host that can do all there is for machines."""


def workspace(name: str = "web", **keys: Any) -> WorkspaceSpec:
    """A workspace as resolved."""
    resolved: dict[str, Any] = {
        "type": "container",
        "ip": "192.168.83.2",
        "mac": names.mac(name),
        "cid": names.cid(name),
        "owner": 1000,
        "home": str(LAYOUT.home(name)),
        "authorized_keys": (f"{KEY} alice@host",),
    }
    return WorkspaceSpec(**{**resolved, **keys})


def everything(**keys: Any) -> WorkspaceSpec:
    """One that says nearly all there is to say."""
    said: dict[str, Any] = {
        "ip": "192.168.83.3",
        "user": "me",
        "shell": "/bin/zsh",
        "owner": 70000,
        "home": "/srv/my home",
        "persist": "all",
        "memory": 4 << 30,
        "mounts": (Mount("/srv/a", "/src"), Mount("/srv/b c", "/home/me/b c", readonly=True)),
    }
    return workspace("a-name-with-all-of-its-32-letters", **{**said, **keys})


def surroundings(**keys: Any) -> Surroundings:
    known: dict[str, Any] = {
        "layout": LAYOUT,
        "network": NETWORK,
        "image_root": "/var/lib/hutch/images/debian-trixie-0123456789ab/root",
        "uid_base": 0x7000_0000,
        "owner_gid": 100,
        "machine_id": "0123456789abcdef0123456789abcdef",
        "keys": (f"{KEY} hutch key of root",),
        "python": "/usr/bin/python3",
        "package": "/usr/lib/hutch",
    }
    return Surroundings(**{**known, **keys})


def launched(name: str = "web", **keys: Any) -> Launch:
    """The start of a container, as its backend describes it."""
    return replace(nspawn.launch(name, workspace(name), surroundings()), **keys)


def endpoint(name: str, ip: str, *publish: Publish) -> Endpoint:
    return Endpoint(name, names.port(name, "container"), names.mac(name), ip, publish)


ENDPOINTS = (
    endpoint("web", "192.168.83.2", Publish("", 8080, 80, "tcp"), Publish("127.0.0.1", 5353, 53, "udp")),
    endpoint("a-name-with-all-of-its-32-letters", "192.168.83.3"),
)


WHY_CARRIED = base64.b64encode(WHY_PROGRAM.read_bytes()).decode()
"""What every guest gets, which a golden file would repeat."""


def check_golden(name: str, text: str) -> None:
    """Compare with the file `name` below golden/."""
    path = GOLDEN / name
    text = text.replace(WHY_CARRIED, "(hutch-why)")
    if os.environ.get("HUTCH_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}"


def check_golden_case(name: str, text: str, minimal: str) -> None:
    """Compare the minimal case with the file `name`, and any other one's difference to it with `name`.diff: so each
    file tells what its case is about, and a change of what all have in common shows once."""
    if text == minimal:
        check_golden(name, text)
        return
    check_golden(f"{name}.diff", "".join(_differences(minimal.splitlines(), text.splitlines())))


def _differences(minimal: Sequence[str], lines: Sequence[str]) -> Iterator[str]:
    """The lines that one text has and the minimal one has not, below the number of the line of that which they follow
    or replace, and how many. Lines that nothing replaces show themselves."""
    for kind, first, last, start, end in difflib.SequenceMatcher(None, minimal, lines, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        yield f"@@ {first + 1},{last - first} @@\n"
        yield from (f"-{line}\n" for line in minimal[first:last] if kind == "delete")
        yield from (f"+{line}\n" for line in lines[start:end])


def lines_of(launch: Launch) -> str:
    """A Launch as lines, but for its dialect, which is a file of the source's; an option and its values are one."""
    found = asdict(launch)
    del found["dialect"]
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list | tuple) and item:
                yield f"{key}:"
                yield from (f"  {line}" for line in _lines(item))
            else:
                yield f"{key}: {json.dumps(item, ensure_ascii=False)}"
    elif all(isinstance(item, str) for item in value):
        line: list[str] = []
        for word in value:
            if word.startswith("-") and line:
                yield shlex.join(line)
                line = []
            line.append(word)
        yield shlex.join(line)
    else:
        for item in value:
            first, *others = _lines(item) if isinstance(item, dict | list | tuple) else [json.dumps(item)]
            yield f"- {first}"
            yield from (f"  {line}" for line in others)
