"""The ways into a workspace on an Incus server: ssh's files, and what is asked inside."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.access import git_work
from hutch.access.remote import RemoteTarget
from hutch.engines.incus import ways
from hutch.engines.incus.client import Client
from hutch.errors import HutchError
from hutch.host.identity import ssh
from hutch.host.identity.ssh import Peer
from hutch.run import CommandFailed, Completed
from hutch.spec.names import Layout
from hutch.spec.record import Booted, Place, Record, State
from tests.unit.facts import KEY, LAYOUT, check_golden, check_golden_case, workspace

PLACE = Place("lab", "hutch", "auto", "10.83.0.0/16", 1000, "/home/alice/.config/incus")
WANTED = workspace(engine="incus", ip="10.83.0.2", home=None, user="dev")
RECORD = Record("web", "/srv/hutch.toml", WANTED, "i" * 12, 0, "0" * 32, booted=Booted(WANTED, "i" * 12), place=PLACE)


class Guest:
    """A client whose guest gives these answers; `commands` are those that it was given."""

    def __init__(self, *answers: Completed | CommandFailed) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []
        self.client = Client(replace(PLACE, account=0), self.exchange)

    def exchange(self, commands: list[list[str]], **options: Any) -> list[Completed | CommandFailed]:
        [command] = commands
        self.commands.append(command)
        return [self.answers.pop(0)]


def said(text: str, code: int = 0, errors: str = "") -> Completed:
    return Completed(code, text.encode(), errors.encode())


SILENT = CommandFailed(["incus"], "did not end within 10 s", "", None)


# ssh.


def test_drop_in_and_known_hosts() -> None:
    local = Peer("lab", "192.168.83.3", "me", KEY)
    peers = (replace(ways.peer(LAYOUT, RECORD), host_key=f"{KEY} workspace-web"), local)
    check_golden("ssh/50-hutch-incus.conf", ssh.render_config(LAYOUT, peers, {"0": ("web", "lab")}).decode())
    check_golden("ssh/known_hosts-incus", ssh.render_known_hosts(peers).decode())


def test_arguments_of_our_own_ssh() -> None:
    peers = ways.peer(LAYOUT, RECORD), Peer("web", "192.168.83.2", "dev")
    rendered = (ssh.render_argv(LAYOUT, peer, "x", terminal=False, control="", is_first=True) for peer in peers)
    check_golden_case("ssh/argv-incus", *("".join(f"{word}\n" for word in argv) for argv in rendered))


def test_its_key_is_known_by_its_name_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    peers = (ways.peer(LAYOUT, RECORD), Peer("lab", "192.168.83.3", "me", KEY))
    layout.known_hosts.write_bytes(ssh.render_known_hosts(peers))
    assert ssh.published_names(layout) == {"workspace-web", "workspace-lab"}


def test_the_proxy_is_there_for_as_long_as_somebody_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(Layout, "ssh_config", property(lambda self: tmp_path / "50-hutch.conf"))
    local, distant = Peer("lab", "192.168.83.3", "me", KEY), ways.peer(layout, RECORD)
    for peers, is_there in (((local,), False), ((local, distant), True), ((local,), False), ((distant,), True)):
        ssh.ensure_trust(layout, peers, {})
        assert layout.ssh_proxy.exists() is is_there
        assert ssh.missing_trust(layout, peers, {}) == {}
    assert layout.ssh_proxy.read_bytes() == ways.PROXY.read_bytes()
    assert layout.ssh_proxy.stat().st_mode & 0o777 == 0o644  # everybody's ssh runs it
    layout.ssh_proxy.write_bytes(b"something else")
    assert ssh.missing_trust(layout, (distant,), {}) == {layout.ssh_proxy: distant.program}
    ssh.ensure_trust(layout, (), {})
    assert not layout.ssh_proxy.exists()


@pytest.mark.parametrize(
    ("conf", "rendered"),
    [
        ("/home/alice/.config/incus", "/home/alice/.config/incus"),
        ("/home/a b/c", "'/home/a b/c'"),
        ("/x;reboot #$(id)`id`", "'/x;reboot #$(id)`id`'"),
        ("/x/%h/100%", "'/x/%%h/100%%'"),
        ("/home/zoë", "'/home/zoë'"),
    ],
)
def test_no_word_of_a_record_becomes_more_than_a_word(conf: str, rendered: str) -> None:
    proxy = ways.peer(LAYOUT, replace(RECORD, place=replace(PLACE, conf=conf))).proxy
    assert proxy == f"/bin/sh /var/lib/hutch/ssh-proxy web lab hutch 1000 {rendered}"


@pytest.mark.parametrize("conf", ["/a\nHost *", "/it's", '/a"b', "/a\\", "/a!b", "/a\tb", "/\udc80", "/a\x1b[m"])
def test_a_word_that_shells_differ_about_is_refused(conf: str) -> None:
    with pytest.raises(HutchError, match="cannot be told"):
        ways.peer(LAYOUT, replace(RECORD, place=replace(PLACE, conf=conf)))


def test_sessions_share_a_connection_by_a_socket_in_a_directory_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    made = "/tmp/hutch-000000000000"
    for run, wanted in (Path("/tmp"), "/tmp/exec-000000000000"), (tmp_path / "gone", f"{made}/ssh"):
        with RemoteTarget(Layout(tmp_path, run), ways.peer(LAYOUT, RECORD)).socket("0" * 32) as path:
            assert path == wanted
            assert os.path.isdir(os.path.dirname(path))
    assert not os.path.exists(made)


# Looks inside.


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (said("0\n"), []),
        (said("1\n"), ["1 open ssh connection"]),
        (said("12\n"), ["12 open ssh connections"]),
        (said(""), ["it cannot be asked for its ssh connections: the answer makes no sense"]),
        (said("1\n", 1, "x\n\n"), ["it cannot be asked for its ssh connections: x"]),
        (said("-1"), ["it cannot be asked for its ssh connections: the answer makes no sense"]),
        (said("1\n2"), ["it cannot be asked for its ssh connections: the answer makes no sense"]),
        (said("9" * 9), ["it cannot be asked for its ssh connections: the answer makes no sense"]),
    ],
)
def test_sessions(answer: Completed, found: list[str]) -> None:
    guest = Guest(answer)
    assert ways.sessions(guest.client, RECORD) == found
    words = guest.commands[0]
    assert words[words.index("incus") :] == [
        *("incus", "exec", "lab:web", "--force-noninteractive", "--disable-stdin", "--"),
        *("/bin/sh", "-c", ways.COUNT, "sh", "dev"),
    ]


def test_who_does_not_answer_is_in_the_way() -> None:
    guest = Guest(SILENT, SILENT)
    sessions, work = ways.obstacles(guest.client, RECORD, "running")
    assert sessions.startswith("it cannot be asked for its ssh connections: no answer from the remote lab")
    assert work.startswith("cannot tell whether its home holds unsaved git work: no answer from the remote lab")


def test_the_look_runs_as_the_login_user_within_bounds() -> None:
    guest = Guest(said(""))
    assert ways.unsaved_git_work(guest.client, RECORD) == []
    words = guest.commands[0]
    at = words.index("--", words.index("incus"))
    assert words[words.index("incus") : at] == [
        *("incus", "exec", "lab:web", "--force-noninteractive", "--disable-stdin"),
        *("--user=1000", "--group=1000", "--cwd=/home/dev"),
    ]
    assert words[at + 1 : at + 6] == ["timeout", "-k", "1", "60", "find"]
    assert "core.hooksPath=/dev/null" in words[-4] and "core.fsmonitor=false" in words[-4]
    assert words[-3:] == ["sh", "{}", "+"]


def test_the_guests_word_only_adds() -> None:
    lines = ["noise", "hutch-unsaved ./a\x1b[31m: uncommitted changes", *(["hutch-unsaved ./b: x"] * 60)]
    guest = Guest(said("0"), said("\n".join(lines), 1, "bad\x1b[31m\n"))
    found = ways.obstacles(guest.client, RECORD, "running")
    assert found[0] == "./a\N{REPLACEMENT CHARACTER}[31m: uncommitted changes"
    assert found[git_work.MOST_SHOWN] == "11 more"
    assert (
        found[-1]
        == "the look for unsaved git work in its home has not come to its end: bad\N{REPLACEMENT CHARACTER}[31m"
    )
    assert len(found) == git_work.MOST_SHOWN + 2
    [late] = ways.unsaved_git_work(Guest(said("", 124)).client, RECORD)
    assert late.endswith("has not come to its end: it took more than 60 s")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("stopped", "while it is stopped: `hutch start web` first, or --force"),
        ("unreachable", "while it is unreachable: --force"),
        ("suspended", "while it is suspended: --force"),
        ("absent", "while there is no instance of it: `hutch up web` first, or --force"),
    ],
)
def test_nobody_looks_into_one_that_does_not_run(state: State, words: str) -> None:
    [found] = ways.obstacles(Guest().client, RECORD, state)
    assert words in found


def test_one_that_never_ran_has_nothing_to_lose_but_a_kept_home() -> None:
    fresh = replace(RECORD, booted=None)
    assert ways.obstacles(Guest().client, fresh, "absent") == []
    assert len(ways.obstacles(Guest().client, replace(fresh, removed=True), "absent")) == 1
