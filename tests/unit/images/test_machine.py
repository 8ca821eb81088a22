"""What machines boot from: names, places, and the formats that kernels come in."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images import machine
from hutch.images.cache import collect_leftovers
from hutch.images.kernel import (
    LIST,
    PACKAGES,
    extract_vmlinux,
    fetch_command,
    find_payload,
    kernel_id,
    observe_kernel,
    remove_unused_kernels,
    replace_directory,
    take_modules,
)
from hutch.images.recipe import DISTRIBUTIONS, is_id, make_recipe
from hutch.images.record import observe_images, render_image
from hutch.spec.names import Layout

VMLINUX = b"\x7fELF" + bytes(range(256)) * 8
RECIPE = make_recipe("debian:trixie")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    (layout.images / RECIPE.id).mkdir(parents=True)
    (layout.images / RECIPE.id / "image.json").write_bytes(render_image(RECIPE, "2025-01-01T00:00:00+00:00", 4096))
    return layout


def bzimage(payload: bytes, sectors: int = 4) -> bytes:
    """A kernel image with nothing in it but what is read of it."""
    image = bytearray((sectors + 1) * 512 + 100)
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(payload))
    return bytes(image) + payload + b"what follows"


def test_every_distribution_has_a_kernel_of_its_own() -> None:
    assert set(PACKAGES) == set(DISTRIBUTIONS)
    ids = {kernel_id(image) for image in PACKAGES}
    assert len(ids) == len(PACKAGES)
    assert all(is_id(id) for id in ids)


def test_foreign_trees_boot_a_kernel_of_debians() -> None:
    assert kernel_id("rootfs:/srv/tree") == kernel_id("debian:trixie")


def test_a_kernel_is_fetched_with_the_distributions_sources() -> None:
    command = fetch_command("ubuntu:noble")
    assert command[-5:-3] == ["noble", "/dev/null"]
    assert all(line.startswith("deb http://archive.ubuntu.com/ubuntu noble") for line in command[-3:])
    (hook,) = [word for word in command if word.startswith("--customize-hook=")]
    assert hook.endswith("/kernel.sh /tmp/packages linux-image-virtual busybox-static")


def with_size(data: bytes, packed: bytes) -> bytes:
    return packed + len(data).to_bytes(4, "little")


def pack_lz4(data: bytes) -> bytes:
    """Two blocks in the legacy format, of literals only."""
    packed = b"\x02\x21\x4c\x18"
    for part in (data[:1000], data[1000:]):
        more, last = divmod(len(part) - 15, 255)
        block = b"\xf0" + b"\xff" * more + bytes([last]) + part
        packed += len(block).to_bytes(4, "little") + block
    return with_size(data, packed)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: with_size(data, lzma.compress(data)), pack_lz4])
@pytest.mark.parametrize("sectors", [0, 4, 27])
def test_the_kernel_is_taken_out_of_its_image(tmp_path: Path, pack: object, sectors: int) -> None:
    assert callable(pack)
    image = bytearray(bzimage(pack(VMLINUX), sectors or 4))
    image[0x1F1] = sectors  # 0 stands for 4
    (tmp_path / "vmlinuz").write_bytes(image)
    extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == VMLINUX
    assert (tmp_path / "vmlinux").stat().st_mode & 0o777 == 0o644


def test_an_unknown_compression_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(b"BZh9 and more"))
    with pytest.raises(HutchError, match="compressed in an unknown way"):
        extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:4] + bytes(4) + packed[4:]])
def test_a_damaged_kernel_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage(damage(pack_lz4(VMLINUX))))
    with pytest.raises(HutchError, match="is damaged"):
        extract_vmlinux(tmp_path / "vmlinuz", tmp_path / "vmlinux")


def test_of_the_extra_modules_those_that_machines_need_are_taken(tmp_path: Path) -> None:
    modules = "lib/modules/6.8.0/kernel"
    for path in (f"extra/{modules}/drivers/qemu_fw_cfg.ko.zst", f"extra/{modules}/sound/snd.ko.zst"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    take_modules(tmp_path / "extra", tmp_path / "main", ["qemu_fw_cfg", "erofs"])
    assert [path.name for path in (tmp_path / "main").rglob("*.ko*")] == ["qemu_fw_cfg.ko.zst"]


@pytest.mark.parametrize("image", [b"", b"MZ" + bytes(4096), bytes(0x202) + b"HdrS"])
def test_what_is_no_kernel_is_an_error(image: bytes) -> None:
    with pytest.raises(HutchError, match="not in the format"):
        find_payload(image)


def test_kernels_are_no_images_and_no_leftovers(layout: Layout) -> None:
    kernel = layout.images / "kernels" / kernel_id("debian:trixie")
    kernel.mkdir(parents=True)
    assert [image.id for image in observe_images(layout)] == [RECIPE.id]
    assert collect_leftovers(layout) == ()
    assert observe_kernel(layout, "debian:trixie") is None  # its list is absent
    (kernel / LIST).write_text('{"packages": ["linux_1_amd64.deb"], "made": "2026-11-27T12:00:00+00:00"}')
    found = observe_kernel(layout, "debian:trixie")
    assert found is not None and found.vmlinux == kernel / "vmlinux"
    assert (found.packages, found.made) == (("linux_1_amd64.deb",), "2026-11-27T12:00:00+00:00")
    assert observe_kernel(layout, "debian:bookworm") is None
    for damaged in ("{", "[]", "{}", "null"):
        (kernel / LIST).write_text(damaged)
        assert observe_kernel(layout, "debian:trixie") is None


def test_what_takes_a_place_outlives_its_name(tmp_path: Path) -> None:
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with (tmp_path / "target/file").open() as file:
        replace_directory(tmp_path / "new", tmp_path / "target")
        assert file.read() == "target"
    assert (tmp_path / "target/file").read_text() == "new"
    assert (tmp_path / "new/file").read_text() == "target"  # its scratch directory is removed with it


def test_a_kernel_that_a_machine_boots_is_kept(layout: Layout) -> None:
    kernel = layout.images / "kernels" / kernel_id("debian:trixie")
    kernel.mkdir(parents=True)
    (kernel / "vmlinux").write_bytes(VMLINUX)
    (layout.images / RECIPE.id / "vmlinux").hardlink_to(kernel / "vmlinux")
    assert remove_unused_kernels(layout) == ()
    assert (kernel / "vmlinux").exists()


def test_a_machine_is_beside_its_image(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the host has the firmware to boot it, which is not in the cache."""
    monkeypatch.setattr(machine, "FIRMWARES", (str(layout.state / "*.rom"),))
    assert machine.observe_machine(layout, RECIPE.id) is None
    directory = machine.machine_directory(layout, RECIPE.id)
    directory.mkdir()
    files = [directory / name for name in ("vmlinux", "initrd", "root.erofs")]
    for file in files:
        assert machine.observe_machine(layout, RECIPE.id) is None  # not whole
        file.touch()
    found = machine.observe_machine(layout, RECIPE.id)
    assert found == machine.Machine(files[0], files[1], files[2])
    with pytest.raises(HutchError, match=r"qboot\.rom"):
        found.firmware  # noqa: B018
    (layout.state / "qboot.rom").touch()
    assert found.firmware == layout.state / "qboot.rom"
    assert machine.observe_machine(layout, "debian-trixie-000000000000") is None


def test_a_host_without_the_firmware_is_told_where_it_is(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FIRMWARES", (str(layout.state / "*.rom"),))
    with pytest.raises(HutchError, match=r"qboot\.rom"):
        machine.find_firmware()


def test_another_init_makes_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.version()
    machine.version.cache_clear()
    monkeypatch.setattr(machine, "MACHINE_VERSION", machine.MACHINE_VERSION + 1)
    try:
        assert machine.version() != before
    finally:
        machine.version.cache_clear()
