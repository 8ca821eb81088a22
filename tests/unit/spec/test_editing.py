"""The one line of a hutch.toml that hutch changes, and all that must stay as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hutch.apply.declaring import read_exactly, replace_text
from hutch.errors import HutchError, UsageError
from hutch.spec.editing import with_value
from hutch.spec.reading import judge_nothing

BEFORE = """# of the team
[defaults]
engine = "local"

[workspaces.lab]
engine = "local"

[workspaces.web] # ours
type = "container"
engine   =  'local'   # for "now"
env = { engine = "x" }
[workspaces."a.b"]
"""


def test_a_line_is_changed() -> None:
    after = with_value(BEFORE, "web", "engine", "incus")
    assert after == BEFORE.replace("""engine   =  'local'   # for "now\"""", """engine   =  "incus"   # for "now\"""")
    assert with_value(after, "web", "engine", "local").replace('"local"   #', "'local'   #") == BEFORE


def test_a_line_is_added_behind_the_head() -> None:
    text = '[workspaces.web] # ours\ntype = "container"\n'
    assert (
        with_value(text, "web", "engine", "incus") == '[workspaces.web] # ours\nengine = "incus"\ntype = "container"\n'
    )
    assert with_value("[workspaces.web]", "web", "engine", "incus") == '[workspaces.web]\nengine = "incus"'


def test_ends_of_lines_and_a_mark_stay() -> None:
    text = "\N{ZERO WIDTH NO-BREAK SPACE}[workspaces.web]\r\nsetup = '''a\u2028b\x0c'''\r\nengine = \"local\"\r\n"
    text = text.replace("\x0c", "\t")
    assert with_value(text, "web", "engine", "incus") == text.replace('"local"', '"incus"')
    text = "[workspaces.web]\r\ntype = 'vm'\r\n"
    assert with_value(text, "web", "engine", "incus") == text.replace("]\r\n", ']\r\nengine = "incus"\r\n')


@pytest.mark.parametrize(
    "text",
    [
        'workspaces.web.engine = "local"',
        'workspaces.web = { type = "vm", engine = "local" }',
        '[workspaces]\nweb = { engine = "local" }',
        '[workspaces]\nweb.engine = "local"',
        '[workspaces.web]\nengine = """local"""',
        '[workspaces.web]\nengine = """\nlocal"""',
        '[workspaces.web]\nengine = "loc\\u0061l"',
        '[workspaces]\nweb = { type = "vm" }',
        '[workspaces.web.env]\nA = "b"',
    ],
)
def test_what_is_written_in_another_way_is_left_alone(text: str) -> None:
    assert "web" in tomllib.loads(text)["workspaces"]
    with pytest.raises(UsageError, match="the engine of web is not on a line of its own"):
        with_value(text, "web", "engine", "incus")


def test_a_list_is_changed() -> None:
    text = "[workspaces.web]\nuse = ['node'] # ours\n"
    assert with_value(text, "web", "use", ["node", "claude"]) == text.replace("['node']", '["node", "claude"]')
    assert with_value("[workspaces.web]\n", "web", "use", ["node"]) == '[workspaces.web]\nuse = ["node"]\n'
    for other in ('use = [\n  "node",\n]', 'use = ["a]"]', 'use = ["node"]]'):
        with pytest.raises((UsageError, ValueError)):
            with_value(f"[workspaces.web]\n{other}\n", "web", "use", ["claude"])


def test_a_value_that_only_looks_like_the_line_is_left_alone() -> None:
    text = '[workspaces.web]\nsetup = """\nengine = "local"\n"""\nengine = "local"\n'
    assert with_value(text, "web", "engine", "incus") == text[: text.rindex('"local"')] + '"incus"\n'


def test_the_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path.resolve() / "hutch.toml"
    file.write_bytes(b"a\r\n")
    file.chmod(0o640)
    before = read_exactly(str(file), None, judge_nothing)
    assert before == "a\r\n"
    replace_text(str(file), before, "b\r\n")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"b\r\n", 0o640)
    assert [path.name for path in tmp_path.iterdir()] == ["hutch.toml"]


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path.resolve() / "hutch.toml"
    file.write_text("another\n")
    with pytest.raises(HutchError, match="has just been changed by somebody else"):
        replace_text(str(file), "before\n", "after\n")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(HutchError, match="cannot be written"):
        replace_text(str(tmp_path / "link" / "hutch.toml"), "another\n", "after\n")
    (tmp_path / "file").symlink_to(file)
    with pytest.raises(HutchError, match="cannot be written"):
        replace_text(str(tmp_path.resolve() / "file"), "another\n", "after\n")
    assert file.read_text() == "another\n"
