"""The events of a machine: taken apart wherever they were cut, and never more kept than one may be long."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.runtime.cloud_hypervisor import BUTTON, LONGEST_EVENT, PANIC, RESET, Events, read_outcome
from tests.support.fake_cloud_hypervisor import Refused, parse_request


def event(source: object, what: object, **properties: str) -> bytes:
    """As cloud-hypervisor writes it."""
    stamp = {"secs": 1, "nanos": 5}
    written = {"timestamp": stamp, "source": source, "event": what, "properties": properties or None}
    return json.dumps(written, indent=2).encode() + b"\n\n"


BOOT = (
    event("vmm", "starting")
    + event("vm", "booting")
    + event("vm", "booted")
    + event("virtio-device", "activated", id="_disk0")
)


def feed(pieces: Iterable[bytes]) -> list[str]:
    events = Events()
    return [outcome for piece in pieces for outcome in events.feed(piece)]


@pytest.mark.parametrize(
    ("said", "outcomes"),
    [
        (BOOT, []),
        (BOOT + event("vm", "rebooting"), [RESET]),
        (event("guest", "panic", event="panic") + event("vm", "rebooting"), [PANIC, RESET]),
        (event("guest", "panic", event="crash_loaded"), []),  # it starts another kernel by itself
        (event("guest", "panic"), []),
        (event("vm", "shutdown") + event("vm", "deleted") + event("vmm", "shutdown"), []),
        (event("virtio-device", "reset", id="rebooting"), []),
        (event("vm", ["rebooting"]), []),
        (event("vm", "rebooting")[:-1], []),  # it is not all there yet
    ],
)
def test_outcomes(said: bytes, outcomes: list[str]) -> None:
    assert feed([said]) == outcomes
    assert feed(bytes([byte]) for byte in said) == outcomes


@given(st.data())
def test_it_does_not_matter_where_the_stream_was_cut(data: st.DataObject) -> None:
    others = st.sampled_from([event("vm", "rebooting"), event("virtio-device", "reset", id="a"), b"\n\n", b"{\n\n"])
    stream = b"".join(data.draw(st.lists(others | st.binary(max_size=40).map(lambda text: text + b"\n\n"), max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(pieces) == feed([stream])


@given(st.lists(st.binary(max_size=6000) | st.just(event("vm", "rebooting")), max_size=20))
def test_any_bytes(pieces: list[bytes]) -> None:
    events = Events()
    for piece in pieces:
        assert all(outcome in (RESET, PANIC) for outcome in events.feed(piece))
        assert len(events._rest) <= LONGEST_EVENT


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_an_event_that_is_too_long_is_passed_over(size: int) -> None:
    said = b'{"a": "' + b"x" * 10_000 + b'"}\n\n' + event("vm", "rebooting")
    assert feed(said[start : start + size] for start in range(0, len(said), size)) == [RESET]


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"1" * 4000, b"[" * 4000, b"{}", b'{"source": {}, "event": []}', b"\xff", b'"\\ud800"'],
)
def test_what_is_no_event_says_nothing(text: bytes) -> None:
    assert read_outcome(text) == ""


def test_the_power_button_is_a_request_of_the_published_interface() -> None:
    assert parse_request(BUTTON) == ("PUT", "/vm.power-button")
    for wrong in (BUTTON.replace(b"PUT", b"GET"), BUTTON.replace(b"/api/v1", b""), BUTTON[:-2], BUTTON + b"{}"):
        with pytest.raises(Refused):
            parse_request(wrong)
