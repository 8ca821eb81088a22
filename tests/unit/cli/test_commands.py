"""Which commands there are, how they are found, and what they say when they cannot go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, ShellComplete
from click.testing import CliRunner

from hutch.api.copying import Side
from hutch.api.result import Copied
from hutch.api.workspace import Workspace
from hutch.cli import COMMANDS, cli, main
from hutch.cli.common import Options
from hutch.cli.completing import PATCHES, existing_names, kit_names, render_completion
from hutch.cli.progress import Bar
from hutch.errors import ConfigError, HutchError, Problem
from hutch.host.doctor import tools
from hutch.images.progress import WAITING
from hutch.run import ProgramMissing
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.cli.conftest import Run
from tests.unit.facts import workspace

WITHOUT_ROOT = {
    "run",
    "aliases",
    "approvals",
    "doctor",
    "init",
    "kits",
    "trust",
    "ls",
    "status",
    "ssh",
    "exec",
    "cp",
    "diff",
    "fetch",
    "ports",
    "forward",
    "logs",
    "schema",
    "completion",
    "image",
    "egress",
    "report",
    "events",
    "explain",
    "plan",
}
ARGUMENTS = {
    "start": ["web"],
    "stop": ["web"],
    "restart": ["web"],
    "exec": ["web", "--", "true"],
    "logs": ["web"],
    "console": ["web"],
    "egress": ["web"],
    "allow": ["web", "a.example"],
    "deny": ["web", "a.example"],
    "rm": ["web"],
    "undelete": ["web"],
    "eject": ["web"],
    "snapshot": ["web"],
    "snapshots": ["web"],
    "restore": ["web", "monday"],
    "fork": ["web", "copy"],
    "move": ["web", "--engine=incus"],
}


def test_help_lists_every_command_without_importing_one() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)
    for _, _, text in COMMANDS.values():
        assert " ".join(text.split()[:3]) in " ".join(result.output.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: cli {name}")
    assert command.help


def test_a_former_name_says_what_it_is_now(hutch: Run) -> None:
    result = hutch("withdraw", "--help")
    assert (result.code, result.err) == (0, "hutch: `withdraw` is now called `uninstall`\n")
    assert result.out == hutch("uninstall", "--help").out
    assert "withdraw" not in hutch("--help").out


@pytest.mark.parametrize("name", ["ls", "build", "rm", "prune"])
def test_image_commands(name: str) -> None:
    assert CliRunner().invoke(cli, ["image", name, "--help"]).exit_code == 0


def test_version(hutch: Run) -> None:
    result = hutch("--version")
    assert (result.code, result.out) == (0, f"hutch {version('hutch')}\n")


def test_an_unknown_command_suggests_a_known_one(hutch: Run) -> None:
    result = hutch("stauts")
    assert (result.code, result.out) == (2, "")
    assert "No such command 'stauts'. Did you mean 'status'?" in result.err
    assert "Did you mean" not in hutch("xyzzy").err


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["ls", "--nonsense"], ["start"], ["exec", "web"], ["completion"]]
)
def test_a_wrong_command_line(arguments: list[str], hutch: Run) -> None:
    result = hutch(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err
    assert "Traceback" not in result.err


# Root.


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT_ROOT])
def test_what_needs_root_says_so_in_one_line(name: str, hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = hutch(name, *ARGUMENTS.get(name, []))
    assert (result.code, result.out, result.err) == (1, "", "hutch: this needs root: run it with sudo or doas\n")


def test_the_group_is_a_way_in_where_it_has_one(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("hutch.spec.member.has_entry", lambda: True)
    monkeypatch.setattr("hutch.spec.member.member_of", lambda uid: None)
    monkeypatch.setattr("sys.argv", ["hutch", "-q", "up"])
    assert "have root add you to the group hutch" in hutch("up").err
    monkeypatch.setattr("sys.argv", ["hutch", "uninstall"])
    assert "the group" not in hutch("uninstall").err


@pytest.mark.parametrize("tool", ["sudo", "doas", "run0"])
def test_on_a_terminal_it_asks(
    tool: str, hutch: Run, layout: Layout, replaced: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == tool else None)
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/hutch", "up", "--json"])
    assert hutch("up", "--json").err == f"hutch: this needs root, asking {tool}\n"
    kept = ["env", f"HUTCH_STATE_DIR={layout.state}", f"HUTCH_RUN_DIR={layout.run}"]
    assert replaced == [[tool, "--", *kept, "/usr/local/bin/hutch", "up", "--json"]]
    for variable in ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR"):
        monkeypatch.delenv(variable)
    hutch("up", "--json")
    assert replaced[1] == [tool, "--", "/usr/local/bin/hutch", "up", "--json"]


# init, schema, completion


def test_init(hutch: Run) -> None:
    result = hutch("init", "web")
    assert (result.code, result.out, result.err) == (0, "", "wrote hutch.toml; next: sudo hutch up\n")
    file = Path("hutch.toml")
    assert "[workspaces.web]" in file.read_text()
    assert file.stat().st_mode & 0o7777 == 0o644
    again = hutch("init", "other")
    assert (again.code, again.err) == (1, "hutch: hutch.toml is there already; it was left as it is\n")
    assert "[workspaces.web]" in file.read_text()


def test_init_takes_the_place_of_an_empty_placeholder_alone(hutch: Run) -> None:
    file = Path("hutch.toml")
    (file / "something").mkdir(parents=True)
    assert "hutch.toml is there already" in hutch("init").err
    (file / "something").rmdir()
    assert hutch("init").code == 0
    assert file.is_file()


def test_init_changes_the_mode_of_its_own_file_alone(
    hutch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory of somebody else's, another file may take its name at once."""
    secret = tmp_path / "secret"
    secret.touch(0o600)

    def write(descriptor: int, content: bytes) -> None:
        Path("hutch.toml").unlink()
        Path("hutch.toml").symlink_to(secret)

    monkeypatch.setattr("hutch.cli.declare.write_all", write)
    assert hutch("init").code == 0
    assert secret.stat().st_mode & 0o7777 == 0o600


def test_init_elsewhere_and_quietly(hutch: Run) -> None:
    assert hutch("-q", "-f", "a.toml", "init").err == ""
    assert hutch("init", "-q", "-f", "b.toml").err == ""
    assert Path("a.toml").read_text() == Path("b.toml").read_text()
    nowhere = hutch("init", "-f", "no/where.toml")
    assert (nowhere.code, nowhere.err) == (1, "hutch: no/where.toml cannot be written: No such file or directory\n")


@pytest.mark.parametrize("name", ["Web", "a.b", "-", "a" * 33, "a\nb"])
def test_init_with_a_wrong_name(name: str, hutch: Run) -> None:
    assert hutch("init", "--", name).code == 2
    assert os.listdir() == []


def test_schema(hutch: Run) -> None:
    result = hutch("schema")
    assert result.code == 0
    assert "workspaces" in json.loads(result.out)["properties"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BashComplete, "_check_version", lambda *_: None)  # it would run bash
    result = hutch("completion", shell)
    assert result.code == 0
    assert "_HUTCH_COMPLETE" in result.out


def completions(*words: str) -> list[str]:
    *before, last = words
    return [item.value for item in ShellComplete(cli, {}, "hutch", "_HUTCH_COMPLETE").get_completions(before, last)]


def test_words_are_completed(layout: Layout) -> None:
    for name in ("web", "lab"):
        layout.user_view(name).parent.mkdir(parents=True, exist_ok=True)
        layout.user_view(name).write_bytes(b"")
    assert completions("sta") == ["start", "status"]
    assert completions("start", "") == ["lab", "web"]
    assert completions("ssh", "w") == ["web"]
    assert completions("completion", "z") == ["zsh"]
    assert completions("start", "web", "--q") == ["--quiet"]
    assert completions("-f", "x") == ["x"]  # a file, which the shell looks for


def test_what_up_takes_is_completed_from_the_file(layout: Layout) -> None:
    Path("hutch.toml").write_text('[workspaces.one]\ntype = "vm"\n')
    Path("other.toml").write_text('[workspaces.two]\ntype = "vm"\n')
    assert completions("up", "") == ["one"]
    assert completions("image", "build", "") == ["one"]
    assert completions("up", "-f", "other.toml", "") == completions("-f", "other.toml", "up", "") == ["two"]
    Path("hutch.toml").write_text("[[[")
    assert completions("up", "") == []


def test_what_cp_takes_is_completed(layout: Layout) -> None:
    layout.user_view("web").parent.mkdir(parents=True)
    layout.user_view("web").write_bytes(b"")
    assert completions("cp", "") == ["", "web:"]  # files, and workspaces
    assert completions("cp", "a", "w") == ["w", "web:"]
    assert completions("cp", "./w") == ["./w"]
    for words in (["web:"], ["web:x"], ["a", "web:x"], ["web", ":"], ["web", ":", "x"], ["a", "web", ":", "x"]):
        assert completions("cp", *words) == []


def test_images_are_completed(layout: Layout) -> None:
    for name in ("0123", "0456", "kernels", ".new"):
        (layout.images / name).mkdir(parents=True)
    assert completions("image", "rm", "01") == ["0123"]
    assert completions("image", "rm", "") == ["0123", "0456"]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_scripts_are_click_s_but_for_the_space(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BashComplete, "_check_version", lambda *_: None)
    assert PATCHES[shell][1] in render_completion(shell)


@pytest.mark.parametrize("state", ["/nonexistent", "/srv/a b"])
def test_completion_never_fails(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUTCH_STATE_DIR", state)
    context = click.Context(cli)
    assert existing_names(context, click.Argument(["name"]), "") == []


def test_kits_are_completed() -> None:
    """Those that come along are everybody's."""
    assert {"claude", "codex"} <= set(kit_names(click.Context(cli), click.Option(["--with"]), "c"))
    assert kit_names(click.Context(cli), click.Option(["--with"]), "nod") == ["node"]


# Failures.


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr("hutch.api.Hutch.describe", fail)


def test_a_failure_is_told_whole(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(HutchError("it broke", details="line 1\nline\x1b[2J 2", resolution="mend it"), monkeypatch)
    result = hutch("ls")
    assert (result.code, result.out) == (1, "")
    assert result.err == "hutch: it broke\n  line 1\n  line\N{REPLACEMENT CHARACTER}[2J 2\n  → mend it\n"


def test_a_failure_without_more(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(HutchError("it broke"), monkeypatch)
    assert hutch("ls").err == "hutch: it broke\n"


def test_problems_of_a_file_can_be_clicked(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ConfigError([Problem("is wrong", key="a", file="/f", line=3)]), monkeypatch)
    result = hutch("ls")
    assert (result.code, result.err) == (2, "hutch: /f: 1 problem; nothing was changed\n/f:3: a: is wrong\n")


def test_interrupted(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(KeyboardInterrupt(), monkeypatch)
    result = hutch("ls")
    assert (result.code, result.err) == (130, "\nhutch: interrupted\n")


def test_a_bug_is_a_traceback(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["ls"])


def test_a_wrong_file_is_told_before_anything_is_done(hutch: Run, layout: Layout) -> None:
    Path("hutch.toml").write_text('[workspaces.web]\ntype = "qemu"\nimgae = "x"\n[workspaces.lab]\n')
    for command in ("plan", "up"):
        result = hutch(command)
        assert (result.code, result.out) == (2, "")
        first, *problems = result.err.splitlines()
        assert first.endswith("hutch.toml: 3 problems; nothing was changed")
        assert [line.split(":")[1] for line in problems] == ["2", "3", "4"]
    assert not layout.state.exists()
    assert not layout.run.exists()


def test_no_file(hutch: Run) -> None:
    result = hutch("plan")
    assert result.code == 2
    assert "hutch.toml" in result.err
    assert "-f ~/.config/hutch/run/NAME.toml" in result.err


@pytest.mark.parametrize("command", [["start"], ["stop"], ["restart"], ["explain"], ["logs"], ["console"], ["egress"]])
def test_an_unknown_workspace(command: list[str], hutch: Run) -> None:
    result = hutch(*command, "web")
    assert result.code == 2
    assert "there is no workspace web" in result.err
    assert hutch(*command, "../web").code == 2


def test_the_code_of_a_command_is_passed_on(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []

    def attach(workspace: Workspace, argv: tuple[str, ...], *, root: bool) -> int:
        assert workspace.name == "web"
        seen.append((list(argv), root))
        return 77

    monkeypatch.setattr(Workspace, "attach", attach)
    assert hutch("exec", "web", "--", "sh", "-c", "a\nb", "--root", "--", "-f", "").code == 77
    assert hutch("exec", "--root", "web", "--", "id").code == 77
    assert seen == [(["sh", "-c", "a\nb", "--root", "--", "-f", ""], False), (["id"], True)]


# ssh, cp


@pytest.mark.parametrize(
    ("arguments", "argv"),
    [
        (["web"], ["ssh", "workspace-web"]),
        (["web", "--", "ls", "-l", "--"], ["ssh", "workspace-web", "--", "ls", "-l", "--"]),
    ],
)
def test_ssh(arguments: list[str], argv: list[str], hutch: Run, replaced: list[list[str]], not_root: None) -> None:
    hutch("ssh", *arguments)
    assert replaced == [argv]


@pytest.mark.parametrize("arguments", [["ssh", "web"], ["cp", "a", "web:b"], ["cp", "web:a", "b"]])
def test_root_is_told_at_once_that_nobody_answers(
    arguments: list[str], hutch: Run, layout: Layout, replaced: list[list[str]]
) -> None:
    result = hutch(*arguments)
    assert (result.code, replaced) == (2, [])
    assert "there is no workspace web" in result.err
    write_record(layout, Record("web", "/f", workspace(), "image-1", 0x7000_0000, "0" * 32))
    result = hutch(*arguments)
    assert (result.code, replaced) == (1, [])
    assert result.err == "hutch: web is stopped\n  → `hutch start web`\n"


@pytest.mark.parametrize("name", ["ssh", "exec"])
def test_options_of_a_command_inside(name: str, hutch: Run) -> None:
    result = hutch(name, "web", "ls", "-la")
    assert result.code == 2
    assert "put -- before the command" in result.err
    assert "put -- before" not in hutch("ls", "-x").err


def test_ssh_takes_names_only(hutch: Run, replaced: list[list[str]]) -> None:
    for name in ("-oProxyCommand=x", "a b", "web.example", "Web"):
        assert hutch("ssh", "--", name).code == 2
    assert replaced == []


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is copied, which nothing is: (get or put, workspace, from, to)."""
    found: list[tuple[str, ...]] = []

    def record(verb: str) -> Callable[..., Copied]:
        def copy(side: Side, source: str, target: str, **options: object) -> Copied:
            found.append((verb, side.name, source, target))
            return Copied(left_out=("'x': a\x1bdevice",))

        return copy

    for verb in ("get", "put"):
        monkeypatch.setattr(f"hutch.api.copying.{verb}", record(verb))
    return found


@pytest.mark.parametrize(
    ("ends", "copies"),
    [
        (["a", "web:b"], [("put", "web", "a", "b")]),
        (["web:", "."], [("get", "web", ".", ".")]),
        (["/a", "b", "web:/c d"], [("put", "web", "/a", "/c d/."), ("put", "web", "b", "/c d/.")]),
        (["web:a", "web:b", "c"], [("get", "web", "a", "c/."), ("get", "web", "b", "c/.")]),
        (["./a:b", "web:c"], [("put", "web", "./a:b", "c")]),
        (["web:a:b", "c"], [("get", "web", "a:b", "c")]),
        (["--", "-x", "web:y"], [("put", "web", "-x", "y")]),
    ],
)
def test_cp(
    ends: list[str], copies: list[tuple[str, ...]], hutch: Run, copied: list[tuple[str, ...]], not_root: None
) -> None:
    result = hutch("cp", *ends)
    assert copied == copies
    assert result.err == "hutch: warning: web: left out: 'x': a\N{REPLACEMENT CHARACTER}device\n" * len(copies)


def test_cp_from_one_workspace_to_another(hutch: Run, copied: list[tuple[str, ...]], not_root: None) -> None:
    """By way of a directory that is gone afterwards."""
    hutch("cp", "web:dir/a", "lab:b")
    (_, _, _, between), (_, _, source, _) = copied
    assert copied == [("get", "web", "dir/a", between), ("put", "lab", between, "b")]
    assert between == source and between.endswith("/a") and not Path(between).parent.exists()


@pytest.mark.parametrize("limit", ["", "x", "1", "-1G", "2000TiB"])
def test_cp_refuses_a_limit(limit: str, hutch: Run, copied: list[tuple[str, ...]], not_root: None) -> None:
    assert hutch("cp", "--limit", limit, "web:a", "b").code == 2
    assert copied == []


@pytest.mark.parametrize(
    "ends", [["a", "b"], ["", "web:"], ["web:a", ""], ["Web:a", "b"], ["[::1]:a", "b"], [":a", "b"]]
)
def test_cp_refuses(ends: list[str], hutch: Run, copied: list[tuple[str, ...]]) -> None:
    assert hutch("cp", *ends).code == 2
    assert copied == []


@pytest.mark.parametrize(("arguments", "shown"), [([], "a\nb\nc\nd\n"), (["-n", "3"], "b\nc\nd\n"), (["-n", "0"], "")])
def test_the_machine_log_is_shown_from_its_end(arguments: list[str], shown: str, hutch: Run, layout: Layout) -> None:
    write_record(layout, Record("web", "/f", workspace(), "image-1", 0x7000_0000, "0" * 32))
    assert hutch("logs", "web").out == ""
    log = layout.log("web")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.with_name(log.name + ".1").write_text("a\r\nb\n")
    log.write_text("c\nd")
    assert hutch("logs", "web", *arguments).out == shown


# Options.


@pytest.mark.parametrize("arguments", [["-v", "ssh", "web"], ["ssh", "-v", "web"]])
def test_verbose_shows_commands(
    arguments: list[str], hutch: Run, monkeypatch: pytest.MonkeyPatch, not_root: None
) -> None:
    def become(file: str, argv: list[str]) -> None:
        raise FileNotFoundError(2, "no such file", file)

    monkeypatch.setattr("os.execvp", become)
    result = hutch(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("+ ssh workspace-web\nhutch: ssh is not installed\n")
    assert "+ " not in hutch("ssh", "web").err


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (
            "nft",
            "  missing: nft, which filters and translates the workspaces' traffic\n  → `apt-get install nftables`\n",
        ),
        ("strange", "  missing: strange, which hutch runs\n  → install these programs\n"),
    ],
)
def test_a_program_that_is_missing_is_named_with_its_package(
    program: str, advice: str, hutch: Run, monkeypatch: pytest.MonkeyPatch, not_root: None
) -> None:
    def become(file: str, argv: list[str]) -> None:
        raise ProgramMissing([program, "list"])

    monkeypatch.setattr("os.execvp", become)
    monkeypatch.setattr(tools, "find_program", lambda name: name if name == "apt-get" else None)
    result = hutch("ssh", "web")
    assert (result.code, result.out, result.err) == (1, "", f"hutch: {program} is not installed\n{advice}")


def test_who_waits_for_an_image_is_told_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(Options(quiet=True))
    for stage in (WAITING, WAITING, "reading package lists", "downloading the base", "publishing"):
        bar.show("debian-1", stage, 0.1)
    assert capsys.readouterr().err.splitlines() == [
        "hutch: image debian-1: waiting for another build",
        "hutch: image debian-1: being prepared, once; this may take minutes",
    ]


def test_what_is_told_while_things_happen(capsys: pytest.CaptureFixture[str]) -> None:
    loud, quiet = Options(), Options(quiet=True)
    for options in (loud, quiet):
        options.listen("web", "ready", "in 0.4 s")
        options.listen("web", "stopped", "")
        options.listen("web", "warning", "bew\x1b[2Jare")
        options.listen("web", "failed", "told later")
    out, err = capsys.readouterr()
    assert out == ""
    warning = "hutch: warning: web: bew\N{REPLACEMENT CHARACTER}[2Jare\n"
    assert err == f"web: ready in 0.4 s\nweb: stopped\n{warning}{warning}"
