"""The line to a client's proxy, against programs that listen in its place and answer as they like; and its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from hutch.engines.incus.proxied import Proxy
from hutch.run import CommandFailed, Completed
from tests.host.processes import processes

LISTEN = """
import os, socket, sys, time
line = socket.socket(socket.AF_UNIX)
line.bind(sys.argv[1])
"""
SERVE = """
line.listen()
while True:
    talk, _ = line.accept()
    asked = talk.recv(65536)
"""
ANSWERS = SERVE + "    talk.sendall(b'heard ' + asked); talk.close()\n"
ENDLESS = SERVE + "    while True: talk.sendall(65536 * b'x')\n"
DRIPPING = SERVE + "    while True: talk.sendall(b'x'); time.sleep(0.01)\n"
SILENT = SERVE + "    time.sleep(60)\n"
HANGS_UP = SERVE + "    talk.close()\n"
ENDS = "sys.exit('Error: no way')\n"
ENDS_LATER = SERVE + "    sys.exit('Error: lost it')\n"
LEAVES_A_SLEEPER = """
if not os.fork():
    time.sleep(60)
    os._exit(0)
sys.exit("Error: no way")
"""
HANGS_UP_AND_SAYS_WHY = SERVE + "    talk.close(); print('Error: not now', file=sys.stderr, flush=True)\n"
ANOTHER = """
if not os.fork():
    line.listen()
    os._exit(len(line.accept()[0].recv(65536)))
print("heard", os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)
time.sleep(60)
"""
TIED = """
import sys, time
from hutch.engines.incus.proxied import Proxy
proxy = Proxy(lambda path: ["setpriv", "--pdeathsig=KILL", "--", *sys.argv[1:], path], 0)
proxy.ask(b"x", timeout=20, most=100)  # so it has got as far as to be tied
print(proxy._process.pid, flush=True)
time.sleep(60)
"""


@contextmanager
def proxy(program: str, uid: int = 0) -> Iterator[Proxy]:
    """A program that listens, in the place of the client."""
    user = [] if uid == 0 else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    with closing(Proxy(lambda path: [*user, sys.executable, "-Ic", LISTEN + program, path], uid)) as found:
        yield found


@pytest.mark.parametrize("uid", [0, 1000])
def test_what_is_said_and_heard(uid: int) -> None:
    with proxy(ANSWERS, uid) as line:
        for word in (b"one", b"two"):
            assert line.ask(word, timeout=20, most=100) == Completed(0, b"heard " + word, b"")


@pytest.mark.parametrize(
    ("program", "timeout", "reason"),
    [
        (ENDLESS, 20, "said more than 1000000 bytes"),  # its time has the start of a program in it
        (DRIPPING, 1, "did not answer within 1 s"),
        (SILENT, 1, "did not answer within 1 s"),
        ("time.sleep(60)", 1, "did not answer within 1 s"),
    ],
)
def test_who_never_comes_to_an_end_is_not_waited_for(program: str, timeout: float, reason: str) -> None:
    started = time.monotonic()
    with proxy(program) as line:
        result = line.ask(b"x", timeout=timeout, most=1_000_000)
    assert isinstance(result, CommandFailed) and result.reason == reason
    assert time.monotonic() - started < timeout + 20  # of the 60 s that two of them would take


def test_who_hangs_up_without_an_answer_has_said_nothing() -> None:
    with proxy(HANGS_UP) as line:
        result = line.ask(b"x", timeout=20, most=100)
    assert isinstance(result, CommandFailed) and (result.reason, result.stderr) == ("has hung up", "")


def test_who_hangs_up_and_goes_on_has_said_why() -> None:
    with proxy(HANGS_UP_AND_SAYS_WHY) as line:
        result = line.ask(b"x", timeout=20, most=100)
    assert isinstance(result, CommandFailed) and result.stderr == "Error: not now\n"


@pytest.mark.parametrize(("program", "says"), [(ENDS, b"Error: no way\n"), (ENDS_LATER, b"Error: lost it\n")])
def test_who_ends_has_said_why(program: str, says: bytes) -> None:
    with proxy(program) as line:
        assert line.ask(b"x", timeout=20, most=100) == Completed(1, b"", says)


def test_who_ends_is_not_waited_for_by_who_it_leaves_behind() -> None:
    started = time.monotonic()
    with proxy(LEAVES_A_SLEEPER) as line:
        assert line.ask(b"x", timeout=20, most=100) == Completed(1, b"", b"Error: no way\n")
    assert time.monotonic() - started < 20
    (left,) = [process for process in processes() if LISTEN + LEAVES_A_SLEEPER in process.command]
    descriptor = os.pidfd_open(left.pid)
    os.kill(left.pid, signal.SIGKILL)
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)


def test_nothing_is_said_to_another_process() -> None:
    """Who may change what its user's client is could otherwise have root speak to somebody else's socket."""
    with proxy(ANOTHER) as line:
        result = line.ask(b"secret", timeout=20, most=100)
    assert isinstance(result, CommandFailed) and (result.reason, result.stderr) == ("has hung up", "heard 0\n")


def test_nothing_is_left_of_it() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with proxy(ANSWERS) as line:
        line.ask(b"x", timeout=20, most=100)
        pid = line._process.pid
    assert not os.path.exists(f"/proc/{pid}")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_it_dies_with_hutch() -> None:
    command = [sys.executable, "-c", TIED, sys.executable, "-Ic", LISTEN + ANSWERS]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as hutch:
        assert hutch.stdout is not None
        listener = os.pidfd_open(int(hutch.stdout.readline()))
        hutch.send_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    assert poll.poll(20_000), "it goes on"
    os.close(listener)
