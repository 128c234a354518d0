"""Pruning as a pure machine: arms are judged whole, nothing waits for ever, and the best arm stays."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator._fields import Objective, Prune
from orchestrator.backends.inline import InlineBackend
from orchestrator.journal import (
    ArmProposed,
    TrialPaused,
    TrialStarted,
)
from orchestrator.pruning import End, brackets, judge, saved
from orchestrator.records import Records
from orchestrator.study import problems
from orchestrator.testing import PrunedValue, events, make_sweep, run_sweep, simulate_pruning, tiny_study
from trials.reports import State

STEPS = 100
METHODS = ("halving", "asha", "hyperband", "median", "paired")
OBJECTIVE = Objective(metric="eval/fd", mode="min")


def simulate(prune: Prune, n_arms: int, n_seeds: int, value: PrunedValue, **how: Any) -> Records:
    return simulate_pruning(prune, OBJECTIVE, n_arms, n_seeds, value, **{"steps": STEPS, **how})


def survivors(records: Records) -> list[int]:
    return [arm.arm for arm in records.arms if not any(t.state is State.PRUNED for t in arm.trials)]


prunes = st.builds(
    Prune,
    method=st.sampled_from(METHODS),
    rungs=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=4).map(sorted),
    keep=st.sampled_from([0.25, 0.5, 0.75]),
    least=st.integers(2, 6),
    seeds=st.sampled_from([None, 1, 2]),
)


@given(
    prune=prunes, n_arms=st.integers(1, 9), n_seeds=st.integers(1, 3), seed=st.integers(0, 10**6),
    lost=st.sampled_from([0.0, 0.2, 0.9]), adaptive=st.booleans(), slots=st.integers(1, 5),
)  # fmt: skip
def test_every_trial_comes_to_one_end_and_every_arm_is_judged_whole(
    prune: Prune, n_arms: int, n_seeds: int, seed: int, lost: float, adaptive: bool, slots: int
) -> None:
    def value(arm: int, trial_seed: int, step: int) -> float | None:
        drawn = random.Random(f"{seed} {arm} {trial_seed} {step}")
        return None if drawn.random() < lost else drawn.random()

    records = simulate(prune, n_arms, n_seeds, value, order=seed, adaptive=adaptive, slots=slots)
    assert len(records.trials) == n_arms * n_seeds
    for arm in records.arms:
        states = {t.state for t in arm.trials}
        assert all(state.is_final for state in states)
        assert not {State.PRUNED, State.COMPLETED} <= states  # pruned as a whole, or not at all
    if n_arms:
        assert survivors(records)


@given(
    method=st.sampled_from(METHODS), n_arms=st.integers(2, 10), order=st.integers(0, 10**6),
    mode=st.sampled_from(["min", "max"]), keep=st.sampled_from([0.1, 0.5]),
)  # fmt: skip
def test_the_arm_that_is_best_at_every_rung_is_never_pruned(
    method: str, n_arms: int, order: int, mode: str, keep: float
) -> None:
    ranks = random.Random(order).sample(range(n_arms), n_arms)
    sign = 1 if mode == "min" else -1
    prune = Prune.model_validate({"method": method, "rungs": [10, 30, 60], "keep": keep, "least": 2})
    objective = Objective.model_validate({"metric": "eval/fd", "mode": mode})
    records = simulate_pruning(
        prune, objective, n_arms, 3, lambda arm, seed, _: sign * (10.0 * ranks[arm] + seed),
        steps=STEPS, order=order,
    )  # fmt: skip
    assert ranks.index(0) in survivors(records)


@given(n_arms=st.integers(1, 12), order=st.integers(0, 99), keep=st.sampled_from([0.25, 1 / 3, 0.5]))
def test_halving_keeps_its_share_at_every_rung_in_any_order_of_arrival(
    n_arms: int, order: int, keep: float
) -> None:
    prune = Prune(method="halving", rungs=[10, 30], keep=keep)
    records = simulate(prune, n_arms, 2, lambda arm, seed, _: arm + seed / 10, order=order)
    after_one = math.ceil(keep * n_arms)
    after_two = math.ceil(keep * after_one)
    reached = [max(t.step for t in arm.trials) for arm in records.arms]
    assert reached == [STEPS] * after_two + [30] * (after_one - after_two) + [10] * (n_arms - after_one)


def test_hyperband_s_brackets_take_turns_and_each_skips_one_more_rung() -> None:
    prune = Prune(method="hyperband", rungs=[30, 10, 60])
    assert [brackets(prune, arm) for arm in range(4)] == [[10, 30, 60], [30, 60], [60], [10, 30, 60]]
    records = simulate(prune, 6, 1, lambda arm, *_: float(arm))
    assert survivors(records) == [0, 1, 2]


def test_an_arm_of_asha_is_promoted_once_enough_worse_ones_have_come() -> None:
    prune = Prune(method="asha", rungs=[10], keep=0.5, least=2)
    records = Records()
    for n in range(3):
        records.apply(
            ArmProposed(
                at_ms=0, arm=n, proposal=n, values={"lr": float(n)}, keys={f"{n}": 0}, steps=STEPS, until=10
            )
        )

    def come(arm: int, value: float) -> list[int]:
        records.apply(TrialStarted(at_ms=0, key=f"{arm}", attempt=1))
        records.apply(TrialPaused(at_ms=0, key=f"{arm}", attempt=1, step=10, values={"eval/fd": value}))
        verdicts = judge(records, prune, OBJECTIVE, complete=False)
        assert not any(isinstance(v, End) for v in verdicts)
        return [v.arm.arm for v in verdicts]

    assert come(0, 5.0) == []  # alone
    assert come(1, 7.0) == [0]
    assert come(2, 1.0) == [2]  # one of three


def test_a_seed_that_was_lost_counts_against_its_arm() -> None:
    prune = Prune(method="halving", rungs=[10], keep=0.5)

    def value(arm: int, seed: int, _: int) -> float | None:
        return None if (arm, seed) == (0, 1) else float(arm)  # arm 0 is best by its mean, and lost a seed

    assert survivors(simulate(prune, 4, 2, value)) == [1, 2]


def test_the_paired_test_sees_through_a_spread_that_seeds_share() -> None:
    def value(arm: int, seed: int, _: int) -> float:
        return 100.0 * seed + {0: 0.0, 1: 0.2, 2: 5.0}[arm] + 0.1 * ((arm * 7 + seed * 3) % 5)

    paired = Prune(method="paired", rungs=[10], least=2)
    assert survivors(simulate(paired, 3, 6, value)) == [0, 1]
    reason = simulate(paired, 3, 6, value).arms[2].trials[0].reason
    assert "worse than the best by" in reason
    assert "6 common seeds" in reason
    assert survivors(simulate(paired, 3, 1, value)) == [0, 1, 2]  # of one seed nothing can be said


def test_the_median_rule_ends_what_is_worse_than_the_middle_of_the_others() -> None:
    prune = Prune(method="median", rungs=[10], least=5)
    assert survivors(simulate(prune, 5, 1, lambda arm, *_: float(arm))) == [0, 1, 2]


def test_later_seeds_of_a_race_run_only_for_arms_that_passed_every_rung() -> None:
    prune = Prune(method="halving", rungs=[10, 30], keep=0.5, seeds=1)
    records = simulate(prune, 4, 3, lambda arm, *_: float(arm))
    assert [[t.step for t in arm.trials] for arm in records.arms] == [
        [STEPS] * 3, [30, 0, 0], [10, 0, 0], [10, 0, 0],
    ]  # fmt: skip
    assert [arm.trials[0].attempts for arm in records.arms] == [3, 2, 1, 1]
    assert records.arms[0].trials[1].attempts == 1  # nothing is left to pause for


def test_what_pruning_saved_is_counted_in_steps_and_at_each_trial_s_own_pace() -> None:
    records = simulate(Prune(method="halving", rungs=[10], keep=0.5), 2, 2, lambda arm, *_: float(arm))
    assert saved(records) == (180, 400, 0.0)
    for trial in records.arms[1].trials:
        trial.run_s = 2.0
    assert saved(records)[2] == pytest.approx(2 * 90 * 0.2)


@pytest.mark.parametrize(
    ("prune", "path", "words"),
    [
        (
            {"rungs": [4, 12]},
            ("prune", "rungs", 1),
            "must come before the end of every trial, step 12 (got 12)",
        ),
        ({"rungs": [5, 5]}, ("prune", "rungs", 1), "twice"),
        ({"rungs": [5], "seeds": 2}, ("prune", "seeds"), "fewer than the study's 2 seeds"),
        ({"rungs": [5], "seeds": 1, "method": "paired"}, ("prune", "method"), "at least two seeds"),
    ],
)
def test_pruning_that_cannot_work_is_refused(
    prune: dict[str, object], path: tuple[str | int, ...], words: str
) -> None:
    (found,) = problems(tiny_study(prune=prune))
    assert found.path == path
    assert words in found.message


@pytest.mark.parametrize("metric", ["final/g_loss", "eval/nn_fake_fake"])
def test_pruning_needs_a_metric_that_is_measured_on_the_way(metric: str) -> None:
    (found,) = problems(tiny_study(prune={"rungs": [5]}, objective={"metric": metric}))
    assert (found.path, metric in found.message) == (("prune",), True)


def pruned_study(**changes: object) -> dict[str, object]:
    return {
        "space": {"lr": {"choices": [1e-3, 1e-4, 1e-5, 1e-6]}},
        "prune": {"rungs": [4], "keep": 0.5},
        **changes,
    }


ARMS: list[dict[str, int | float | bool | str]] = [{"lr": lr} for lr in (1e-3, 1e-4, 1e-5, 1e-6)]


@pytest.mark.parametrize("pack", [1, 4])
def test_a_real_study_prunes_half_of_its_arms_and_trains_the_others_as_without(
    tmp_path: Path, pack: int
) -> None:
    sweep, search = make_sweep(tiny_study(**pruned_study()), tmp_path / "a", ARMS, pack=pack)
    records = run_sweep(sweep, InlineBackend())
    assert records.state == "completed"
    assert sorted(len({t.state for t in arm.trials}) for arm in records.arms) == [1] * 4
    states = [arm.trials[0].state for arm in records.arms]
    assert sorted(states) == [State.COMPLETED] * 2 + [State.PRUNED] * 2
    assert [t.step for arm in records.arms for t in arm.trials if t.state is State.PRUNED] == [4] * 4
    pruned = [arm.arm for arm in records.arms if arm.trials[0].state is State.PRUNED]
    assert sorted(search.pruned) == pruned
    assert {step for step, _ in search.pruned.values()} == {4}

    whole, _ = make_sweep(
        tiny_study(**pruned_study(prune={"rungs": [4], "keep": 0.99})), tmp_path / "b", ARMS, pack=pack
    )
    expected = run_sweep(whole, InlineBackend())
    for trial in records.trials.values():
        if trial.state is State.COMPLETED:
            assert trial.value(sweep.study.objective) == expected.trials[trial.key].value(
                sweep.study.objective
            )


def test_a_pause_changes_nothing_that_a_trial_computes(tmp_path: Path) -> None:
    paused, _ = make_sweep(
        tiny_study(**pruned_study(prune={"rungs": [6], "keep": 0.99})), tmp_path / "a", ARMS
    )
    run_sweep(paused, InlineBackend())
    assert len(events(tmp_path / "a", TrialPaused)) == 8
    straight, _ = make_sweep(tiny_study(**pruned_study(prune=None)), tmp_path / "b", ARMS)
    run_sweep(straight, InlineBackend())
    finals = [[trial.finals() for trial in sweep.records.trials.values()] for sweep in (paused, straight)]
    assert finals[0] == finals[1]


def test_a_driver_that_died_at_a_rung_comes_to_the_same_verdicts(tmp_path: Path) -> None:
    whole, _ = make_sweep(tiny_study(**pruned_study()), tmp_path / "whole", ARMS)
    expected = {t.key: (t.state, t.step, t.reason) for t in run_sweep(whole, InlineBackend()).trials.values()}
    journal = (tmp_path / "whole" / "tiny" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    first_verdict = next(i for i, line in enumerate(journal) if b"arm_advanced" in line or b"pruned" in line)
    for cut in range(first_verdict, first_verdict + 6):
        root = tmp_path / f"cut {cut}"
        sweep, _ = make_sweep(tiny_study(**pruned_study()), root / "none", ARMS)
        sweep.end()
        (root / "tiny").mkdir()
        (root / "tiny" / "journal.jsonl").write_bytes(b"".join(journal[:cut]))
        again, _ = make_sweep(tiny_study(**pruned_study()), root, ARMS)
        records = run_sweep(again, InlineBackend())
        assert {t.key: (t.state, t.step, t.reason) for t in records.trials.values()} == expected


def test_a_last_arm_that_brings_no_trial_of_its_own_keeps_nobody_waiting(tmp_path: Path) -> None:
    study = tiny_study(
        space={"lr": {"choices": [1e-3, 1e-4, 1e-5]}}, prune={"rungs": [4], "keep": 0.5},
        search={"sampler": "tpe", "trials": 3},
    )  # fmt: skip
    sweep, _ = make_sweep(study, tmp_path, [{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 1e-3}])
    records = run_sweep(sweep, InlineBackend())
    assert records.state == "completed"
    assert sorted(t.state for t in records.trials.values()) == [State.COMPLETED] * 2 + [State.PRUNED] * 2
