"""A program of its own: open a TAP device, then become a command that has it as a descriptor.

    python tap.py INTERFACE DESCRIPTOR [--vsock CID FILE DESCRIPTOR] -- COMMAND...

Opening one takes root and /dev/net/tun; what it becomes (a virtual machine monitor, without either) has nothing but
this one device, and one of vsock where that is asked for. It imports next to nothing. See
Documentation/networking/tuntap.rst of the kernel, and linux/vhost.h.

Any account that may open /dev/vhost-vsock takes whatever context id it likes. So that nobody keeps a machine from
starting, one whose id is taken gets another, by chance. FILE says which one it has, and so does the COMMAND.
"""

import errno
import fcntl
import os
import struct
import sys

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF = 0x0002, 0x1000, 0x4000, 0x400454CA
SET_GUEST_CID = 0x4008AF60  # VHOST_VSOCK_SET_GUEST_CID, _IOW(0xAF, 0x60, __u64)
FIRST_CID, LAST_CID = 3, (1 << 32) - 2  # below are the hypervisor's and the host's, above is any
MOST_CLAIMS = 100


def claim(wanted: int, file: str) -> tuple[int, int]:
    """A device of vsock that has a context id, and that id."""
    device = os.open("/dev/vhost-vsock", os.O_RDWR | os.O_CLOEXEC)
    cid = wanted
    for _ in range(MOST_CLAIMS):
        try:
            fcntl.ioctl(device, SET_GUEST_CID, struct.pack("=Q", cid))
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            cid = FIRST_CID + int.from_bytes(os.urandom(4), "little") % (LAST_CID - FIRST_CID + 1)
    else:
        sys.exit("no vsock context id was free")
    if cid != wanted:
        os.write(2, f"the vsock context id {wanted} is somebody else's: this start has {cid}\n".encode())
    noted = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.write(noted, f"{cid}\n".encode())
    os.close(noted)
    return device, cid


def main() -> None:
    border = sys.argv.index("--")
    interface, number, *others = sys.argv[1:border]
    command = sys.argv[border + 1 :]
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except OSError as error:
        sys.exit(f"the TAP device {interface} cannot be opened: {error.strerror}")
    opened = {int(number): device}
    if others:
        _, wanted, file, descriptor = others
        try:
            opened[int(descriptor)], cid = claim(int(wanted), file)
        except OSError as error:
            sys.exit(f"the vsock device cannot be opened: {error.strerror}")
        prefix = "vhost-vsock-pci,guest-cid="
        command = [w.replace(f"{prefix}{wanted},", f"{prefix}{cid},") if w.startswith(prefix) else w for w in command]
    # Out of the way first: one may have the number that another is to get.
    moved = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 100) for target, source in opened.items()}
    for target, source in moved.items():
        os.dup2(source, target)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
