"""How the egress proxy and its keeper end, whichever ends first, and what the former may do until then."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys

import pytest

from hutch.egress.keeper import LARGEST_LOG
from hutch.seccomp.filters import OWN
from tests.host.egress import eventually

SECONDS = 60.0

PROGRAM = """
import os, signal, socket, sys
from pathlib import Path
from hutch.egress.keeper import Errors, Keeper, keep

class Sets:
    def forget_terms(self):
        pass

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
errors = Errors()
if proxy := os.fork():
    theirs.close()
    keep(Keeper(Sets(), Path("/nonexistent"), Path("/nonexistent")), ours, errors, proxy)
ours.close()
os.dup2(errors.far, 2)
os.close(errors.near)
theirs.send(b'["forget_terms"]')
theirs.recv(10)  # from now on, it is kept
exec(sys.argv[1])
os._exit(0)
"""


TELLS = """
near, wake = socket.socketpair()
signal.signal(signal.SIGTERM, lambda *_: near.send(b"x"))
os.kill(os.getppid(), signal.SIGTERM)
""".strip().replace("\n", "; ")
"""The proxy has its keeper told to end, and hears by `wake` that it is to end itself."""


@pytest.mark.parametrize(
    ("proxy", "code"),
    [
        pytest.param("", 0, id="it ends"),
        pytest.param("os._exit(3)", 1, id="it fails"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, id="it is killed"),
        pytest.param(f"{TELLS}; wake.recv(1)", 0, id="the keeper is told to end"),
        pytest.param(
            f"""{TELLS}; wake.recv(1); theirs.send(b'["forget_terms"]'); assert theirs.recv(9) == b"done" """,
            0,
            id="it is told to end, and has last words",
        ),
        pytest.param(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGTERM); theirs.recv(1)",
            1,
            id="it is told to end, and stays",
        ),
        pytest.param("""theirs.send(b'["_run", "flush ruleset"]'); theirs.recv(1)""", 1, id="it asks for more"),
        pytest.param("theirs.send(b'[' * 60000); theirs.recv(1)", 1, id="it asks for nonsense"),
        pytest.param("theirs.close(); signal.pause()", 1, id="it stays"),
        pytest.param("if not os.fork(): os.setsid(); theirs.recv(1)", 0, id="somebody holds what it had"),
    ],
)
def test_each_ends_with_the_other(proxy: str, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM, proxy]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, done.stderr
    assert ("a forbidden request" in done.stderr) is any(word in proxy for word in ("_run", "60000"))
    assert "Traceback" not in done.stderr


def test_what_the_proxy_says_of_its_errors_is_kept_within_bounds() -> None:
    said = "for _ in range(40): os.write(2, b'x' * 4096)"
    done = subprocess.run([sys.executable, "-c", PROGRAM, said], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "x" * LARGEST_LOG)
    crashed = subprocess.run([sys.executable, "-c", PROGRAM, "1 / 0"], capture_output=True, text=True, timeout=SECONDS)
    assert crashed.returncode == 1
    assert crashed.stderr.endswith("ZeroDivisionError: division by zero\n")


SENDS_AWAY = """
mine, (near, far) = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
os.write(2, str(mine.getsockname()[1]).encode())
socket.send_fds(near, [b"x"], [mine.fileno(), near.fileno(), far.fileno(), theirs.fileno()])
theirs.send(b'["_run", "flush ruleset"]')
signal.pause()
""".strip().replace("\n", "; ")


def is_free(port: int) -> bool:
    with socket.socket() as next_one:
        try:
            next_one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_a_port_that_the_proxy_sent_to_itself_is_free_after_its_end() -> None:
    """The kernel looks for such sockets when one of the Unix domain closes: the keeper has one, and closes it last."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, SENDS_AWAY], capture_output=True, text=True, timeout=SECONDS)
    port, _, why = done.stderr.partition("the egress proxy")
    assert done.returncode == 1 and "a forbidden request" in why
    assert eventually(lambda: is_free(int(port)), patience=SECONDS)


BEGINS = """
import errno, socket, sys
from hutch.egress import __main__ as program

held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("127.0.0.1", 5300))
program.PATIENCE = float(sys.argv[1])
program.time.sleep = lambda seconds: held.close()
try:
    log, sockets = program.sockets_for(("127.0.0.1", 5300))
    print(len(sockets), held.fileno())
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(("patience", "said"), [("60", "2 -1"), ("-1", "EADDRINUSE")], ids=("free soon", "held"))
def test_a_port_that_is_free_in_a_moment_is_waited_for(patience: str, said: str) -> None:
    command = ["unshare", "--net", sys.executable, "-c", BEGINS, patience]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (done.stdout.strip(), done.stderr) == (said, "")


TRIES = """
import ctypes, errno, os, socket, threading
from hutch.egress.keeper import Errors, begin_proxy

errors = Errors()
if proxy := begin_proxy((), errors):
    os.waitpid(proxy, 0)
    errors.relay()
    os._exit(0)

def call(number):
    library = ctypes.CDLL(None, use_errno=True)
    return library.syscall(number, 0x10000000) and errno.errorcode[ctypes.get_errno()]

def attempt(act):
    try:
        return act() and "done"
    except OSError as error:
        return errno.errorcode[error.errno]

made = socket.socket()
said = {kind: attempt(lambda: socket.socket(getattr(socket, kind))) for kind in ("AF_INET", "AF_NETLINK", "AF_VSOCK")}
said |= {"MPTCP": attempt(lambda: socket.socket(proto=262)), "fork": attempt(os.fork)}
said |= {"bind": attempt(lambda: made.bind(("127.0.0.1", 0)))}
said |= {"reuse": attempt(lambda: made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0))}
said |= {"nodelay": attempt(lambda: made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) or True)}
said |= {"exec": attempt(lambda: os.execv("/bin/true", ["true"])), "unshare": call(UNSHARE), "io_uring": call(425)}
os.write(2, repr(said).encode())
os._exit(0)
"""


def test_what_reads_questions_has_little_of_the_kernel() -> None:
    """Neither processes, nor namespaces, nor sockets of other kinds than its own."""
    only = "-all,+net_admin,+sys_admin"
    caps = (f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}", "--no-new-privs")
    program = TRIES.replace("UNSHARE", str(OWN[os.uname().machine]["unshare"]))
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    kinds = {"AF_NETLINK": "EAFNOSUPPORT", "AF_VSOCK": "EAFNOSUPPORT", "MPTCP": "EPROTONOSUPPORT", "reuse": "EPERM"}
    calls = dict.fromkeys(("bind", "exec", "unshare", "io_uring"), "ENOSYS")
    assert ast.literal_eval(done.stderr) == {"AF_INET": "done", "nodelay": "done", **kinds, **calls, "fork": "EAGAIN"}
