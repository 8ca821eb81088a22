"""What servers, their certificates and projects, and files may have wrong: a clear error, and nothing touched."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.host import residue
from tests.host.incus.conftest import Elsewhere, open_elsewhere
from tests.host.instance import Completed, Instance
from tests.support.incus_cluster import MEMBERS, POOL, REMOTE, Cluster
from tests.support.world import World, WorldError

pytestmark = pytest.mark.slow

FAR = {"not_before": "20200101000000Z", "not_after": "20210101000000Z"}
CLIENT = """#!{python}
import json, os, subprocess, sys
path = sys.argv[-1].partition(":")[2]
if "query" not in sys.argv or not path.startswith("/1.0"):
    os.execv({real!r}, ["incus", *sys.argv[1:]])
ended = subprocess.run([{real!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
answer = json.loads(ended.stdout)
metadata = answer.get("metadata")
{lie}
print(json.dumps(answer))
sys.exit(ended.returncode)
"""
"""A client whose answers a `lie` changes; it stands where the real one is, since hutch looks for it nowhere else."""
WRONG_FILE = 2
FAILED = 1


@pytest.fixture(scope="module")
def wary(world: World, images: Path, cluster: Cluster) -> Iterator[Elsewhere]:
    """A hutch that declares `web`, and never gets to make it."""
    with open_elsewhere(world, images, cluster, "wary") as instance:
        yield instance


def write(hutch: Elsewhere, body: str = "", **keys: str) -> None:
    """A file with these keys in [engines.incus], the others as they are in all tests."""
    table = {"remote": REMOTE, "project": hutch.project, "target": "auto", "subnet": hutch.there, **keys}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    body = body or '[workspaces.web]\ntype = "container"\nengine = "incus"\n'
    Instance.write(hutch, f"[engines.incus]\n{lines}{body}")


def look(hutch: Elsewhere, cluster: Cluster) -> Any:
    """All that an `up` could change here and there, but for the cache, which is the tests' own."""
    state = {
        str(path.relative_to(hutch.state)): path.read_bytes() if path.is_file() else b""
        for path in hutch.state.rglob("*")
        if "images" not in path.parts and not path.name.endswith("lock")
    }
    return state, cluster.remains(), residue.observe()


@contextmanager
def untouched(hutch: Elsewhere, cluster: Cluster) -> Iterator[None]:
    """Nothing changes meanwhile, and the plan of a good file is then what it was."""
    before = look(hutch, cluster)
    yield
    after = look(hutch, cluster)
    assert after[:2] == before[:2]
    assert not residue.differences(before[2])


def refused(hutch: Elsewhere, *words: str, code: int = FAILED, env: Mapping[str, str] | None = None) -> Completed:
    """`up` and `plan` are refused with these words, in characters that a terminal can be shown."""
    results = []
    for command in ("plan", "up"):
        result = hutch.hutch(command, check=False, env=env, timeout=100)
        assert result.returncode == code, result.stderr
        for word in words:
            assert word in result.stderr, result.stderr
        assert all(c.isprintable() or c == "\n" for c in result.stderr), ascii(result.stderr)
        results.append(result)
    return results[-1]


def line_of(hutch: Elsewhere, beginning: str) -> str:
    """ "FILE:LINE" of the line that begins so."""
    lines = list(enumerate(hutch.file.read_text().splitlines(), 1))
    table = next(n for n, line in lines if line == "[engines.incus]")
    return f"{hutch.file}:{next(n for n, line in lines if n > table and line.startswith(beginning))}"


# The file is at fault: it is named with line and key.


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("remote", "nowhere", "knows no remote nowhere"),
        ("target", "m9", "m1, m2, m3"),
        ("target", "@nobody", "no such group"),
        ("subnet", "10.99.0.0/16", "overlaps"),
        ("project", "default", "not hutch's"),
    ],
)
def test_what_the_file_says_is_not_there(wary: Elsewhere, cluster: Cluster, key: str, value: str, word: str) -> None:
    write(wary, **{key: value})
    with untouched(wary, cluster):
        refused(wary, word, line_of(wary, key), f"engines.incus.{key}", code=WRONG_FILE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("remote", value) for value in ("-x", "--help", "a b", "lab:", "../x", "lab\nx", "", "lab;reboot")),
        *(("project", value) for value in ("-x", "a/b", "a?b", "..", "x" * 64)),
        *(("target", value) for value in ("-x", "@", "@-x", "a&project=default")),
        *(("subnet", value) for value in ("10.0.0.0/8", "10.83.0.1/16", "8.8.0.0/16", "-x", "10.83.0.0/30")),
    ],
)
def test_values_that_could_be_options_or_paths(wary: Elsewhere, cluster: Cluster, key: str, value: str) -> None:
    write(wary, **{key: value})
    refused(wary, f"{wary.file}:", f"engines.incus.{key}", code=WRONG_FILE)


def test_names_that_incus_refuses(wary: Elsewhere) -> None:
    write(wary, '[workspaces.42]\ntype = "container"\nengine = "incus"\n')
    refused(wary, line_of(wary, "[workspaces.42"), "workspaces.42", "number", code=WRONG_FILE)


# Trust.


@dataclass(frozen=True)
class Conf:
    """A configuration of the client that a test may spoil, a copy of root's."""

    directory: Path

    @property
    def env(self) -> dict[str, str]:
        return {"INCUS_CONF": str(self.directory)}

    def certify(self, name: str, *, expired: bool = False) -> None:
        """Put another certificate in the place of NAME.crt, with its key in NAME.key."""
        crt, key = (str(self.directory / f"{name}.{end}") for end in ("crt", "key"))
        dates = ["-not_before", FAR["not_before"], "-not_after", FAR["not_after"]] if expired else []
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *dates]
        subject = ["-subj", "/CN=m1", "-addext", "subjectAltName=DNS:m1,IP:127.0.0.1"]
        subprocess.run([*command, *subject, "-keyout", key, "-out", crt], check=True, capture_output=True, timeout=30)


@pytest.fixture
def conf(world: World, wary: Elsewhere, tmp_path: Path) -> Conf:
    write(wary)
    home = Path(world.accounts["root"].environment()["HOME"])
    shutil.copytree(home / ".config/incus", tmp_path / "conf")
    return Conf(tmp_path / "conf")


@contextmanager
def server(*argv: str) -> Iterator[int]:
    """A program that listens on a port of the loopback, which is its last argument."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*argv, str(port)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    """Whether somebody takes a connection at a port of the loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def at(conf: Conf, port: int) -> None:
    """Make the remote one that is at a port of the loopback."""
    file = conf.directory / "config.yml"
    lines = file.read_text().splitlines()
    here = next(n for n, line in enumerate(lines) if line.strip().startswith("addr: https://10.99."))
    lines[here] = f"    addr: https://127.0.0.1:{port}"
    file.write_text("\n".join(lines) + "\n")


def test_a_client_that_the_server_does_not_trust(wary: Elsewhere, cluster: Cluster, conf: Conf) -> None:
    conf.certify("client")
    with untouched(wary, cluster):
        refused(wary, "does not trust this client", "incus config trust add", env=conf.env)


def test_a_server_whose_certificate_is_another_one(wary: Elsewhere, cluster: Cluster, conf: Conf) -> None:
    conf.certify(f"servercerts/{REMOTE}")
    with untouched(wary, cluster):
        refused(wary, "shows another certificate than when it was added", "incus remote remove", env=conf.env)


def test_a_certificate_that_has_expired(wary: Elsewhere, cluster: Cluster, conf: Conf) -> None:
    conf.certify(f"servercerts/{REMOTE}", expired=True)
    own = [str(conf.directory / f"servercerts/{REMOTE}.{end}") for end in ("crt", "key")]
    serve = ["openssl", "s_server", "-quiet", "-cert", own[0], "-key", own[1], "-accept"]
    with server(*serve) as port, untouched(wary, cluster):
        at(conf, port)
        refused(wary, "has expired", env=conf.env)


def test_a_server_that_says_nothing(wary: Elsewhere, cluster: Cluster, conf: Conf) -> None:
    listen = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    with server(sys.executable, "-c", listen) as port, untouched(wary, cluster):
        at(conf, port)
        refused(wary, f"no answer from the remote {REMOTE}", env=conf.env)


def test_a_client_without_a_configuration(wary: Elsewhere, cluster: Cluster, tmp_path: Path) -> None:
    write(wary)
    with untouched(wary, cluster):
        refused(wary, f"knows no remote {REMOTE}", code=WRONG_FILE, env={"INCUS_CONF": str(tmp_path / "none")})


# The server is not what it should be, or lies.


@contextmanager
def lying(tmp_path: Path, lie: str) -> Iterator[None]:
    """A server whose answers are changed on their way."""
    real, fake, there = tmp_path / "real", tmp_path / "fake", shutil.which("incus")
    assert there is not None
    shutil.copy(there, real)
    fake.write_text(CLIENT.format(python=sys.executable, real=str(real), lie=lie))
    fake.chmod(0o755)
    subprocess.run(["mount", "--bind", fake, there], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", there], check=True, timeout=10)


ESCAPES = r"x\x1b[2J\x1b]0;owned\x07\n../../etc\ud800"
LIES = {
    "too old": ("if path == '/1.0': metadata['environment']['server_version'] = '5.20'", ("version 5.20", "6.0")),
    "no Incus": ("if path == '/1.0': metadata['environment']['server'] = 'lxd'", ("it is lxd, not Incus",)),
    "an extension missing": (
        "if path == '/1.0': metadata['api_extensions'].remove('network_acl')",
        ("no API extension network_acl",),
    ),
    "another machine": (
        "if 'cluster/members' in path:\n for each in metadata: each['architecture'] = 'riscv64'",
        ("it runs riscv64",),
    ),
    "no member takes workspaces": (
        "if 'cluster/members' in path:\n for each in metadata: each['config'] = {'scheduler.instance': 'manual'}",
        ("takes new workspaces",),
    ),
    "hostile names of members": (
        f"if 'cluster/members' in path:\n for each in metadata: each['server_name'] = '{ESCAPES}'",
        ("name hutch cannot use",),
    ),
    "hostile texts": (f"answer = {{'type': 'error', 'error_code': 500, 'error': '{ESCAPES}'}}", ("refuses: x",)),
    "other shapes": ("answer['metadata'] = [[[1]]]", ("does not understand",)),
    "no JSON": ("print('<html>'); sys.exit()", ("not Incus's",)),
    "an answer without end": ("while True: print('x' * 65536)", ("said more than",)),
    "no answer": ("import time; time.sleep(1000)", ("did not end within",)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_cannot_be_used(wary: Elsewhere, cluster: Cluster, tmp_path: Path, lie: str) -> None:
    write(wary)
    script, words = LIES[lie]
    with untouched(wary, cluster), lying(tmp_path, script):
        refused(wary, *words)


# The project and what is in it.


@contextmanager
def project(hutch: Elsewhere, cluster: Cluster, **config: str) -> Iterator[None]:
    """An administrator's project of the name that the file has."""
    words = [word for key, value in config.items() for word in ("-c", f"{key.replace('__', '.')}={value}")]
    cluster.incus("project", "create", hutch.project, "-c", "features.networks=false", *words)
    try:
        yield
    finally:
        cluster.incus("project", "delete", "--force", hutch.project, stdin="yes\n")


TWO = "".join(f'[workspaces.{name}]\ntype = "container"\nengine = "incus"\nmemory = "1G"\n' for name in ("web", "lab"))
NARROW: dict[str, tuple[dict[str, str], str]] = {
    "too few instances": ({"limits__instances": "1"}, "limits.instances is 1"),
    "too few containers": ({"limits__containers": "0"}, "limits.containers is 0"),
    "too little memory": ({"limits__memory": "1536MiB"}, "limits.memory"),
    "no size of disks": ({"limits__disk": "10GiB"}, "needs `disk`"),
    "no target": ({"restricted": "true"}, "restricted.cluster.target"),
    "no network": (
        {"restricted": "true", "restricted__cluster__target": "allow", "restricted__devices__nic": "block"},
        "restricted.devices.nic",
    ),
}


@pytest.mark.parametrize("narrow", NARROW)
def test_a_project_that_has_no_room(wary: Elsewhere, cluster: Cluster, narrow: str) -> None:
    write(wary, TWO)
    config, word = NARROW[narrow]
    with project(wary, cluster, **config), untouched(wary, cluster):
        refused(wary, word)


def test_a_project_of_somebody_else(wary: Elsewhere, cluster: Cluster) -> None:
    write(wary)
    with project(wary, cluster):
        cluster.incus("profile", "create", "theirs", "--project", wary.project)
        with untouched(wary, cluster):
            refused(wary, "is not hutch's", "theirs", line_of(wary, "project"), code=WRONG_FILE)


def test_a_network_of_our_name(wary: Elsewhere, cluster: Cluster) -> None:
    write(wary)
    name = "hutch" + hashlib.sha256(wary.project.encode()).hexdigest()[:10]
    for member in MEMBERS:
        cluster.incus("network", "create", name, "--target", member)
    cluster.incus("network", "create", name, "ipv4.address=none", "ipv6.address=none")
    try:
        with untouched(wary, cluster):
            refused(wary, f"a network {name} that is not hutch's")
    finally:
        cluster.incus("network", "delete", name)


def test_a_volume_of_our_name(wary: Elsewhere, cluster: Cluster) -> None:
    write(wary)
    with project(wary, cluster, user__hutch__id="another"):
        cluster.incus("storage", "volume", "create", POOL, "home-web", "--target", "m2", "--project", wary.project)
        with untouched(wary, cluster):
            refused(wary, "the volume home-web", "is not the home of this workspace")


# Members.


def test_the_files_of_a_root_that_has_been_replaced_are_still_served(hutch: Elsewhere, cluster: Cluster) -> None:
    """As when a start was cut short right before its end, and comes again: they are not written into the old root."""
    hutch.declare(a1="")
    hutch.up()
    hutch.hutch("stop", "a1")
    rising = hutch.spawn("start", "a1", stderr=subprocess.PIPE, text=True)
    words = ("file", "push", "--project", hutch.project, "--create-dirs", "-", "a1/etc/hutch/credentials/other")
    failure = ""
    while "file does not exist" not in failure:  # so the old root was served when it was replaced
        assert rising.poll() is None, "the start was sooner than the server's end"
        try:
            cluster.incus(*words, stdin="x")
        except WorldError as error:
            failure = str(error)
        time.sleep(0.2)
    _, said = rising.communicate(timeout=200)
    assert rising.returncode == 0, said
    assert hutch.ssh("a1", "hostname").stdout == "a1\n"


def test_a_member_is_evacuated_in_the_middle(hutch: Elsewhere, cluster: Cluster) -> None:
    """Whatever becomes of that `up`, the next one has all of them running, once each."""
    names = ("a1", "a2", "a3")
    hutch.declare(**dict.fromkeys(names, ""))
    rising = hutch.spawn("up", stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 100
        while not cluster.ask("/1.0/instances?all-projects=true"):
            assert rising.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        cluster.incus("cluster", "evacuate", "m2", "--force", timeout=120)
        _, said = rising.communicate(timeout=200)
        assert "Traceback" not in said
        hutch.hutch("up", check=False)
        assert "m2" not in {each["location"] for each in cluster.instances(hutch.project).values() if runs(each)}
    finally:
        cluster.incus("cluster", "restore", "m2", "--force", timeout=120)
    hutch.up()
    assert {name: runs(each) for name, each in cluster.instances(hutch.project).items()} == dict.fromkeys(names, True)
    for name in names:
        assert hutch.ssh(name, "hostname").stdout == f"{name}\n"
    assert {each["action"] for each in hutch.plan().values()} == {"no change"}


def runs(instance: Mapping[str, Any]) -> bool:
    return bool(instance["status"] == "Running")
