"""What `hutch run` sees around a directory, and the files that it keeps: all of them the caller's own."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply.implied import (
    forget_implied,
    is_made,
    is_noted,
    is_taken,
    look_around,
    note,
    observe_checkout,
    observe_steps,
    take_back,
    text_of,
    write_implied,
)
from hutch.errors import HutchError
from hutch.spec.implied import Choice, Request, Step, decide, file_of
from hutch.spec.names import Layout
from hutch.spec.person import Person
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.facts import workspace


@pytest.fixture
def person(tmp_path: Path) -> Person:
    home = tmp_path.resolve() / "home"
    home.mkdir()
    home.chmod(0o700)
    return Person(os.getuid(), os.getgid(), "alice", home, home / ".config/hutch", home / ".local/state/hutch")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("hutch.apply.implied.as_person", lambda person: nullcontext())
    return Layout(tmp_path / "state", tmp_path / "run")


def home_of(person: Person) -> Path:
    assert person.home is not None
    return person.home


def repository(path: Path) -> Path:
    for part in ("objects", "refs", "worktrees"):
        (path / ".git" / part).mkdir(parents=True)
    (path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return path


def worktree(path: Path, of: Path) -> Path:
    """A worktree as git makes it."""
    path.mkdir(parents=True)
    own = of / ".git" / "worktrees" / path.name
    own.mkdir()
    (path / ".git").write_text(f"gitdir: {own}\n")
    (own / "commondir").write_text("../..\n")
    (own / "gitdir").write_text(f"{path}/.git\n")
    return path


def steps(directory: Path, person: Person) -> dict[str, Step]:
    return {step.path: step for step in observe_steps(str(directory), person)}


# The way up.


def test_the_way_up_ends_below_the_home(person: Person) -> None:
    home = home_of(person)
    inner = home / "src" / "shop" / "a"
    inner.mkdir(parents=True)
    (home / ".git").mkdir()  # of somebody who keeps settings in git
    assert list(steps(inner, person)) == [str(inner), str(inner.parent), str(home / "src")]
    assert list(steps(home, person)) == [str(home)]
    assert list(steps(Path("/usr/lib"), person)) == ["/usr/lib", "/usr"]


def test_a_checkout_is_known_by_its_git(person: Person) -> None:
    home = home_of(person)
    repository(home / "shop")
    (home / "link").mkdir()
    (home / "link" / ".git").symlink_to(home / "shop" / ".git")
    (home / "odd").mkdir()
    (home / "odd" / ".git").write_text("what is this?\n")
    found = {path.name: steps(path, person)[str(path)].is_checkout for path in home.iterdir()}
    assert found == {"shop": True, "link": False, "odd": False}
    stranger = replace(person, uid=person.uid + 1)
    assert not steps(home / "shop", stranger)[str(home / "shop")].is_checkout


def test_a_worktree_names_its_common_directory(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    fix = worktree(home_of(person) / "fix", shop)
    assert steps(fix, person)[str(fix)] == Step(str(fix), True, (f"{shop}/.git", f"{shop}/.git"))
    inner = worktree(shop / ".worktrees" / "inner", shop)
    assert steps(inner, person)[str(inner)].common == (f"{shop}/.git", f"{shop}/.git")


def test_a_worktree_that_its_repository_does_not_know_gets_nothing(person: Person) -> None:
    """A `.git` file can come with an archive, and name any repository of its reader's."""
    shop = repository(home_of(person) / "shop")
    fix = worktree(home_of(person) / "fix", shop)
    forged = home_of(person) / "forged"
    forged.mkdir()
    (forged / ".git").write_text((fix / ".git").read_text())
    found = steps(forged, person)[str(forged)]
    assert (found.is_checkout, found.common) == (True, None)
    assert f"names {shop}/.git/worktrees/fix, which is not shared" in found.note
    for part in ("HEAD", "objects"):
        target = shop / ".git" / part
        target.rename(target.with_name("gone"))
        assert steps(fix, person)[str(fix)].common is None
        target.with_name("gone").rename(target)
    other = repository(home_of(person) / "other")
    (shop / ".git" / "worktrees" / "fix" / "commondir").write_text(f"{other}/.git\n")
    assert steps(fix, person)[str(fix)].common is None


def test_links_on_the_way_to_a_repository_are_resolved_before_it_is_believed(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    fix = worktree(home_of(person) / "fix", shop)
    (fix / "link").symlink_to(shop / ".git")
    (fix / ".git").write_text(f"gitdir: {fix}/link/worktrees/fix\n")
    assert steps(fix, person)[str(fix)].common == (f"{shop}/.git", f"{fix}/link")
    forged = home_of(person) / "forged"
    (forged / "repository" / "worktrees" / "x").mkdir(parents=True)
    for part in ("HEAD", "objects", "refs"):
        (forged / "repository" / part).symlink_to(shop / ".git" / part)
    (forged / "repository" / "worktrees" / "x" / "commondir").write_text("../..\n")
    (forged / "repository" / "worktrees" / "x" / "gitdir").write_text(f"{forged}/.git\n")
    (forged / ".git").write_text("gitdir: repository/worktrees/x\n")
    assert steps(forged, person)[str(forged)].common is None


def test_a_submodule_is_a_part_of_its_checkout(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    library = shop / "vendor" / "library"
    library.mkdir(parents=True)
    (shop / ".git" / "modules" / "library").mkdir(parents=True)
    (library / ".git").write_text("gitdir: ../../.git/modules/library\n")
    found = steps(library, person)
    assert [path for path, step in found.items() if step.is_checkout] == [str(shop)]


def test_a_pipe_is_not_waited_for(person: Person) -> None:
    odd = home_of(person) / "odd"
    odd.mkdir()
    os.mkfifo(odd / ".git")
    os.mkfifo(odd / "hutch.toml")
    found = steps(odd, person)[str(odd)]
    assert not found.is_checkout
    assert found.declared is not None and found.declared.types == {}


def test_a_directory_that_holds_the_name_is_no_hutch_toml(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    (shop / "hutch.toml").mkdir()
    assert steps(shop, person)[str(shop)].declared is None


def test_a_hutch_toml_is_glanced_at(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    (shop / "hutch.toml").write_text('[workspaces.web]\ntype = "vm"\n')
    found = steps(shop, person)[str(shop)].declared
    assert found is not None
    assert (found.file, found.types, found.stranger) == (f"{shop}/hutch.toml", {"web": "vm"}, None)


def test_where_a_link_leads_is_left_to_whoever_loads_the_file(person: Person) -> None:
    shop = repository(home_of(person) / "shop")
    (home_of(person) / "own.toml").write_text('[workspaces.web]\ntype = "vm"\n')
    (shop / "hutch.toml").symlink_to("../own.toml")
    found = steps(shop, person)[str(shop)].declared
    assert found is not None and found.file == f"{shop}/hutch.toml"


def test_a_stranger_s_git_in_everybody_s_directory_does_not_count(person: Person, tmp_path: Path) -> None:
    everybody = tmp_path / "everybody"
    (everybody / ".git").mkdir(parents=True)
    everybody.chmod(0o1777)
    if os.geteuid() == 0:
        os.chown(everybody / ".git", 4321, 4321)
        assert not observe_checkout(str(everybody), replace(person, uid=0)).is_checkout


# Implied files.


def new_choice(layout: Layout, person: Person, directory: Path) -> Choice:
    directory.mkdir(parents=True, exist_ok=True)
    return decide(look_around(layout, person, str(directory), None), Request())


def test_a_file_is_written_once_and_found_again(layout: Layout, person: Person) -> None:
    directory = home_of(person) / "src" / "shop"
    first = new_choice(layout, person, directory)
    assert write_implied(person, first)
    assert Path(first.file).read_text() == first.text
    assert [path.name for path in Path(first.file).parent.iterdir()] == ["shop.toml"]
    with pytest.raises(FileExistsError):  # of another run at this very moment
        write_implied(person, first)
    again = new_choice(layout, person, directory)
    assert (again.name, again.before) == ("shop", first.text)
    assert not write_implied(person, again)
    assert write_implied(person, new_choice(layout, person, home_of(person) / "other" / "shop"))
    forget_implied(person, first)
    assert not Path(first.file).exists()


def test_an_edited_file_is_changed_in_its_place(layout: Layout, person: Person) -> None:
    directory = home_of(person) / "src" / "shop"
    first = new_choice(layout, person, directory)
    write_implied(person, first)
    file = Path(first.file)
    file.chmod(0o600)
    machine = decide(look_around(layout, person, str(directory), None), Request(is_machine=True))
    assert not write_implied(person, machine)
    assert 'type = "vm"' in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("# edited meanwhile\n")
    with pytest.raises(HutchError, match="has just been changed by somebody else"):
        write_implied(person, replace(machine, before=machine.text, text="another"))


def test_what_options_changed_is_taken_back(layout: Layout, person: Person) -> None:
    directory = home_of(person) / "src" / "shop"
    first = new_choice(layout, person, directory)
    write_implied(person, first)
    machine = decide(look_around(layout, person, str(directory), None), Request(is_machine=True))
    write_implied(person, machine)
    take_back(person, machine)
    assert Path(first.file).read_text() == first.text


def test_a_note_ends_with_a_change_of_a_kit(layout: Layout, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.spec.kit_files.caller", lambda environ, uid: person)
    choice = new_choice(layout, person, home_of(person) / "src" / "shop")
    write_implied(person, choice)
    there = record("shop", choice.file)
    there = replace(there, wanted=replace(there.wanted, use=("mine",)))
    note(layout, person, choice, text_of(person, choice), there)
    assert is_noted(layout, person, choice, there)
    kit = home_of(person) / ".config/hutch/kits/mine.toml"
    kit.parent.mkdir()
    kit.write_text("")
    assert not is_noted(layout, person, choice, there)


def test_a_file_that_cannot_be_read_is_broken(layout: Layout, person: Person) -> None:
    directory = home_of(person) / "src" / "shop"
    first = new_choice(layout, person, directory)
    write_implied(person, first)
    Path(first.file).write_bytes(b"\xff")
    assert new_choice(layout, person, directory).name == "shop"


def record(name: str, file: str, **more: Any) -> Record:
    return replace(Record(name, file, workspace(name), "debian-trixie-0123456789ab", 1 << 16, "0" * 32), **more)


def test_names_of_other_workspaces_are_taken(layout: Layout, person: Person) -> None:
    write_record(layout, record("web", "/srv/hutch.toml"))
    write_record(layout, record("own", file_of(str(person.config), "own")))
    write_record(layout, record("kept", "/srv/hutch.toml", removed=True))
    write_record(layout, record("gone", "/srv/hutch.toml", removed=True, ejected="/srv/gone"))
    names = ("web", "own", "kept", "gone", "free")
    assert [name for name in names if is_taken(layout, person, name)] == ["web", "kept", "gone"]
    write_record(layout, record("left", file_of(str(person.config), "left"), removed=True))
    assert [name for name in (*names, "left") if is_made(layout, person, name)] == ["own"]


# Notes.


def test_a_note_holds_for_that_text_and_that_workspace(layout: Layout, person: Person) -> None:
    choice = new_choice(layout, person, home_of(person) / "src" / "shop")
    write_implied(person, choice)
    there = record("shop", choice.file)
    assert not is_noted(layout, person, choice, there)
    note(layout, person, choice, text_of(person, choice), there)
    assert is_noted(layout, person, choice, there)
    (found,) = (home_of(person) / ".local/state/hutch/run").iterdir()
    assert found.stat().st_mode & 0o777 == 0o600
    assert not is_noted(layout, person, choice, replace(there, wanted=replace(there.wanted, vcpus=7)))
    assert not is_noted(Layout(layout.run, layout.run), person, choice, there)
    Path(choice.file).write_text(f"{choice.text}vcpus = 7\n")
    assert not is_noted(layout, person, choice, there)
    note(layout, person, choice, choice.text, there)  # changed while it was brought up
    Path(choice.file).write_text(choice.text or "")
    assert is_noted(layout, person, choice, there)
    found.write_text("nonsense")
    assert not is_noted(layout, person, choice, there)
    forget_implied(person, choice)
    assert not found.exists()
