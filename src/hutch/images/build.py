"""Makes the tree of one image. The caller (cache) holds the image's lock, clears up and publishes.

Only signed packages of a distribution run with the host's root, in mmdebstrap. Everything else (a setup
script, a foreign tree, hutch's own adaptation of it) runs in systemd-nspawn as root of a user namespace, and
the host never follows a path inside the tree.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from hutch.backends.launch import Step
from hutch.backends.nspawn import TASKS, sandboxed
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.doctor.tools import check_tools
from hutch.host.services.cgroup import find_flags
from hutch.host.storage.mountinfo import observe_mountinfo
from hutch.images import source
from hutch.images.contain import run_contained
from hutch.images.progress import MARK, Meter
from hutch.images.recipe import BASE_PACKAGES, DISTRIBUTIONS, Distribution, Recipe, adaptation
from hutch.images.record import Sources
from hutch.run import CommandFailed, run
from hutch.spec import member
from hutch.spec.names import GUEST_INTERFACE, PACKAGE, PROXIES, ROOT_DIRECTORIES, UID_COUNT
from hutch.spec.record import iso
from hutch.trees.changing import set_back
from hutch.trees.cursor import opened, way_to

SCRIPTS = Path(__file__).parent
SOURCES_HOOK = 'cd "$1"/var/lib/apt/lists && grep --with-filename "^Date: " *Release >/tmp/sources || true'
EPOCH = 1735689600
"""The time, in seconds since 1970, that scripts of packages are told, so that their files do not depend on the day (0
would expire every password). Files get the time of the newest source in the end: see make_tree."""
LONGEST, LONGEST_OF_MEMBERS = 3600.0, 900.0
"""Seconds that what runs inside a tree may take. Others wait for it, who build with the network too."""
SHOWN_LINES = 20
DEVICE = ": Cannot mknod: "  # the message of tar, which may not make devices
UNKNOWN_PACKAGE = re.compile(r"E: (?:Unable to locate package |Package ')([a-z0-9+.-]+)")


@dataclass(frozen=True)
class BuilderNetwork:
    """A place in the workspaces' network, lent to one build at a time.

    `before` and `after` run inside the namespace; `before` ends with the interface `interface` in it, which
    nspawn takes. `address` has a prefix length ("192.168.83.254/24"); `gateway` also answers DNS.
    """

    namespace_path: str
    interface: str
    before: tuple[Step, ...]
    after: tuple[Step, ...]
    address: str
    gateway: str


@dataclass(frozen=True)
class Workshop:
    """The workplace of one build: a scratch directory of root's, a cgroup, the first of its uids, and its meter."""

    scratch: Path
    group: str
    uid_base: int
    meter: Meter

    @property
    def tree(self) -> Path:
        return self.scratch / "root"

    @property
    def scripts(self) -> Path:
        """The directory that the tree sees at /run/hutch."""
        return self.scratch / "scripts"


def make_tree(recipe: Recipe, shop: Workshop, network: BuilderNetwork | None) -> Sources:
    """Fill `shop.tree` from the recipe, and return its sources. The same sources give the same tree, as far as a setup
    script lets them: files that the build writes get the time of the newest source. On failure the tree is in an
    undefined state."""
    begun = int(time.time())
    if recipe.rootfs is not None:
        sources: Sources = ((recipe.rootfs, unpack(recipe, shop)),)
        check_places(recipe, shop.tree)
    else:
        try:
            run_mmdebstrap(mmdebstrap_command(recipe, os.uname().machine), shop.scratch, shop.group, shop.meter)
        except CommandFailed as error:
            raise explain_bootstrap(recipe, error) from error
        sources = parse_sources((shop.scratch / "sources").read_text())
    epoch = max((int(datetime.fromisoformat(date).timestamp()) for _, date in sources), default=EPOCH)
    finish(recipe, shop, network if recipe.wants_network else None, epoch)
    check_places(recipe, shop.tree)  # a setup script can move them
    with opened(shop.tree) as top:
        set_back(top, begun, epoch)
    run(["sync", "--file-system", str(shop.tree)], timeout=600)
    return sources


def parse_sources(text: str) -> Sources:
    """The archives behind apt's lists, with their dates, from the lines that SOURCES_HOOK writes."""
    found = []
    for line in text.splitlines():
        name, _, date = line.partition(":Date: ")
        when = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
        found.append((name.rpartition("_")[0].replace("_", "/"), iso(when.timestamp())))
    return tuple(found)


def check_host(recipe: Recipe) -> None:
    """Raise HutchError when the host lacks what the recipe needs, saying what to install."""
    proofs = {"systemd-nspawn", "unshare"}
    if recipe.rootfs is None:
        proofs |= {"mmdebstrap", f"/usr/share/keyrings/{DISTRIBUTIONS[recipe.image].keyring}.*"}
    check_tools(proofs, f"{recipe.image} cannot be built on this host yet")


# Distributions: mmdebstrap.


def run_mmdebstrap(command: list[str], scratch: Path, group: str, meter: Meter, timeout: float = 3600.0) -> None:
    """Run mmdebstrap with the host's proxies. The scratch directory is shown at /tmp: apt's unprivileged downloader
    cannot reach below images/, and a killed program leaves its temporary files where the build is cleared up."""
    mount = 'mount --bind "$1" /tmp; shift; "$@"'
    env = {name: os.environ[name] for name in PROXIES if name in os.environ} | {"SOURCE_DATE_EPOCH": str(EPOCH)}
    shown = ["sh", "-euc", mount, "sh", str(scratch), *command]
    run_contained(shown, group=group, tasks=TASKS, on_line=meter.feed, env=env, timeout=timeout)


def mmdebstrap_command(recipe: Recipe, machine: str) -> list[str]:
    distribution = DISTRIBUTIONS[recipe.image]
    packages = dict.fromkeys((*BASE_PACKAGES, *recipe.packages))
    return [
        *("mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory"),
        *keyring_options(distribution),
        f"--include={','.join(packages)}",
        f"--customize-hook={SOURCES_HOOK}",
        distribution.suite,
        "/tmp/root",
        *distribution.sources(machine),
    ]


def keyring_options(distribution: Distribution) -> list[str]:
    """mmdebstrap knows the keys of the distributions whose mirrors it knows."""
    return [f"--keyring={path}" for path in find_keyring(distribution.keyring)] if distribution.pockets else []


def find_keyring(name: str) -> list[str]:
    """The host's keyring of a distribution, whose suffix differs between hosts."""
    return [str(path) for path in sorted(Path("/usr/share/keyrings").glob(f"{name}.*"))[:1]]


def explain_bootstrap(recipe: Recipe, error: CommandFailed) -> HutchError:
    """The error for a failed mmdebstrap, as far as its output tells the cause."""
    errors = [line for line in error.stderr.splitlines() if line.startswith(("E: ", "Err:"))]
    unknown = [match[1] for line in errors if (match := UNKNOWN_PACKAGE.match(line))]
    if unknown:
        return HutchError(
            f"{recipe.image} has no package {', '.join(unknown)}",
            resolution="correct `packages`; https://packages.debian.org and https://packages.ubuntu.com know the names",
        )
    unreachable = ("Could not resolve", "Temporary failure resolving", "Could not connect", "Failed to fetch")
    if any(text in error.stderr for text in unreachable):
        return HutchError(
            f"{recipe.image} could not be built: a mirror did not answer",
            details=last_lines("\n".join(errors)),
            resolution="check the host's network; a proxy is taken from http_proxy",
        )
    return HutchError(
        f"{recipe.image} could not be built: mmdebstrap {describe_code(error)}",
        details=last_lines(error.stderr),
        resolution=error.resolution,
    )


# Foreign trees: tar, without the host's root.


def unpack(recipe: Recipe, shop: Workshop) -> str:
    """Copy or extract the source of a rootfs image into the tree; returns the source's date."""
    assert recipe.rootfs is not None
    shop.tree.mkdir(mode=0o755)
    tools, copy = shop.scratch / "tools", shop.scratch / "source"
    copy.mkdir(mode=0o755)
    make_tools(tools, "target")
    shown = ["--bind-ro=/usr", f"--bind={shop.tree}:/target"]
    write_scripts(shop, {"unpack.sh": (SCRIPTS / "unpack.sh").read_text()})
    try:
        with source.opened_source(recipe.rootfs) as origin:
            found, option = os.fstat(origin), source.compression(recipe.rootfs)
            if stat.S_ISDIR(found.st_mode):
                shown, option = [*shown, f"--bind-ro={copy}:/source"], ""
            command = ["/bin/sh", "/run/hutch/unpack.sh", *([option] if option else [])]
            contain(shop, [*nspawn_command(shop, tools, None), *shown, *command], origin=origin)
            return iso(found.st_mtime)
    except CommandFailed as error:
        if DEVICE in error.stderr:
            refused = [line for line in error.stderr.splitlines() if DEVICE in line]
            raise HutchError(
                f"{recipe.image} holds device nodes outside /dev, which no workspace may bring",
                details=last_lines("\n".join(refused)),
                resolution="leave them out: `find TREE -type b -o -type c` shows them",
            ) from error
        raise HutchError(
            f"{recipe.image} could not be unpacked", details=last_lines(error.stderr), resolution=error.resolution
        ) from error


def check_places(recipe: Recipe, tree: Path) -> None:
    """Raise HutchError for a tree whose main directories lead somewhere else. Mounts there follow them: in a machine's
    first moments below another root, in nspawn even on the host. Looks at the entries of its top only."""
    wrong = []
    for name in ROOT_DIRECTORIES:
        try:
            mode = os.lstat(tree / name).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            wrong.append(f"/{name} is a symbolic link to {os.readlink(tree / name)!r}")
        elif not stat.S_ISDIR(mode):
            wrong.append(f"/{name} is not a directory")
    if wrong:
        raise HutchError(
            f"{recipe.image} cannot be a workspace's system: its top is not made of directories",
            details="\n".join(wrong),
            resolution="make them directories, in the tree or in `setup`",
        )


def make_tools(tools: Path, *places: str) -> None:
    """A root for the host's own programs, which are shown at its /usr; with empty directories for their work."""
    tools.mkdir(mode=0o755)
    for name in ("usr", "etc", *places):
        (tools / name).mkdir(mode=0o755)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            (tools / name).symlink_to(os.readlink(f"/{name}"))


def pack_tree(shop: Workshop, script: str, root: Path, *words: str) -> None:
    """Run a script of ours that packs the tree `root`, its /source, into files in shop.tree, its /target. The tree is
    not trusted, so what reads it sees nothing else and has no rights on the host (see unpack). What the script makes
    gets the time of the tree, so that the same tree gives the same file. Raises CommandFailed."""
    tools, source = shop.scratch / "tools", shop.scratch / "source"
    for directory in (shop.tree, source):
        directory.mkdir(mode=0o755, exist_ok=True)
    make_tools(tools, "source", "target")
    write_scripts(shop, {script: (SCRIPTS / script).read_text()})
    shown = ["--bind-ro=/usr", f"--bind={shop.tree}:/target", f"--bind-ro={source}:/source"]
    epoch = f"--setenv=SOURCE_DATE_EPOCH={int(os.stat(root).st_mtime)}"
    command = [*nspawn_command(shop, tools, None), *shown, epoch, "/bin/sh", f"/run/hutch/{script}", *words]
    with opened(root) as origin:
        contain(shop, command, origin=origin)


# Programs inside the tree.


def finish(recipe: Recipe, shop: Workshop, network: BuilderNetwork | None, epoch: int) -> None:
    """Install packages in a foreign tree, run the setup script, and adapt the tree."""
    scripts = {"inside.sh": (SCRIPTS / "inside.sh").read_text(), **adaptation()}
    if recipe.setup:
        scripts["setup"] = recipe.setup if recipe.setup.endswith("\n") else recipe.setup + "\n"
    write_scripts(shop, scripts)
    packages = (*BASE_PACKAGES, *recipe.packages) if recipe.rootfs and recipe.packages else ()
    address = (network.address, network.gateway) if network else ("", "")
    nspawn = [*nspawn_command(shop, shop.tree, network), f"--setenv=SOURCE_DATE_EPOCH={epoch}"]
    command = [*nspawn, "/bin/sh", "/run/hutch/inside.sh", *address, *packages]
    try:
        with lent(network):
            contain(shop, command, network)
    except CommandFailed as error:
        raise explain_finish(recipe, shop.meter.stage, error) from error


def explain_finish(recipe: Recipe, stage: str, error: CommandFailed) -> HutchError:
    """The error for a failure inside the tree, by the stage that it was in."""
    missing = [line for line in error.stderr.splitlines() if line.startswith("hutch: missing:")]
    if stage == "adapting" and missing:
        return HutchError(
            f"{recipe.image} cannot be a workspace's system: it lacks{missing[0].removeprefix('hutch: missing:')}",
            resolution="install them in the tree, or in `setup`",
        )
    what = {"running setup": "its setup script", "installing packages": "installing its packages"}.get(
        stage, "building it"
    )
    return HutchError(
        f"{recipe.image}: {what} {describe_code(error)}",
        details=last_lines(error.stderr),
        resolution="nothing was kept; correct it and try again",
    )


@contextmanager
def lent(network: BuilderNetwork | None) -> Iterator[None]:
    """The builder's place in the network, for as long as the context lasts."""
    if network is None:
        yield
        return
    inside = ("nsenter", f"--net={network.namespace_path}")
    with ExitStack() as undo:
        for step in reversed(network.after):
            undo.callback(run, (*inside, *step.argv), check=not step.may_fail)
        for step in network.before:
            run((*inside, *step.argv), check=not step.may_fail)
        yield


def nspawn_command(shop: Workshop, directory: Path, network: BuilderNetwork | None) -> list[str]:
    """systemd-nspawn for one command that is not trusted, without the command."""
    net = f"--network-interface={network.interface}:{GUEST_INTERFACE}" if network else "--private-network"
    return [
        *("systemd-nspawn", "--quiet", "--settings=no", "--register=no", "--keep-unit", "--as-pid2"),
        *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--machine=build"),
        *(f"--private-users={shop.uid_base}:{UID_COUNT}", "--private-users-ownership=off", net),
        *("--setenv=DEBIAN_FRONTEND=noninteractive", "--setenv=LC_ALL=C.UTF-8"),
        *(f"--directory={directory}", f"--bind-ro={shop.scripts}:/run/hutch"),
    ]


def contain(
    shop: Workshop, nspawn: list[str], network: BuilderNetwork | None = None, *, origin: int | None = None
) -> None:
    """Run nspawn on the tree, owned by its root. `origin` pins a directory to show read-only beside it, or a file to
    be read from standard input."""
    directory, identity, stdin = "", "", "/dev/null"
    if origin is not None:
        found = os.fstat(origin)
        if stat.S_ISDIR(found.st_mode):
            # The script mounts it by its path, in a namespace of its own, and then asks whether it is the same one.
            directory, identity = os.readlink(way_to(origin)), f"{found.st_dev}:{found.st_ino}"
        else:
            stdin = f"/proc/{os.getpid()}/fd/{origin}"
    options = ",".join(["rw", *find_flags(observe_mountinfo())])
    mounts = [str(shop.uid_base), options, str(shop.tree), directory, identity, str(shop.scratch / "source")]
    run_contained(
        ["sh", str(SCRIPTS / "container.sh"), *mounts, *sandboxed(sys.executable, str(PACKAGE), nspawn)],
        group=shop.group,
        tasks=TASKS,
        on_line=shop.meter.feed,
        namespace=network.namespace_path if network else "",
        stdin=stdin,
        timeout=LONGEST if member.acting is None else LONGEST_OF_MEMBERS,
    )


def write_scripts(shop: Workshop, scripts: dict[str, str]) -> None:
    """Put files, by relative path, where root of the user namespace can read them, whatever the umask and the
    installation."""
    for name, text in scripts.items():
        path = shop.scripts / name
        for directory in (shop.scripts, *(shop.scripts / parent for parent in reversed(Path(name).parents))):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        path.write_text(text)
        path.chmod(0o644)


def describe_code(error: CommandFailed) -> str:
    return f"failed with code {error.returncode}" if error.returncode is not None else "did not end in time"


def last_lines(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith(MARK)]
    return "\n".join(lines[-SHOWN_LINES:])
