"""The part of an answer that reaches a workspace, and the addresses that it opens. Pure, on messages of dnspython.

An answer is made anew from the records that belong to the question: the chain of names that leads from it to addresses.
Private addresses are taken out; whoever runs a listed name could otherwise point it at the host's network.
"""

from __future__ import annotations

from collections.abc import Callable

import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from hutch.frozen import dataclass
from hutch.spec.ranges import is_never, is_private

LONGEST_CHAIN = 16  # names
MOST_ADDRESSES = 64
LONGEST_VALID = 3600  # seconds; so long is an answer believed at most


@dataclass(frozen=True)
class Judged:
    """`rrsets` are the answer; `addresses` those it opens, with the seconds that each is valid; `private` those taken
    out; `rest` is the name that the chain ends with where it leads to nothing, to be asked for in turn."""

    rrsets: tuple[dns.rrset.RRset, ...]
    addresses: tuple[tuple[str, int], ...] = ()
    private: tuple[str, ...] = ()
    rest: dns.name.Name | None = None

    def followed_by(self, end: Judged) -> Judged:
        """This with the judged response for its `rest`, of which nothing is valid for longer than the way there."""
        seconds = min((rrset.ttl for rrset in self.rrsets), default=LONGEST_VALID)
        addresses = tuple((address, min(valid, seconds)) for address, valid in end.addresses)
        is_emptied = end.private and not end.rrsets
        return Judged(() if is_emptied else (*self.rrsets, *end.rrsets), addresses, end.private)


def judge(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, response: dns.message.Message, opens: Callable[[str], bool]
) -> Judged:
    """The part of a response that belongs to its question; `opens` says whether the policy names the network of a
    private address. Only addresses are looked for behind other names: else whoever runs a listed name could have any
    record of the host's own network told."""
    chain: list[dns.rrset.RRset] = []
    seconds = LONGEST_VALID
    while len(chain) < LONGEST_CHAIN:
        step = _find(response, name, dns.rdatatype.CNAME)
        if step is None or kind == dns.rdatatype.CNAME:
            break
        seconds = min(seconds, step.ttl)
        chain.append(_copy(step, list(step)[:1], seconds))
        name = step[0].target
    if chain and kind != dns.rdatatype.A:
        return Judged(tuple(chain[:1]))
    found = _find(response, name, kind)
    if found is None:
        is_open = bool(chain) and response.rcode() == dns.rcode.NOERROR
        return Judged(tuple(chain), rest=name if is_open and len(chain) < LONGEST_CHAIN else None)
    seconds = min(seconds, found.ttl)
    if kind != dns.rdatatype.A:
        return Judged((*chain, _copy(found, list(found), seconds)))
    kept, addresses, private = [], [], []
    for data in list(found)[:MOST_ADDRESSES]:
        address = data.address
        if is_never(address) or (is_private(address) and not opens(address)):
            private.append(address)
            continue
        kept.append(data)
        if not is_private(address):
            addresses.append((address, seconds))
    rrsets = (*chain, _copy(found, kept, seconds)) if kept else ()
    return Judged(rrsets, tuple(addresses), tuple(private))


def _find(response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
    return response.get_rrset(response.answer, name, dns.rdataclass.IN, kind)


def _copy(rrset: dns.rrset.RRset, data: list[dns.rdata.Rdata], seconds: int) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(rrset.name, seconds, data)


def reply(
    question: dns.message.Message, code: dns.rcode.Rcode, rrsets: tuple[dns.rrset.RRset, ...] = ()
) -> dns.message.Message:
    """The answer to a question, with these records."""
    message = dns.message.make_response(question, recursion_available=True)
    message.set_rcode(code)
    message.answer.extend(rrsets)
    return message
