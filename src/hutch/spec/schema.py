"""The JSON Schema of hutch.toml, for editors and other tools, made from the model.

It describes each key; what several keys must be together is checked only when a file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hutch.spec.model import Idle, Incus, Kit, Mount, Network, WorkspaceSpec
from hutch.spec.names import NAME

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODELS: dict[str, Any] = {
    "Idle": Idle,
    "Incus": Incus,
    "Kit": Kit,
    "Mount": Mount,
    "Network": Network,
    "Workspace": WorkspaceSpec,
}
"""The tables of the file, by their names in the schema."""


def render_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of the whole file."""
    workspace = {"$ref": "#/$defs/Workspace"}
    tables = {
        "network": {"$ref": "#/$defs/Network", "description": "the workspaces' network"},
        "defaults": {**workspace, "description": "any workspace key; a workspace overrides it"},
        "workspaces": {
            "type": "object",
            "description": "one table for each workspace",
            "propertyNames": {"pattern": f"^{NAME}$"},
            "additionalProperties": workspace,
        },
        "engines": {
            "type": "object",
            "description": "who else can run workspaces",
            "properties": {"incus": {"$ref": "#/$defs/Incus"}},
            "additionalProperties": False,
        },
        "kits": {
            "type": "object",
            "description": "parts that workspaces have in common, for their key `use`",
            "propertyNames": {"pattern": f"^{NAME}$"},
            "additionalProperties": {"$ref": "#/$defs/Kit"},
        },
    }
    typed = {"required": ["type"]}
    return {
        "$schema": DIALECT,
        "title": "hutch.toml",
        "description": "workspaces of hutch: each an isolated machine of its own",
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
        # A workspace must have a type, of its own or from [defaults].
        "anyOf": [
            {"properties": {"defaults": typed}, "required": ["defaults"]},
            {"properties": {"workspaces": {"additionalProperties": typed}}},
        ],
        "$defs": definitions(),
    }


def definitions(models: Mapping[str, Any] = MODELS) -> dict[str, Any]:
    """A schema for each table, its keys described as in the model."""
    # Spares the start-up of `hutch init`.
    from pydantic import TypeAdapter

    _, described = TypeAdapter.json_schemas([(model, "validation", TypeAdapter(model)) for model in models.values()])
    found: dict[str, Any] = {}
    for title, model in models.items():
        table = found[title] = {**described["$defs"][model.__name__], "title": title}
        table["description"] = (model.__doc__ or "").partition("\n")[0]
        for name, field in model.__dataclass_fields__.items():
            table["properties"][name] = described_key(table["properties"][name], dict(field.metadata))
    found.get("Workspace", {}).pop("required", None)  # see the top: `type` may come from [defaults]
    return found


def described_key(schema: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """The schema of one key with its meaning, and with the form of its values where that says more than their type.
    TOML has no null: to leave a key out is its default."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option != {"type": "null"}]
        schema = {**schema, "anyOf": options}
        if len(options) == 1:
            schema = {**schema, **options[0]}
            del schema["anyOf"]
    if schema.get("default") in (None, "", [], ()):
        schema.pop("default", None)
    schema.pop("title", None)
    only = f' (for type = "{metadata["only"]}")' if metadata.get("only") else ""
    form = schema.get("description") or schema.get("items", {}).pop("description", "")
    return {**schema, "description": f"{metadata['meaning']}{only}{form and f'; {form}'}"}
