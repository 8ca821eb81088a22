"""Kits: found where they should be, named where they count, and those that come along installed for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.spec.kit_files import HOST_KITS, OWN_KITS
from tests.host.conftest import MakeInstance
from tests.host.instance import Instance

PROGRAMS = {
    "node": ("node --version", "npm --version"),
    "python": ("python3 -m venv /tmp/v && /tmp/v/bin/pip --version",),
    "claude": ("claude --version", 'test "$DISABLE_AUTOUPDATER" = 1'),
    "codex": ("codex --version",),
}
"""Commands that work inside, by the kit that brings their programs."""
FETCHES = {
    "node": "cd /tmp && npm pack --silent --cache /tmp/npm is-number",
    "python": "/tmp/v/bin/pip download --quiet --no-deps --dest /tmp/pip iniconfig",
}
"""Commands that reach what a kit opens."""
AUTHORITIES = Path("/usr/local/share/ca-certificates")
"""The certificate authorities of this machine's own, by which it reaches registries."""


@pytest.fixture
def host_kits() -> Iterator[Path]:
    """The host's directory of kits, which is gone after the test."""
    is_new = not HOST_KITS.parent.exists()
    HOST_KITS.mkdir(parents=True)
    HOST_KITS.chmod(0o755)
    try:
        yield HOST_KITS
    finally:
        for file in HOST_KITS.iterdir():
            file.unlink()
        HOST_KITS.rmdir()
        if is_new:
            HOST_KITS.parent.rmdir()


def write(directory: Path, name: str, text: str) -> Path:
    file = directory / f"{name}.toml"
    file.write_text(text)
    file.chmod(0o644)
    return file


def trusting() -> str:
    """A kit by which images trust the authorities that this machine has beside those of its distribution."""
    texts = [path.read_text() for path in sorted(AUTHORITIES.glob("*.crt"))]
    files = "".join(f"cat >{AUTHORITIES}/test-{n}.crt <<'end'\n{text}\nend\n" for n, text in enumerate(texts))
    script = f"{files}update-ca-certificates\n"
    script += "printf 'cafile=/etc/ssl/certs/ca-certificates.crt\\n' >>/root/.npmrc\n"
    return f"packages = ['ca-certificates']\nsetup = '''\n{script}'''\n"


@pytest.mark.vm(slow=True)
def test_kits_are_joined_and_named(shared: Instance, name: str, workspace_type: str, host_kits: Path) -> None:
    """In the image there is what the common one has, so nothing is built: a variable, a mount and a list tell."""
    source = shared.directory / "tools"
    source.mkdir(exist_ok=True)
    (source / "seen").write_text("here\n")
    mounts = f"mounts = [{{ source = '{source}', target = '/tools', readonly = true }}]\n"
    write(host_kits, "tools", f"{mounts}egress = ['public.example:80']\n[env]\nFROM_KIT = 'yes'\nBOTH = 'kit'\n")
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    shared.declare(workspace_type, **{name: 'use = ["tools"]\nenv = { BOTH = "own" }\n'})
    plan = shared.hutch("plan").stdout
    for key in ("mounts", "egress", "env"):
        (line,) = [line for line in plan.splitlines() if line.strip().startswith(f"{key}:")]
        assert line.endswith(", by the kit tools")
    reasons = {reason["key"]: reason for reason in shared.plan()[name]["reasons"]}
    assert reasons["env"]["kits"] == ["tools"]
    assert reasons["use"]["new"] == ["tools"]
    shared.up()
    assert shared.plan()[name]["action"] == "no change"
    command = 'echo "$FROM_KIT $BOTH $(cat /tools/seen)"'
    assert shared.hutch("exec", name, "--", "bash", "-lc", command).stdout == "yes own here\n"
    assert shared.hutch("exec", name, "--", "curl", "-sS", "--max-time", "9", "http://public.example/").returncode == 0
    refused = shared.hutch("exec", name, "--", "curl", "-sS", "--max-time", "9", "http://second.example/", check=False)
    assert refused.returncode == 6
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    assert shared.status(name)["egress"] == "internet"


@pytest.mark.slow
def test_a_persons_kit_is_theirs_behind_sudo_too(shared: Instance, host_kits: Path) -> None:
    """Each calls with kits of their own; root's is none of theirs."""
    write(host_kits, "mine", "packages = ['host']\n")
    alice = shared.world.accounts["alice"]
    directory = alice.home / ".config/hutch/kits"
    directory.mkdir(parents=True)
    file = write(directory, "mine", "packages = ['users']\nnonsense = 1\n")
    try:
        shared.declare("container", web='use = ["mine"]')
        env = {"SUDO_UID": str(alice.uid)}
        for refused in (
            shared.hutch("plan", check=False, env=env),
            shared.hutch("plan", check=False, as_user="alice"),
        ):
            assert refused.returncode == 2
            assert f"{file}:2: nonsense = 1: unknown key" in refused.stderr
        listed = json.loads(shared.hutch("kits", "--json", as_user="alice", check=False).stdout)
        (mine,) = [kit for kit in listed if kit["name"] == "mine"]
        assert (mine["from"], mine["file"], mine["hides"]) == ("user", str(file), [f"{host_kits}/mine.toml"])
        assert mine["problems"]
        write(directory, "mine", "packages = ['users']\n")
        file.chmod(0o666)
        assert "can be written by its group or by others" in shared.hutch("plan", check=False, env=env).stderr
    finally:
        file.unlink()
        for made in (directory, *list(directory.parents)[:2]):
            made.rmdir()


def test_a_kit_that_a_guest_can_write_is_not_believed(shared: Instance, name: str, host_kits: Path) -> None:
    source = shared.directory / "kits-of-a-guest"
    source.mkdir(exist_ok=True)
    (host_kits / "guests.toml").symlink_to(write(source, "guests", "packages = []\n"))
    shared.declare("container", **{name: f"mounts = [{{ source = '{source}', target = '/src' }}]"})
    shared.hutch("up", "--no-start")
    shared.declare("container", **{name: 'use = ["guests"]'})
    refused = shared.hutch("plan", check=False)
    assert refused.returncode == 2
    assert f"workspace {name} can write in {source}" in refused.stderr


def test_the_list_of_kits(shared: Instance, host_kits: Path) -> None:
    write(host_kits, "node", "packages = ['nodejs']\n")
    shared.write('[kits.here]\nsetup = "true"\nenv = { A = "1" }\n')
    found = shared.hutch("kits")
    lines = {line.split()[0]: line for line in found.stdout.splitlines()}
    assert list(lines) == ["NAME", "claude", "codex", "here", "node", "python"]
    assert lines["here"].endswith("setup; env A")
    assert f"node: {host_kits}/node.toml counts, and not {OWN_KITS}/node.toml" in found.stderr
    shared.write("kits = 3\n")
    assert shared.hutch("plan", check=False).returncode == 2


@pytest.mark.slow
def test_kits_that_come_along_are_installed(make_instance: MakeInstance, host_kits: Path) -> None:
    """All in one image. Programs start as the user, in the workspace, which reaches what the kits open."""
    write(host_kits, "trusting", trusting())
    instance = make_instance(with_images=False)
    instance.defaults = ""
    instance.declare("container", web=f'use = ["trusting", {", ".join(json.dumps(kit) for kit in PROGRAMS)}]')
    instance.hutch("up", timeout=900)
    for command in [command for commands in PROGRAMS.values() for command in commands]:
        instance.hutch("exec", "web", "--", "bash", "-lc", command)
    for command in FETCHES.values():
        command = f"export npm_config_cafile=/etc/ssl/certs/ca-certificates.crt; {command}"
        instance.hutch("exec", "web", "--", "bash", "-lc", command)
    refused = instance.hutch("exec", "web", "--", "curl", "-sS", "http://public.example/", check=False)
    assert refused.returncode == 6


@pytest.mark.slow
def test_a_failure_names_its_kit(make_instance: MakeInstance, images: Path) -> None:
    instance = make_instance(with_images=False)
    tree = next(images.glob("[!.]*/root"))
    instance.defaults = f'image = "rootfs:{tree}"\npackages = []'
    instance.declare("container", web='use = ["one", "two"]\nsetup = "echo own >>/etc/order"')
    kits = "[kits.one]\nsetup = \"echo one >>/etc/order; cd /; exit\"\n[kits.two]\nsetup = '''#!/bin/bash\n{}'''\n"
    before = instance.file.read_text()
    instance.file.write_text(before + kits.format("exit 7"))
    refused = instance.hutch("image", "build", check=False)
    assert refused.returncode == 1
    assert "the setup script of the kit two failed with code 7" in refused.stderr
    instance.file.write_text(before + kits.format("[[ $PWD == /root ]] && echo two >>/etc/order"))
    instance.hutch("image", "build")
    (built,) = (instance.state / "images").glob("*/root")
    assert (built / "etc/order").read_text() == "one\ntwo\nown\n"
    assert not list((built / "tmp").glob("hutch-part"))
