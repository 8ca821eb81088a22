"""A program of its own: provide the sparse disk that a virtual machine's root is kept on.

    python disk.py [--fresh] PATH BYTES UID

A new one gets an empty ext4; one that is there grows to BYTES and never shrinks, and its content, which a guest wrote,
is not looked at: the guest grows its own file system. With --fresh there is never an old one. It appears whole or not
at all.
"""

import os
import sys


def main() -> None:
    *options, path, size, uid = sys.argv[1:]
    try:
        if options == ["--fresh"] or not os.path.exists(path):
            make(path, int(size), int(uid))
        elif os.stat(path).st_size < int(size):
            os.truncate(path, int(size))
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")


def make(path: str, size: int, uid: int) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    new = f"{path}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.ftruncate(descriptor, size)
    # The disk's tables are written when the guest first needs them; nobody but root of the guest gets the reserve.
    options = ["-q", "-F", "-m", "1", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
    command = ["mkfs.ext4", *options, new]
    status = os.waitpid(os.posix_spawnp(command[0], command, os.environ), 0)[1]
    if status:
        sys.exit(f"{path}: mkfs.ext4 failed with code {os.waitstatus_to_exitcode(status)}")
    os.fchown(descriptor, uid, uid)
    os.fsync(descriptor)
    os.rename(new, path)


if __name__ == "__main__":
    main()
