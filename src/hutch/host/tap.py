"""A program of its own: open a TAP device, then become a command that has it as a descriptor.

    python tap.py INTERFACE DESCRIPTOR COMMAND...

Opening one takes root and /dev/net/tun; what it becomes (a virtual machine monitor, without either) has nothing but
this one device. It imports next to nothing. See Documentation/networking/tuntap.rst of the kernel.
"""

import fcntl
import os
import struct
import sys

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF = 0x0002, 0x1000, 0x4000, 0x400454CA


def main() -> None:
    interface, number, *command = sys.argv[1:]
    request = struct.pack("16sH22x", interface.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, request)
    except OSError as error:
        sys.exit(f"the TAP device {interface} cannot be opened: {error.strerror}")
    os.set_inheritable(os.dup2(device, int(number)), True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
