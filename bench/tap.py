"""Runs a command with a TAP device as its file descriptor 3, so that QEMU needs no privilege for its network.

tap.py DEVICE STARTED COMMAND…: the clock starts in the file STARTED, right before the command itself. A program
of its own, since it becomes the command.
"""

import fcntl
import os
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
DESCRIPTOR = 3


def main(device: str, started: str, *command: str) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    if tap == DESCRIPTOR:
        os.set_inheritable(tap, True)
    else:
        os.dup2(tap, DESCRIPTOR)  # inheritable by itself
    with open(started, "w") as clock:
        clock.write(f"{time.time():.6f}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
