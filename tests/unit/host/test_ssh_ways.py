"""How ssh gets to a workspace: by TCP or vsock, with the caller's configuration or with none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hutch.backends import traits_named
from hutch.host.identity import ssh
from hutch.host.identity.ssh import VSOCK_PROXY, Peer, choose_proxy, proxy_of, render_argv, render_config
from tests.unit.facts import LAYOUT, check_golden_case, workspace

SYSTEMD, SOCAT = f"{VSOCK_PROXY} vsock/77 22", "socat - VSOCK-CONNECT:77:22"


@pytest.mark.parametrize(
    ("cid", "programs", "proxy"),
    [
        (77, {VSOCK_PROXY, "socat"}, SYSTEMD),
        (77, {"socat"}, SOCAT),
        (77, set(), ""),
        (None, {VSOCK_PROXY, "socat"}, ""),
    ],
)
def test_choose_proxy(cid: int | None, programs: set[str], proxy: str) -> None:
    assert choose_proxy(cid, programs) == proxy


@pytest.mark.parametrize(
    ("keys", "hypervisor", "has_vsock", "proxy"),
    [
        ({"type": "vm"}, "qemu", True, SYSTEMD),
        ({"type": "vm"}, "qemu", False, ""),
        ({"type": "vm"}, "cloud-hypervisor", True, ""),
        ({"type": "vm", "engine": "incus"}, "qemu", True, ""),
        ({"type": "container"}, "", True, ""),
    ],
)
def test_who_is_reached_by_vsock(
    keys: dict[str, Any], hypervisor: str, has_vsock: bool, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "find_program", lambda name: name)
    wanted = workspace(cid=77, **keys)
    assert proxy_of(wanted, traits_named(wanted, hypervisor), has_vsock=has_vsock) == proxy


def test_the_drop_in_says_how_to_connect() -> None:
    peers = tuple(Peer(name, "192.168.83.2", "dev", "", proxy) for name, proxy in [("a", SYSTEMD), ("b", SOCAT)])
    lines = render_config(LAYOUT, peers, {}).decode().splitlines()
    assert f"    ProxyCommand {SYSTEMD}" in lines and f"    ProxyCommand {SOCAT}" in lines
    assert [line.split()[1] for line in lines if "ProxyUseFdpass" in line] == ["yes", "no"]


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
