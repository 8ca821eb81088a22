"""The other addresses of a cluster: which are kept, and when a client goes by them. Nothing runs here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch import engines
from hutch.engines.incus import addresses
from hutch.engines.incus.addresses import MOST, Route, choose, remember
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import NoAnswer, NoWay, Refused
from hutch.engines.incus.server import Member, Server
from hutch.run import CommandFailed, Completed, NotConnected, NotStarted
from tests.unit.engines.incus.fake import PLACE
from tests.unit.engines.incus.test_client import answer, failure, refusal

ROOT = replace(PLACE, account=0, conf="/root/.config/incus")
MEMBERS = tuple(Member(f"m{n}", "Online", "x86_64", url=f"https://10.99.0.{n}:8443") for n in (1, 2, 3))
CLUSTER = Server("m1", "incus", "6.0.4", frozenset(), (), MEMBERS, is_clustered=True, method="tls")
REFUSED = failure(
    'Error: Get "https://10.99.0.1:8443/1.0": Unable to connect to: 10.99.0.1:8443 ([dial tcp: connection refused])'
)
NO_NAME = failure('Error: Get "https://farm:8443/1.0": lookup farm on 10.0.0.1:53: no such host')
SILENT = NotConnected(["incus"], "found nobody to connect to within 1.2 s", "", None)
LATE = CommandFailed(["incus"], "did not end within 5 s", "", None)
UNTRIED = NotStarted(["incus"], "was not started within 2 s", "", None)
STRANGER = failure(
    'Error: Get "https://10.99.0.2:8443/1.0": tls: failed to verify certificate: x509: unknown authority'
)
TOLD = "the address of the remote lab cannot be reached; another member of its cluster is asked: "


class Cluster:
    """An exchange by which each way has a result; `asked` are the ways that were taken, and `options` those of each."""

    def __init__(self, **results: Completed | CommandFailed) -> None:
        self.results = results
        self.asked: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.commands: list[list[str]] = []

    def __call__(self, commands: Sequence[list[str]], **options: Any) -> list[Completed | CommandFailed]:
        [conf] = {word for command in commands for word in command if word.startswith("INCUS_CONF=")}
        way = "own" if conf == f"INCUS_CONF={ROOT.conf}" else Path(conf).name.partition("-")[2]
        self.asked.append(way)
        self.options.append(options)
        self.commands += commands
        return [self.results[way] for _ in commands]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The addresses of a cluster, whose remote leads to m1."""
    remember(Route(tmp_path / "lab"), CLUSTER)
    return tmp_path / "lab"


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the user is told."""
    told: list[str] = []
    engines.listener = told.append
    yield told
    engines.listener = engines.nobody


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


# What is kept.


def test_the_others_are_kept_without_anything_of_a_users(directory: Path) -> None:
    found = tree(directory)
    links = {name: f"/proc/self/fd/9/{name}" for name in addresses.LINKS}
    config = {"remotes": {"lab": {"addr": "https://10.99.0.2:8443", "protocol": "incus", "public": False}}}
    assert {path.partition("/")[0] for path in found} == {"1-m2", "2-m3"}
    assert json.loads(found.pop("1-m2/config.yml")) == config
    assert {path.partition("/")[2]: lead for path, lead in found.items() if path.startswith("1-")} == links


def test_they_follow_the_cluster(directory: Path) -> None:
    before = (directory / "1-m2" / "config.yml").stat().st_ino
    remember(Route(directory), CLUSTER)
    assert (directory / "1-m2" / "config.yml").stat().st_ino == before
    moved = replace(MEMBERS[1], url="https://10.99.1.2:8443")
    remember(Route(directory), replace(CLUSTER, members=(MEMBERS[0], moved)))
    assert {path.partition("/")[0] for path in tree(directory)} == {"1-m2"}
    assert "10.99.1.2" in (directory / "1-m2" / "config.yml").read_text()
    remember(Route(directory), replace(CLUSTER, members=(), is_clustered=False))
    assert tree(directory) == {}
    remember(Route(), CLUSTER)  # of a client that has no place for them


@pytest.mark.parametrize(
    "url",
    [
        *("", "http://10.0.0.1:8443", "https://10.0.0.1", "unix:///run/incus/unix.socket", "https://a b:1"),
        *("https://10.0.0.1:8443/1.0", "https://u@h:1", "https://h:1\n", "https://ä:1", "https://[::1%eth0]:1"),
        *("https://h:123456", "https://" + "a" * 254 + ":1", 'https://h:1", "x": "', "https://h:8443,https://i:8443"),
    ],
)
def test_a_servers_word_is_an_address_or_nothing(url: str) -> None:
    strange = replace(MEMBERS[1], url=url)
    assert choose(replace(CLUSTER, members=(MEMBERS[0], strange, MEMBERS[2]))) == {"m3": "https://10.99.0.3:8443"}


def test_addresses_may_be_names_and_ipv6() -> None:
    urls = ("https://[fd00::1]:8443", "https://m2.example.org:443")
    members = tuple(replace(member, url=url) for member, url in zip(MEMBERS[1:], urls, strict=True))
    assert tuple(choose(replace(CLUSTER, members=members)).values()) == urls


def test_their_number_is_bounded() -> None:
    many = tuple(Member(f"m{n}", "Online", "x86_64", url=f"https://10.0.0.{n}:8443") for n in range(200))
    assert len(choose(replace(CLUSTER, members=many))) == MOST


@pytest.mark.parametrize("method", ["unix", "oidc", ""])
def test_who_is_known_by_no_certificate_has_one_address(method: str) -> None:
    assert choose(replace(CLUSTER, method=method)) == {}


# Who is asked.


def test_nothing_changes_while_the_own_address_answers(directory: Path, told: list[str]) -> None:
    cluster = Cluster(own=answer(1))
    assert Client(ROOT, cluster, route=Route(directory)).get("/1.0") == 1
    assert (cluster.asked, told) == (["own"], [])
    assert "sh" not in cluster.commands[0]


@pytest.mark.parametrize("failure", [REFUSED, NO_NAME, SILENT, STRANGER])
def test_another_one_is_asked_where_nobody_is_found(
    failure: Completed | CommandFailed, directory: Path, told: list[str]
) -> None:
    cluster = Cluster(own=failure, m2=answer(2), m3=answer(3))
    client = Client(ROOT, cluster, route=Route(directory))
    assert client.get("/1.0/instances") == 2
    assert cluster.asked == ["own", "m2"]
    assert told == [f"{TOLD}m2"]
    assert client.get_all(["/1.0/a", "/1.0/b"]) == [2, 2]
    assert client.change("DELETE", "/1.0/a") == 2
    assert Client(ROOT, cluster, route=Route(directory)).get("/1.0") == 2  # another one of the same command
    assert cluster.asked[2:] == ["m2"] * 3
    assert len(told) == 1


def test_the_other_one_is_asked_with_the_users_own_certificates_and_no_others(directory: Path) -> None:
    cluster = Cluster(own=REFUSED, m2=answer())
    client = Client(ROOT, cluster, route=Route(directory))
    client.get("/1.0", project=False)
    words = cluster.commands[1]
    assert words[:6] == ["sh", "-c", 'exec 9<"$0" && exec "$@"', ROOT.conf, "env", "-i"]
    wanted = [f"INCUS_CONF={directory}/1-m2", "SSL_CERT_FILE=/dev/null", "SSL_CERT_DIR=/dev/null"]
    assert [word for word in words if word.startswith(("INCUS_CONF", "SSL"))] == wanted
    assert words[-5:] == ["incus", "query", "--raw", "--request=GET", "lab:/1.0"]
    assert client.argv("console", "lab:web")[:4] == words[:4]  # verbs go where the questions went


def test_a_refusal_is_an_answer(directory: Path) -> None:
    cluster = Cluster(own=REFUSED, m2=refusal(404, "not found"), m3=answer())
    with pytest.raises(Refused):
        Client(ROOT, cluster, route=Route(directory)).get("/1.0/x")
    assert cluster.asked == ["own", "m2"]


def test_an_empty_text_is_an_answer(directory: Path) -> None:
    cluster = Cluster(own=REFUSED, m2=failure("Error: EOF\n"), m3=answer())
    assert Client(ROOT, cluster, route=Route(directory)).text("/1.0/instances/web/console") == ""
    assert cluster.asked == ["own", "m2"]


def test_whoever_shows_another_certificate_is_nobody(directory: Path, told: list[str]) -> None:
    cluster = Cluster(own=REFUSED, m2=STRANGER, m3=answer(3))
    assert Client(ROOT, cluster, route=Route(directory)).get("/1.0") == 3
    assert told == [f"{TOLD}m3"]
    with pytest.raises(NoWay, match="another certificate"):
        Client(ROOT, Cluster(own=STRANGER), route=Route(directory.parent / "other")).get("/1.0")


@pytest.mark.parametrize("ways", [["own"], ["own", "m2"]])
@pytest.mark.parametrize(
    "late",
    [
        LATE,
        Completed(-9, b"", b""),
        *(failure(f'Error: Post "https://10.99.0.1:8443/1.0": {said}') for said in ("EOF", "connection reset by peer")),
    ],
)
def test_nothing_is_asked_again_that_may_have_been_heard(
    late: Completed | CommandFailed, ways: list[str], directory: Path, told: list[str]
) -> None:
    cluster = Cluster(**{**dict.fromkeys(("own", "m2"), REFUSED), ways[-1]: late, "m3": answer()})
    client = Client(ROOT, cluster, route=Route(directory))
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(NoAnswer):
            client.change(method, "/1.0/instances", {})
    with pytest.raises(NoAnswer):
        client.get("/1.0")
    assert (cluster.asked, told) == (ways * 4, [])


def test_those_whose_turn_has_not_come_have_reached_nobody(directory: Path, told: list[str]) -> None:
    class Most(Cluster):
        def __call__(self, commands: Sequence[list[str]], **options: Any) -> list[Completed | CommandFailed]:
            first, *others = super().__call__(commands, **options)
            return [first, *(UNTRIED if isinstance(first, NotConnected) else each for each in others)]

    cluster = Most(own=SILENT, m2=SILENT, m3=answer(3))
    client = Client(ROOT, cluster, route=Route(directory))
    assert client.get_all(["/1.0/a", "/1.0/b"], within=2.0) == [3, 3]
    assert (cluster.asked, told) == (["own", "m2", "m3"], [f"{TOLD}m3"])
    cluster.results["m3"] = UNTRIED
    assert all(isinstance(each, NoAnswer) for each in client.get_all(["/1.0/a"], within=0.0))
    assert cluster.asked[3:] == ["m3"]


def test_only_questions_may_be_cut_short_and_only_where_there_is_another_way(directory: Path) -> None:
    cluster = Cluster(own=answer())
    client = Client(ROOT, cluster, route=Route(directory))
    client.get("/1.0")
    client.change("DELETE", "/1.0/x")
    Client(ROOT, cluster, route=Route(directory.parent / "other")).get("/1.0")
    assert [options.get("connect") for options in cluster.options] == [addresses.CONNECT_SECONDS, None, None]


def test_a_change_that_nobody_has_heard_is_made_by_another(directory: Path) -> None:
    cluster = Cluster(own=REFUSED, m2=answer({"made": True}))
    assert Client(ROOT, cluster, route=Route(directory)).change("POST", "/1.0/instances", {}) == {"made": True}
    assert cluster.asked == ["own", "m2"]


def test_where_nobody_answers_the_failure_is_that_of_the_own_address(directory: Path, told: list[str]) -> None:
    cluster = Cluster(own=REFUSED, m2=SILENT, m3=STRANGER)
    with pytest.raises(NoAnswer, match="the remote lab cannot be reached"):
        Client(ROOT, cluster, route=Route(directory)).get("/1.0")
    assert (cluster.asked, told) == (["own", "m2", "m3", "own"], [])
    assert [options.get("connect") for options in cluster.options] == [*[addresses.CONNECT_SECONDS] * 3, None]
    cluster.results["own"] = answer(1)
    assert Client(ROOT, cluster, route=Route(directory)).get("/1.0") == 1
    assert cluster.asked[4:] == ["own"]


def test_the_way_goes_on_from_one_that_falls_silent(directory: Path, told: list[str]) -> None:
    cluster = Cluster(own=REFUSED, m2=answer(2), m3=answer(3))
    client = Client(ROOT, cluster, route=Route(directory))
    client.get("/1.0")
    cluster.results["m2"] = REFUSED
    assert client.get("/1.0") == 3
    cluster.results |= {"m3": SILENT, "own": answer(1)}
    assert client.get("/1.0") == 1
    assert cluster.asked == ["own", "m2", "m2", "m3", "m3", "own"]
    assert told == [f"{TOLD}m2", f"{TOLD}m3"]


def test_one_that_answers_some_is_the_way_for_all(directory: Path) -> None:
    """A connection that is slow then gets the time of its question; one that is refused is an answer."""

    class Some(Cluster):
        def __call__(self, commands: Sequence[list[str]], **options: Any) -> list[Completed | CommandFailed]:
            super().__call__(commands, **options)
            return [answer(1), REFUSED, SILENT] if len(commands) == 3 else [answer(3)]

    cluster = Some(own=REFUSED)
    one, two, three = Client(ROOT, cluster, route=Route(directory)).get_all(["/1.0/a", "/1.0/b", "/1.0/c"])
    assert (one, three) == (1, 3) and isinstance(two, NoAnswer)
    assert cluster.asked == ["own", "own"]
    assert cluster.commands[-1][-1] == "lab:/1.0/c?project=hutch"
    assert [options.get("connect") for options in cluster.options] == [addresses.CONNECT_SECONDS, None]


def test_the_silent_ones_take_no_more_time_than_the_question_has(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Slow(Cluster):
        def __call__(self, commands: Sequence[list[str]], **options: Any) -> list[Completed | CommandFailed]:
            nonlocal now
            now += 1.2
            return super().__call__(commands, **options)

    cluster = Slow(own=SILENT, m2=SILENT, m3=answer(3))
    client = Client(ROOT, cluster, route=Route(directory))
    with pytest.raises(NoAnswer, match="found nobody to connect to"):
        client.get("/1.0", seconds=2.0)
    assert [options["timeout"] for options in cluster.options] == [2.0, addresses.LEAST_SECONDS]
    assert addresses.LEAST_SECONDS > addresses.CONNECT_SECONDS
    assert client.get("/1.0", seconds=2.0) == 3  # goes on with the one whose turn had not come
    assert cluster.asked == ["own", "m2", "m3"]
