"""A port on the bridge, as input for ip(8)."""

from __future__ import annotations

from hutch.backends.port import Port

PORT = Port("ve-web", "vi-web", "02:4b:5e:57:f6:eb", "192.168.83.2", "hutch0", "hutch")


def test_the_port_is_made_down_and_isolated() -> None:
    assert PORT.render_batch() == (
        "link set ve-web master hutch0\n"
        "link set ve-web type bridge_slave isolated on learning off flood off mcast_flood off\n"
        "neigh replace 192.168.83.2 lladdr 02:4b:5e:57:f6:eb dev hutch0 nud permanent\n"
    )
    assert " up" not in PORT.render_batch()


def test_steps() -> None:
    stages = PORT.connect("/run/port")
    bound = "{ ve-web . 02:4b:5e:57:f6:eb . 192.168.83.2 }"
    assert [[step.argv for step in stage] for stage in stages] == [
        [("nft", "get", "element", "bridge", "hutch", "bound", bound), ("ip", "-batch", "/run/port")],
        [
            ("ip", "link", "set", "ve-web", "up"),
            ("bridge", "fdb", "replace", "02:4b:5e:57:f6:eb", "dev", "ve-web", "master", "static"),
        ],
    ]
    pair = ("ve-web", "type", "veth", "peer", "name", "vi-web", "address", "02:4b:5e:57:f6:eb")
    assert PORT.make().argv == ("ip", "link", "add", *pair)
    assert not any(step.may_fail for stage in stages for step in stage)
    assert [step.argv for step in PORT.cleanup()] == [
        ("ip", "link", "delete", "ve-web"),
        ("ip", "neigh", "delete", "192.168.83.2", "dev", "hutch0"),
    ]
    assert all(step.may_fail for step in PORT.cleanup())
