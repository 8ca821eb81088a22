"""The proxy by which ssh reaches workspaces on an Incus server, with a client that only pretends to be one."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hutch import run
from hutch.engines.incus.ways import PROXY
from hutch.spec.names import Layout

CLIENT = """#!/bin/sh
echo $$ >{directory}/pid
exec 3>&1
own=$(readlink /proc/$$/fd/9)
exec >{directory}/told
printf '%s\\n' "$@" "uid $(id -u)" "conf ${{INCUS_CONF-}}" "told ${{TOLD-}}" "own $own" "ca ${{SSL_CERT_FILE-}}"
exec >&3
{does}
"""
REFUSED = """echo 'Error while executing alias expansion: incus exec lab:web' >&2
echo 'Error: Get "https://m1:8443/1.0": Unable to connect to: m1:8443 ([connection refused])' >&2; exit 1"""
HANGS_UP = """echo 'Error: Get "https://m2:8443/1.0": EOF' >&2; exit 1"""
STRANGER = """echo 'Error: Get "https://m2:8443/1.0": tls: failed to verify certificate: x509: oh' >&2; exit 1"""


class Proxy:
    """The proxy for whoever runs it, with a client that does something."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(
        self, does: str, account: int = 0, *, become: tuple[str, ...] = (), conf: str = "/a b/conf"
    ) -> subprocess.Popen[bytes]:
        (self.directory / "incus").write_text(CLIENT.format(directory=self.directory, does=does))
        (self.directory / "incus").chmod(0o755)
        return subprocess.Popen(
            [*become, "sh", str(self.directory / "ssh-proxy"), "web", "lab", "hutch", str(account), conf],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": f"{self.directory}:{os.environ['PATH']}", "INCUS_CONF": "/own", "TOLD": "much"},
        )

    def says(self, does: str, account: int = 0) -> str:
        """The proxy's one line."""
        process = self.start(does, account)
        output, errors = process.communicate(timeout=20)
        assert output == b""
        return errors.decode()

    def addresses(self, account: int, conf: str) -> Path:
        return Layout(self.directory, self.directory).addresses_of(account, conf, "lab")

    @property
    def told(self) -> list[str]:
        return (self.directory / "told").read_text().splitlines()


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    """Everybody can run it, as ssh does."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    for name in ("told", "pid"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
    (tmp_path / "ssh-proxy").write_bytes(PROXY.read_bytes())
    return Proxy(tmp_path)


def test_bytes_pass_as_they_are(proxy: Proxy) -> None:
    data = os.urandom(4 << 20)
    output, errors = proxy.start("exec cat").communicate(data, timeout=30)
    assert (output == data, errors) == (True, b"")
    assert proxy.told[:6] == ["exec", "lab:web", "--project", "hutch", "-T", "--"]


@pytest.mark.parametrize(("account", "uid", "conf"), [(0, 0, "/a b/conf"), (65534, 65534, "/a b/conf")])
def test_roots_ssh_has_the_client_of_who_declared_it(proxy: Proxy, account: int, uid: int, conf: str) -> None:
    assert proxy.says("", account) == ""
    assert f"uid {uid}" in proxy.told and f"conf {conf}" in proxy.told
    assert ("told much" in proxy.told) is (account == 0)  # another one gets nothing of root's environment


@pytest.mark.parametrize(("account", "conf"), [(0, "/own"), (65534, "/a b/conf")])
def test_other_peoples_ssh_has_their_own(proxy: Proxy, account: int, conf: str) -> None:
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    _, errors = proxy.start("", account, become=become).communicate(timeout=20)
    assert errors == b""
    assert "uid 65534" in proxy.told and f"conf {conf}" in proxy.told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            'Error: The remote "lab" doesn\'t exist',
            'your Incus client does not reach web in the project hutch of lab: The remote "lab" doesn\'t exist',
        ),
        ("Error: Instance is not running", "web does not run; `hutch start web` starts it"),
        ("noise\\033[31m\\n\\nred\\033[31m\\n", "web says: red[31m"),
        ("", ""),
    ],
)
def test_who_does_not_get_there_is_told_why_in_a_sentence(proxy: Proxy, error: str, said: str) -> None:
    quoted = error.replace("'", "'\\''")
    assert proxy.says(f"printf '{quoted}' >&2; exit 1") == (f"hutch: {said}\n" if said else "")


# Other members of the cluster.


@pytest.fixture
def members(proxy: Proxy) -> Iterator[socket.socket]:
    """The addresses of m2 and m3, and a port at which nobody answers."""
    for account, conf in itertools.product((0, 65534), ("/a b/conf", "/root", str(proxy.directory))):
        for way in ("1-m2", "2-m3"):
            directory = proxy.addresses(account, conf) / way
            directory.mkdir(parents=True)
            (directory / "config.yml").touch()
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):  # more than wait there to be taken
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        yield silent


def connecting(to: socket.socket) -> str:
    return f"import socket; socket.create_connection({to.getsockname()})"


def by_way(own: str, m2: str, m3: str = "exit 1") -> str:
    """What a client does by the way that it takes."""
    return f"case $INCUS_CONF in\n*/1-m2) {m2} ;;\n*/2-m3) {m3} ;;\n*) {own} ;;\nesac"


@pytest.mark.parametrize("account", [0, 65534])
def test_another_member_carries_it_where_nobody_is_found(proxy: Proxy, members: object, account: int) -> None:
    data = os.urandom(1 << 20)
    process = proxy.start(by_way(REFUSED, STRANGER, "exec cat"), account, conf=str(proxy.directory))
    assert process.communicate(data, timeout=20) == (data, b"")
    conf = proxy.addresses(account, str(proxy.directory)) / "2-m3"
    assert {f"uid {account}", f"conf {conf}", f"own {proxy.directory}", "ca /dev/null"} <= {*proxy.told}


def test_another_configuration_has_no_part_in_it(proxy: Proxy, members: object) -> None:
    """A remote of the same name is another one there."""
    output, errors = proxy.start(by_way(REFUSED, "exec cat"), conf="/a b").communicate(b"x", timeout=20)
    assert output == b"" and b"Unable to connect to: m1" in errors


def test_other_people_go_there_with_their_own_certificates(proxy: Proxy, members: object) -> None:
    become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"INCUS_CONF={proxy.directory}")
    process = proxy.start(by_way(REFUSED, "exec cat"), become=become, conf="/root")
    assert process.communicate(b"x", timeout=20) == (b"x", b"")
    assert {"uid 65534", f"own {proxy.directory}"} <= {*proxy.told}


def test_who_waits_for_a_connection_is_not_waited_for(proxy: Proxy, members: socket.socket) -> None:
    started = time.monotonic()
    silent = f"exec {sys.executable} -c {shlex.quote(connecting(members))}"
    process = proxy.start(by_way(silent, "exec cat"), conf=str(proxy.directory))
    assert process.communicate(b"x", timeout=20) == (b"x", b"")
    assert time.monotonic() - started < 5


def test_who_is_slow_is_left_alone(proxy: Proxy, members: object) -> None:
    process = proxy.start(by_way("sleep 1.5; exec cat", "exit 1"))
    assert process.communicate(b"x", timeout=20) == (b"x", b"")


@pytest.mark.parametrize(
    ("own", "m2", "said"),
    [
        (REFUSED, HANGS_UP, b'Get "https://m2:8443/1.0": EOF'),
        (f"echo 'Connection closed' >&2; {REFUSED}", "exec cat", b"m1:8443 ([connection refused])"),
    ],
)
def test_nobody_else_is_asked_what_may_have_been_heard(
    proxy: Proxy, members: object, own: str, m2: str, said: bytes
) -> None:
    """The guest has its word on the same lines as the client."""
    output, errors = proxy.start(by_way(own, m2, "exec cat"), conf=str(proxy.directory)).communicate(b"x", timeout=20)
    assert output == b""
    assert errors.startswith(b"hutch: your Incus client does not reach web") and said in errors
    assert errors.count(b"\n") == 1


def test_root_kills_nobody_for_the_user(proxy: Proxy, members: socket.socket) -> None:
    """What the user's processes name as the client is killed by that user's own right, if at all."""
    with subprocess.Popen([sys.executable, "-c", connecting(members)]) as roots:
        named = f'case $2 in *"exec setsid"*) echo {roots.pid} >&2; exec sleep 2 ;; esac'
        (proxy.directory / "sh").write_text(f'#!/bin/sh\n{named}\nexec /bin/sh "$@"\n')
        (proxy.directory / "sh").chmod(0o755)
        try:
            assert proxy.says("", 65534) == ""
            assert run.is_connecting(roots.pid)
        finally:
            roots.kill()


def test_where_nobody_is_anywhere_the_own_address_has_the_word(proxy: Proxy, members: object) -> None:
    process = proxy.start(by_way(REFUSED, STRANGER, REFUSED), conf=str(proxy.directory))
    output, errors = process.communicate(timeout=20)
    assert output == b""
    assert errors.startswith(b"hutch: your Incus client does not reach web in the project hutch of lab: Get")
    assert errors.count(b"\n") == 1 and b"Unable to connect to: m1" in errors


def test_hutch_waits_no_longer_for_a_connection(members: socket.socket) -> None:
    """As the proxy does, for the questions that are no connection of ssh's."""
    commands = [[sys.executable, "-c", connecting(members)], ["sleep", "0.5"]]
    silent, slow = run.exchange(commands, timeout=20, most=100, connect=0.3)
    assert isinstance(silent, run.NotConnected)
    assert slow == run.Completed(0, b"", b"")


def test_the_guest_cannot_say_without_end(proxy: Proxy) -> None:
    assert len(proxy.says("exec yes hutch-hutch >&2")) < 400


def test_an_account_that_is_none(proxy: Proxy) -> None:
    assert "uid 4242, which is no account" in proxy.says("", 4242)


@pytest.mark.parametrize("hears", [True, False])
def test_no_client_stays_when_ssh_hangs_up(proxy: Proxy, hears: bool) -> None:
    process = proxy.start("exec cat" if hears else "trap '' HUP TERM; exec sleep 60 </dev/null")
    deadline = time.monotonic() + 10
    while not (proxy.directory / "pid").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int((proxy.directory / "pid").read_text())
    assert process.stdin is not None
    started = time.monotonic()
    process.send_signal(signal.SIGHUP)
    process.stdin.close()
    with process:
        process.wait(10)
    assert time.monotonic() - started < (1.5 if hears else 5)
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
