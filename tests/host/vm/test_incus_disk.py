"""The disk that an Incus server would boot: from UEFI, with the devices that Incus gives, and without Incus.

A virtual machine of Incus 6.0 is a q35 with OVMF. Its root is a SCSI disk, an ISO volume is a SCSI drive's disc, and a
custom volume is a virtiofs whose tag is "incus_" and the device's name.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hutch.backends.qemu import EMULATED
from hutch.errors import HutchError
from hutch.guest.boot import emulated_arguments
from hutch.guest.credentials import HOST_KEY, Identity, render_credentials
from hutch.host.doctor.tools import QEMU, VIRTIOFSD, find_program
from hutch.host.hardware.clock import observe_rate
from hutch.images.build import Workshop
from hutch.images.cache import locked, new_scratch
from hutch.images.disk import check_host, make_disk
from hutch.images.kernel import ensure_kernel
from hutch.images.machine import ensure_machine
from hutch.images.progress import Meter, no_progress
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

pytestmark = pytest.mark.slow  # no workspace has such a disk yet: `type = "vm"` is refused on a server

IMAGE = "debian:trixie"
FIRMWARE = Path("/usr/share/OVMF")
MACHINE_ID = "0123456789abcdef0123456789abcdef"
NAME, USER, UID = "far", "dev", 1234
ADDRESS, GATEWAY = "10.83.0.5", "10.83.0.1"
BOOT_SECONDS = 300.0


@dataclass
class Booted:
    """A machine that has been booted. `home` is the directory that it shares, `log` what its console says."""

    directory: Path
    home: Path
    port: int
    qemu: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def ssh(self, command: str, seconds: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the user's inside; the host key is the only one that is trusted."""
        known, key = self.directory / "known_hosts", self.directory / "user"
        options = [f"UserKnownHostsFile={known}", f"HostKeyAlias={NAME}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
        words = [word for option in (*options, "IdentitiesOnly=yes", "ConnectTimeout=20") for word in ("-o", option)]
        argv = ["ssh", "-F", "none", *words, "-i", str(key), "-p", str(self.port), f"{USER}@127.0.0.1", command]
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=check
        )

    def await_sshd(self) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while (answer := self.ssh("true", check=False)).returncode != 0:
            assert self.qemu.poll() is None, self.log
            assert time.monotonic() < deadline, f"{answer.stderr}\n{self.log}"
            time.sleep(1)


def render_archive(files: Mapping[str, str]) -> bytes:
    """The disc. Its sectors have 2048 bytes, of which the archive's blocks are a multiple."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o400
            archive.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def make_key(path: Path) -> tuple[str, str]:
    """A key pair: the private one, and the public one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True, timeout=20)
    return path.read_text(), path.with_suffix(".pub").read_text().strip()


def make_disk_twice(instance: Instance, target: Path) -> list[str]:
    """Make the disk of the image of `instance`, at `target`; the SHA-256 of each time."""
    layout, meter = Layout(instance.state, instance.run), Meter(no_progress)
    id = instance.hutch("image", "build", timeout=900).stdout.strip()
    kernel = ensure_kernel(IMAGE, layout, meter)
    ensure_machine(id, IMAGE, layout, kernel=kernel)
    digests = []
    for _ in range(2):
        with locked(layout, id), new_scratch(layout, id) as scratch:
            shop = Workshop(scratch, layout.build_cgroup(id), layout.builder_uid, meter)
            shutil.copy(make_disk(id, kernel, layout, shop), target)
        digests.append(digest_of(target))
    return digests


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def render_options(directory: Path, port: int) -> list[str]:
    """What QEMU is to make: the firmware, and the devices."""
    disk, disc, home = (directory / name for name in ("disk.qcow2", "disc", "home.sock"))
    slow = " ".join(emulated_arguments(observe_rate({}) or 0)).replace(",", ",,")
    return [
        *("-M", "q35,accel=tcg,memory-backend=memory", "-cpu", EMULATED, "-smp", "1", "-m", "1024M"),
        *("-object", "memory-backend-memfd,id=memory,size=1024M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{directory}/log"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={directory}/variables"),
        *("-device", "virtio-scsi-pci,id=qemu_scsi"),
        *("-drive", f"if=none,id=incus_root,format=qcow2,file={disk}"),
        *("-device", "scsi-hd,drive=incus_root,bus=qemu_scsi.0,channel=0,scsi-id=0,lun=1,bootindex=0"),
        *("-drive", f"if=none,id=incus_told,format=raw,readonly=on,media=cdrom,file={disc}"),
        *("-device", "scsi-cd,drive=incus_told,bus=qemu_scsi.0,channel=0,scsi-id=1,lun=1"),
        *("-chardev", f"socket,id=home,path={home}", "-device", "vhost-user-fs-pci,chardev=home,tag=incus_home"),
        *("-netdev", f"user,id=net,net={GATEWAY}/16,host={GATEWAY},hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:22"),
        *("-device", "virtio-net-pci,netdev=net,mac=02:00:00:00:00:05"),
        # This is not Incus's: a kernel that is emulated is told the clock, as those of this host are.
        *("-smbios", f"type=11,value=io.systemd.boot.kernel-cmdline-extra={slow}"),
    ]


@dataclass
class Made:
    """A directory with disk.qcow2, and the digests of it and of another one made before."""

    directory: Path
    digests: list[str]


@pytest.fixture(scope="module")
def made(world: World, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    try:
        check_host()
    except HutchError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("disk")
    with open_instance(world, images) as instance:
        instance.declare("vm", any="")
        return Made(directory, make_disk_twice(instance, directory / "disk.qcow2"))


@pytest.fixture(scope="module")
def booted(made: Made) -> Iterator[Booted]:
    if not FIRMWARE.is_dir():
        pytest.skip("ovmf is not installed")
    directory, home, port = made.directory, made.directory / "home", free_port()
    home.mkdir()
    os.chown(home, UID, UID)
    (home / "from-outside").write_text("kept\n")
    host_key, public_host_key = make_key(directory / "host")
    _, public = make_key(directory / "user")
    (directory / "known_hosts").write_text(f"{NAME} {public_host_key}\n")
    identity = Identity(NAME, USER, UID, "/bin/bash", ADDRESS, 16, GATEWAY, (public,), (("LAB", "1"),), "Name=eth0")
    told = {**render_credentials(identity), HOST_KEY: host_key, "system.machine_id": f"{MACHINE_ID}\n"}
    files = {"shares": f"incus_home rw /home/{USER}\n", **{f"credentials/{name}": text for name, text in told.items()}}
    (directory / "disc").write_bytes(render_archive(files))
    shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", directory / "variables")
    server = [str(find_program(VIRTIOFSD)), f"--socket-path={directory}/home.sock", f"--shared-dir={home}"]
    with ExitStack() as stack:
        stack.enter_context(started([*server, "--sandbox=chroot"], directory / "virtiofsd"))
        while not (directory / "home.sock").exists():
            time.sleep(0.05)
        command = [str(find_program(QEMU)), *render_options(directory, port)]
        machine = Booted(directory, home, port, stack.enter_context(started(command, directory / "qemu")))
        machine.await_sshd()
        yield machine


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, until the end of the context."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_same_image_and_kernel_give_the_same_disk(made: Made) -> None:
    assert made.digests[0] == made.digests[1]


def test_it_is_who_the_disc_says(booted: Booted) -> None:
    """The host key is what let ssh in."""
    script = 'hostname; cat /etc/machine-id; id -un; id -u; doas id -u; echo "$LAB"; ip -4 -o address show eth0'
    *told, address = booted.ssh(script).stdout.splitlines()
    assert told == [NAME, MACHINE_ID, USER, str(UID), "0", "1"]
    assert f" {ADDRESS}/16 " in address


def test_its_home_is_the_share(booted: Booted) -> None:
    booted.ssh("echo from inside >~/file")
    assert (booted.home / "file").read_text() == "from inside\n"
    assert (booted.home / "file").stat().st_uid == UID
    assert booted.ssh("cat ~/from-outside; findmnt -no FSTYPE ~").stdout.split() == ["kept", "virtiofs"]


def test_what_is_written_goes_to_the_disk(booted: Booted) -> None:
    """Not to memory, which is less than that."""
    booted.ssh("echo kept | doas tee /var/kept")
    assert int(booted.ssh("df --output=size --block-size=1M / | tail -n 1").stdout) > 8 << 10


def test_nothing_has_failed(booted: Booted) -> None:
    assert booted.ssh("systemctl --failed --no-legend").stdout == ""


def test_only_root_learns_what_it_is_told(booted: Booted) -> None:
    script = "head -c 1 /run/hutch/credentials/hutch.ssh-host-key /dev/sr0 /dev/sda"
    assert booted.ssh(script, check=False).stdout == ""
