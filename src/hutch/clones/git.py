"""git on the host, where a guest may have had a hand in what it reads: it runs as the person, never as root, with an
environment of its own, and nothing that a repository configures is run.

The configuration of a repository of the host is read here, by git, for values that are known to be harmless; the work
is done in a scratch repository, which has no configuration but these, sees the host's objects, and is gone afterwards.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hutch.clones.refs import OBJECT
from hutch.errors import HutchError, UsageError, explained
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.run import PIPE, CommandFailed, Popen, TimeoutExpired, describe, start
from hutch.spec.person import caller
from hutch.trees.removing import remove_below

PATIENCE = 600.0  # seconds that a command may take
NOWHERE = "/nonexistent"
OWN = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
WITHOUT_OTHERS = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": NOWHERE,
    "XDG_CONFIG_HOME": NOWHERE,
}
HARMLESS = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0")
"""What a repository's own configuration is overruled by."""
SCRATCH = {
    "core.attributesfile": "/dev/null",
    "core.fsmonitor": "false",
    "core.hookspath": "/dev/null",
    "core.packedgitlimit": "1g",
    "core.packedgitwindowsize": "32m",
    "core.quotepath": "false",
    "core.untrackedcache": "false",
    "gc.auto": "0",
    "pack.threads": "2",
    "pack.windowmemory": "256m",
}
OLD = 86_400.0  # seconds
MEMORY, SECONDS = 2 << 30, 3600  # of a command that reads what a guest has written: bytes, and processor time


@dataclass(frozen=True)
class Git:
    """A way to run git: the directory to run it in, its environment, and the words that come before git's own."""

    directory: str
    environment: Mapping[str, str]
    options: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def start(self, *words: str, stdin: int | None = None, stdout: int | None = None, stderr: int) -> Popen[bytes]:
        return start(self.argv(*words), stdin=stdin, stdout=stdout, stderr=stderr, env=self.environment)

    def argv(self, *words: str) -> list[str]:
        return [*self.before, "git", "-C", self.directory, *self.options, *words]

    def run(self, *words: str, stdin: bytes = b"", codes: Sequence[int] = (0,)) -> bytes:
        """Run git to its end, and return its output. Raises CommandFailed, for an exit code that is not in `codes` as
        well."""
        process = self.start(*words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        try:
            output, errors = process.communicate(stdin, timeout=PATIENCE)
        except TimeoutExpired as error:
            raise CommandFailed(self.argv(*words), f"did not end within {PATIENCE:g} s", "", None) from error
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode not in codes:
            said = errors.decode("utf-8", "replace")
            raise CommandFailed(self.argv(*words), describe(process.returncode), said, process.returncode)
        return output

    def line(self, *words: str, codes: Sequence[int] = (0,)) -> str:
        return os.fsdecode(self.run(*words, codes=codes)).removesuffix("\n")


@contextmanager
def told(what: str, resolution: str = "") -> Iterator[None]:
    """Raise a HutchError, which says `what` cannot be done, for a failure of git, whose own words it has."""
    try:
        yield
    except CommandFailed as error:
        if error.returncode is None and not error.stderr:
            raise  # no git, or none that came to an end: that says it all
        raise HutchError(what, details=error.details, resolution=resolution or error.resolution) from error


@dataclass(frozen=True)
class Repository:
    """A checkout of the host, by absolute paths: its top, its git directory, that which it shares with other worktrees,
    and its objects. `format` is that of its objects. `head` is its commit, "" before the first, and `branch` the branch
    that it is on, "" for none. `config` is what git reads for it."""

    top: str
    directory: str
    common: str
    objects: str
    format: str
    head: str
    branch: str
    config: Mapping[str, str]

    @property
    def git(self) -> Git:
        """git in the repository itself: for questions about refs, and for changing them."""
        return Git(self.top, {**OWN, **WITHOUT_OTHERS}, HARMLESS)

    def remotes(self) -> set[str]:
        """The names of its remotes."""
        keys = (key.split(".", 1)[1].rpartition(".")[0] for key in self.config if key.startswith("remote."))
        return {key for key in keys if key}

    def shallow(self) -> list[str]:
        """The commits whose parents a shallow clone lacks."""
        try:
            words = Path(self.common, "shallow").read_text(encoding="ascii").split()
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        return [word for word in words if len(word) == OBJECT[self.format]]


def find_repository(path: str) -> Repository:
    """The checkout that a directory is in. Raises UsageError where there is none, HutchError where git will not have
    it."""
    own = os.path.realpath(path)
    top = next((str(at) for at in (Path(own), *Path(own).parents) if os.path.lexists(at / ".git")), "")
    if not top:
        raise UsageError(f"{path} is in no checkout of git", resolution="`git init` and a commit make one")
    git = Git(top, {**OWN, **WITHOUT_OTHERS}, HARMLESS)
    with told(f"{top} cannot be read as a repository", "it must be a checkout of your own, which git reads"):
        absolute = ("rev-parse", "--path-format=absolute")
        said = git.line(*absolute, "--show-toplevel", "--absolute-git-dir", "--git-common-dir", "--git-path", "objects")
        format = git.line("rev-parse", "--show-object-format")
        head = git.line("rev-parse", "--quiet", "--verify", "HEAD^{commit}", codes=(0, 1))
        branch = git.line("symbolic-ref", "--quiet", "HEAD", codes=(0, 1)).removeprefix("refs/heads/")
        config = read_config(top)
    found = said.split("\n")
    # A workspace that shares it could have it name another directory, whose files or commits would go along.
    if len(found) != 4 or os.path.realpath(found[0]) != top or format not in OBJECT:
        why = "git finds its files elsewhere: core.worktree"
        raise HutchError(f"{top} cannot be read as a repository", details=why)
    if not is_own(top, os.path.realpath(found[1]), os.path.realpath(found[2]), config):
        raise HutchError(
            f"{top} leads to a repository that does not know it: {found[1]}",
            resolution="go to the checkout of that; `git worktree repair` is for one that was moved",
        )
    if borrows(found[3], os.path.realpath(found[2])):
        raise HutchError(
            f"{top} has objects of another repository, whose history would go along",
            details=f"{found[3]} has links, or info/alternates",
            resolution="`git repack -a -d` takes them over; then remove objects/info/alternates",
        )
    if any(key == "extensions.partialclone" or key.endswith(".promisor") for key in config):
        raise HutchError(
            f"{top} is a partial clone, which may lack objects that a clone of it needs",
            details="its configuration has extensions.partialClone or a remote that is a promisor",
            resolution="clone it whole, or fetch all with `git fetch --refetch --no-filter` and remove those keys",
        )
    places = dict(zip(("top", "directory", "common", "objects"), found, strict=True))
    return Repository(**places, format=format, head=head, branch=branch, config=config)


def borrows(objects: str, common: str) -> bool:
    """Whether objects of another repository count as this one's. A workspace that shares it may have arranged that."""
    if "\n" in objects or os.path.realpath(objects) != os.path.join(common, "objects"):
        return True
    with explained(f"{objects} cannot be read"):
        places = [objects, *(place for name in ("pack", "info") if os.path.isdir(place := os.path.join(objects, name)))]
        is_linked = any(entry.is_symlink() for place in places for entry in os.scandir(place))
    return is_linked or os.path.lexists(os.path.join(objects, "info", "alternates"))


def is_own(top: str, directory: str, common: str, config: Mapping[str, str]) -> bool:
    """Whether a git directory, and the common one, are those of this checkout by their own word too. All paths are
    real."""
    git = os.path.join(top, ".git")
    if stat.S_ISDIR(os.lstat(git).st_mode):
        return directory == common == git
    if "core.worktree" in config:  # a submodule's, by which git has found the checkout
        return directory == common
    with suppress(OSError, UnicodeDecodeError):
        back = Path(directory, "gitdir").read_text().rstrip("\n")
        is_known = os.path.dirname(directory) == os.path.join(common, "worktrees")
        return is_known and os.path.join(os.path.realpath(os.path.join(directory, back, "..")), ".git") == git
    return False


def read_config(top: str) -> dict[str, str]:
    """The configuration of a repository as its owner's git knows it: for each key the value that counts."""
    git = Git(top, {**OWN, "HOME": person().pw_dir}, HARMLESS)
    found = {}
    for item in os.fsdecode(git.run("config", "--null", "--list")).split("\0"):
        key, _, value = item.partition("\n")
        found[key] = value
    return found


def person() -> pwd.struct_passwd:
    """The account that this process runs as. Raises HutchError for root, and for one that is none."""
    uid = os.geteuid()
    if uid == 0:
        raise HutchError("git is not run as root on a workspace's data")
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise HutchError(f"uid {uid} has no account on this host, so no ssh to reach the workspace by") from None


@dataclass(frozen=True)
class Scratch:
    """A scratch repository: its directory, and the git that works in it. `limited` is git with limits on memory and
    time, for what a guest has sent."""

    directory: str
    git: Git
    limited: Git


@contextmanager
def scratch(repository: Repository, limit: int = 0, *, work: Mapping[str, str] | None = None) -> Iterator[Scratch]:
    """A scratch repository, which sees the objects of another one. Its files have `limit` bytes at most, if that is not
    0. It lies in the person's own state: a workspace that shares the other one writes there as the person does.

    With `work`, which is configuration for that, it works on the files of the other one, and what it makes are objects
    of that.
    """
    place, name = own_state() / "scratch", secrets.token_hex(8)
    directory = str(place / name)
    environment = {**OWN, **WITHOUT_OTHERS, "GIT_DIR": directory, **config_variables({**SCRATCH, **(work or {})})}
    if work is not None:
        more = {"WORK_TREE": repository.top, "INDEX_FILE": f"{directory}/index", "OBJECT_DIRECTORY": repository.objects}
        environment |= {f"GIT_{name}": value for name, value in more.items()}
    at = directory if work is None else repository.top
    size = (f"--fsize={limit}",) if limit else ()
    limits = ("prlimit", "--core=0", f"--data={MEMORY}", f"--cpu={SECONDS}", *size, "--")
    with explained(f"{place} cannot be made"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with kept_open(opened) as above:
        with explained(f"{place} cannot be written"):
            os.fchmod(above, 0o700)
            _remove_old(above)
            os.mkdir(name, 0o700, dir_fd=above)
        try:
            _fill(Path(directory), repository, is_bare=work is None)
            yield Scratch(directory, Git(at, environment), Git(at, environment, (), limits))
        finally:
            with suppress(HutchError):  # leftovers are no reason to fail, and go with a later one
                remove_below(above, name)


def own_state() -> Path:
    """The directory of the person's own notes. Raises HutchError for a person without a home."""
    # Nothing of the environment counts, since a process that root starts for the person has none of theirs.
    state = caller({}, person().pw_uid).state
    if state is None:
        raise HutchError(f"{person().pw_name} has no home on this host, in which the notes on clones could lie")
    return state


def _remove_old(directory: int) -> None:
    """Remove scratch repositories that killed processes have left."""
    for name in os.listdir(directory):
        with suppress(OSError, HutchError):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime < time.time() - OLD:
                remove_below(directory, name)


def config_variables(config: Mapping[str, str]) -> dict[str, str]:
    """Configuration as git takes it from its environment."""
    found = {"GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return found


def _fill(directory: Path, repository: Repository, *, is_bare: bool) -> None:
    """Write what git takes for a repository."""
    for below in ("refs", "objects/info", "objects/pack", "info"):
        (directory / below).mkdir(parents=True)
    (directory / "HEAD").write_text("ref: refs/heads/none\n")
    bare = str(is_bare).lower()
    extension = f"[extensions]\n\tobjectFormat = {repository.format}\n" if repository.format != "sha1" else ""
    version = 1 if extension else 0
    (directory / "config").write_text(f"[core]\n\trepositoryFormatVersion = {version}\n\tbare = {bare}\n{extension}")
    (directory / "objects" / "info" / "alternates").write_text(f"{repository.objects}\n")
    if shallow := repository.shallow():
        (directory / "shallow").write_text("".join(f"{word}\n" for word in shallow))
