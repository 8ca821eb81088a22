"""The host's Nix store inside: there to be read, and to be written over, while the host's own never changes."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.instance import Instance, explain
from tests.host.opening import open_instance
from tests.support.world import World

pytestmark = pytest.mark.vm(slow=True)

NIX, STORE = Path("/nix"), Path("/nix/store")


@contextmanager
def private_nix() -> Iterator[None]:
    """An empty /nix of this test's own. Where the machine has none, one is made as a place to mount it, and removed;
    a lock keeps it until other runs of these tests have finished with it."""
    with ExitStack() as stack:
        descriptor, is_ours = _open_nix()
        stack.callback(os.close, descriptor)
        if is_ours:
            stack.callback(NIX.rmdir)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_EX)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", NIX], check=True, timeout=10)
        try:
            yield
        finally:
            subprocess.run(["umount", NIX], check=True, timeout=10)


def _open_nix() -> tuple[int, bool]:
    """A descriptor of /nix with a shared lock on it, and whether it is ours to remove."""
    while True:
        try:
            NIX.mkdir(0o755)
            is_ours = True
        except FileExistsError:
            is_ours = False
        try:
            descriptor = os.open(NIX, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(descriptor), os.stat(NIX)):
                return descriptor, is_ours
            os.close(descriptor)
        except FileNotFoundError:
            continue


@dataclass(frozen=True)
class Store:
    """What real Nix put in the store."""

    program: str
    text: str
    directory: str
    work: Path

    def add(self, name: str, text: str) -> str:
        """Have Nix add another file; its path."""
        return add(self.work, name, text)

    def look(self) -> Mapping[str, tuple[int, int, str]]:
        """Everything that is in the host's store: mode, owner, content."""
        found = {}
        for path in STORE.rglob("*"):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_uid, path.read_text() if path.is_file() else "")
        return found


def add(work: Path, name: str, text: str) -> str:
    source = work / name
    if not source.exists():
        source.write_text(text)
        source.chmod(0o755 if text.startswith("#!") else 0o644)
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "NIX_CONF_DIR": str(work), "NIX_REMOTE": "local"}
    result = subprocess.run(
        ["nix-store", "--add", source],
        capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, explain(("nix-store", "--add", name), result)
    return result.stdout.strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store in a /nix of its own."""
    nix = shutil.which("nix-store")
    if nix is None or os.path.realpath(nix).startswith(f"{NIX}/"):
        pytest.skip("nix is not installed, or only in the store that these tests hide")
    work = tmp_path_factory.mktemp("nix")
    (work / "directory" / "bin").mkdir(parents=True)
    (work / "directory" / "bin" / "deep").write_text("deep\n")
    with private_nix():
        program = add(work, "greet", "#!/bin/sh\necho hello from the store\n")
        text = add(work, "text", "what nix wrote\n")
        yield Store(program, text, add(work, "directory", ""), work)


@pytest.fixture(scope="module")
def sharing(world: World, images: Path, workspace_type: str, store: Store) -> Iterator[Instance]:
    """`web` with the store; `keep` too, which keeps its root."""
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web="nix_store = true", keep='nix_store = true\npersist = "all"')
        instance.up()
        yield instance


def test_what_nix_built_is_there_at_the_same_path(sharing: Instance, store: Store) -> None:
    for name in ("web", "keep"):
        script = f"{store.program} && cat {store.text} {store.directory}/bin/deep && stat -c '%u %g %a' {store.text}"
        assert sharing.ssh(name, script).stdout == "hello from the store\nwhat nix wrote\ndeep\n0 0 444\n"
    assert sharing.ssh("web", "stat -c %u:%g:%a /nix /nix/store").stdout == "0:0:755\n" * 2
    options = sharing.ssh("web", "findmnt --noheadings --output OPTIONS /nix/store").stdout.split(",")
    assert {"rw", "nosuid", "nodev"} <= set(options)
    assert sharing.ssh("web", "test -e /nix/var", check=False).returncode == 1


def test_what_comes_to_the_store_comes_to_those_who_share_it(sharing: Instance, store: Store) -> None:
    path = store.add("later", "later\n")
    for name in ("web", "keep"):
        assert sharing.ssh(name, f"cat {path}").stdout == "later\n"


def test_only_root_writes_inside(sharing: Instance, store: Store) -> None:
    script = f"touch /nix/store/mine || echo more >>{store.text} || rm {store.text}"
    assert sharing.ssh("web", script, check=False).returncode != 0


WRITES = """
set -e
echo added >/nix/store/added
chmod u+w {store.text}
echo changed >>{store.text}
rm -r {store.program} {store.directory}/bin
mkdir {store.directory}/new
mv {store.directory}/new {store.directory}/moved
chown 1000:1000 {store.directory}
"""
LOOK = "cat /nix/store/added {store.text}; ls {store.program} {store.directory} 2>/dev/null; true"
WRITTEN = "added\nwhat nix wrote\nchanged\n{store.directory}:\nmoved\n"
UNWRITTEN = "what nix wrote\n{store.program}\n\n{store.directory}:\nbin\n"


@pytest.mark.vm(slow=True)
def test_what_is_written_inside_stays_inside_and_shares_the_roots_fate(sharing: Instance, store: Store) -> None:
    before = store.look()
    for name in ("web", "keep"):
        sharing.inside(name, "sh", "-c", WRITES.format(store=store), root=True)
        assert sharing.ssh(name, LOOK.format(store=store)).stdout == WRITTEN.format(store=store)
    assert store.look() == before
    sharing.hutch("stop", "web", "keep")
    between = store.add("between", "between\n")
    before = store.look()
    sharing.hutch("start", "web", "keep")
    assert sharing.ssh("web", LOOK.format(store=store)).stdout == UNWRITTEN.format(store=store)
    assert sharing.ssh("keep", LOOK.format(store=store)).stdout == WRITTEN.format(store=store)
    for name in ("web", "keep"):
        assert sharing.ssh(name, f"cat {between}").stdout == "between\n"
    assert store.look() == before


BREAK = """
mkdir -p /run/below
mount -o remount,rw /nix/store
mount -t virtiofs -o rw nix /run/below && echo mounted || exit 0
cat {below}
touch /run/below/bad && echo written
rm -f {below} && echo removed
chmod u+w {below} && echo changed
echo bad >>{below} && echo appended
umount /run/below
"""


def test_root_inside_does_not_get_at_what_is_below(sharing: Instance, store: Store, workspace_type: str) -> None:
    """A machine's root can mount the share itself; it is read-only all the same."""
    before = store.look()
    below = store.text.replace(str(STORE), "/run/below")
    result = sharing.inside("web", "sh", "-c", BREAK.format(below=below), root=True)
    assert result.stdout == ("mounted\nwhat nix wrote\n" if workspace_type == "vm" else "")
    assert store.look() == before


def test_a_host_without_a_store(world: World, images: Path, workspace_type: str) -> None:
    with private_nix(), open_instance(world, images) as instance:
        instance.declare(workspace_type, web="nix_store = true")
        for command in ("plan", "up"):
            result = instance.hutch(command, check=False)
            assert result.returncode == 2, explain((command,), result)
            assert re.search(
                rf"{instance.file}:\d+: workspaces.web.nix_store = true: /nix/store does not ", result.stderr
            )
            assert "install Nix" in result.stderr
        assert instance.names() == []
        assert not (instance.state / "workspaces" / "web").exists()
