"""The filter of system calls, run here as the kernel runs it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from errno import EAFNOSUPPORT, ENOSYS, EPERM, EPROTONOSUPPORT

import pytest

from hutch.backends.nspawn import SECCOMP
from hutch.egress.keeper import FAMILIES, FORBIDDEN
from hutch.seccomp import filters
from hutch.seccomp.filters import MACHINES, OWN, SOCKETCALL, render_filter, render_own_filter

ALLOWED, REFUSED = 0x7FFF0000, 0x00050000
NATIVE = [(machine, abi) for machine, abis in MACHINES.items() for abi in abis]
I386 = ("x86_64", 0x4000_0003)
VSOCK, INET, UNIX = 40, 2, 1


def verdict(machine: str, abi: int, number: int, first: int = 0) -> int:
    """What the kernel makes of a guest's system call: the number of an error, 0 when it is allowed."""
    return ran(render_filter(machine, SECCOMP.system_calls, SECCOMP.other_families_than), abi, number, first)


def ran(program: bytes, abi: int, number: int, *arguments: int) -> int:
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    data = struct.pack("=IIQ6Q", number, abi, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == filters.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == filters.RETURN:
            assert value & 0xFFFF0000 in (ALLOWED, REFUSED)
            return int(value & 0xFFFF)
        else:
            holds = accumulator == value if operation == filters.IF_EQUAL else accumulator >= value
            at += if_true if holds else if_false


def numbers(machine: str, abi: int) -> Iterator[tuple[str, int]]:
    yield from MACHINES[machine][abi].items()


@pytest.mark.parametrize(("machine", "abi"), NATIVE)
def test_what_is_forbidden_is_not_there(machine: str, abi: int) -> None:
    known = dict(numbers(machine, abi))
    assert {verdict(machine, abi, known[name]) for name in SECCOMP.system_calls} == {ENOSYS}


@pytest.mark.parametrize(("machine", "abi"), NATIVE)
def test_sockets_are_of_a_few_families(machine: str, abi: int) -> None:
    known = dict(numbers(machine, abi))
    for name in ("socket", "socketpair"):
        allowed = {family for family in range(64) if not verdict(machine, abi, known[name], family)}
        assert allowed == {UNIX, INET, 10, 16, 17}
        assert verdict(machine, abi, known[name], VSOCK) == EAFNOSUPPORT
        # The kernel reads an int: what stands above it does not make another family of it, nor the same of another.
        assert verdict(machine, abi, known[name], VSOCK | 1 << 32) == EAFNOSUPPORT
        assert verdict(machine, abi, known[name], INET | 1 << 32) == 0


@pytest.mark.parametrize(("machine", "abi"), NATIVE)
def test_everything_else_is_allowed(machine: str, abi: int) -> None:
    refused = {number for _, number in numbers(machine, abi)}
    assert {verdict(machine, abi, number) for number in range(600) if number not in refused} == {0}


def test_no_family_hides_behind_an_old_call() -> None:
    number = MACHINES["x86_64"][I386[1]][SOCKETCALL]
    assert [verdict(*I386, number, kind) for kind in (1, 8)] == [EAFNOSUPPORT] * 2
    assert verdict(*I386, number, 3) == 0  # connect


@pytest.mark.parametrize("number", [0x4000_0000, 0x4000_0000 + 425, 0x4000_0000 + 41])
def test_an_abi_that_nobody_uses_is_refused(number: int) -> None:
    assert verdict("x86_64", 0xC000_003E, number) == ENOSYS


def test_an_unknown_abi_is_refused() -> None:
    assert verdict("aarch64", 0xC000_003E, 1) == ENOSYS


def test_an_unknown_machine_is_told() -> None:
    with pytest.raises(ValueError, match="s390x"):
        render_filter("s390x", (), ())


# A program of hutch's own.


@pytest.mark.parametrize("machine", MACHINES)
def test_a_program_that_reads_what_others_send_has_little(machine: str) -> None:
    (native, common), *others = MACHINES[machine].items()
    known = {**common, **OWN[machine]}
    program = render_own_filter(machine, FORBIDDEN, FAMILIES)
    assert {ran(program, native, known[name]) for name in FORBIDDEN} == {ENOSYS}
    assert {ran(program, abi, number) for abi, _ in others for number in range(600)} <= {ENOSYS}
    by_protocol = [ran(program, native, known["socket"], INET, 1, protocol) for protocol in (0, 6, 17, 132, 256, 262)]
    assert by_protocol == [0, 0, 0, *[EPROTONOSUPPORT] * 3]
    assert ran(program, native, known["socket"], VSOCK, 1, 0) == EAFNOSUPPORT
    assert [ran(program, native, known["setsockopt"], 3, level, 2) for level in (0, 1, 6)] == [0, EPERM, 0]
    refused = {*known.values()}
    assert {ran(program, native, number) for number in range(600) if number not in refused} == {0}
