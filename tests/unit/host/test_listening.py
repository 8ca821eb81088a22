"""Which programs of the host would lose a port to a published one."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hutch.errors import ConfigError
from hutch.host.network import listening
from hutch.host.network.listening import Listener, check_ports, find_deaf, parse_listeners, taken_by
from hutch.spec.entries import Publish
from hutch.spec.record import Record
from tests.unit.facts import workspace

SS = """\
udp   UNCONN 0      0      127.0.0.53%lo:53        0.0.0.0:*    users:(("systemd-resolve",pid=41,fd=13))
tcp   LISTEN 0      128          0.0.0.0:22        0.0.0.0:*    users:(("sshd",pid=700,fd=3))
tcp   LISTEN 0      128             [::]:2222         [::]:*    users:(("six only",pid=7,fd=4))
tcp   LISTEN 0      511                *:8080            *:*    users:(("a b",pid=9,fd=6),("a b",pid=10,fd=6))
tcp   LISTEN 0      128 [::ffff:10.1.2.3]:81            *:*
"""


def entry(port: int, ip: str = "", protocol: str = "tcp") -> Publish:
    return Publish(ip, port, 80, "udp" if protocol == "udp" else "tcp")


def test_parse() -> None:
    assert tuple(parse_listeners(SS)) == (
        Listener("udp", "127.0.0.53", 53, "systemd-resolve, pid 41"),
        Listener("tcp", "", 22, "sshd, pid 700"),
        Listener("tcp", "", 8080, "a b, pid 9"),
        Listener("tcp", "10.1.2.3", 81),
    )


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (entry(22), True),
        (entry(22, "127.0.0.1"), True),
        (entry(22, protocol="udp"), False),
        (entry(2222), False),
        (entry(53, protocol="udp"), True),
        (entry(53, "127.0.0.1", "udp"), False),
        (entry(81, "10.1.2.3"), True),
        (entry(9), False),
    ],
)
def test_taken(wanted: Publish, taken: bool) -> None:
    assert (taken_by(wanted, tuple(parse_listeners(SS))) is not None) == taken


def test_a_program_that_came_later_and_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "observe_listeners", lambda: tuple(parse_listeners(SS)))
    monkeypatch.setattr(listening, "run", answer)
    web = workspace(publish=(entry(9), entry(22, "127.0.0.1"), entry(81, "10.1.2.3")))
    made = {
        name: Record(name, "/f", keys, "image-1", 1 << 30, "0" * 32)
        for name, keys in (("web", web), ("lab", workspace()))
    }
    assert find_deaf(made) == {
        "web": (
            "tcp port 22 of the host leads here, though sshd, pid 700 listens on *:22, and hears nothing",
            "tcp port 81 of the host leads here, though a program listens on 10.1.2.3:81, and hears nothing",
        )
    }
    monkeypatch.setattr(listening, "observe_listeners", lambda: pytest.fail("nobody asked"))
    assert find_deaf({"lab": made["lab"]}) == {}


def answer(argv: list[str], check: bool) -> SimpleNamespace:
    """Of `ip route get`, on a host that has two addresses and a way out for all but one."""
    *_, address = argv
    if address == "10.255.0.1":
        return SimpleNamespace(returncode=2, stdout="")
    own = address in ("10.1.2.3", "10.9.9.9")
    return SimpleNamespace(returncode=0, stdout=json.dumps([{"dst": address, **({"type": "local"} if own else {})}]))


def test_addresses_that_are_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 127/8 are; and where no entry names another one, nobody is asked."""
    monkeypatch.setattr(listening, "observe_listeners", lambda: (Listener("udp", "", 53, "named, pid 3"),))
    monkeypatch.setattr(listening, "run", lambda *asked, **how: pytest.fail("nobody asked"))
    check_ports("/f", {"web": workspace(publish=(entry(9), entry(9, "127.0.0.7")))}, {})
    monkeypatch.setattr(listening, "run", answer)
    own = (entry(9, "10.1.2.3"), entry(9, "10.9.9.9"))
    check_ports("/f", {"web": workspace(publish=own)}, {})
    web = workspace(publish=(*own, entry(53, "192.168.1.1", "udp"), entry(9, "10.255.0.1")))
    with pytest.raises(ConfigError) as caught:
        check_ports("/f", {"web": web}, {})
    assert [str(problem) for problem in caught.value.problems] == [
        f"/f: workspaces.web.publish[{index}] = {told}: {address} is no address of this host "
        "(one of the host's, 127.0.0.1, or none, which is all of them)"
        for index, told, address in (
            (2, "192.168.1.1:53:80/udp", "192.168.1.1"),
            (3, "10.255.0.1:9:80", "10.255.0.1"),
        )
    ]
    told = (
        "udp port 53 leads nowhere: 192.168.1.1 is no address of this host",
        "tcp port 9 leads nowhere: 10.255.0.1 is no address of this host",
    )
    assert find_deaf({"web": Record("web", "/f", web, "image-1", 1 << 30, "0" * 32)}) == {"web": told}


def test_only_new_entries_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def observe() -> tuple[Listener, ...]:
        looked.append("")
        return tuple(parse_listeners(SS))

    monkeypatch.setattr(listening, "observe_listeners", observe)
    web = workspace(publish=(entry(9), entry(22)))
    record = Record("web", "/f", web, "image-1", 0x7000_0000, "0" * 32)
    check_ports("/f", {"web": workspace()}, {})
    check_ports("/f", {"web": web}, {"web": record})
    assert looked == []
    for records in ({}, {"web": replace(record, removed=True)}):
        with pytest.raises(ConfigError) as caught:
            check_ports("/f", {"web": web}, records)
        (problem,) = caught.value.problems
        assert str(problem) == (
            "/f: workspaces.web.publish[1] = 22:80: tcp port 22 of the host is taken: "
            "sshd, pid 700 listens on *:22 (another host_port, or stop that program)"
        )
