"""The way that a command takes into a workspace."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.access import inside, remote
from hutch.access.remote import RemoteTarget
from hutch.access.remote_script import Command
from hutch.host.identity.ssh import Peer
from hutch.spec.record import Record
from tests.unit.facts import LAYOUT, workspace

PEER = Peer("web", "", "dev", proxy="/bin/sh /var/lib/hutch/ssh-proxy web lab hutch 1000 /conf")


@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("root", [False, True])
def test_a_workspace_elsewhere_is_reached_by_its_peer_and_not_looked_for_here(
    uid: int, root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[RemoteTarget, Command, bool]] = []

    def run_remotely(target: RemoteTarget, command: Command, *, root: bool, **options: Any) -> int:
        ran.append((target, command, root))
        return 7

    def observe(*arguments: Any) -> None:
        raise AssertionError("looked for here")

    monkeypatch.setattr(remote, "run_remotely", run_remotely)
    monkeypatch.setattr(inside, "observe", observe)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    wanted = workspace(engine="incus", home=None, env=(("A", "b"),))
    record = Record("web", "/srv/hutch.toml", wanted, "i" * 12, 0, "0" * 32)
    assert inside.run_inside(LAYOUT, record, ["id"], root=root, env={"C": "d"}, cwd="work", peer=PEER) == 7
    [(target, command, as_root)] = ran
    assert (target.peer, target.leader, target.by_own_key, as_root) == (PEER, None, uid != 0, root)
    home = "/root" if root else "/home/dev"
    assert (command.home, command.cwd) == (home, f"{home}/work")
    assert (command.environment["A"], command.environment["C"]) == ("b", "d")
