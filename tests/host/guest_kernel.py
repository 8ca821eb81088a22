"""Runs inside a workspace: asks the kernel for what it may refuse, and prints each answer as JSON: 0, or an errno.

python3 -c "$(cat guest_kernel.py)"
"""

import ctypes
import json
import mmap
import os
import socket

IO_URING = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
KEYS = {
    "x86_64": {"add_key": 248, "request_key": 249, "keyctl": 250},
    "aarch64": {"add_key": 217, "request_key": 218, "keyctl": 219},
}
FAMILIES = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_RDS", "AF_TIPC")
NEW_USER_NAMESPACE = 0x1000_0000
# push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; int 0x80; pop rbx; ret: a system call by the ABI of i386.
BY_I386 = bytes.fromhex("53 89f8 89f3 89d1 cd80 5b c3")

libc = ctypes.CDLL(None, use_errno=True)


def system_call(number: int) -> int:
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(number, 0, 0, 0, 0, 0) < 0 else 0


def open_socket(family: int) -> int:
    kind = socket.SOCK_RAW if family in (socket.AF_NETLINK, socket.AF_PACKET) else socket.SOCK_STREAM
    try:
        socket.socket(family, kind).close()
    except OSError as error:
        return error.errno or -1
    return 0


def by_i386() -> dict[str, int]:
    """vsock by both calls of i386 that make a socket; the arguments of one of them lie in memory."""
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(BY_I386)
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 3)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    return {"socket by i386": -call(359, 40, 1), "socketcall by i386": -call(102, 1, 0)}


def user_namespace() -> int:
    """In a child, since there is no way back."""
    child = os.fork()
    if child == 0:
        os._exit(0 if libc.unshare(NEW_USER_NAMESPACE) == 0 else ctypes.get_errno())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


machine = os.uname().machine
answers = {name: system_call(number) for name, number in {**IO_URING, **KEYS.get(machine, {})}.items()}
answers |= {family: open_socket(getattr(socket, family)) for family in FAMILIES}
if machine == "x86_64":
    answers |= by_i386()
answers["user namespace"] = user_namespace()
print(json.dumps(answers))
