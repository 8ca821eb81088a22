"""The host's side as units of systemd's."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from hutch.host.network.dns import wanted_resolvers
from hutch.host.network.watch import wanted_watch
from hutch.host.services.service import Service
from hutch.host.services.unit_texts import (
    PERIODS,
    occasional_units,
    refresh_units,
    render_fold,
    render_fold_timer,
    render_guards,
    render_network,
    render_refresh,
    render_refresh_timer,
    render_service,
    render_slice,
    render_target,
)
from hutch.host.services.units import quoted
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import PACKAGE, Layout
from tests.unit.facts import LAYOUT, NETWORK, check_golden_case

SECOND = Layout(state=Path("/srv/second"), run=Path("/run/second"))
PYTHON = "/usr/bin/python3"
PROXY = Service(
    "the egress proxy",
    str(LAYOUT.services / "egress.pid"),
    str(LAYOUT.namespace_path),
    ("bwrap", "--", "python3", "-m", "hutch.egress"),
    says_pid=True,
    sandbox=("RestrictNamespaces=mnt",),
)


def rendered(layout: Layout) -> str:
    services = (*wanted_resolvers(layout, NETWORK, "dnsmasq", ["box.example"]), wanted_watch(layout, NETWORK))
    units = {layout.service_unit(service.pid_file): render_service(service, layout) for service in services}
    units |= {
        layout.network_unit: render_network(layout, PYTHON),
        layout.target: render_target(layout),
        layout.guards_unit: render_guards(layout, PYTHON),
        layout.fold_units[0]: render_fold_timer(layout),
        layout.fold_units[1]: render_fold(layout, PYTHON),
    }
    timer, refreshing = refresh_units(layout, "weekly")
    units |= {timer: render_refresh_timer(layout, "weekly"), refreshing: render_refresh(layout, PYTHON, "weekly")}
    units |= {layout.slice_of_all: render_slice(layout, 15 << 30)}
    text = "".join(f"==> {name}\n{text}\n" for name, text in units.items())
    return text.replace(str(PACKAGE.parent), "/usr/lib/hutch")


@pytest.mark.parametrize(("case", "layout"), [("host", LAYOUT), ("second-host", SECOND)])
def test_units_of_the_host(case: str, layout: Layout) -> None:
    check_golden_case(f"units/{case}", rendered(layout), rendered(LAYOUT))


def test_who_says_its_pid_writes_it_where_it_is_looked_for() -> None:
    lines = render_service(PROXY, LAYOUT).splitlines()
    assert {"Type=exec", "StandardOutput=truncate:/run/hutch/services/egress.pid"} <= set(lines)
    assert "NetworkNamespacePath=/run/netns/hutch" in lines


def test_nothing_waits_for_what_starts_it() -> None:
    """What reconciles the host starts these, and may be the network's own unit."""
    text = render_service(PROXY, LAYOUT)
    assert not any(line.startswith(("After=", "Requires=", "BindsTo=")) for line in text.splitlines())


def test_all_units_have_names() -> None:
    assert LAYOUT.service_units == (
        "hutch-dns-host.service",
        "hutch-dns.service",
        "hutch-watch.service",
        "hutch-egress.service",
    )
    assert not set(LAYOUT.service_units) & set(SECOND.service_units)


def test_a_period_for_each_that_a_file_may_say() -> None:
    said = get_args(get_type_hints(WorkspaceSpec)["auto_refresh"])
    assert set(said) == {"never", *PERIODS}
    assert {unit for period in PERIODS for unit in refresh_units(LAYOUT, period)} < set(occasional_units(LAYOUT))


def test_a_word_of_several_lines() -> None:
    assert quoted('one\n"$2" 3% \\') == '"one\\n\\"$$2\\" 3%% \\\\"'
    assert quoted("") == '""'
