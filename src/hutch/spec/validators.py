"""Validators: pydantic-core's, made from the dataclasses of the model.

pydantic would make the same ones, and is loaded and searches the model for longer than all else takes that `hutch up`
does for a file. The model has few kinds of annotations; each has its schema here. The JSON Schema (spec/schema) is
pydantic's work, from the same annotations.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator

Schema = dict[str, Any]


@functools.cache
def validator(cls: Any) -> SchemaValidator:
    """The validator of a dataclass."""
    # Spares the start-up of `hutch doctor`, which reads no file where a network is set up.
    from pydantic_core import SchemaValidator

    return SchemaValidator(schema_of_dataclass(cls))


def schema_of_dataclass(cls: Any) -> Schema:
    """The schema of a frozen dataclass: exactly its fields, and no value is taken for one of another type."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [
        {"type": "dataclass-field", "name": field.name, "schema": schema_of_field(hints[field.name], field)}
        for field in dataclasses.fields(cls)
    ]
    return {
        "type": "dataclass",
        "cls": cls,
        "fields": [field["name"] for field in fields],
        "schema": {"type": "dataclass-args", "dataclass_name": cls.__name__, "fields": fields},
        "config": {"extra_fields_behavior": "forbid", "strict": True},
    }


def schema_of_field(hint: Any, field: dataclasses.Field[Any]) -> Schema:
    if field.default is dataclasses.MISSING:
        return schema_of(hint)
    return {"type": "default", "schema": schema_of(hint), "default": field.default}


def schema_of(hint: Any) -> Schema:
    """The schema of an annotation. Raises TypeError for one of a kind that the model has not had yet."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        made: Callable[..., Schema] = parts[1].__get_pydantic_core_schema__
        return made(parts[0], schema_of)
    if kind is Literal:
        return {"type": "literal", "expected": list(parts)}
    if kind is tuple and parts[1:] == (...,):
        return {"type": "tuple", "items_schema": [schema_of(parts[0])], "variadic_item_index": 0}
    if kind in (types.UnionType, typing.Union) and parts[1:] == (types.NoneType,):
        return {"type": "nullable", "schema": schema_of(parts[0])}
    if hint is bool:
        return {"type": "bool"}
    if dataclasses.is_dataclass(hint):
        return schema_of_dataclass(hint)
    raise TypeError(f"no schema for {hint}")
