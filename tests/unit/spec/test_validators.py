"""Validators are pydantic's own, made without it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_core import ValidationError

from hutch.spec.schema import MODELS
from hutch.spec.validators import schema_of, validator

VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, 0.5, "", "vm", "1", "host", "512MiB", "internet", [], [1], ["vim"], ["a.example"], {}),
    *({"A": "b"}, {"A": 1}, [{}], [{"source": "/srv", "target": "/src", "mode": "readonly", "create": 1}]),
    *({"after": "30min", "then": "stop"}, {"after": 1, "later": ""}),
)


def outcome(validate: Any, table: dict[str, Any]) -> Any:
    try:
        return vars(validate(json.dumps(table)))
    except ValidationError as error:
        return [(each["type"], each["loc"], each["msg"]) for each in error.errors(include_url=False)]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: str(model.__name__))
def test_they_say_what_pydantic_says(model: Any) -> None:
    ours, theirs = validator(model).validate_json, TypeAdapter(model).validate_json
    tables: list[dict[str, Any]] = [{}, {"unknown": 1}]
    tables += [{"type": "vm", key: value} for key in model.__dataclass_fields__ for value in VALUES]
    for table in tables:
        assert outcome(ours, table) == outcome(theirs, table), table


def test_a_kind_of_annotation_that_the_model_has_not_had_is_noticed() -> None:
    with pytest.raises(TypeError, match="no schema for"):
        schema_of(dict[str, int])
