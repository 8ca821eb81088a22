"""A machine's workspace in, a Launch out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from hutch.backends import launch
from hutch.backends.launch import Hardware, Launch, Surroundings
from hutch.spec import names
from hutch.spec.model import Mount, Workspace
from tests.unit.facts import check_golden, everything, surroundings, workspace

HARDWARE = Hardware(
    kernel="/var/lib/hutch/images/kernel/vmlinux",
    initrd="/var/lib/hutch/images/kernel/initrd",
    root="/var/lib/hutch/images/debian-trixie-0123456789ab/machine/root.erofs",
    firmware="qboot.rom",
    accelerator="tcg",
    tsc_khz=2_600_000,
    kvm_gid=None,
    qemu="/usr/bin/qemu-system-x86_64",
    virtiofsd="/usr/libexec/virtiofsd",
    library="/usr/lib/python3/dist-packages",
    has_vsock=False,
)
EVERYTHING = everything(type="vm", vcpus=4, disk=16 << 30)
LAUNCHES: dict[str, tuple[str, Workspace, dict[str, Any]]] = {
    "minimal": ("web", workspace(type="vm"), {}),
    "disk": ("web", workspace(type="vm", disk=8 << 30), {}),
    "kept": ("web", workspace(type="vm", persist="all"), {}),
    "vsock": ("web", workspace(type="vm"), {"has_vsock": True}),
    "kvm": ("web", workspace(type="vm"), {"accelerator": "kvm", "kvm_gid": 104, "tsc_khz": None}),
    "everything": ("a-name-with-all-of-its-32-letters", EVERYTHING, {}),
    "nix-store": ("web", workspace(type="vm", nix_store=True, mounts=(Mount("/srv/a", "/src"),)), {}),
}


def host(**hardware: Any) -> Surroundings:
    return surroundings(hardware=replace(HARDWARE, **hardware))


@pytest.mark.parametrize(("case", "given"), LAUNCHES.items(), ids=LAUNCHES)
def test_launch(case: str, given: tuple[str, Workspace, dict[str, Any]]) -> None:
    name, declared, hardware = given
    found = asdict(launch(name, declared, host(**hardware)))
    check_golden(f"qemu/{case}.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize("case", ["minimal", "everything", "vsock"])
def test_as_a_service(case: str) -> None:
    name, declared, hardware = LAUNCHES[case]
    found = asdict(launch(name, declared, replace(host(**hardware), by_systemd=True)))
    check_golden(f"qemu/{case}-by-systemd.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def test_a_service_has_no_link_that_only_a_process_of_ours_could_hear() -> None:
    found = launch("web", workspace(type="vm"), replace(host(has_vsock=True), by_systemd=True))
    assert found.vsock is None
    assert not any("hutch.notify-socket" in word for word in found.argv)
    assert any("vhost-vsock-pci" in word for word in found.argv)  # ssh goes that way all the same
    assert not any(word.startswith(("stdio", "socket,id=port")) for word in found.argv)
    assert [helper.argv[4:7] for helper in found.helpers] == [
        ("/run/hutch/workspaces/web/vm/share0", str(names.UID_FIRST), "3")
    ]


def machine(**keys: Any) -> Launch:
    return launch("web", workspace(type="vm", **keys), host())


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_a_slow_host_is_given_its_time_to_start(accelerator: str) -> None:
    """And none to stop: whoever waits for `stop` waits for a guest that may just ignore it."""
    usual, slow = (launch("web", workspace(type="vm"), host(accelerator=accelerator, slowness=n)) for n in (1, 10))
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
