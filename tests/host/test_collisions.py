"""What a workspace runs with is not another one's, even when it is to have something else after its next restart."""

from __future__ import annotations

import json
import socket

import pytest

from tests.host.instance import Instance

TABLE = '[workspaces.{}]\ntype = "container"\nrestart_if_changed = false\nip = "{}"\n'


@pytest.mark.slow
def test_an_address_is_free_once_its_workspace_has_left_it(shared: Instance) -> None:
    prefix = shared.subnet.rpartition(".")[0]
    first, second = f"{prefix}.20", f"{prefix}.21"
    shared.write(TABLE.format("one", first))
    shared.up()
    shared.write(TABLE.format("one", second))
    shared.up()
    assert shared.status("one")["pending"] == "restart"
    shared.write(TABLE.format("one", second) + TABLE.format("two", first))
    refused = shared.hutch("up", check=False)
    assert refused.returncode == 1
    assert f"the same ip {first}, with which one still runs" in refused.stderr
    assert shared.names() == ["one"]
    shared.hutch("restart", "one")
    shared.up()
    assert (shared.status("one")["ip"], shared.status("two")["ip"]) == (second, first)
    shared.ssh("one")
    shared.ssh("two")


def test_a_program_that_comes_to_listen_on_a_published_port_is_told_of(shared: Instance) -> None:
    """It gets no error, and no connection: nothing holds the port."""
    shared.declare("container", web='publish = ["127.0.0.1:18099:80"]')
    shared.up("--no-start")
    words = "tcp port 18099 of the host leads here, though "
    assert words not in shared.hutch("plan").stdout
    with socket.create_server(("127.0.0.1", 18099)) as late:
        assert words in shared.hutch("plan").stdout
        assert words in shared.hutch("up", "--no-start").stderr
        assert any(words in warning for warning in shared.status("web")["warnings"])
        findings = json.loads(shared.hutch("doctor", "--json", check=False).stdout)
        (found,) = (finding for finding in findings if finding["name"] == "ports of web")
        assert words in found["means"]
        late.settimeout(1)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 18099), timeout=1):
            late.accept()
