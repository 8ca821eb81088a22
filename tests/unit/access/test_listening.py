"""What is made of a guest's word about its ports, and which of them are forwarded."""

from __future__ import annotations

import pytest

from hutch.access.listening import (
    AT_ONCE,
    MOST_FORWARDS,
    MOST_LISTENERS,
    Forward,
    Listener,
    choose,
    parse_listeners,
    targets,
)

REST = "00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0000000000000000 100 0 0 10 0"


def line(address: str, port: int, inode: int = 1, state: str = "0A") -> str:
    return f"   0: {address}:{port:04X} {'0' * len(address)}:0000 {state} {REST.format(inode=inode)}"


EVERYWHERE, LOCAL, ANOTHER, OWN = "00000000", "0100007F", "3500007F", "0253A8C0"
EVERYWHERE_6, LOCAL_6, MAPPED = "0" * 32, "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + LOCAL


def test_addresses_and_ports_are_read() -> None:
    said = [line(OWN, 80), line(LOCAL, 3000), line(EVERYWHERE, 22), line(ANOTHER, 53)]
    said += [line(EVERYWHERE_6, 22), line(LOCAL_6, 3000), line(MAPPED, 4000)]
    assert parse_listeners("\n".join(said)) == (
        Listener(22, "0.0.0.0"),
        Listener(22, "::"),
        Listener(53, "127.0.0.53"),
        Listener(80, "192.168.83.2"),
        Listener(3000, "127.0.0.1"),
        Listener(3000, "::1"),
        Listener(4000, "127.0.0.1"),
    )


def test_a_program_is_named_by_the_first_process_that_holds_the_socket() -> None:
    said = [line(EVERYWHERE, 80, 77), line(EVERYWHERE, 81, 78), line(EVERYWHERE, 82, 79)]
    said += ["/proc/12/fd:", "lrwx------ 1 0 0 64 Nov 28 19:00 5 -> socket:[77]", "lr-x 0 -> /dev/null"]
    said += ["/proc/5/fd:", "lrwx------ 1 0 0 64 Nov 28 19:00 3 -> socket:[77]", "l 4 -> socket:[78]"]
    said += ["/proc/5/comm:nginx: master", "/proc/12/comm:nginx"]
    named = [listener.program for listener in parse_listeners("\n".join(said))]
    assert named == ["nginx: master", "nginx: master", None]
    assert parse_listeners(said[0])[0].to_json() == {"address": "0.0.0.0", "port": 80, "program": None}


@pytest.mark.parametrize(
    "said",
    [
        "",
        "\0" * 100,
        "\x1b[2J",
        line("0000000", 80),
        line("g" * 8, 80),
        line(EVERYWHERE, 0),
        line(EVERYWHERE, 80).replace("0050", "00500"),
        "0: 00000000:0050",
        "/proc/99999999999/fd:\n/proc/1/comm:" + "x" * 1000,
        line(EVERYWHERE, 80).replace("0050", "\u0660\u0660\u0665\u0660"),
    ],
)
def test_what_is_no_listener_is_dropped(said: str) -> None:
    assert parse_listeners(said) == ()


def test_a_hostile_answer_is_bounded_and_printable() -> None:
    said = "\n".join(line(EVERYWHERE, port, port) for port in range(1, 65536))
    assert len(parse_listeners(said)) == MOST_LISTENERS
    names = f"{line(LOCAL, 80, 9)}\n/proc/7/fd:\nx -> socket:[9]\n/proc/7/comm:\x1b]0;a\x07b"
    assert [listener.program for listener in parse_listeners(names)] == [
        "\N{REPLACEMENT CHARACTER}]0;a\N{REPLACEMENT CHARACTER}b"
    ]


def test_targets_are_what_the_inside_reaches() -> None:
    listeners = [
        *(Listener(22, "0.0.0.0"), Listener(53, "127.0.0.53"), Listener(80, "192.168.83.2"), Listener(81, "fd00::1")),
        *(Listener(82, "fe80::1"), Listener(90, "192.168.83.2"), Listener(90, "::"), Listener(3000, "::1")),
    ]
    assert targets(listeners) == {80: "192.168.83.2", 81: "[fd00::1]", 90: "localhost", 3000: "localhost"}


def test_no_way_listens_anywhere_but_on_the_loopback() -> None:
    assert Forward(80, 3000, "[fd00::1]").words() == ("-L", "127.0.0.1:3000:[fd00::1]:80")
    assert Forward(5432, 5432, is_reverse=True).words() == ("-R", "127.0.0.1:5432:127.0.0.1:5432")


def test_ways_follow_what_listens() -> None:
    found = {3000: "localhost", 4000: "localhost"}
    assert choose(found, [], []) == ([3000, 4000], [], False)
    assert choose(found, [3000, 5000], []) == ([4000], [5000], False)
    assert choose(found, [3000], [4000]) == ([], [], False)


def test_ways_are_few_and_come_slowly() -> None:
    many = dict.fromkeys(range(2000, 2000 + 2 * MOST_FORWARDS), "localhost")
    begin, end, is_crowded = choose(many, [], [])
    assert (len(begin), end, is_crowded) == (AT_ONCE, [], True)
    have = list(many)[: MOST_FORWARDS - 1]
    assert choose(many, have, []) == ([2000 + MOST_FORWARDS - 1], [], True)
    begin, end, is_crowded = choose({}, have, [])
    assert (begin, len(end), is_crowded) == ([], AT_ONCE, False)
