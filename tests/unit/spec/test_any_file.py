"""Whatever a file says, loading ends with a Config or with problems that have a place in it."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.spec import loading, reading
from hutch.spec.kit_files import Kits
from hutch.spec.model import WORKSPACE_KEYS, Kit, Network
from hutch.spec.validation import FieldProblem, Table
from tests.unit.facts import LAYOUT

words = st.sampled_from(
    ["", "a", "b", "container", "vm", "none", "80:80", "1.2.3.4", "192.168.83.9", "10.0.0.0/24", "4GiB", "\n", "é"]
)
paths = st.sampled_from(["~", "~/x", "/", "/srv", "/var/lib", ".", "*.pub", "~/.ssh/*.pub", "rootfs:/", "rootfs:~"])
people = st.sampled_from(["alice", "homeless", "root", "a.org"])
leaves = (
    words
    | paths
    | people
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
)
keys = st.sampled_from(["source", "target", "mode", "readonly", "after", "then", "A", "a b", "\n"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
tables = st.dictionaries(st.sampled_from([*WORKSPACE_KEYS, "unknown", "a.b"]), values, max_size=6)
kits = st.dictionaries(st.sampled_from([*Kit.__dataclass_fields__, "unknown"]), values, max_size=4)
names = st.sampled_from(["a", "b", "web", "Web", "a.b", "\n", "-"])
files = st.fixed_dictionaries(
    {},
    optional={
        "network": st.dictionaries(st.sampled_from([*Network.__dataclass_fields__, "x"]), values) | values,
        "defaults": tables | values,
        "workspaces": st.dictionaries(names, tables | values, max_size=4) | values,
        "engines": st.dictionaries(st.sampled_from(["incus", "x"]), values) | values,
        "kits": st.dictionaries(names, kits | values, max_size=3) | values,
        "web": values,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=files)
def test_any_file_gives_a_config_or_problems(data: Table, home: object) -> None:
    text = "\n".join(f"{key} = {render(value)}" for key, value in data.items())
    assert tomllib.loads(text) == data
    findings: list[FieldProblem] = []
    kits = Kits("/nowhere/hutch.toml", loading.table_at(data, ("kits",), findings))
    config = loading.read_config("/nowhere/hutch.toml", data, findings, LAYOUT, loading.no_check, kits)
    problems = reading.locate("/nowhere/hutch.toml", text, findings)
    assert config.file == "/nowhere/hutch.toml"
    for problem in problems:
        assert problem.line > 0
        assert problem.message
        assert "\n" not in str(problem)


def render(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {render(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n".join(map(render, value)) + "]"
    return json.dumps(value)
