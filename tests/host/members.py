"""The host's own hutch, in /var/lib/hutch and /run/hutch, where members of the group `hutch` have workspaces: with the
entry point that `doctor --fix` has written, and with the machine's own sudo."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from hutch.files import kept_open
from hutch.host.services.cgroup import find_mount, open_root
from hutch.host.storage.mountinfo import observe_mountinfo
from hutch.libc import call
from tests.host.instance import Completed, Instance
from tests.host.opening import open_instance
from tests.support.world import World

ENTRY = Path("/usr/lib/hutch/member")
RULE = Path("/etc/sudoers.d/hutch")
STATE = Path("/var/lib/hutch")
MEMBERS = ("bob", "carol")
CLONE_NEWCGROUP = 0x02000000


@dataclass
class HostsOwn(Instance):
    """The hutch that commands without HUTCH_STATE_DIR mean."""

    def __post_init__(self) -> None:
        own = self.world.directory / f"state-{self.number}"
        own.mkdir(mode=0o755)
        STATE.mkdir()
        mount("--bind", own, STATE)
        self.directory.mkdir(mode=0o755)
        self.directory.chmod(0o755)
        if self.images is not None:
            (self.state / "images").mkdir()
            mount("--bind", self.images, self.state / "images")

    @property
    def state(self) -> Path:
        return STATE

    @property
    def run(self) -> Path:
        return Path("/run/hutch")

    def environment(self, extra: Mapping[str, str] | None = None, as_user: str = "root") -> dict[str, str]:
        usual = super().environment({}, as_user)
        return {name: value for name, value in usual.items() if not name.startswith("HUTCH_")} | dict(extra or {})

    # Members.

    def home(self, name: str) -> Path:
        return self.world.accounts[name].home

    def project(self, name: str, body: str = "", directory: str = "project") -> Path:
        """A directory of a member's, with their hutch.toml if there is a `body`."""
        made = self.home(name) / directory
        self.as_user(name, "mkdir", "-p", str(made))
        if body:
            self.as_user(name, "tee", str(made / "hutch.toml"), stdin=body)
        return made

    def as_user(self, name: str, *argv: str, stdin: str = "", check: bool = True, **options: Any) -> Completed:
        """Run a command as an account, without a terminal."""
        command = self.world.accounts[name].command(*argv)
        environment = options.pop("env", None) or self.environment({}, name)
        result = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=options.pop("timeout", 120),
            env=environment,
            cwd=options.pop("cwd", "/"),
            **options,
        )
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        assert not check or result.returncode == 0, result.stderr
        return result

    def declare_for(self, name: str, workspace_type: str, directory: str = "project", **workspaces: str) -> Path:
        """A hutch.toml of a member's, with these workspaces; each value is its table's further lines."""
        vcpus = self.vcpus if workspace_type == "vm" else ""
        tables = (f'[workspaces.{each}]\ntype = "{workspace_type}"\n{keys}\n' for each, keys in workspaces.items())
        return self.project(name, f"[defaults]\n{vcpus}{self.defaults}\n{''.join(tables)}", directory)

    def template_for(self, name: str, workspace_type: str) -> None:
        """What `hutch run` of a member begins with, so that no other image is built."""
        vcpus = self.vcpus if workspace_type == "vm" else ""
        config = self.project(name, directory=".config/hutch")
        self.as_user(name, "tee", str(config / "run.toml"), stdin=f"{vcpus}{self.defaults}")

    def as_root(
        self, *words: str, env: Mapping[str, str], prefix: tuple[str, ...] = (), cwd: str | Path = "/", **how: Any
    ) -> Completed:
        """Start the entry point as a program would that keeps whatever its caller has."""
        given = {"PATH": "/usr/bin:/bin", **env}
        result = subprocess.run(
            [*prefix, str(ENTRY), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            env=given,
            cwd=cwd,
            **how,
        )
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        return result

    def enter(self, name: str, *words: str, **options: Any) -> Completed:
        """Call the entry point as a member may, past their `hutch`."""
        return self.as_user(name, "sudo", "-n", "--", str(ENTRY), *words, **{"check": False, **options})


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True, timeout=10)


@contextmanager
def own_tree(path: str) -> Iterator[None]:
    """A directory of the machine's, of which what is written is this world's alone, and goes in the end."""
    layers = Path(tempfile.mkdtemp(prefix="layers-", dir="/run"))
    layers.chmod(0o755)
    for part in ("upper", "work"):
        (layers / part).mkdir()
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={path},upperdir={layers}/upper,workdir={layers}/work", path)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=10)
        shutil.rmtree(layers)


@contextmanager
def own_cgroups() -> Iterator[None]:
    """A tree of control groups of this world's own: the host's hutch has the same names in all worlds, and the kernel
    has one tree for them."""
    before = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().strip("/")
    name = f"hutch-test-{uuid4().hex}"
    with kept_open(open_root()) as root, kept_open(os.open("/proc/self/ns/cgroup", os.O_RDONLY)) as outside:
        os.mkdir(name, dir_fd=root)
        join(root, name)
        point = find_mount(observe_mountinfo())
        call("unshare", CLONE_NEWCGROUP)
        try:
            if point is not None:
                mount("-t", "cgroup2", "cgroup2", point)
            os.mkdir(f"{name}/tests", dir_fd=root)
            join(root, f"{name}/tests")  # hutch makes groups beside it
            yield
        finally:
            call("setns", outside, CLONE_NEWCGROUP)
            if point is not None:
                subprocess.run(["umount", point], check=True, timeout=10)
            join(root, before)
            for directory, *_ in os.fwalk(name, topdown=False, dir_fd=root):
                os.rmdir(directory, dir_fd=root)


def join(root: int, group: str) -> None:
    """Bring this process into a control group, and the first of this world, by whose group nspawn goes."""
    procs = f"{group}/cgroup.procs" if group else "cgroup.procs"
    for pid in ("0", "1"):
        with open(os.open(procs, os.O_WRONLY, dir_fd=root), "w") as file:
            file.write(pid)


@contextmanager
def with_members(world: World) -> Iterator[None]:
    """A host on which MEMBERS are in the group, and root may make what a hutch of its own needs."""
    Path("/run/sudo").mkdir(mode=0o711, exist_ok=True)  # sudo makes it, and leaves it
    hosts, groups = Path("/etc/hosts"), Path("/etc/group")
    hosts.write_text(f"{hosts.read_text()}127.0.1.1\t{os.uname().nodename}\n")  # sudo asks for it
    before = groups.read_text()
    lines = (f"hutch:x:1200:{','.join(MEMBERS)}" if line.startswith("hutch:") else line for line in before.splitlines())
    groups.write_text("\n".join(lines) + "\n")
    try:
        with own_cgroups(), own_tree("/var/lib"), own_tree("/usr/lib"):
            yield
    finally:
        groups.write_text(before)


@contextmanager
def open_host(world: World, images: Path) -> Iterator[HostsOwn]:
    """The host's own hutch, with members, and with all that `doctor --fix` does for them."""
    with with_members(world), open_instance(world, images, HostsOwn) as host:
        assert isinstance(host, HostsOwn)
        host.hutch("doctor", "--fix", check=False)
        try:
            yield host
        finally:
            host.remove_all()
            host.hutch("doctor", "--undo")
            for name in MEMBERS:
                clean = ["find", str(host.home(name)), "-mindepth", "1", "-maxdepth", "1", "-not", "-name", ".ssh"]
                subprocess.run([*clean, "-exec", "rm", "-rf", "{}", "+"], check=True, timeout=30)
