"""A file in a checkout counts for what was accepted of it, and for nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import hutch
from hutch.api.engine import Hutch
from hutch.api.trusting import Trust, is_in_checkout
from hutch.apply.ownership import check_ownership
from hutch.apply.repairing import declared_network
from hutch.errors import ConfigError, HutchError, Untrusted, UsageError
from hutch.host.identity.answers import digest, directory_of
from hutch.spec.model import Mount, Network
from hutch.spec.names import BEHIND, Layout
from hutch.spec.reading import read_content
from hutch.spec.record import NetworkRecord, Record
from hutch.state import write_network, write_record
from tests.unit.facts import workspace

TEXT = '[workspaces.web]\ntype = "container"\nmemory = "2GiB"\n'


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hutch:
    """A hutch whose caller is root on the host, and keeps answers in a directory of the test's."""
    monkeypatch.setattr(os, "geteuid", os.getuid)
    monkeypatch.setenv("XDG_STATE_HOME", os.path.realpath(tmp_path / "said"))
    for variable in (*BEHIND, "HUTCH_FILE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "said").mkdir()
    return Hutch(Layout(tmp_path / "state", tmp_path / "run"))


@pytest.fixture
def file(engine: Hutch, tmp_path: Path) -> Path:
    """A file in a checkout."""
    path = tmp_path / "shop" / "hutch.toml"
    (tmp_path / "shop" / ".git").mkdir(parents=True)
    write(path, TEXT)
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o644)


def accept(engine: Hutch, file: Path) -> None:
    offer = Trust(engine).offer(file)
    assert offer is not None
    Trust(engine).accept(offer)


def test_it_counts_once_it_is_accepted(engine: Hutch, file: Path) -> None:
    with pytest.raises(Untrusted, match=r"is in a checkout, and .* has not accepted it") as caught:
        engine.load(file)
    assert caught.value.exit_code == 1
    assert f"hutch trust {file}" in caught.value.resolution
    accept(engine, file)
    config = engine.load(file)
    assert list(config.workspaces) == ["web"]
    assert config.checkout == str(file.parent)


def test_any_change_takes_it_back(engine: Hutch, file: Path) -> None:
    accept(engine, file)
    write(file, f"{TEXT}\n")
    with pytest.raises(Untrusted, match="has changed since"):
        engine.load(file)
    write(file, TEXT)
    engine.load(file)
    moved = file.parent.with_name("moved")
    file.parent.rename(moved)
    with pytest.raises(Untrusted, match="has not accepted it"):
        engine.load(moved / "hutch.toml")


def test_one_content_for_each_path(engine: Hutch, file: Path) -> None:
    """Whoever can write the file cannot go back to an earlier one either."""
    accept(engine, file)
    write(file, TEXT.replace("2GiB", "1GiB"))
    accept(engine, file)
    write(file, TEXT)
    with pytest.raises(Untrusted):
        engine.load(file)


def test_what_was_shown_is_what_is_accepted(engine: Hutch, file: Path) -> None:
    offer = Trust(engine).offer(file)
    assert offer is not None
    write(file, TEXT.replace("2GiB", "8GiB"))
    Trust(engine).accept(offer)
    with pytest.raises(Untrusted):
        engine.load(file)
    assert engine.load(file, accepted=digest(file.read_bytes()).upper()).workspaces["web"].memory == 8 << 30


def test_what_is_compared_is_what_is_used(engine: Hutch, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read once: another one may be there right after."""
    accept(engine, file)
    read = read_content

    def read_and_change(*what: object, **how: object) -> bytes:
        content = read(*what, **how)  # type: ignore[arg-type]
        write(file, TEXT.replace("2GiB", "8GiB"))
        return content

    monkeypatch.setattr("hutch.apply.ownership.read_content", read_and_change)
    assert engine.load(file).workspaces["web"].memory == 2 << 30


def test_a_known_digest_is_an_answer_too(engine: Hutch, file: Path) -> None:
    assert engine.load(file, accepted=digest(file.read_bytes())).workspaces
    with pytest.raises(Untrusted):
        engine.load(file, accepted=digest(b""))
    with pytest.raises(hutch.Untrusted):
        hutch.load(file)


def test_a_file_that_widens_is_refused_whatever_the_answer(engine: Hutch, file: Path) -> None:
    write(file, f'{TEXT}egress = "all"\n')
    with pytest.raises(ConfigError, match="1 problem") as caught:
        Trust(engine).offer(file)
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [("workspaces.web.egress", 4)]
    with pytest.raises(ConfigError):
        engine.load(file, accepted=digest(file.read_bytes()))


@pytest.mark.parametrize("source", ["tools/hooks", "tools/hooks/deep", "tools"])
def test_no_part_is_shared_in_which_the_host_runs_something(engine: Hutch, file: Path, source: str) -> None:
    """The whole is, since what protects it looks at git's configuration from the top."""
    top = file.parent
    (top / "tools" / "hooks" / "deep").mkdir(parents=True)
    (top / "other").mkdir()
    for name in ("objects", "refs"):
        (top / ".git" / name).mkdir()
    (top / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (top / ".git" / "config").write_text("[core]\n\thooksPath = tools/hooks\n")

    def share(source: str, more: str = "") -> None:
        write(file, f'{TEXT}mounts = [{{ source = "{source}", target = "/x"{more} }}]\n')
        Trust(engine).offer(file)

    with pytest.raises(ConfigError) as caught:
        share(source)
    assert [(problem.key, problem.line) for problem in caught.value.problems] == [
        ("workspaces.web.mounts[0].source", 4)
    ]
    with pytest.raises(ConfigError, match="1 problem"):
        engine.load(file, accepted=digest(file.read_bytes()))
    share(source, ", readonly = true")
    share("other")
    share(".")


def test_outside_of_a_checkout_nobody_is_asked(engine: Hutch, file: Path) -> None:
    own = file.parents[1] / "hutch.toml"
    write(own, f'{TEXT}egress = "all"\n')
    assert engine.load(own).checkout is None
    assert Trust(engine).offer(own) is None
    assert (is_in_checkout(own), is_in_checkout(file)) == (False, True)


def test_what_it_asks_for(engine: Hutch, file: Path) -> None:
    offer = Trust(engine).offer(file)
    assert offer is not None
    assert offer.asks == {"web": {"type": "container", "memory": 2 << 30}}
    assert (offer.checkout, offer.before, offer.is_accepted) == (str(file.parent), None, False)
    accept(engine, file)
    again = Trust(engine).offer(file)
    assert again is not None
    assert again.is_accepted


def test_answers_are_listed_with_what_became_of_the_files(engine: Hutch, file: Path) -> None:
    def standing() -> list[str]:
        return [now for _, now in Trust(engine).answers()]

    assert standing() == []
    accept(engine, file)
    assert standing() == ["accepted"]
    write(file, "")
    assert standing() == ["changed"]
    file.chmod(0o666)
    assert standing() == ["unreadable"]
    file.unlink()
    assert standing() == ["gone"]
    assert Trust(engine).revoke(file) == (str(file), True)
    assert Trust(engine).revoke(file) == (str(file), False)


def test_the_network_stays_the_hosts(engine: Hutch, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(engine, file)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert engine.load(file).network == Network()
    theirs = Network(subnet="10.9.0.0/24", uplink="10.8.0.0/30")
    write_network(engine.layout, NetworkRecord(theirs, "/else/hutch.toml"))
    assert engine.load(file).network == theirs


def test_the_doctor_believes_it_as_little(engine: Hutch, file: Path) -> None:
    write(file, '[network]\nsubnet = "10.9.0.0/24"\n')
    assert declared_network(engine.layout, file) == Network()


# A workspace that can write.


def with_guest(engine: Hutch, directory: Path) -> None:
    """A workspace that can write in the directory."""
    bad = workspace("bad", home=str(engine.layout.state / "home"), mounts=(Mount(str(directory), "/srv/s"),))
    write_record(engine.layout, Record("bad", "/f", bad, "image-1", 0x7000_0000, "0" * 32))


def test_content_that_was_accepted_counts_whoever_wrote_it(
    engine: Hutch, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(engine, file)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with_guest(engine, file.parent)
    engine.load(file)
    write(file, f"{TEXT}vcpus = 2\n")
    with pytest.raises(Untrusted):
        engine.load(file)


def test_no_answer_is_believed_where_a_guest_can_write(
    engine: Hutch, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(engine, file)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with_guest(engine, directory_of(Trust(engine).person).parents[1])
    with pytest.raises(UsageError, match="workspace bad can write"):
        engine.load(file)


def test_a_kept_home_is_not_for_who_knows_its_name(engine: Hutch, file: Path) -> None:
    accept(engine, file)
    config = engine.load(file)
    kept = Record("web", "/own/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32, removed=True)
    with pytest.raises(HutchError, match="another file declares"):
        check_ownership(config, {"web": kept}, (), os.path.exists, adopt=False)
    check_ownership(config, {"web": kept}, (), os.path.exists, adopt=True)
    check_ownership(config, {"web": replace(kept, file=config.file)}, (), os.path.exists, adopt=False)
    check_ownership(replace(config, checkout=None), {"web": kept}, (), os.path.exists, adopt=False)
