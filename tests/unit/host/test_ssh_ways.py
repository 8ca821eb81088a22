"""How ssh gets to a workspace: by TCP or vsock, with the caller's configuration or with none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hutch.host.identity.ssh import VSOCK_PROXY, Peer, choose_proxy, render_argv, render_config
from tests.unit.facts import LAYOUT, check_golden_case

SYSTEMD, SOCAT = f"{VSOCK_PROXY} vsock/77 22", "socat - VSOCK-CONNECT:77:22"


@pytest.mark.parametrize(
    ("cid", "programs", "proxy"),
    [
        ("77", {VSOCK_PROXY, "socat"}, SYSTEMD),
        ("77", {"socat"}, SOCAT),
        ("77", set(), ""),
        ("", {VSOCK_PROXY, "socat"}, ""),
    ],
)
def test_choose_proxy(cid: str, programs: set[str], proxy: str) -> None:
    assert choose_proxy(cid, programs) == proxy


def test_the_drop_in_goes_by_the_network() -> None:
    """Who has a machine's context id may change at each start, and the drop-in stays."""
    assert "Proxy" not in render_config(LAYOUT, (Peer("a", "192.168.83.2", "dev"),), {}).decode()


@pytest.mark.parametrize("way", ["tcp", "vsock"])
def test_arguments_of_our_own_ssh(way: str) -> None:
    peer = Peer("web", "192.168.83.2", "dev")
    plain = render_argv(LAYOUT, peer, "exec x", terminal=False, control="/run/hutch/c", is_first=True)
    proxied = render_argv(
        LAYOUT, replace(peer, proxy=SYSTEMD), "exec x", terminal=True, control="/run/hutch/c", is_first=False
    )
    argv = proxied if way == "vsock" else plain
    check_golden_case(f"ssh/argv-{way}", *("".join(f"{word}\n" for word in words) for words in (argv, plain)))


def test_nothing_of_the_callers_goes_along() -> None:
    argv = render_argv(LAYOUT, Peer("web", "192.168.83.2", "dev"), "x", terminal=False, control="", is_first=True)
    assert argv[:3] == ["ssh", "-F", "none"]
    for option in ("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no"):
        assert option in argv
    assert {"IdentityAgent=none", "ControlMaster=no", "ControlPath=none", "StrictHostKeyChecking=yes"} <= set(argv)
    assert argv[-3:] == ["--", "workspace-web", "x"]
