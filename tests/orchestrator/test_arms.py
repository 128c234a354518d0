"""From a study to arms and trials."""

from __future__ import annotations

import pytest

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
    assert label({}) == short_label({}) == "baseline"


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
        "objective.metric: eval/swd -> final/g_loss",
    ]
    assert difference(identity(other), identity(other)) == []
