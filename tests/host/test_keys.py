"""Host keys against root inside: it can neither change what it is known by, nor learn what others are known by."""

from __future__ import annotations

from pathlib import Path

from tests.host.instance import Instance

PRESENT_ANOTHER = """
set -eu
ssh-keygen -q -t ed25519 -N '' -f /run/another
for file in /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*; do
  [ -f "$file" ] && sed -i 's|^ *HostKey .*|HostKey /run/another|I' "$file" || true
done
grep -rqi '^HostKey /run/another' /etc/ssh || echo 'HostKey /run/another' >>/etc/ssh/sshd_config
systemctl restart ssh
"""
# All that root can read of files and mounts; whole lines, so that a key's base64 is found whatever it is called.
SEARCH = 'grep -rlF --devices=skip --exclude-dir=proc --exclude-dir=sys -e "$1" / 2>/dev/null; true'


def kept(instance: Instance, name: str) -> Path:
    return instance.state / "workspaces" / name / "ssh" / "ssh_host_ed25519_key"


def test_a_workspace_that_presents_another_key(instance: Instance) -> None:
    instance.declare("container", web="", other="")
    instance.up()
    before = kept(instance, "web").read_bytes()
    assert instance.ssh("web", "true").returncode == 0
    instance.inside("web", "sh", "-c", PRESENT_ANOTHER, root=True)
    refused = instance.ssh("web", check=False)
    assert refused.returncode == 255
    assert "host key" in refused.stderr.lower()
    assert kept(instance, "web").read_bytes() == before
    assert kept(instance, "web").stat().st_mode & 0o7777 == 0o600
    instance.hutch("restart", "web")
    assert instance.ssh("web", "hostname").stdout == "web\n"

    own, others = (kept(instance, name).read_text().splitlines()[3] for name in ("web", "other"))
    assert instance.inside("web", "sh", "-c", SEARCH, "sh", own, root=True).stdout  # it is there to be found
    assert instance.inside("web", "sh", "-c", SEARCH, "sh", others, root=True).stdout == ""
