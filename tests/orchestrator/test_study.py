"""Claims about the checks between the fields of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models import STRUCTURE
from orchestrator.samplers import SAMPLERS
from orchestrator.study import (
    MAX_ARMS,
    Choices,
    KeyPath,
    Range,
    StudySpec,
    hyperparameters,
    n_images,
    problems,
    related,
    total_steps,
    training_values,
    unknown,
)
from orchestrator.submit import with_facts
from orchestrator.testing import tiny_study
from trials.data import prepare
from trials.options import TRAINING

UNLABELLED = {"folder": "x", "size": 28, "n_images": 99, "n_classes": 0}


def spec(**fields: Any) -> StudySpec:
    return StudySpec.model_validate(
        {"version": 1, "name": "s", "model": "obs_mlp", "dataset": "mnist5k", **fields}
    )


def found(study: StudySpec, broken: Sequence[KeyPath] = ()) -> dict[KeyPath, str]:
    return {problem.path: problem.message for problem in problems(study, broken)}


def test_a_plain_study_has_no_problems() -> None:
    assert found(spec()) == {}
    assert found(spec(space={}, fixed={})) == {}
    assert found(spec(evaluate={"count": 0}, objective={"metric": "final/g_loss"})) == {}
    folder = {"folder": "x", "size": 28, "channels": 1}  # which may turn out to have classes
    assert found(spec(dataset=folder, objective={"metric": "eval/class_tv"})) == {}
    assert (
        found(spec(fixed={"ema": 0.9}, objective=[{"metric": "eval/fd_raw"}, {"metric": "eval/recall"}]))
        == {}
    )


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"dataset": "minst"}, ("dataset", "name"), "unknown dataset 'minst'; did you mean mnist?"),
        ({"dataset": {"name": "digits", "limit": 1798}}, ("dataset", "limit"), "digits has 1797 images"),
        ({"model": "obs_dcgan", "dataset": "digits", "train": {"batch_size": 3000}}, ("train", "batch_size"),
         "a batch of 3000 is larger than the dataset (1797 images)"),
        ({"arms": {"a": {"fixed": {"lr_g": 1e-4}}, "b": {}, "c": {"fixed": {"lr": 2e-4}}}}, ("arms", "c"),
         "is the same as arm b"),
        ({"fixed": {"patience": 10}}, ("fixed", "patience"), "is never used up by 10 evaluations"),
        ({"fixed": {"patience": 2}, "objective": {"metric": "eval/nn_train_ratio"}}, ("fixed", "patience"),
         "eval/nn_train_ratio is measured at the end only; choose eval/fd"),
        ({"evaluate": {"count": 0}}, ("objective", "metric"), "eval/fd is never measured: evaluate.count is 0"),
        ({"dataset": {"name": "digits", "limit": 10}, "train": {"batch_size": 4}}, ("dataset",),
         "10 images are too few to judge by, at least 16 are needed; or set evaluate.count to 0"),
        ({"dataset": {"name": "digits", "limit": 40, "hold_out": 21}, "train": {"batch_size": 4}},
         ("dataset", "hold_out"), "must be at most half of the images, 20 (got 21)"),
        ({"dataset": UNLABELLED, "objective": {"metric": "eval/modes"}},
         ("objective", "metric"), "eval/modes is not measured in features of kind imagenet"),
        ({"objective": {"metric": "eval/class_fidelity"}}, ("objective", "metric"),
         "of obs_mlp, which cannot be asked"),
        ({"objective": {"metric": "eval/memorisation"}}, ("objective", "metric"), "set dataset.hold_out"),
        ({"objective": {"metric": "eval/fd_raw"}}, ("objective", "metric"), "where ema is 0"),
        ({"objective": {"metric": "eval/walk_dip_rough"}, "pictures": {"gallery": False}}, ("objective", "metric"),
         "without pictures.gallery"),
        ({"dataset": UNLABELLED, "evaluate": {"features": "classifier"}},
         ("evaluate", "features"), "has no labels to train a classifier on"),
        ({"dataset": {"name": "lfwcrop", "stored": 64}}, ("dataset", "stored"), "needs size too"),
        ({"train": {"epochs": 1, "steps": 1}}, ("train", "steps"), "give either epochs or steps, not both"),
        ({"train": {"steps": 5}}, ("train", "log_every"), "training has 5 steps (got 20)"),
        ({"train": {"batch_size": 64}, "fixed": {"batch_size": 64}}, ("train", "batch_size"), "given twice"),
        ({"fixed": {"lr": 1.0}, "space": {"lr": {"choices": [0.1]}}}, ("fixed", "lr"), "is in space too"),
        ({"fixed": {"timesteps": 4}}, ("fixed", "timesteps"), "unknown hyperparameter 'timesteps'"),
        ({"fixed": {"multi_scale": True}}, ("fixed", "multi_scale"), "obs_mlp does not take multi_scale: an MLP"),
        ({"space": {"progressive": {"choices": [True]}}}, ("space", "progressive"), "does not take progressive"),
        ({"fixed": {"gp_alpha": "normal"}}, ("fixed", "gp_alpha"), "does nothing while gradient_penalty is off"),
        ({"arms": {"a": {"fixed": {"gp_alpha": "normal"}}, "b": {"fixed": {"gradient_penalty": 1.0}}}},
         ("arms", "a", "fixed", "gp_alpha"), "does nothing while gradient_penalty is off"),
        ({"fixed": {"patience": 3}, "objective": {"metric": "final/g_loss"}}, ("fixed", "patience"), "ends early"),
        ({"fixed": {"momentum": 0.5}}, ("fixed", "momentum"), "is an option of sgd and rmsprop, not of adam"),
        ({"fixed": {"lr_schedule": "100"}}, ("fixed", "lr_schedule"), "stage 1 is '100'"),
        ({"fixed": {"equalized_lr": True, "spectral_norm": "d"}}, ("fixed", "equalized_lr"), "keep one"),
        ({"fixed": {"remove_last_epochs": 5}, "train": {"epochs": 5}}, ("fixed", "remove_last_epochs"),
         "leaves nothing"),
        ({"model": "wgan_gp_32"}, ("dataset",), "makes images of 32x32 (got 28x28), set the dataset's size"),
        ({"model": "wgan_gp_32", "dataset": {"name": "mnist", "size": 32}, "train": {"steps": 50},
          "fixed": {"progressive": True}}, ("fixed", "progressive"), "images are needed to grow to 32x32"),
        ({"model": "rnn_timestep", "dataset": {"folder": "x", "size": 28, "channels": 1, "n_classes": 0}},
         ("dataset",), "makes images of a class; x 28x28x1 has no classes"),
        ({"model": "rnn_timestep", "fixed": {"timesteps": 5}}, ("model",), "timesteps must be a square number"),
        ({"dataset": {"name": "mnist", "folder": "x"}}, ("dataset",), "give a name or a folder (got both)"),
        ({"dataset": {"name": "mnist", "folder": "x", "size": 64}}, ("dataset",), "give a name or a folder (got both)"),
        ({"dataset": {}}, ("dataset",), "give a name or a folder (got neither)"),
        ({"dataset": {"folder": ""}}, ("dataset",), "a folder needs size"),
        ({"dataset": {"folder": "", "size": 8}}, ("dataset", "folder"), "must name a folder"),
        ({"space": {"remove_last_epochs": {"choices": [1, 50]}}, "train": {"epochs": 20}},
         ("space", "remove_last_epochs"), "leaves nothing"),
        ({"model": "wgan_gp_32", "dataset": {"name": "mnist", "size": 32}, "space": {"lr": {"choices": [1e-3, 1e-4]}}},
         ("space", "lr"), "does nothing while lr_schedule is the recipe's (200:1e-4 500"),
        ({"dataset": {"folder": "x"}}, ("dataset",), "a folder needs size"),
        ({"dataset": {"folder": "x", "size": 24, "stored": 40}}, ("dataset", "stored"), "a multiple of size"),
        ({"arms": {"a": {"model": "obs_mpl"}}}, ("arms", "a", "model"), "did you mean obs_mlp?"),
        ({"arms": {"a": {"fixed": {"widht": 3}}, "b": {}}}, ("arms", "a", "fixed", "widht"), "did you mean width?"),
        ({"arms": {"a": {"fixed": {"lr": 0.1}}}, "space": {"lr": {"choices": [0.2]}}},
         ("arms", "a", "fixed", "lr"), "is in space too"),
        ({"arms": {"a": {"train": {"batch_size": 9000}}}}, ("arms", "a", "train", "batch_size"), "a batch of 9000"),
        ({"arms": {"a": {"dataset": {"name": "mnits"}}}}, ("arms", "a", "dataset", "name"), "did you mean mnist"),
        ({"fixed": {"width": 8}, "arms": {"a": {"model": "rnn_timestep"}, "b": {}}}, ("fixed", "width"),
         "unknown hyperparameter 'width'"),
        ({"space": {"batch_size": {"choices": [16, 9000]}}}, ("space", "batch_size"), "a batch of 9000"),
        ({"space": {"batch_size": {"low": 16, "high": 9000}}}, ("space", "batch_size"), "a batch of 9000"),
        ({"fixed": {"batch_size": 9000}}, ("fixed", "batch_size"), "a batch of 9000 is larger"),
        ({"space": {"optimizer": {"low": 1, "high": 2}}}, ("space", "optimizer"), "write choices: [...]"),
        ({"space": {"lr": {"low": 1, "high": 5}}}, ("space", "lr"), "a grid needs choices or a step"),
        ({"search": {"trials": 5}}, ("search", "trials"), "a grid runs every point once"),
        ({"search": {"sampler": "tpe"}}, ("search",), "sampler tpe needs trials"),
        ({"search": {"sampler": "random", "trials": 5}}, ("space",), "has nothing to search"),
        ({"claims": [{"id": "a", "says": ""}, {"id": "a", "says": ""}]}, ("claims", 1, "id"), "listed twice"),
        ({"space": {"width": {"low": 1, "high": 4096}, "latent_dim": {"low": 1, "high": 4096}}}, ("space",),
         f"the grid has 16777216 arms; at most {MAX_ARMS}"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_explained(fields: dict[str, Any], path: KeyPath, message: str) -> None:
    assert message in found(spec(**fields))[path]


@pytest.mark.parametrize(
    "fields",
    [
        {"fixed": {"gp_alpha": "normal"}, "arms": {"a": {}, "b": {"fixed": {"gradient_penalty": 1.0}}}},
        {"fixed": {"momentum": 0.5}, "space": {"optimizer": {"choices": ["adam", "sgd"]}}},
        {"fixed": {"beta1": 0.5}, "space": {"optimizer": {"choices": ["adam", "sgd"]}}},
        {"fixed": {"gp_target": 0.5}, "space": {"gradient_penalty": {"choices": [0.0, 1.0]}}},
    ],
)
def test_a_setting_may_be_idle_in_some_arms(fields: dict[str, Any]) -> None:
    assert found(spec(**fields)) == {}


def test_in_a_large_space_every_value_is_looked_at() -> None:
    names = ("ema", "beta1", "beta2", "instance_noise", "drift", "grad_clip", "l2", "label_real", "dropout",
             "weight_decay", "augment_colour", "momentum")  # fmt: skip
    space: dict[str, Any] = {"optimizer": {"choices": ["adam", "sgd"]}}
    space |= {name: {"low": 0.1, "high": 0.5} for name in names}
    large = spec(space=space, fixed={"augment": True}, search={"sampler": "random", "trials": 3})
    assert found(large) == {}


@pytest.mark.parametrize("step", [1e-300, 5e-324, 1e-9])
def test_a_tiny_step_is_refused_without_building_its_values(step: float) -> None:
    study = spec(space={"beta1": {"low": 0.0, "high": 0.5, "step": step}})
    assert found(study)["space", "beta1", "step"].startswith("makes more than 100000 values of 0.0..0.5")


def test_what_depends_on_a_broken_part_is_not_checked() -> None:
    study = spec(model="", dataset="", search={"sampler": "grid", "trials": 3}, seeds=[1, 1])
    assert found(study, [("model",), ("dataset",), ("search", "sampler")]).keys() == {("seeds", 1)}


def test_paths_are_related_when_one_leads_to_the_other() -> None:
    assert related(("space",), ("space", "lr"))
    assert related(("space", "lr", "low"), ("space", "lr"))
    assert not related(("space", "lr"), ("space", "lr_g"))


def test_unknown_names_the_nearest_and_all() -> None:
    assert unknown("model", "obs_mlq", ["obs_mlp", "b"]) == (
        "unknown model 'obs_mlq'; did you mean obs_mlp? known: b, obs_mlp"
    )
    assert unknown("model", "zzz", ["b"]) == "unknown model 'zzz'; known: b"


# Ranges

ENDS = st.integers(-1000, 1000)


@given(ENDS, st.integers(1, 50), st.integers(1, 40))
def test_a_stepped_range_visits_its_bounds_and_nothing_outside(low: int, n: int, step: int) -> None:
    for scale in (1, 0.1, 1e-5):
        axis = Range(low=low * scale, high=(low + n * step) * scale, step=step * scale)
        values = axis.values()
        assert values is not None
        assert len(values) == n + 1
        assert values[0] == pytest.approx(axis.low, rel=1e-14)
        assert values[-1] == pytest.approx(axis.high, rel=1e-14)
        numbers = [float(value) for value in values]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] <= axis.high


def test_whole_numbers_stay_whole_and_decimals_read_as_written() -> None:
    assert Range(low=1, high=5, step=2).values() == [1, 3, 5]
    assert Range(low=1, high=3).values() == [1, 2, 3]
    assert Range(low=0, high=1, step=0.1).values() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert Range(low=0.5, high=1).values() is None
    assert Range(low=1, high=5, log=True).values() is None


# Length


def test_an_epoch_drops_its_last_short_batch() -> None:
    study = spec(dataset={"name": "mnist5k", "limit": 1000}, train={"epochs": 3})
    assert total_steps(study, training_values(study, {"batch_size": 300})) == 9


def test_training_values_of_an_arm_win_over_fixed_over_train_over_the_recipe() -> None:
    study = spec(train={"batch_size": 32}, fixed={"lr": 0.5, "width": 16})
    values = training_values(study, {"lr": 0.25})
    assert (values["lr"], values["lr_g"], values["batch_size"], values["beta2"]) == (0.25, 0.25, 32, 0.999)
    assert "width" not in values


def test_hyperparameters_are_those_of_training_and_of_the_model() -> None:
    structure = {*STRUCTURE} - {"multi_scale", "progressive"}  # which an MLP does not take
    assert hyperparameters(spec()).keys() == {*TRAINING, *structure, "latent_dim", "width"}
    assert hyperparameters(spec(model="x")) == {}


# Robustness

NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 10**40, 1e308, -1e308, 5e-324, math.inf])
)
SCALARS = NUMBERS | st.booleans() | st.text(max_size=5) | st.sampled_from(["adam", "sgd"])
NAMES = st.sampled_from([*TRAINING, "width", "latent_dim", "x", ""])
WHEN = st.dictionaries(
    NAMES | st.sampled_from(["model", "arm"]), SCALARS | st.lists(SCALARS, max_size=2), max_size=2
)
AXES = st.one_of(
    st.fixed_dictionaries({"choices": st.lists(SCALARS, max_size=4)}, optional={"when": WHEN}),
    st.fixed_dictionaries(
        {"low": NUMBERS, "high": NUMBERS}, optional={"step": NUMBERS, "log": st.booleans(), "when": WHEN}
    ),
)
STUDIES = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "name": st.just("s"),
        "model": st.sampled_from(["obs_mlp", "obs_dcgan", "x", ""]),
        "dataset": st.sampled_from(["mnist", "digits", "x", ""]),
    },
    optional={
        "space": st.dictionaries(NAMES, AXES, max_size=4),
        "fixed": st.dictionaries(NAMES, SCALARS, max_size=3),
        "train": st.fixed_dictionaries(
            {},
            optional={
                name: NUMBERS for name in ("epochs", "steps", "batch_size", "batch_size_g", "log_every")
            },
        ),
        "search": st.fixed_dictionaries({"sampler": st.sampled_from(list(SAMPLERS))}),
        "constraints": st.lists(
            st.sampled_from(["lr_g <= lr_d", "width < 8", "optimizer == sgd", "x"]), max_size=2
        ),
        "seeds": st.lists(st.integers(0, 3), min_size=1, max_size=3),
    },
)


@settings(max_examples=200)
@given(STUDIES)
def test_problems_never_raises_on_what_the_fields_accept(document: dict[str, Any]) -> None:
    document = {key: value for key, value in document.items() if _accepted(key, value)}
    for key in ("space", "fixed"):
        document[key] = {k: v for k, v in document.get(key, {}).items() if _accepted(key, {k: v})}
    for problem in problems(spec(**document)):
        assert problem.message


def _accepted(key: str, value: object) -> bool:
    """Whether the field alone passes; most random axes do, most random numbers in train do not."""
    if key in ("space", "fixed") and isinstance(value, dict) and len(value) > 1:
        return True
    try:
        spec(**{key: value})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "axis", [Choices(choices=[1, True, "x"]), Range(low=-1e308, high=1e308, step=1e-300)]
)
def test_odd_axes_of_the_batch_size_are_refused_not_stumbled_over(axis: Choices | Range) -> None:
    assert found(spec(space={"batch_size": axis}))


def test_a_search_of_more_arms_than_the_space_has_points_is_refused() -> None:
    two_points: dict[str, Any] = {"space": {"lr": {"choices": [1e-3, 1e-4]}}}
    found = problems(tiny_study(**two_points, search={"sampler": "random", "trials": 3}))
    assert [(p.path, p.message) for p in found] == [
        (("search", "trials"), "the space has only 2 points (got 3); a grid runs them all")
    ]
    assert problems(tiny_study(**two_points, search={"sampler": "tpe", "trials": 2})) == []


def test_the_number_of_images_of_a_named_dataset_is_its_own(tmp_path: Path) -> None:
    study = spec(dataset={"name": "digits", "n_images": 200, "n_classes": 3})
    wanted = study.dataset.source
    known = with_facts(study, {wanted: prepare(wanted, cache_dir=tmp_path, data_dir=tmp_path)})
    assert (known.dataset.n_classes, n_images(known)) == (None, 1797)


def test_a_factor_that_is_no_number_is_a_problem_of_its_own() -> None:
    assert "must be a number" in found(spec(fixed={"g_factor": "fast"}))["fixed", "g_factor"]


# Conditions and constraints


def wrong(**changes: Any) -> list[tuple[str, str]]:
    return [(".".join(map(str, p.path)), p.message) for p in problems(tiny_study(**changes))]


OPTIMIZERS = {"choices": ["adam", "sgd"]}


@pytest.mark.parametrize(
    ("when", "path", "words"),
    [
        ({"optimiser": "sgd"}, ".optimiser", "unknown condition 'optimiser'; did you mean optimizer?"),
        (
            {"optimizer": ["sgd", "adamw"]},
            ".optimizer.1",
            "adamw is no value of optimizer; there is adam, sgd",
        ),
        ({"optimizer": True}, ".optimizer.0", "true is no value of optimizer"),
        ({"lr": 1e-3}, ".lr", "lr is a range; a condition is on choices"),
        ({"model": "rgan_v1"}, ".model.0", "rgan_v1 is no value of model; there is obs_mlp"),
        ({"dataset": "mnist"}, ".dataset.0", "mnist is no value of dataset; there is digits"),
        ({"arm": "a"}, ".arm", "unknown condition 'arm'"),
        ({"momentum": 0.5}, "", "goes round in a circle: momentum -> momentum"),
    ],
)
def test_a_condition_on_what_there_is_not_is_refused(when: dict[str, Any], path: str, words: str) -> None:
    space = {
        "optimizer": OPTIMIZERS,
        "lr": {"low": 1e-4, "high": 1e-3, "log": True},
        "momentum": {"choices": [0.5, 0.9], "when": when},
    }
    found = wrong(space=space, search={"sampler": "random", "trials": 3})
    ((where, message),) = [row for row in found if row[0].startswith("space.momentum.when")]
    assert where == f"space.momentum.when{path}"
    assert message.startswith(words)


def test_a_condition_that_no_arm_meets_is_refused() -> None:
    arms = {"a": {"model": "obs_mlp"}, "b": {"model": "improved"}}
    space = {"beta1": {"choices": [0.1, 0.2], "when": {"arm": "a", "model": "improved"}}}
    assert wrong(arms=arms, fixed={}, space=space) == [("space.beta1.when", "holds for no arm")]


def test_what_some_models_take_is_to_be_conditional_on_them() -> None:
    arms = {"a": {"model": "obs_mlp"}, "b": {"model": "improved"}}
    space: dict[str, Any] = {"layers": {"choices": [1, 2]}}
    ((path, message),) = wrong(arms=arms, fixed={}, space=space)
    assert path == "space.layers"
    assert message.endswith("(arm a); for the models that take it write when: {model: improved}")
    space["layers"]["when"] = {"model": "improved"}
    assert wrong(arms=arms, fixed={}, space=space) == []
    ((path, message),) = wrong(arms=arms, fixed={"layers": 2}, space={"lr": {"choices": [1e-3]}})
    assert path == "fixed.layers"
    assert message.endswith("write in space layers: {choices: [VALUE], when: {model: improved}}")


def test_constraints_keep_a_conflict_of_two_choices_out_of_the_study() -> None:
    space = {"optimizer": {"choices": ["sgd"]}, "nesterov": {"choices": [True, False]},
             "momentum": {"choices": [0.0, 0.9]}}  # fmt: skip
    assert wrong(space=space)
    assert wrong(space=space, constraints=["nesterov == false or momentum > 0"]) == []


def test_a_wrong_constraint_is_named_by_its_number() -> None:
    ((path, message),) = wrong(constraints=["lr > 0", "lr <= lr_x"])
    assert path == "constraints.1"
    assert message.startswith("at character 7: lr_x is no hyperparameter; did you mean lr")


def test_a_grid_without_a_point_is_refused() -> None:
    assert wrong(constraints=["lr > 1"]) == [("constraints", "leave no point of the grid")]


@pytest.mark.parametrize(
    ("space", "constraints", "n"),
    [
        ({"n_critic": {"low": 1, "high": 4}}, [], 4),
        ({"n_critic": {"low": 1, "high": 4, "log": True}}, [], 4),
        ({"n_critic": {"low": 1, "high": 5, "step": 2}}, [], 3),
        ({"beta1": {"low": 0.1, "high": 0.7, "step": 0.2}}, [], 4),
        ({"n_critic": {"low": 1, "high": 4}}, ["n_critic != 2"], 3),
        ({"optimizer": OPTIMIZERS, "momentum": {"choices": [0.5, 0.9], "when": {"optimizer": "sgd"}}}, [], 3),
    ],
)
def test_the_points_of_a_finite_space_are_counted_for_every_kind_of_axis(
    space: dict[str, Any], constraints: list[str], n: int
) -> None:
    def of(trials: int) -> list[tuple[str, str]]:
        return wrong(space=space, constraints=constraints, search={"sampler": "tpe", "trials": trials})

    assert of(n) == []
    assert of(n + 1) == [
        ("search.trials", f"the space has only {n} points (got {n + 1}); a grid runs them all")
    ]


def test_a_number_between_whole_bounds_has_more_than_the_whole_values() -> None:
    space = {"optimizer": {"choices": ["sgd"]}, "dampening": {"low": 0, "high": 1}}
    assert wrong(space=space, search={"sampler": "random", "trials": 50}) == []
