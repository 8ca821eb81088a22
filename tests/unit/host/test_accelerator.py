"""What the host can do for virtual machines, as far as no guest has to run: memory, access, output, words, clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import machine
from hutch.errors import HutchError
from hutch.host.doctor import tools
from hutch.host.hardware import accelerator, capacity, clock, vsock
from hutch.host.hardware.accelerator import (
    Accelerator,
    KvmAccess,
    Verdict,
    await_answer,
    describe_accelerator,
    last_line,
)
from hutch.spec.names import Layout
from tests.unit.facts import workspace

OPEN = KvmAccess(None, "")
HANGS = "a guest under KVM did not come up within 10 s"


class Disk:
    """A machine that nobody boots here."""

    kernel, initrd, firmware = "/kernel", "/initrd", None


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[KvmAccess]]:
    """Sets up a host; returns the list of the guests that are run on it, as whom."""
    qemu = tmp_path / "qemu"
    qemu.write_text("")

    def set_up(verdict: Verdict, access: KvmAccess = OPEN, kernel: str = "6.12") -> list[KvmAccess]:
        runs: list[KvmAccess] = []

        def run_guest(machine: Any, qemu: str, access: KvmAccess, uid: int) -> Verdict:
            assert uid > 0
            runs.append(access)
            return verdict

        machine = os.uname_result(("Linux", "h", kernel, "#1", "x86_64"))
        monkeypatch.setattr(os, "uname", lambda: machine)
        monkeypatch.setattr(accelerator, "find_program", lambda name: str(qemu))
        monkeypatch.setattr(accelerator, "observe_access", lambda device: access)
        monkeypatch.setattr(accelerator, "run_guest", run_guest)
        monkeypatch.setattr(clock, "told_rate", lambda: 2_600_000)
        return runs

    return set_up


# The answer, and its memory.


def test_kvm_counts_when_a_guest_has_run(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    runs = host(Verdict(""), KvmAccess(108, ""))
    found = accelerator.observe_accelerator(layout, Disk())
    assert (found.name, found.gid, found.tsc_khz) == ("kvm", 108, None)
    assert accelerator.observe_accelerator(layout, Disk()) == found
    assert len(runs) == 1
    assert describe_accelerator(found) == ""
    assert accelerator.recall_accelerator(layout) == found


def test_a_guest_that_hangs_is_waited_for_once(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    runs = host(Verdict(HANGS))
    assert accelerator.recall_accelerator(layout) is None  # whoever only looks boots nothing
    assert not layout.state.exists()
    for _ in range(2):
        assert accelerator.observe_accelerator(layout, Disk()) == Accelerator("tcg", 2_600_000, None, HANGS)
    assert len(runs) == 1
    assert accelerator.recall_accelerator(layout) == Accelerator("tcg", 2_600_000, None, HANGS)
    (line,) = describe_accelerator(accelerator.observe_accelerator(layout, Disk())).splitlines()
    assert "TCG" in line and HANGS in line


def test_each_kernel_is_asked_once(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    for kernel, verdict in (("6.12", Verdict(HANGS)), ("6.13", Verdict(""))):
        runs = host(verdict, kernel=kernel)
        accelerator.observe_accelerator(layout, Disk())
        assert len(runs) == 1
    runs = host(Verdict("must not run"), kernel="6.12")
    assert accelerator.observe_accelerator(layout, Disk()).why == HANGS
    runs = host(Verdict("must not run"), kernel="6.13")
    assert accelerator.observe_accelerator(layout, Disk()).name == "kvm"
    assert runs == []


def test_another_qemu_is_asked_anew(layout: Layout, host: Callable[..., list[KvmAccess]], tmp_path: Path) -> None:
    host(Verdict(HANGS))
    accelerator.observe_accelerator(layout, Disk())
    (tmp_path / "qemu").write_text("another")
    runs = host(Verdict(""))
    assert accelerator.observe_accelerator(layout, Disk()).name == "kvm"
    assert len(runs) == 1


def test_the_memory_does_not_grow(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    kernels = [f"6.{number}" for number in range(accelerator.KEPT_ANSWERS + 3, 0, -1)]  # the last may sort first
    for kernel in kernels:
        host(Verdict(HANGS), kernel=kernel)
        accelerator.observe_accelerator(layout, Disk())
    answers = accelerator.read_memory(layout).answers
    assert [key.partition(",")[0] for key in answers] == kernels[3:]


def test_what_may_be_better_next_time_is_tried_again(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    runs = host(Verdict("no memory", is_lasting=False))
    for _ in range(2):
        assert accelerator.observe_accelerator(layout, Disk()).why == "no memory"
    assert len(runs) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"schema": 1, "crc32": 1, "body":\n{}\n}\n'])
def test_a_damaged_memory_is_none(content: bytes, layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    host(Verdict(HANGS))
    accelerator.observe_accelerator(layout, Disk())
    whole = accelerator.memory_path(layout).read_bytes()
    for damaged in (content, whole[:-20], whole.replace(b"10 s", b"99 s")):
        accelerator.memory_path(layout).write_bytes(damaged)
        runs = host(Verdict(HANGS))
        assert accelerator.observe_accelerator(layout, Disk()).why == HANGS
        assert len(runs) == 1
        assert accelerator.memory_path(layout).read_bytes() == whole


def test_without_a_device_nothing_runs(layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    runs = host(Verdict(""), KvmAccess(None, "no /dev/kvm", is_there=False))
    found = accelerator.observe_accelerator(layout, Disk())
    assert (found.name, found.why, found.tsc_khz) == ("tcg", "no /dev/kvm", 2_600_000)
    assert runs == []


@pytest.mark.parametrize(("shown", "why"), [("", "root's alone"), (HANGS, HANGS)])
def test_a_device_of_roots_alone(shown: str, why: str, layout: Layout, host: Callable[..., list[KvmAccess]]) -> None:
    host(Verdict(shown), KvmAccess(None, "/dev/kvm is root's alone"))
    found = accelerator.observe_accelerator(layout, Disk())
    assert found.name == "tcg" and why in found.why


def test_another_architecture(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.12", "#1", "aarch64")))
    found = accelerator.observe_accelerator(layout, Disk())
    assert (found.name, found.tsc_khz) == ("tcg", None)
    assert found.why == "KVM is supported on x86_64 only, and this host is aarch64"


# Who may use the device.


@pytest.mark.parametrize(
    ("mode", "group", "gid", "problem"),
    [
        (0o666, 108, None, False),
        (0o660, 108, 108, False),
        (0o660, 0, None, True),  # nobody joins root's group for it
        (0o640, 108, None, True),
        (0o600, 108, None, True),
    ],
)
def test_access(mode: int, group: int, gid: int | None, problem: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.stat_result((0o020000 | mode, 1, 1, 1, 0, group, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda path: found)
    access = accelerator.observe_access("/dev/kvm")
    assert (access.gid, bool(access.problem), access.is_there) == (gid, problem, True)
    if problem:
        assert f"mode {mode:o}" in access.problem and "chmod 660 /dev/kvm" in access.problem


def test_no_device(tmp_path: Path) -> None:
    assert accelerator.observe_access(str(tmp_path / "kvm")) == KvmAccess(None, f"no {tmp_path}/kvm", is_there=False)
    (tmp_path / "kvm").write_text("")
    assert not accelerator.observe_access(str(tmp_path / "kvm")).is_there


def test_as_whom_it_runs() -> None:
    def words(access: KvmAccess) -> set[str]:
        return set(accelerator.render_identity(access, 7))

    for access in (KvmAccess(108, ""), KvmAccess(None, ""), KvmAccess(None, "root's")):
        assert {"--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--clear-groups"} <= words(access)
    assert {"--reuid=7", "--regid=108"} <= words(KvmAccess(108, ""))
    assert {"--reuid=7", "--regid=7"} <= words(KvmAccess(None, ""))


# What is heard of a guest.


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"SeaBIOS\r\nhutch-probe: ok\r\n", ""),
        (
            b"KVM internal error. Suberror: 1\nemulation failure\n",
            "a guest under KVM was stopped by a KVM internal error",
        ),
    ],
)
def test_an_answer_is_enough(said: bytes, problem: str, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], said)
    assert await_answer(pipe[0], 5) == Verdict(problem)


def test_an_answer_in_pieces(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = iter([b"x" * 5000 + b"hutch-pro", b"be: o", b"k"])
    monkeypatch.setattr(os, "read", lambda descriptor, size: next(pieces))
    os.write(pipe[1], b"something to wait for")
    assert await_answer(pipe[0], 5) == Verdict("")


def test_silence(pipe: tuple[int, int]) -> None:
    assert await_answer(pipe[0], 0.05) == Verdict("a guest under KVM did not come up within 0.05 s")


def test_a_flood_is_not_kept(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "read", lambda descriptor, size: b"x" * size)
    os.write(pipe[1], b"something to wait for")
    assert await_answer(pipe[0], 5).problem == "a guest under KVM talked nonsense instead of coming up"


def test_an_early_end(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"\x1b[2Jqemu: cannot set up guest memory\n")
    os.close(pipe[1])
    verdict = await_answer(pipe[0], 5)
    assert verdict.problem.endswith("came up: \N{REPLACEMENT CHARACTER}[2Jqemu: cannot set up guest memory")
    assert not verdict.is_lasting


@given(st.binary())
def test_the_last_line_is_fit_for_a_terminal(output: bytes) -> None:
    line = last_line(output)
    assert line.isprintable() and 0 < len(line) <= 200


# The clock.


@given(
    khz=st.integers(500_000, 6_000_000),
    start=st.integers(0, 2**50),
    noise=st.lists(st.integers(-100, 100), min_size=8, max_size=8),
    spoilt=st.sets(st.integers(0, 7), max_size=1),
)
def test_a_bad_point_does_not_move_the_rate(khz: int, start: int, noise: list[int], spoilt: set[int]) -> None:
    points = []
    for index in range(8):
        at = start + index * 25_000_000
        late = 3_000_000 if index in spoilt else noise[index]  # nanoseconds between the two clocks
        points.append((float(at), int((at - start + late) * khz / 1e6)))
    found = clock.estimate(points)
    assert found is not None
    # What is left of noise of 100 ns over 25 ms, and for a start so late that a float counts in quarters of a µs.
    assert abs(found - khz) <= khz * 3e-5 + 1


def test_no_rate_without_time() -> None:
    assert clock.estimate([]) is None
    assert clock.estimate([(1.0, 5), (1.0, 7)]) is None


def test_the_rate_is_measured_once_per_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "boot").write_text("one\n")
    monkeypatch.setattr(clock, "BOOT", str(tmp_path / "boot"))
    monkeypatch.setattr(clock, "told_rate", lambda: None)
    rates = iter([2_000_000, 3_000_000, 4_000_000])
    monkeypatch.setattr(clock, "measure_rate", lambda: next(rates))
    memory: dict[str, Any] = {}
    assert [clock.observe_rate(memory) for _ in range(2)] == [2_000_000, 2_000_000]
    (tmp_path / "boot").write_text("two\n")
    assert clock.observe_rate(memory) == 3_000_000
    for damaged in ({"boot": "two", "khz": "fast"}, {"boot": "two", "khz": 0}):
        rates = iter([5_000_000])
        assert clock.observe_rate(damaged) == 5_000_000


@pytest.mark.parametrize(("text", "rate"), [("2600000\n", 2_600_000), ("", None), ("x", None), (None, None)])
def test_what_the_kernel_says(text: str | None, rate: int | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "khz").write_text(text)
    assert clock.told_rate(str(tmp_path / "khz")) == rate


# vsock


def test_vsock_is_there_once_its_module_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vsock, "DEVICE", str(tmp_path / "vsock"))
    monkeypatch.setattr(vsock, "load_module", lambda: True)
    assert not vsock.has_vsock()
    (tmp_path / "vsock").write_text("")
    assert vsock.has_vsock()


# The size of a machine.

GIB = 1 << 30


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"type": "vm"}, []),
        ({"type": "vm", "memory": 4 * GIB, "vcpus": 8}, []),
        ({"type": "vm", "memory": 4 * GIB + 1}, ["memory"]),
        ({"type": "vm", "vcpus": 9}, ["vcpus"]),
        ({"type": "vm", "memory": 5 * GIB, "vcpus": 255}, ["memory", "vcpus"]),
        ({"type": "vm", "vcpus": 256}, []),  # the backend says so already
        ({"type": "container", "memory": 400 * GIB, "vcpus": 1024}, []),  # limits, which may be any
        ({"type": "vm", "engine": "incus", "memory": 400 * GIB}, []),  # another host's
    ],
)
def test_a_machine_fits_into_the_host(keys: dict[str, Any], found: list[str]) -> None:
    problems = capacity.check_host({"web": workspace(**keys)}, 4 * GIB, 2)
    assert [problem.key for problem in problems] == [f"workspaces.web.{key}" for key in found]
    assert all(problem.message and problem.hint and problem.value for problem in problems)


def test_the_hint_is_right() -> None:
    (problem,) = capacity.check_host({"web": workspace(type="vm", vcpus=9)}, GIB, 2)
    assert problem.hint.startswith("1 to 8;")
    assert capacity.check_host({"web": workspace(type="vm", vcpus=255)}, GIB, 64) == []


@pytest.mark.parametrize(
    ("size", "text"), [(4 * GIB, "4GiB"), (1536 << 20, "1536MiB"), (GIB + 1, f"{GIB + 1} bytes"), (0, "0 bytes")]
)
def test_a_size_as_written(size: int, text: str) -> None:
    assert capacity.show_size(size) == text
    assert capacity.show_size(25_276_063_744, rounded=True) == "23.5GiB"


def test_this_host() -> None:
    found = capacity.observe_capacity()
    assert found.memory > 1 << 28 and found.cpus >= 1


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, []),
        ({"memory": 256 << 20, "vcpus": 255}, []),
        ({"memory": 255 << 20}, ["memory"]),
        ({"vcpus": 256}, ["vcpus"]),
        ({"owner": 0, "memory": 64 << 20, "vcpus": 1024}, ["owner", "memory", "vcpus"]),
    ],
)
def test_what_no_machine_can_be(keys: dict[str, Any], found: list[str]) -> None:
    problems = list(machine.check("defaults", workspace(type="vm", **keys)))
    assert [problem.key for problem in problems] == [f"defaults.{key}" for key in found]
    assert all(problem.message and problem.hint for problem in problems)


# Programs.


def test_missing_programs_are_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("apt-get", "setpriv", "mkfs.ext4"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bwrap").write_text("")  # not a program
    monkeypatch.setattr(tools, "SEARCH_PATH", f"/nowhere:{tmp_path}")
    with pytest.raises(HutchError, match="vm: no") as caught:
        tools.check_tools((tools.QEMU, "bwrap", "setpriv", "mkfs.erofs", "mkfs.ext4"), "vm: no")
    assert caught.value.resolution == "`apt-get install qemu-system-x86 bubblewrap erofs-utils`"
    assert len(caught.value.details.splitlines()) == 3
    tools.check_tools(("setpriv", "mkfs.ext4"), "vm: no")


def test_every_tool_of_a_machine_is_in_some_package() -> None:
    from hutch.host.doctor.packages import REQUIREMENTS

    proofs = {proof for item in REQUIREMENTS for proof in item.proof}
    assert set(tools.MACHINE_TOOLS) <= proofs


def test_find_by_glob(tmp_path: Path) -> None:
    (tmp_path / "libexec").mkdir()
    (tmp_path / "libexec" / "virtiofsd").write_text("")
    assert tools.find_program(f"{tmp_path}/lib*/virtiofsd") == f"{tmp_path}/libexec/virtiofsd"
    assert tools.find_program(f"{tmp_path}/sbin*/virtiofsd") is None


@pytest.mark.parametrize(
    ("seconds", "slowness"),
    [(0.0, 1), (0.0002, 1), (0.0007, 1), (0.0014, 1), (0.0016, 10), (0.008, 10), (0.1, 10)],
    ids=["no time", "fast", "usual", "with neighbours", "slow", "emulated", "at a crawl"],
)
def test_how_slow_a_host_is_gets_measured(seconds: float, slowness: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([seconds, seconds + 1, seconds * 2])  # whoever came between does not count
    monkeypatch.setattr(accelerator, "_spend", lambda: next(spent))
    monkeypatch.setattr(accelerator, "observe_processor", lambda: "QEMU Virtual CPU version 2.5+")
    assert accelerator.observe_slowness.__wrapped__() == slowness


def test_it_is_measured_in_no_time() -> None:
    assert 0 < accelerator._spend() < 0.05
