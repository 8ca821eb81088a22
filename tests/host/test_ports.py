"""Ports of a workspace on this host's loopback, and one of the host's inside, as clients on either side find them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.ports import SECONDS, ask, await_closed, fetch, forwarding, is_closed, listening, served
from tests.support.world import World

pytestmark = pytest.mark.vm(slow=True)


@pytest.fixture(scope="module")
def web(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web='owner = "alice"')
        instance.up()
        yield instance


@pytest.mark.parametrize("account", ["root", "alice"])
def test_what_listens_is_listed(web: Instance, account: str) -> None:
    with listening(web, 3000), listening(web, 80, "0.0.0.0", root=True):
        found = json.loads(web.hutch("ports", "web", "--json", as_user=account).stdout)
        assert {"address": "127.0.0.1", "port": 3000, "program": "python3"} in found
        assert {"address": "0.0.0.0", "port": 80, "program": "python3"} in found
        assert [item["port"] for item in found] == sorted(item["port"] for item in found)
        assert re.search(r"^127\.0\.0\.1 +3000 +python3$", web.hutch("ports", "web").stdout, re.MULTILINE)


def test_a_stranger_learns_nothing(web: Instance) -> None:
    for words in (["ports", "web"], ["forward", "web"]):
        result = web.hutch(*words, as_user="bob", check=False)
        assert (result.returncode, result.stdout) == (1, "")
        assert "the workspace web is not yours" in result.stderr


@pytest.mark.parametrize("account", ["root", "alice"])
def test_auto_follows_what_begins_and_stops(web: Instance, account: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(listening(web, 3001))
        forward = stack.enter_context(forwarding(web, as_user=account))
        forward.says(r"127\.0\.0\.1:3001 -> web:3001")
        assert fetch(3001) == "inside"
        with listening(web, 3002, "::1"), listening(web, 3003, "0.0.0.0"):
            forward.says(r"127\.0\.0\.1:3002 -> web:3002")
            forward.says(r"127\.0\.0\.1:3003 -> web:3003")
            assert [fetch(port) for port in (3002, 3003)] == ["inside", "inside"]
        await_closed(3002)
        await_closed(3003)
        forward.complains(r"127\.0\.0\.1:3003 -> web:3003: nothing listens there any more")
        assert fetch(3001) == "inside"
        heard = subprocess.run(["ss", "-Hltn", "sport", "3001"], capture_output=True, text=True, check=True).stdout
        assert [line.split()[3] for line in heard.splitlines()] == ["127.0.0.1:3001"]
        assert forward.end() == (0, "nothing of web is forwarded any more")
        await_closed(3001)
        assert forward.out.empty(), "neither ssh itself nor the resolver inside is forwarded"


def test_a_port_that_is_taken_or_root_s_is_another_one_outside(web: Instance) -> None:
    with served(3004), listening(web, 3004), listening(web, 81, root=True), forwarding(web, "81", "3004") as forward:
        low, taken = (int(forward.says(rf"127\.0\.0\.1:(\d+) -> web:{port}")) for port in (81, 3004))
        forward.complains("port 81 of this host is below 1024, so it is .*")
        forward.complains("port 3004 of this host is taken, so it is .*")
        assert min(low, taken) >= 1024
        assert [fetch(low), fetch(taken), fetch(3004)] == ["inside", "inside", "outside"]
        assert is_closed(81)


def test_a_port_that_was_named_need_not_listen_yet(web: Instance) -> None:
    with forwarding(web, "3005") as forward:
        forward.says(r"127\.0\.0\.1:3005 -> web:3005")
        with listening(web, 3005):
            assert fetch(3005) == "inside"
        assert forward.process.poll() is None


@pytest.mark.parametrize("account", ["root", "alice"])
def test_one_port_of_the_host_is_reached_by_name(web: Instance, account: str) -> None:
    with served() as port, served() as other:
        with forwarding(web, "--reverse", str(port), as_user=account) as forward:
            forward.says(rf"host\.internal:{port} -> 127\.0\.0\.1:{port}")
            assert ask(web, port) == "outside"
            assert ask(web, other) == "Connection refused"
            assert forward.end()[0] == 0
        assert ask(web, port) == "Connection refused"
    assert web.inside("web", "grep", "-c", "host.internal", "/etc/hosts").stdout == "1\n"


def test_a_port_that_is_taken_inside_is_not_reversed(web: Instance) -> None:
    with listening(web, 3006):
        result = web.hutch("forward", "web", "--reverse", "3006", check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "web: its sshd does not listen at 127.0.0.1:3006" in result.stderr
    assert web.hutch("forward", "web", "--reverse", "80", check=False).returncode == 2


def test_a_hostile_answer_is_bounded_and_printable(web: Instance) -> None:
    name = r"import ctypes, socket; ctypes.CDLL(None).prctl(15, b'\x1b[31mred\x07'); "
    serve = f"{name}s = socket.create_server(('127.0.0.1', 3007)); print(1, flush=True); input()"
    words = ["exec", "web", "--", "python3", "-c", serve]
    with web.spawn(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        row = "127.0.0.1  3007  \N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
        assert [line.split() for line in web.hutch("ports", "web").stdout.splitlines()].count(row.split()) == 1
        process.terminate()
    liar = "/usr/local/bin/grep"
    web.inside("web", "sh", "-c", f"printf '#!/bin/sh\nexec yes\n' >{liar}; chmod 755 {liar}", root=True)
    try:
        for words in (["ports", "web"], ["forward", "web"]):
            result = web.hutch(*words, check=False)
            assert (result.returncode, result.stdout) == (1, "")
            assert "list of listening ports is too long to be believed" in result.stderr
    finally:
        web.inside("web", "rm", liar, root=True)


def test_it_ends_with_the_workspace(web: Instance) -> None:
    with listening(web, 3008), forwarding(web) as forward:
        forward.says(r"127\.0\.0\.1:3008 -> web:3008")
        web.hutch("stop", "web")
        assert forward.process.wait(SECONDS) == 1
        forward.complains("nothing of web is forwarded any more")
        forward.complains("hutch: (web is stopp(ed|ing)|the connection to web was lost)")
        assert is_closed(3008)
    refused = web.hutch("forward", "web", check=False)
    assert (refused.returncode, refused.stderr) == (1, "hutch: web is stopped\n  → `hutch start web`\n")
