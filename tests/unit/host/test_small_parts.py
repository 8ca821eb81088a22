"""dns, shares, cgroup, bind and process: what of them can be tried without a command."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import pytest

from hutch.errors import HutchError
from hutch.host.network.dns import choose_names, wanted_resolvers
from hutch.host.services import cgroup
from hutch.host.services.process import is_alive, open_process, start_time
from hutch.host.services.service import Service, observe_service
from hutch.host.storage import share_checks, shares
from hutch.host.storage.bind import open_strictly
from hutch.host.storage.mountinfo import Tree
from hutch.host.storage.share_checks import check_shares
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import writable_paths
from tests.unit.facts import LAYOUT, NETWORK, check_golden, workspace

# dns


def test_resolvers() -> None:
    found = [asdict(service) for service in wanted_resolvers(LAYOUT, NETWORK, "dnsmasq", ["box.example"])]
    check_golden("dns/resolvers.json", json.dumps(found, indent=1) + "\n")


def own_arguments() -> tuple[str, ...]:
    return tuple(Path("/proc/self/cmdline").read_bytes().decode().split("\0")[:-1])


def test_a_resolver_is_known_by_its_arguments(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    ours = Service("x", str(pid_file), "", own_arguments())
    assert observe_service(ours) is None
    pid_file.write_text(f"{os.getpid()}\n")
    assert observe_service(ours) == os.getpid()
    assert observe_service(Service("x", str(pid_file), "", ("dnsmasq",))) is None


@pytest.mark.parametrize("text", ["", "x", "\xff", "99999999999", "-1"])
def test_a_pid_file_with_nonsense(text: str, tmp_path: Path) -> None:
    (tmp_path / "pid").write_bytes(text.encode("latin-1"))
    assert observe_service(Service("x", str(tmp_path / "pid"), "", own_arguments())) is None


# shares


def test_writable_paths() -> None:
    declared = workspace(home="/srv/home", mounts=(Mount("/a", "/a"), Mount("/b", "/b", readonly=True)))
    assert writable_paths(declared) == ("/srv/home", "/a")


MOUNTINFO = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 254:1 /srv /srv rw,nosuid,nodev,relatime - ext4 /dev/vda1 rw
31 22 254:1 /h /srv/my\040home rw,relatime - ext4 /dev/vda1 rw
32 31 254:1 /h /srv/my\040home rw,nosuid,nodev - ext4 /dev/vda1 rw
33 22 254:1 /u /srv/Übung/漢字\134x rw,nosuid - ext4 /dev/vda1 rw
34 22 254:1 /n /srv/no\011tab ro - ext4 /dev/vda1 rw
""".lstrip()


def test_find_mounts() -> None:
    assert shares.find_mounts(MOUNTINFO) == {
        "/": {"rw", "relatime"},
        "/srv": {"rw", "nosuid", "nodev", "relatime"},
        "/srv/my home": {"rw", "nosuid", "nodev"},  # the topmost
        "/srv/Übung/漢字\\x": {"rw", "nosuid"},
        "/srv/no\ttab": {"ro"},
    }


# /srv/disk/home and /srv/plain/home are mounted over themselves; then a disk came to /srv/disk, and another to /srv/two
# twice, whose home lies on the one that is seen.
HIDING = """
20 1 254:1 / / rw - ext4 /dev/vda1 rw
21 20 254:1 /srv/disk/home /srv/disk/home rw,nosuid,nodev - ext4 /dev/vda1 rw
22 20 254:1 /srv/plain/home /srv/plain/home rw,nosuid,nodev - ext4 /dev/vda1 rw
23 20 254:2 / /srv/disk rw - ext4 /dev/vdb rw
24 20 254:3 / /srv/two rw - ext4 /dev/vdc rw
25 24 254:4 / /srv/two rw - ext4 /dev/vdd rw
26 25 254:4 /home /srv/two/home rw,nosuid,nodev - ext4 /dev/vdd rw
27 22 254:1 /srv/plain/home /srv/plain/home rw,nosuid,nodev,noexec - ext4 /dev/vda1 rw
""".lstrip()


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/", {"rw"}),
        ("/srv", set()),
        ("/srv/disk", {"rw"}),
        ("/srv/disk/home", set()),
        ("/srv/plain/home", {"rw", "nosuid", "nodev", "noexec"}),
        ("/srv/plain/home/inner", set()),
        ("/srv/two/home", {"rw", "nosuid", "nodev"}),
        ("/srv/twohome", set()),
    ],
)
def test_a_mount_is_what_a_path_finds(path: str, options: set[str]) -> None:
    assert Tree(HIDING).options(path) == options


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/", ""),
        ("/srv/disk", ""),  # another file system
        ("/srv/disk/home", ""),  # hidden
        ("/srv/plain/home", "27"),  # twice over itself
        ("/srv/two/home", "26"),
        ("/srv/elsewhere", ""),
    ],
)
def test_a_directory_that_is_mounted_over_itself(path: str, number: str) -> None:
    elsewhere = "28 20 254:1 /srv/plain /srv/elsewhere rw,nosuid,nodev - ext4 /dev/vda1 rw\n"
    assert Tree(HIDING + elsewhere).over_itself(path) == number


def test_mounts_in_a_root_that_is_none() -> None:
    """As chroot(2) leaves it: what is around them is not listed."""
    inside = "31 20 254:1 /h /h rw,nosuid - ext4 /dev/vda1 rw\n32 31 254:2 / /h/in ro - ext4 /dev/vdb rw\n"
    assert [Tree(inside).options(path) for path in ("/", "/h", "/h/in")] == [set(), {"rw", "nosuid"}, {"ro"}]


def test_mounts_of_this_host() -> None:
    assert shares.observe_tree().options("/proc")


def test_a_home_is_made_for_its_owner(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    for _ in range(2):
        shares.ensure_home(home, os.getuid(), os.getgid())
        assert home.stat().st_mode & 0o7777 == 0o700
        assert home.stat().st_uid == os.getuid()


def test_a_home_is_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(HutchError, match="cannot be made"):
        shares.ensure_home(tmp_path / "link" / "home", os.getuid(), os.getgid())
    with pytest.raises(HutchError, match="cannot be made"):
        shares.ensure_home(tmp_path / "link" / "deep" / "home", os.getuid(), os.getgid())
    assert os.listdir(tmp_path / "elsewhere") == []


def test_somebody_elses_directory_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(HutchError, match="belongs to uid") as caught:
        shares.ensure_home(tmp_path, os.getuid() + 1, 7)
    assert f"chown -R {os.getuid() + 1}:7 {tmp_path}" in caught.value.resolution


def test_directories_are_looked_at_before_anything_starts(tmp_path: Path) -> None:
    uid = os.getuid()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    real = f"{tmp_path}/there/x"
    mounts = (
        Mount(f"{tmp_path}/there", "/a"),
        Mount(f"{tmp_path}/gone", "/b"),
        Mount(f"{tmp_path}/gone", "/c", create=True),
        Mount(f"{tmp_path}/fifo", "/d", create=True),
        Mount(f"{tmp_path}/link/x", "/e"),
        Mount(f"{tmp_path}/gone/x", "/f"),
    )
    fine = workspace(owner=uid, home=f"{tmp_path}/there", mounts=mounts[:1])
    assert list(check_shares("workspaces.web", fine)) == []
    assert list(check_shares("workspaces.web", replace(fine, home=f"{tmp_path}/new/home"))) == []
    found = list(check_shares("workspaces.web", replace(fine, mounts=mounts)))
    assert [(problem.key.removeprefix("workspaces.web."), problem.message) for problem in found] == [
        ("mounts[1].source", "does not exist"),
        ("mounts[3].source", "is neither a directory nor a regular file"),
        ("mounts[4].source", f"leads through {tmp_path}/link, which is a symbolic link; the real path is {real}"),
        ("mounts[5].source", f"leads through {tmp_path}/gone, which does not exist"),
    ]
    assert "create = true" in found[0].hint
    (foreign,) = check_shares("workspaces.web", replace(fine, owner=uid + 1))
    assert (foreign.key, foreign.message) == (
        "workspaces.web.home",
        f"belongs to uid {uid}, not to the owner {uid + 1}",
    )
    (no_directory,) = check_shares("workspaces.web", replace(fine, home=f"{tmp_path}/file/home"))
    assert no_directory.message == f"leads through {tmp_path}/file, which is not a directory"


def test_single_files_are_looked_at_too(tmp_path: Path) -> None:
    uid = os.getuid()
    for name in ("file", "home/.config/there", "home/taken/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    file = f"{tmp_path}/file"
    mounts = (
        Mount(file, "/srv/file"),
        Mount(file, "/home/dev/.config/new", mode="private"),
        Mount(file, "/home/dev/.config/there", mode="private"),
        Mount(file, "/srv/other", mode="private"),
        Mount(file, "/home/dev/taken", mode="readonly"),
    )
    declared = workspace(owner=uid, home=f"{tmp_path}/home", mounts=mounts)
    found = list(check_shares("workspaces.web", declared))
    assert [(problem.key.removeprefix("workspaces.web."), problem.message) for problem in found] == [
        ("mounts[3].target", "is outside the home, and a file is private"),
        ("mounts[4].target", f"{tmp_path}/home/taken is a directory"),
    ]
    (_, foreign) = check_shares("workspaces.web", replace(declared, owner=uid + 1, mounts=mounts[1:2]))
    assert (foreign.key, foreign.message) == (
        "workspaces.web.mounts[0].source",
        f"belongs to uid {uid}, not to the owner {uid + 1}",
    )


def test_what_is_protected_is_not_shared_to_be_written(tmp_path: Path) -> None:
    git = tmp_path / "top/.git"
    for name in ("objects", "refs", "hooks/more"):
        (git / name).mkdir(parents=True)
    for name in ("HEAD", "config"):
        (git / name).touch()

    def messages(mode: Literal["readonly", "writable", "private"], protect_default: bool = True) -> list[str]:
        sources = (tmp_path / "top", git, git / "hooks/more", git / "config", git / "refs")
        mounts = tuple(Mount(str(source), f"/{index}", mode=mode) for index, source in enumerate(sources))
        declared = workspace(owner=os.getuid(), home=f"{tmp_path}/home", mounts=mounts, protect_default=protect_default)
        return [problem.message for problem in check_shares("web", declared) if problem.key.endswith("source")]

    assert messages("writable") == [f"is protected, as {git}/hooks is", f"is protected, as {git}/config is"]
    assert messages("writable", protect_default=False) == messages("readonly") == []


def test_a_store_must_be_there_to_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "nix" / "store"
    monkeypatch.setattr(share_checks, "NIX_STORE", str(store))
    sharing = workspace(owner=os.getuid(), home=f"{tmp_path}/home", nix_store=True)
    assert list(check_shares("workspaces.web", replace(sharing, nix_store=False))) == []
    (problem,) = check_shares("workspaces.web", sharing)
    assert (problem.key, problem.value) == ("workspaces.web.nix_store", "true")
    assert problem.message == f"{store} leads through {store.parent}, which does not exist"
    assert "install Nix" in problem.hint
    store.parent.mkdir()
    store.symlink_to(tmp_path)
    (problem,) = check_shares("workspaces.web", sharing)
    assert "is a symbolic link" in problem.message
    store.unlink()
    store.mkdir()
    assert list(check_shares("workspaces.web", sharing)) == []


def with_points(home: Path, *targets: str) -> WorkspaceSpec:
    return workspace(owner=os.getuid(), home=str(home), mounts=tuple(Mount(str(home.parent), t) for t in targets))


def test_mount_points_inside_the_home() -> None:
    found = with_points(Path("/h"), "/src", "/home/dev/a/b", "/home/dev/a/b/c", "/home/other/x", "/home/dev2/x")
    assert shares.mount_points(found) == {"/home/dev/a/b": Path("/h/a/b")}


def test_mount_points_are_made_for_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda made, uid, gid: given.append((os.fstat(made).st_ino, uid, gid)))
    home = tmp_path / "home"
    (home / ".config").mkdir(parents=True)
    declared = with_points(home, "/home/dev/.config/deep/agent", "/home/dev/.cache")
    assert not shares.has_mount_points(declared)
    for _ in range(2):
        shares.ensure_mount_points("web", declared, 7)
        assert shares.has_mount_points(declared)
    made = [home / ".config/deep", home / ".config/deep/agent", home / ".cache"]  # and not what was there
    assert given == [(path.stat().st_ino, os.getuid(), 7) for path in made]
    assert {path.stat().st_mode & 0o7777 for path in made} == {0o755}


@pytest.mark.parametrize("target", ["/home/dev/link/x", "/home/dev/link", "/home/dev/file/x", "/home/dev/file"])
def test_mount_points_with_something_in_the_way(target: str, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    home.mkdir()
    (home / "link").symlink_to(elsewhere)
    (home / "file").touch()
    declared = with_points(home, target)
    with pytest.raises(HutchError, match=f"web: there can be no mount on {target}: ") as caught:
        shares.ensure_mount_points("web", declared, os.getgid())
    assert "symbolic link" in caught.value.resolution
    (problem,) = check_shares("workspaces.web", declared)
    assert (problem.key, problem.value) == ("workspaces.web.mounts[0].target", target)
    assert os.listdir(elsewhere) == []


def test_what_is_not_there_needs_no_guard(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    shares.ensure_shares(layout, [f"{tmp_path}/gone"])
    assert os.listdir(tmp_path) == []


# bind


def test_no_link_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("a")
    descriptor = open_strictly(str(tmp_path / "a" / "b"))
    assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "a" / "b"))
    os.close(descriptor)
    for path in ("link", "link/b", "file", "absent"):
        with pytest.raises(OSError):
            open_strictly(str(tmp_path / path))


# cgroup

HYBRID = """
35 24 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
36 24 0:30 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup rw
""".lstrip()


@pytest.mark.parametrize(
    ("mountinfo", "path"),
    [
        ("", None),
        ("35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate", "/sys/fs/cgroup"),
        ("35 24 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw", None),
        ("35 24 0:30 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        (HYBRID, "/sys/fs/cgroup/unified"),
        (r"35 24 0:30 / /mnt/my\040cgroup rw - cgroup2 none rw", "/mnt/my cgroup"),
        ("35 24 0:30 / /mnt/Übung rw - cgroup2 none rw", "/mnt/Übung"),
    ],
)
def test_find_the_cgroup2_mount(mountinfo: str, path: str | None) -> None:
    assert cgroup.find_mount(mountinfo) == path


@pytest.mark.parametrize(
    ("mountinfo", "flags"),
    [
        ("35 24 0:30 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw,seclabel,context=x_t:s0,nsdelegate", ["nsdelegate"]),
        (
            "35 24 0:30 / /a rw shared:9 - cgroup2 none rw,nsdelegate,memory_recursiveprot",
            ["memory_recursiveprot", "nsdelegate"],
        ),
    ],
)
def test_options_of_the_whole_cgroup2_hierarchy(mountinfo: str, flags: list[str]) -> None:
    assert cgroup.find_flags(mountinfo) == flags


def test_process_1_is_asked_where_no_cgroup2_mount_is_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {1: "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"}
    monkeypatch.setattr(cgroup, "observe_mountinfo", seen.__getitem__)
    assert cgroup.find_flags("") == ["nsdelegate"]


# process


def test_a_process_is_its_pid_and_its_start() -> None:
    started = start_time(os.getpid())
    assert started is not None
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started + 1)
    assert open_process(os.getpid(), started + 1) is None
    descriptor = open_process(os.getpid(), started)
    assert descriptor is not None
    os.close(descriptor)


def test_no_such_process() -> None:
    assert start_time(2**22 + 1) is None
    assert open_process(2**22 + 1, 1) is None


MOUNTS = """
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 8:2 / /home rw - ext4 /dev/sda2 rw
31 21 8:1 /srv/a /srv/a rw,nosuid,nodev - ext4 /dev/sda1 rw
32 22 8:2 /me/b /home/me/b rw,nosuid,nodev - ext4 /dev/sda2 rw
33 21 8:1 /srv/c /srv/d rw,nosuid,nodev - ext4 /dev/sda1 rw
34 21 0:40 / /run rw,nosuid,nodev - tmpfs tmpfs rw
"""


def test_directories_that_are_mounted_over_themselves() -> None:
    assert Tree(MOUNTS).self_binds() == {"/srv/a": 31, "/home/me/b": 32}
    assert Tree("").self_binds() == {}


def test_the_host_keeps_a_part_of_its_memory() -> None:
    gibibyte = 1 << 30
    kept = {total: total * gibibyte - cgroup.for_workspaces(total * gibibyte) for total in (1, 8, 16, 512)}
    assert kept == {1: gibibyte // 4, 8: gibibyte // 2, 16: gibibyte, 512: 2 * gibibyte}


@pytest.mark.parametrize(
    ("nodename", "hosts", "own"),
    [
        ("box", "", ("box",)),
        ("Box.example", "", ("box", "box.example")),
        ("box", "127.0.0.1 localhost\n127.0.1.1\tbox.example.org box # this one\n", ("box", "box.example.org")),
        ("box", "127.0.0.1 localhost box\n10.0.0.7 nas\n# 10.0.0.8 box\n\n10.0.0.9\n", ("box",)),
        ("box", "10.0.0.7 box a/b --server=x\n", ("box",)),
        ("(none)", "", ()),
    ],
)
def test_the_names_of_this_host(nodename: str, hosts: str, own: tuple[str, ...]) -> None:
    assert choose_names(nodename, hosts) == own
