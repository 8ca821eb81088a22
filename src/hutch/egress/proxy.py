"""The egress proxy: answers the questions of watched workspaces by their policies, opens to them what the answers name,
and writes down their questions and connections.

A file tells it whom it serves. When it ends, names are no longer answered and opened addresses run out; nothing opens.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from socket import socket

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from hutch.egress import telling
from hutch.egress.answers import Judged, judge, reply
from hutch.egress.front import Front
from hutch.egress.journal import PAUSE, Journal
from hutch.egress.keeper import Kept
from hutch.egress.known import Known
from hutch.egress.nflog import Nflog, Packet
from hutch.egress.reasons import asks_why, reason_of, tell
from hutch.egress.record import EgressEvent, Verdict, escaped, lost
from hutch.egress.sets import SLACK, Element, SetsFailed, lent_element, listed_elements
from hutch.egress.telling import Teller
from hutch.egress.upstream import Unanswered, Upstream
from hutch.egress.views import Ruling, View, digest, plain_name, read_views, rule_on
from hutch.frozen import dataclass
from hutch.spec.decisions import Ruled, permits
from hutch.spec.names import HEARD

RULES: dict[str, tuple[Verdict, str]] = {
    "listed": ("allowed", ""),
    "listed-port": ("allowed", ""),
    "network": ("allowed", "a listed network"),
    "network-port": ("allowed", "a listed network"),
    "private": ("allowed", "a private network"),
    "private-port": ("allowed", "a private network"),
    "lent": ("allowed", "allowed by a person"),
    "lent-port": ("allowed", "allowed by a person"),
    "learned": ("learned", "not listed"),
    "not-listed": ("refused", "not listed"),
    "denied": ("refused", "a private network"),
    "never": ("refused", "closed to all workspaces"),
    "host": ("refused", "the host"),
    "between-workspaces": ("refused", "another workspace"),
}
"""(verdict, reason) of a packet, by the rule of host/network/firewall that has logged it."""
MOST_STEPS = 4  # questions that one question leads to, where names lead to names
BREATH = 0.05  # seconds between two looks at what the kernel has logged


class NoRoom(SetsFailed):
    """Raised when a workspace would open more than one may."""


@dataclass(frozen=True)
class Means:
    """What the keeper has, and what it made by rights that the proxy does not have: the log of what rules hear, the
    sockets for datagrams and for connections, and the one by which a client has the views read anew."""

    kept: Kept
    log: Nflog
    listening: tuple[socket, socket]
    control: socket


class EgressProxy:
    def __init__(self, views: Path, means: Means) -> None:
        self._views_file = views
        text = views.read_text()
        self._told, self._digest = read_views(text), digest(text)
        self._known: defaultdict[str, Known] = defaultdict(Known)
        self._terms: set[tuple[str, int]] = set()
        self._teller = Teller(means.kept)
        self._journal = Journal(means.kept.record, self._tell)
        self._means, self._sets, self._log = means, means.kept, means.log
        self._upstream = Upstream(self._told.upstream)
        self._front = Front(self._told_of, self.answer)
        self._lost = 0
        self._flushing: asyncio.Handle | None = None
        self._telling: asyncio.TimerHandle | None = None

    def _told_of(self, address: str) -> View | None:
        return self._told.views.get(address)

    async def serve(self) -> None:
        """Begin to serve; the rest happens in the event loop."""
        await self._upstream.connect()
        await self._front.listen(*self._means.listening)
        self._sets.forget_terms()  # what was allowed by another one of these
        self._add_terms(self._told.views.values())
        self._hear()
        self._control = await asyncio.start_unix_server(self._on_control, sock=self._means.control)

    # Being told.

    async def _on_control(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.renew(self._views_file.read_text())
            writer.write(f"{self._digest}\n".encode())
        except (OSError, ValueError, KeyError, TypeError, SetsFailed):
            pass  # hutch hears nothing, and starts another one
        finally:
            writer.close()

    def renew(self, text: str) -> None:
        """Take new views. Addresses that stay listed and valid are open under the new policy before its rules come."""
        if digest(text) == self._digest:
            return
        told, before = read_views(text), self._told
        self._told = told  # whatever fails from now on: what is denied now is not to be permitted once more
        over = self._add_terms(told.views.values())
        try:
            for address, view in told.views.items():
                old = before.views.get(address)
                is_new = old is not None and old.workspace == view.workspace and old.epoch != view.epoch
                if is_new or view.ruled:
                    self._open_again(view, is_new=is_new)
        finally:  # and not before: what another decision opens as well is open all the time
            self._end_terms(over)
        self._digest = digest(text)
        kept = {view.workspace for view in told.views.values()}
        for view in before.views.values():
            if view.workspace not in kept:  # the workspace may be gone for good, with its records
                self._known[view.workspace].forget_answers()
                self._journal.forget(view.workspace)
                self._teller.forget(view.workspace, time.time())
        for workspace in self._known.keys() - kept:
            if self._known[workspace].is_over(time.monotonic()):
                del self._known[workspace]

    def _open_again(self, view: View, *, is_new: bool) -> None:
        """Open the addresses of answers that are valid by what people have decided since; where the policy is a new
        one, by its list as well. What the old one has opened runs out by itself, and counts until then: where there is
        no room for both, whoever asks again is told so."""
        known, now, wall = self._known[view.workspace], time.monotonic(), time.time()
        opened: dict[Element, None] = {}
        rulings: dict[str, tuple[tuple[int, ...] | None, tuple[Ruled, ...]]] = {}
        in_force = (None, *view.terms(wall))
        for name, address, until in known.valid(now):
            if name not in rulings:
                rulings[name] = view.listed.ports(name) if is_new else (), permits(view.ruled, name, wall)
            wanted = places_of(view, {address: until}, *rulings[name])
            if known.open(now, name, wanted, in_force):
                opened.update(dict.fromkeys(wanted))
        self._put(known, [element for element in opened if not known.is_there(element)], now)

    def _put(self, known: Known, elements: Collection[Element], now: float) -> None:
        self._sets.put(known.places(elements, now))
        known.note_there(elements)

    def _add_terms(self, views: Iterable[View]) -> set[tuple[str, int]]:
        """Put in force what people allow now; returns what they do not any more. What ends at a time does so in the
        kernel, by itself."""
        now = time.time()
        wanted = {(view.address, mark): until for view in views for mark, until in view.terms(now).items()}
        for (source, mark), until in wanted.items():
            self._sets.add_term(source, mark, None if until is None else math.ceil(until - now))
            self._terms.add((source, mark))
        return self._terms - wanted.keys()

    def _end_terms(self, over: Iterable[tuple[str, int]]) -> None:
        for source, mark in over:
            self._sets.end_term(source, mark)
            self._terms.discard((source, mark))

    # Answering.

    async def answer(self, view: View, question: dns.message.Message) -> dns.message.Message:
        """The answer to one question."""
        if question.opcode() != dns.opcode.QUERY:
            return reply(question, dns.rcode.NOTIMP)
        (asked,) = question.question  # Front takes no others
        if asked.rdclass != dns.rdataclass.IN:
            return reply(question, dns.rcode.FORMERR)
        name = plain_name(asked.name.labels[:-1])
        ruling = rule_on(view, name, asked.rdtype, time.time())
        if ruling.answer == "empty":
            return reply(question, dns.rcode.NOERROR)
        if ruling.answer == "refuse":
            self._note_question(view, asked.name, ruling)
            return self._explained(reply(question, dns.rcode.REFUSED), question, view, ruling)
        assert name is not None
        try:
            code, judged = await self._look_up(view, dns.name.from_text(name), asked.rdtype)
            if self._told_of(view.address) is not view:  # told anew meanwhile: whoever asked asks again
                return reply(question, dns.rcode.SERVFAIL)
            self._admit(view, name, judged, ruling)
        except (Unanswered, SetsFailed) as error:
            why = "too many addresses" if isinstance(error, NoRoom) else "no answer"
            self._note_question(view, asked.name, ruling, why=why)
            return reply(question, dns.rcode.SERVFAIL)
        self._note_question(view, asked.name, ruling, judged)
        answer = reply(question, code, judged.rrsets)
        is_private = bool(judged.private) and not judged.rrsets
        return self._explained(answer, question, view, ruling, is_private=is_private)

    def _explained(
        self,
        answer: dns.message.Message,
        question: dns.message.Message,
        view: View,
        ruling: Ruling,
        *,
        is_private: bool = False,
    ) -> dns.message.Message:
        """The answer, with the reason why it says no; and with that of a yes, if this is asked for."""
        is_no = ruling.answer == "refuse" or is_private
        if is_no or asks_why(question):
            code = dns.edns.EDECode.BLOCKED if is_no else dns.edns.EDECode.OTHER
            text = _in_words(question.question[0].name)
            tell(answer, question, code, reason_of(view, text, ruling, is_private=is_private))
        return answer

    async def _look_up(
        self, view: View, name: dns.name.Name, kind: dns.rdatatype.RdataType, steps: int = MOST_STEPS
    ) -> tuple[dns.rcode.Rcode, Judged]:
        """The upstream resolver's code and judged response, names followed to their end."""
        response = await self._upstream.ask(name, kind)
        judged = judge(name, kind, response, view.listed.opens)
        if judged.rest is None or steps == 0:
            # Behind another name may be one of the host's network: whether it exists is not said.
            is_elsewhere = bool(judged.private) or any(rrset.rdtype == dns.rdatatype.CNAME for rrset in judged.rrsets)
            return dns.rcode.NOERROR if is_elsewhere else response.rcode(), judged
        code, end = await self._look_up(view, judged.rest, kind, steps - 1)
        return code, judged.followed_by(end)

    def _admit(self, view: View, name: str, judged: Judged, ruling: Ruling) -> None:
        """Open what the answer names, before it is given. The terms of what people allow are put in force again: the
        rules may have been made anew. Raises SetsFailed."""
        known, now = self._known[view.workspace], time.monotonic()
        addresses = {address: now + max(seconds, 1) + SLACK for address, seconds in judged.addresses}
        for address in addresses:
            known.note_name(name, address)
        wanted = places_of(view, addresses, ruling.ports, ruling.permits)
        # What needs no opening now is noted, too: a list may come.
        in_force = (None, *view.terms(time.time()))
        if not known.tell(now, name, addresses) or not known.open(now, name, wanted, in_force):
            raise NoRoom
        for permit in ruling.permits:
            ends = permit.decision.until
            self._sets.add_term(view.address, permit.mark, None if ends is None else math.ceil(ends - time.time()))
        self._put(known, wanted, now)

    # Writing down.

    def _note_question(
        self, view: View, name: dns.name.Name, ruling: Ruling, judged: Judged | None = None, why: str = ""
    ) -> None:
        text, now = escaped(_in_words(name)), time.time()
        for address, _ in judged.addresses if judged is not None else ():
            self._note(view, EgressEvent(now, "dns", ruling.verdict, text, address))
        for address in judged.private if judged is not None else ():
            self._note(view, EgressEvent(now, "dns", "refused", text, address, why="private answer"))
        if judged is None or not (judged.addresses or judged.private):
            self._note(view, EgressEvent(now, "dns", ruling.verdict, text, why=why or ruling.why))

    def _note_packet(self, packet: Packet) -> None:
        rule = packet.prefix.removeprefix(HEARD)
        view = self._told_of(packet.source)
        if view is None or rule not in RULES:
            return
        verdict, why = RULES[rule]
        if verdict == "learned" and view.policy.kind in ("internet", "all"):
            verdict, why = "allowed", ""
        name = self._known[view.workspace].name_of(packet.destination)
        where = (packet.destination, packet.port, packet.protocol)
        self._note(view, EgressEvent(time.time(), "connection", verdict, name, *where, why=why))

    def _note(self, view: View, record: EgressEvent) -> None:
        self._journal.note(view.workspace, record)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._journal.flush(time.time())
        later = asyncio.get_running_loop().call_later
        self._flushing = later(PAUSE, self._flush) if self._journal.is_waiting() else None

    def _tell(self, workspace: str, records: list[EgressEvent]) -> None:
        """Have the workspace's record told of what has been written to its journal."""
        self._teller.note(workspace, records)
        loop = asyncio.get_running_loop()
        if self._telling is None or self._telling.when() > loop.time() + telling.PAUSE:
            self._tell_later(telling.PAUSE)

    def _tell_later(self, seconds: float) -> None:
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.get_running_loop().call_later(seconds, self._tell_due)

    def _tell_due(self) -> None:
        self._telling = None
        self._teller.tell(time.time())
        if (due := self._teller.next_due) is not None:
            self._tell_later(min(max(due - time.time(), telling.PAUSE), telling.LONGEST))

    def _hear(self) -> None:
        """Read what the kernel has logged; a flood of it waits, and the excess is lost."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._log)
        for packet in self._log.receive():
            self._note_packet(packet)
        if self._log.lost > self._lost:
            for view in self._told.views.values():  # nobody knows whose they were
                self._note(view, lost(time.time(), self._log.lost - self._lost, "more than could be heard"))
            self._lost = self._log.lost
        loop.call_later(BREATH, loop.add_reader, self._log, self._hear)

    def close(self) -> None:
        """Write the records that are not written yet."""
        self._journal.flush()
        self._teller.close(time.time())


def places_of(
    view: View, addresses: Mapping[str, float], ports: tuple[int, ...] | None, allowed: Sequence[Ruled]
) -> dict[Element, tuple[float, int | None]]:
    """The elements that open addresses by the list, at these ports (None for all), and by what people allow, each until
    the address's time, by its mark. Of two decisions that open the same, the one counts that ends last."""
    allowed = sorted(allowed, key=lambda permit: -math.inf if permit.decision.until is None else -permit.decision.until)
    found: dict[Element, tuple[float, int | None]] = {}
    for address, until in addresses.items():
        for element in listed_elements(view.address, view.epoch, address, ports):
            found[element] = until, None
        for permit in allowed:
            found.setdefault(lent_element(view.address, address, permit.domain.port), (until, permit.mark))
    return found


def _in_words(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()
