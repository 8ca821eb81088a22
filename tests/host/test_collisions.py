"""What a workspace runs with is not another one's, even when it is to have something else after its next restart."""

from __future__ import annotations

from tests.host.instance import Instance

TABLE = '[workspaces.{}]\ntype = "container"\nrestart_if_changed = false\nip = "{}"\n'


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
