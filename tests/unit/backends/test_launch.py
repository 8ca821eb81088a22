"""A Launch as it stands in a file: read back as it was, or not believed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import launch_of
from hutch.backends.launch import (
    CHECKSUM,
    HotMount,
    Launch,
    Limits,
    Step,
    Surroundings,
    decode_launch,
    encode_launch,
    rebuild,
)
from hutch.spec.model import WorkspaceSpec
from tests.unit.backends import test_cloud_hypervisor, test_nspawn, test_qemu
from tests.unit.facts import launched, surroundings, workspace

STARTS: dict[str, tuple[str, WorkspaceSpec, Surroundings]] = {
    **{f"nspawn, {case}": (*given, surroundings()) for case, given in test_nspawn.LAUNCHES.items()},
    **{
        f"qemu, {case}": (name, declared, test_qemu.host(**hardware))
        for case, (name, declared, hardware) in test_qemu.LAUNCHES.items()
    },
    **{
        f"cloud-hypervisor, {case}": (*given, test_cloud_hypervisor.HOST)
        for case, given in test_cloud_hypervisor.LAUNCHES.items()
    },
    "listed by machinectl": ("web", workspace(type="vm"), replace(test_qemu.host(), has_machined=True)),
    "while it runs": ("web", workspace(type="vm"), replace(test_qemu.host(), ceiling=4 << 30)),
}


@pytest.mark.parametrize("given", STARTS.values(), ids=STARTS)
def test_it_is_read_back_as_it_was(given: tuple[str, WorkspaceSpec, Surroundings]) -> None:
    found = launch_of(*given)
    again = decode_launch(encode_launch(found))
    assert again == found
    assert encode_launch(found) == encode_launch(again)


def test_it_is_one_object_of_json() -> None:
    found = json.loads(encode_launch(launched()))
    assert next(iter(found)) == CHECKSUM
    assert found["workspace"] == "web"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
steps = st.builds(Step, st.lists(texts, max_size=3).map(tuple), texts, st.booleans())
numbers = st.none() | st.integers(0, 1 << 60)


@given(
    limits=st.builds(Limits, numbers, numbers, numbers),
    facts=st.dictionaries(texts, texts, max_size=3),
    pre_exec=st.lists(steps, max_size=2).map(tuple),
    prepare=st.lists(st.lists(steps, max_size=2).map(tuple), max_size=2).map(tuple),
    hot_mounts=st.lists(st.builds(HotMount, texts, texts, steps, steps, steps), max_size=2).map(tuple),
    balloon=st.none() | steps,
    restart_codes=st.lists(st.integers(0, 255), max_size=2).map(tuple),
    start_seconds=st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 1000),
)
def test_any_is_read_back_as_it_was(**keys: Any) -> None:
    found = launched(**keys)
    assert decode_launch(encode_launch(found)) == found


# What is not believed.

NO_JSON = [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000]
NO_LAUNCH = [b"null", b"3", b'"x"', b"[]", b"{}", b"[[1, 2]]", b'[["crc32", 0]]', b'{"crc32": 0}']


@pytest.mark.parametrize("content", NO_JSON + NO_LAUNCH)
def test_what_is_no_launch(content: bytes) -> None:
    assert decode_launch(content) is None


def sound(found: dict[str, Any]) -> bytes:
    """With a checksum that fits, as another version would have written it."""
    return json.dumps({CHECKSUM: zlib.crc32(json.dumps(found).encode()), **found}).encode()


def fields(found: Launch) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(encode_launch(found))
    del said[CHECKSUM]
    return said


def test_a_checksum_that_fits() -> None:
    assert decode_launch(sound(fields(launched()))) == launched()
    body = fields(launched())
    assert decode_launch(json.dumps({CHECKSUM: 0, **body}).encode()) is None
    assert decode_launch(json.dumps({CHECKSUM: None, **body}).encode()) is None
    assert decode_launch(json.dumps(body).encode()) is None


OTHERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown field": lambda said: said.update(links=["events"]),
    "an unknown field that says nothing": lambda said: said.update(vsock=None),
    "a field less": lambda said: said.pop("argv"),
    "another body": lambda said: said.clear(),
    "a step without a reason": lambda said: said["cleanup"][0].pop("why"),
    "a step that knows more": lambda said: said["cleanup"][0].update(uid=7),
    "a step that is a text": lambda said: said["cleanup"].append("true"),
    "a step that is a list": lambda said: said["cleanup"].append(["true"]),
    "a step that is nothing": lambda said: said["cleanup"].append(None),
    "a command that is a text": lambda said: said.update(argv="true"),
    "a word that is a number": lambda said: said["argv"].append(7),
    "a word that is a list": lambda said: said["argv"].append([]),
    "a name that is a number": lambda said: said.update(workspace=7),
    "a name that is nothing": lambda said: said.update(workspace=None),
    "a switch that is a number": lambda said: said["cleanup"][0].update(may_fail=1),
    "a number that is a text": lambda said: said["limits"].update(tasks="7"),
    "a number that is a switch": lambda said: said["limits"].update(tasks=True),
    "a number that is a fraction": lambda said: said["limits"].update(tasks=7.5),
    "limits that are a list": lambda said: said.update(limits=[]),
    "limits that are a number": lambda said: said.update(limits=3),
    "limits that are nothing": lambda said: said.update(limits=None),
    "facts that are a list": lambda said: said.update(facts=["a"]),
    "facts that are a number": lambda said: said.update(facts=3),
    "a fact that is a number": lambda said: said.update(facts={"hypervisor": 3}),
    "a balloon that is a list": lambda said: said.update(balloon=[]),
    "chains that are steps": lambda said: said.update(prepare=said["cleanup"]),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_versions_is_not_believed(change: Callable[[dict[str, Any]], object]) -> None:
    said = fields(launched())
    change(said)
    assert decode_launch(sound(said)) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(fields(launched()))), anything)
def test_any_value_of_any_field(field: str, value: Any) -> None:
    """It is of the right type, or the whole is not believed: no command is run that is half understood. A table of
    limits that says nothing is one without limits."""
    found = decode_launch(sound(fields(launched()) | {field: value}))
    assert found is None or fields(found)[field] == (value if (field, value) != ("limits", {}) else asdict(Limits()))


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (int, 7, 7),
        (float, 7, 7),
        (float, 7.5, 7.5),
        (int | None, None, None),
        (int | None, 7, 7),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[tuple[int, ...], ...], [[1], []], ((1,), ())),
        (dict[str, tuple[str, ...]], {"a": ["b"]}, {"a": ("b",)}),
        (Step, {"argv": ["a"], "why": "b"}, Step(("a",), "b")),
        (Step | None, {"argv": [], "why": "", "may_fail": True}, Step((), "", may_fail=True)),
    ],
)
def test_a_value_as_it_is_rebuilt(kind: Any, value: Any, wanted: Any) -> None:
    assert rebuild(kind, value) == wanted


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, True), (int, 7.0), (float, True), (str, 7), (bool, 0), (tuple[str, ...], "ab"), (Step, {})],
)
def test_a_value_of_another_type(kind: Any, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rebuild(kind, value)


@pytest.mark.parametrize("given", STARTS.values(), ids=STARTS)
def test_what_a_member_shares_is_opened_with_their_rights(given: tuple[str, WorkspaceSpec, Surroundings]) -> None:
    name, declared, host = given
    found = launch_of(name, declared, replace(host, member=1002))
    steps = [step for chain in found.prepare for step in chain]
    steps += [step for mount in found.hot_mounts for step in mount.steps]
    sources = {mount.source for mount in declared.mounts}
    binds = [step.argv for step in steps if any(word.endswith("/bind.py") for word in step.argv)]
    shared = [argv for argv in binds if sources & set(argv)]
    assert [argv for argv in shared if argv[-1] != "1002"] == []
    assert len(shared) >= len(sources - set(host.files))
