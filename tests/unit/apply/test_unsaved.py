"""What would be lost with a workspace."""

from __future__ import annotations

from hutch.apply.unsaved import count_vsock

LISTING = """\
v_str ESTAB 0      0       2:1077    77:22
v_str ESTAB 0      0       2:1078    77:22
v_str ESTAB 0      0       2:1079    77:23
v_str ESTAB 0      0       2:1080    7:22
v_str CONNECTING 0 0       2:1081    77:22
v_dgr UNCONN
"""


def test_connections_by_vsock() -> None:
    assert [count_vsock(LISTING, cid) for cid in ("77", "7", "22")] == [2, 1, 0]
    assert count_vsock("", "77") == 0
