"""A workspace in, a Launch of cloud-hypervisor out; and which workspaces it is for.

The options are checked by the facts of the published description, see tests/support/fake_cloud_hypervisor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import check_named, choose, launch_of
from hutch.backends.cloud_hypervisor import EVENTS, OLDEST, READY_PORT, TAP, check, launch, parse_version
from hutch.backends.cloud_hypervisor_calls import BUTTON
from hutch.backends.launch import Hardware, Launch
from hutch.guest.credentials import HOST_KEY, NOTIFY_SOCKET
from hutch.spec.model import WorkspaceSpec
from tests.support.fake_cloud_hypervisor import Refused, parse_config, parse_options, parse_request
from tests.unit.facts import HARDWARE, check_golden_case, everything, lines_of, surroundings, workspace

HOST = surroundings(hardware=HARDWARE)

EVERYTHING = everything(type="vm", vcpus=8, env=(("TOKEN", "secret, in a way"),), authorized_keys=None)
LAUNCHES = {
    "minimal": ("web", workspace(type="vm")),
    "disk": ("web", workspace(type="vm", disk=8 << 30)),
    "everything": ("a-name-with-all-of-its-32-letters", EVERYTHING),
}


@pytest.mark.parametrize(("case", "name", "declared"), [(case, *both) for case, both in LAUNCHES.items()], ids=LAUNCHES)
def test_launch(case: str, name: str, declared: WorkspaceSpec) -> None:
    minimal = lines_of(launch(*LAUNCHES["minimal"], HOST))
    check_golden_case(f"cloud_hypervisor/{case}", lines_of(launch(name, declared, HOST)), minimal)


def options_of(found: Launch) -> dict[str, list[str]]:
    program = found.argv.index("/cloud-hypervisor", found.argv.index("setpriv"))  # bwrap has the path too
    return parse_options(found.argv[program + 1 :])


@pytest.mark.parametrize(("name", "declared"), LAUNCHES.values(), ids=LAUNCHES)
def test_the_options_are_those_of_the_published_description(name: str, declared: WorkspaceSpec) -> None:
    found = launch(name, declared, HOST)
    options = options_of(found)
    disks = [parse_config("disk", text) for text in options["disk"]]
    assert all(disk["image_type"] == "raw" for disk in disks)  # what is in a disk never says what it is
    kept = [disk["path"] for disk in disks if not disk.get("readonly")]
    assert kept == (["/disk"] if declared.disk or declared.persist == "all" else [])
    assert parse_config("memory", options["memory"][0]) == {"size": declared.memory or 1 << 30, "shared": True}
    assert parse_config("cpus", options["cpus"][0]) == {"boot_vcpus": declared.vcpus or 2}
    assert parse_config("vsock", options["vsock"][0])["cid"] == declared.cid
    assert [parse_config("fs", text)["tag"] for text in options["fs"]] == [
        f"share{index}" for index in range(1 + len(declared.mounts))
    ]
    assert options["seccomp"] == ["true"]


def test_vsock_is_refused_by_its_key() -> None:
    """The guest's device ends at sockets of the machine's own, so it is not what the key promises."""
    assert [problem.key for problem in check("workspaces.web", workspace(type="vm", vsock=True))] == [
        "workspaces.web.vsock"
    ]


def test_the_store_is_one_more_share() -> None:
    found = launch("web", workspace(type="vm", nix_store=True), HOST)
    shares = [parse_config("fs", text) for text in options_of(found)["fs"]]
    assert [(share["tag"], share["socket"]) for share in shares] == [("share0", "/vm/share0"), ("nix", "/vm/nix")]
    assert [helper.socket.rpartition("/")[2] for helper in found.helpers] == ["share0", "nix"]
    (listed,) = [file.content for file in found.files if file.path.endswith("/archive/shares")]
    assert listed.splitlines()[-1] == "nix overlay /nix/store"


def test_the_checker_refuses_what_is_not_described() -> None:
    for wrong in (["--landloch"], ["--disk"], ["--disk", "path=/a,image_type=iso"], ["--fs", "tag=a"], ["x"]):
        with pytest.raises(Refused):
            parse_options(wrong)
    for wrong in (["--memory", "size=1Q"], ["--memory", "shared=yes"], ["--serial", "tty", "--serial", "off"]):
        with pytest.raises(Refused):
            parse_options(wrong)


def test_descriptors_are_those_that_it_is_started_with() -> None:
    found = launch("web", workspace(type="vm"), HOST)
    options = options_of(found)
    assert options["event-monitor"] == [f"fd={EVENTS}"]
    assert f'launch {EVENTS}>"$vm/events"\n' in found.dialect
    assert options["net"][0].startswith(f"fd=[{TAP}],")
    assert found.argv[found.argv.index("/usr/lib/hutch/host/hardware/tap.py") + 2] == str(TAP)
    assert EVENTS != TAP
    (made,) = [step for chain in found.prepare for step in chain if step.why == "make the pipes that it talks through"]
    assert made.argv[-2:] == ("/run/hutch/workspaces/web/vm/log", "/run/hutch/workspaces/web/vm/events")


def test_where_machinectl_lists_what_runs() -> None:
    """It is told of the machine, and nothing else differs."""
    usual, shown = (launch("web", workspace(type="vm"), replace(HOST, has_machined=has)) for has in (False, True))
    assert (len(shown.post_start), len(shown.cleanup)) == (1, len(usual.cleanup) + 1)
    assert replace(shown, post_start=(), cleanup=shown.cleanup[:-1]) == usual


def test_the_archive_is_the_last_disk() -> None:
    for declared, device in ((workspace(type="vm"), "/dev/vdb"), (workspace(type="vm", disk=1 << 30), "/dev/vdc")):
        options = options_of(launch("web", declared, HOST))
        assert f"hutch.archive={device}" in options["cmdline"][0].split()
        disks = [parse_config("disk", text) for text in options["disk"]]
        assert disks["abc".index(device[-1])]["path"] == "/vm/archive"
        assert disks[-1]["readonly"]


def test_a_command_line_holds_no_secret() -> None:
    found = launch("a-name-with-all-of-its-32-letters", EVERYTHING, HOST)
    commands = [found.argv, *(step.argv for chain in found.prepare for step in chain)]
    assert not any("secret" in word for argv in commands for word in argv)
    assert not any("PRIVATE" in file.content for file in found.files)
    place = "/run/hutch/workspaces/a-name-with-all-of-its-32-letters/archive/credentials"
    told = {file.path.removeprefix(f"{place}/"): file for file in found.files if file.path.startswith(place)}
    assert told.keys() == {
        *("system.hostname", "network.network.50-hutch", "sysusers.extra", "tmpfiles.extra", NOTIFY_SOCKET)
    }
    assert all(file.uid == 0 for file in told.values())
    (key,) = [step for chain in found.prepare for step in chain if step.why == "hand in the host key"]
    assert key.argv[-1] == f"{place}/{HOST_KEY}"


def test_the_guest_calls_the_port_that_is_listened_at() -> None:
    found = launch("web", workspace(type="vm"), HOST)
    (told,) = [file.content for file in found.files if file.path.endswith(f"/credentials/{NOTIFY_SOCKET}")]
    assert told == f"vsock-stream:2:{READY_PORT}\n"  # 2 is the host
    assert found.commands["hear"][-3:] == ("socket", "/run/hutch/workspaces/web/sockets", f"vm_{READY_PORT}")
    assert "from hutch.runtime.hear import main" in found.commands["hear"][4]


def test_it_is_asked_to_end_where_its_sockets_are() -> None:
    found = launch("web", workspace(type="vm"), HOST)
    assert found.commands["ask"][-2:] == ("/run/hutch/workspaces/web/sockets", "end")
    assert "from hutch.backends.cloud_hypervisor_calls import main" in found.commands["ask"][4]


def test_the_power_button_is_a_request_of_the_published_interface() -> None:
    assert parse_request(BUTTON) == ("PUT", "/vm.power-button")
    for wrong in (BUTTON.replace(b"PUT", b"GET"), BUTTON.replace(b"/api/v1", b""), BUTTON[:-2], BUTTON + b"{}"):
        with pytest.raises(Refused):
            parse_request(wrong)


def test_it_may_use_kvm_by_its_group() -> None:
    assert "--groups=104" in launch("web", workspace(type="vm"), HOST).argv
    open_to_all = surroundings(hardware=replace(HARDWARE, kvm_gid=None))
    assert "--clear-groups" in launch("web", workspace(type="vm"), open_to_all).argv


# Which machines are for it.


def wants(hypervisor: str, **keys: Any) -> WorkspaceSpec:
    return workspace(type="vm", hypervisor=hypervisor, **keys)


ONLY_QEMU = {"qemu": HARDWARE.hypervisors["qemu"], "cloud-hypervisor": {}}
CHOICES: dict[str, tuple[WorkspaceSpec, Hardware, str]] = {
    "installed, with KVM": (wants("auto"), HARDWARE, "cloud-hypervisor"),
    "not installed": (wants("auto"), replace(HARDWARE, hypervisors=ONLY_QEMU), "qemu"),
    "without KVM": (wants("auto"), replace(HARDWARE, accelerator="tcg", tsc_khz=2_000_000), "qemu"),
    "an image that cannot tell": (wants("auto", image="debian:bookworm"), HARDWARE, "qemu"),
    "QEMU by name": (wants("qemu"), HARDWARE, "qemu"),
    "by name": (wants("cloud-hypervisor"), HARDWARE, "cloud-hypervisor"),
    "by name, though it is not there": (
        wants("cloud-hypervisor"),
        replace(HARDWARE, hypervisors=ONLY_QEMU),
        "cloud-hypervisor",
    ),
}


@pytest.mark.parametrize(("declared", "hardware", "chosen"), CHOICES.values(), ids=CHOICES)
def test_choice(declared: WorkspaceSpec, hardware: Hardware, chosen: str) -> None:
    backend = choose(declared, hardware)
    assert backend is not None and backend.TRAITS.name == chosen


@pytest.mark.parametrize(("declared", "hardware", "chosen"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("has_machined", [False, True])
def test_what_is_chosen_is_launched(
    declared: WorkspaceSpec, hardware: Hardware, chosen: str, has_machined: bool
) -> None:
    """On systemd hosts as elsewhere."""
    if chosen != "cloud-hypervisor" or hardware.hypervisors.get("cloud-hypervisor"):
        host = surroundings(hardware=hardware, has_machined=has_machined)
        found = launch_of("web", declared, host)
        assert (found.backend, found.facts["hypervisor"]) == (chosen, chosen)


def test_what_is_named_and_cannot_run_is_refused() -> None:
    poor = replace(HARDWARE, hypervisors=ONLY_QEMU, accelerator="tcg")
    problems = list(check_named("web", wants("cloud-hypervisor"), poor))
    assert [problem.key for problem in problems] == ["workspaces.web.hypervisor"] * 2
    assert all(problem.hint for problem in problems)
    assert str(OLDEST) in problems[0].message
    assert "KVM" in problems[1].message
    assert not list(check_named("web", wants("auto"), poor))
    assert not list(check_named("web", wants("qemu"), poor))
    assert not list(check_named("web", wants("cloud-hypervisor"), HARDWARE))


@pytest.mark.parametrize(
    ("declared", "keys"),
    [
        (wants("cloud-hypervisor"), []),
        (wants("cloud-hypervisor", image="rootfs:/srv"), []),
        (wants("cloud-hypervisor", image="debian:bookworm"), ["hypervisor"]),
        (wants("cloud-hypervisor", owner=0, memory=64 << 20), ["owner", "memory"]),
    ],
)
def test_check(declared: WorkspaceSpec, keys: list[str]) -> None:
    problems = list(check("workspaces.web", declared))
    assert [problem.key for problem in problems] == [f"workspaces.web.{key}" for key in keys]
    assert all(problem.message and problem.hint for problem in problems)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cloud-hypervisor v53.0\nMigration Protocol Versions: 1\n", 53),
        ("cloud-hypervisor v52.0-45-gabcdef-dirty\n", 52),
        ("cloud-hypervisor 54.0.0", 54),
        ("cloud-hypervisor", None),
        ("", None),
        ("QEMU emulator version 10.0.0", None),
    ],
)
def test_version(text: str, version: int | None) -> None:
    assert parse_version(text) == version


@given(st.text(max_size=80))
def test_any_text_as_a_version(text: str) -> None:
    found = parse_version(text)
    assert found is None or 0 <= found < 1_000_000
