"""The hutch that is measured: a second, independent one with directories of its own, driven by its commands only."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import BenchError, run, try_run

NETWORK = '[network]\nbridge = "hutchbench0"\n'
SUBNET = "192.168.83.0/24"
HARDWARE = 'vcpus = 2\nmemory = "1GiB"\n'  # what the machines by hand have


class Hutch:
    """`command` is how hutch is called; what it keeps is below `work` and, at run time, below /run. `defaults` are
    those of its workspaces: what their image is made from."""

    def __init__(self, command: Sequence[str], work: Path, defaults: str = "") -> None:
        self.command = tuple(command)
        self.defaults = f"[defaults]\n{defaults}\n" if defaults else ""
        self.state = work / "state"
        self.runtime = Path("/run/hutch-bench")
        self.file = work / "hutch.toml"
        self.state.mkdir(exist_ok=True)
        os.environ["HUTCH_STATE_DIR"] = str(self.state)
        os.environ["HUTCH_RUN_DIR"] = str(self.runtime)
        os.environ["HUTCH_FILE"] = str(self.file)

    def marks(self) -> tuple[str, ...]:
        """What the names of all that this hutch makes on a host contain."""
        return self.state.parent.name, self.runtime.name, self.instance, "hutchbench"

    @property
    def instance(self) -> str:
        """What the names of its units and cgroups begin with."""
        return f"hutch-{zlib.crc32(str(self.state).encode()) & 0xFFFFFF:06x}"

    def argv(self, *arguments: str) -> list[str]:
        return [*self.command, *arguments]

    def __call__(self, *arguments: str, timeout: float = 300.0) -> str:
        return run(self.argv(*arguments), timeout=timeout)

    def declare(self, *names: str, vms: Sequence[str] = (), subnet: str = SUBNET, more: str = "") -> None:
        """Make hutch.toml say exactly these containers, with nothing but defaults, and virtual machines; and `more`
        tables at its end."""
        tables = [f'[workspaces.{name}]\ntype = "container"\n' for name in names]
        tables += [f'[workspaces.{name}]\ntype = "vm"\n{HARDWARE}' for name in vms]
        self.file.write_text("\n".join([f'{NETWORK}subnet = "{subnet}"\n', self.defaults, *tables, more]))
        self.file.chmod(0o644)

    def remove(self, *names: str) -> None:
        for name in names:
            self("rm", "--force", "--purge", name)

    def status(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self("status", "--json"))
        return rows

    def must_run(self, *names: str) -> None:
        """All of `names` are running and answer to ssh: what `up` promised."""
        states = {row["name"]: row["state"] for row in self.status()}
        for name in names:
            if states.get(name) != "running":
                raise BenchError(f"{name} is {states.get(name, 'unknown')} after `hutch up`")
            if not try_run(["ssh", f"workspace-{name}", "true"]):
                raise BenchError(f"{name} does not answer to ssh after `hutch up`")

    def runs(self, name: str) -> bool:
        """Whether it is running and answers to ssh."""
        states = {row["name"]: row["state"] for row in self.status()}
        return states.get(name) == "running" and try_run(["ssh", f"workspace-{name}", "true"])

    def tree(self) -> Path:
        """The root tree of the image that the workspaces share."""
        trees = sorted(path.parent for path in self.state.glob("images/*/*/usr"))
        trees += sorted(path.parent for path in self.state.glob("images/*/usr"))
        if len(trees) != 1:
            raise BenchError(f"one image was expected, {len(trees)} are there")
        return trees[0]

    def pids(self, name: str) -> list[int]:
        """Every process of a workspace, whatever serves it included: what is in its cgroup, or its slice, and below."""
        own = {name, f"{self.instance}-ws_{name}.slice"}
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                text = Path(f"/proc/{entry}/cgroup").read_text()
            except OSError:
                continue
            unified = [line[3:] for line in text.splitlines() if line.startswith("0::")]
            if unified and own.intersection(unified[0].split("/")):
                found.append(int(entry))
        return found


def interpreter_of(command: Sequence[str]) -> str:
    """The Python that runs `command`: what its start-up is compared with."""
    if len(command) > 1 and command[1].startswith("-"):
        return command[0]
    with open(command[0], "rb") as script:
        first = script.readline().decode(errors="replace").strip()
    words = first[2:].split() if first.startswith("#!") else []
    if words and "python" in os.path.basename(words[0]):
        return words[0]
    return str(Path(command[0]).with_name("python"))


def find(root: Path) -> list[str]:
    """The checkout's own hutch, as script/setup installs it."""
    command = root / ".venv" / "bin" / "hutch"
    if not command.exists():
        raise BenchError("there is no .venv/bin/hutch: run script/setup first, or name a command with --hutch")
    return [str(command)]
