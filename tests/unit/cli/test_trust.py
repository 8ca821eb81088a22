"""hutch trust as it is typed: what it shows, and who is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hutch.host.identity.answers import digest
from hutch.spec.names import BEHIND
from tests.unit.cli.conftest import Run

TEXT = """
[workspaces.web]
type = "container"
packages = ["git"]
setup = '''
echo one
echo two'''
memory = "2GiB"
env = { WORDS = "with space" }
mounts = [{ source = "src", target = "/src" }]
publish = ["127.0.0.1:8080:80"]
"""


@pytest.fixture
def file(hutch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the current directory, which is a checkout; nobody is at a terminal."""
    monkeypatch.setattr("os.geteuid", os.getuid)
    monkeypatch.setenv("XDG_STATE_HOME", os.path.realpath(tmp_path / "said"))
    (tmp_path / "said").mkdir()
    for variable in BEHIND:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    Path(".git").mkdir()
    path = Path("hutch.toml").absolute()
    write(path, TEXT)
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o644)


def answering(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text, **options: answer)


def test_it_is_shown_whole(hutch: Run, file: Path) -> None:
    shown = hutch("trust").out.splitlines()
    assert shown == [
        f"{file}, in the checkout {file.parent}",
        "asks for:",
        "  web",
        "    type: unset → container",
        "    packages: git, vim, htop, wget, curl, tmux, rsync, dnsutils → git",
        "    setup:",
        "      +echo one",
        "      +echo two",
        "    memory: unset → 2GiB",
        f"    mounts: none → {file.parent}/src on /src",
        "    publish: none → 127.0.0.1:8080:80",
        "    env: none → WORDS=with space",
    ]


def test_unattended_the_answer_is_no(hutch: Run, file: Path) -> None:
    for arguments in (("trust",), ("trust", "--json"), ("-q", "trust", ".")):
        refused = hutch(*arguments)
        assert refused.code == 1
        assert "nobody can be asked without a terminal, so the answer is no" in refused.err
        assert f"hutch trust --yes {file}" in refused.err
    assert hutch("trust", "--list").out == ""
    refused = hutch("plan")
    assert refused.code == 1
    assert "has not accepted it" in refused.err
    assert f"hutch trust {file}" in refused.err


def test_the_person_at_the_terminal_decides(hutch: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, False)
    refused = hutch("trust")
    assert (refused.code, "was not accepted, and counts for nothing" in refused.err) == (1, True)
    answering(monkeypatch, True)
    accepted = hutch("trust")
    assert (accepted.code, "accepted:" in accepted.err) == (0, True)
    answering(monkeypatch, False)
    assert "accepted already" in hutch("trust").err


def test_yes_accepts_and_revoke_forgets(hutch: Run, file: Path) -> None:
    assert hutch("trust", str(file.parent), "--yes").code == 0
    (entry,) = json.loads(hutch("trust", "--list", "--json").out)
    assert (entry["file"], entry["now"], entry["sha256"]) == (str(file), "accepted", digest(file.read_bytes()))
    assert hutch("trust", "--list").out.splitlines()[1].endswith(f"  accepted  {file}")
    assert json.loads(hutch("trust", "--json").out)["accepted"] is True
    assert hutch("trust", "--revoke").err == f"{file} is not accepted any more\n"
    assert hutch("trust", "--revoke", str(file)).err == f"{file} was not accepted\n"
    assert hutch("trust", "--revoke", "--yes").code == 2


def test_a_file_that_is_gone_is_forgotten(hutch: Run, file: Path) -> None:
    hutch("trust", "--yes")
    file.unlink()
    assert " gone " in hutch("trust", "--list").out
    assert hutch("trust", "--revoke").err == f"{file} is not accepted any more\n"


def test_what_changed_is_shown(hutch: Run, file: Path) -> None:
    hutch("trust", "--yes")
    text = TEXT.replace("2GiB", "4GiB").replace("echo two", "echo three").replace("env = ", "# env = ")
    write(file, f'{text}[workspaces.db]\ntype = "vm"\n')
    shown = hutch("trust", "--yes").out.splitlines()
    assert shown[1].startswith("has changed since it was accepted (")
    assert shown[2:] == [
        "  web",
        "    setup:",
        "       echo one",
        "      -echo two",
        "      +echo three",
        "    memory: 2GiB → 4GiB",
        "    env: WORDS=with space → none",
        "  db",
        "    type: unset → vm",
    ]
    write(file, text)
    assert hutch("trust", "--yes").out.splitlines()[2:] == ["  db: not declared any more"]
    write(file, f"{text}# a word\n")
    assert hutch("trust", "--yes").out.splitlines()[2:] == ["  none of its requests"]


def test_nothing_of_the_file_commands_the_terminal(hutch: Run, file: Path) -> None:
    hostile = '[workspaces.web]\ntype = "container"\nsetup = """\nx\\u001b[2J\\u202e\\u0085\\r\ny"""\n'
    write(file, hostile)
    shown = hutch("trust").out
    assert "\N{REPLACEMENT CHARACTER}[2J" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_no_name_of_a_directory_forges_a_line(hutch: Run, file: Path) -> None:
    directory = file.parent / "x\nasks for nothing\x1b[2J"
    directory.mkdir()
    write(directory / "hutch.toml", "")
    shown = hutch("trust", "--yes", str(directory))
    for line in (*shown.out.splitlines(), *shown.err.splitlines()):
        assert not line.startswith("asks for nothing")
        assert "\x1b" not in line
    assert len(hutch("trust", "--list").out.splitlines()) == 2
    assert "\x1b" not in hutch("trust", "--revoke", str(directory / "hutch.toml")).err


def test_what_another_version_wrote_down_is_shown_as_it_is(hutch: Run, file: Path, tmp_path: Path) -> None:
    hutch("trust", "--yes")
    (stored,) = (tmp_path / "said" / "hutch" / "trust").iterdir()
    answer = json.loads(stored.read_text())
    answer["asks"]["web"] |= {"mounts": [{"from": "x"}], "strange": 3}
    stored.write_text(json.dumps(answer))
    write(file, f"{TEXT}\n")
    shown = hutch("trust", "--yes").out
    assert '    mounts: [{"from": "x"}] → ' in shown
    assert "    strange: 3 → unset" in shown


def test_a_file_of_ones_own_needs_none(hutch: Run, file: Path) -> None:
    (file.parent / ".git").rmdir()
    assert hutch("trust").err == "the hutch.toml is in no checkout: it is your own, and needs no trust\n"


def test_a_file_that_widens_is_refused_at_once(hutch: Run, file: Path) -> None:
    write(file, f"{TEXT}nesting = true\nautostart = true\n")
    refused = hutch("trust", "--yes")
    assert refused.code == 2
    assert f"{file}:12: workspaces.web.nesting = true" in refused.err
    assert f"{file}:13: workspaces.web.autostart = true" in refused.err


def test_init_says_what_comes_next(hutch: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.unlink()
    assert hutch("init").err == "wrote hutch.toml; next: hutch trust, and sudo hutch up\n"
    keys = file.read_text()
    for key in ("packages", "image", "vcpus", "memory", "persist", "mounts", "egress", "publish", "env"):
        assert f"\n# {key} = " in keys
        keys = keys.replace(f"\n# {key} = ", f"\n{key} = ")
    file.write_text(keys)
    assert hutch("trust", "--yes").code == 0  # whatever it offers
    file.unlink()
    (file.parent / ".git").rmdir()
    assert hutch("init").err == "wrote hutch.toml; next: sudo hutch up\n"
    monkeypatch.setattr("hutch.cli.declare.by_entry", lambda words: ["sudo", "-n"])
    file.unlink()
    assert hutch("init").err == "wrote hutch.toml; next: hutch up\n"
