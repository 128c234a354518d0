"""Ranking arms by their seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal import ArmProposed, TrialEnded, TrialReported, TrialStarted
from orchestrator.leaderboard import leaderboard, to_json
from orchestrator.records import Records
from orchestrator.results import write_table
from orchestrator.study import Objective, StudySpec
from orchestrator.testing import tiny_study

OBJECTIVE = tiny_study().objective
Seeds = list[float | str]


def records_of(arms: list[Seeds]) -> Records:
    """Records of arms whose seeds ended with a value or in a state."""
    records = Records()
    for arm, seeds in enumerate(arms):
        keys = {f"{arm}.{i}": i for i in range(len(seeds))}
        values = {"lr": float(arm + 1)}
        records.apply(ArmProposed(at_ms=0, arm=arm, proposal=arm, values=values, keys=keys, steps=10))
        for key, end in zip(keys, seeds, strict=True):
            records.apply(TrialStarted(at_ms=0, key=key, attempt=1))
            value = end if isinstance(end, float) else 1.0
            rows = [(5, {"train/g_loss": 9.0}), (10, {"eval/fd": value, "train/g_loss": value})]
            records.apply(TrialReported(at_ms=0, key=key, attempt=1, step=10, rows=rows, pictures=[]))
            state = "completed" if isinstance(end, float) else end
            if state != "running":
                records.apply(TrialEnded(at_ms=0, key=key, attempt=1, state=state, step=10))
    return records


def test_the_lowest_mean_over_seeds_comes_first() -> None:
    board = leaderboard(records_of([[3.0, 5.0], [1.0, 2.0], [2.0, 9.0]]), OBJECTIVE)
    assert [s.arm.arm for s in board] == [1, 0, 2]
    assert board[0].mean == 1.5
    assert board[0].sd == pytest.approx(0.5**0.5)
    assert board[0].best_trial is not None
    assert board[0].best_trial.key == "1.0"


def test_the_highest_comes_first_when_the_objective_is_maximised() -> None:
    board = leaderboard(records_of([[3.0], [1.0]]), tiny_study(objective={"mode": "max"}).objective)
    assert [s.arm.arm for s in board] == [0, 1]


def test_an_arm_that_lost_a_seed_ranks_below_arms_that_did_not() -> None:
    board = leaderboard(records_of([[0.1, "diverged"], [9.0, 9.0], ["failed", "diverged"]]), OBJECTIVE)
    assert [s.arm.arm for s in board] == [1, 0, 2]
    assert board[1].losses == {"diverged": 1}
    assert (board[1].completed, board[1].seeds, board[1].sd) == (1, 2, None)
    assert board[2].mean is None


def test_an_arm_with_fewer_seeds_done_ranks_below() -> None:
    board = leaderboard(records_of([[0.1, "running", "running"], [0.2, 0.2, 0.2]]), OBJECTIVE)
    assert [s.arm.arm for s in board] == [1, 0]


def test_a_seed_that_was_lost_weighs_more_than_one_that_is_not_done() -> None:
    board = leaderboard(records_of([[0.1, "diverged"], [9.0, "running"]]), OBJECTIVE)
    assert [s.arm.arm for s in board] == [1, 0]


def test_running_seeds_are_neither_counted_nor_lost() -> None:
    (standing,) = leaderboard(records_of([[1.0, "running"]]), OBJECTIVE)
    assert (standing.mean, standing.completed, standing.losses) == (1.0, 1, {})


def test_an_arm_proposed_twice_stands_once() -> None:
    records = records_of([[1.0], [2.0]])
    records.apply(ArmProposed(at_ms=0, arm=2, proposal=2, values={"lr": 1.0}, keys={"0.0": 0}, steps=10))
    assert [s.arm.arm for s in leaderboard(records, OBJECTIVE)] == [0, 1]
    assert len(records.trials) == 2


def test_a_final_metric_is_the_mean_of_the_last_tenth_alone() -> None:
    (standing,) = leaderboard(records_of([[4.0, 6.0]]), OBJECTIVE)
    assert standing.finals == {"final/g_loss": 5.0, "eval/fd": 5.0}


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=3), min_size=1, max_size=6))
def test_the_ranking_does_not_depend_on_the_order_of_proposal(arms: list[list[float]]) -> None:
    def ranked(order: list[list[float]]) -> list[float | None]:
        return [
            s.mean for s in leaderboard(records_of([list[float | str](seeds) for seeds in order]), OBJECTIVE)
        ]

    assert ranked(arms) == ranked(arms[::-1])


def test_json_and_csv_carry_the_same_numbers(tmp_path: Path) -> None:
    board = leaderboard(records_of([[3.0, 5.0], ["diverged", "failed"]]), OBJECTIVE)
    rows = json.loads(json.dumps(to_json(board, OBJECTIVE), allow_nan=False))
    with open(write_table(tmp_path / "t.csv", board), newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["mean"] for row in rows] == [4.0, None]
    assert [row["mean"] for row in table] == ["4.0", ""]
    assert table[1]["losses"] == "diverged 1 failed 1"


def test_no_arms_is_an_empty_board() -> None:
    assert leaderboard(Records(), StudySpec.model_validate(tiny_study().model_dump()).objective) == []


def judged(*evaluations: tuple[float, float]) -> Records:
    """One trial with evaluations of fd and recall at steps 1, 2, ..."""
    records = Records()
    records.apply(ArmProposed(at_ms=0, arm=0, proposal=0, values={}, keys={"k": 0}, steps=10))
    records.apply(TrialStarted(at_ms=0, key="k", attempt=1))
    rows = [(i, {"eval/fd": fd, "eval/recall": recall}) for i, (fd, recall) in enumerate(evaluations, 1)]
    records.apply(TrialReported(at_ms=0, key="k", attempt=1, step=len(rows), rows=rows, pictures=[]))
    return records


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_trial_is_worth_its_best_evaluation_or_its_last_one(evaluations: list[tuple[float, float]]) -> None:
    trial = judged(*evaluations).trials["k"]
    fds, recalls = zip(*evaluations, strict=True)
    for metric, values, mode, best in (
        ("fd", fds, "min", min(fds)),
        ("recall", recalls, "max", max(recalls)),
    ):
        objective = Objective(metric=f"eval/{metric}", mode=mode)  # type: ignore[arg-type]
        assert trial.value(objective) == best
        assert trial.value_step(objective) == 1 + values.index(best)
        last = objective.model_copy(update={"at": "last"})
        assert (trial.value(last), trial.value_step(last)) == (values[-1], len(values))
    assert trial.value(Objective(metric="eval/kid")) is None
    assert trial.value_step(Objective(metric="eval/kid")) is None


PLANE = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9)


@given(PLANE)
def test_with_two_objectives_no_arm_is_beaten_by_one_that_ranks_below_it(
    points: list[tuple[int, int]],
) -> None:
    records = Records()
    for arm, (fd, recall) in enumerate(points):
        key = str(arm)
        records.apply(ArmProposed(at_ms=0, arm=arm, proposal=arm, values={"lr": arm}, keys={key: 0}, steps=1))
        records.apply(TrialStarted(at_ms=0, key=key, attempt=1))
        rows = [(1, {"eval/fd": float(fd), "eval/recall": float(recall)})]
        records.apply(TrialReported(at_ms=0, key=key, attempt=1, step=1, rows=rows, pictures=[]))
        records.apply(TrialEnded(at_ms=0, key=key, attempt=1, state="completed", step=1))
    board = leaderboard(records, Objective(metric="eval/fd"), Objective(metric="eval/recall", mode="max"))

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    ranked = [points[s.arm.arm] for s in board]
    for i, better in enumerate(ranked):
        assert not any(beats(other, better) for other in ranked[i + 1 :])
    for s in board:
        beaten = [t.front for t in board if beats(points[t.arm.arm], points[s.arm.arm])]
        assert (
            s.front == max(beaten, default=0) + 1
        )  # just behind the last front that has an arm that beats it
