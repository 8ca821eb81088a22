"""A workspace in, a Launch out."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import asdict, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hutch.backends import check, launch_of
from hutch.backends.identity import guest_uid, subordinates
from hutch.backends.inspections import inspection, layer_inspection, root_inspection
from hutch.backends.launch import Launch
from hutch.backends.nspawn import check as check_container
from hutch.backends.nspawn import render_owner_map
from hutch.backends.share import private_layer
from hutch.spec import names
from hutch.spec.model import Idle, Mount, WorkspaceSpec
from tests.unit.facts import LAYOUT, NETWORK, check_golden_case, everything, lines_of, surroundings, workspace

BASE = names.UID_FIRST
LAST = names.UID_FIRST + (names.UID_RANGES - 1) * names.UID_COUNT

EVERYTHING = everything(vcpus=2, env=(("EDITOR", "vim"),), authorized_keys=None)
LAUNCHES = {
    "minimal": ("web", workspace()),
    "disk": ("web", workspace(disk=8 << 30)),
    "everything": ("a-name-with-all-of-its-32-letters", EVERYTHING),
    "nix-store": ("web", workspace(nix_store=True)),
    "nesting": ("web", workspace(nesting=True)),
}


@pytest.mark.parametrize(("case", "name", "declared"), [(case, *both) for case, both in LAUNCHES.items()], ids=LAUNCHES)
def test_launch(case: str, name: str, declared: WorkspaceSpec) -> None:
    minimal = lines_of(launch_of(*LAUNCHES["minimal"], surroundings()))
    check_golden_case(f"nspawn/{case}", lines_of(launch_of(name, declared, surroundings())), minimal)


def test_where_machinectl_lists_what_runs() -> None:
    """nspawn tells it of the container, and nothing else differs."""
    usual, shown = (launch_of("web", workspace(), surroundings(has_machined=has)) for has in (False, True))
    assert "--register=no" in usual.argv
    assert shown.argv == tuple(word.replace("--register=no", "--register=yes") for word in usual.argv)
    *others, forgotten = shown.cleanup
    assert forgotten.argv[-1] == LAYOUT.machine("web") and forgotten.may_fail
    assert replace(shown, argv=usual.argv, cleanup=tuple(others)) == usual


def bindings(found: Launch) -> list[str]:
    return [word for word in found.argv if word.startswith("--bind")]


def test_each_share_is_bound_at_its_target() -> None:
    found = launch_of("web", replace(EVERYTHING, home="/srv/home"), surroundings())
    (shared,) = [step.argv for chain in found.prepare for step in chain if step.why == "share /srv/home"]
    assert shared[-3:-1] == ("/srv/home", "/run/hutch/workspaces/web/shares/0")
    network = "/run/hutch/workspaces/web/noted/network:/run/systemd/network/50-hutch.network"
    assert bindings(found) == [f"--bind-ro={network}", "--bind=/run/hutch/workspaces/web/shares/0:/home/me"]
    bound = [mount.bind.argv for mount in found.hot_mounts]
    assert [argv[-3] for argv in bound] == ["/srv/a", "/srv/b c"]
    assert [argv[-1].partition(",X-mount")[0] for argv in (shared, *bound)] == [
        "nosuid,nodev",
        "nosuid,nodev",
        "ro,nosuid,nodev",
    ]
    assert [mount.attach.argv[-2:] for mount in found.hot_mounts] == [
        (found.hot_mounts[0].place, "/src"),
        (found.hot_mounts[1].place, "/home/me/b c"),
    ]
    assert all(mount.steps in found.prepare and mount.place in found.directories for mount in found.hot_mounts)
    assert [step.why for mount in found.hot_mounts for step in mount.more] == ["protect /srv/a"]


def test_a_mount_keeps_its_place_for_as_long_as_it_is_what_it_is() -> None:
    """So that one which comes or goes does not disturb the others."""
    mounts = [Mount("/srv/a", "/a/deep"), Mount("/srv/b", "/b", readonly=True)]

    def layout(*mounts: Mount) -> list[str]:
        return [mount.place for mount in launch_of("web", workspace(mounts=mounts), surroundings()).hot_mounts]

    both = layout(*mounts)
    assert layout(*reversed(mounts)) == both
    assert layout(mounts[0]) == both[1:]
    assert layout(replace(mounts[1], readonly=False)) != both[:1]


@pytest.mark.parametrize("owner", [1000, 9999, 10_000, 20_000, 60_000])
def test_subordinates_are_the_guests_own_and_not_its_users(owner: int) -> None:
    lent = [uid for first, count in subordinates(owner) for uid in range(first, first + count)]
    assert owner not in lent
    assert len(lent) >= 50_000
    assert len(set(lent)) == len(lent)
    assert (min(lent), max(lent)) >= (10_000, 59_999)
    assert max(lent) <= 60_000


def test_the_filter_is_seen_before_the_port_is_raised() -> None:
    reasons = [step.why for stage in launch_of("web", workspace(), surroundings()).connect for step in stage]
    assert reasons.index("see the port's filter in place") < reasons.index("raise the port")


def test_files_hold_no_private_key() -> None:
    found = launch_of("web", workspace(), surroundings())
    assert not any("PRIVATE" in file.content for file in found.files)
    assert "--load-credential=hutch.ssh-host-key:/var/lib/hutch/workspaces/web/ssh/ssh_host_ed25519_key" in found.argv


def test_own_keys_open_it_beside_the_declared_ones() -> None:
    from hutch.backends.identity import identify

    def keys(declared: tuple[str, ...] | None, own: str) -> tuple[str, ...]:
        wanted = workspace(authorized_keys=declared)
        return identify("web", wanted, NETWORK.subnet, (own,), "Name=host0").authorized_keys

    assert keys(("ssh-ed25519 A a",), "ssh-ed25519 B b") == ("ssh-ed25519 A a", "ssh-ed25519 B b")
    assert keys(None, "ssh-ed25519 B b") == ("ssh-ed25519 B b",)


# The Nix store.


@pytest.mark.parametrize(
    ("keys", "beside"),
    [({}, "/run/hutch/workspaces/web/scratch"), ({"persist": "all"}, "/var/lib/hutch/workspaces/web/root")],
)
def test_what_is_written_to_the_store_shares_the_roots_fate(keys: dict[str, str], beside: str) -> None:
    found = launch_of("web", workspace(nix_store=True, **keys), surroundings())
    (shown,) = [step.argv for chain in found.prepare for step in chain if step.why == "share /nix/store"]
    assert shown[-3:] == (
        "/nix/store",
        "/run/hutch/workspaces/web/shares/nix",
        f"ro,nosuid,nodev,X-mount.idmap=b:0:{BASE}:{names.UID_COUNT}",
    )
    root, store = [step.argv for chain in found.prepare for step in chain if "overlay" in step.argv]
    assert f"upperdir={beside}/upper" in root[-2]
    assert {"nosuid", "nodev", f"lowerdir={shown[-2]}", f"upperdir={beside}/nix-upper"} <= set(store[-2].split(","))
    assert f"--bind={store[-1]}:/nix/store" in found.argv
    assert {shown[-2], store[-1]} <= set(found.directories)


def test_inspection_has_no_use_for_the_store() -> None:
    assert "/nix" not in inspection("web", workspace(nix_store=True), surroundings(), ("true",))[-1]


# The owner map.


@pytest.mark.parametrize(
    ("owner", "inside"),
    [(1000, 1000), (1001, 1001), (60000, 60000), (60001, 1000), (999, 1000), (1, 1000), (2**30, 1000)],
)
def test_guest_uid(owner: int, inside: int) -> None:
    assert guest_uid(owner) == inside


def test_owner_map() -> None:
    assert render_owner_map(1000, 100, BASE).split() == [
        f"u:1000:{BASE + 1000}:1",
        f"u:{BASE}:{BASE}:1000",
        f"u:{BASE + 1001}:{BASE + 1001}:64535",
        f"g:100:{BASE + 1000}:1",
        f"g:{BASE}:{BASE}:1000",
        f"g:{BASE + 1001}:{BASE + 1001}:64535",
    ]


def disjoint(extents: list[range]) -> bool:
    ordered = sorted(extents, key=lambda extent: extent.start)
    return all(a.stop <= b.start for a, b in itertools.pairwise(ordered))


host_ids = st.integers(1, names.UID_FIRST - 1)


@given(
    uid=host_ids | st.integers(900, 61000),
    gid=host_ids | st.integers(0, 61000),
    base=st.integers(0, names.UID_RANGES - 1).map(lambda index: names.UID_FIRST + index * names.UID_COUNT),
)
@example(uid=1, gid=0, base=BASE)
@example(uid=60000, gid=60000, base=LAST)
@example(uid=names.UID_FIRST - 1, gid=names.UID_FIRST - 1, base=BASE)
def test_owner_map_is_a_map(uid: int, gid: int, base: int) -> None:
    own = range(base, base + names.UID_COUNT)
    rows = [entry.split(":") for entry in render_owner_map(uid, gid, base).split()]
    for kind, outside in (("u", uid), ("g", gid)):
        extents = [(int(a), int(b), int(count)) for k, a, b, count in rows if k == kind]
        on_disk = [range(a, a + count) for a, _, count in extents]
        mapped = [range(b, b + count) for _, b, count in extents]
        assert all(len(extent) > 0 for extent in on_disk)
        assert disjoint(on_disk)
        assert disjoint(mapped)
        assert all(own.start <= extent.start and extent.stop <= own.stop for extent in mapped)
        assert sum(map(len, mapped)) == names.UID_COUNT
        # What the guest makes is the owner's or its own, so never root's.
        assert all(extent == range(outside, outside + 1) or extent.start >= own.start for extent in on_disk)


# Looking for unsaved work.


def test_inspection_sees_the_home_read_only_and_no_network() -> None:
    *shell, script = inspection("web", EVERYTHING, surroundings(), ("find", ".", "-name", "it's"))
    assert shell == ["sh", "-euc"]
    *steps, last = [shlex.split(line) for line in script.splitlines()]
    assert last[:2] == ["exec", "/usr/bin/python3"]
    at = last.index("systemd-nspawn")
    ordinary = json.loads(json.dumps(asdict(launch_of("web", EVERYTHING, surroundings()))))
    assert json.loads(last[at - 1]) == {key: ordinary[key] for key in ("seccomp", "pre_exec")}
    assert last[at + 1] == "--drop-capability=CAP_SYS_RESOURCE"
    assert last[-4:] == ["find", ".", "-name", "it's"]
    assert {"--private-network", "--bind-ro=/mnt/home:/home/me", "--chdir=/home/me", "--reuid=1000"} <= set(last)
    tmpfs = [word for step in steps if "tmpfs" in step for word in step if "size=" in word]
    tmpfs += [word for word in last if word.startswith("--tmpfs=")]
    assert [word.rpartition("size=")[2] for word in tmpfs] == ["1m", *["67108864"] * 3]
    (share,) = [step for step in steps if "/srv/my home" in step]
    assert share[-1].startswith("ro,nosuid,nodev,")
    assert not any("/var/lib/hutch/workspaces" in word for step in steps for word in step)  # not the kept root


@pytest.mark.parametrize("runs", [True, False])
def test_inspection_of_a_root_sees_that_read_only_and_no_home(runs: bool) -> None:
    command = ("sh", "-c", "look", "sh", "./srv/$(it's) -x/.git")
    *_, script = root_inspection("web", EVERYTHING, surroundings(), command, runs=runs)
    *steps, last = [shlex.split(line) for line in script.splitlines()]
    assert last[-5:] == list(command)
    assert {"--private-network", "--bind-ro=/mnt/home:/mnt", "--chdir=/mnt"} <= set(last)
    show = steps[-1]
    assert show[-1] == "/mnt/home"
    assert show[show.index("-o") + 1].startswith("ro,nosuid,nodev")
    assert ("/run/hutch/workspaces/web/root" in show) == runs
    assert any("lowerdir=/var/lib/hutch/workspaces/web/root/upper:/mnt/lower" in word for word in show) != runs
    assert not any("/srv/my home" in word for step in steps for word in step)


def test_inspection_of_a_private_mount_sees_both_layers_and_writes_neither() -> None:
    mount = Mount("/srv/src", "/srv/x", mode="private")
    command = ("sh", "-c", "look")
    *_, script = layer_inspection("web", EVERYTHING, surroundings(), command, mount)
    *steps, last = [shlex.split(line) for line in script.splitlines()]
    assert last[-3:] == list(command)
    shown = {word for word in last if word.startswith("--bind")}
    assert shown == {f"--bind-ro=/mnt/{name}" for name in ("below:/mnt/host", "own:/mnt/layer", "home:/srv/x")}
    assert "--chdir=/srv/x" in last
    below, own, overlay = steps[-3:]
    assert "/srv/src" in below
    assert own[-2:] == [f"{private_layer(LAYOUT, 'web', mount)}/upper", "/mnt/own"]
    assert all(step[step.index("-o") + 1].startswith("ro,nosuid,nodev") for step in (own, overlay))
    assert "lowerdir=/mnt/own:/mnt/below" in overlay[overlay.index("-o") + 1]


# What no backend can do yet, it says.

REFUSED: dict[str, tuple[WorkspaceSpec, list[str]]] = {
    "a plain container": (workspace(), []),
    "vm": (workspace(type="vm"), []),
    "a vm of incus": (workspace(type="vm", engine="incus"), ["type"]),
    "oci": (workspace(image="oci:debian"), ["image"]),
    "nix": (workspace(image="nix:/srv"), ["image"]),
    "rootfs": (workspace(image="rootfs:/srv"), []),
    "egress": (workspace(egress="none"), []),
    "an egress list": (workspace(egress=("a.example",), learn=True), []),
    "switches": (workspace(gpu=True, nesting=True), ["gpu"]),
    "a store": (workspace(nix_store=True, mounts=(Mount("/srv/a", "/nix/var"), Mount("/srv/b", "/nix/store2"))), []),
    "a vm with a store": (workspace(type="vm", nix_store=True), []),
    "mounts around a store": (
        workspace(nix_store=True, mounts=tuple(Mount("/srv/a", at) for at in ("/nix", "/nix/store", "/nix/store/x"))),
        ["mounts[0].target", "mounts[1].target", "mounts[2].target"],
    ),
    "mounts in place of a store": (workspace(mounts=(Mount("/srv/a", "/nix/store"),)), []),
    "idle": (workspace(idle=Idle("30min", "stop")), ["idle"]),
    "root as owner": (workspace(owner=0), ["owner"]),
    "root as owner, by name": (workspace(owner="root"), ["owner"]),
    "disk of a kept root": (workspace(persist="all", disk=1 << 30), ["disk"]),
    "disk of an ephemeral root": (workspace(disk=1 << 30), []),
    "all at once": (workspace(owner=0, idle=Idle("1h", "stop"), gpu=True), ["gpu", "idle", "owner"]),
    "what is for containers only": (workspace(type="vm", gpu=True, nesting=True), []),
}


@pytest.mark.parametrize(("declared", "keys"), REFUSED.values(), ids=REFUSED.keys())
def test_check(declared: WorkspaceSpec, keys: list[str]) -> None:
    problems = list(check("web", declared, NETWORK))
    assert [problem.key for problem in problems] == [f"workspaces.web.{key}" for key in keys]
    assert all(problem.message and problem.hint for problem in problems)


def test_a_backend_names_the_table_that_it_was_told() -> None:
    (problem,) = check_container("defaults", workspace(owner=0))
    assert problem.key == "defaults.owner"
