"""What is looked at before a plan is made, and what the host must serve meanwhile."""

from __future__ import annotations

import base64
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.api import Hutch
from hutch.apply import planning, reconcile
from hutch.apply.launching import make_launch
from hutch.apply.planning import check_owners, check_sockets
from hutch.apply.reconcile import first_network, new_record, reconcile_homes, restorable
from hutch.apply.serving import endpoints_of, in_force, own_keys
from hutch.apply.starting import check_shares
from hutch.errors import ConfigError, HutchError, UsageError
from hutch.host.identity.holders import key_holders, public_key_files
from hutch.host.network import router
from hutch.host.storage import shares
from hutch.plan.actions import Action, Plan, Wanted
from hutch.plan.decide import check_bystanders, check_stopped
from hutch.plan.planner import Standing, network_changes
from hutch.spec.entries import Publish
from hutch.spec.model import Config, Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Booted, NetworkRecord, Record
from hutch.state import write_network, write_record
from tests.support.statuses import write_status
from tests.unit.facts import NETWORK, workspace

CHANGED = network_changes(NETWORK, replace(NETWORK, bridge="other0"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


def record(name: str = "web", file: str = "/f", booted: WorkspaceSpec | None = None, **keys: Any) -> Record:
    found = Record(name, file, workspace(**keys), "image-1", 0x7000_0000, "0" * 32)
    return replace(found, booted=Booted(booted, "image-1")) if booted else found


def declaring(*names: str) -> Config:
    return Config("/f", NETWORK, {name: workspace(name) for name in names})


def test_servers_are_asked_once_for_what_stays_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` makes its plan anew under the lock."""
    asked: list[dict[str, Wanted]] = []

    class Servers:
        def check(self, wanted: dict[str, Wanted], records: dict[str, Record]) -> tuple[str, ...]:
            asked.append(wanted)
            return (f"note {len(asked)}",)

    monkeypatch.setattr(planning, "wanted_by_engine", lambda layout, wanted: [(Servers(), dict(wanted))])
    checked: planning.Checked = {}

    def check(image: str, **records: Record) -> tuple[str, ...]:
        action = Action("web", "create", (), (), Wanted(workspace("web", engine="incus"), image))
        return planning.check_elsewhere(layout, "/f", Plan("/f", NETWORK, (action,), True, ()), records, checked)

    assert [check("image-1"), check("image-1", lab=record("lab"))] == [("note 1",), ("note 1",)]
    assert check("image-2") == ("note 2",)
    assert check("image-2", web=record()) == ("note 3",)


def test_nobody_is_cut_off_by_a_change_of_the_network() -> None:
    check_bystanders({}, CHANGED)
    check_bystanders({"lab": workspace()}, [])
    with pytest.raises(HutchError, match="would cut off lab, web") as caught:
        check_bystanders({"lab": workspace(), "web": workspace()}, CHANGED)
    assert caught.value.details == "network.bridge: hutch0 -> other0"


def test_no_start_and_another_network() -> None:
    wanted = Wanted(workspace(), "image-1")
    running, stopped = (Standing("/f", wanted, wanted, state) for state in ("running", "stopped"))
    check_stopped({"web": stopped}, CHANGED)
    check_stopped({"web": running}, [])
    with pytest.raises(HutchError, match="restarts web, which --no-start forbids"):
        check_stopped({"web": running, "lab": stopped}, CHANGED)


def test_a_missing_key_is_not_left_out(layout: Layout) -> None:
    """An owner without keys logs in with hutch's; where that is not there yet, the host is not prepared."""
    found = record(booted=workspace(), authorized_keys=None)
    assert public_key_files(layout, found.wanted) == [layout.key(uid).with_name("id_ed25519.pub") for uid in (0, 1000)]
    with pytest.raises(HutchError, match=r"keys/0/id_ed25519\.pub is not there"):
        make_launch(layout, found, NETWORK)
    for path in public_key_files(layout, found.wanted):
        path.parent.mkdir(parents=True)
        path.write_text(f"key of {path.parent.name}\n")
    content = "".join(file.content for file in make_launch(layout, found, NETWORK).files)
    assert base64.b64encode(b"key of 0\nkey of 1000\n").decode() in content


def test_sockets_have_short_paths() -> None:
    fits = Layout(Path("/s"), Path("/" + "r" * 54))
    check_sockets(fits, declaring("a" * 32))
    check_sockets(fits, declaring())
    with pytest.raises(UsageError, match="is 3 bytes too long"):
        check_sockets(Layout(Path("/s"), Path("/" + "r" * 57)), declaring("a" * 32, "b"))


def test_an_account_may_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record knows the owner by number; what the number means may change."""
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("a", "x", uid, uid * 2**20, "", "/", "")))
    check_owners("/f", {"web": workspace(owner=1)})
    with pytest.raises(ConfigError) as caught:
        check_owners("/f", {"web": workspace(owner=1), "lab": workspace(owner=5000), "dev": workspace(owner=4000)})
    assert [(p.file, p.key, p.value) for p in caught.value.problems] == [
        ("/f", "workspaces.lab.owner", "5000"),
        ("/f", "workspaces.dev.owner", "4000"),
    ]


def test_who_cannot_start_is_named_with_key_and_file(tmp_path: Path) -> None:
    gone = f"{tmp_path}/gone"
    good = workspace(owner=os.getuid(), home=f"{tmp_path}/home")
    bad = replace(good, mounts=(Mount(gone, "/srv/x"),))
    check_shares([("/f", "good", good)])
    with pytest.raises(ConfigError) as caught:
        check_shares([("/f", "good", good), ("/g", "bad", bad)])
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"/g: workspaces.bad.mounts[0].source = {gone}: does not exist")
    assert not os.listdir(tmp_path)


def test_one_that_cannot_be_does_not_hold_up_the_others(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[str] = []
    monkeypatch.setattr(shares, "ensure_shares", lambda layout, paths, guests, members_own: shared.extend(paths))
    uid = os.getuid()
    monkeypatch.setattr(os, "chown", lambda *arguments: None)
    foreign, new = layout.state.parent / "foreign", layout.state.parent / "new"
    foreign.mkdir()
    records = {
        "bad": record("bad", owner=uid + 1, home=str(foreign)),
        "good": record("good", owner=uid, home=str(new), mounts=(Mount(str(foreign), "/x", create=True),)),
    }
    waiting = ["srv-disk.mount"]
    monkeypatch.setattr(shares, "waiting_mounts", lambda path: waiting)
    reconcile_homes(layout, records)
    assert not new.exists()  # it would be below what is to be mounted
    waiting.clear()
    shared.clear()
    reconcile_homes(layout, records)
    assert new.is_dir()
    assert shared == [str(foreign), str(new)]


def test_a_free_uplink_is_chosen_by_one_at_a_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    @contextmanager
    def host_lock() -> Iterator[None]:
        taken.append("lock")
        yield

    monkeypatch.setattr(reconcile, "host_lock", host_lock)
    with first_network(layout):
        assert taken == ["lock"]
    write_network(layout, NetworkRecord(NETWORK, "/f", {}))
    with first_network(layout):  # its uplink is chosen
        assert taken == ["lock"]


def test_forwarding_is_put_back_by_whoever_leaves_last(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second hutch finds it on; what the first found is what it must be in the end."""
    other, damaged = Layout(layout.state / "a", layout.run), Layout(layout.state / "b", layout.run)
    write_network(other, NetworkRecord(NETWORK, "/g", {"net/ipv4/ip_forward": "0", "net/of/its/own": "0"}))
    damaged.network_record.parent.mkdir()
    damaged.network_record.write_text("{")
    found = {"eth0": "", "up-a": f"hutch {other.state}", "up-b": f"hutch {damaged.state}", "tun0": "hutch of gold"}
    monkeypatch.setattr(router, "observe_forwarders", lambda: found)
    made = new_record(layout, NETWORK, "/f")
    assert made == NetworkRecord(NETWORK, "/f", {"net/ipv4/ip_forward": "0"}, ("eth0", "tun0"))
    assert restorable(made, found) == {}
    assert restorable(made, ["eth0", "docker0"]) == {}
    assert restorable(made, ["eth0"]) == {"net/ipv4/ip_forward": "0"}


def test_whose_keys_are_made() -> None:
    assert key_holders(workspace()) == ("0",)
    assert key_holders(workspace(authorized_keys=None)) == ("0", "1000")
    shared = workspace(share_with=("1001", "@1200"))
    assert key_holders(shared) == ("0", "1001", "@1200")
    found = own_keys({"lab": record(share_with=("@1200", "2000", "1001")), "web": record(share_with=shared.share_with)})
    both = ("lab", "web")
    assert list(found.items()) == [("0", both), ("1001", both), ("2000", ("lab",)), ("@1200", both)]


# Who runs on while a restart is put off keeps its identity.

BOOTED = workspace(mounts=(Mount("/a", "/a"),))
CHANGES: dict[str, Any] = {
    "ip": "192.168.83.9",
    "user": "me",
    "mounts": (Mount("/b", "/b"),),
    "publish": (Publish("", 80, 80, "tcp"),),
}


def test_a_running_workspace_is_served_as_booted(layout: Layout) -> None:
    write_status(layout, "web", "running", ready_seconds=0.4)
    serving = in_force(layout, {"web": record(booted=BOOTED, **CHANGES)})["web"]
    found = serving.wanted
    assert (found.ip, found.user) == (BOOTED.ip, BOOTED.user)
    assert serving.written == (found.home, "/b", "/a")  # all of it is guarded
    assert found.publish == CHANGES["publish"]
    (_, endpoint) = endpoints_of(in_force(layout, {"web": record(booted=BOOTED, **CHANGES)}), NETWORK)
    assert (endpoint.ip, endpoint.publish) == (BOOTED.ip, CHANGES["publish"])


def test_a_stopped_workspace_is_served_as_wanted(layout: Layout) -> None:
    records = {"web": record(booted=BOOTED, **CHANGES)}
    assert in_force(layout, records) == records
    write_status(layout, "web", "stopped")
    assert in_force(layout, records) == records


def test_what_is_removed_is_not_served(layout: Layout) -> None:
    records = {"web": record(), "gone": replace(record("gone"), removed=True)}
    assert in_force(layout, records).keys() == {"web"}
    assert [endpoint.name for endpoint in endpoints_of(records, NETWORK)] == ["_build", "web"]


def test_the_host_is_served_in_one_order(layout: Layout) -> None:
    """Whoever has just been made comes last in the records, and is somewhere else when they are read again."""
    records = {name: record(name) for name in ("web", "db", "lab")}
    assert list(in_force(layout, records)) == ["db", "lab", "web"]


# A root that must be made anew is not booted as it is.


def test_a_kept_root_does_not_start_on_another_image(layout: Layout) -> None:
    write_record(layout, replace(record(booted=workspace(persist="all"), persist="all"), image="image-2"))
    hutch = Hutch(layout)
    with pytest.raises(HutchError, match="web: its root must be made anew") as caught:
        hutch.start(["web"])
    assert caught.value.resolution == "`hutch stop web`, then `hutch up web`"
    with pytest.raises(HutchError, match="so it was not stopped"):
        hutch.restart(["web"])


def test_an_image_that_is_gone(layout: Layout) -> None:
    write_record(layout, record())
    with pytest.raises(HutchError, match="web: its image image-1 is not in the cache, so it was not stopped"):
        Hutch(layout).restart(["web"])
