"""Guarded changes: what is said through the client's proxy, how answers are taken, and what becomes of a change that
somebody else makes at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hutch.engines.incus import client as incus
from hutch.engines.incus.addresses import CONFIG, Route
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import NoAnswer, NoWay, Refused
from hutch.engines.incus.proxied import Reply, read, render
from hutch.errors import HutchError
from hutch.run import CommandFailed, Completed
from hutch.spec.record import Place

PLACE = Place("lab", "hutch", "auto", "10.83.0.0/16", 0, "/root/.config/incus")
WEB = "/1.0/instances/web"
OPERATION = "/1.0/operations/0a1b2c3d-0000-4000-8000-123456789abc"


def reply(code: int, content: Any, etag: str = "") -> Completed:
    head = f"HTTP/1.0 {code} Some words\r\n" + (f"Etag: {etag}\r\n" if etag else "")
    return Completed(0, f"{head}\r\n{json.dumps(content)}".encode(), b"")


def answer(metadata: Any = None, *, etag: str = "", kind: str = "sync", operation: str = "") -> Completed:
    return reply(200, {"type": kind, "metadata": metadata, "operation": operation}, etag)


def refusal(code: int, text: str = "no") -> Completed:
    return reply(code, {"type": "error", "error_code": code, "error": text})


class Line:
    """A proxy that gives prepared results away, in order, and notes what was asked: the request's head and its body."""

    def __init__(self, *results: Completed | CommandFailed) -> None:
        self.results = list(results)
        self.asked: list[tuple[str, Any]] = []
        self.seconds: list[float] = []
        self.closed = 0

    def dial(self, command: Callable[[str], list[str]], uid: int) -> Any:
        assert uid == PLACE.account
        return self

    def ask(self, request: bytes, *, timeout: float, most: int) -> Completed | CommandFailed:
        assert most == incus.MOST_BYTES
        head, _, body = request.partition(b"\r\n\r\n")
        match = [line.partition(": ")[2] for line in head.decode().split("\r\n") if line.startswith("If-Match: ")]
        self.asked.append(
            (" ".join((head.decode().partition(" HTTP/")[0], *match)), json.loads(body) if body else None)
        )
        self.seconds.append(timeout)
        return self.results.pop(0)

    def close(self) -> None:
        self.closed += 1


def update(line: Line, make: Callable[[Any], Any], **options: Any) -> Any:
    try:
        return Client(PLACE, dial=line.dial).update(WEB, make, **options)
    finally:
        assert line.closed == 1


def test_a_change_is_refused_once_there_is_something_else() -> None:
    line = Line(answer({"a": 1}, etag="abc"), answer())
    assert update(line, lambda seen: {"a": seen["a"] + 1}, seconds=60) == {"a": 1}
    whole = f"{WEB}?project=hutch"
    assert line.asked == [(f"GET {whole}", None), (f"PUT {whole} abc", {"a": 2})]
    assert line.seconds == [incus.READ_SECONDS, pytest.approx(60, abs=1)]


def test_who_was_too_late_decides_anew() -> None:
    line = Line(answer(1, etag="one"), refusal(412), answer(2, etag="two"), answer())
    assert update(line, lambda seen: {"n": seen + 10}) == 2
    assert [body for _, body in line.asked if body] == [{"n": 11}, {"n": 12}]
    assert line.asked[-1][0].endswith(" two")


def test_what_has_become_anothers_is_not_changed() -> None:
    def make(seen: Any) -> Any:
        if seen != "mine":
            raise HutchError("it is another's")
        return {}

    line = Line(answer("mine", etag="one"), refusal(412), answer("theirs", etag="two"))
    with pytest.raises(HutchError, match="another's"):
        update(line, make)
    assert [asked.partition(" ")[0] for asked, _ in line.asked] == ["GET", "PUT", "GET"]


def test_what_is_as_it_is_to_be_is_not_changed() -> None:
    line = Line(answer("as it is", etag="one"))
    assert update(line, lambda seen: None) == "as it is"
    assert len(line.asked) == 1


def test_somebody_who_changes_it_all_the_time() -> None:
    line = Line(*incus.ATTEMPTS * [answer(1, etag="one"), refusal(412)])
    with pytest.raises(HutchError, match=r"somebody else changes .* of lab again and again"):
        update(line, lambda seen: {})
    assert line.results == []


def test_all_of_a_change_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often somebody else changes it; nothing is asked after that."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def make(seen: Any) -> Any:
        now[0] += 8
        return {}

    line = Line(answer(1, etag="one"), refusal(412), answer(2, etag="two"), refusal(412), answer(3, etag="three"))
    with pytest.raises(NoAnswer, match="the remote lab has not changed") as caught:
        update(line, make, seconds=20)
    assert line.seconds == [5.0, 12.0, 5.0, 4.0, 4.0]
    assert "incus info lab:" in caught.value.resolution


def test_another_refusal_ends_it() -> None:
    for results in ([refusal(404)], [answer(1, etag="one"), refusal(400)]):
        with pytest.raises(Refused):
            update(Line(*results), lambda seen: {})


def test_an_operation_is_waited_for() -> None:
    def exchange(commands: Any, **options: Any) -> list[Completed | CommandFailed]:
        assert commands[0][-1].startswith(f"lab:{OPERATION}/wait?timeout=")
        return [Completed(0, b'{"type": "sync", "metadata": {"err": "the pool is full", "status_code": 400}}', b"")]

    line = Line(answer(1, etag="one"), answer(kind="async", operation=OPERATION))
    with pytest.raises(Refused, match="the pool is full") as caught:
        Client(PLACE, exchange, line.dial).update(WEB, lambda seen: {})
    assert caught.value.details == f"asked: PUT {WEB}"


def test_nothing_is_written_without_an_etag() -> None:
    for etag in ("", "a\tb", '"', "x" * 1000):
        line = Line(answer(1, etag=etag))
        with pytest.raises(NoAnswer, match="not Incus's"):
            update(line, lambda seen: {})
        assert len(line.asked) == 1


@pytest.mark.parametrize(
    ("result", "kind", "brief"),
    [
        (CommandFailed(["incus"], "did not answer within 5 s", "", None), NoAnswer, "its client did not answer within"),
        (Completed(1, b"", b"Error: Missing TLS client certificate and key"), NoWay, "has no certificate"),
        (Completed(1, b"", b"Error: Get: connection refused"), NoAnswer, "the remote lab cannot be reached"),
        (Completed(0, b"HTTP/1.0 502 Bad Gateway\r\n\r\n", b""), NoAnswer, "no answer from the remote lab"),
        (Completed(0, b"HTTP/1.0 200 OK\r\n\r\n[]", b""), NoAnswer, "not Incus's"),
        (Completed(0, b"", b""), NoAnswer, "not Incus's"),
    ],
)
def test_a_proxy_that_has_no_answer(result: Any, kind: type[NoAnswer], brief: str) -> None:
    with pytest.raises(NoAnswer, match=brief) as caught:
        update(Line(result), lambda seen: {})
    assert type(caught.value) is kind


def test_a_change_goes_by_another_way_where_nothing_could_be_read(tmp_path: Path) -> None:
    """As a question does; what has been read is not read again, and what may be written not written again."""
    (tmp_path / "1-m2").mkdir()
    (tmp_path / "1-m2" / CONFIG).touch()
    dead = Completed(1, b"", b'Error: Get "https://m1:8443/1.0": Unable to connect to: m1:8443')
    route, line, asked = Route(tmp_path), Line(dead, answer(1, etag="one"), answer()), []

    def exchange(commands: Any, **options: Any) -> list[Completed | CommandFailed]:
        asked.append((route.way, commands[0][-1], options["timeout"]))
        return [dead] if route.way is None else [Completed(0, b'{"type": "sync", "metadata": {}}', b"")]

    client = Client(PLACE, exchange, line.dial, route)
    assert client.update(WEB, lambda seen: {}) == 1
    assert [(way, path) for way, path, _ in asked] == [(None, "lab:/1.0"), (tmp_path / "1-m2", "lab:/1.0")]
    assert (len(line.asked), line.closed, line.results) == (3, 2, [])
    for results in ([dead], [answer(1, etag="one"), dead]):
        line = Line(*results)
        with pytest.raises(NoAnswer):
            Client(PLACE, exchange, line.dial, route).update(WEB, lambda seen: {})
        assert (len(line.asked), line.closed) == (len(results), 1)


def test_a_request() -> None:
    assert render("GET", "/1.0/x?a=b") == b"GET /1.0/x?a=b HTTP/1.0\r\nHost: incus\r\n\r\n"
    assert render("PUT", "/1.0/x", {"a": "é\r\n"}, "e1") == (
        b"PUT /1.0/x HTTP/1.0\r\nHost: incus\r\nIf-Match: e1\r\nContent-Type: application/json\r\n"
        b'Content-Length: 18\r\n\r\n{"a":"\\u00e9\\r\\n"}'
    )


def test_an_answer() -> None:
    assert read(b'HTTP/1.0 200 OK\r\nETAG:  "e1" \r\nContent-Length: 2\r\n\r\n{}') == Reply(200, '"e1"', b"{}")
    assert read(b"HTTP/1.1 404\r\n\r\n\r\n\r\n") == Reply(404, "", b"\r\n\r\n")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.0 20 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.0 200 OK\nx\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\n{}",
        b"HTTP/1.0 200 OK" + 1_000_000 * b"\r\na:" + b"\r\n\r\n",
        b"\xff" * 100,
    ],
)
def test_what_is_no_whole_answer(said: bytes) -> None:
    assert read(said) is None
