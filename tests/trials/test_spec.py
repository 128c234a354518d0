"""The identity of a trial."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trials.helpers import small_spec
from trials.options import resolve_training
from trials.spec import evenly_spaced_steps, stream_seed


def test_the_key_is_the_same_for_ever() -> None:
    assert small_spec().key == small_spec().key == pickle.loads(pickle.dumps(small_spec())).key
    assert small_spec().key == "ad41a7411643ed7a"  # another value orphans every checkpoint and run of users


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 13},
        {"model": "obs_dcgan"},
        {"dataset_digest": "1"},
        {"limit": 5},
        {"log_every": 3},
    ],
)
def test_whatever_changes_the_result_changes_the_key(change: dict[str, object]) -> None:
    assert dataclasses.replace(small_spec(), **change).key != small_spec().key  # type: ignore[arg-type]


@given(st.integers(1, 10_000), st.integers(1, 50))
def test_picture_steps_are_distinct_evenly_spaced_and_end_with_the_last(steps: int, count: int) -> None:
    found = evenly_spaced_steps(steps, count)
    assert list(found) == sorted(set(found))
    assert found[-1] == steps
    assert found[0] >= 1
    assert len(found) == min(count, steps)
    gaps = [b - a for a, b in zip((0, *found), found, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_each_net_follows_the_common_learning_rate_unless_it_has_its_own() -> None:
    values = resolve_training({"lr": 1e-3}, {"lr_d": 4e-4})
    assert (values["lr"], values["lr_g"], values["lr_d"]) == (1e-3, 1e-3, 4e-4)
    assert resolve_training({}, {"batch_size": 32})["batch_size_g"] == 32


def test_given_values_win_over_the_recipe_and_the_recipe_over_the_defaults() -> None:
    values = resolve_training({"lr": 1e-3, "beta1": 0.9}, {"lr": 1e-2})
    assert (values["lr"], values["beta1"], values["beta2"]) == (1e-2, 0.9, 0.999)


def test_streams_of_random_numbers_are_told_apart_by_seed_and_name() -> None:
    seeds = {
        stream_seed(s, *names)
        for s in range(50)
        for names in (("init",), ("noise",), ("data", 0), ("data", 1))
    }
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
