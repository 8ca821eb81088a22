"""The port at which a machine calls: the host's own end, which takes no machine to try."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from hutch.runtime.hear import listen_to_vsock

UID = 0x7FFF_0001


def has_sockets() -> bool:
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_sockets(), reason="the kernel has no sockets of vsock")
def test_each_machine_is_told_a_port_of_its_own(tmp_path: Path) -> None:
    told = []
    with (
        closing(listen_to_vsock(f"{tmp_path}/cid", f"{tmp_path}/a", UID)) as first,
        closing(listen_to_vsock(f"{tmp_path}/cid", f"{tmp_path}/b", UID)) as second,
    ):
        for calls, name in ((first, "a"), (second, "b")):
            text = (tmp_path / name).read_text()
            assert text == f"vsock-stream:2:{calls._listener.getsockname()[1]}\n"
            assert ((tmp_path / name).stat().st_uid, (tmp_path / name).stat().st_mode & 0o777) == (UID, 0o600)
            assert not os.get_inheritable(calls._listener.fileno())
            told.append(text)
    assert told[0] != told[1]
