"""Optuna by ask and tell: grids without duplicates, seeds, and nothing forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from models import Value
from orchestrator.arms import grid
from orchestrator.records import ArmRecord
from orchestrator.search import OptunaSearch
from orchestrator.study import StudySpec
from orchestrator.testing import tiny_study

SPACE = {
    "lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "latent_dim": {"low": 2, "high": 10, "step": 4},
    "optimizer": {"choices": ["adam", "sgd"]},
}


def searching(sampler: str, trials: int = 12, **changes: Any) -> StudySpec:
    search = {"sampler": sampler, "trials": trials, "seed": 3}
    return tiny_study(space=SPACE, search=search, fixed={"width": 8}, **changes)


def propose_all(
    search: OptunaSearch, n: int, taken: dict[int, dict[str, Value]] | None = None
) -> dict[int, Any]:
    known = dict(taken or {})
    while len(known) < n:
        number, values = search.propose(set(known))
        assert number not in known
        known[number] = values
    return known


def test_a_grid_proposes_every_point_once_in_the_order_written(tmp_path: Path) -> None:
    study = tiny_study(space={"lr": {"choices": [1e-3, 1e-4]}, "optimizer": {"choices": ["adam", "sgd"]}})
    found = propose_all(OptunaSearch(study, tmp_path / "o"), 4)
    assert list(found.values()) == grid(study)


def test_a_grid_that_is_opened_again_goes_on_with_the_points_that_are_left(tmp_path: Path) -> None:
    study = tiny_study(space={"lr": {"choices": [1e-3, 1e-4, 1e-5]}})
    first = propose_all(OptunaSearch(study, tmp_path / "o"), 2)
    found = propose_all(OptunaSearch(study, tmp_path / "o"), 3, first)
    assert list(found.values()) == grid(study)


def test_a_study_without_a_space_has_one_arm(tmp_path: Path) -> None:
    study = tiny_study(space={})
    assert OptunaSearch(study, tmp_path / "o").propose(set()) == (0, {})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_proposals_lie_in_the_space(sampler: str, tmp_path: Path) -> None:
    for values in propose_all(OptunaSearch(searching(sampler), tmp_path / "o"), 12).values():
        assert 1e-5 <= values["lr"] <= 1e-2
        assert values["latent_dim"] in (2, 6, 10)
        assert isinstance(values["latent_dim"], int)
        assert values["optimizer"] in ("adam", "sgd")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_proposes_the_same_arms(sampler: str, tmp_path: Path) -> None:
    def told(path: Path) -> list[Any]:
        search, values = OptunaSearch(searching(sampler), path), []
        for i in range(12):
            number, arm = search.propose(set(range(i)))
            search.tell(number, [float(i % 5)])
            values.append(arm)
        return values

    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_number_between_whole_bounds_is_not_rounded(tmp_path: Path) -> None:
    study = tiny_study(
        space={"beta1": {"low": 0, "high": 0.75, "step": 0.25}, "momentum": {"low": 0, "high": 0.9}},
        search={"sampler": "random", "trials": 12},
    )
    drawn = propose_all(OptunaSearch(study, tmp_path / "o"), 12).values()
    assert len({values["momentum"] for values in drawn}) == 12
    assert {values["beta1"] for values in drawn} <= {0.0, 0.25, 0.5, 0.75}


def test_a_search_that_is_opened_again_proposes_no_arm_twice(tmp_path: Path) -> None:
    whole = propose_all(OptunaSearch(searching("random"), tmp_path / "whole"), 6)
    part = propose_all(OptunaSearch(searching("random"), tmp_path / "part"), 3)
    rest = propose_all(OptunaSearch(searching("random"), tmp_path / "part"), 6, part)
    assert rest == whole


def test_an_arm_that_was_asked_for_but_never_recorded_is_handed_out_again(tmp_path: Path) -> None:
    number, values = OptunaSearch(searching("random"), tmp_path / "o").propose(set())
    assert OptunaSearch(searching("random"), tmp_path / "o").propose(set()) == (number, values)


def test_a_grid_point_whose_asking_was_cut_off_is_not_lost(tmp_path: Path) -> None:
    study = tiny_study(space={"lr": {"choices": [1e-3, 1e-4]}, "optimizer": {"choices": ["adam", "sgd"]}})
    OptunaSearch(study, tmp_path / "o")._study.ask()  # the crash came before the values were drawn
    found = propose_all(OptunaSearch(study, tmp_path / "o"), 4)
    assert list(found.values()) == grid(study)


@pytest.mark.parametrize("damage", ["lost", "torn", "empty"])
@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_store_that_was_damaged_is_made_anew_from_our_records(
    damage: str, sampler: str, tmp_path: Path
) -> None:
    study = (
        tiny_study(space={"lr": {"choices": [1e-3, 1e-4, 1e-5, 1e-6]}})
        if sampler == "grid"
        else searching("random")
    )
    whole = propose_all(OptunaSearch(study, tmp_path / "whole"), 4)
    known = propose_all(OptunaSearch(study, tmp_path / "o"), 2)
    match damage:
        case "lost":
            (tmp_path / "o").unlink()
        case "torn":
            (tmp_path / "o").write_bytes((tmp_path / "o").read_bytes()[:-9] + b"\n{}\n")
        case "empty":
            (tmp_path / "o").write_bytes(b"")
    arms = [ArmRecord(arm=i, proposal=i, values=values, trials=[]) for i, values in known.items()]
    search = OptunaSearch(study, tmp_path / "o", arms)
    found = propose_all(search, 4, known)
    assert list(found.values())[:2] == list(known.values())
    if sampler == "grid":
        assert list(found.values()) == list(whole.values())
    for number in found:
        search.tell(number, [1.0])
    assert {t.state.name for t in search._study.get_trials()} == {"COMPLETE"}


def test_values_and_failures_are_kept_and_telling_twice_is_harmless(tmp_path: Path) -> None:
    search = OptunaSearch(searching("random"), tmp_path / "o")
    first, second = (search.propose(set(range(i)))[0] for i in (0, 1))
    for _ in range(2):
        search.tell(first, [0.5])
        search.tell(second, None)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "o")))
    trials = optuna.load_study(study_name="tiny", storage=storage).trials
    assert [(t.state.name, t.value) for t in trials] == [("COMPLETE", 0.5), ("FAIL", None)]


def test_tpe_learns_from_what_it_is_told(tmp_path: Path) -> None:
    # Choices that make the value 100 times worse should be drawn less than half of the time once learnt.
    study = tiny_study(
        space={"optimizer": {"choices": ["adam", "sgd"]}, "beta1": {"low": 0.0, "high": 0.9}},
        search={"sampler": "tpe", "trials": 40, "seed": 0},
    )
    search, drawn = OptunaSearch(study, tmp_path / "o"), []
    for i in range(40):
        number, values = search.propose(set(range(i)))
        search.tell(number, [1.0 if values["optimizer"] == "adam" else 100.0])
        drawn.append(values["optimizer"])
    assert drawn[20:].count("adam") > 15
