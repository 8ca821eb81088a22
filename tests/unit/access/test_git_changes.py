"""What a look for changed files tells, which a guest may have written."""

from __future__ import annotations

import tracemalloc

from hutch.access.git_changes import (
    LONGEST,
    MOST_FILES,
    MOST_NEW,
    MOST_REPOSITORIES,
    Changes,
    FileChange,
    Listener,
    RepositoryChanges,
    changes_command,
)


def listened(*lines: str, tops: tuple[str, ...] = ("/src/x",), problem: str = "") -> Changes:
    listener = Listener(tops)
    for line in lines:
        listener.take(f"hutch-changed {line}")
    return listener.changes(problem)


def test_what_has_changed_in_a_repository() -> None:
    found = listened(
        "repository /src/x",
        "touched /src/x",
        "commits 2",
        "file 10\t2\tREADME.md",
        "file -\t-\tlogo.png",
        "file 1\t0\twith\ta tab",
        'untracked "new\\nfile"',
        "repository /src/x/same",
        "repository /src/x/deep",
        "touched /src/x/deep",
        "problem there is no git in the image to look into it",
    )
    files = (
        FileChange("README.md", 10, 2),
        FileChange("logo.png"),
        FileChange("with\N{REPLACEMENT CHARACTER}a tab", 1, 0),
        FileChange('"new\\nfile"', is_tracked=False),
    )
    deep = RepositoryChanges("/src/x/deep", problem="there is no git in the image to look into it")
    assert found == Changes((RepositoryChanges("/src/x", 2, files), deep), ("/src/x/deep",))


def test_what_is_no_line_of_the_look_is_passed_over() -> None:
    listener = Listener(())
    for line in ("file 1\t1\ta", "hutch-changed", "hutch-changed file", "hutch-changed commits x", "noise"):
        listener.take(line)
    assert listener.changes() == Changes()


def test_text_of_a_guest_is_printable_and_short() -> None:
    found = listened("repository /src/x/\x1b[2J\u202e", f"untracked {'a' * 9999}", "file 1\t2\t\x07")
    [told] = found.repositories
    assert told.path == "/src/x/\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"
    assert len(told.files[0].path) == LONGEST
    assert told.files[1].path == "\N{REPLACEMENT CHARACTER}"


def test_a_guest_that_makes_thousands_is_counted() -> None:
    lines = []
    for number in range(MOST_REPOSITORIES + 5):
        lines += [f"repository /src/x/{number}", "commits 1"]
    assert listened(*lines).more == 5
    files = [f"file 1\t1\t{number}" for number in range(MOST_FILES + 7)]
    [told] = listened("repository /src/x", *files).repositories
    assert (len(told.files), told.more) == (MOST_FILES, 7)
    found = listened(*(f"touched /src/x/{number}" for number in range(MOST_NEW + 3)))
    assert (len(found.new), found.more_new) == (MOST_NEW, 3)


def test_a_look_that_failed_tells_what_it_had_found() -> None:
    assert listened("repository /src/x", "file 1\t1\ta", "file !").repositories[0].problem == "git cannot read it"
    found = listened("repository /src/x", "commits 1", problem="it took too long")
    assert (len(found.repositories), found.problem) == (1, "it took too long")
    joined = found.joined(listened("touched /src/x/a", problem="it took too long"))
    assert (joined.problem, joined.new) == ("it took too long", ("/src/x/a",))


def test_the_command_names_the_directories_before_all_else() -> None:
    command = changes_command(1_764_417_600.9, ("/src/x", "/src/y"))
    assert command[:4] == ("find", "/src/x", "/src/y", "-xdev")
    assert command[-4:] == ("sh", "1764417600", "{}", "+")


def test_what_is_only_counted_is_not_kept() -> None:
    listener = Listener(())
    listener.take("hutch-changed repository /src/x")
    tracemalloc.start()
    try:
        for number in range(20 * MOST_FILES):
            listener.take(f"hutch-changed untracked {number:0>400}")
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    [told] = listener.changes().repositories
    assert (len(told.files), told.more) == (MOST_FILES, 19 * MOST_FILES)
    assert size < 2 * MOST_FILES * LONGEST
