"""A program that plays cloud-hypervisor in the jail that it would run in: reports what it finds there, as JSON on its
console, then boots a guest that is ready at once and ends when it is asked to in both ways. It prints what its balloon
is told before. It stands alone, and runs with what every host has.
"""

import fcntl
import json
import os
import socket
import stat
import struct
import tarfile
import time

TUNGETIFF = 0x800454D2
OFF, READY = 900, 901
RESETS = False


def look() -> dict[str, object]:
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    request = fcntl.ioctl(4, TUNGETIFF, bytes(40))
    writable = [path for path in ("/", "/vm", "/sockets", "/usr", "/kernel", "/disk") if os.access(path, os.W_OK)]
    with tarfile.open("/vm/archive") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        told = {name: file.read().decode() for name, file in files.items() if file is not None}
    return {
        "uids": status["Uid"].split(),
        "groups": status["Groups"].split(),
        "capabilities": [status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privs": status["NoNewPrivs"],
        "processes": max(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "tap": struct.unpack("16sH22x", request)[0].rstrip(b"\0").decode(),
        "root": sorted(os.listdir("/")),
        "devices": sorted(os.listdir("/dev")),
        "writable": writable,
        "told": told,
        "mode": stat.S_IMODE(os.stat("/vm/archive").st_mode),
        "environment": sorted(os.environ),
        "is_terminal": os.isatty(0) and os.isatty(1),
    }


def listen(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/sockets/{name}")
    listener.listen()
    return listener


def main() -> None:
    os.umask(0o077)  # as cloud-hypervisor does
    vm, api = listen("vm"), listen("api")
    print(json.dumps(look()), flush=True)
    os.write(3, b'{\n  "source": "vm",\n  "event": "booted"\n}\n\n')
    with socket.socket(socket.AF_UNIX) as call:
        while call.connect_ex(f"/sockets/vm_{READY}"):
            pass  # a guest takes longer
        call.sendall(b"READY=1")
        assert call.recv(1) == b""  # systemd waits for that too
    if RESETS:
        time.sleep(2)  # or it would not have been ready for long enough to be known as such
        os.write(3, b'{\n  "source": "vm",\n  "event": "rebooting"\n}\n\n')
        time.sleep(60)  # cloud-hypervisor would go on too
    while True:
        line, _ = api.accept()
        head, _, body = line.recv(4096).partition(b"\r\n\r\n")
        if head.startswith(b"PUT /api/v1/vm.power-button HTTP/1.1\r\n"):
            break
        assert head.startswith(b"PUT /api/v1/vm.resize HTTP/1.1\r\n")
        print(body.decode(), flush=True)
        line.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    asked, _ = vm.accept()
    assert asked.recv(64) == f"CONNECT {OFF}\n".encode()


if __name__ == "__main__":
    main()
