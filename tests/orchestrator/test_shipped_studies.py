"""Every study that ships is right with each of its budgets, and so is the schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from orchestrator._yaml import compose
from orchestrator.errors import InvalidStudyError
from orchestrator.loader import Budget, load_study
from orchestrator.schema import json_schema

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
MINIMAL = {"version": 1, "name": "s", "model": "obs_mlp", "dataset": "mnist"}


def plain(path: Path) -> dict[str, Any]:
    root, faults = compose(path.read_text(encoding="utf-8"))
    assert root is not None
    assert not faults
    return cast(dict[str, Any], root.plain())


def schema_errors(document: object) -> list[str]:
    return [e.message for e in jsonschema.Draft202012Validator(json_schema()).iter_errors(document)]


def test_studies_ship() -> None:
    assert STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_loads_with_each_of_its_budgets(path: Path) -> None:
    full = load_study(path)
    assert full.name == path.stem
    for budget in full.budgets:
        assert load_study(path, budget=cast(Budget, budget)).name == f"{path.stem}-{budget}"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_has_a_smoke_budget_of_a_few_steps(path: Path) -> None:
    steps = load_study(path, budget="smoke").train.steps
    assert steps is not None
    assert steps <= 50


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_names_the_schema_and_passes_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=study.schema.json"
    assert schema_errors(plain(path)) == []


def test_the_schema_is_a_schema_with_its_own_title() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "gan-sweep study"
    assert schema["$defs"]["Train"]["description"].startswith("Length of training")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x"},
        {"dataset": "x"},
        {"dataset": {"name": "x"}},
        {"epocs": 1},
        {"train": {"steps": 0}},
        {"space": {"x": {"choices": [1]}}},
        {"space": {"lr": {"low": 1}}},
        {"objective": {"metric": "fid"}},
        {"budgets": {"smok": {}}},
        {"budgets": {"smoke": {"name": "x"}}},
        {"resources": {"gpu": -1}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(change: dict[str, Any], tmp_path: Path) -> None:
    assert schema_errors(MINIMAL) == []
    assert schema_errors({**MINIMAL, **change})
    path = tmp_path / "s.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in {**MINIMAL, **change}.items()))
    with pytest.raises(InvalidStudyError):
        load_study(path)


def test_the_schema_accepts_a_dataset_by_name_or_as_a_mapping_and_partial_budgets() -> None:
    for dataset in ("digits", {"name": "digits", "limit": 100}):
        budgets = {"smoke": {"dataset": dataset, "train": {"steps": 5}}}
        assert schema_errors({**MINIMAL, "dataset": dataset, "budgets": budgets}) == []
