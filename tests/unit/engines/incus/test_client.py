"""The incus client, as it is started and as its answers are taken: against an exchange that runs nothing."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hutch.engines.incus import client as incus
from hutch.engines.incus import failures
from hutch.engines.incus.client import Client, instance_path, path_to
from hutch.engines.incus.failures import NoAnswer, NoRemote, NoWay, Refused
from hutch.errors import HutchError
from hutch.run import CommandFailed, Completed, ProgramMissing
from hutch.search_path import SEARCH_PATH
from hutch.spec.record import Place

PLACE = Place(
    remote="lab", project="hutch", target="auto", subnet="10.83.0.0/16", account=1000, conf="/home/ann/.config"
)
OPERATION = "/1.0/operations/0a1b2c3d-0000-4000-8000-123456789abc"


@pytest.fixture(autouse=True)
def _ann(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is ann, uid 1000, behind root."""

    def account(uid: int) -> pwd.struct_passwd:
        if uid not in (0, 1000):
            raise KeyError(uid)
        name, home = ("ann", "/home/ann") if uid else ("root", "/root")
        return pwd.struct_passwd((name, "x", uid, uid + 1 if uid else 0, "", home, "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwuid", account)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


class Fake:
    """An exchange that gives prepared results away, in order, and notes what was asked."""

    def __init__(self, *results: Completed | CommandFailed) -> None:
        self.results = list(results)
        self.asked: list[list[str]] = []
        self.told: list[bytes] = []
        self.seconds: list[float] = []

    def __call__(
        self, commands: Sequence[Sequence[str]], *, stdin: Sequence[bytes] = (), timeout: float, most: int
    ) -> list[Completed | CommandFailed]:
        assert 0 < most <= incus.MOST_BYTES
        self.asked += [list(command)[list(command).index("incus") + 1 :] for command in commands]
        self.told += stdin
        self.seconds.append(timeout)
        return [self.results.pop(0) for _ in commands]


def answer(metadata: Any = None, *, kind: str = "sync", operation: str = "") -> Completed:
    return said({"type": kind, "metadata": metadata, "operation": operation, "error_code": 0, "error": ""})


def refusal(code: int, text: str) -> Completed:
    return said({"type": "error", "error_code": code, "error": text, "metadata": None})


def said(value: Any) -> Completed:
    return Completed(0, json.dumps(value, indent="\t").encode() + b"\n", b"")


def failure(text: str, code: int = 1) -> Completed:
    return Completed(code, b"", text.encode())


def overrun(reason: str) -> CommandFailed:
    return CommandFailed(["setpriv"], reason, "", None)


def test_the_client_runs_as_the_user_with_an_environment_of_its_own() -> None:
    assert Client(PLACE).argv("list", "lab:") == [
        *("setpriv", "--reuid=1000", "--regid=1001", "--init-groups", "--inh-caps=-all", "--no-new-privs", "--"),
        *("env", "-i", f"PATH={SEARCH_PATH}", "LC_ALL=C.UTF-8", "HOME=/home/ann", "USER=ann"),
        *("INCUS_CONF=/home/ann/.config", "INCUS_PROJECT=hutch", "INCUS_ALIASES=1", "incus", "list", "lab:"),
    ]


def test_without_root_the_client_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Client(PLACE).argv("list")[:2] == ["env", "-i"]


def test_a_client_that_is_mortal_is_tied_to_hutch_after_it_has_become_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets the tie when a process becomes somebody else."""
    starter = Client(PLACE).argv("list", is_mortal=True)
    assert starter[: starter.index("--")][-2:] == ["--no-new-privs", "--pdeathsig=KILL"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Client(PLACE).argv("list", is_mortal=True)[:4] == ["setpriv", "--pdeathsig=KILL", "--", "env"]


def test_a_user_who_is_gone_is_told() -> None:
    place = Place(remote="lab", project="hutch", target="auto", subnet="10.83.0.0/16", account=1234, conf="/c")
    with pytest.raises(HutchError, match="1234 is not known"):
        Client(place).argv()


@pytest.mark.parametrize("word", ["-x", "", "a:b", "a b", "a/b", "lab\n", "ä"])
def test_remote_and_project_are_words(word: str) -> None:
    for names in ({"remote": word, "project": "hutch"}, {"remote": "lab", "project": word}):
        with pytest.raises(ValueError, match="not a name"):
            Client(Place(**names, target="auto", subnet="10.83.0.0/16", account=1000, conf="/c"))


def test_paths_are_quoted_and_names_are_workspaces() -> None:
    assert path_to("networks", "a/../b?c", recursion=1) == "/1.0/networks/a%2F..%2Fb%3Fc?recursion=1"
    assert instance_path("web", "state") == "/1.0/instances/web/state"
    for name in ("..", "a/b", "-a", "A", "web?project=other", ""):
        with pytest.raises(ValueError, match="name of a workspace"):
            instance_path(name)
        with pytest.raises(ValueError, match="name of a workspace"):
            Client(PLACE).of(name)
    assert Client(PLACE).of("web", "/etc/x") == "lab:web/etc/x"
    with pytest.raises(ValueError, match="absolute"):
        Client(PLACE).of("web", "x")


@pytest.mark.parametrize("path", ["1.0", "/1.1", "/1.0/../x", "/1.0/.", "/1.0/a b", "/1.0/a\n", "/1.0//a", "/1.0/a#b"])
def test_a_path_is_one_of_the_api(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        Client(PLACE, Fake()).get(path)


def test_a_question_names_the_project_unless_told() -> None:
    fake = Fake(answer([1]), answer({}), answer("x"))
    client = Client(PLACE, fake)
    assert client.get("/1.0/instances?recursion=1", seconds=4) == [1]
    assert client.get("/1.0/instances") == {}
    assert client.get("/1.0", project=False) == "x"
    assert fake.asked == [
        ["query", "--raw", "--request=GET", "lab:/1.0/instances?recursion=1&project=hutch"],
        ["query", "--raw", "--request=GET", "lab:/1.0/instances?project=hutch"],
        ["query", "--raw", "--request=GET", "lab:/1.0"],
    ]
    assert fake.seconds == [4, 5.0, 5.0]


def test_what_was_asked_ahead_is_not_asked_again() -> None:
    fake = Fake(answer("all"), answer([1]), refusal(404, "Not found"), answer([1, 2]))
    client = Client(PLACE, fake)
    client.ask_ahead({"/1.0": False, "/1.0/images": True, "/1.0/networks/x": False})
    assert len(fake.asked) == 3 and fake.seconds == [5.0]
    assert client.get("/1.0/images") == [1]
    assert client.get("/1.0", project=False) == "all"
    with pytest.raises(Refused, match="Not found"):
        client.get("/1.0/networks/x", project=False)
    assert len(fake.asked) == 3
    assert client.get("/1.0/images") == [1, 2]  # an answer counts once


@pytest.mark.parametrize(
    "effect",
    [
        lambda client: client.change("DELETE", "/1.0/images/x"),
        lambda client: client.run("image", "import"),
        lambda client: client.push("web", {"/etc/a": b""}),
        lambda client: client.unlink("web", ["/etc/a"]),
        lambda client: client.ask_ahead({"/1.0": False}),
    ],
    ids=["change", "run", "push", "unlink", "ask_ahead"],
)
def test_answers_from_before_do_not_outlive_an_effect(effect: Callable[[Client], object]) -> None:
    fake = Fake(answer(1), answer(), answer(2))
    client = Client(PLACE, fake)
    client.ask_ahead({"/1.0/images": True})
    effect(client)
    assert client.get("/1.0/images") == 2


def test_several_questions_fail_each_for_itself() -> None:
    fake = Fake(answer(1), refusal(404, "Instance not found"), overrun("did not end within 2 s"), failure("Error: ?"))
    one, two, three, four = Client(PLACE, fake).get_all(["/1.0/a", "/1.0/b", "/1.0/c", "/1.0/d"], seconds=2)
    assert one == 1
    assert isinstance(two, Refused)
    assert isinstance(three, NoAnswer)
    assert isinstance(four, NoAnswer)
    assert len(fake.seconds) == 1
    assert Client(PLACE, Fake()).get_all([]) == []


def test_a_refusal_has_its_code_and_a_text_that_a_terminal_can_take() -> None:
    with pytest.raises(Refused) as caught:
        Client(PLACE, Fake(refusal(403, "no\x1b[31m\n\u202e" + "x" * 2000))).get("/1.0")
    error = caught.value
    assert error.code == 403
    assert error.text.isprintable()
    assert len(error.text) <= failures.LONGEST_TEXT + 1
    assert error.brief.startswith("the remote lab refuses: no")
    assert "trust" in error.resolution


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (500, "Server isn't ready yet"),
        (503, "Daemon setup in progress"),
        (0, "Missing event connection with target cluster member"),
    ],
)
def test_a_member_that_has_just_come_does_not_refuse(code: int, text: str) -> None:
    with pytest.raises(NoAnswer, match="cannot tell yet") as caught:
        Client(PLACE, Fake(refusal(code, text))).get("/1.0")
    assert "half a minute" in caught.value.resolution


@pytest.mark.parametrize("code", [None, "404", True, [], 4.5])
def test_a_code_is_a_number(code: Any) -> None:
    with pytest.raises(Refused) as caught:
        Client(PLACE, Fake(said({"type": "error", "error_code": code, "error": {"a": 1}}))).get("/1.0")
    assert caught.value.code == 0


@pytest.mark.parametrize(
    "output",
    [b"", b"hello", b"[]", b"{", b"null", b'{"type": "x"}', b'{"type": []}', b"[" * 100_000, b"\xff\xfe", b"1" * 5000],
)
def test_what_is_no_answer_of_incus_names_the_remote(output: bytes) -> None:
    with pytest.raises(NoAnswer, match="the remote lab gave an answer"):
        Client(PLACE, Fake(Completed(0, output, b""))).get("/1.0")


@pytest.mark.parametrize("reason", ["did not end within 5 s", "said more than 67108864 bytes"])
def test_an_overrun_is_no_answer(reason: str) -> None:
    with pytest.raises(NoAnswer, match=f"no answer from the remote lab: its client {reason}"):
        Client(PLACE, Fake(overrun(reason))).get("/1.0")


HINTS = "To start your first container, try: incus launch\n\nError while executing alias expansion: incus query\n"
X509 = 'Get "https://10.0.0.1:8443/1.0": tls: failed to verify certificate: x509: certificate '


@pytest.mark.parametrize(
    ("text", "kind", "brief"),
    [
        ('The remote "lab" doesn\'t exist', NoRemote, "the incus client of uid 1000 knows no remote lab"),
        ("The remote isn't a private server", NoWay, "the remote lab has images only"),
        ("Missing TLS client certificate and key", NoWay, "has no certificate for the remote lab"),
        (X509 + "signed by unknown authority", NoWay, "the remote lab shows another certificate"),
        (X509 + "has expired or is not yet valid: now", NoWay, "the certificate of the remote lab has expired"),
        (
            "You don't have the needed permissions to talk to the incus daemon (socket path: /x)",
            NoWay,
            "uid 1000 may not talk to the Incus of this host",
        ),
        ("Failed to load configuration: yaml: line 1", NoWay, "cannot read its configuration in /home/ann/.config"),
        (
            "The incus daemon doesn't appear to be started (socket path: /var/lib/incus/unix.socket)",
            NoAnswer,
            "the Incus of this host does not run",
        ),
        (
            'Get "https://h:8443/1.0": Unable to connect to: h:8443 ([dial tcp: connect: connection refused])',
            NoAnswer,
            "the remote lab cannot be reached",
        ),
        ('Get "https://h:8443/1.0": lookup h: no such host', NoAnswer, "the remote lab cannot be reached"),
        ("Failed to fetch https://h/1.0: 502 Bad Gateway", NoAnswer, "no answer from the remote lab: Failed to fetch"),
    ],
)
def test_what_the_client_says_is_explained(text: str, kind: type[NoAnswer], brief: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        Client(PLACE, Fake(failure(f"{HINTS}Error: {text}\n"))).get("/1.0")
    assert type(caught.value) is kind
    assert brief in caught.value.brief
    assert caught.value.resolution
    assert "alias" not in caught.value.brief + caught.value.details


def test_a_client_that_is_not_there() -> None:
    with pytest.raises(ProgramMissing, match="incus is not installed"):
        Client(PLACE, Fake(failure("env: 'incus': No such file or directory\n", 127))).get("/1.0")
    with pytest.raises(HutchError, match="cannot be run as uid 1000"):
        Client(PLACE, Fake(failure("setpriv: setresuid failed\n"))).get("/1.0")


def test_a_change_at_once() -> None:
    fake = Fake(answer({"a": 1}))
    assert Client(PLACE, fake).change("POST", instance_path("web"), {"config": {"user.x": "é -d"}}) == {"a": 1}
    assert fake.asked == [
        [
            *("query", "--raw", "--request=POST", '--data={"config":{"user.x":"\\u00e9 -d"}}'),
            "lab:/1.0/instances/web?project=hutch",
        ]
    ]


def test_a_change_that_is_waited_for() -> None:
    fake = Fake(answer(kind="async", operation=OPERATION + "?project=x"), answer({"err": "", "metadata": {"b": 2}}))
    assert Client(PLACE, fake).change("DELETE", instance_path("web"), seconds=60) == {"b": 2}
    assert fake.asked[1][-1].startswith(f"lab:{OPERATION}/wait?timeout=")
    assert fake.seconds[0] == 60
    assert 60 < fake.seconds[1] <= 60 + incus.GRACE


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (refusal(400, "The instance is already running"), 400),
        (answer({"err": "The instance is already running", "status_code": 400}), 400),
    ],
)
def test_an_operation_that_fails(ended: Completed, code: int) -> None:
    with pytest.raises(Refused) as caught:
        Client(PLACE, Fake(answer(kind="async", operation=OPERATION), ended)).change(
            "PUT", "/1.0/instances/web/state", {}
        )
    assert (caught.value.code, caught.value.text) == (code, "The instance is already running")
    assert caught.value.details == "asked: PUT /1.0/instances/web/state"


def test_an_operation_that_lasts_too_long_is_no_refusal() -> None:
    begun, late = answer(kind="async", operation=OPERATION), refusal(500, "context deadline exceeded")
    with pytest.raises(NoAnswer, match="has not come to an end within 1 s"):
        Client(PLACE, Fake(begun, late, answer({"status": "Running"}))).change("POST", "/1.0/images", seconds=1)
    with pytest.raises(Refused):  # the operation's own failure
        Client(PLACE, Fake(begun, late, answer({"status": "Failure"}))).change("POST", "/1.0/images", seconds=1)


@pytest.mark.parametrize(
    "operation", ["", "/1.0/operations/../instances/web", "https://elsewhere/1.0", OPERATION + "/x"]
)
def test_an_operation_is_one_of_the_api(operation: str) -> None:
    fake = Fake(answer(kind="async", operation=operation))
    with pytest.raises(NoAnswer, match="not Incus's"):
        Client(PLACE, fake).change("POST", "/1.0/instances", {})


@pytest.mark.parametrize("metadata", [None, [], "x"])
def test_the_end_of_an_operation_is_an_object(metadata: Any) -> None:
    with pytest.raises(NoAnswer, match="not Incus's"):
        Client(PLACE, Fake(answer(kind="async", operation=OPERATION), answer(metadata))).change("POST", "/1.0/x", {})


def test_a_body_that_is_too_long_for_a_command_is_refused() -> None:
    fake = Fake()
    with pytest.raises(HutchError, match="too much for the incus client"):
        Client(PLACE, fake).change("POST", "/1.0/instances", {"a": "x" * 200_000})
    assert fake.asked == []


def test_a_text_is_not_taken_for_an_answer() -> None:
    def text(result: Completed) -> str:
        return Client(PLACE, Fake(result)).text("/1.0/instances/web/console")

    assert text(Completed(0, b"Debian\xff\n", b"")) == "Debian\N{REPLACEMENT CHARACTER}\n"
    assert text(Completed(0, b'{"type": "sync"}', b"")) == '{"type": "sync"}'
    assert text(Completed(0, b"{" * 50_000, b"")) == "{" * 50_000
    assert text(failure("Error: EOF\n")) == ""
    with pytest.raises(Refused, match="not found"):
        text(refusal(404, "Instance not found"))
    with pytest.raises(NoAnswer):
        text(failure('Error: Get "https://h/1.0": EOF\n'))


def test_a_verb_of_the_client() -> None:
    fake = Fake(Completed(0, b"\x00\xff", b""), Completed(3, b"", b"Error: x"))
    client = Client(PLACE, fake)
    assert client.run("image", "export", "lab:x", seconds=9).stdout == b"\x00\xff"
    assert client.run("exec", client.of("web"), "--", "true", check=False).returncode == 3
    assert fake.asked == [["image", "export", "lab:x"], ["exec", "lab:web", "--", "true"]]
    assert fake.told == []
    with pytest.raises(Refused, match="`incus file pull` failed at the remote lab: file does not exist") as caught:
        Client(PLACE, Fake(failure(f"{HINTS}Error: file does not exist\n"))).run("file", "pull", "lab:web/x", "-")
    assert (caught.value.code, caught.value.text) == (0, "file does not exist")


def test_secret_files_come_by_standard_input() -> None:
    fake = Fake(answer(), answer())
    Client(PLACE, fake).push("web", {"/etc/a": b"secret", "/etc/b": b""})
    options = ["--quiet", "--create-dirs", "--uid=0", "--gid=0", "--mode=0600", "-"]
    assert fake.asked == [["file", "push", *options, f"lab:web/etc/{file}"] for file in "ab"]
    assert fake.told == [b"secret", b""]
    with pytest.raises(Refused, match="file push"):
        Client(PLACE, Fake(failure("Error: Instance not found"))).push("web", {"/etc/a": b""})


def test_half_a_character_is_no_text() -> None:
    """JSON may have it; a path, a command line and a terminal may not."""
    told = Client(PLACE, Fake(Completed(0, b'{"type": "sync", "metadata": ["\\ud800x", "\\ud83d\\ude00"]}', b""))).get(
        "/1.0"
    )
    assert told == ["?x", "\N{GRINNING FACE}"]


def test_files_that_are_not_there_need_not_be_removed() -> None:
    fake = Fake(failure("Error: file does not exist\n"), Completed(0, b"", b""))
    Client(PLACE, fake).unlink("web", ["/a", "/b"])
    assert fake.asked == [["file", "delete", "lab:web/a"], ["file", "delete", "lab:web/b"]]
