"""What a machine's kernel is told."""

from __future__ import annotations

from hutch.guest.boot import kernel_arguments, parts_arguments

COMMAND_LINE_SIZE = 2048  # of x86 kernels
NAME = "a" * 32


def test_a_guest_without_kvm_is_told_the_clock() -> None:
    arguments = kernel_arguments(NAME, "0" * 32, tsc_khz=2_600_000, has_disk=False)
    assert {"tsc_early_khz=2600000", "lpj=10400000", "tsc=reliable"} <= set(arguments)


def test_without_kvm_devices_are_set_up_by_one_processor() -> None:
    assert "maxcpus=1" in kernel_arguments(NAME, "0" * 32, tsc_khz=2_600_000, has_disk=False)


def test_a_guest_with_kvm_has_a_clock_of_its_own_and_all_of_its_kernel() -> None:
    arguments = kernel_arguments(NAME, "0" * 32, tsc_khz=None, has_disk=False)
    only_emulated = ("tsc", "lpj", "initcall_blacklist", "cryptomgr", "maxcpus", "LD_LIBRARY_PATH")
    assert not [word for word in arguments if word.startswith(only_emulated)]


def test_init_learns_of_the_disk() -> None:
    assert "hutch.disk" in kernel_arguments(NAME, "0" * 32, tsc_khz=None, has_disk=True)
    assert "hutch.disk" not in kernel_arguments(NAME, "0" * 32, tsc_khz=None, has_disk=False)


def test_systemd_learns_the_name() -> None:
    arguments = kernel_arguments(NAME, "0" * 32, tsc_khz=None, has_disk=False)
    assert {f"systemd.hostname={NAME}", f"systemd.machine_id={'0' * 32}"} <= {*arguments}


def test_it_is_one_line_that_the_kernel_takes_whole() -> None:
    arguments = kernel_arguments(NAME, "0" * 32, tsc_khz=2_600_000, has_disk=True)
    assert all(word.isprintable() and " " not in word for word in arguments)
    assert len(" ".join(arguments)) < COMMAND_LINE_SIZE // 2  # the machine adds words of its own
    keys = [word.partition("=")[0] for word in arguments]
    assert len(keys) == len(set(keys))


def test_a_disk_that_firmware_boots_is_nobodys_own() -> None:
    """Who the machine is comes from the disc beside it."""
    assert "hutch.parts" in parts_arguments()
    assert not [word for word in parts_arguments() if word.startswith(("systemd.hostname", "systemd.machine_id"))]
