"""Which arms go on at a rung and which end there: pure.

An arm is judged when all of its seeds that may run have come to the rung or have ended, so that replicates stay
paired. Trials at a rung wait without a worker, with a checkpoint; judging twice gives the same answer twice.

Halving and Hyperband are those of Jamieson and Talwalkar (2016) and Li et al. (2018), asha is the promotion rule of
Li et al. (2020), and median that of Golovin et al. (2017), all of them with arms in place of single trials.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from orchestrator import stats
from orchestrator._fields import Objective, Prune
from orchestrator.records import ArmRecord, Records, TrialRecord
from trials.reports import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """The arm's trials may run to step `until`, or to their end."""

    arm: ArmRecord
    until: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The arm ends at rung `step` with `value`, its mean over seeds there; None when a seed was lost."""

    arm: ArmRecord
    step: int
    value: float | None
    reason: str


Verdict = Advance | End
Score = tuple[int, float]
"""Seeds lost, and the mean of the others' values times the objective's sign: less is better."""


def brackets(prune: Prune, arm: int) -> list[int]:
    """The rungs that arm number `arm` meets: all of them, or with hyperband those of its bracket.

    Brackets take turns. Each skips one more of the first rungs; the last one has a single rung.
    """
    rungs = sorted(prune.rungs)
    return rungs[arm % len(rungs) :] if prune.method == "hyperband" else rungs


def judge(
    records: Records,
    prune: Prune,
    objective: Objective,
    *,
    complete: bool,
    rungs: Collection[int] | None = None,
) -> list[Verdict]:
    """What is decided now, rung by rung, or at `rungs` alone. `complete`: all arms that there will be are proposed."""
    arms = [arm for arm in records.arms if arm.trials[0].arm == arm.arm]  # each once
    found: list[Verdict] = []
    for rung in sorted(prune.rungs if rungs is None else rungs):
        groups: dict[int, list[ArmRecord]] = {}
        for arm in arms:
            mine = brackets(prune, arm.arm)
            # An arm that ended at an earlier rung still stands there.
            if rung in mine and (arm.until is None or arm.until >= rung):
                groups.setdefault(mine[0], []).append(arm)
        for cohort in groups.values():
            found += _judge_rung(cohort, rung, prune, objective, complete=complete)
    return found


def has_arrived(arm: ArmRecord) -> bool:
    """Whether all trials of the arm that may run are at its rung, or have ended."""
    return arm.until is not None and _has_arrived(arm, arm.until)


def saved(records: Records) -> tuple[int, int, float]:
    """Steps that pruned trials did not take, of how many in all, and the seconds that they would have taken.

    Seconds are by the pruned trial's own pace, or that of all trials for one that never began.
    """
    trials = list(records.trials.values())
    pruned = [trial for trial in trials if trial.state is State.PRUNED]
    taken, spent = sum(t.step for t in trials), sum(t.run_s for t in trials)
    pace = spent / taken if taken else 0.0
    left = {t.key: t.steps - t.step for t in pruned}
    seconds = sum(left[t.key] * (t.run_s / t.step if t.step else pace) for t in pruned)
    return sum(left.values()), sum(t.steps for t in trials), seconds


def _judge_rung(
    cohort: list[ArmRecord], rung: int, prune: Prune, objective: Objective, *, complete: bool
) -> list[Verdict]:
    waits = prune.method in ("halving", "hyperband")
    if waits and not (
        complete and all(_has_arrived(arm, rung) for arm in cohort)
    ):  # most often: ask the least
        return []
    there = [arm for arm in cohort if _has_arrived(arm, rung)]
    here = [arm for arm in there if arm.until == rung and any(not t.state.is_final for t in arm.trials)]
    everybody = complete and len(there) == len(cohort)
    if not here or (not everybody and len(there) < prune.least):
        return []
    scores = {arm.arm: _score(arm, rung, objective) for arm in there}
    ranked = sorted(there, key=lambda arm: (scores[arm.arm], arm.arm))
    match prune.method:
        case "median":
            reasons = {arm.arm: _median_words(arm, scores, objective) for arm in here}
        case "paired":
            reasons = _told_apart(ranked, rung, objective, prune.level)
        case _:  # a share of those that are there; while there may be more, rounded down
            keep = (math.ceil if everybody else math.floor)(prune.keep * len(there))
            reasons = {
                arm.arm: f"rank {rank} of {len(there)}, of which {keep} go on"
                for rank, arm in enumerate(ranked, start=1)
                if rank > keep
            }
    verdicts: list[Verdict] = []
    for arm in here:
        reason = reasons.get(arm.arm)
        if reason is None:
            verdicts.append(Advance(arm=arm, until=_next(prune, arm, rung)))
        elif everybody or prune.method != "asha":  # an arm of asha may yet be among the best of more
            value = _mean(arm, rung, objective)
            words = "a seed was lost" if value is None else f"{objective.metric} {value:.4g}"
            verdicts.append(End(arm=arm, step=rung, value=value, reason=f"at rung {rung}: {words}, {reason}"))
    return verdicts


def _next(prune: Prune, arm: ArmRecord, rung: int) -> int | None:
    return next((later for later in brackets(prune, arm.arm) if later > rung), None)


def _has_arrived(arm: ArmRecord, rung: int) -> bool:
    return all(rung in trial.at_rungs or trial.state.is_final for trial in arm.open_trials)


def _value(trial: TrialRecord, rung: int, objective: Objective) -> float | None:
    """The trial's value at a rung, or at its end when that came before; None for a lost seed."""
    if rung in trial.at_rungs:
        return trial.at_rungs[rung].get(objective.metric)
    return trial.value(objective) if trial.state is State.COMPLETED else None


def _values(arm: ArmRecord, rung: int, objective: Objective) -> dict[int, float]:
    found = {trial.seed: _value(trial, rung, objective) for trial in arm.open_trials}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(arm: ArmRecord, rung: int, objective: Objective) -> float | None:
    values = _values(arm, rung, objective)
    return fmean(values.values()) if len(values) == len(arm.open_trials) else None


def _score(arm: ArmRecord, rung: int, objective: Objective) -> Score:
    values = _values(arm, rung, objective)
    sign = 1 if objective.mode == "min" else -1
    return len(arm.open_trials) - len(values), sign * fmean(values.values()) if values else math.inf


def _median_words(arm: ArmRecord, scores: Mapping[int, Score], objective: Objective) -> str | None:
    lost, mine = scores[arm.arm]
    others = [score for number, score in scores.items() if number != arm.arm]
    if not others:
        return None
    middle_lost = median(lost for lost, _ in others)
    known = [value for _, value in others if math.isfinite(value)]
    if lost != middle_lost or not known:
        return None if lost <= middle_lost else f"{lost} of its seeds were lost, of most other arms fewer"
    middle = median(known)
    sign = 1 if objective.mode == "min" else -1
    return (
        None if mine <= middle else f"worse than the median of the other {len(others)}, {sign * middle:.4g}"
    )


def _told_apart(
    ranked: Sequence[ArmRecord], rung: int, objective: Objective, level: float
) -> dict[int, str | None]:
    """The arms that a paired test over their common seeds calls worse than the best, with words."""
    values = {str(arm.arm): _values(arm, rung, objective) for arm in ranked}
    best, mode = str(ranked[0].arm), objective.mode
    found: dict[int, str | None] = {}
    for c in stats.compare(values, mode, level, best=best):
        worse = c.difference is not None and (c.difference > 0) == (mode == "min")
        if c.verdict == "apart" and worse and c.difference is not None and c.p is not None:
            found[int(c.arm)] = (
                f"worse than the best by {abs(c.difference):.4g} ({c.seeds} common seeds, p {c.p:.2g})"
            )
    return found
