"""A workspace as units and files that need no hutch."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply.ejected_texts import (
    DNSPYTHON,
    EGRESS_PROGRAMS,
    NETWORK_LIBRARY,
    PACKAGES,
    PARTS,
    PROGRAMS,
    PYTHON,
    REMOVAL_LIBRARY,
    Ejection,
    modules_of,
    render_files,
    render_units,
)
from hutch.apply.ejecting import check, recover_ejected, subject_home
from hutch.backends import is_machine, launch_of, qemu
from hutch.backends.machine import dialect
from hutch.backends.nspawn import DIALECT, NEST
from hutch.errors import HutchError, UsageError
from hutch.host.network.dns import wanted_resolvers
from hutch.host.network.egress_proxy import Programs, render_views, wanted_egress_proxy
from hutch.host.network.firewall import Endpoint
from hutch.host.network.watch import wanted_watch
from hutch.host.services import units
from hutch.plan.actions import Plan
from hutch.plan.decide import Ownership, decide, refuse_ejected
from hutch.runtime.units import LIBRARY
from hutch.spec import names
from hutch.spec.ejected import Ejected, Note, parse_note
from hutch.spec.entries import Publish
from hutch.spec.model import Config, WorkspaceSpec
from hutch.spec.names import IFNAMSIZ, PACKAGE, Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record
from hutch.state import read_record, write_record
from tests.unit.facts import HARDWARE, LAYOUT, NETWORK, check_golden_case, everything, surroundings, workspace
from tests.unit.plan.test_properties import Host

CASES = {
    "minimal": ("web", workspace()),
    "everything": ("my-project", everything(vcpus=2, publish=(Publish("127.0.0.1", 8080, 80, "tcp"),))),
    "nesting": ("web", workspace(nesting=True, egress="none")),
    "vm": ("web", workspace(type="vm", hypervisor="qemu", disk=1 << 30)),
    "list": ("web", workspace(egress=("example.org", "10.0.0.0/8"))),
}
ALL = {
    **CASES,
    "vm, everything": ("my-project", everything(type="vm", hypervisor="qemu", vsock=True, cid=7)),
    "cloud-hypervisor": ("web", workspace(type="vm", hypervisor="cloud-hypervisor")),
}


def subject(name: str, declared: WorkspaceSpec, layout: Layout = LAYOUT) -> Ejection:
    target, network = Ejected.beside(layout, name), replace(NETWORK, uplink="192.168.84.4/30")
    declared = replace(declared, home=str(declared.home).replace(str(LAYOUT.home("web")), str(target.home(name))))
    kernel, initrd, root = (str(target.boot / part) for part in ("vmlinux", "initrd", "root.erofs"))
    machine = replace(HARDWARE, kernel=kernel, initrd=initrd, root=root, has_vsock=True)
    host = replace(
        surroundings(),
        layout=target,
        hardware=machine if is_machine(declared) else None,
        network=network,
        image_root=str(target.image_root("")),
        python=PYTHON,
        package=str(target.programs),
        has_machined=True,
    )
    assert declared.mac and declared.ip
    port = names.port(name, declared.type)
    endpoint = Endpoint(name, port, declared.mac, declared.ip, declared.publish, policy_of(declared))
    services = [*wanted_resolvers(target, network, "dnsmasq", ["box.example"]), wanted_watch(target, network)]
    views = render_views(target, network, (endpoint,))
    if views:
        programs = Programs(PYTHON, target.programs, target.programs.with_name(DNSPYTHON), "ejected")
        services.append(wanted_egress_proxy(target, programs))
    launch = launch_of(name, declared, host)
    return Ejection(target, launch, declared, endpoint, network, 0x7000_0000, tuple(services), views)


def texts(of: Ejection) -> dict[str, str]:
    same = {path.read_text(): "all" for path in (LIBRARY, NETWORK_LIBRARY, REMOVAL_LIBRARY)}
    same |= {
        DIALECT.read_text(): "all containers",
        dialect(Path(qemu.__file__).with_suffix(".sh")): "all machines of QEMU",
    }
    found = {}
    for path, text in render_files(of).items():
        content = text.content
        for library, whom in same.items():
            content = content.replace(library, f"# … and what is the same for {whom}\n")
        found[f"{path} ({text.mode:o})"] = content
    return found


@pytest.mark.parametrize(("case", "name", "declared"), [(case, *both) for case, both in CASES.items()], ids=CASES)
def test_units_and_files(case: str, name: str, declared: WorkspaceSpec) -> None:
    check_golden_case(f"ejected/{case}", shown(name, declared), shown(*CASES["minimal"]))


def shown(name: str, declared: WorkspaceSpec) -> str:
    parts = {title: text for title, text in texts(subject(name, declared)).items() if "launch.json" not in title}
    return "".join(f"==> {title}\n{text}\n" for title, text in parts.items())


@pytest.mark.parametrize(("name", "declared"), ALL.values(), ids=ALL)
def test_nothing_leads_back_to_hutch(name: str, declared: WorkspaceSpec) -> None:
    for title, text in texts(subject(name, declared)).items():
        text = text.replace(NEST, "")  # in the guest
        for place in (str(LAYOUT.state), str(LAYOUT.run), str(PACKAGE), "man:hutch", "hutch-network", "hutch.target"):
            assert f"{place}/" not in text and not text.endswith(place) and f"{place} " not in text, title


@pytest.mark.parametrize(
    "programs",
    [PROGRAMS, (*PROGRAMS, *EGRESS_PROGRAMS), (*PROGRAMS, *modules_of(workspace(type="vm")))],
    ids=["all", "watched", "machines"],
)
def test_programs_need_nothing_else_of_hutch(programs: Sequence[str]) -> None:
    modules = [program for program in programs if program.endswith(".py")]
    known = {f"hutch.{program.removesuffix('.py').replace('/', '.')}" for program in (*modules, *PACKAGES)}
    known = {module.removesuffix(".__init__") for module in known}
    for program in modules:
        for node in ast.parse((PACKAGE / program).read_text()).body:
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("hutch") for alias in node.names), program
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hutch"):
                assert node.module in known, program
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    is_module = (PACKAGE.parent / f"{module.replace('.', '/')}.py").is_file()
                    assert not is_module or module in known, program
    assert all((PACKAGE / program).is_file() for program in PACKAGES)


@pytest.mark.parametrize(("name", "declared"), ALL.values(), ids=ALL)
def test_all_that_it_runs_of_ours_goes_along(name: str, declared: WorkspaceSpec) -> None:
    found = subject(name, declared)
    for title, text in texts(found).items():
        modules = re.findall(r"from (hutch[.\w]*) import main", text)
        paths = re.findall(rf"{re.escape(str(found.layout.programs))}/([\w/]+[.]py)", text)
        runs = {*paths, *(f"{module.replace('.', '/')}.py".removeprefix("hutch/") for module in modules)}
        assert runs <= {*PROGRAMS, *modules_of(found.workspace)}, title


def test_programs_are_where_they_are_looked_for() -> None:
    found = subject("web", everything())
    copies = {str(found.layout.programs / program) for program in PROGRAMS}
    for text in render_files(found).values():
        assert set(re.findall(r"/\S+/programs/\S+\.py", text.content)) <= copies


def test_everything_but_the_home_is_removed() -> None:
    found = subject("web", workspace())
    inside = {str(path.relative_to(found.layout.state)) for path in render_files(found)}
    assert [path for path in inside if not path.startswith(PARTS)] == []
    assert not str(found.layout.home("web").relative_to(found.layout.state)).startswith(PARTS)


def test_names_are_its_own() -> None:
    """Whatever other workspaces are called, and however long the name is."""
    all_names = ("web", "web-network", "web-dns", "web-watch", "a-name-with-all-of-its-32-letters")
    all_units = [unit for name in all_names for unit in render_units(subject(name, workspace()))]
    assert len(all_units) == len(set(all_units))
    assert {len(Ejected.beside(LAYOUT, name).uplink_host) <= IFNAMSIZ for name in all_names} == {True}
    assert Ejected.beside(LAYOUT, "a-b").cgroup("a-b") == (
        "workspace.slice/workspace-a\\x2db.slice/workspace-a-b.service"
    )


def test_what_serves_it_is_waited_for() -> None:
    text = render_units(subject("web", workspace()))["workspace-web.service"]
    assert "Requires=workspace-web.network.service\n" in text
    for part, pid_file in {"dns-host": "host", "dns": "router", "watch": "watch"}.items():
        assert f"After=workspace-web.{part}.service\n" in text
        assert f" sh workspace-web.{part}.service /run/hutch-ejected/web/services/{pid_file}.pid\n" in text


@pytest.mark.parametrize("path", ["relative", "/with space", "/with,comma", "/a:b", "/a/../b", "/"])
def test_a_directory_that_cannot_be_written_down_everywhere(path: str) -> None:
    with pytest.raises(UsageError):
        Ejected.beside(LAYOUT, "web", Path(path))


def test_a_home_of_the_owners_stays() -> None:
    target = Ejected.beside(LAYOUT, "web")
    own = Record("web", "/f", workspace(), "image", 0, "")
    assert subject_home(LAYOUT, own, target) == "/var/lib/hutch-ejected/web/workspace/home"
    other = replace(own, wanted=workspace(home="/home/alice/web"))
    assert subject_home(LAYOUT, other, target) == "/home/alice/web"


def test_its_user_ids_are_not_given_to_anybody_else() -> None:
    unit = render_units(subject("web", workspace()))["workspace-web.service"]
    assert parse_note(unit) == Note("web", "/var/lib/hutch-ejected/web", "192.168.83.2", 0x7000_0000)
    assert parse_note("[Unit]\nDescription=of somebody else's\n") is None


def test_words_stay_words() -> None:
    found = texts(subject("my-project", everything()))
    (network,) = [text for title, text in found.items() if "/network/run" in title]
    assert f'"$1" {shlex.quote("/srv/my home")}' in network and "/srv/b c" not in network


# What cannot be, and what was cut short.

RECORD = Record("web", "/f", workspace(), "image", 0, "")


def test_a_host_that_runs_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "has_systemd", lambda: False)
    with pytest.raises(HutchError, match="systemd is not this host's process 1"):
        check(LAYOUT, RECORD, Ejected.beside(LAYOUT, "web"))
    monkeypatch.setattr(units, "has_systemd", lambda: True)
    monkeypatch.setattr(units, "directory", lambda: units.VOLATILE)
    with pytest.raises(HutchError, match="units cannot be written"):
        check(LAYOUT, RECORD, Ejected.beside(LAYOUT, "web"))


def cut_short(tmp_path: Path) -> tuple[Layout, Ejected]:
    """A hutch whose workspace was on its way when it was killed."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    target = Ejected.beside(layout, "web")
    write_record(layout, replace(RECORD, ejected=str(target.state)))
    target.home("web").mkdir(parents=True)
    (target.home("web") / "file").write_text("kept")
    (target.state / "README").write_text("")
    return layout, target


def test_what_was_cut_short_is_undone(tmp_path: Path) -> None:
    layout, target = cut_short(tmp_path)
    recover_ejected(layout, ["other"])
    assert target.home("web").exists()
    for _ in range(2):
        recover_ejected(layout, ["web"])
        assert (layout.home("web") / "file").read_text() == "kept"
        assert not target.state.exists()
        assert read_record(layout, "web") == RECORD


def test_no_home_is_lost(tmp_path: Path) -> None:
    """Somebody has made another one meanwhile."""
    layout, target = cut_short(tmp_path)
    layout.home("web").mkdir()
    (layout.home("web") / "file").write_text("another")
    with pytest.raises(HutchError, match="cannot be moved back"):
        recover_ejected(layout, ["web"])
    assert (target.home("web") / "file").read_text() == "kept"
    assert (layout.home("web") / "file").read_text() == "another"


def test_what_was_cut_short_is_planned_as_it_was(tmp_path: Path) -> None:
    """Its unit may have been there, and says what it was to become."""
    _, target = cut_short(tmp_path)
    going = replace(RECORD, ejected=str(target.state))
    note = Note("web", str(target.state), "192.168.83.2", 0x7000_0000)

    def planned(record: Record, note: Note) -> Plan:
        facts = replace(Host({"web": record}).facts(), ejected={"web": note})
        config = Config("/f", NETWORK, {"web": WorkspaceSpec(type="container")})
        return decide(LAYOUT, config, (), facts, Ownership(), start=True, prune=False)

    assert [action.workspace for action in planned(going, note).actions] == ["web"]
    for record, place in ((replace(going, removed=True), note), (going, replace(note, directory="/another"))):
        with pytest.raises(HutchError, match="which hutch has ejected"):
            planned(record, place)


def test_a_file_does_not_declare_what_is_ejected() -> None:
    refuse_ejected("/f", {})
    with pytest.raises(HutchError, match="/f declares web, which hutch has ejected") as caught:
        refuse_ejected("/f", {"web": "/var/lib/hutch-ejected/web"})
    assert "/var/lib/hutch-ejected/web" in caught.value.details
