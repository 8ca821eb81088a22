"""The hardware of virtual machines on this host: files, programs, and the accelerator."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from hutch.backends import backends_named
from hutch.backends.launch import Hardware
from hutch.errors import HutchError
from hutch.files import entries
from hutch.host.doctor.tools import VIRTIOFSD, find_program
from hutch.host.hardware.accelerator import Accelerator, observe_accelerator, observe_slowness
from hutch.host.hardware.vsock import has_vsock
from hutch.images.machine import Machine, observe_machine
from hutch.run import run
from hutch.spec.names import Layout


def machine_of(layout: Layout, image: str) -> Machine:
    """The machine of an image; it is in the cache beside the image."""
    machine = observe_machine(layout, image)
    if machine is None:
        raise HutchError(
            f"the image {image} has no kernel in the cache, so no machine can boot from it",
            resolution="`hutch up` gets it",
        )
    return machine


def any_machine(layout: Layout) -> Machine | None:
    """Some machine of an image, if there is any in the cache."""
    found = (observe_machine(layout, entry.name) for entry in entries(layout.images))
    return next((machine for machine in found if machine is not None), None)


@functools.cache
def accelerator_of(layout: Layout, image: str) -> Accelerator:
    """The accelerator of machines of an image. The caller holds the lock: the first time, a guest has to prove it. A
    command that refuses and then starts gets one answer: an answer that does not last costs a boot each time."""
    return observe_accelerator(layout, machine_of(layout, image))


def hardware_of(layout: Layout, image: str, accelerator: Accelerator, *, with_vsock: bool) -> Hardware:
    """The hardware for machines of an image. Nobody looks for vsock, and loads its module, unless it is asked for."""
    machine = machine_of(layout, image)
    return Hardware(
        kernel=str(machine.kernel),
        initrd=str(machine.initrd),
        root=str(machine.root),
        firmware=str(machine.firmware),
        accelerator=accelerator.name,
        tsc_khz=accelerator.tsc_khz,
        kvm_gid=accelerator.gid,
        virtiofsd=find_program(VIRTIOFSD) or "virtiofsd",
        has_vsock=with_vsock and has_vsock(),
        hypervisors=find_hypervisors(),
        slowness=observe_slowness(),
    )


@functools.cache
def find_hypervisors() -> dict[str, dict[str, str]]:
    """What each hypervisor of the registry finds of its own on this host, by their names: once for each command."""
    return {backend.TRAITS.name: backend.TRAITS.find(ThisHost()) for backend in backends_named("local", "vm")}


class ThisHost:
    """This host, as hypervisors ask it."""

    def program(self, name: str) -> str | None:
        return find_program(name)

    def said(self, *command: str) -> str:
        try:
            return run(command, check=False).stdout
        except (HutchError, OSError):
            return ""

    def library(self, package: str) -> str:
        return library(package)


def library(package: str) -> str:
    """The directory that a package is imported from which hutch depends on."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parents[package.count(".") + 1])
