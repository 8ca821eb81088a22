"""The entry point of members: its commands and options, and when `hutch` goes through it."""

from __future__ import annotations

import os
from collections.abc import Callable
from subprocess import CompletedProcess
from types import SimpleNamespace

import click
import pytest

from hutch import run
from hutch.cli import COMMANDS, cli
from hutch.cli.common import FOR_ALL, MEMBERS, Options, by_entry, command_of, mean_the_hosts, show_commands
from hutch.cli.member import COMMANDS as THEIRS
from hutch.errors import HutchError, UsageError
from hutch.run import CommandFailed
from hutch.spec import member
from hutch.spec.member import ENTRY, Member
from tests.unit.cli.conftest import Run


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with the entry point, whose caller is a member."""
    for name in ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR", "HUTCH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(member, "has_entry", lambda: True)
    monkeypatch.setattr(member, "member_of", lambda uid: Member(uid, uid, "carol", None))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in ("sudo", "pkexec") else None)
    monkeypatch.setattr("hutch.host.doctor.entry.run", willing("/usr/bin/sudo", "/usr/bin/pkexec"))


def willing(*programs: str) -> Callable[[list[str]], None]:
    """Of the programs that are asked, these start the entry point without a question."""

    def asked(argv: list[str]) -> None:
        assert ENTRY in argv
        if argv[0] not in programs:
            raise CommandFailed(argv, "failed with code 1", "a password is required", 1)

    return asked


def test_each_option_of_theirs_is_one_of_the_command() -> None:
    context = click.Context(cli)
    for name, options in MEMBERS.items():
        command = cli.get_command(context, name)
        assert command is not None
        known = {parameter.name for parameter in command.params}
        assert options | FOR_ALL <= known, name


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - MEMBERS.keys()))
def test_other_commands_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not for members of the group hutch"):
        THEIRS.get_command(click.Context(THEIRS), name)


def test_an_option_that_is_not_theirs_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.cli.member.MEMBERS", {"rm": frozenset()})
    command = THEIRS.get_command(click.Context(THEIRS), "rm")
    assert command is not None
    with pytest.raises(UsageError, match="--purge is not for members"):
        command.make_context("rm", ["--purge", "web"])
    assert command.make_context("rm", ["web"]).params["names"] == ("web",)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["up"], "up"),
        (["-q", "-f", "start", "up", "web"], "up"),
        (["--file", "x", "-v", "rm"], "rm"),
        (["--file=x", "rm"], "rm"),
        (["-f"], ""),
        ([], ""),
    ],
)
def test_the_command_among_words(words: list[str], command: str) -> None:
    assert command_of(words) == command


@pytest.mark.usefixtures("host")
def test_a_member_s_command_goes_through_it_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_entry(["-q", "up", "web"]) == ["/usr/bin/sudo", "-n", "--", ENTRY, "-q", "up", "web"]
    monkeypatch.setenv("HUTCH_FILE", "/srv/hutch.toml")
    assert by_entry(["up"]) == ["/usr/bin/sudo", "-n", "--", ENTRY, "--file", "/srv/hutch.toml", "up"]
    monkeypatch.setattr("hutch.host.doctor.entry.run", willing("/usr/bin/pkexec"))  # sudo's rule is not there
    program = ["/usr/bin/pkexec", "--disable-internal-agent", "--keep-cwd", ENTRY]
    assert by_entry(["stop", "web"]) == [*program, "--file", "/srv/hutch.toml", "stop", "web"]


def test_root_s_commands_are_shown_to_no_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "listener", before := run.listener)
    with monkeypatch.context() as theirs:
        theirs.setattr(member, "acting", Member(1002, 1002, "carol", None))
        show_commands()
        assert run.listener is before
    show_commands()
    assert run.listener is not before


@pytest.mark.usefixtures("host")
def test_all_else_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_entry(["uninstall"]) == []
    with monkeypatch.context() as other:
        other.setattr(member, "has_entry", lambda: False)
        assert by_entry(["up"]) == []
    with monkeypatch.context() as other:
        other.setattr(member, "member_of", lambda uid: None)
        assert by_entry(["up"]) == []
    with monkeypatch.context() as other:
        other.setattr("shutil.which", lambda name: None)
        assert by_entry(["up"]) == []
    with monkeypatch.context() as other:
        other.setattr("hutch.host.doctor.entry.run", willing())
        assert by_entry(["up"]) == []


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("is_member", [True, False])
def test_a_member_s_environment_names_no_other_hutch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_member: bool
) -> None:
    monkeypatch.setenv("HUTCH_STATE_DIR", "/srv/hutch")
    if not is_member:
        monkeypatch.setattr(member, "member_of", lambda uid: None)
    mean_the_hosts(Options())
    assert ("HUTCH_STATE_DIR" in os.environ) is not is_member
    assert capsys.readouterr().err.startswith("hutch: HUTCH_STATE_DIR is for root's hutches") is is_member


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("words", [["events"], ["logs", "web"], ["egress", "web"], ["ls"]])
def test_each_command_of_theirs_means_the_host_s(
    hutch: Run, monkeypatch: pytest.MonkeyPatch, not_root: None, words: list[str]
) -> None:
    def look() -> None:
        raise HutchError(f"looks in {os.environ.get('HUTCH_STATE_DIR', 'the host')}")

    monkeypatch.setenv("HUTCH_STATE_DIR", "/srv/hutch")
    monkeypatch.setattr("hutch.spec.names.Layout.from_environment", look)
    assert hutch(*words).err.splitlines()[-1] == "hutch: looks in the host"


@pytest.mark.usefixtures("host", "not_root")
@pytest.mark.parametrize("page", ["the page\n", ""])
def test_a_report_is_root_s_or_else_the_caller_s_own(hutch: Run, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Root is told a time with its zone: it does not know that of the caller, whose environment it does not have."""
    own = SimpleNamespace(record=lambda name: SimpleNamespace(is_of=lambda uid: True))
    own.report = lambda name, begin, **how: SimpleNamespace(to_json=lambda: "their own", damages=())
    monkeypatch.setattr("hutch.cli.report.Hutch", lambda **how: own)
    told = ["report", "web", "--format", "json", "--since", "2026-07-01T07:30:00.000Z", "--verify", "-q"]

    def as_root(argv: list[str], **how: object) -> CompletedProcess[str]:
        assert argv == ["/usr/bin/sudo", "-n", "--", ENTRY, *told]
        return CompletedProcess(argv, 1, page, "hutch: what is wrong\n")

    monkeypatch.setattr("hutch.run.run", as_root)
    ended = hutch("report", "--verify", "--since=2026-07-01 09:30+02:00", "-q", "web", "--format", "json")
    assert (ended.code, ended.out) == ((1, page) if page else (0, '"their own"\n'))
    assert ended.err == "hutch: what is wrong\n"
