"""Derived series: closed forms and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials.series import band, band_fraction, sd_of_means, smooth, time_to_plateau, window_mean

SERIES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50)


@given(SERIES, st.integers(1, 10))
def test_smoothing_a_constant_changes_nothing_but_the_length(values: list[float], window: int) -> None:
    constant = [values[0]] * max(window, len(values))
    assert smooth(constant, window) == pytest.approx([values[0]] * (len(constant) - window + 1), abs=1e-9)


@given(SERIES)
def test_the_band_lies_within_the_values_it_summarises(values: list[float]) -> None:
    low, high = band(values)
    tail = values[min(len(values) // 2, len(values) - 1) :]
    assert min(tail) - 1e-9 <= low <= high <= max(tail) + 1e-9


def test_band_fraction_counts_both_ends() -> None:
    assert band_fraction([0.3, 0.4, 0.5, 0.6, 0.7], 0.4, 0.6) == pytest.approx(0.6)
    assert band_fraction([0.3, 0.4, 0.5, 0.6], 0.4, 0.6, start=0.5) == 1.0


def test_a_window_is_a_share_of_training() -> None:
    assert window_mean(range(100), 0.8) == pytest.approx(89.5)
    assert window_mean(range(100), 0.2, 0.5) == pytest.approx(34.5)


def test_the_sd_of_means_of_white_noise_falls_with_the_root_of_the_window() -> None:
    noise = np.random.default_rng(0).normal(size=200_000)
    # 1,000 blocks: the estimate's own relative error is 1/sqrt(2000) = 2.2 %; 10 % is 4.5 of those.
    assert sd_of_means(noise, 100) == pytest.approx(0.1, rel=0.1)


def test_the_plateau_of_a_ramp_that_levels_off_begins_where_it_does() -> None:
    steps = list(range(0, 1000, 10))
    values = [min(s / 500, 1.0) + 0.001 * (-1) ** i for i, s in enumerate(steps)]
    found = time_to_plateau(steps, values, window=4)
    assert found is not None
    assert 470 <= found <= 540


def test_a_series_that_never_settles_has_no_plateau() -> None:
    steps = list(range(100))
    assert time_to_plateau(steps, [1.0 if i % 2 else 0.0 for i in steps[:-1]] + [50.0], window=1) is None
