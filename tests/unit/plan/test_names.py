"""Derived names: what the contract fixes, and the kernel's limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.errors import UsageError
from hutch.spec import names
from hutch.spec.names import Layout
from tests.unit.facts import LAYOUT, SECOND

workspace_names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
kinds = st.sampled_from(["container", "vm"])


@pytest.mark.parametrize(
    ("name", "mac", "cid"),
    [
        ("web", "02:4b:5e:57:f6:eb", 4939451),
        ("lab", "02:a5:11:46:d3:80", 10817962),
        ("my-project", "02:1c:7c:d9:44:c2", 1867069),
    ],
)
def test_vectors(name: str, mac: str, cid: int) -> None:
    assert names.mac(name) == mac
    assert names.cid(name) == cid


@given(workspace_names)
def test_derived_identifiers_are_valid(name: str) -> None:
    assert 3 <= names.cid(name) < 2**32 - 1
    assert not int(names.mac(name)[:2], 16) & 1


@given(st.lists(st.tuples(workspace_names, kinds), unique=True, max_size=8))
def test_interfaces_are_short_and_distinct(some: list[tuple[str, str]]) -> None:
    ports = [names.port(name, kind) for name, kind in some]
    inner = {names.interface("vi", name) for name, _ in some}
    assert len(set(ports)) == len(some)
    assert inner.isdisjoint(ports)
    assert all(len(port.encode()) <= names.IFNAMSIZ for port in (*ports, *inner))


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("web", "ve-web"),
        ("twelve-chars", "ve-twelve-chars"),
        ("thirteen-char", "ve-thirteen3adc"),
        ("_build", "ve-_build"),
    ],
)
def test_ports(name: str, port: str) -> None:
    assert names.port(name, "container") == port


def test_networks() -> None:
    assert names.gateway("192.168.83.0/24") == "192.168.83.1"
    assert names.builder_address("192.168.83.0/24") == "192.168.83.254"
    assert names.builder_address("10.0.0.8/29") == "10.0.0.14"
    assert names.uplink_addresses("192.168.84.4/30") == ("192.168.84.5", "192.168.84.6")


def test_two_hutches_share_nothing() -> None:
    assert LAYOUT.instance == "hutch"
    assert SECOND.instance.startswith("hutch-")
    for name in (
        "instance",
        "namespace_path",
        "uplink_host",
        "table",
        "ssh_config",
        "lock",
        "shares",
        "services_cgroup",
    ):
        assert getattr(LAYOUT, name) != getattr(SECOND, name), name
    assert all(len(layout.uplink_host) <= names.IFNAMSIZ for layout in (LAYOUT, SECOND))


def test_no_workspace_takes_the_name_of_something_else() -> None:
    assert Path(LAYOUT.services_cgroup).name.startswith("_")
    assert names.BUILDER.startswith("_")
    assert names.mac(names.BUILDER) == names.BUILDER_MAC


def test_layout_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert Layout.from_environment() == LAYOUT
    monkeypatch.setenv("HUTCH_STATE_DIR", "")
    assert Layout.from_environment() == LAYOUT
    monkeypatch.setenv("HUTCH_STATE_DIR", "/srv/x/../second")
    assert Layout.from_environment() == Layout(SECOND.state, Path(f"/run/{SECOND.instance}"))  # nobody else's
    monkeypatch.setenv("HUTCH_RUN_DIR", "/run/second/")
    assert Layout.from_environment() == SECOND


@pytest.mark.parametrize(
    "path", ["/srv/a b", "/srv/a,b", "/srv/a:b", "/srv/a'b", '/srv/"', "/srv/%h", "/srv/a\nb", "/", "/ä"]
)
@pytest.mark.parametrize("variable", ["HUTCH_STATE_DIR", "HUTCH_RUN_DIR"])
def test_a_layout_that_would_break_a_grammar(variable: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, path)
    with pytest.raises(UsageError, match=f"{variable}=.* cannot be used"):
        Layout.from_environment()


@pytest.mark.parametrize("variable", ["HUTCH_STATE_DIR", "HUTCH_RUN_DIR"])
def test_a_layout_of_roots_is_nobody_elses(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "own" / "hutch"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    Layout.from_environment()
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(0o777)
    with pytest.raises(
        UsageError, match=f"{variable}=.* cannot be used: {tmp_path}/own can be changed by others"
    ) as caught:
        Layout.from_environment()
    assert f"chown root: {tmp_path}/own; chmod go-w {tmp_path}/own; or take a path" in caught.value.resolution
    (tmp_path / "own").chmod(0o1777)
    with pytest.raises(UsageError, match="can be changed by others") as caught:
        Layout.from_environment()
    assert "chmod" not in caught.value.resolution  # it is a directory such as /tmp
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    Layout.from_environment()


@pytest.mark.parametrize("variable", ["HUTCH_STATE_DIR", "HUTCH_RUN_DIR"])
def test_a_layout_that_leads_nowhere(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "file").touch()
    for place, why in (
        ("itself", "leads to no"),
        ("itself/a", "leads to no"),
        ("file", "leads to no"),
        ("a" * 5000, "too long"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / place))
        with pytest.raises(UsageError, match=f"{variable}=.* cannot be used: .*{why}") as caught:
            Layout.from_environment()
        assert len(caught.value.brief) < 800
    (tmp_path / "to-be-made").mkdir()
    (tmp_path / "link").symlink_to("to-be-made")
    monkeypatch.setenv(variable, str(tmp_path / "link" / "hutch"))
    Layout.from_environment()
