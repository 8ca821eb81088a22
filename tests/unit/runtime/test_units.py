"""A Launch as units of systemd's, and as the script that they run."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import launch
from hutch.backends.launch import Launch, Limits, Step
from hutch.host.services.units import quoted
from hutch.runtime.units import library, render_limits, render_script, render_service, render_slice, side_by_side
from hutch.spec.model import Mount, Workspace
from hutch.spec.names import PACKAGE
from tests.unit.backends.test_qemu import host as machine_host
from tests.unit.facts import PLACES, check_golden, everything, surroundings, workspace

NAMES = {
    "minimal": ("web", workspace()),
    "everything": ("my-project", everything(vcpus=2, env=(("EDITOR", "it's $(vim)"),), authorized_keys=None)),
    "nesting": ("web", workspace(nesting=True)),
    "machine": ("web", workspace(type="vm", mounts=(Mount("/srv/a b", "/src"),))),
}


def launched(name: str, declared: Workspace) -> Launch:
    return launch(
        name, declared, replace(surroundings() if declared.type == "container" else machine_host(), by_systemd=True)
    )


@pytest.mark.parametrize(("case", "name", "declared"), [(case, *both) for case, both in NAMES.items()], ids=NAMES)
def test_units(case: str, name: str, declared: Workspace) -> None:
    found = launched(name, declared)
    script = render_script(found, PLACES, "/usr/bin/python3").removesuffix(library(found))
    parts = {
        found.unit: render_service(found, PLACES),
        PLACES.slice(name): render_slice(found),
        "run": f"{script}# … and what is the same for all\n",
    }
    shown = "".join(f"==> {title}\n{text}\n" for title, text in parts.items())
    check_golden(f"units/{case}.txt", shown.replace(str(PACKAGE.parent), "/usr/lib/hutch"))


def test_it_lies_in_its_slice() -> None:
    assert PLACES.unit_cgroup("web") == "hutch.slice/hutch-ws_web.slice/hutch@web.service"
    assert PLACES.unit_cgroup("a-b") == "hutch.slice/hutch-ws_a\\x2db.slice/hutch@a-b.service"


def test_no_limit_takes_back_what_was_one() -> None:
    properties = ("CPUQuota=", "MemoryMax=infinity", "MemorySwapMax=infinity", "TasksMax=infinity")
    assert render_limits(Limits()) == properties
    assert render_limits(Limits(2, 1 << 30, 100)) == (
        "CPUQuota=200%",
        "MemoryMax=1073741824",
        "MemorySwapMax=0",
        "TasksMax=100",
    )


def systemd_reads(word: str) -> str:
    """One word of an Exec line, as systemd.syntax(7), systemd.unit(5) and systemd.service(5) say that it is read."""
    assert (
        "\n" not in word
        and not re.search(r"(?<!%)(%%)*%(?!%)", word)
        and not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word)
    )
    word = word.replace("%%", "%").replace("$$", "$")
    if not word.startswith('"'):
        assert not set(word) & set(" '\"\\;")
        return word
    found = re.fullmatch(r'"((?:[^"\\]|\\["\\n])*)"', word)
    assert found, word
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), found[1])


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_word_stays_one_word(text: str) -> None:
    assert systemd_reads(quoted(text)) == text


def test_chains_are_waited_for() -> None:
    steps = [(Step(("one",), "do one"), Step(("two",), "do two", may_fail=True)), (Step(("three",), "do three"),)]
    assert side_by_side(steps) == [
        "{",
        "  step 'do one' one",
        "  attempt 'do two' two",
        "} &",
        "chain0=$!",
        "{",
        "  step 'do three' three",
        "} &",
        "chain1=$!",
        "all_ended $chain0 $chain1",
    ]
    assert side_by_side(steps[1:]) == ["step 'do three' three"]
    assert side_by_side([]) == []
