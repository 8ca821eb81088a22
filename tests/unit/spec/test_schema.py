"""The JSON Schema knows every key, says what each means, and agrees with loading."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hutch.spec.lookup import SCHEMA, render_starter
from hutch.spec.model import WORKSPACE_KEYS
from hutch.spec.schema import MODELS, render_schema
from tests.unit.facts import check_golden

CONTRACT = (
    "type engine hypervisor image packages setup user shell authorized_keys owner share_with ip mac cid vsock vcpus"
    " memory disk autostart auto_refresh restart_if_changed home persist mounts protect protect_default egress publish"
    " env nix_store use gpu nesting learn idle"
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return render_schema()


def test_every_key_is_described(schema: dict[str, Any]) -> None:
    assert list(schema["properties"]) == ["network", "defaults", "workspaces", "engines", "kits"]
    for name, model in MODELS.items():
        table = schema["$defs"][name]
        assert set(table["properties"]) == set(model.__dataclass_fields__)
        assert table["additionalProperties"] is False
        assert all(key["description"] for key in table["properties"].values())


def test_the_contract_is_complete() -> None:
    assert tuple(CONTRACT.split()) == WORKSPACE_KEYS


def test_defaults_are_those_of_the_model(schema: dict[str, Any]) -> None:
    keys = schema["$defs"]["Workspace"]["properties"]
    assert keys["image"]["default"] == "debian:trixie"
    assert keys["packages"]["default"][0] == "git"
    assert keys["autostart"]["default"] is False
    assert "default" not in keys["ip"]
    assert schema["$defs"]["Network"]["properties"]["subnet"]["default"] == "192.168.83.0/24"


def test_it_is_plain_json_and_every_pattern_compiles(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert "null" not in text
    patterns = re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', text)
    assert len(patterns) > 15
    for pattern in patterns:
        assert re.compile(json.loads(pattern)).pattern.startswith("^")


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)))
    assert references == {"Workspace", "Kit", "Mount", "Idle", "Network", "Incus"} == set(schema["$defs"])


def test_editors_and_the_nixos_module_know_it_from_a_file() -> None:
    check_golden(str(SCHEMA), json.dumps(render_schema(), indent=2) + "\n")


def test_a_starter_tells_editors_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has a place that is the same on every host, and the file is nobody else's."""
    assert "#:schema" not in render_starter("web")
    monkeypatch.setattr("hutch.spec.lookup.SCHEMA", Path("/usr/lib/python3/dist-packages/hutch/spec/schema.json"))
    url = "file:///usr/lib/python3/dist-packages/hutch/spec/schema.json"
    assert render_starter("web").splitlines()[0] == f"#:schema {url}"
    assert "#:schema" not in render_starter("web", is_judged=True)
