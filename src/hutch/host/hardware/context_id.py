"""A program of its own: take a vsock context id, then become a command that has the device which has it.

    python context_id.py CID FILE DESCRIPTOR -- COMMAND...

Any account that may open /dev/vhost-vsock takes whatever id it likes. So that nobody keeps a machine from starting, one
whose id is taken gets another, by chance. FILE says which one it has, and so does the COMMAND. It imports next to
nothing. See linux/vhost.h.
"""

import errno
import fcntl
import os
import struct
import sys

DEVICE = "/dev/vhost-vsock"
SET_GUEST_CID = 0x4008AF60  # VHOST_VSOCK_SET_GUEST_CID, _IOW(0xAF, 0x60, __u64)
FIRST, LAST = 3, (1 << 32) - 2  # below are the hypervisor's and the host's, above is any
MOST_TRIES = 100
OPTION = "vhost-vsock-pci,guest-cid="  # of QEMU


def claim(device: int, wanted: int) -> int:
    """The context id that the device has from now on."""
    cid = wanted
    for _ in range(MOST_TRIES):
        try:
            fcntl.ioctl(device, SET_GUEST_CID, struct.pack("=Q", cid))
            return cid
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            cid = FIRST + int.from_bytes(os.urandom(4), "little") % (LAST - FIRST + 1)
    raise OSError(errno.EADDRINUSE, "no context id is free")


def note(path: str, cid: int) -> None:
    """Say in a file which one it is, at once."""
    new = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.write(new, f"{cid}\n".encode())
    os.close(new)
    os.rename(f"{path}.new", path)


def main() -> None:
    border = sys.argv.index("--")
    wanted, path, descriptor = sys.argv[1:border]
    command = sys.argv[border + 1 :]
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        cid = claim(device, int(wanted))
        note(path, cid)
    except OSError as error:
        sys.exit(f"{error.filename or DEVICE}: {error.strerror}")
    if cid != int(wanted):
        os.write(2, f"the vsock context id {wanted} is somebody else's: this start has {cid}\n".encode())
    os.dup2(fcntl.fcntl(device, fcntl.F_DUPFD_CLOEXEC, 100), int(descriptor))  # it may have that number already
    asked, has = f"{OPTION}{wanted},", f"{OPTION}{cid},"
    command = [word.replace(asked, has, 1) if word.startswith(asked) else word for word in command]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
