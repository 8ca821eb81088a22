"""Pure: a filter of system calls as the program that the kernel runs for each of them, see seccomp(2).

It looks at numbers, which differ between the ABIs that a kernel offers at once; what comes by one that is not listed
here is refused. It is loaded at each start: imports stay few.
"""

from __future__ import annotations

import struct
from errno import EAFNOSUPPORT, ENOSYS, EPERM, EPROTONOSUPPORT

TYPE_CHECKING = False  # see runtime/steps
if TYPE_CHECKING:
    from collections.abc import Iterable

LOAD, RETURN, IF_EQUAL, IF_AT_LEAST = 0x20, 0x06, 0x15, 0x35  # BPF_LD|W|ABS, RET|K, JMP|JEQ|K, JMP|JGE|K
NUMBER, ABI, FIRST, SECOND, THIRD = 0, 4, 16, 24, 32  # offsets in struct seccomp_data; of arguments, the lower halves
ALLOW, REFUSE = 0x7FFF_0000, 0x0005_0000  # SECCOMP_RET_ALLOW, and SECCOMP_RET_ERRNO with the error added
INSTRUCTION = 8  # bytes of a struct sock_filter

# Where a program may pass the arguments of socket(2) in memory, a filter cannot see them: such calls are refused.
SOCKETCALL, SOCKETCALL_KINDS = "socketcall", (1, 8)  # SYS_SOCKET, SYS_SOCKETPAIR
SOL_SOCKET, UDP = 1, 17  # see socket(7) and ip(7); what comes after UDP is another protocol than that and TCP
X32 = 0x4000_0000  # numbers from here on are a third ABI's of x86-64, which nobody uses

SAME = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
GENERIC = {**SAME, "add_key": 217, "request_key": 218, "keyctl": 219, "socket": 198, "socketpair": 199}
X86_64 = {**SAME, "add_key": 248, "request_key": 249, "keyctl": 250, "socket": 41, "socketpair": 53}
I386 = {**SAME, "add_key": 286, "request_key": 287, "keyctl": 288, "socket": 359, "socketpair": 360, SOCKETCALL: 102}
ARM = {**SAME, "add_key": 309, "request_key": 310, "keyctl": 311, "socket": 281, "socketpair": 288}
MACHINES = {
    "x86_64": {0xC000_003E: X86_64, 0x4000_0003: I386},
    "aarch64": {0xC000_00B7: GENERIC, 0x4000_0028: ARM},
    "riscv64": {0xC000_00F3: GENERIC},
}
"""Output of `uname -m` -> AUDIT_ARCH_… of each ABI of such a kernel -> the numbers of its calls."""
OWN_GENERIC = {
    "bind": 200,
    "bpf": 280,
    "clone3": 435,
    "execve": 221,
    "execveat": 281,
    "perf_event_open": 241,
    "ptrace": 117,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "setns": 268,
    "setsockopt": 208,
    "unshare": 97,
    "userfaultfd": 282,
}
OWN_X86_64 = {
    "bind": 49,
    "bpf": 321,
    "clone3": 435,
    "execve": 59,
    "execveat": 322,
    "perf_event_open": 298,
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "setns": 308,
    "setsockopt": 54,
    "unshare": 272,
    "userfaultfd": 323,
}
OWN = {"x86_64": OWN_X86_64, "aarch64": OWN_GENERIC, "riscv64": OWN_GENERIC}
"""The numbers of more calls, for a program of hutch's own, in the first ABI of each machine."""
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}


def render_filter(machine: str, forbidden: Iterable[str], families: Iterable[str]) -> bytes:
    """The program that refuses a guest the system calls of these names, and sockets of families other than these.
    ValueError for a machine whose numbers are not known."""
    program = _load(ABI)
    for abi, numbers in _abis(machine).items():
        calls = _checks(numbers, forbidden, families)
        if SOCKETCALL in numbers:
            hidden = b"".join(_when(kind, _return(REFUSE + EAFNOSUPPORT)) for kind in SOCKETCALL_KINDS)
            calls += _when(numbers[SOCKETCALL], _load(FIRST) + hidden + _return(ALLOW))
        program += _when(abi, calls + _return(ALLOW))
    return program + _return(REFUSE + ENOSYS)


def render_own_filter(machine: str, forbidden: Iterable[str], families: Iterable[str]) -> bytes:
    """The same for a program of hutch's own that reads what others send. It has one ABI, and sockets of TCP and UDP,
    whose own options (SOL_SOCKET) it does not change. ValueError as above."""
    abi, numbers = next(iter(_abis(machine).items()))
    numbers = {**numbers, **OWN[machine]}
    other = _load(THIRD) + _instruction(IF_AT_LEAST, UDP + 1, skip=1) + _return(REFUSE + EPROTONOSUPPORT)
    calls = _checks(numbers, forbidden, families, other)
    calls += _when(numbers["setsockopt"], _load(SECOND) + _when(SOL_SOCKET, _return(REFUSE + EPERM)) + _return(ALLOW))
    return _load(ABI) + _when(abi, calls + _return(ALLOW)) + _return(REFUSE + ENOSYS)


def _abis(machine: str) -> dict[int, dict[str, int]]:
    if machine not in MACHINES:
        raise ValueError(f"the system calls of {machine} are not known")
    return MACHINES[machine]


def _checks(numbers: dict[str, int], forbidden: Iterable[str], families: Iterable[str], first: bytes = b"") -> bytes:
    """Instructions for one ABI, which go on behind them where a call is none of these; `first` runs before the family
    of a socket is looked at."""
    calls = _load(NUMBER)
    if numbers["socket"] == X86_64["socket"]:
        calls += _instruction(IF_AT_LEAST, X32, skip=1) + _return(REFUSE + ENOSYS)
    for name in forbidden:
        calls += _when(numbers[name], _return(REFUSE + ENOSYS))
    chosen = b"".join(_when(FAMILIES[family], _return(ALLOW)) for family in families)
    for name in ("socket", "socketpair"):
        calls += _when(numbers[name], first + _load(FIRST) + chosen + _return(REFUSE + EAFNOSUPPORT))
    return calls


def _when(value: int, then: bytes) -> bytes:
    """Instructions that run `then` if the loaded word is `value`; otherwise they go on behind it."""
    return _instruction(IF_EQUAL, value, skip=len(then) // INSTRUCTION) + then


def _load(offset: int) -> bytes:
    return _instruction(LOAD, offset)


def _return(verdict: int) -> bytes:
    return _instruction(RETURN, verdict)


def _instruction(code: int, value: int, *, skip: int = 0) -> bytes:
    """The bytes of a struct sock_filter; a comparison that fails skips so many."""
    return struct.pack("=HBBI", code, 0, skip, value)
