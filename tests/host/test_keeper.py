"""How the egress proxy and its keeper end, whichever ends first, and however."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, socket, sys
from hutch.egress.keeper import keep

class Sets:
    def forget_terms(self):
        pass

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if proxy := os.fork():
    theirs.close()
    keep(Sets(), ours, proxy)
ours.close()
theirs.send(b'["forget_terms"]')
theirs.recv(10)  # from now on, it is kept
exec(sys.argv[1])
os._exit(0)
"""


@pytest.mark.parametrize(
    ("proxy", "code"),
    [
        pytest.param("", 0, id="it ends"),
        pytest.param("os._exit(3)", 1, id="it fails"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, id="it is killed"),
        pytest.param("os.kill(os.getppid(), signal.SIGTERM); theirs.recv(1)", 0, id="the keeper is told to end"),
        pytest.param("""theirs.send(b'["_run", "flush ruleset"]'); theirs.recv(1)""", 1, id="it asks for more"),
        pytest.param("theirs.send(b'[' * 60000); theirs.recv(1)", 1, id="it asks for nonsense"),
        pytest.param("theirs.close(); signal.pause()", 1, id="it stays"),
        pytest.param("if not os.fork(): os.setsid(); theirs.recv(1)", 0, id="somebody holds what it had"),
    ],
)
def test_each_ends_with_the_other(proxy: str, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM, proxy]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("may not have" in done.stderr) is ("send" in proxy)
    assert "Traceback" not in done.stderr
