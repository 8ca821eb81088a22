"""From a file to a machine of one's own: ssh from any account, identity, environment, names."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import PUBLIC, PUBLIC_NAME, World

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def web(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    """A running workspace `web` of alice's that bob may enter too."""
    with open_instance(world, images) as instance:
        keys = ", ".join(f'"{world.accounts[name].public_key}"' for name in ("alice", "bob"))
        environment = '{ GREETING = "good \\"day\\" $HOME", EDITOR = "vim" }'
        instance.declare(workspace_type, web=f"authorized_keys = [{keys}]\nenv = {environment}\n")
        instance.up()
        yield instance


@pytest.mark.parametrize("account", ["root", "alice", "bob"])
def test_ssh_asks_nothing(web: Instance, account: str) -> None:
    result = web.ssh("web", "id -un", as_user=account)
    assert result.stdout == "dev\n"
    assert result.stderr == ""


@pytest.mark.vm(slow=True)
def test_an_owner_who_lost_the_keys_gets_one_of_hutchs(world: World, images: Path, workspace_type: str) -> None:
    alice = world.accounts["alice"]
    kept = alice.home / ".ssh-kept"
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, keyless='owner = "alice"')
        instance.up()
        (alice.home / ".ssh").rename(kept)
        try:
            instance.up()
            instance.ssh("keyless", as_user="alice")
        finally:
            if (alice.home / ".ssh").exists():
                shutil.rmtree(alice.home / ".ssh")
            kept.rename(alice.home / ".ssh")


def test_exec_passes_arguments_output_and_codes_on(web: Instance) -> None:
    """In short; test_exec has all of it."""
    words = ["", "a b", "new\nline", "quo'te", "$HOME", "back\\slash", "*", "--help", "ü€", "a;b&c|d"]
    show = "import sys, json; print(json.dumps(sys.argv[1:])); print('err', file=sys.stderr); sys.exit(42)"
    found = web.inside("web", "python3", "-c", show, *words, check=False)
    assert (json.loads(found.stdout), found.stderr, found.returncode) == (words, "err\n", 42)
    assert web.hutch("exec", "web", "--", "cat", stdin="in").stdout == "in"
    assert web.hutch("ssh", "web", "--", "exit", "7", check=False).returncode == 7


def test_a_key_that_is_not_authorised_is_refused(web: Instance, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=10)
    only = ["-F", "/dev/null", "-o", f"UserKnownHostsFile={web.state}/known_hosts", "-o", "StrictHostKeyChecking=yes"]
    command = ["ssh", *only, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(key), "dev@workspace-web"]
    result = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    assert result.returncode == 255
    assert "Permission denied" in result.stderr


def test_passwords_are_not_asked_for_and_root_cannot_log_in(web: Instance) -> None:
    account = web.world.accounts["root"]
    options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-l", "root"]
    command = ["ssh", "-v", *options, "workspace-web", "true"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env=account.environment(), stdin=subprocess.DEVNULL
    )
    assert result.returncode == 255
    methods = [line for line in result.stderr.splitlines() if "Authentications that can continue" in line]
    assert methods
    assert not any("password" in line or "keyboard-interactive" in line for line in methods), methods


def test_no_forwarding_unless_asked_for(web: Instance) -> None:
    """Agent and X11 forwarding are off: a workspace must not borrow the identity of who enters it."""
    account = web.world.accounts["alice"]
    result = subprocess.run(
        account.command("ssh", "-G", "workspace-web"),
        capture_output=True, text=True, timeout=20, env=account.environment(), check=True,
    )  # fmt: skip
    settings = dict(line.split(" ", 1) for line in result.stdout.splitlines() if " " in line)
    assert settings["forwardagent"] == "no"
    assert settings["forwardx11"] == "no"
    assert settings["user"] == "dev"


def test_doas_gives_root_without_a_password(web: Instance) -> None:
    assert web.ssh("web", "doas id -un").stdout == "root\n"


def test_the_hostname_is_the_name(web: Instance) -> None:
    assert web.ssh("web", "hostname").stdout == "web\n"


def test_the_login_user_has_the_uid_of_its_owner(web: Instance) -> None:
    alice = web.world.accounts["alice"]
    assert web.ssh("web", "id -u; pwd").stdout.split() == [str(alice.uid), "/home/dev"]


def test_a_public_name_resolves_and_is_reached(web: Instance) -> None:
    assert PUBLIC in web.ssh("web", f"resolvectl query {PUBLIC_NAME}").stdout
    assert web.ssh("web", f"curl --silent --max-time 10 http://{PUBLIC_NAME}/").stdout.startswith("internet ")


@pytest.mark.parametrize("way", ["ssh", "exec"])
def test_the_environment_is_there(web: Instance, way: str) -> None:
    result = web.ssh("web", "env") if way == "ssh" else web.inside("web", "env")
    assert 'GREETING=good "day" $HOME' in result.stdout.splitlines()
    assert "EDITOR=vim" in result.stdout.splitlines()


def test_nothing_failed_inside(web: Instance) -> None:
    state = web.inside("web", "systemctl", "is-system-running", "--wait", root=True, check=False).stdout.strip()
    failed = web.inside("web", "systemctl", "--failed", "--no-legend", "--plain", root=True).stdout
    assert (state, failed) == ("running", "")


def test_the_image_was_set_up_and_holds_no_identity(web: Instance) -> None:
    assert web.inside("web", "cat", "/etc/built-by-setup").stdout.startswith("internet ")
    roots = [path for path in web.state.glob("images/**/etc/built-by-setup") if path.is_file()]
    assert roots
    for etc in (path.parent for path in roots):
        assert not list(etc.glob("ssh/ssh_host_*"))
        assert not (etc / "hostname").exists()
        assert (etc / "machine-id").read_text().strip() in ("", "uninitialized")


def test_the_host_key_is_roots_and_read_only_inside(web: Instance) -> None:
    kept = web.state / "workspaces" / "web" / "ssh" / "ssh_host_ed25519_key"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.stat().st_uid == 0
    sshd = web.inside("web", "sshd", "-T", root=True).stdout
    files = [line.split()[1] for line in sshd.splitlines() if line.startswith("hostkey ")]
    assert files
    for file in files:
        if web.inside("web", "test", "-e", file, root=True, check=False).returncode == 0:
            assert web.inside("web", "sh", "-c", f"echo x >> {file}", root=True, check=False).returncode != 0, file


def test_the_journal_is_not_flooded_and_the_machine_id_is_its_own(web: Instance) -> None:
    machine_id = web.inside("web", "cat", "/etc/machine-id").stdout.strip()
    assert len(machine_id) == 32
    host = Path("/etc/machine-id")
    if host.exists():
        assert machine_id != host.read_text().strip()


def test_status_says_what_the_contract_says(web: Instance, workspace_type: str) -> None:
    status = web.status("web")
    assert status["type"] == workspace_type
    assert status["engine"] == "local"
    assert status["state"] == "running"
    assert status["mac"] == "02:4b:5e:57:f6:eb"
    assert status["cid"] == (None if workspace_type == "container" else 4939451)
    assert status["image"]
    assert status["home"] == str(web.state / "workspaces" / "web" / "home")
    assert status["hypervisor"] is None or workspace_type == "vm"
    assert status["accelerator"] in ({None} if workspace_type == "container" else {"kvm", "tcg"})
    assert Path(f"/proc/{status['pid']}").exists()
    assert 0 < status["ready_seconds"] < 60
    assert status["start_kind"] == "cold"
    assert status["pending"] == "none"
    assert status["file"] == str(web.file)
    assert status["ip"] in web.inside("web", "ip", "-brief", "address").stdout
    assert web.names() == ["web"]
    assert json.loads(web.hutch("ls", "--json").stdout)[0]["state"] == "running"


def test_tables_are_for_people(web: Instance) -> None:
    for command in ("ls", "status"):
        table = web.hutch(command).stdout
        assert "web" in table
        assert "running" in table
        assert "\x1b" not in table  # no colours where nobody looks


def test_explain_lets_a_sysadmin_replay(web: Instance, workspace_type: str) -> None:
    text = web.hutch("explain", "web").stdout
    status = web.status("web")
    program = "systemd-nspawn" if workspace_type == "container" else "qemu-system-"
    for fact in (status["ip"], status["mac"], program, "table", "50-hutch", "/etc/hosts", str(web.state)):
        assert fact in text, fact
    assert "PRIVATE KEY" not in text


def test_logs_show_the_journal(web: Instance) -> None:
    web.inside("web", "systemd-cat", "-t", "hutch-test", "echo", "a line in the journal", root=True)
    assert "a line in the journal" in web.hutch("logs", "web").stdout


def test_logs_follow(web: Instance) -> None:
    process = web.spawn("logs", "web", "-f", stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        web.inside("web", "systemd-cat", "-t", "hutch-test", "echo", "followed", root=True)
        assert any("followed" in line for line in process.stdout)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
