"""A port on the bridge, as input for ip(8)."""

from __future__ import annotations

from hutch.backends.port import Port

PORT = Port("ve-web", "vi-web", "02:4b:5e:57:f6:eb", "192.168.83.2", "hutch0", "hutch")


def test_the_port_is_made_down_and_isolated() -> None:
    assert PORT.render_batch() == (
        "link add ve-web type veth peer name vi-web address 02:4b:5e:57:f6:eb\n"
        "link set ve-web master hutch0\n"
        "link set ve-web type bridge_slave isolated on learning off flood off mcast_flood off\n"
        "neigh replace 192.168.83.2 lladdr 02:4b:5e:57:f6:eb dev hutch0 nud permanent\n"
    )
    assert " up" not in PORT.render_batch()


def test_steps() -> None:
    stages = PORT.connect("/run/port")
    bound = "{ ve-web . 02:4b:5e:57:f6:eb . 192.168.83.2 }"
    assert [[step.argv for step in stage] for stage in stages] == [
        [("ip", "-batch", "/run/port")],
        [
            ("nft", "get", "element", "bridge", "hutch", "bound", bound),
            ("bridge", "fdb", "replace", "02:4b:5e:57:f6:eb", "dev", "ve-web", "master", "static"),
        ],
        [("ip", "link", "set", "ve-web", "up")],
    ]
    assert not any(step.may_fail for stage in stages for step in stage)
    assert [step.argv for step in PORT.cleanup()] == [
        ("ip", "link", "delete", "ve-web"),
        ("ip", "neigh", "delete", "192.168.83.2", "dev", "hutch0"),
    ]
    assert all(step.may_fail for step in PORT.cleanup())
