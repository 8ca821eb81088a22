"""The `incus` client, run as the user who called: questions to a server, changes, and the client's verbs.

Owns how the client is started, how long anything may take, and what its answers and failures mean; knows nothing of
workspaces but their names. Remotes, certificates and rights are the user's own, so the client runs with their
configuration, as them, and never as root on behalf of somebody else.

A server is not believed: an answer has at most MOST_BYTES, must be JSON in the form of Incus's API, and its texts are
shown printable and cut. What stands in an answer's metadata is for the caller to compare with what it expects.

`incus query` of the 6.0 series takes a body from its command line only, which every user of the host can read: no body
has a secret. Secrets are files, which `incus file push` reads from its standard input.

Others change things on a server, too: another hutch, an administrator, Incus itself. What hutch changes of something
that is there, it changes by `update`: it reads, decides by what it has read, such as `user.hutch.id`, and writes with
If-Match, so the server refuses what was decided by something else than what stands there. Those requests go through
the client's proxy, since `incus query` lets no ETag through. Incus takes If-Match with PUT and PATCH alone: whose it is
that is deleted, moved or started is looked up right before.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from hutch import run
from hutch.engines.incus import proxied
from hutch.engines.incus.addresses import Route
from hutch.engines.incus.failures import NoAnswer, Refused, error_of, explain, look, printable, refusal
from hutch.errors import HutchError
from hutch.run import CommandFailed, Completed
from hutch.search_path import SEARCH_PATH
from hutch.spec.names import is_name

if TYPE_CHECKING:
    from hutch.spec.record import Place

MOST_BYTES = 64 * 2**20
"""The largest answer that is read; after it the client is killed."""
LONGEST_BODY = 120 * 1024  # bytes of one argument: the kernel's limit is 128 KiB
GRACE = 5.0
"""Seconds that a server has beyond a deadline to say that it has passed."""
READ_SECONDS = 5.0
ATTEMPTS = 5
"""Readings of something that others change all the time, before nothing is made of its change."""
PRECONDITION_FAILED, BAD_GATEWAY = 412, 502

PATH = re.compile(r"/1\.0(/[A-Za-z0-9._~%:-]+)*(\?[A-Za-z0-9._~%:=&,+-]*)?", re.ASCII)
OPERATION = re.compile(r"/1\.0/operations/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:\?.*)?", re.ASCII)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character, as JSON may have it, which no path and no terminal can be told."""

Exchange = Callable[..., list[Completed | CommandFailed]]
Said = tuple[dict[str, Any], str]
"""An answer, and its ETag; "" without one."""
Make = Callable[[Any], Any]
"""A pure function from the metadata of something to the body that is to change it; None for no change."""


def path_to(*parts: str, **query: str | int) -> str:
    """The path of something in the API, each part of it quoted: `path_to("networks", "hutch", recursion=1)`."""
    path = "".join(f"/{quote(part, safe='')}" for part in ("1.0", *parts))
    return path + (f"?{urlencode(query)}" if query else "")


def instance_path(name: str, *parts: str, **query: str | int) -> str:
    """The path of a workspace's instance, or of a part of it."""
    return path_to("instances", checked(name), *parts, **query)


def checked(name: str) -> str:
    """`name`, which must be a workspace's: nothing else becomes an instance's."""
    if not is_name(name):
        raise ValueError(f"not the name of a workspace: {name!r}")
    return name


class Client:
    """The client of the user `place.account`, for one remote and one project. May be asked by one thread at a time.

    All times are in seconds. Each method raises NoAnswer when one passes or nobody answers, and Refused when the server
    says no. After a NoAnswer a change may still be made, so it is made again only once the server has been asked.
    Questions and changes go by the `route`. Verbs go by the way that it has found, and so does an update, which has it
    find another one where nothing can be read.
    """

    def __init__(
        self,
        place: Place,
        exchange: Exchange = run.exchange,
        dial: Callable[..., proxied.Proxy] = proxied.Proxy,
        route: Route | None = None,
    ) -> None:
        for word in (place.remote, place.project):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", word, re.ASCII):
                raise ValueError(f"not a name of Incus's: {word!r}")
        self.place = place
        self.exchange = exchange
        self.dial = dial
        self.route = route or Route()
        self._ahead: dict[str, dict[str, Any] | NoAnswer | Refused] = {}

    def argv(self, *words: str, is_mortal: bool = False) -> list[str]:
        """The command that runs the client with these words, as its user, in the project, with nothing inherited. One
        that `is_mortal` is killed when hutch ends, whatever ends it."""
        place = self.place
        try:
            user = pwd.getpwuid(place.account)
        except KeyError:
            raise HutchError(
                f"the user {place.account} is not known on this host any more",
                details=f"the remote {place.remote} is reached with that user's incus client",
                resolution="run hutch as a user whose incus client knows the remote",
            ) from None
        variables = {
            "PATH": SEARCH_PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "INCUS_CONF": place.conf,
            "INCUS_PROJECT": place.project,
            "INCUS_ALIASES": "1",  # the client looks for no alias, which could make anything of a word
        }
        state: list[str] = []
        if os.geteuid() == 0 and place.account != 0:
            ids = (f"--reuid={place.account}", f"--regid={user.pw_gid}", "--init-groups")
            state = [*ids, "--inh-caps=-all", "--no-new-privs"]
        if is_mortal:
            state.append("--pdeathsig=KILL")
        starter = ["setpriv", *state, "--"] if state else []
        return [*starter, *self.route.words(variables), "incus", *words]

    def of(self, name: str, path: str = "") -> str:
        """A workspace's instance, or a file in it, as the client's verbs take it: `lab:web/etc/hostname`."""
        if path and not path.startswith("/"):
            raise ValueError(f"not an absolute path: {path!r}")
        return f"{self.place.remote}:{checked(name)}{path}"

    def get(self, path: str, *, seconds: float = 5.0, project: bool = True) -> Any:
        """The metadata of an answer. `project` says whether the question is about what is in the project."""
        answer = self._ahead.pop(self._whole(path, project), None)
        if answer is None:
            [answer] = self._ask_all([("GET", path, None)], seconds, project)
        return _metadata(answer)

    def ask_ahead(self, questions: Mapping[str, bool], *, seconds: float = 5.0) -> None:
        """Ask side by side what is about to be asked one by one: path -> `project`. The next `get` of each has its
        answer then, unless something is changed before, or a verb run, or this is called again."""
        paths = [self._whole(path, project) for path, project in questions.items()]
        answers = self._ask_all([("GET", path, None) for path in paths], seconds, False)
        self._ahead = dict(zip(paths, answers, strict=True))

    def get_all(
        self, paths: Sequence[str], *, seconds: float = 5.0, project: bool = True, within: float | None = None
    ) -> list[Any]:
        """The metadata of several answers, asked for side by side; a NoAnswer or a Refused where there is none.

        `seconds` is for each, and run.AT_ONCE are asked at a time. After `within` seconds no more are asked.
        """
        answers = self._ask_all([("GET", path, None) for path in paths], seconds, project, within=within)
        return [answer if isinstance(answer, HutchError) else answer.get("metadata") for answer in answers]

    def text(self, path: str, *, seconds: float = 10.0, most: int = 2**22) -> str:
        """An answer that is text, such as a console's log, of at most `most` bytes."""
        what = f"GET {path}"
        [result] = self._exchange([("GET", self._whole(path, True), None)], seconds, most=most)
        ended = self._came_to_an_end(result, what)
        if ended.returncode != 0 and error_of(ended) == "EOF":  # the client looks for JSON first, and found nothing
            return ""
        output = self._ended(ended, what).stdout
        answer = _json(output) if output.startswith(b"{") else None
        if isinstance(answer, dict) and answer.get("type") == "error":
            raise refusal(answer, what, self.place)
        return output.decode("utf-8", "replace")

    def update(self, path: str, make: Make, *, seconds: float = 120.0, project: bool = True) -> Any:
        """Change what stands at `path` to the body that `make` gives for its metadata, and wait until that is done.
        Where somebody else changes it meanwhile, `make` decides anew; what it raises ends the update. Returns the
        metadata that it has decided by.
        """
        self._ahead.clear()
        deadline = time.monotonic() + seconds
        whole = self._whole(path, project)
        with ExitStack() as proxies:
            try:
                proxy, first = self._begin(proxies, whole, deadline)
            except NoAnswer:  # so nothing has been written
                if not self._finds_another_way(deadline, whole):
                    raise
                proxy, first = self._begin(proxies, whole, deadline)
            seen, answer = self._write(proxy, whole, make, deadline, first)
        if answer is not None:
            self._end(answer, f"PUT {path}", deadline)
        return seen

    def _begin(self, proxies: ExitStack, path: str, deadline: float) -> tuple[proxied.Proxy, Said]:
        """A proxy by the way that is known, and what stands at a path."""
        proxy = proxies.enter_context(closing(self.dial(self._proxy, self.place.account)))
        return proxy, self._read(proxy, path, deadline)

    def _finds_another_way(self, deadline: float, path: str) -> bool:
        """Whether a question is answered by another way than the one that a proxy has tried, which tries no other."""
        if self.route.directory is None:
            return False
        tried = self.route.way
        [answer] = self._ask_all([("GET", "/1.0", None)], min(READ_SECONDS, self._left(deadline, path)), False)
        return not isinstance(answer, NoAnswer) and self.route.way != tried

    def _read(self, proxy: proxied.Proxy, path: str, deadline: float) -> Said:
        return self._say(proxy, "GET", path, seconds=min(READ_SECONDS, self._left(deadline, path)))

    def _write(
        self, proxy: proxied.Proxy, path: str, make: Make, deadline: float, first: Said
    ) -> tuple[Any, dict[str, Any] | None]:
        """What stood at a path, and the answer to its change; None without one."""
        for number in range(ATTEMPTS):
            said, etag = self._read(proxy, path, deadline) if number else first
            seen = said.get("metadata")
            if (body := make(seen)) is None:
                return seen, None
            if not etag:
                raise self._garbled(f"GET {path}")
            try:
                answer, _ = self._say(proxy, "PUT", path, body, etag, seconds=self._left(deadline, path))
                return seen, answer
            except Refused as error:
                if error.code != PRECONDITION_FAILED:
                    raise
        remote, project = self.place.remote, self.place.project
        raise HutchError(
            f"somebody else changes {path} of {remote} again and again",
            resolution=f"`incus monitor {remote}: --project {project}` shows who; then try again",
        )

    def _left(self, deadline: float, path: str) -> float:
        """The seconds that a change has left."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise NoAnswer(
                f"the remote {self.place.remote} has not changed {path} in time", resolution=look(self.place)
            )
        return left

    def _proxy(self, socket: str) -> list[str]:
        words = ("remote", "proxy", f"{self.place.remote}:", socket, f"--timeout={proxied.IDLE_SECONDS}")
        return self.argv(*words, is_mortal=True)

    def _say(
        self, proxy: proxied.Proxy, method: str, path: str, body: Any = None, etag: str = "", *, seconds: float
    ) -> Said:
        """The answer to a request that goes through a proxy, and its ETag."""
        what = f"{method} {path}"
        run.listener((method, path))
        request = proxied.render(method, path, body, etag)
        reply = proxied.read(self._ended(proxy.ask(request, timeout=seconds, most=MOST_BYTES), what).stdout)
        if reply is None:
            raise self._garbled(what)
        if reply.code == BAD_GATEWAY:  # the proxy says so, who has lost the server
            raise NoAnswer(f"no answer from the remote {self.place.remote}", resolution=look(self.place))
        return self._answer(reply.body, what), reply.etag

    def change(self, method: str, path: str, body: Any = None, *, seconds: float = 120.0, project: bool = True) -> Any:
        """Make something, remove it, or have something done to it, and wait until it is done. Returns the metadata of
        the answer, or of the operation. What a thing is to be is `update`'s to change.

        The body must not have secrets, see above. An operation that lasts longer than `seconds` goes on.
        """
        self._ahead.clear()
        deadline = time.monotonic() + seconds
        [answer] = self._ask_all([(method, path, body)], seconds, project)
        if isinstance(answer, HutchError):
            raise answer
        return self._end(answer, f"{method} {path}", deadline)

    def _end(self, answer: dict[str, Any], what: str, deadline: float) -> Any:
        """The end of what the server has begun: the metadata of its answer, or of the operation that it tells of."""
        if answer["type"] != "async":
            return answer.get("metadata")
        found = OPERATION.fullmatch(str(answer.get("operation")))
        if found is None:
            raise self._garbled(what)
        return self._wait(found[1], what, max(1.0, deadline - time.monotonic()))

    def _wait(self, operation: str, what: str, seconds: float) -> Any:
        """Wait for an operation. The server is told for how long, so that a long one is not taken for a dead server."""
        waiting = ("GET", path_to("operations", operation, "wait", timeout=int(seconds)), None)
        [answer] = self._ask_all([waiting], seconds + GRACE, True, what)
        if isinstance(answer, Refused) and "context deadline exceeded" in answer.text and self._runs(operation):
            raise NoAnswer(
                f"{what} has not come to an end within {seconds:.0f} s at the remote {self.place.remote}",
                resolution=f"`incus operation show {self.place.remote}:{operation}` tells how far it is",
            )
        ended = _metadata(answer)
        if not isinstance(ended, dict):
            raise self._garbled(what)
        if ended.get("err"):
            raise refusal({"error": ended["err"], "error_code": ended.get("status_code")}, what, self.place)
        return ended.get("metadata")

    def _runs(self, operation: str) -> bool:
        [answer] = self._ask_all([("GET", path_to("operations", operation), None)], GRACE, True)
        if isinstance(answer, HutchError):
            return isinstance(answer, NoAnswer)
        metadata = answer.get("metadata")
        return isinstance(metadata, dict) and metadata.get("status") in ("Pending", "Running", "Cancelling")

    def run(
        self,
        *words: str,
        stdin: bytes | None = None,
        seconds: float = 30.0,
        check: bool = True,
        most: int = MOST_BYTES,
    ) -> Completed:
        """Run a verb of the client in the project, with `stdin`, which may be secret. Its output is bytes.

        Without `check`, a code other than 0 is the caller's to judge: for `exec`, where a guest may have made it up.
        """
        self._ahead.clear()
        told = [] if stdin is None else [stdin]
        [result] = self.exchange([self.argv(*words)], stdin=told, timeout=seconds, most=most)
        what = " ".join(words[:2])
        ended = self._came_to_an_end(result, what)
        if check and ended.returncode != 0:
            raise explain(ended, what, self.place)
        return ended

    def push(self, name: str, files: Mapping[str, bytes], *, seconds: float = 30.0) -> None:
        """Write files, which may be secret, into an instance: absolute path -> content.

        Each is root's, 0600; directories that are missing are root's, 0755. In one that runs, the guest's root may
        make these paths lead elsewhere, but not out of the guest: the server writes from within.
        """
        self._ahead.clear()
        words = ("file", "push", "--quiet", "--create-dirs", "--uid=0", "--gid=0", "--mode=0600", "-")
        commands = [self.argv(*words, self.of(name, path)) for path in files]
        results = self.exchange(commands, stdin=list(files.values()), timeout=seconds, most=MOST_BYTES)
        for path, result in zip(files, results, strict=True):
            self._ended(result, f"file push {path}")

    def unlink(self, name: str, paths: Sequence[str], *, seconds: float = 30.0) -> None:
        """Remove files from an instance that does not run, as far as they are there; links are not followed."""
        self._ahead.clear()
        commands = [self.argv("file", "delete", self.of(name, path)) for path in paths]
        self.exchange(commands, timeout=seconds, most=MOST_BYTES)

    def _ask_all(
        self,
        questions: Sequence[tuple[str, str, Any]],
        seconds: float,
        project: bool,
        what: str = "",
        within: float | None = None,
    ) -> list[dict[str, Any] | NoAnswer | Refused]:
        """The answers to (method, path, body); an error where there is none."""
        whole = [(method, self._whole(path, project), body) for method, path, body in questions]
        bound = {} if within is None else {"within": within}
        results = self._exchange(whole, seconds, most=MOST_BYTES, **bound) if whole else []
        answers: list[dict[str, Any] | NoAnswer | Refused] = []
        for (method, path, _), result in zip(questions, results, strict=True):
            try:
                asked = what or f"{method} {path}"
                answers.append(self._answer(self._ended(result, asked).stdout, asked))
            except (NoAnswer, Refused) as error:
                answers.append(error)
        return answers

    def _exchange(
        self, questions: Sequence[tuple[str, str, Any]], seconds: float, **options: float
    ) -> list[Completed | CommandFailed]:
        """How clients ended that were told (method, path, body)."""
        return self.route.ask(
            self.exchange,
            lambda: [self._query(*question) for question in questions],
            seconds=seconds,
            may_be_killed=all(method == "GET" for method, *_ in questions),
            **options,
        )

    def _whole(self, path: str, project: bool) -> str:
        """`path`, which must be one of the API's and quoted, with the project."""
        if not PATH.fullmatch(path) or {".", ".."} & set(path.partition("?")[0].split("/")):
            raise ValueError(f"not a path of Incus's API: {path!r}")
        return f"{path}{'&' if '?' in path else '?'}project={self.place.project}" if project else path

    def _query(self, method: str, path: str, body: Any) -> list[str]:
        words = ["query", "--raw", f"--request={method}"]
        if body is not None:
            data = json.dumps(body, separators=(",", ":"))
            if len(data) > LONGEST_BODY:
                raise HutchError(
                    f"{method} {path} is too much for the incus client: {len(data)} bytes, of {LONGEST_BODY}",
                    resolution="make the workspace's lists in hutch.toml shorter",
                )
            words.append(f"--data={data}")
        return self.argv(*words, f"{self.place.remote}:{path}")

    def _answer(self, said: bytes, what: str) -> dict[str, Any]:
        """What the server answered. With --raw the client prints a refusal as well, and so its code."""
        answer = _json(said)
        if not isinstance(answer, dict) or answer.get("type") not in ("sync", "async", "error"):
            raise self._garbled(what)
        if answer["type"] == "error":
            raise refusal(answer, what, self.place)
        return answer

    def _ended(self, result: Completed | CommandFailed, what: str) -> Completed:
        """A client that has ended well."""
        ended = self._came_to_an_end(result, what)
        if ended.returncode != 0:
            raise explain(ended, what, self.place)
        return ended

    def _came_to_an_end(self, result: Completed | CommandFailed, what: str) -> Completed:
        if isinstance(result, Completed):
            return result
        raise NoAnswer(
            f"no answer from the remote {self.place.remote}: its client {result.reason}",
            details=f"asked: {what}\n{printable(result.stderr)}".strip(),
            resolution=look(self.place),
        )

    def _garbled(self, what: str) -> NoAnswer:
        return NoAnswer(f"the remote {self.place.remote} gave an answer that is not Incus's", details=f"asked: {what}")


def _json(output: bytes) -> Any:
    """The value that an answer is, with texts that are UTF-8; None for what is none, or is nested too deeply."""
    try:
        if SURROGATE.search(output):
            output = json.dumps(json.loads(output), ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(output)
    except (ValueError, RecursionError):
        return None


def _metadata(answer: dict[str, Any] | NoAnswer | Refused) -> Any:
    if isinstance(answer, HutchError):
        raise answer
    return answer.get("metadata")
