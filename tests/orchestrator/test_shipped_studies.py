"""Every study that ships is right with each of its budgets, runs to its end, and so is the schema for editors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from orchestrator._yaml import compose
from orchestrator.arms import arm_count
from orchestrator.backends.inline import InlineBackend
from orchestrator.errors import InvalidStudyError
from orchestrator.home import StudyFiles
from orchestrator.journal import TrialReported, TrialStarted, read
from orchestrator.loader import Budget, load_study
from orchestrator.machine import Slots
from orchestrator.plan import make_plan
from orchestrator.schema import json_schema
from orchestrator.search import OptunaSearch
from orchestrator.study import StudySpec, of_arm
from orchestrator.sweep import Sweep
from trials.data import prepare
from trials.datasets import DATASETS
from trials.reports import State

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
MINIMAL = {"version": 1, "name": "s", "model": "obs_mlp", "dataset": "mnist"}
TRAINED = {
    "obs": ("baseline", "lr", "optimizer", "latent", "classes", "search"),
    "improved": ("main", "ablation", "ttur", "length", "search"),
    "rnn": ("t4", "t16", "steps", "lr", "search"),
    "rgan": ("datasets", "conv", "lstm_view", "stabilisers", "smoothing", "ttur", "search"),
    "wgan": (
        *("main64", "size", "ablation", "lr", "upsample", "eqlr", "critic", "progan", "longer"),
        "search",
    ),
}
"""The studies of the five sources: everything that they trained or named as a next step."""


def plain(path: Path) -> dict[str, Any]:
    root, faults = compose(path.read_text(encoding="utf-8"))
    assert root is not None
    assert not faults
    return cast(dict[str, Any], root.plain())


def schema_errors(document: object) -> list[str]:
    return [e.message for e in jsonschema.Draft202012Validator(json_schema()).iter_errors(document)]


def each_arm(study: StudySpec) -> list[StudySpec]:
    return [of_arm(study, name) for name in study.arms] or [study]


def test_every_study_of_the_sources_ships() -> None:
    wanted = {f"{family}_{study}" for family, studies in TRAINED.items() for study in studies}
    assert {path.stem for path in STUDIES} == wanted | {"quickstart", "lr_optimizer", "mnist5k_search"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_loads_and_is_planned_with_each_of_its_budgets(path: Path) -> None:
    full = load_study(path)
    assert full.name == path.stem
    for budget in ("full", *full.budgets):
        study = load_study(path, budget=cast(Budget, budget))
        plan = make_plan(study)
        assert plan.study == (path.stem if budget == "full" else f"{path.stem}-{budget}")
        assert plan.n_trials == arm_count(study) * len(study.seeds)
        assert plan.steps or plan.uncounted


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_has_a_smoke_budget_of_a_few_steps_on_data_that_ships(path: Path) -> None:
    for study in each_arm(load_study(path, budget="smoke")):
        assert study.train.steps is not None
        assert study.train.steps <= 50
        assert DATASETS[study.dataset.name or ""].ships


SOURCED = [path for path in STUDIES if path.stem not in ("quickstart", "mnist5k_search")]


@pytest.mark.parametrize("path", SOURCED, ids=lambda path: path.stem)
def test_a_study_of_a_source_says_what_the_source_claims(path: Path) -> None:
    study = load_study(path)
    assert study.source
    assert study.claims
    assert study.seeds in ([0], [0, 1, 2])
    for small in each_arm(load_study(path, budget="short")):
        assert small.train.steps is not None
        assert small.train.steps >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_smoke_budget_of_a_shipped_study_runs_to_its_end(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = load_study(path, budget="smoke")
    cache = tmp_path_factory.getbasetemp() / "datasets"  # shared, as preparing takes longer than training
    sources = {arm.dataset.source for arm in each_arm(study)}
    datasets = {source: prepare(source, cache_dir=cache, data_dir=tmp_path) for source in sources}
    files = StudyFiles(tmp_path / study.name)
    files.root.mkdir()

    def run() -> Sweep:
        search = OptunaSearch(study, files.optuna)
        sweep = Sweep(study, files, search, datasets, Slots(cpu=1, gpu=0, count=1))
        if not sweep.finished:
            sweep.start({})
            InlineBackend().run(sweep)
        sweep.end()
        return sweep

    records = run().records
    whole = [trial for trial in records.trials.values() if trial.state is not State.PRUNED]
    assert {trial.key: trial.reason for trial in whole if trial.reason} == {}
    assert {trial.state for trial in whole} == {State.COMPLETED}
    assert (len(whole) < len(records.trials)) == (study.prune is not None)
    assert len(records.trials) == arm_count(study) * len(study.seeds)
    reports = [event for event, _ in read(files.journal) if isinstance(event, TrialReported)]
    for key in records.trials:
        rows = [row for event in reports if event.key == key for row in event.rows]
        metrics = {name for _, values in rows for name in values}
        assert {"train/g_loss", "train/d_loss_mean", "eval/swd"} <= metrics
        assert all(math.isfinite(value) for _, values in rows for value in values.values())
        pictures = [place for event in reports if event.key == key for _, _, place in event.pictures]
        assert pictures
        assert all((files.trial(key) / place).stat().st_size for place in pictures)
    again = run()
    assert again.finished
    starts = sum(isinstance(event, TrialStarted) for event, _ in read(files.journal))
    assert starts == sum(trial.attempts for trial in records.trials.values())
    assert starts == len(records.trials) or study.prune is not None


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
