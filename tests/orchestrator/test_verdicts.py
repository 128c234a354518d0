"""What a study's results say of its claims, on records where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Value
from orchestrator.arms import arm_count, grid
from orchestrator.claims import FUNCTIONS, parse
from orchestrator.journal import ArmProposed, TrialEnded, TrialReported, TrialStarted
from orchestrator.leaderboard import leaderboard
from orchestrator.loader import load_study
from orchestrator.records import Records
from orchestrator.study import Choices, Range, StudySpec, axes
from orchestrator.testing import tiny_study
from orchestrator.verdicts import Curve, Verdict, budget_of, judge, written
from trials.reports import EVAL_METRICS, EXTRA_METRICS, TRAIN_METRICS

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
STEPS = 1000
TIMES = list(range(1, STEPS + 1))
Curves = dict[str, dict[str, Curve]]
LR: list[dict[str, Value]] = [{"lr": 1e-3}, {"lr": 1e-4}]


def study_of(check: str, seeds: int = 3, **changes: Any) -> StudySpec:
    claim = {"id": "it", "says": "It is so.", "check": check}
    return tiny_study(**{"seeds": list(range(seeds)), "claims": [claim], **changes})


def results_of(
    seeds: int,
    curves: Mapping[str, Callable[[int, int], Iterable[float]]],
    *,
    arms: Sequence[Mapping[str, Value]] = LR,
    states: Mapping[tuple[int, int], str] | None = None,
) -> tuple[Records, Curves]:
    """Records and curves of complete trials of 1000 steps, unless `states` names another end of (arm, seed).

    `curves`: metric -> function of (arm, seed) that gives a value for each of so many even steps.
    """
    records, found = Records(), Curves()
    for arm, values in enumerate(arms):
        keys = {f"{arm}.{seed}": seed for seed in range(seeds)}
        records.apply(ArmProposed(at_ms=0, arm=arm, proposal=arm, values=values, keys=keys, steps=STEPS))
        for key, seed in keys.items():
            found[key] = {}
            state = (states or {}).get((arm, seed), "completed")
            if state == "waiting":
                continue
            records.apply(TrialStarted(at_ms=0, key=key, attempt=1))
            rows: list[tuple[int, dict[str, float]]] = []
            for name, curve in curves.items():
                series = [float(v) for v in curve(arm, seed)]
                steps = [round(STEPS * (i + 1) / len(series)) for i in range(len(series))]
                found[key][name] = (steps, series)
                rows += [(step, {name: v}) for step, v in zip(steps, series, strict=True)]
            records.apply(TrialReported(at_ms=0, key=key, attempt=1, step=STEPS, rows=rows, pictures=[]))
            if state != "running":
                records.apply(TrialEnded(at_ms=0, key=key, attempt=1, state=state, step=STEPS))
    return records, found


def verdict(check: str, levels: Sequence[Sequence[float]], **changes: Any) -> Verdict:
    """The verdict on a check of constant curves of d_acc: levels[arm][seed]."""
    n = len(levels[0])
    results = results_of(n, {"train/d_acc": lambda arm, seed: [levels[arm][seed]] * 100})
    (found,) = judge(study_of(check, n, **changes), *results)
    return found


def value_of(measure: str, curves: Mapping[str, Sequence[float]]) -> Verdict:
    """The verdict on a claim that a quantity of one seed's curves is above 0, with the quantity."""

    def always(curve: Sequence[float]) -> Callable[[int, int], Sequence[float]]:
        return lambda *_: curve

    results = results_of(1, {name: always(curve) for name, curve in curves.items()}, arms=[{}])
    (found,) = judge(study_of(f"{measure} > 0", 1, space={}), *results)
    return found


RAMP = [t / STEPS for t in TIMES]
SWING = [math.sin(2 * math.pi * t / 100) for t in TIMES]
BLOCKS = [(t - 1) // 100 % 2 + t / 1000 for t in TIMES]
LEVELS_OFF = [min(t / 300, 1.0) + 0.01 * (-1) ** t for t in TIMES]


@pytest.mark.parametrize(
    ("measure", "curve", "expected", "tolerance"),
    [
        ("mean(d_acc)", RAMP, 0.5005, 1e-9),
        ("mean(d_acc, 0.2, 0.5)", RAMP, 0.3505, 1e-9),  # of 0.201 to 0.5
        ("first(d_acc)", RAMP, 0.0255, 1e-9),
        ("first(d_acc, 0.5)", RAMP, 0.2505, 1e-9),
        ("first(d_acc, 1/5000)", RAMP, 0.001, 1e-9),  # within the first value's steps
        ("final(d_acc)", RAMP, 0.9505, 1e-9),
        ("lowest(d_acc)", RAMP, 0.0105, 1e-9),  # the mean of the first 20
        ("highest(d_acc)", RAMP, 0.9905, 1e-9),
        ("highest(d_acc)", [0.0] * 500 + [20.0] + [0.0] * 499, 1.0, 1e-9),
        ("steps_above(d_acc, 0.75)", RAMP, 250, 10),  # half a window of 20
        ("steps_below(d_acc, 0.25)", RAMP, 250, 10),
        ("sd(d_acc)", SWING, math.sqrt(0.5 * 1000 / 999), 1e-9),
        ("sd(d_acc, 0, 0.25)", [0.0, 2.0, 5.0, 5.0], math.nan, 0),  # one value has none
        ("sd(d_acc, 0, 0.5)", [0.0, 2.0, 5.0, 5.0], math.sqrt(2), 1e-9),
        ("slope(d_acc)", RAMP, 1.0, 1e-9),
        ("slope(d_acc, 0.5, 1)", [0.0] * 500 + [3 * t for t in RAMP[500:]], 3.0, 1e-9),
        ("band_fraction(d_acc, 0.2, 0.4)", RAMP, 0.201, 1e-9),
        ("band_fraction(d_acc, 0.6, 0.7, 0.5)", RAMP, 0.202, 1e-9),
        ("time_to_plateau(d_acc)", LEVELS_OFF, 0.3, 0.03),
        ("time_to_plateau(d_acc)", RAMP, 0.75, 0.03),  # 0.875 - 2 sd of the last quarter, and half a window
        ("time_to_plateau(d_acc)", [0.0] * 28 + [9.0], 1.0, 0),  # it does not settle
        ("time_to_plateau(d_acc)", [1.0] * 1000, 0.05, 1e-9),  # the first window's end
        ("sd100(d_acc)", RAMP, 0.0, 1e-9),
        ("sd100(d_acc)", [1.0, 2.0] * 4, math.sqrt(0.8 / 3), 1e-9),  # values of 125 steps each
        ("sd100(d_acc)", [1.0, 2.0, 1.0, 2.0], math.nan, 0),  # a line goes through two
    ],
)  # fmt: skip
def test_a_function_has_its_closed_form(
    measure: str, curve: Sequence[float], expected: float, tolerance: float
) -> None:
    (number,) = value_of(measure, {"train/d_acc": curve}).numbers
    if math.isnan(expected):
        assert number.mean is None
    else:
        assert number.mean == pytest.approx(expected, abs=tolerance)
        assert number.seeds == {0: number.mean}


def test_sd100_is_of_block_means_around_their_straight_line() -> None:
    (number,) = value_of("sd100(d_acc)", {"train/d_acc": BLOCKS}).numbers
    times, values = np.array(TIMES[500:]) / STEPS, np.array(BLOCKS[500:])
    line = np.polyval(np.polyfit(times, values, 1), times)
    expected = (values - line).reshape(5, 100).mean(axis=1).std(ddof=1)
    assert number.mean == pytest.approx(expected, rel=1e-9)
    assert number.mean == pytest.approx(0.55, abs=0.1)  # 0 and 1 by turns


def test_a_noisy_series_that_has_its_level_early_has_its_plateau_early() -> None:
    rng = np.random.default_rng(0)
    curve = [0.7 - 0.3 * math.exp(-t / 100) for t in TIMES] + 0.02 * rng.normal(size=STEPS)
    (number,) = value_of("time_to_plateau(d_acc)", {"train/d_acc": curve.tolist()}).numbers
    # 0.3 exp(-t / 100) is 2 sd, 0.04, at step 201; the window of 50 adds at most itself.
    assert number.mean == pytest.approx(0.225, abs=0.05)


def test_correlation_is_over_the_steps_that_both_series_have() -> None:
    g = [float(i % 7) for i in range(100)]
    up = {
        "train/d_acc": RAMP[9::10],
        "train/g_loss": g,
        "eval/swd": [1 - 2 * RAMP[99 + 100 * i] for i in range(10)],
    }
    assert value_of("corr(d_acc, g_loss)", up).numbers[0].mean == pytest.approx(
        np.corrcoef(RAMP[9::10], g)[0, 1]
    )
    assert value_of("corr(d_acc, eval.swd)", up).numbers[0].mean == pytest.approx(-1)
    flat = value_of("corr(d_acc, g_loss)", {"train/d_acc": RAMP, "train/g_loss": [1.0] * STEPS})
    assert (flat.verdict, flat.numbers[0].mean) == ("undecided", None)
    assert "one of them does not change" in flat.reason


def test_last_is_the_newest_evaluation_and_no_evaluation_stands_for_another_time() -> None:
    curves = {"eval/swd": [4.0, 3.0, 2.0, 5.0]}
    assert value_of("last(eval.swd)", curves).numbers[0].mean == 5
    assert value_of("mean(eval.swd, 0.3, 0.8)", curves).numbers[0].mean == 2.5
    assert "has 0 values between 0.3 and 0.4" in value_of("mean(eval.swd, 0.3, 0.4)", curves).reason


def test_final_is_what_the_leaderboard_calls_final() -> None:
    curve = np.random.default_rng(0).normal(size=70).tolist()
    records, curves = results_of(1, {"train/d_acc": lambda *_: curve}, arms=[{}])
    (found,) = judge(study_of("final(d_acc) > 0", 1, space={}), records, curves)
    assert found.numbers[0].mean == pytest.approx(records.trials["0.0"].finals()["final/d_acc"], rel=1e-12)


def test_a_claim_in_which_all_seeds_agree_is_decided() -> None:
    levels = [[0.9, 0.8, 0.85], [0.5, 0.7, 0.6]]
    found = verdict("final(d_acc, lr=1e-3) > final(d_acc, lr=1e-4)", levels)
    assert (found.verdict, found.holds, found.seeds) == ("supported", 3, 3)
    assert found.reason == "holds on the mean and in 3 of 3 seeds"
    assert [n.quantity for n in found.numbers] == ["final(d_acc, lr=0.001)", "final(d_acc, lr=0.0001)"]
    assert [n.mean for n in found.numbers] == pytest.approx([0.85, 0.6])
    assert found.numbers[1].seeds == pytest.approx({0: 0.5, 1: 0.7, 2: 0.6})
    against = verdict("final(d_acc, lr=1e-3) < final(d_acc, lr=1e-4)", levels)
    assert (against.verdict, against.holds) == ("contradicted", 0)
    assert against.reason == "does not hold on the mean, and in 0 of 3 seeds"


def test_a_claim_in_which_seeds_disagree_is_undecided_and_seeds_are_paired() -> None:
    mixed = verdict("final(d_acc, lr=1e-3) > final(d_acc, lr=1e-4)", [[0.9, 0.9, 0.2], [0.5, 0.5, 0.6]])
    assert (mixed.verdict, mixed.holds) == ("undecided", 2)
    # Of 27 resamples, 1 has the third seed alone and 6 have it twice: a sum of 0.4 - 0.8 < 0.
    assert mixed.reason == "holds on the mean; holds in 2 of 3 seeds and in 74 % of resamples of the seeds"
    # The arms' values overlap, but within each seed one is above the other.
    paired = verdict("final(d_acc, lr=1e-3) > final(d_acc, lr=1e-4)", [[0.2, 0.5, 0.8], [0.1, 0.4, 0.7]])
    assert paired.verdict == "supported"


def test_one_seed_that_disagrees_a_little_among_many_changes_no_verdict() -> None:
    check = "mean(d_acc, lr=1e-3) > 0"
    few = verdict(check, [[5.0, 5.0, -0.1], [0.0] * 3])
    assert (few.verdict, few.holds) == ("supported", 2)  # 1 of 27 resamples is the third seed alone
    many = verdict(check, [[5.0] * 9 + [-0.1], [0.0] * 10])
    assert (many.verdict, many.holds, many.seeds) == ("supported", 9, 10)


def test_the_bound_is_95_percent_of_the_resamples() -> None:
    # An odd seed drawn k times of 5 turns the sum: for -1 at k >= 3, 5.8 % of the draws; for -0.5 at k >= 4, 0.7 %.
    check = "mean(d_acc, lr=1e-3) > 0"
    assert verdict(check, [[1.0] * 4 + [-1.0], [0.0] * 5]).verdict == "undecided"
    assert verdict(check, [[1.0] * 4 + [-0.5], [0.0] * 5]).verdict == "supported"
    assert verdict(check, [[-1.0] * 4 + [1.0], [0.0] * 5]).verdict == "undecided"
    assert verdict(check, [[-1.0] * 4 + [0.5], [0.0] * 5]).verdict == "contradicted"


def test_resamples_alone_decide_nothing_against_the_means() -> None:
    levels = [[0.0, 1.0, 10.0, 100.0, 1000.0], [0.0] * 5]  # no other draw of 5 has their mean
    found = verdict("mean(d_acc, lr=1e-3) != 1111 / 5", levels)
    assert (found.verdict, found.holds) == ("undecided", 5)


def test_one_seed_is_judged_and_said_to_be_one() -> None:
    check = "final(d_acc, lr=1e-3) > final(d_acc, lr=1e-4)"
    assert (verdict(check, [[2.0], [1.0]]).verdict, verdict(check, [[2.0], [1.0]]).reason) == (
        "supported", "holds; one seed",
    )  # fmt: skip
    assert verdict(check, [[1.0], [2.0]]).verdict == "contradicted"


def test_an_arm_that_is_not_chosen_is_averaged_within_its_seed() -> None:
    found = verdict("final(d_acc) > 1.9", [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    assert found.numbers[0].seeds == {0: 2.0, 1: 2.0, 2: 2.0}
    assert found.verdict == "supported"


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ("final(g_loss) > 0", "g_loss was not measured: lr=0.001 (seed 0)"),
        ("last(eval.fd, lr=1e-4) > 0", "eval.fd was not measured: lr=0.0001 (seed 0)"),
        ("final(d_acc) / (final(d_acc) - final(d_acc)) > 0", "divides by zero or is too large"),
        ("best(lr) > 0", "no arm has eval/fd of every seed"),
    ],
)
def test_a_claim_about_what_was_not_measured_is_undecided(check: str, reason: str) -> None:
    found = verdict(check, [[1.0] * 3, [1.0] * 3])
    assert (found.verdict, found.holds) == ("undecided", None)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "1 running"), ("waiting", "1 waiting"), ("failed", "1 failed"), ("pruned", "1 pruned"),
     ("stopped", "1 stopped"), ("diverged", "1 diverged")],
)  # fmt: skip
def test_a_claim_about_an_arm_whose_trials_are_not_all_done_is_undecided(state: str, words: str) -> None:
    study = study_of("final(d_acc, lr=1e-3) > 0")
    done = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10}, states={(1, 1): state})
    assert judge(study, *done)[0].verdict == "supported"  # of the other arm
    records, curves = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10}, states={(0, 1): state})
    (found,) = judge(study, records, curves)
    assert (found.verdict, found.reason) == ("undecided", f"lr=0.001: of 3 trials {words}")
    assert found.numbers[0].mean is None
    assert found.numbers[0].seeds == {0: 1.0, 2: 1.0}


def test_divergence_is_judged_where_the_check_is_about_it() -> None:
    for ends, expected in (({}, "supported"), ({(0, s): "diverged" for s in range(3)}, "contradicted")):
        results = results_of(3, {}, states=ends)
        (found,) = judge(study_of("diverged(lr=1e-3) == 0"), *results)
        assert found.verdict == expected
    results = results_of(3, {}, states={(0, 0): "diverged"})
    (found,) = judge(study_of("diverged() < 0.5"), *results)
    assert (found.verdict, found.holds) == ("supported", 2)  # of 27 resamples, 1 has only the diverged seed
    assert found.numbers[0].mean == pytest.approx(1 / 6)
    (found,) = judge(study_of("diverged() < 0.5"), *results_of(3, {}, states={(0, 0): "failed"}))
    assert found.reason == "lr=0.001: of 3 trials 1 failed"


def test_an_arm_that_has_not_begun_leaves_claims_about_it_undecided() -> None:
    results = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10}, arms=LR[:1])
    checks = ["final(d_acc, lr=1e-4) > 0", "final(d_acc) > 0", "best(lr) > 0", "final(d_acc, lr=1e-3) > 0"]
    claims = [{"id": f"c{i}", "says": "", "check": check} for i, check in enumerate(checks)]
    found = judge(study_of("", claims=claims), *results)
    assert [f.verdict for f in found] == ["undecided"] * 3 + ["supported"]
    assert found[0].reason == "1 of 1 arms with lr=0.0001 has not begun"
    assert found[1].reason == "1 of 2 arms has not begun"


def test_a_search_that_is_not_done_decides_nothing() -> None:
    search: dict[str, Any] = {"search": {"sampler": "random", "trials": 2}}
    study = study_of("final(d_acc, lr=1e-3) > 0", **search)
    begun = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10}, arms=LR[:1])
    assert judge(study, *begun)[0].reason == "the search has tried 1 of 2 arms"
    done = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10}, arms=[LR[0], {"lr": 1e-3}])
    assert judge(study, *done)[0].verdict == "supported"
    never = study_of("final(d_acc, lr=1e-4) > 0", **search)
    assert judge(never, *done)[0].reason == "no arm with lr=0.0001 has been tried"


def test_arms_that_share_their_trials_count_once_and_are_found_by_each_of_their_values() -> None:
    arms: list[dict[str, Value]] = [{"lr": 1e-3}, {"lr": 1e-2}]
    records, curves = results_of(2, {"train/d_acc": lambda arm, _: [1.0 + 3 * arm] * 10}, arms=arms)
    again = ArmProposed(at_ms=0, arm=2, proposal=2, values=LR[1], keys={"0.0": 0, "0.1": 1}, steps=STEPS)
    records.apply(again)
    study = study_of("final(d_acc, lr=1e-4) < final(d_acc)", 2, space={"lr": {"choices": [1e-3, 1e-2, 1e-4]}})
    (found,) = judge(study, records, curves)
    assert [number.mean for number in found.numbers] == [1.0, 2.5]


def test_the_budget_that_was_run_must_be_one_that_the_claim_is_meant_for() -> None:
    claims = [
        {"id": "a", "says": "", "check": "final(d_acc) > 0", "holds_for": ["full"]},
        {"id": "b", "says": "", "check": "final(d_acc) > 0"},
        {"id": "c", "says": "Words only."},
    ]
    study = study_of("", claims=claims)
    results = results_of(3, {"train/d_acc": lambda *_: [1.0] * 10})

    def words(budget: str | None) -> list[str]:
        return [v.verdict for v in judge(study, *results, budget=budget)]

    assert words("full") == words(None) == ["supported", "supported", "undecided"]
    assert words("short") == ["undecided", "supported", "undecided"]
    assert words("smoke") == ["undecided", "undecided", "undecided"]
    results[0].provenance = {"gan_sweep.budget": "short"}
    assert words(None) == words("short")
    wrong, _, no_check = judge(study, *results, budget="smoke")
    assert wrong.reason == "is meant for budget full; this is smoke"
    assert (wrong.holds, wrong.numbers[0].mean) == (3, 1.0)  # all the same
    assert no_check.reason == "no check is written"


@pytest.mark.parametrize(
    ("facts", "budget"),
    [
        ({}, "full"),
        ({"gan_sweep.budget": "short"}, "short"),
        ({"gan_sweep.budget": "short", "gan_sweep.set": '["name=other", "resources.cpu=2"]'}, "short"),
        ({"gan_sweep.budget": "short", "gan_sweep.set": '["name=other", "train.steps=100"]'}, "changed"),
        ({"gan_sweep.set": '["dataset=digits"]'}, "changed"),
    ],
)
def test_the_budget_is_the_recorded_one_unless_the_study_was_changed(
    facts: dict[str, str], budget: str
) -> None:
    records = Records(provenance=facts)
    assert budget_of(records) == budget


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=2), st.booleans())
def test_negating_a_check_swaps_supported_and_contradicted(levels: list[list[float]], chained: bool) -> None:
    more = (
        "-0.3 <= final(d_acc, lr=1e-3) - final(d_acc, lr=1e-4) < 2"
        if chained
        else "final(d_acc, lr=1e-3) > 0"
    )
    check = f"{more} or final(d_acc) < -0.4"
    swapped = {"supported": "contradicted", "contradicted": "supported", "undecided": "undecided"}
    found, negated = verdict(check, levels), verdict(f"not ({check})", levels)
    assert negated.verdict == swapped[found.verdict]
    assert (negated.holds or 0) + (found.holds or 0) == 3


@given(st.permutations(range(4)), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_the_order_of_the_seeds_changes_nothing(order: list[int], levels: list[float]) -> None:
    levels = [round(x, 3) for x in levels]
    check = "final(d_acc, lr=1e-3) > 0"
    found, other = (verdict(check, [row, row]) for row in (levels, [levels[i] for i in order]))
    assert (found.verdict, found.holds) == (other.verdict, other.holds)


@given(
    st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), min_size=2, max_size=2), min_size=2, max_size=4),
    st.sampled_from(["min", "max"]),
    st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 1)), st.just("diverged"), max_size=3),
)
def test_best_is_the_value_of_the_first_arm_of_the_leaderboard(
    levels: list[list[float]], mode: str, states: dict[tuple[int, int], str]
) -> None:
    lrs = [10.0 ** -(i + 1) for i in range(len(levels))]
    study = study_of(
        "best(lr) > 0", 2, space={"lr": {"choices": lrs}}, objective={"metric": "final/d_acc", "mode": mode}
    )
    curves = {"train/d_acc": lambda arm, seed: [levels[arm][seed]] * 10}
    records, found = results_of(2, curves, arms=[{"lr": lr} for lr in lrs], states=states)
    first = leaderboard(records, study.objective)[0]
    (number,) = judge(study, records, found)[0].numbers
    if first.losses:  # no arm has both seeds
        assert number.mean is None
    else:
        assert number.mean == first.values["lr"]


def test_the_best_arm_is_found_anew_in_every_resample() -> None:
    curves = {"eval/fd": lambda arm, seed: [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0]][arm][seed : seed + 1]}
    (found,) = judge(study_of("best(lr) == 1e-4"), *results_of(3, curves))
    assert found.numbers[0].seeds == {0: 1e-3, 1: 1e-3, 2: 1e-4}
    assert (found.numbers[0].mean, found.verdict, found.holds) == (1e-4, "undecided", 1)


def test_best_waits_for_every_arm() -> None:
    results = results_of(3, {"eval/fd": lambda *_: [1.0]}, states={(1, 2): "running"})
    (found,) = judge(study_of("best(lr) > 0"), *results)
    assert (found.verdict, found.reason) == ("undecided", "lr=0.0001: of 3 trials 1 running")


AXES: dict[str, Choices | Range] = {
    "arm": Choices(choices=["ttur", "no-drift"]),
    "lr": Choices(choices=[2e-5, 1]),
    "augment": Choices(choices=[True, False]),
    "layers": Range(low=1, high=3),
}


@pytest.mark.parametrize(
    "text",
    ["final(d_acc, lr=2e-05)", "mean(d_acc, 0.8, 1)", "mean(d_acc)", "first(eval.fd, 0.5, arm=ttur)", "diverged()",
     'last(eval.swd, arm="no-drift", augment=true)', "band_fraction(d_acc, 0.4, 0.6)", "best(layers)", "sd100(g_loss)",
     "band_fraction(d_acc, 0.4, 0.6, 0.5, layers=2, lr=1)", "corr(g_loss, d_loss_mean)", "steps_above(d_acc, 0.95)",
     "(abs((1 - final(d_acc))) / max(2, (-best(lr))))"],
)  # fmt: skip
def test_a_quantity_is_written_as_it_is_read(text: str) -> None:
    condition = parse(f"{text} < 1", AXES)
    (quantity, _) = condition.parts
    assert not isinstance(quantity, str)
    assert written(quantity) == text  # type: ignore[arg-type]
    assert parse(f"{written(quantity)} < 1", AXES) == condition  # type: ignore[arg-type]


def test_every_function_of_the_language_is_evaluated() -> None:
    curves = {f"train/{name}": SWING for name in ("d_acc", "g_loss")} | {"eval/fd": [2.0, 1.0]}
    for name, function in FUNCTIONS.items():
        metrics = ["eval.fd"] if name == "last" else ["d_acc", "g_loss"][: function.metrics]
        required = function.numbers[: len(function.numbers) - len(function.defaults)]
        given = [f"{-0.1 + i}" for i, _ in enumerate(required)]
        found = value_of(f"{name}({', '.join(metrics + given)})", curves)
        assert found.numbers[0].mean is not None, found.reason


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_claim_of_a_shipped_study_is_judged_on_complete_curves(path: Path) -> None:
    study = load_study(path)
    rng = np.random.default_rng(0)
    n = len(study.seeds)
    arms = grid(study) if study.search.sampler == "grid" else _drawn(study, rng)

    def drawn(size: int) -> Callable[[int, int], Iterable[float]]:
        return lambda *_: rng.uniform(0.1, 1, size=size).tolist()

    said = " ".join([study.objective.metric, *(claim.check for claim in study.claims)])
    train = {f"train/{name}": drawn(100) for name in (*TRAIN_METRICS, *EXTRA_METRICS) if name in said}
    evals = {f"eval/{name}": drawn(70) for name in EVAL_METRICS if name in said}
    records, curves = results_of(n, train | evals, arms=arms)
    seeds = {i: seed for i, seed in enumerate(study.seeds)}
    assert list(seeds) == list(seeds.values()), "results_of numbers its seeds from 0"
    for claim, found in zip(study.claims, judge(study, records, curves, budget="full"), strict=True):
        assert (found.claim, found.says, found.check, found.seeds) == (claim.id, claim.says, claim.check, n)
        if claim.check:
            assert found.numbers
            assert found.holds is not None, found.reason
            assert all(number.mean is not None for number in found.numbers)
            assert (found.verdict == "undecided") >= ("full" not in claim.holds_for)


def _drawn(study: StudySpec, rng: np.random.Generator) -> list[dict[str, Value]]:
    """As many arms as the search tries, anywhere in the space."""

    def one(axis: Choices | Range) -> Value:
        if isinstance(axis, Choices):
            return axis.choices[int(rng.integers(len(axis.choices)))]
        if isinstance(axis.low, int) and isinstance(axis.high, int):
            return int(rng.integers(axis.low, axis.high + 1))
        return float(rng.uniform(axis.low, axis.high))

    chosen = axes(study)
    return [{name: one(axis) for name, axis in chosen.items()} for _ in range(arm_count(study))]
