"""`hutch cp`, put and get: what arrives, for whom, and what a hostile workspace gets done on the host: nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hutch
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World


@pytest.fixture(scope="module")
def two(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web="", other="")
        instance.up()
        yield instance


@pytest.fixture
def web(two: Instance) -> Iterator[hutch.Workspace]:
    """With an empty home, and a tar that is nobody else's."""
    web = hutch.Workspace("web", hutch.Hutch(Layout(two.state, two.run)))
    yield web
    web.run(["sh", "-c", "rm -rf /usr/local/bin/tar /home/dev/* /home/dev/.hutch-*"], root=True, check=True)


def make_tree(top: Path) -> Path:
    """What a checkout may hold: private and executable files, links, odd names."""
    (top / "src" / "empty").mkdir(parents=True)
    (top / "src" / "tool").write_text("#!/bin/sh\necho tool\n")
    (top / "src" / "tool").chmod(0o755)
    (top / "secret").write_text("secret\n")
    (top / "secret").chmod(0o600)
    (top / "src" / "up").symlink_to("../secret")
    (top / " -odd\n$(name)ü").write_bytes(bytes(range(256)))
    (top / ("n" * 200)).write_text("long")
    os.utime(top / "secret", (1_000_000_000, 1_000_000_000))
    return top


def look(top: Path) -> dict[str, tuple[int, object]]:
    """Modes and content of all that is below a directory."""
    found: dict[str, tuple[int, object]] = {}
    for path in sorted(top.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = mode, content
    return found


@pytest.mark.vm(slow=True)
def test_a_tree_goes_in_and_comes_back(web: hutch.Workspace, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "top")
    assert web.put(top, "work") == hutch.Copied(4, 20 + 7 + 256 + 4, ())
    told = web.run(["sh", "-c", "work/src/tool; cat work/src/up; stat -c '%U %a' work/secret"], capture=True, text=True)
    assert told.stdout == "tool\nsecret\ndev 600\n"
    copied = web.get("work", tmp_path / "back")
    assert (copied.files, copied.left_out) == (4, ())
    assert look(tmp_path / "back") == look(top)
    assert (tmp_path / "back" / "secret").stat().st_mtime == 1_000_000_000
    assert {path.lstat().st_uid for path in (tmp_path / "back").rglob("*")} == {os.geteuid()}


def test_a_directory_becomes_its_target_or_is_added_to_it(web: hutch.Workspace, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "top")
    for _ in range(2):  # the second time it is there
        web.put(top, "work")
    (top / "more").write_text("more")
    web.put(top, "work", into=True)
    assert (
        web.run(["sh", "-c", "find work -mindepth 1 -maxdepth 1 -printf x; cat work/top/more"], capture=True).stdout
        == b"xxxxxmore"
    )
    back = tmp_path / "back"
    back.mkdir()
    (back / "kept").write_text("kept")
    (back / "secret").write_text("old")
    web.get("work/top", back)
    assert ((back / "kept").read_text(), (back / "secret").read_text()) == ("kept", "secret\n")
    web.get("work/top", back, into=True)
    assert look(back / "top") == look(top)


def test_files_and_names(web: hutch.Workspace, tmp_path: Path) -> None:
    (tmp_path / "-x").write_text("x")
    web.put(tmp_path / "-x", "-y")
    web.put(tmp_path / "-x", "~/")
    web.put(tmp_path / "-x", "/tmp/a b\nc")
    assert web.run(["cat", "--", "-y", "-x", "/tmp/a b\nc"], capture=True).stdout == b"xxx"
    web.get("-y", tmp_path / "y")
    web.get("~/-y", tmp_path)
    web.get("/tmp/a b\nc", f"{tmp_path}/")
    assert {path.name for path in tmp_path.iterdir()} == {"-x", "y", "-y", "a b\nc"}
    web.run(["ln", "-s", "--", "-y", "link"], check=True)
    web.get("link", tmp_path / "followed")
    assert (tmp_path / "followed").read_text() == "x" and not (tmp_path / "followed").is_symlink()


def test_what_cannot_be_copied(web: hutch.Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken").mkdir()
    copies: list[Callable[[], object]] = [
        lambda: web.get("missing", tmp_path / "x"),
        lambda: web.get("missing/", tmp_path / "x"),
        lambda: web.get("/dev/null", tmp_path / "x"),
        lambda: web.get("/etc/shadow", tmp_path / "x"),
        lambda: web.get("/etc/hostname", tmp_path / "no" / "x"),
        lambda: web.get("/etc/hostname", f"{tmp_path}/no/"),
        lambda: web.get("/etc", tmp_path / "file"),
        lambda: web.get("", tmp_path / "x"),
        lambda: web.put(tmp_path / "no", "x"),
        lambda: web.put("/dev/null", "x"),
        lambda: web.put(tmp_path / "file", "/etc/x"),
        lambda: web.put(tmp_path / "file", "no/such/x"),
        lambda: web.put(tmp_path / "file", "no/"),
        lambda: web.put(tmp_path / "file", "a\0b"),
    ]
    for copy in copies:
        with pytest.raises(hutch.HutchError):
            copy()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "taken"}


def test_no_link_of_the_host_is_followed_into_a_workspace(web: hutch.Workspace, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "secret")
    web.put(tmp_path / "top", "top")
    assert web.run(["readlink", "top/link"], capture=True, text=True).stdout == f"{tmp_path}/secret\n"


def test_what_is_left_out(web: hutch.Workspace, tmp_path: Path) -> None:
    script = "mkdir t && cd t && mkfifo pipe && ln -s /etc/passwd abs && ln -s ../.. up && ln -s abs ok && touch file"
    web.run(["sh", "-c", script], check=True)
    copied = web.get("t", tmp_path / "t")
    assert copied.files == 1
    assert sorted(text.partition(":")[0] for text in copied.left_out) == ["'abs'", "'pipe'", "'up'"]
    assert set(look(tmp_path / "t")) == {"ok", "file"}


# A workspace that lies: its tar says what the test wants.


def answer_with(web: hutch.Workspace, script: str) -> None:
    program = f"#!/bin/sh\n{script}\n"
    web.run(["sh", "-c", "cat >/usr/local/bin/tar; chmod 755 /usr/local/bin/tar"], root=True, input=program, check=True)


def archive(*members: tuple[str, bytes, str, bytes]) -> str:
    """A script that prints an archive of (name, type, link, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, kind, link, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size, member.mode = kind, link, len(content), 0o7777
            made.addfile(member, io.BytesIO(content))
    return f"echo {base64.b64encode(file.getvalue()).decode()} | base64 -d"


DIR, FILE, LINK, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
TOP = (".", DIR, "", b"")
ENDLESS_ERRORS = "yes >&2"  # which only a deadline ends
HOSTILE = {
    "absolute": archive(TOP, ("/tmp/hutch-evil", FILE, "", b"evil")),
    "climbing": archive(TOP, ("../evil", FILE, "", b"evil")),
    "through a link": archive(TOP, ("a", LINK, "x", b""), ("a/evil", FILE, "", b"evil")),
    "over a link": archive(TOP, ("a", LINK, "../../evil", b""), ("a", LINK, "b", b""), ("a", FILE, "", b"evil")),
    "hard link": archive(TOP, ("a", HARD, "/etc/shadow", b"")),
    "one file, then another": archive(("a", FILE, "", b"x"), ("../evil", FILE, "", b"evil")),
    "noise": "head -c 100000 /dev/urandom",
    "nothing": "true",
    "failure": "exit 3",
    "endless": f"{archive(TOP)} | head -c 512; yes",
    "endless after the end": f"{archive(TOP)}; yes '' | tr '\\n' '\\000'",
    "endless errors": ENDLESS_ERRORS,
    "endless files": """python3 -c '
import sys, tarfile
sys.stdout.buffer.write(tarfile.TarInfo("./").tobuf()[:156] + b"5" + tarfile.TarInfo("./").tobuf()[157:])
while True: sys.stdout.buffer.write(tarfile.TarInfo("a").tobuf())'""",
}


@pytest.mark.parametrize("script", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_does_nothing(script: str, web: hutch.Workspace, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_text("kept")
    answer_with(web, script)
    for place in (target, target / "new"):
        with pytest.raises(hutch.HutchError):
            web.get(".", place, limit=10 << 20, timeout=2 if script == ENDLESS_ERRORS else 20)
    assert {path.name for path in tmp_path.iterdir()} == {"target"}
    assert look(target) == {"kept": (0o644, b"kept")}
    assert not Path("/tmp/hutch-evil").exists()


def test_a_file_that_takes_no_room_there(web: hutch.Workspace, tmp_path: Path) -> None:
    web.run(["truncate", "-s", "1T", "big"], check=True)
    begun = time.monotonic()
    with pytest.raises(hutch.HutchError, match="more than 1048576 bytes"):
        web.get("big", tmp_path / "big", limit=1 << 20)
    assert time.monotonic() - begun < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.vm(slow=True)
def test_a_workspace_that_does_not_answer(web: hutch.Workspace, tmp_path: Path) -> None:
    answer_with(web, "exec sleep 4317")
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    with pytest.raises(hutch.HutchError, match="did not end within 1 s"):
        web.get(".", tmp_path / "x", timeout=1)
    with pytest.raises(hutch.HutchError, match="did not end within 1 s"):
        web.put(tmp_path / "file", "x", timeout=1)

    async def main() -> None:
        later = hutch.aio.Workspace("web", web.hutch)
        for copy in (later.get(".", tmp_path / "x"), later.put(tmp_path / "file", "x")):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await copy

    asyncio.run(main())
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    assert web.run(["pgrep", "-f", "[s]leep 4317"], capture=True).stdout == b""


def test_an_answer_of_puts_is_not_believed(web: hutch.Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for script in ("yes", "echo directory; exit 3", "cat >/dev/null; exit 1"):
        answer_with(web, script)
        with pytest.raises(hutch.HutchError):
            web.put(tmp_path / "file", "x", timeout=20)


@pytest.mark.vm(slow=True)
def test_awaited_copies(web: hutch.Workspace, tmp_path: Path) -> None:
    top = make_tree(tmp_path / "top")
    later = hutch.aio.Workspace("web", web.hutch)

    async def main() -> None:
        await asyncio.gather(*(later.put(top, f"work{n}") for n in range(3)))
        await asyncio.gather(*(later.get(f"work{n}", tmp_path / f"back{n}") for n in range(3)))

    asyncio.run(main())
    assert all(look(tmp_path / f"back{n}") == look(top) for n in range(3))


# The command.


@pytest.mark.vm(slow=True)
@pytest.mark.parametrize("account", ["root", "alice"])
def test_cp(account: str, web: hutch.Workspace, two: Instance, tmp_path: Path) -> None:
    """Who is not root comes by ssh, whose login shell may be noisy."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    web.run(["sh", "-c", "sed -i '1i echo noise; echo noise >&2' .bashrc"], check=True)
    try:
        mine = make_tree(tmp_path / "mine")
        (mine / "secret").chmod(0o644)
        (tmp_path / "one").write_text("one")
        two.hutch("cp", str(mine), str(tmp_path / "one"), "web:", as_user=account)
        assert web.run(["sh", "-c", "cat one mine/src/up"], capture=True, text=True).stdout == "onesecret\n"
        (tmp_path / "down").mkdir()
        (tmp_path / "down").chmod(0o777)
        two.hutch("cp", "web:mine", "web:one", str(tmp_path / "down"), as_user=account)
        assert look(tmp_path / "down" / "mine") == look(mine)
        assert (tmp_path / "down" / "one").read_text() == "one"
        two.hutch("cp", "web:mine", str(tmp_path / "back"), as_user=account)
        assert look(tmp_path / "back") == look(mine)
        assert (tmp_path / "back").stat().st_uid == (0 if account == "root" else 1000)
        two.hutch("cp", "web:mine", "other:copy", as_user=account)
        assert two.inside("other", "sh", "-c", "cat copy/src/up; rm -r copy").stdout == "secret\n"
        web.run(["ln", "-s", "/etc/passwd", "mine/abs"], check=True)
        result = two.hutch("cp", "web:mine", str(tmp_path / "again"), as_user=account)
        assert (
            result.stderr
            == "hutch: warning: web: left out: 'abs': a link to '/etc/passwd', which lies outside of the copy\n"
        )
        refused = two.hutch(
            "cp", "--limit", "1K", "web:/usr/bin/env", str(tmp_path / "env"), as_user=account, check=False
        )
        assert refused.returncode == 1
        assert "web sends more than 1024 bytes" in refused.stderr
        missing = two.hutch("cp", "web:one", "web:mine", str(tmp_path / "missing"), as_user=account, check=False)
        assert missing.returncode == 1
    finally:
        web.run(["sed", "-i", "/noise/d", ".bashrc"], check=True)
