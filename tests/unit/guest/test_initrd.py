"""What the initial RAM disk holds, read back from its bytes."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.guest.boot import WITHOUT_LIBBPF
from hutch.guest.initrd import (
    INIT,
    MODULES,
    PARTS_MODULES,
    SIGNED,
    UNITS,
    Module,
    Node,
    choose_modules,
    choose_nodes,
    module_name,
    render_initrd,
    render_modules,
    strip_signature,
)

MODULES_DEP = """\
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/fs/overlayfs/overlay.ko:
kernel/drivers/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko.xz
kernel/net/net_failover.ko.xz: kernel/net/failover.ko.xz
kernel/net/failover.ko.xz:
kernel/drivers/misc/pvpanic/pvpanic-pci.ko: kernel/drivers/misc/pvpanic/pvpanic.ko
kernel/drivers/misc/pvpanic/pvpanic.ko:
kernel/drivers/sound.ko:
"""
MODULES_DEVNAME = """\
# Device nodes to trigger on-demand module loading.
tun net/tun c10:200
loop loop-control c10:237
something odd b1:2
evil ../escape c1:1
"""
BUSYBOX = b"\x7fELF busybox"


@pytest.mark.parametrize(
    ("path", "name"),
    [("kernel/a/x-y.ko", "x_y"), ("kernel/a/x.ko.xz", "x"), ("updates/vmw_z.ko.zst", "vmw_z")],
)
def test_modules_are_known_by_the_kernels_names(path: str, name: str) -> None:
    assert module_name(path) == name


def test_a_module_comes_after_all_that_it_needs() -> None:
    names = [module.name for module in choose_modules(MODULES_DEP)]
    assert names == [
        "libcrc32c",
        "erofs",
        "overlay",
        "failover",
        "net_failover",
        "virtio_net",
        "pvpanic",
        "pvpanic_pci",
    ]


def test_what_a_module_needs_is_loaded_for_the_same_device() -> None:
    patterns = {module.name: module.pattern for module in choose_modules(MODULES_DEP)}
    assert patterns["failover"] == patterns["virtio_net"] == "virtio:d00000001v*"
    assert patterns["libcrc32c"] == "*"


def test_what_every_machine_loads_is_not_listed_again_for_a_device() -> None:
    deps = "a.ko: shared.ko\nb.ko: shared.ko\nshared.ko:\n"
    chosen = choose_modules(deps, [("a", "*"), ("b", "virtio:d00000001v*")])
    assert [module.name for module in chosen] == ["shared", "a", "b"]


@pytest.mark.parametrize("wanted", [MODULES, PARTS_MODULES])
def test_modules_for_every_machine_come_before_those_for_devices(wanted: tuple[tuple[str, str], ...]) -> None:
    patterns = [pattern for _, pattern in wanted]
    assert patterns == sorted(patterns, key=lambda pattern: pattern != "*")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("virtio:d00000001v00001AF4", "virtio_net"),
        ("virtio:d00000003v00001AF4", "virtio_console"),
        ("virtio:d0000001Av00001AF4", "virtiofs"),
        ("pci:v00001B36d00000011sv00001AF4sd00001100bc08sc80i00", "pvpanic_pci"),
    ],
)
def test_devices_find_their_drivers(alias: str, name: str) -> None:
    assert [wanted for wanted, pattern in MODULES if pattern != "*" and fnmatchcase(alias, pattern)] == [name]


def test_the_list_is_one_that_a_shell_reads_word_by_word() -> None:
    lines = render_modules(choose_modules(MODULES_DEP)).splitlines()
    assert lines[0] == "libcrc32c *"
    assert all(len(line.split(" ")) == 2 for line in lines)


def test_nodes_are_character_devices_below_dev() -> None:
    assert choose_nodes(MODULES_DEVNAME) == (Node("net/tun", 10, 200), Node("loop-control", 10, 237))


def make() -> bytes:
    modules = choose_modules(MODULES_DEP)
    contents = {module.path: f"code of {module.name}".encode() for module in modules}
    return render_initrd(INIT.read_bytes(), BUSYBOX, modules, contents, choose_nodes(MODULES_DEVNAME))


def read(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Mode, content and device numbers of each member, by name, as the kernel reads them."""
    members: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        size, length = fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + length - 1].decode()
        assert archive[offset + 110 + length - 1] == 0
        start = (offset + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return members
        assert name not in members
        members[name] = (fields[1], archive[start : start + size], (fields[9], fields[10]))
        offset = (start + size + 3) // 4 * 4


def test_the_kernel_finds_init_and_init_finds_its_things() -> None:
    members = read(make())
    assert members["init"] == (0o100755, INIT.read_bytes(), (0, 0))
    assert members["bin/busybox"] == (0o100755, BUSYBOX, (0, 0))
    assert members["lib/erofs.ko"][1] == b"code of erofs"
    assert members["nodes/net/tun"] == (0o020600, b"", (10, 200))
    for place in ("dev", "proc", "sys", "image", "layer", "new"):
        assert members[place][0] == 0o040755
        assert f"/{place}" in INIT.read_text()


def test_directories_come_before_what_is_in_them() -> None:
    seen: set[str] = set()
    for name in read(make()):
        parent = name.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(name)


def test_units_are_files_and_links() -> None:
    members = read(make())
    for name, text in UNITS.items():
        mode, content, _ = members[f"run/systemd/system/{name}"]
        assert content.decode() == text
        assert mode == (0o100644 if "\n" in text else 0o120777)


def test_a_library_that_process_1_is_not_to_find_is_none() -> None:
    mode, content, _ = read(make())[f"{WITHOUT_LIBBPF[1:]}/libbpf.so.1"]
    assert (mode, content) == (0o120777, b"/dev/null")


def test_equal_contents_make_equal_bytes() -> None:
    assert make() == make()
    assert len(make()) % 512 == 0


@given(code=st.binary(max_size=64), signature=st.binary(max_size=300))
def test_a_signature_is_cut_off_and_nothing_else(code: bytes, signature: bytes) -> None:
    signed = code + signature + bytes(8) + len(signature).to_bytes(4, "big") + SIGNED
    assert strip_signature(signed) == code


def test_a_module_without_a_signature_stays_as_it_is() -> None:
    assert strip_signature(b"\x7fELF code") == b"\x7fELF code"


def test_a_module_that_is_needed_twice_is_in_the_archive_once() -> None:
    modules = (Module("x", "x.ko", "virtio:d00000001v*"), Module("x", "x.ko", "virtio:d00000003v*"))
    members = read(render_initrd(b"", b"", modules, {"x.ko": b"x"}, ()))
    assert members["lib/x.ko"][1] == b"x"
    assert members["lib/modules"][1].decode().count("x ") == 2
