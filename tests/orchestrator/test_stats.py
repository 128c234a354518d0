"""How sure a difference between arms is: against scipy, and against studies whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as oracle

from orchestrator.stats import (
    Comparison,
    best_arm,
    compare,
    groups,
    interval,
    paired,
    seeds_needed,
    t_quantile,
    t_tail,
)

VALUES = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=12)


def study(
    rng: np.random.Generator, means: Sequence[float], n: int, sd: float = 1.0
) -> dict[str, dict[int, float]]:
    """Arms of these means; their seeds also have something in common, as they share their data's order."""
    common = rng.normal(size=n)
    return {
        str(i): dict(enumerate((mean + common + sd * rng.normal(size=n)).tolist()))
        for i, mean in enumerate(means)
    }


@given(st.integers(1, 2000), st.floats(0.5, 1 - 1e-9))
def test_quantiles_of_t_are_those_of_scipy(df: int, p: float) -> None:
    assert t_quantile(p, df) == pytest.approx(float(oracle.t.ppf(p, df)), rel=1e-9, abs=1e-9)


@given(st.integers(1, 2000), st.floats(0, 1e6))
def test_tails_of_t_are_those_of_scipy_down_to_the_smallest(df: int, t: float) -> None:
    assert t_tail(t, df) == pytest.approx(float(oracle.t.sf(t, df)), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("p", "df"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_that_is_not_to_be_had_is_refused(p: float, df: int) -> None:
    with pytest.raises(ValueError, match="p must be in"):
        t_quantile(p, df)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_of_a_mean_is_student_s(values: list[float], level: float) -> None:
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    low, high = oracle.t.interval(level, len(values) - 1)
    expected = (float(mean + low * error), float(mean + high * error))
    assert interval(values, level) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert interval([3.0]) is None
    assert interval([]) is None


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=12))
def test_a_paired_comparison_is_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = ([round(pair[i], 3) for pair in pairs] for i in (0, 1))
    differences = np.subtract(a, b)
    if differences.std() < 1e-6:  # where scipy warns
        return
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    expected = oracle.ttest_rel(a, b)
    assert found is not None
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-8)
    assert found.p == pytest.approx(float(oracle.ttest_1samp(differences, 0).pvalue), rel=1e-8)
    assert (found.low, found.high) == pytest.approx(
        tuple(expected.confidence_interval(0.95)), rel=1e-8, abs=1e-9
    )
    assert found.n == len(pairs)


def test_only_seeds_with_a_value_in_both_arms_are_compared() -> None:
    found = paired({0: 1.0, 1: 5.0, 2: 3.0, 3: math.nan}, {2: 1.0, 0: 2.0, 3: 4.0})
    assert found is not None
    assert (found.n, found.mean) == (2, 0.5)
    assert paired({0: 1.0, 1: 2.0}, {1: 2.0, 2: 5.0}) is None


def test_the_best_arm_has_all_its_seeds() -> None:
    arms = {"lost": {0: 0.0}, "low": {0: 1.0, 1: 2.0}, "high": {0: 5.0, 1: 2.0}, "none": {}}
    assert best_arm(arms, "min") == "low"
    assert best_arm(arms, "max") == "high"
    assert best_arm({"none": {}}, "min") is None
    assert compare({"none": {}}, "min") == []


def test_an_arm_with_one_common_seed_is_undecided_and_counts_in_no_correction() -> None:
    rng = np.random.default_rng(0)
    arms = study(rng, [0, 3], 5)
    without = compare(arms, "min")
    with_lost = compare({**arms, "lost": {0: 7.0}, "empty": {}}, "min")
    assert with_lost[:1] == without
    assert with_lost[1:] == [
        Comparison(arm="lost", best="0", verdict="undecided", seeds=1),
        Comparison(arm="empty", best="0", verdict="undecided", seeds=0),
    ]
    assert with_lost[1].words == "cannot be compared with the best: 1 common seed"
    assert groups(with_lost).undecided == ("lost", "empty")


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 6), st.sampled_from(["min", "max"]))
def test_an_interval_has_zero_inside_exactly_when_the_arms_are_tied(
    seed: int, k: int, n: int, mode: Literal["min", "max"]
) -> None:
    rng = np.random.default_rng(seed)
    found = compare(study(rng, list(rng.choice([0, 5, 50], size=k)), n), mode)
    for c in found:
        assert c.low is not None
        assert c.high is not None
        assert c.difference is not None
        assert (c.low <= 0 <= c.high) == (c.verdict == "tied")
        assert (c.more_seeds is None) or (c.verdict == "tied" and c.more_seeds >= 1)
        assert (c.difference >= 0) == (mode == "min") or c.difference == 0
    tied = groups(found).tied
    assert tied[0] == found[0].best
    assert len(tied) + len(groups(found).apart) == k


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.floats(0.01, 100))
def test_what_is_told_depends_on_neither_the_unit_nor_the_zero_of_the_values(
    seed: int, shift: float, scale: float
) -> None:
    arms = study(np.random.default_rng(seed), [0, 1, 4], 4)
    moved = {a: {s: scale * v + shift for s, v in seeds.items()} for a, seeds in arms.items()}
    flipped = {a: {s: -v for s, v in seeds.items()} for a, seeds in arms.items()}
    expected = [(c.arm, c.best, c.verdict, c.more_seeds) for c in compare(arms, "min")]
    assert [(c.arm, c.best, c.verdict, c.more_seeds) for c in compare(moved, "min")] == expected
    assert [(c.arm, c.best, c.verdict, c.more_seeds) for c in compare(flipped, "max")] == expected


def test_each_step_counts_the_pairs_of_the_arms_that_are_left() -> None:
    base = {0: 0.0, 1: 0.0, 2: 0.0}

    def shifted(by: float) -> dict[int, float]:
        return {0: by - 1, 1: by, 2: by + 1}

    arms = {"best": base, "near": shifted(9.0), "far": shifted(40.0), "near too": shifted(2.0)}
    p = {
        arm: float(oracle.ttest_1samp(list(v.values()), 0).pvalue) for arm, v in arms.items() if arm != "best"
    }
    found = {c.arm: c for c in compare(arms, "min")}
    assert found["far"].p == pytest.approx(6 * p["far"])  # of 4 arms
    assert found["near"].p == pytest.approx(3 * p["near"])  # of the 3 that are left
    assert found["near too"].p == pytest.approx(1 * p["near too"])
    assert [found[arm].verdict for arm in ("far", "near", "near too")] == ["apart", "apart", "tied"]


@pytest.mark.parametrize(("k", "n"), [(2, 3), (2, 5), (3, 3), (6, 3), (6, 5)])
def test_equal_arms_are_called_apart_in_at_most_the_stated_share_of_studies(k: int, n: int) -> None:
    rng = np.random.default_rng(k * 10 + n)
    studies = 600
    alarms = sum(
        any(c.verdict == "apart" for c in compare(study(rng, [0] * k, n), "min")) for _ in range(studies)
    )
    # Exactly 5 % for two arms; the pairs of more arms are not independent, so less. 4 binomial sds either way.
    sd = math.sqrt(0.05 * 0.95 / studies)
    assert alarms / studies <= 0.05 + 4 * sd
    assert alarms / studies >= (0.05 - 4 * sd if k == 2 else 0.005)


def test_equal_arms_far_from_others_are_called_apart_no_more_often() -> None:
    rng = np.random.default_rng(0)
    studies, alarms, found = 600, 0, 0
    for _ in range(studies):
        comparisons = compare(study(rng, [0, 0, 0, 60, 60, 60], 5), "min")
        alarms += any(c.verdict == "apart" and c.arm in "012" for c in comparisons)
        found += all(c.verdict == "apart" for c in comparisons if c.arm in "345")
    assert 0.015 <= alarms / studies <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / studies)
    assert found == studies  # 60 is 42 sds of a difference


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_mean_as_often_as_they_say(n: int) -> None:
    rng = np.random.default_rng(n)
    drawn = rng.normal(7.0, 2.0, size=(3000, n))
    covered = np.mean(
        [low <= 7 <= high for values in drawn if (i := interval(values.tolist())) for low, high in [i]]
    )
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 3000))


@given(st.floats(0.15, 5), st.sampled_from([0.95, 0.99, 0.999]))
def test_the_seeds_that_are_needed_have_the_power_and_not_far_fewer_have_it(
    effect: float, level: float
) -> None:
    n = seeds_needed(effect, 1.0, level)
    assert n is not None

    def power(n: int) -> float:
        critical, centre = oracle.t.ppf((1 + level) / 2, n - 1), effect * math.sqrt(n)
        return float(oracle.nct.sf(critical, n - 1, centre))  # the other tail is nothing here

    # The approximation is 0.012 wrong at most, at n = 3.
    assert power(n) >= 0.799
    assert n == 2 or power(n - 1) <= 0.82


def test_no_difference_or_a_tiny_one_needs_more_seeds_than_there_are() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2


def test_a_tie_is_told_with_the_seeds_that_would_end_it() -> None:
    (found,) = compare({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.5, 1: 4.0, 2: 3.5}}, "min")
    needed = seeds_needed(1.0, float(np.std([0.5, 2.0, 0.5], ddof=1)))
    assert needed is not None
    assert found.more_seeds == needed - 3
    assert found.words == f"tied with the best (3 common seeds; about {needed - 3} more would tell)"


@pytest.mark.parametrize(("n", "verdict"), [(2, "tied"), (5, "tied"), (6, "apart")])
def test_differences_that_are_all_the_same_are_not_certain_from_few_seeds(n: int, verdict: str) -> None:
    values = {"a": {seed: 9.0 for seed in range(n)}, "b": {seed: 10.0 for seed in range(n)}}
    (found,) = compare(values, "min")
    assert (found.verdict, found.more_seeds) == (verdict, None)
    assert found.p == pytest.approx(2 * 0.5**n)
    (equal,) = compare({"a": values["a"], "c": values["a"]}, "min")
    assert (equal.verdict, equal.p) == ("tied", 1.0)
