"""The JSON Schema of the study file, for editors."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

import models
from orchestrator._fields import FOUND_FACTS, MOST_LISTED, StudySpec
from orchestrator._layers import IN_BUDGET
from trials.datasets import DATASETS
from trials.options import TRAINING
from trials.reports import OBJECTIVES


class _Untitled(GenerateJsonSchema):
    """Without a title for every field, which only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MOST_LISTED}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a study; the checks between fields are in the loader alone."""
    schema = StudySpec.model_json_schema(schema_generator=_Untitled)
    parts, fields = schema["$defs"], schema["properties"]
    names = sorted(
        {*TRAINING, *(name for preset in models.names() for name in models.preset(preset).build_params)}
    )
    for name in FOUND_FACTS:
        del parts["Dataset"]["properties"][name]
    parts["Dataset"]["properties"]["name"] = {"enum": list(DATASETS)}
    parts["Objective"]["properties"]["metric"]["enum"] = list(OBJECTIVES)
    one = {"$ref": "#/$defs/Objective"}
    fields["objective"] = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 3}]}
    model, dataset = {"enum": list(models.names())}, [{"enum": list(DATASETS)}, {"$ref": "#/$defs/Dataset"}]
    fields["model"] = {"anyOf": [model, _list_of(model)]}
    fields["dataset"] = {"anyOf": [*dataset, _list_of({"anyOf": dataset})]}
    parts["Arm"]["properties"]["dataset"] = {"anyOf": dataset}
    for axis in ("Choices", "Range"):
        value = parts[axis]["properties"]["when"]["additionalProperties"]
        parts[axis]["properties"]["when"]["additionalProperties"] = {"anyOf": [value["items"], value]}
    for block in (fields, parts["Arm"]["properties"]):
        block["fixed"]["propertyNames"] = {"enum": names}
    stages = {"type": "array", "items": {"type": "object"}}
    for block in (fields, parts["Arm"]["properties"]):
        block["fixed"]["properties"] = {"lr_schedule": {"anyOf": [{"type": "string"}, stages]}}
    fields["space"]["propertyNames"] = {"enum": names}
    parts["Budget"] = {
        "description": "What a shorter run of the study changes.",
        "type": "object",
        "properties": {name: fields[name] for name in IN_BUDGET},
        "additionalProperties": False,
    }
    budget = {"$ref": "#/$defs/Budget"}
    fields["budgets"] = {
        "type": "object",
        "properties": {"short": budget, "smoke": budget},
        "additionalProperties": False,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "gan-sweep study"}
