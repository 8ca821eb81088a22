"""A program of its own: bind-mount a directory that is reached through no symbolic link.

    python bind.py SOURCE TARGET OPTIONS

A share's path may lead through a directory that some guest can write; a symbolic link put there must not
lead root elsewhere. So every component is opened with O_NOFOLLOW, and the mount is made from the
descriptor, as ".". TARGET "=" mounts the directory over itself, "=?" unless what lies there is nosuid,nodev already. It
imports next to nothing and becomes mount(8).
"""

import os
import sys

GUARDED = os.ST_NOSUID | os.ST_NODEV


def open_strictly(path: str) -> int:
    """A descriptor of the directory `path` (absolute), with no symbolic link on the way."""
    current = os.open("/", os.O_PATH | os.O_DIRECTORY)
    for part in [part for part in path.split("/") if part]:
        following = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
        os.close(current)
        current = following
    return current


def main() -> None:
    source, target, options = sys.argv[1:4]
    try:
        descriptor = open_strictly(source)
    except OSError as error:
        sys.exit(f"{source}: {error.strerror} (a share must be a directory reached through no symbolic link)")
    if target == "=?" and os.fstatvfs(descriptor).f_flag & GUARDED == GUARDED:
        return
    os.fchdir(descriptor)  # "." is that very directory, whatever its path leads to by now
    here = "."
    os.execvp(
        "mount",
        ["mount", "--no-canonicalize", "--bind", "-o", options, here, here if target in ("=", "=?") else target],
    )


if __name__ == "__main__":
    main()
