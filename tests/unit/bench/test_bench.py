"""What the benchmark makes of numbers: a bound that is missed is never told as met."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import bare, barevm, byhand, cluster, incus, ours, report, rows, stock, systemd, vms
from bench.measure import BenchError, Samples
from bench.table import Row
from hutch.host.doctor.packages import REQUIREMENTS
from tests.support import incus_cluster


def row(
    ours: float, other: float | None = None, *, bound: float | None, at_least: bool = False, unit: str = "s"
) -> Row:
    reference = None if other is None else Samples((other,))
    return Row("name", "what", unit, Samples((ours,)), reference, "other", bound, at_least=at_least)


@pytest.mark.parametrize(
    ("measured", "passed"),
    [
        (row(0.3, 1.0, bound=0.35), True),
        (row(0.36, 1.0, bound=0.35), False),
        (row(95.0, 100.0, bound=0.9, at_least=True), True),
        (row(89.0, 100.0, bound=0.9, at_least=True), False),
        (row(200.0, 100.0, bound=0.9, at_least=True), True),
        (row(0.0, bound=0), True),
        (row(1.0, bound=0), False),
        (row(1.0, bound=None), True),
    ],
)
def test_a_bound_is_the_most_or_the_least(measured: Row, passed: bool) -> None:
    assert measured.passed is passed
    verdict = "MISS" if not passed else "ok" if measured.bound is not None else "name"
    assert verdict in report.render_table([measured])


def test_a_least_bound_is_told_as_one() -> None:
    text = report.render_markdown([row(2**27, 2**27, bound=0.9, at_least=True, unit="bytes/s")], {}, "today")
    assert "| 128 MiB/s | 128 MiB/s (other) | 1.00 | ≥ 0.9 times | met |" in text


def test_each_world_keeps_its_results(tmp_path: Path) -> None:
    for world, seconds in (("elsewhere", 0.25), ("systemd", 2.5), ("elsewhere", 0.125)):
        report.write(tmp_path, world, [row(seconds, bound=1.0)], {}, "today")
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count("| what | hutch |") == 2
    assert "| 125 ms |" in text and "| 2.50 s |" in text and "| 250 ms |" not in text
    found = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {world: data["rows"][0]["value"] for world, data in found.items()} == {"elsewhere": 0.125, "systemd": 2.5}


def test_rows_of_a_host_with_systemd_are_the_same_rows() -> None:
    assert set(systemd.ROWS) <= set(rows.names_of_rows())


SAID = "512+0 records in\n512+0 records out\n536870912 bytes (537 MB, 512 MiB) copied, {} s, 1.1 GB/s\n"


@pytest.mark.parametrize(("seconds", "expected"), [("0.5", 2 * vms.SIZE), ("4", vms.SIZE / 4), ("5e-1", 2 * vms.SIZE)])
def test_throughput_is_read_from_dd(seconds: str, expected: float) -> None:
    assert vms.Home(lambda _: SAID.format(seconds)).write(0) == expected


@pytest.mark.parametrize(
    "said", ["", "dd: error writing 'big': No space left on device\n", "1048576 bytes (1.0 MB, 1.0 MiB) copied, 1 s\n"]
)
def test_half_a_file_is_no_throughput(said: str) -> None:
    with pytest.raises(BenchError, match="dd did not"):
        vms.Home(lambda _: said).write(0)


def test_a_read_follows_on_forgetting() -> None:
    lines: list[str] = []

    def run(line: str) -> str:
        lines.append(line)
        return SAID.format(1)

    vms.Home(run).read(0)
    assert "drop_caches" in lines[0] and lines[1] == vms.READ


def test_every_row_has_one_name() -> None:
    names = rows.names_of_rows()
    assert len(names) == len(set(names))
    assert set(vms.names_of_rows()) <= set(names)


@pytest.mark.parametrize(
    ("only", "wanted"), [([], True), (["vm-busy"], False), (["vm-lab"], True), (["ls", "vm-read"], True)]
)
def test_the_kernel_is_fetched_for_the_rows_that_boot_it(only: list[str], wanted: bool) -> None:
    options = argparse.Namespace(only=only)
    assert command.wants(options, "vm-lab", "vm-read", "vm-write") is wanted


def test_containers_and_machines_are_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUTCH_STATE_DIR", "HUTCH_RUN_DIR", "HUTCH_FILE"):
        monkeypatch.setenv(name, "")  # put back what it sets
    hutch = ours.Hutch(["hutch"], tmp_path)
    hutch.declare("web", vms=("vm",))
    text = hutch.file.read_text()
    assert '[workspaces.web]\ntype = "container"\n' in text
    assert '[workspaces.vm]\ntype = "vm"\nvcpus = 2\nmemory = "1GiB"\n' in text


def test_contenders_do_not_share_addresses() -> None:
    networks = {bare.GATEWAY.rpartition(".")[0], byhand.NETWORK, bare.UPLINK, byhand.UPLINK, "192.168.83", "192.168.84"}
    assert len(networks) == 6
    servers = {incus.GATEWAY, cluster.GATEWAY, incus_cluster.NETWORK}
    assert len({each.rpartition(".")[0] for each in servers}) == 3
    assert stock.ADDRESS != barevm.ADDRESS and stock.MAC != barevm.MAC
    assert all(address.startswith(f"{byhand.NETWORK}.") for address in (stock.ADDRESS, barevm.ADDRESS))


def test_the_clock_of_the_processor_is_read() -> None:
    """Two readings agree, and are no nonsense: a wrong figure would set the guest's clock wrong."""
    one, two = barevm.observe_tsc_khz(), barevm.observe_tsc_khz()
    assert 100_000 < one < 10_000_000
    assert abs(one - two) < one / 100


def test_setup_installs_all_that_it_asks_for() -> None:
    """Who has the packages anyway does not see what `script/setup --bench` forgets."""
    listed = {name for requirement in REQUIREMENTS for name in requirement.names("apt")}
    assert {*command.TOOLS.values(), *command.TOOLS_FOR_VMS.values()} - {"python3"} <= listed
