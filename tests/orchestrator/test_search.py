"""Optuna by ask and tell: grids without duplicates, seeds, and nothing forgotten."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from models import Value
from orchestrator.arms import grid
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles
from orchestrator.records import ArmRecord
from orchestrator.samplers import SAMPLERS
from orchestrator.search import RETOLD, OptunaSearch
from orchestrator.study import StudySpec, allowing, problems
from orchestrator.testing import tiny_study
from orchestrator.warm import warm_start
from tests.orchestrator.fabricated import fabricate

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


# Every sampler

DRAWING = [name for name in SAMPLERS if name != "grid"]
WIDE: dict[str, Any] = {
    "lr_g": {"low": 1e-5, "high": 1e-2, "log": True},
    "lr_d": {"low": 1e-5, "high": 1e-2, "log": True},
    "optimizer": {"choices": ["adam", "sgd", "rmsprop"]},
    "momentum": {"low": 0.3, "high": 0.9, "step": 0.3, "when": {"optimizer": ["sgd", "rmsprop"]}},
    "nesterov": {"choices": [True, False], "when": {"optimizer": "sgd"}},
    "width": {"low": 2, "high": 64, "log": True},
    "n_critic": {"low": 1, "high": 5, "step": 2},
}
FEW = {"n_startup_trials": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "tpe": FEW,
    "cmaes": {**FEW, "popsize": 4},
    "gp": FEW,
    "nsga2": {"population_size": 4},
    "nsga3": {"population_size": 4},
}


def wide(sampler: str, trials: int = 14, **changes: Any) -> StudySpec:
    search = {"sampler": sampler, "trials": trials, "seed": 5, "options": OPTIONS.get(sampler, {})}
    study = tiny_study(
        space=WIDE,
        fixed={"latent_dim": 4},
        constraints=["lr_g <= lr_d", "optimizer != adam or width <= 32"],
        search=search | changes.pop("search", {}),
        **changes,
    )
    assert not problems(study)
    return study


def few(sampler: str) -> int:
    """Arms to propose: a Gaussian process takes half a second for each."""
    return 6 if sampler == "gp" else 14


def bowl(values: Mapping[str, Value]) -> float:
    return abs(math.log10(float(values["lr_g"])) + 4) + int(values["width"]) / 64


def run(search: OptunaSearch, known: dict[int, dict[str, Value]], n: int, adaptive: bool) -> None:
    """Propose until `n` arms are known, telling each at once if the sampler learns."""
    while len(known) < n:
        number, values = search.propose(set(known))
        assert number not in known
        known[number] = values
        if adaptive:
            search.tell(number, [bowl(values)] if len(known) % 5 else None)


@pytest.mark.parametrize("sampler", DRAWING)
def test_proposals_lie_in_the_space_and_meet_conditions_and_constraints(sampler: str, tmp_path: Path) -> None:
    study, known = wide(sampler), dict[int, dict[str, Value]]()
    run(OptunaSearch(study, tmp_path / "o"), known, few(sampler), SAMPLERS[sampler].adaptive)
    for values in known.values():
        assert list(values) == [name for name in WIDE if name in values]
        assert 1e-5 <= float(values["lr_g"]) <= float(values["lr_d"]) <= 1e-2
        assert values["n_critic"] in (1, 3, 5)
        assert type(values["n_critic"]) is type(values["width"]) is int
        assert 2 <= int(values["width"]) <= (32 if values["optimizer"] == "adam" else 64)
        assert ("momentum" in values) == (values["optimizer"] != "adam")
        assert ("nesterov" in values) == (values["optimizer"] == "sgd")
        assert values.get("momentum", 0.3) in [0.3, 0.6, pytest.approx(0.9)]
    assert len({str(values) for values in known.values()}) == few(sampler)
    if not SAMPLERS[sampler].adaptive:
        assert {values["optimizer"] for values in known.values()} == {"adam", "sgd", "rmsprop"}


@pytest.mark.parametrize("sampler", DRAWING)
def test_a_restart_anywhere_proposes_what_an_uninterrupted_search_does(sampler: str, tmp_path: Path) -> None:
    study, adaptive = wide(sampler), SAMPLERS[sampler].adaptive
    whole, parts = dict[int, dict[str, Value]](), dict[int, dict[str, Value]]()
    run(OptunaSearch(study, tmp_path / "whole"), whole, few(sampler), adaptive)
    for n in (1, 2, 5, few(sampler)):
        arms = [ArmRecord(arm=i, proposal=k, values=v, trials=[]) for i, (k, v) in enumerate(parts.items())]
        run(OptunaSearch(study, tmp_path / "parts", arms), parts, n, adaptive)
    assert parts == whole


@pytest.mark.parametrize("sampler", DRAWING)
def test_another_seed_proposes_other_arms(sampler: str, tmp_path: Path) -> None:
    first = [
        OptunaSearch(wide(sampler, search={"seed": seed}), tmp_path / f"{seed}").propose(set())[1]
        for seed in (0, 1)
    ]
    assert first[0] != first[1]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "nsga3", "random", "qmc"])
def test_a_sampler_of_several_objectives_is_told_all_of_them(sampler: str, tmp_path: Path) -> None:
    study = wide(sampler, objective=[{"metric": "eval/fd"}, {"metric": "eval/recall", "mode": "max"}])
    search = OptunaSearch(study, tmp_path / "o")
    for i in range(7):
        number, values = search.propose(set(range(i)))
        search.tell(number, [bowl(values), 0.5])
    finished = [t.values for t in search._study.get_trials() if t.state.name == "COMPLETE"]
    assert len(finished) == 7
    assert {values[1] for values in finished} == {0.5}


@pytest.mark.parametrize("sampler", [name for name in DRAWING if name != "gp"])
def test_a_finite_space_is_proposed_whole_without_an_arm_twice(sampler: str, tmp_path: Path) -> None:
    study = tiny_study(
        space={
            "width": {"low": 2, "high": 3, "log": True},
            "beta1": {"low": 0.1, "high": 0.7, "step": 0.2},
            "amsgrad": {"choices": [True, False]},
        },
        constraints=["width == 2 or beta1 < 0.4"],
        fixed={"latent_dim": 4},
        search={"sampler": sampler, "trials": 12, "options": OPTIONS.get(sampler, {})},
    )
    assert not problems(study)
    search, seen = OptunaSearch(study, tmp_path / "o"), dict[int, dict[str, Value]]()
    for _ in range(12):
        number, values = search.propose(set(seen))
        seen[number] = values
        search.tell(number, [float(values["beta1"])])
    drawn = {(v["width"], round(float(v["beta1"]), 9), v["amsgrad"]) for v in seen.values()}
    assert len(drawn) == 12
    with pytest.raises(UsageError, match=r"every one of the 12 points .* was proposed; lower search.trials"):
        search.propose(set(seen))


def test_constraints_that_no_arm_meets_are_said_to_be(tmp_path: Path) -> None:
    study = tiny_study(
        space={"lr": {"low": 1e-5, "high": 1e-2, "log": True}},
        constraints=["lr > 1"],
        search={"sampler": "random", "trials": 2},
    )
    with pytest.raises(UsageError, match=r"none of 5000 arms .* meets the constraints \(lr > 1\); widen"):
        OptunaSearch(study, tmp_path / "o").propose(set())


def test_a_rejected_proposal_is_no_arm_and_is_told_to_have_failed(tmp_path: Path) -> None:
    study = tiny_study(
        space={"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "beta1": {"low": 0, "high": 0.9}},
        constraints=["beta1 < 0.3"],
        search={"sampler": "random", "trials": 10},
    )
    search = OptunaSearch(study, tmp_path / "o")
    known = propose_all(search, 10)
    there = search._study.get_trials()
    assert {t.number for t in there if t.state.name == "RUNNING"} == set(known)
    assert {t.state.name for t in there if t.number not in known} == {"FAIL"}
    assert len(there) > 10


def test_a_rejected_proposal_whose_driver_died_is_not_handed_out(tmp_path: Path) -> None:
    study = wide("random")
    first = OptunaSearch(study, tmp_path / "o")
    while allowing(study)(first._ask()[1]):
        pass
    known = propose_all(OptunaSearch(study, tmp_path / "o"), 5)
    assert all(allowing(study)(values) for values in known.values())


def test_quasi_random_arms_cover_a_space_evenly_before_any_result(tmp_path: Path) -> None:
    study = tiny_study(
        space={"beta1": {"low": 0, "high": 0.8}, "beta2": {"low": 0, "high": 0.8}},
        search={"sampler": "qmc", "trials": 16},
    )
    known = propose_all(OptunaSearch(study, tmp_path / "o"), 16).values()
    # A scrambled Sobol sequence has one of 16 points in each sixteenth of every axis.
    for name in ("beta1", "beta2"):
        assert sorted(int(float(values[name]) / 0.05) for values in known) == list(range(16))


def test_cma_es_closes_in_on_the_best_value(tmp_path: Path) -> None:
    study = tiny_study(
        space={"beta1": {"low": 0, "high": 0.9}, "beta2": {"low": 0, "high": 0.9}},
        search={"sampler": "cmaes", "trials": 60, "seed": 1},
    )
    search, told = OptunaSearch(study, tmp_path / "o"), list[float]()
    for i in range(60):
        number, values = search.propose(set(range(i)))
        told.append((float(values["beta1"]) - 0.8) ** 2 + (float(values["beta2"]) - 0.2) ** 2)
        search.tell(number, told[-1:])
    # Drawn at random, ten values have a mean of 0.3; three generations of chance alone stay above 0.1.
    assert sum(told[-10:]) / 10 < 0.05


def test_named_arms_have_what_their_model_takes(tmp_path: Path) -> None:
    study = tiny_study(
        arms={"a": {"model": "obs_mlp"}, "b": {"model": "improved"}},
        fixed={},
        space={
            "lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "layers": {"low": 1, "high": 3, "when": {"model": "improved"}},
            "width": {"low": 8, "high": 16, "when": {"arm": "a"}},
        },
        search={"sampler": "tpe", "trials": 20},
    )
    assert not problems(study)
    search, known = OptunaSearch(study, tmp_path / "o"), dict[int, dict[str, Value]]()
    while len(known) < 20:
        number, values = search.propose(set(known))
        search.tell(number, [0.1])
        known[number] = values
        assert ("layers" in values, "width" in values) == (values["arm"] == "b", values["arm"] == "a")
    assert {values["arm"] for values in known.values()} == {"a", "b"}


# What is told


def states(search: OptunaSearch) -> list[tuple[str, list[float] | None]]:
    return [(trial.state.name, trial.values) for trial in search._study.get_trials()]


def test_a_pruned_arm_is_told_with_the_step_and_value_at_which_it_was_ended(tmp_path: Path) -> None:
    search = OptunaSearch(searching("tpe"), tmp_path / "o")
    number, _ = search.propose(set())
    for _ in range(2):
        search.tell(number, None, pruned=(500, 0.25))
    (trial,) = OptunaSearch(searching("tpe"), tmp_path / "o")._study.get_trials()
    assert (trial.state.name, trial.intermediate_values) == ("PRUNED", {500: 0.25})


def test_of_several_objectives_a_pruned_arm_has_none(tmp_path: Path) -> None:
    study = searching("tpe", objective=[{"metric": "eval/fd"}, {"metric": "eval/swd"}])
    search = OptunaSearch(study, tmp_path / "o")
    search.tell(search.propose(set())[0], None, pruned=(500, 0.25))
    assert states(search) == [("FAIL", None)]


@pytest.mark.parametrize("sampler", [name for name in DRAWING if SAMPLERS[name].adaptive])
def test_an_arm_that_failed_and_was_retried_becomes_a_finished_trial_once(
    sampler: str, tmp_path: Path
) -> None:
    search = OptunaSearch(wide(sampler), tmp_path / "o")
    known = dict[int, dict[str, Value]]()
    run(search, known, 5, adaptive=True)  # the fifth is told to have failed
    failed = max(known)
    for _ in range(2):
        for again in (search, OptunaSearch(wide(sampler), tmp_path / "o")):
            again.retell(failed, [0.125])
            again.retell(min(known), [0.5])  # which had not failed
    new = OptunaSearch(wide(sampler), tmp_path / "o")._study.get_trials()[failed + 1 :]
    assert [(t.state.name, t.value, t.user_attrs[RETOLD]) for t in new] == [("COMPLETE", 0.125, failed)]
    assert new[0].params == known[failed]
    again = OptunaSearch(wide(sampler), tmp_path / "o")
    run(again, known, 8, adaptive=True)
    assert failed + 1 not in known


def test_a_grid_keeps_its_numbers_when_an_arm_is_retried(tmp_path: Path) -> None:
    study = tiny_study(space={"lr": {"choices": [1e-3, 1e-4, 1e-5]}})
    search = OptunaSearch(study, tmp_path / "o")
    search.tell(search.propose(set())[0], None)
    search.retell(0, [0.5])
    assert list(propose_all(search, 3, {0: grid(study)[0]}).values()) == grid(study)


# Warm starts


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAN_SWEEP_HOME", str(tmp_path / "home"))
    return tmp_path


RATES = {"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "beta1": {"low": 0.0, "high": 0.9}}


def warm(sampler: str = "tpe", name: str = "made", **changes: Any) -> StudySpec:
    search = {"sampler": sampler, "trials": 8, "warm_start": name, "options": OPTIONS.get(sampler, {})}
    study = tiny_study(**{"space": RATES, "search": search, **changes})
    assert not problems(study)
    return study


def earlier_study(**changes: Any) -> None:
    """Six arms: one whose seed diverged, one outside of RATES, and one of two seeds that are not equal."""
    rates = [3e-5, 1e-4, 3e-4, 1e-3]
    fabricate(
        [
            *(({"lr": lr}, [0.25, 0.75 + i]) for i, lr in enumerate(rates)),
            ({"lr": 2e-3}, [0.5, "diverged"]),
            ({"lr": 0.1}, [0.5, 0.5]),
        ],
        space={"lr": {"choices": [*rates, 2e-3, 0.1]}},
        **changes,
    )


@pytest.mark.parametrize("sampler", [n for n in DRAWING if SAMPLERS[n].adaptive and n != "cmaes"])
def test_a_warm_started_search_begins_with_the_arms_of_the_earlier_study_that_fit(
    sampler: str, home: Path
) -> None:
    earlier_study()
    study = warm(sampler)
    earlier = warm_start(study, StudyFiles.of(study.name))
    assert earlier is not None
    assert earlier.words.startswith("the search learns first from 4 of 5 finished arms of made")
    search = OptunaSearch(study, home / "o", (), earlier)
    there = search._study.get_trials()
    assert [t.params for t in there] == [{"lr": lr, "beta1": 0.5} for lr in (3e-5, 1e-4, 3e-4, 1e-3)]
    assert [t.value for t in there] == [0.5, 1.0, 1.5, 2.0]
    known = dict[int, dict[str, Value]]()
    while len(known) < 6:
        number, values = search.propose(set(known))
        search.tell(number, [float(values["beta1"])])
        known[number] = values
    assert min(known) == 4


def test_cmaes_learns_from_ten_arms_of_an_earlier_study(home: Path) -> None:
    rates = [1e-4 * (i + 1) for i in range(10)]
    fabricate([({"lr": lr}, [lr, lr]) for lr in rates], space={"lr": {"choices": rates}})
    study = warm("cmaes")
    earlier = warm_start(study, StudyFiles.of(study.name))
    assert earlier is not None
    known = propose_all(OptunaSearch(study, home / "o", (), earlier), 3)
    assert min(known) == 10
    # The best tenth is the lowest rate, 1e-4: where a search begins that knows it.
    assert all(3e-5 < float(values["lr"]) < 4e-4 for values in known.values())


@pytest.mark.parametrize("damage", ["none", "lost", "torn"])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_numbers_of_a_warm_start_outlive_a_restart_a_damaged_store_and_the_earlier_study(
    damage: str, sampler: str, home: Path
) -> None:
    earlier_study()
    study = warm(sampler)
    files = StudyFiles.of(study.name)
    files.root.mkdir(parents=True)
    known = propose_all(OptunaSearch(study, files.optuna, (), warm_start(study, files)), 3)
    shutil.rmtree(StudyFiles.of("made").root)
    match damage:
        case "lost":
            files.optuna.unlink()
        case "torn":
            files.optuna.write_bytes(files.optuna.read_bytes()[:-9] + b"\n{}\n")
    arms = [ArmRecord(arm=i, proposal=n, values=v, trials=[]) for i, (n, v) in enumerate(known.items())]
    search = OptunaSearch(study, files.optuna, arms, warm_start(study, files))
    for number, values in known.items():
        assert {k: v for k, v in search._study.get_trials()[number].params.items()} == values
        search.tell(number, [1.0])
    assert [state for state, _ in states(search)[:7]] == ["COMPLETE"] * 7
    assert [value for _, value in states(search)[:4]] == [[0.5], [1.0], [1.5], [2.0]]
    number, _ = search.propose(set(known))
    assert number == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "cmaes"}, "cmaes learns from the best tenth of at least 10 arms, and 4 fit this space"),
        ({"name": "mad"}, "no study is called 'mad'; did you mean made?"),
        ({"objective": {"metric": "eval/swd"}}, "made has another objective: eval/fd .min., and this"),
        ({"space": {"lr": {"low": 2.0, "high": 3.0}}}, "none of its 5 finished arms fits this space"),
        ({"model": "improved", "fixed": {}}, "none of its 5 finished arms fits this space"),
        ({"constraints": ["lr > 2 * lr_g"]}, "none of its 5 finished arms fits this space"),
    ],
)
def test_a_warm_start_that_cannot_be_says_why(changes: dict[str, Any], words: str, home: Path) -> None:
    earlier_study()
    study = warm(**changes)
    with pytest.raises(UsageError, match=words):
        warm_start(study, StudyFiles.of(study.name))


def test_a_damaged_record_of_a_warm_start_is_refused_not_guessed(home: Path) -> None:
    study = warm()
    files = StudyFiles.of(study.name)
    files.root.mkdir(parents=True)
    files.optuna.with_name("warm_start.json").write_text('{"study": "made"')
    with pytest.raises(UsageError, match=r"warm_start.json is damaged.*--set name=NEW_NAME"):
        warm_start(study, files)


def test_a_value_that_an_axis_has_in_another_type_is_the_axis_own(home: Path) -> None:
    small = {"width": 8, "latent_dim": 4}
    earlier_study(fixed={**small, "optimizer": "sgd", "momentum": 0.0})
    study = warm(
        space={"lr": RATES["lr"], "momentum": {"choices": [0, 0.5]}}, fixed={**small, "optimizer": "sgd"}
    )
    earlier = warm_start(study, StudyFiles.of(study.name))
    assert earlier is not None
    assert {repr(values["momentum"]) for values, _ in earlier.arms} == {"0"}
