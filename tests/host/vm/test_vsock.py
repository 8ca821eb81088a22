"""Both ends of what machines and their host say to each other by vsock, in one machine that calls itself: few hosts
that run these tests have vsock. All is real but the device between the two, which is tried in test_vsock_nested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.guest.credentials import NOTIFY_SOCKET
from hutch.host.hardware.vsock import has_vsock
from hutch.host.identity.ssh import VSOCK_PROXY, Peer, choose_proxy, render_argv
from hutch.spec.names import Layout
from tests.host.instance import Completed, Instance
from tests.host.opening import open_instance
from tests.support.world import World

pytestmark = pytest.mark.slow  # test_vsock_nested has the device itself

SOURCE = Path(__file__).parents[3] / "src"
LISTENER = Path(__file__).with_name("guest_listener.py")
ITSELF, ANOTHER = 1, 77  # context ids: of whoever calls the own machine, and one that nobody here has
TOLD = f"/run/{NOTIFY_SOCKET}"
LAYOUT = Layout(Path("/run/state"), Path("/run/hutch-itself"))
PREPARE = f"""
set -eu
modprobe vsock_loopback
mkdir -p /run/systemd/system/hutch-port.service.d {LAYOUT.key(0).parent}
printf '[Service]\\nEnvironment=TOLD={TOLD}\\n' >/run/systemd/system/hutch-port.service.d/60-test.conf
systemctl daemon-reload
systemctl start hutch-ssh.socket # it is, from the beginning, where there is a device
ssh-keygen -q -t ed25519 -N '' -f {LAYOUT.key(0)}
install -d -m 700 -o dev -g dev ~dev/.ssh
install -m 600 -o dev -g dev {LAYOUT.key(0)}.pub ~dev/.ssh/authorized_keys
printf 'workspace-itself %s\\n' "$(ssh-keygen -y -f /run/credentials/@system/hutch.ssh-host-key)" >{LAYOUT.known_hosts}
"""


@pytest.fixture(scope="module")
def itself(world: World, images: Path) -> Iterator[Instance]:
    """A machine that is its own host."""
    with open_instance(world, images) as instance:
        instance.declare("vm", itself=f'mounts = [{{ source = "{SOURCE}", target = "/srv/src", readonly = true }}]')
        instance.up()
        instance.inside("itself", "sh", "-c", PREPARE, root=True)
        yield instance


def listen(instance: Instance, caller: int, command: str) -> Completed:
    argv = ("env", "PYTHONPATH=/srv/src", "python3", "-Bc", LISTENER.read_text(), TOLD, str(caller))
    return instance.inside("itself", *argv, "sh", "-c", command, root=True)


def test_by_what_a_machine_was_heard(itself: Instance) -> None:
    way = "vsock" if has_vsock() else "its port"
    assert f"ready, says the guest over {way}\n" in itself.hutch("logs", "itself").stdout


def test_the_units_own_call_is_heard(itself: Instance) -> None:
    """It goes on listening at the port."""
    assert listen(itself, ITSELF, "systemctl restart hutch-port; sleep 30").stdout == "ready\n"
    itself.inside("itself", "systemctl", "is-active", "hutch-port.service", root=True)


def test_where_nobody_listens_it_is_said_over_the_port(itself: Instance) -> None:
    argv = ("env", f"NOTIFY_SOCKET=vsock-stream:{ITSELF}:9999", "systemd-notify", "--no-block", "--ready")
    assert itself.inside("itself", *argv, check=False).returncode != 0
    itself.inside(
        "itself", "sh", "-c", f"echo vsock-stream:{ITSELF}:9999 >{TOLD}; systemctl restart hutch-port", root=True
    )
    itself.inside("itself", "systemctl", "is-active", "hutch-port.service", root=True)


def test_anybody_elses_call_is_not(itself: Instance) -> None:
    call = f"read -r NOTIFY_SOCKET <{TOLD}; export NOTIFY_SOCKET; systemd-notify --no-block --ready"
    assert listen(itself, ITSELF, call).stdout == "ready\n"
    assert listen(itself, ANOTHER, call).stdout == "nothing\n"


def ssh(instance: Instance) -> list[str]:
    """What ssh by vsock says when the machine has no network, by hutch's own command: the name, or why not."""
    proxy = choose_proxy(str(ITSELF), [VSOCK_PROXY])
    peer = Peer("itself", "192.0.2.1", "dev", proxy=proxy)
    argv = render_argv(
        LAYOUT, peer, "uname -n; cat /sys/class/net/eth0/operstate", terminal=False, control="", is_first=True
    )
    script = 'ip link set eth0 down; "$@" >/run/said 2>&1; ip link set eth0 up; cat /run/said'
    return instance.inside("itself", "sh", "-c", script, "sh", *argv, root=True).stdout.splitlines()


def test_ssh_needs_no_network(itself: Instance) -> None:
    assert ssh(itself) == ["itself", "down"]


def test_the_host_key_counts_there_too(itself: Instance) -> None:
    known = LAYOUT.known_hosts
    itself.inside(
        "itself", "sh", "-c", f"cp {known} {known}.own; ssh-keygen -q -t ed25519 -N '' -f /run/other", root=True
    )
    forge = f"printf 'workspace-itself %s\\n' \"$(cat /run/other.pub)\" >{known}"
    itself.inside("itself", "sh", "-c", forge, root=True)
    try:
        assert "Host key verification failed." in ssh(itself)
    finally:
        itself.inside("itself", "mv", f"{known}.own", str(known), root=True)
    assert ssh(itself) == ["itself", "down"]
