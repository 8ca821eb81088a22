"""The ceiling of members: what the file says, and that nothing of it counts where a part is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.errors import ConfigError
from hutch.spec.ceiling import BUILT_IN, Ceiling, Members, Ports, ceiling_of_host, has_image, read_ceiling, roots

WHOLE = """
[members]
workspaces = 3
all_workspaces = 12
memory = "2GiB"
total_memory = "4GiB"
all_memory = "32GiB"
vcpus = 2
total_vcpus = 4
all_vcpus = 16
disk = "10GiB"
total_disk = "20GiB"
all_disk = "200GiB"
types = ["container"]
images = ["debian:trixie", "oci:docker.io/library/*"]
mounts = ["~/src", "/srv/projects"]
egress = ["*.example.org"]
publish = ["127.0.0.1:8000-8999", "0.0.0.0:443"]
nesting = true
gpu = true
nix_store = true
vsock = true
"""
WRONG = {
    'memory = "2GB"': ("members.memory", "is not a size"),
    "memory = 4": ("members.memory", "has no unit"),
    "vcpus = 0": ("members.vcpus", "is out of range"),
    "workspaces = -1": ("members.workspaces", "is out of range"),
    'workspaces = "3"': ("members.workspaces", "must be a whole number"),
    "nesting = 1": ("members.nesting", "must be true or false"),
    'types = ["container", "qemu"]': ("members.types[1]", "is not one of the known values"),
    'types = "container"': ("members.types", "must be a list"),
    'images = ["debian:*"]': ("members.images[0]", "is no image"),
    'images = ["rootfs:/srv/tree*"]': ("members.images[0]", "ends within the name of a directory"),
    'images = ["rootfs:~/tree"]': ("members.images[0]", "is not absolute"),
    'mounts = ["src"]': ("members.mounts[0]", "is not absolute"),
    'mounts = ["/"]': ("members.mounts[0]", "is the whole host"),
    'mounts = ["~/../bob"]': ("members.mounts[0]", "is not a plain path"),
    'egress = "internets"': ("members.egress", "is not one of the known words"),
    'publish = ["8080"]': ("members.publish[0]", "is not a range of ports"),
    'publish = ["127.0.0.1:9-8"]': ("members.publish[0]", "ends before it begins"),
    'publish = ["127.0.0.1:1-70000"]': ("members.publish[0]", "is not a port"),
    "workspace = 3": ("members.workspace", 'did you mean "workspaces"?'),
    "owner = 0": ("members.owner", "unknown key"),
}


def test_every_key_is_read() -> None:
    ceiling = read_ceiling(WHOLE)
    assert ceiling.said == frozenset(Members.__dataclass_fields__)
    assert ceiling.members.publish == (Ports("127.0.0.1", 8000, 8999), Ports("", 443, 443))
    assert [ceiling.most(f"total_{amount}") for amount in ("memory", "vcpus", "disk")] == [4 << 30, 4, 20 << 30]


def test_what_is_absent_is_built_in() -> None:
    assert read_ceiling("") == read_ceiling("[members]\n") == BUILT_IN == Ceiling()
    ceiling = read_ceiling('[members]\nmemory = "1GiB"\n')
    assert ceiling.members.vcpus == BUILT_IN.members.vcpus
    assert ceiling.most("total_memory") is None
    assert ceiling.says("memory") == "members.memory is 1GiB, as /etc/hutch/policy.toml says"
    assert ceiling.says("vcpus") == "members.vcpus is 4, the default of /etc/hutch/policy.toml"


def test_the_number_of_a_person_has_two_names() -> None:
    assert read_ceiling("[members]\ntotal_workspaces = 2\n").members.workspaces == 2
    with pytest.raises(ConfigError) as caught:
        read_ceiling("[members]\nworkspaces = 2\ntotal_workspaces = 2\n")
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [(3, "members.total_workspaces")]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_told_by_key_and_line(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_ceiling(f"[members]\ngpu = true\n{line}\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, WRONG[line][0])
    assert WRONG[line][1] in str(problem)


@pytest.mark.parametrize("text", ["[member]\n", "memory = '2GiB'\n", "members = 3\n", "[members\n"])
def test_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_ceiling(text)


# The host's file.


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of root's, by what lstat says: the tests may run as anybody."""
    real_lstat, real_fstat = os.lstat, os.fstat

    def as_roots(status: os.stat_result) -> os.stat_result:
        return os.stat_result((*status[:4], 0, *status[5:]))

    monkeypatch.setattr("os.lstat", lambda path: as_roots(real_lstat(path)))
    monkeypatch.setattr("os.fstat", lambda descriptor: as_roots(real_fstat(descriptor)))
    tmp_path.chmod(0o755)
    path = tmp_path / "policy.toml"
    path.write_text('[members]\nmemory = "1GiB"\n')
    path.chmod(0o644)
    return path


def test_the_hosts_file_counts(file: Path) -> None:
    assert ceiling_of_host(file).members.memory == 1 << 30
    file.unlink()
    assert ceiling_of_host(file) == BUILT_IN
    assert ceiling_of_host(file / "policy.toml") == BUILT_IN


def test_a_file_that_others_could_write_or_not_read_is_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, mode in ((file, 0o664), (file, 0o646), (file, 0o640), (file.parent, 0o775)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ConfigError, match=r"policy\.toml: 1 problem"):
            ceiling_of_host(file)
        path.chmod(before)
    monkeypatch.undo()
    if os.getuid() == 0:
        os.chown(file, 1000, 1000)
    with pytest.raises(ConfigError):
        ceiling_of_host(file)


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling link", "not text"])
def test_what_is_no_file_refuses_everything(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "dangling link":
        file.symlink_to("nowhere")
    else:
        file.write_bytes(b"\xff")
        file.chmod(0o644)
    with pytest.raises(ConfigError):
        ceiling_of_host(file)


# Images and directories.


@pytest.mark.parametrize(
    ("image", "is_among"),
    [
        ("debian:trixie", True),
        ("ubuntu:noble", False),
        ("oci:docker.io/library/debian:trixie", True),
        ("oci:docker.io/libraries/debian", False),
        ("rootfs:/srv/trees/a", True),
        ("rootfs:/srv/trees", False),
        ("rootfs:/srv/trees/../secret", False),
        ("rootfs:/srv/treess", False),
        ("rootfs:/srv/trees/link", False),
        ("nix:/srv/trees/a", False),
        ("nix:/nix/store/x", True),
        ("nix:/nix/store/xy", False),
    ],
)
def test_images_of_the_ceiling(image: str, is_among: bool) -> None:
    images = ("debian:trixie", "oci:docker.io/library/*", "rootfs:/srv/trees/*", "nix:/nix/store/x")
    links = {"/srv/trees/link": "/etc", "/srv/trees/../secret": "/srv/secret"}
    assert has_image(Ceiling(Members(images=images)), image, lambda path: links.get(path, path)) is is_among


def test_directories_of_the_ceiling() -> None:
    ceiling = Ceiling(Members(mounts=("~/src", "/srv")))
    assert roots(ceiling, "/home/alice") == ("/home/alice/src", "/srv")
    assert roots(ceiling, None) == ("/srv",)
