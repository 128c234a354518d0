"""Distances between sets of images: closed forms and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trials.metrics import sliced_wasserstein


def points(n: int, features: int, seed: int) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def test_the_distance_of_a_set_to_itself_in_another_order_is_zero() -> None:
    a = points(64, 10, 0)
    assert sliced_wasserstein(a, a.flip(0)) == pytest.approx(0.0, abs=1e-6)


@given(st.integers(0, 100))
def test_the_distance_is_symmetric_and_the_same_every_time(seed: int) -> None:
    a, b = points(30, 6, seed), points(30, 6, seed + 1)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a) == sliced_wasserstein(a, b)


def test_the_distance_of_a_shifted_set_has_a_closed_form() -> None:
    # Every projection shifts by d.v, so the distance is the mean of |d.v| over unit v: for dimension F,
    # |d| * Gamma(F/2) / (sqrt(pi) Gamma((F+1)/2)); for F = 3 that is |d|/2. 4,000 directions: sd 0.5 %.
    a, shift = points(50, 3, 0), torch.tensor([3.0, 0.0, 4.0])
    found = sliced_wasserstein(a, a + shift, n_projections=4000)
    expected = 5.0 * math.gamma(1.5) / (math.sqrt(math.pi) * math.gamma(2.0))
    assert expected == pytest.approx(2.5)
    assert found == pytest.approx(expected, rel=0.025)


def test_the_distance_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sliced_wasserstein(points(8, 4, 0), points(8, 4, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_sets_of_different_shape_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(points(8, 4, 0), points(9, 4, 0))
    with pytest.raises(ValueError, match="not finite"):
        sliced_wasserstein(points(8, 4, 0), points(8, 4, 0) * math.nan)
