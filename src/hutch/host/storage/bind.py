"""A program of its own: bind-mount a directory or a file that is reached through no symbolic link.

    python bind.py SOURCE TARGET OPTIONS [UID]

A share's path may lead through a directory that some guest can write; a symbolic link put there must not
lead root elsewhere. So every component is opened with O_NOFOLLOW, and the mount is made from the
descriptor. TARGET "=" mounts the source over itself, "=?" unless what lies there is nosuid,nodev already, or a
file that nobody but its owner can reach; OPTIONS are then of the kernel's own. TARGET is made for a file, where it is
absent. With a UID, the source is that user's own: what was looked at before may be another one by now; and it is
opened with their rights, but for "=", which shows nobody anything and is there for users who are gone too. It imports
next to nothing, and becomes mount(8) where there is a target.
"""

import os
import pwd
import stat
import sys

GUARDED = os.ST_NOSUID | os.ST_NODEV
ONWARD = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


def open_strictly(path: str, *, may_be_file: bool = False) -> int:
    """A descriptor of the directory `path` (absolute), with no symbolic link on the way; or of a regular file."""
    current = os.open("/", os.O_PATH | os.O_DIRECTORY)
    *parents, last = [part for part in path.split("/") if part] or ["."]
    for part in parents:
        current = _replaced(current, os.open(part, ONWARD, dir_fd=current))
    if may_be_file and stat.S_ISREG(os.stat(last, dir_fd=current, follow_symlinks=False).st_mode):
        found = _replaced(current, os.open(last, os.O_PATH | os.O_NOFOLLOW, dir_fd=current))
        if not stat.S_ISREG(os.fstat(found).st_mode):
            sys.exit(f"{path} was replaced just now")
        return found
    return _replaced(current, os.open(last, ONWARD, dir_fd=current))


def open_as(path: str, uid: int) -> int:
    """The same with a user's rights."""
    account = pwd.getpwuid(uid)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setegid(account.pw_gid)
    os.seteuid(uid)
    try:
        return open_strictly(path, may_be_file=True)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def is_file(path: str) -> bool:
    """Whether a regular file is at the end of the path, which may be absent."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def is_out_of_reach(path: str) -> bool:
    """Whether nobody but its owner can reach a file, since some directory on the way is the owner's alone: then what is
    set on the file counts for nobody else."""
    uid = os.lstat(path).st_uid
    while (path := os.path.dirname(path)) != "/":
        found = os.lstat(path)
        if found.st_uid == uid and not found.st_mode & 0o011:
            return True
    return False


def is_guarded(source: str, descriptor: int) -> bool:
    if os.fstatvfs(descriptor).f_flag & GUARDED == GUARDED:
        return True
    return stat.S_ISREG(os.fstat(descriptor).st_mode) and is_out_of_reach(source)


def guard(source: str, descriptor: int, options: str) -> None:
    """Mount what a descriptor pins over itself, with options out of ATTRIBUTES."""
    # A program that is run by its path finds nothing else of hutch's.
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)).removesuffix("/hutch/host/storage"))
    # Spares the start-up of `hutch start` where nothing is to be guarded.
    from hutch.host.storage.mount_calls import ATTRIBUTES, cloned, put, set_attributes

    try:
        tree = cloned(descriptor)
        set_attributes(tree, sum(ATTRIBUTES[option] for option in options.split(",")))
        put(tree, descriptor)
    except OSError as error:
        sys.exit(f"{source} cannot be mounted over itself: {error.strerror}")


def main() -> None:
    source, target, options, *uid = sys.argv[1:]
    try:
        as_root = not uid or target == "="
        descriptor = open_strictly(source, may_be_file=True) if as_root else open_as(source, int(uid[0]))
        owner = os.fstat(descriptor).st_uid
        if uid and owner != int(uid[0]):
            sys.exit(f"{source} belongs to uid {owner}, not to uid {uid[0]}, who shares it")
        if target == "=?" and is_guarded(source, descriptor):
            return
        if target.startswith("="):
            here = ""
        elif stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fchdir(descriptor)  # "." is that very directory, whatever its path leads to by now
            here = "."
        else:
            os.set_inheritable(descriptor, True)
            here = f"/proc/self/fd/{descriptor}"
            os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    except KeyError:
        sys.exit(f"{source}: this host has no user {uid[0]}, who shares it")
    except OSError as error:
        sys.exit(
            f"{source}: {error.strerror} (a share must be a directory or a file, by a path without symbolic links)"
        )
    if not here:
        guard(source, descriptor, options)
        return
    os.execvp("mount", ["mount", "--no-canonicalize", "--bind", "-o", options, here, target])


if __name__ == "__main__":
    main()
