"""What whoever asked for a name is told beside the answer: an extended DNS error (RFC 8914) with the rule, and what to
do about it. Pure, on messages of dnspython.

`hutch-why` in a workspace asks with the option WHY, and hears the reason of a yes too.
"""

from __future__ import annotations

import dns.edns
import dns.message

from hutch.egress.record import DENIED, NOT_LISTED, escaped
from hutch.egress.views import Ruling, View
from hutch.spec.decisions import words

WHY = 65083
"""The number of the EDNS option by which the reason of a yes is asked for: one of those for local use."""
LONGEST_NAME = 64
"""The longest name in a reason: an answer without more room than 512 bytes has to hold the question too."""
LONGEST = 230  # bytes
PRIVATE_ANSWER = "it leads to private addresses only; such a network is opened by number, in egress of hutch.toml"


def reason_of(view: View, name: str, ruling: Ruling, *, is_private: bool = False) -> str:
    """The reason of a ruling on a name, and the command that changes it. `is_private` says that the answer has lost
    all of its addresses."""
    short = escaped(name)
    short = short if len(short) <= LONGEST_NAME else "NAME"
    if is_private:
        text = PRIVATE_ANSWER
    elif ruling.why == NOT_LISTED:
        text = (
            f"egress of {view.workspace} does not list it. "
            f"A person on the host can open it: hutch allow {view.workspace} {short}"
        )
    elif ruling.why == DENIED:
        text = f"a person has said no: hutch deny {view.workspace}. Only they can take that back"
    elif ruling.answer == "refuse":
        text = ruling.why
    else:
        text = _reason_of_yes(view, ruling)
    return text[:LONGEST]


def _reason_of_yes(view: View, ruling: Ruling) -> str:
    if ruling.ports is None or ruling.ports:
        ports = "" if ruling.ports is None else f", at port {' and '.join(map(str, ruling.ports))} only"
        by = [f"egress of {view.workspace} lists it{ports}"]
    else:
        by = []
    by += [f"a person has opened {words(permit.decision)}" for permit in ruling.permits]
    return "; ".join(by) or "learn = true lets unlisted traffic pass, and records it"


def asks_why(question: dns.message.Message) -> bool:
    return any(option.otype == WHY for option in question.options)


def tell(answer: dns.message.Message, question: dns.message.Message, code: dns.edns.EDECode, text: str) -> None:
    """Put a reason into an answer to somebody who understands it."""
    if question.edns >= 0:
        answer.use_edns(0, 0, answer.payload, answer.request_payload, [dns.edns.EDEOption(code, text)])
