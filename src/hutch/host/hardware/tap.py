"""A program of its own: open a TAP device, then become a command that has it as a descriptor.

    python tap.py INTERFACE DESCRIPTOR [--open DEVICE DESCRIPTOR]... [--largest BYTES DISK] -- COMMAND...

Opening one takes root and /dev/net/tun; what it becomes (a virtual machine monitor, without either) has nothing but
this one device. No file that it writes grows beyond its memory of so many BYTES, which is a file to the kernel, or
beyond its DISK ("" for none), which may be larger than it is asked for now. Other devices are named by the scripts of
machines that run since before an upgrade. It imports next to nothing. See Documentation/networking/tuntap.rst of the
kernel.
"""

import fcntl
import os
import resource
import struct
import sys

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF = 0x0002, 0x1000, 0x4000, 0x400454CA


def main() -> None:
    border = sys.argv.index("--")
    interface, number, *others = sys.argv[1:border]
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except OSError as error:
        sys.exit(f"the TAP device {interface} cannot be opened: {error.strerror}")
    opened = {int(number): device}
    for option, path, wanted in zip(*[iter(others)] * 3, strict=True):
        try:
            if option == "--largest":
                largest = max(int(path), os.stat(wanted).st_size if wanted else 0)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
                continue
            opened[int(wanted)] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            sys.exit(f"{path} cannot be opened: {error.strerror}")
        except ValueError as error:  # of a limit, which nobody can raise
            sys.exit(f"the limit of its files cannot be {path} bytes: {error}")
    # Out of the way first: one may have the number that another is to get.
    moved = {target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 100) for target, source in opened.items()}
    for target, source in moved.items():
        os.dup2(source, target)
    os.execvp(sys.argv[border + 1], sys.argv[border + 1 :])


if __name__ == "__main__":
    main()
