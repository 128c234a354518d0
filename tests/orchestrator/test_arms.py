"""From a study to arms and trials."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from models import Value
from orchestrator.arms import (
    arm_count,
    checkpoint_every,
    difference,
    grid,
    hyperparameters,
    identity,
    label,
    short_label,
    trial_spec,
)
from orchestrator.study import allowing, holds, problems
from orchestrator.testing import tiny_study


def test_a_grid_is_the_product_of_its_axes_without_duplicates() -> None:
    study = tiny_study(
        space={"lr": {"choices": [1e-3, 1e-4]}, "latent_dim": {"low": 1, "high": 3}}, fixed={"width": 8}
    )
    points = grid(study)
    assert len(points) == arm_count(study) == 6
    assert len({tuple(point.items()) for point in points}) == 6
    assert points[0] == {"lr": 1e-3, "latent_dim": 1}
    assert points[1] == {"lr": 1e-3, "latent_dim": 2}


def test_a_range_with_a_step_includes_both_ends() -> None:
    study = tiny_study(space={"beta1": {"low": 0.1, "high": 0.5, "step": 0.2}})
    assert [point["beta1"] for point in grid(study)] == pytest.approx([0.1, 0.3, 0.5])


ARMS = {
    "plain": {},
    "smooth": {"fixed": {"label_real": 0.9}},
    "conv": {"model": "obs_dcgan", "train": {"steps": 6}},
    "other_data": {"dataset": {"name": "mnist5k", "size": 16, "limit": 500}, "train": {"epochs": 2}},
}


def test_named_arms_are_crossed_with_the_space() -> None:
    study = tiny_study(arms=ARMS)
    points = grid(study)
    assert len(points) == arm_count(study) == 8
    assert points[1] == {"arm": "plain", "lr": 1e-4}
    assert label(points[2]) == "smooth lr=0.001"


def test_a_named_arm_changes_model_dataset_length_and_hyperparameters_and_nothing_else() -> None:
    study = tiny_study(arms=ARMS)
    plain, smooth, conv, other = (trial_spec(study, {"arm": a, "lr": 1e-3}, 0, "d") for a in ARMS)
    assert (plain.model, plain.steps, plain.dataset, plain.training["label_real"]) == (
        "obs_mlp",
        12,
        "digits",
        1.0,
    )
    assert smooth.training == {**plain.training, "label_real": 0.9}
    assert (conv.model, conv.steps, conv.model_params["width"]) == ("obs_dcgan", 6, 8)
    assert (other.dataset, other.limit, other.steps) == ("mnist5k 16x16x1", 500, 2 * (500 // 8))
    assert len({plain.key, smooth.key, conv.key, other.key}) == 4


def test_a_study_without_named_arms_has_the_keys_it_always_had() -> None:
    assert (
        trial_spec(tiny_study(), {"lr": 1e-3}, 0, "d").key
        == trial_spec(tiny_study(arms={"plain": {}}), {"arm": "plain", "lr": 1e-3}, 0, "d").key
    )


def test_a_schedule_may_be_written_as_a_list_of_stages() -> None:
    stages = [{"epochs": 100, "lr": 1e-4}, {"epochs": 400, "lr_random": [2e-5, 6e-5], "dist": "uniform"}]
    study = tiny_study(fixed={"lr_schedule": stages})
    assert study.fixed["lr_schedule"] == "100:0.0001 400:2e-05..6e-05/uniform"
    chosen = tiny_study(space={"lr_schedule": {"choices": [stages, "1:1e-3"]}})
    assert len(grid(chosen)) == 2
    assert tiny_study(arms={"a": {"fixed": {"lr_schedule": stages}}}).arms["a"].fixed == study.fixed


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "needs at least one stage"),
        ([1], "stage 1 is not a stage"),
        ([{"epochs": 1}], "stage 1: needs epochs, and one of lr and lr_random"),
        ([{"epochs": 1, "lr": 1, "x": 2}], "stage 1: unknown key 'x'"),
        (
            [{"epochs": 1, "lr": 1}, {"epochs": 1, "lr_random": 3}],
            r"stage 2: lr_random must be \[LOW, HIGH\]",
        ),
        ([{"epochs": -1, "lr": 1}], r"stage 1: epochs must be > 0 \(got -1\)"),
        (
            [{"epochs": 1, "lr": -1e-3}],
            r"stage 1: rates must be > 0 and <= 10, the lower one first \(got -0.001\)",
        ),
        ([{"epochs": 1, "lr_random": [2, 1]}], r"stage 1: rates must be > 0 .* \(got 2 and 1\)"),
        ([{"epoch": 1, "lr": 1}], r"stage 1: unknown key 'epoch'; did you mean epochs\?"),
        ([{"epochs": 1, "lr": "fast"}], r"stage 1: lr must be numeric \(got 'fast'\)"),
        ([{"epochs": 1, "lr": 1, "dist": "uniform"}], "stage 1: dist says how lr_random is drawn"),
        (
            [{"epochs": 1, "lr_random": [1, 2], "dist": "normal"}],
            "stage 1: dist must be one of inverse_uniform",
        ),
    ],
)
def test_a_list_that_is_no_schedule_says_which_stage_and_how_to_write_it(
    stages: list[object], words: str
) -> None:
    with pytest.raises(ValidationError, match=f"lr_schedule: {words}.*write stages as"):
        tiny_study(fixed={"lr_schedule": stages})


def test_epochs_count_the_real_batches_of_all_updates() -> None:
    fresh = {"n_critic": 2, "real_batch": "fresh"}
    steps = [trial_spec(tiny_study(train={"epochs": 4, "batch_size": 100}, fixed=f), {"lr": 1e-3}, 0, "d").steps
             for f in ({}, {"n_critic": 2}, fresh, {"sampling": "replacement"})]  # fmt: skip
    assert steps == [4 * 17, 4 * 17, 2 * 17, 4 * 18]  # 1,797 images


def test_the_checkpoint_before_the_last_epochs_is_kept_shown_and_evaluated() -> None:
    study = tiny_study(train={"epochs": 10, "batch_size": 100}, fixed={"remove_last_epochs": 3})
    spec = trial_spec(study, {"lr": 1e-3}, 0, "d")
    assert spec.keep_steps == (7 * 17,)
    assert 7 * 17 in spec.picture_steps


def test_a_folder_is_counted_before_its_epochs_become_steps() -> None:
    folder = {"folder": "fish", "size": 16, "channels": 1, "stored": 32}
    study = tiny_study(dataset=folder, train={"epochs": 2, "batch_size": 10})
    with pytest.raises(ValueError, match="images of fish 32x32x1 are not counted yet"):
        trial_spec(study, {"lr": 1e-3}, 0, "d")
    spec = trial_spec(tiny_study(dataset={**folder, "n_images": 55}, train={"epochs": 2, "batch_size": 10}),
                      {"lr": 1e-3}, 0, "d")  # fmt: skip
    assert (spec.steps, spec.size, spec.eval_samples) == (10, 16, 16)


def test_arms_of_one_seed_share_everything_but_their_values() -> None:
    study = tiny_study()
    a, b = (trial_spec(study, {"lr": lr}, 0, "d") for lr in (1e-3, 1e-4))
    assert (a.training["lr"], a.training["lr_g"], b.training["lr_d"]) == (1e-3, 1e-3, 1e-4)
    assert (a.seed, a.picture_steps, a.steps, a.eval_samples) == (
        b.seed,
        b.picture_steps,
        b.steps,
        b.eval_samples,
    )
    assert a.key != b.key


def test_whole_numbers_and_fractions_of_equal_value_are_one_trial() -> None:
    keys = {trial_spec(tiny_study(fixed={"momentum": m}), {}, 0, "d").key for m in (0, 0.0)}
    assert len(keys) == 1


@pytest.mark.parametrize(("limit", "n"), [(None, 898), (100, 50)])
def test_evaluation_takes_2000_images_or_half_of_a_smaller_dataset(limit: int | None, n: int) -> None:
    study = tiny_study(dataset={"name": "digits", "limit": limit}, evaluate={})
    assert trial_spec(study, {}, 0, "d").eval_samples == n
    assert trial_spec(tiny_study(dataset="mnist", evaluate={}), {}, 0, "d").eval_samples == 2000


def test_epochs_become_steps_by_the_arm_s_batch_size() -> None:
    study = tiny_study(train={"epochs": 3}, space={"batch_size": {"choices": [10, 100]}})
    steps = [trial_spec(study, point, 0, "d").steps for point in grid(study)]
    assert steps == [3 * 179, 3 * 17]  # 1,797 images, last short batch dropped


def test_a_study_without_a_length_trains_as_long_as_the_recipe_says() -> None:
    study = tiny_study(train={"batch_size": 128})
    assert trial_spec(study, {}, 0, "d").steps == 50 * (1797 // 128)


@pytest.mark.parametrize(("wanted", "every"), [(None, 2), (1, 2), (5, 6), (6, 6)])
def test_no_checkpoint_falls_inside_a_logging_interval(wanted: int | None, every: int) -> None:
    study = tiny_study(train={"steps": 12, "batch_size": 8, "log_every": 2, "checkpoint_every": wanted})
    assert checkpoint_every(study, 12) == every


def test_labels_are_written_as_people_write_numbers() -> None:
    values: dict[str, Value] = {"lr": 2e-4, "optimizer": "adam", "n": 3, "flag": True}
    assert label(values) == "lr=0.0002 optimizer=adam n=3 flag=true"
    assert short_label(values) == "lr=0.0002 adam n=3 flag=true"
    assert label({}) == short_label({}) == "default"


def test_what_is_on_is_recorded_even_at_its_default_and_what_an_arm_chose_even_when_off() -> None:
    values: dict[str, Value] = {"lr": 1e-3, "ema": 0.0}
    found = hyperparameters(trial_spec(tiny_study(), values, 0, "d"), values)
    assert found["beta1"] == 0.5
    assert found["width"] == 8
    assert found["batch_size_g"] == 8
    assert found["ema"] == 0.0
    assert "instance_noise" not in found


def test_words_do_not_change_a_study_s_identity_and_numbers_do() -> None:
    study = tiny_study()
    assert identity(tiny_study(description="other", source="x", resources={"cpu": 2})) == identity(study)
    assert identity(tiny_study(seeds=[0])) != identity(study)


def test_a_difference_names_every_leaf_that_changed() -> None:
    other = tiny_study(seeds=[0], fixed={"width": 16, "latent_dim": 4}, objective={"metric": "final/g_loss"})
    assert difference(identity(tiny_study()), identity(other)) == [
        "seeds: [0, 1] -> [0]",
        "fixed.width: 8 -> 16",
        "objective.metric: eval/fd -> final/g_loss",
    ]
    assert difference(identity(other), identity(other)) == []


# Conditions and constraints

SPACE: dict[str, Any] = {
    "nesterov": {"choices": [True, False], "when": {"optimizer": "sgd"}},
    "momentum": {"low": 0.3, "high": 0.9, "step": 0.3, "when": {"optimizer": ["sgd", "rmsprop"]}},
    "optimizer": {"choices": ["adam", "sgd", "rmsprop"]},
    "lr_g": {"choices": [1e-4, 1e-3]},
}


def key(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(values.items())


def test_a_grid_has_a_hyperparameter_where_its_conditions_hold_and_no_arm_twice() -> None:
    study = tiny_study(space=SPACE)
    assert not problems(study)
    points = grid(study)
    assert len(points) == arm_count(study) == 2 * (1 + 3 * 2 + 3)
    assert len({key(point) for point in points}) == len(points)
    for point in points:
        assert list(point) == [name for name in SPACE if name in point]
        assert ("nesterov" in point, "momentum" in point) == (
            point["optimizer"] == "sgd",
            point["optimizer"] != "adam",
        )
    assert "momentum" not in label(points[0])
    specs = {trial_spec(study, point, 0, "d").key for point in points}
    assert len(specs) == len(points)


def test_where_a_hyperparameter_is_absent_the_fixed_value_counts() -> None:
    study = tiny_study(
        arms={"a": {"fixed": {"beta1": 0.25}}, "b": {}},
        space={"beta1": {"choices": [0.1, 0.2], "when": {"arm": "b"}}},
    )
    assert not problems(study)
    points = grid(study)
    assert points == [{"arm": "a"}, {"arm": "b", "beta1": 0.1}, {"arm": "b", "beta1": 0.2}]
    assert [trial_spec(study, point, 0, "d").training["beta1"] for point in points] == [0.25, 0.1, 0.2]


def test_a_condition_on_an_axis_that_an_arm_lacks_does_not_hold() -> None:
    study = tiny_study(
        arms={"a": {"model": "improved"}, "b": {}},
        fixed={},
        space={
            "layers": {"choices": [1, 2], "when": {"model": "improved"}},
            "beta1": {"choices": [0.1, 0.2], "when": {"layers": 2}},
        },
    )
    assert not problems(study)
    assert [label(point) for point in grid(study)] == [
        "a layers=1",
        "a layers=2 beta1=0.1",
        "a layers=2 beta1=0.2",
        "b",
    ]


def test_a_grid_leaves_out_what_constraints_forbid_by_the_arm_s_own_values_and_defaults() -> None:
    study = tiny_study(
        arms={"a": {"fixed": {"lr_d": 1e-4}}, "b": {}},
        space={"lr": {"choices": [1e-4, 1e-3]}, "lr_g": {"choices": [1e-4, 1e-3]}},
        constraints=["lr_g <= lr_d", "arm != b or lr_g == 1e-3"],
    )
    assert not problems(study)
    assert [label(point) for point in grid(study)] == [
        "a lr=0.0001 lr_g=0.0001",
        "a lr=0.001 lr_g=0.0001",
        "b lr=0.001 lr_g=0.001",
    ]
    assert arm_count(study) == 3


AXES = st.dictionaries(
    st.sampled_from(["beta1", "beta2", "beta1_g", "beta1_d", "beta2_g"]),
    st.fixed_dictionaries(
        {"choices": st.lists(st.sampled_from([0.1, 0.2, 0.5]), min_size=1, max_size=3, unique=True)},
        optional={
            "when": st.dictionaries(
                st.sampled_from(["beta1", "beta2", "model", "beta1_g"]),
                st.lists(st.sampled_from([0.1, 0.2, 0.5, "obs_mlp"]), min_size=1, max_size=2),
                max_size=2,
            )
        },
    ),
    min_size=1,
)


@given(AXES, st.lists(st.sampled_from(["beta1 <= beta2", "beta1_g != beta1_d", "beta2 < 0.5"]), max_size=2))
def test_every_point_of_a_grid_meets_conditions_and_constraints_and_none_is_left_out(
    space: dict[str, Any], constraints: list[str]
) -> None:
    study = tiny_study(space=space, constraints=constraints)
    assume(not problems(study))
    points = grid(study)
    allowed = allowing(study)
    expected = set()
    for drawn in itertools.product(*(axis["choices"] for axis in space.values())):
        values: dict[str, Value] = dict(zip(space, drawn, strict=True))
        while lacking := [n for n in values if not holds(study.space[n], {**values, "model": "obs_mlp"})]:
            for name in lacking:
                del values[name]
        if allowed(values):
            expected.add(frozenset(values.items()))
    assert {frozenset(point.items()) for point in points} == expected
    assert len(points) == len(expected) == arm_count(study)
    assert all(map(allowed, points))
