"""The Debian package on a Debian host with workspaces: it is upgraded while they run, goes, and leaves nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from hutch.spec.names import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR
from tests.host.instance import SSH_OPTIONS, Instance, explain
from tests.support import machine, world_files
from tests.support.enclosure import IMAGES
from tests.support.stand_disks import NOT_THERE
from tests.support.world import PUBLIC_NAME, World
from tests.systemd.conftest import call, lasting

pytestmark = [pytest.mark.long, pytest.mark.own_kernel]

PACKAGES = Path("/srv/packages")
FILES = ("find", "/etc", "/usr", "/var/lib", "/run/hutch", "-xdev", "-not", "-path", "/var/lib/dpkg/*")
REBOOT_SECONDS = 120.0
# What needrestart asks its configuration of a service: whether it may restart that.
MAY_RESTART = """
do "/etc/needrestart/conf.d/hutch.conf";
die $@ || $! unless %nrconf;
my $may = $nrconf{override_rc};
for my $unit (@ARGV) { print "$unit\n" unless grep { $unit =~ /$_/ && !$may->{$_} } keys %$may }
"""
UNREMARKABLE = ("/var/lib/systemd/", "/__pycache__")


class Packaged(Instance):
    """The host's own hutch, as everybody runs it."""

    program: ClassVar[tuple[str, ...]] = ("/usr/bin/hutch",)

    @property
    def state(self) -> Path:
        return Path(DEFAULT_STATE_DIR)

    @property
    def run(self) -> Path:
        return Path(DEFAULT_RUN_DIR)

    def close(self) -> None:
        call("umount", str(self.state / "images"), check=False)
        world_files.remove_directory(self.directory)


@pytest.fixture
def lacking(tmp_path: Path) -> Iterator[None]:
    """A package in place of those that the stand has not; no test here has a use for them."""
    control = tmp_path / "lacking/DEBIAN/control"
    control.parent.mkdir(parents=True)
    fields = {"Package": "lacking", "Version": "1", "Architecture": "all", "Maintainer": "nobody <nobody@localhost>"}
    fields |= {"Provides": ", ".join(sorted(NOT_THERE - {"dpkg"})), "Description": "what this host has not"}
    control.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    call("dpkg-deb", "--build", str(tmp_path / "lacking"), str(tmp_path / "lacking.deb"))
    call("dpkg", "--install", str(tmp_path / "lacking.deb"))
    yield
    call("dpkg", "--purge", "hutch", "lacking", timeout=300)  # what is gone already is no error


def dpkg(*arguments: str) -> str:
    result = subprocess.run(
        ["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, explain(("dpkg", *arguments), result)
    return result.stdout + result.stderr


def files() -> list[str]:
    """Everything on the host that is not its business to change by itself."""
    found = call(*FILES, check=False).splitlines()
    return sorted(path for path in found if not any(part in path for part in UNREMARKABLE))


def test_workspaces_outlive_an_upgrade_and_a_purge_leaves_nothing(world: World, lacking: None) -> None:
    first, second = sorted(map(str, PACKAGES.glob("*.deb")))
    bare, there = lasting(), files()
    host = Packaged(world, 77, IMAGES)
    before = lasting()  # with the stand's images where the package's hutch looks for its own
    try:
        dpkg("--install", first)
        assert call("man", "--where", "hutch-up", "hutch.toml").count("/usr/share/man/") == 2
        kept = ("hutch@web.service", "hutch-1a2b3c@a-b.service", "hutch-network.service", "workspace-web.service")
        assert call("perl", "-e", MAY_RESTART, "hutch-dns.service", *kept) == "hutch-dns.service\n"
        host.declare("container", web=f"egress = ['{PUBLIC_NAME}']")
        host.hutch("up", timeout=300)
        key = (host.state / "known_hosts").read_text()
        upgrade(host, second)
        host.ssh("web", "echo precious > ~/precious")

        told = dpkg("--remove", "hutch")
        assert "homes, keys and images stay in /var/lib/hutch" in told
        left = machine.difference(before, lasting()).splitlines()
        purged = ("needrestart", "sudoers.d")  # by dpkg
        assert [line for line in left if not any(name in line for name in purged)] in ([], ["etc:"]), left
        assert not host.run.exists()
        assert (host.state / "workspaces/web/home/precious").read_text() == "precious\n"

        dpkg("--install", second)
        host.hutch("up", timeout=300)
        assert host.ssh("web", "cat ~/precious").stdout == "precious\n"
        assert (host.state / "known_hosts").read_text() == key
        call("umount", "--lazy", str(host.state / "images"))  # the stand's; the workspace runs on
        dpkg("--purge", "hutch")
    finally:
        host.close()
    assert machine.difference(bare, lasting()) == ""
    assert files() == there


def upgrade(host: Packaged, package: str) -> None:
    """While somebody is logged in."""
    command = ["ssh", *SSH_OPTIONS, "workspace-web", "echo begun; read word; echo $word; read word; echo $word"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        try:
            assert session.stdin is not None and session.stdout is not None
            assert session.stdout.readline() == "begun\n"
            running = host.status("web")
            assert (running["state"], running["warnings"]) == ("running", [])
            dpkg("--install", package)
            assert call("dpkg-query", "-Wf", "${Version}", "hutch").endswith("-2")
            print("upgraded", file=session.stdin, flush=True)
            assert session.stdout.readline() == "upgraded\n"
            now = host.status("web")
            assert (now["state"], now["pid"]) == ("running", running["pid"])
            proxy = (host.run / "services/egress.pid").read_text()
            assert call("ps", "-o", "stat=", "-p", proxy.strip())

            # The new code changes what the older one started, where that needs no restart. The proxy is the new one.
            host.declare("container", web=f"egress = ['{PUBLIC_NAME}']\nmemory = '512MiB'")
            host.hutch("up", timeout=300)
            now = host.status("web")
            assert (now["pid"], now["pending"], now["warnings"]) == (running["pid"], "none", [])
            assert (host.run / "services/egress.pid").read_text() != proxy
            assert host.inside("web", "curl", "-sS", "--max-time", "20", f"http://{PUBLIC_NAME}/").stdout
            print("changed", file=session.stdin, flush=True)
            assert session.stdout.readline() == "changed\n"
        finally:
            session.kill()
    # A reboot of the guest's starts the service anew, with programs of the new code.
    host.inside("web", "sh", "-c", "touch /run/before; systemctl reboot", root=True, check=False)
    deadline = time.monotonic() + REBOOT_SECONDS
    while (now := host.status("web"))["pid"] == running["pid"] or now["state"] != "running":
        assert time.monotonic() < deadline, host.hutch("logs", "web", check=False).stdout
        time.sleep(0.5)
    host.ssh("web", "test ! -e /run/before")
