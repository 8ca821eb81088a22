"""A machine's workspace in, a Launch out."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from hutch.backends import launch_of
from hutch.backends.launch import Hardware, Launch, Surroundings
from hutch.backends.qemu import CONSOLE, CONTROL
from hutch.guest.credentials import NOTIFY_SOCKET
from hutch.spec import names
from hutch.spec.model import Mount, WorkspaceSpec
from tests.unit.facts import LAYOUT, check_golden_case, everything, lines_of, surroundings, workspace

HARDWARE = Hardware(
    kernel="/var/lib/hutch/images/kernel/vmlinux",
    initrd="/var/lib/hutch/images/kernel/initrd",
    root="/var/lib/hutch/images/debian-trixie-0123456789ab/machine/root.erofs",
    firmware="qboot.rom",
    accelerator="tcg",
    tsc_khz=2_600_000,
    kvm_gid=None,
    hypervisors={
        "qemu": {"program": "/usr/bin/qemu-system-x86_64", "library": "/usr/lib/python3/dist-packages"},
    },
    virtiofsd="/usr/libexec/virtiofsd",
    has_vsock=False,
)
EVERYTHING = everything(type="vm", vcpus=4, disk=16 << 30)
LAUNCHES: dict[str, tuple[str, WorkspaceSpec, dict[str, Any]]] = {
    "minimal": ("web", workspace(type="vm"), {}),
    "disk": ("web", workspace(type="vm", disk=8 << 30), {}),
    "kept": ("web", workspace(type="vm", persist="all"), {}),
    "vsock": ("web", workspace(type="vm", vsock=True), {"has_vsock": True}),
    "kvm": ("web", workspace(type="vm"), {"accelerator": "kvm", "kvm_gid": 104, "tsc_khz": None}),
    "everything": ("a-name-with-all-of-its-32-letters", EVERYTHING, {}),
    "nix-store": ("web", workspace(type="vm", nix_store=True, mounts=(Mount("/srv/a", "/src"),)), {}),
}


def host(**hardware: Any) -> Surroundings:
    return surroundings(hardware=replace(HARDWARE, **hardware))


@pytest.mark.parametrize(("case", "given"), LAUNCHES.items(), ids=LAUNCHES)
def test_launch(case: str, given: tuple[str, WorkspaceSpec, dict[str, Any]]) -> None:
    name, declared, hardware = given
    minimal = lines_of(launch_of(*LAUNCHES["minimal"][:2], host()))
    check_golden_case(f"qemu/{case}", lines_of(launch_of(name, declared, host(**hardware))), minimal)


@pytest.mark.parametrize("case", ["minimal", "everything", "vsock"])
def test_where_machinectl_lists_what_runs(case: str) -> None:
    """It is told of the machine, and nothing else differs."""
    name, declared, hardware = LAUNCHES[case]
    usual, shown = (launch_of(name, declared, replace(host(**hardware), has_machined=has)) for has in (False, True))
    (told,) = shown.post_start
    *others, forgotten = shown.cleanup
    assert (usual.post_start, usual.cleanup) == ((), tuple(others))
    assert replace(shown, post_start=(), cleanup=usual.cleanup) == usual
    assert told.may_fail and forgotten.may_fail
    assert LAYOUT.machine(name) in shlex.split(told.argv[2]) and forgotten.argv[-1] == LAYOUT.machine(name)


def heard(found: Launch) -> list[str]:
    """What of the machine is listened to, in the words of runtime/hear."""
    words = list(found.commands["hear"])
    noted = words.index("/run/hutch/workspaces/web/noted/hearing")
    assert "from hutch.runtime.hear import main" in words[noted - 2]
    return words[noted + 1 :]


def test_a_guest_is_heard_at_its_port_and_over_vsock() -> None:
    place, uid = "/run/hutch/workspaces/web/vm", str(names.UID_FIRST)
    asked = (False, True)
    without, found = (launch_of("web", workspace(type="vm", vsock=ask), host(has_vsock=True)) for ask in asked)
    port = ["port", f"{place}/port.out"]
    assert heard(without) == port
    assert not any("vsock" in word.lower() for word in (*without.argv, *without.sandbox))
    assert launch_of("web", workspace(type="vm", vsock=True), host(has_vsock=False)) == without
    address = f"{place}/{NOTIFY_SOCKET}"
    assert heard(found) == [*port, "vsock", "/run/hutch/workspaces/web/cid", address, uid]
    told = f"name=opt/io.systemd.credentials/{NOTIFY_SOCKET},file=/vm/{NOTIFY_SOCKET}"
    assert told in found.argv and told not in without.argv
    assert any("vhost-vsock-pci" in word for word in found.argv)  # `exec` goes that way too
    assert {"DeviceAllow=/dev/vhost-vsock rw", "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_VSOCK"} <= {
        *found.sandbox
    }


def test_it_talks_through_pipes_of_its_own() -> None:
    """What it says is read by a shell, which cannot answer a socket; and nobody else may have the pipes."""
    found = machine()
    (made,) = [step for chain in found.prepare for step in chain if step.why == "make the pipes that it talks through"]
    pipes = ("log", "port.in", "port.out", "monitor.in", "monitor.out")
    assert made.argv[-6:] == (str(names.UID_FIRST), *(f"/run/hutch/workspaces/web/vm/{pipe}" for pipe in pipes))
    assert {"pipe,id=port,path=/vm/port", "pipe,id=monitor,path=/vm/monitor"} <= set(found.argv)
    assert [helper.argv[4:7] for helper in found.helpers] == [
        ("/run/hutch/workspaces/web/vm/share0", str(names.UID_FIRST), "3")
    ]


def test_its_console_and_its_control_are_roots_alone() -> None:
    argv = machine().argv
    listening = argv[: argv.index("--")]
    assert listening[4:] == (
        *("/run/hutch/workspaces/web/console", "0", str(CONSOLE)),
        *("/run/hutch/workspaces/web/control", "0", str(CONTROL)),
    )
    waiting = [word for word in argv if word.startswith("socket,") and ",fd=" in word]
    assert [word.split(",")[1:3] for word in waiting] == [
        ["id=console", f"fd={CONSOLE}"],
        ["id=control", f"fd={CONTROL}"],
    ]


def machine(**keys: Any) -> Launch:
    return launch_of("web", workspace(type="vm", **keys), host())


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_a_slow_host_is_given_its_time_to_start(accelerator: str) -> None:
    """And none to stop: whoever waits for `stop` waits for a guest that may just ignore it."""
    usual, slow = (launch_of("web", workspace(type="vm"), host(accelerator=accelerator, slowness=n)) for n in (1, 10))
    assert slow.start_seconds == 10 * usual.start_seconds
    assert replace(slow, start_seconds=usual.start_seconds) == usual


def test_it_runs_as_a_uid_of_its_own_without_anything_else() -> None:
    found = machine(mounts=(Mount("/srv/a", "/a"),))
    processes = [found.argv, *(helper.argv for helper in found.helpers)]
    assert len(processes) == 3
    for argv in processes:
        dropped = argv[argv.index("setpriv") :]
        assert f"--reuid={names.UID_FIRST}" in dropped
        assert {"--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--clear-groups"} <= set(dropped)
        assert {"--unshare-net", "--unshare-pid", "--unshare-ipc", "--die-with-parent"} <= set(argv)
        assert "--seccomp=kill" in argv or "on,obsolete=deny,elevateprivileges=deny,spawn=deny" in argv[
            argv.index("-sandbox") + 1
        ].removesuffix(",resourcecontrol=deny")


def test_no_other_file_of_the_hosts_is_in_its_jail() -> None:
    found = machine()
    shown = [found.argv[i + 1] for i, word in enumerate(found.argv) if word in ("--bind", "--ro-bind", "--dev-bind")]
    assert sorted(shown) == sorted(
        [
            "/usr",
            "/dev/null",
            "/dev/urandom",
            HARDWARE.kernel,
            HARDWARE.initrd,
            HARDWARE.root,
            "/run/hutch/workspaces/web/vm",
        ]
    )


def test_a_share_maps_the_owner_to_that_uid_and_nobody_else() -> None:
    found = machine(mounts=(Mount("/srv/a", "/a", readonly=True),))
    home, other = [step.argv for chain in found.prepare for step in chain if step.why.startswith("share ")]
    base = names.UID_FIRST
    assert home[home.index("-o") + 1] == f"nosuid,nodev,X-mount.idmap=u:1000:{base}:1 g:100:{base}:1"
    assert other[-1].startswith("ro,nosuid,nodev,")
    (squash,) = [word for word in found.helpers[0].argv if word.startswith("--translate-uid=squash-guest")]
    assert squash == f"--translate-uid=squash-guest:0:{base}:4294967295"


def test_the_list_of_shares() -> None:
    found = machine(mounts=(Mount("/srv/a", "/with space", readonly=True),))
    (listed,) = [file.content for file in found.files if file.path.endswith("/vm/shares")]
    assert listed == "share0 rw /home/dev\nshare1 ro /with space\n"


def test_the_store_is_read_only_on_the_hosts_side() -> None:
    found = machine(nix_store=True, mounts=(Mount("/srv/a", "/a"),))
    (listed,) = [file.content for file in found.files if file.path.endswith("/vm/shares")]
    assert listed == "share0 rw /home/dev\nshare1 rw /a\nnix overlay /nix/store\n"
    place = "/run/hutch/workspaces/web/shares/nix"
    (shown,) = [step.argv for chain in found.prepare for step in chain if step.why == "share /nix/store"]
    assert shown[-3:] == ("/nix/store", place, "ro,nosuid,nodev")
    *others, store = found.helpers
    assert store.socket == "/run/hutch/workspaces/web/vm/nix"
    at = store.argv.index(place)
    assert store.argv[at - 1 : at + 2] == ("--ro-bind", place, "/share")
    assert "--readonly" in store.argv
    assert not any("--readonly" in helper.argv for helper in others)
    assert "vhost-user-fs-pci,chardev=nix,tag=nix" in found.argv


def test_the_filter_is_seen_before_the_port_is_raised() -> None:
    reasons = [step.why for stage in machine().connect for step in stage]
    assert reasons.index("see the port's filter in place") < reasons.index("raise the port")


def test_only_the_machines_own_uid_reads_its_credentials() -> None:
    found = machine()
    assert {file.uid for file in found.files if "/vm/" in file.path} == {names.UID_FIRST}
    assert not any("PRIVATE" in file.content for file in found.files)
