"""Failures between hutch and an Incus server, as errors that say what to do.

The words are the server's, or those of the user's client: they are shown printable and cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hutch import texts
from hutch.engines import Misplaced
from hutch.errors import HutchError
from hutch.run import Completed, ProgramMissing

if TYPE_CHECKING:
    from hutch.spec.record import Place

LONGEST_TEXT = 600
ERROR = re.compile(r"^Error: (.*)", re.MULTILINE | re.DOTALL)


class NoAnswer(HutchError):
    """The server, or the member that was asked for, has not answered in time, or not as Incus does."""


class NoWay(NoAnswer):
    """The user's client has no way to the server: it knows no such remote, or the two do not trust each other."""


class NoRemote(NoWay, Misplaced):
    """The user's client knows no such remote."""

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, key="remote", details=details, resolution=resolution)


class Foreign(HutchError):
    """The instance, or the volume, of a workspace's name is another's."""


class Refused(HutchError):
    """The server has answered no, as `text`. `code` is that of HTTP; 0 where a verb failed, since it tells none."""

    def __init__(self, brief: str, *, code: int, text: str, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.code = code
        self.text = text


def printable(text: object, longest: int = LONGEST_TEXT) -> str:
    """A server's text, on one line, without what a terminal would take as a command, and cut."""
    return texts.printable(" ".join(str(text).split()), longest)


def explain(ended: Completed, what: str, place: Place) -> HutchError:
    """The error for a client that has failed, which tells why in words only."""
    told = ended.stderr.decode("utf-8", "replace")
    if ended.returncode == 127 and told.startswith("env: "):
        return ProgramMissing(["incus"])
    if told.startswith(("setpriv: ", "env: ")):
        return HutchError(f"the incus client cannot be run as uid {place.account}", details=printable(told))
    text = error_of(ended)
    for pattern, kind, brief, resolution in FAILURES:
        if re.search(pattern, text):
            names = {"remote": place.remote, "conf": place.conf, "account": place.account}
            return kind(
                brief.format_map(names),
                details=f"asked: {what}\nanswer: {text}",
                resolution=resolution.format_map(names),
            )
    if what.partition(" ")[0] in METHODS:  # a refusal would have come as an answer
        return NoAnswer(f"no answer from the remote {place.remote}: {text}", resolution=look(place))
    return Refused(f"`incus {what}` failed at the remote {place.remote}: {text}", code=0, text=text)


def refusal(answer: Mapping[str, Any], what: str, place: Place) -> NoAnswer | Refused:
    """The error for an answer of no."""
    code, text = answer.get("error_code"), printable(answer.get("error"))
    code = code if type(code) is int else 0
    if code == UNAVAILABLE or re.search(NOT_YET, text):
        return NoAnswer(
            f"the remote {place.remote} cannot tell yet: {text}",
            details=f"asked: {what}",
            resolution="a member that has just come is reached by the others within half a minute: try again then",
        )
    trust = f"`incus config trust list {place.remote}: -c nfrp`, as its admin, lists clients and their projects"
    return Refused(
        f"the remote {place.remote} refuses: {text}",
        code=code,
        text=text,
        details=f"asked: {what}",
        resolution=trust if code in (401, 403) else "",
    )


def error_of(ended: Completed) -> str:
    """The client's words for its failure, without its hints for beginners and without the command's own words."""
    told = ended.stderr.decode("utf-8", "replace")
    found = ERROR.search(told)
    return printable(found[1] if found else told)


def look(place: Place) -> str:
    return f"`incus info {place.remote}:` tells whether the server answers at all"


UNAVAILABLE = 503  # of HTTP
NOT_YET = r"^Server isn't ready yet|^Missing event connection with target cluster member"
"""The words of a member about another that is not connected to it yet: they connect at a heartbeat, each 10 seconds."""
METHODS = ("GET", "PUT", "POST", "DELETE")

# The words of the client that do not come from the server: (pattern, kind, brief, resolution).
FAILURES: tuple[tuple[str, type[NoAnswer], str, str], ...] = (
    (
        r"^The remote \".*\" doesn't exist",
        NoRemote,
        "the incus client of uid {account} knows no remote {remote}",
        "`incus remote list` shows those it knows, as {conf} has them; `incus remote add {remote} ADDRESS` adds one",
    ),
    (
        r"^The remote isn't a private server",
        NoWay,
        "the remote {remote} has images only, and runs nothing",
        "`incus remote list` shows the others",
    ),
    (
        r"^Failed to load configuration|^Unable to (read|decode) the configuration",
        NoWay,
        "the incus client cannot read its configuration in {conf}",
        "`incus remote list`, as that user, says the same",
    ),
    (
        r"^Missing TLS client certificate",
        NoWay,
        "the incus client of uid {account} has no certificate for the remote {remote}",
        "`incus remote add {remote} ADDRESS`, as that user, makes one and has it trusted",
    ),
    (
        r"x509: certificate has expired",
        NoWay,
        "the certificate of the remote {remote} has expired, or the clock is wrong here",
        "renew the server's certificate: `incus cluster update-certificate`, or a new server.crt in its directory",
    ),
    (
        r"x509: |failed to verify certificate",
        NoWay,
        "the remote {remote} shows another certificate than when it was added",
        "where its certificate was renewed, `incus remote remove {remote}` and `incus remote add {remote} ADDRESS`",
    ),
    (
        r"^You don't have the needed permissions to talk to the incus daemon",
        NoWay,
        "uid {account} may not talk to the Incus of this host",
        "add that user to the group incus-admin, or run hutch as a user who is in it",
    ),
    (
        r"^The incus daemon doesn't appear to be started",
        NoAnswer,
        "the Incus of this host does not run",
        "`systemctl start incus`; for a server elsewhere, name its remote in [engines.incus]",
    ),
    (
        r"[Cc]onnection refused|connection reset|unreachable|no route to host|no such host|[Tt]imeout|: EOF$",
        NoAnswer,
        "the remote {remote} cannot be reached",
        "`incus remote list` shows its address; `incus info {remote}:` tells whether the server answers at all",
    ),
)
