"""The leaderboard: arms ranked by their seeds, pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from models import Value
from orchestrator.records import ArmRecord, Records, TrialRecord
from orchestrator.study import Objective
from trials.reports import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One arm's place. `mean` and `sd` are over its completed seeds; `sd` is None for fewer than two.

    `losses`: how many seeds ended in each other final state, such as {"diverged": 2}. They are never dropped
    silently: an arm with fewer of them ranks higher, whatever its mean, and so does one with more seeds done.
    """

    arm: ArmRecord
    by_seed: Mapping[int, float]
    """Seed -> value of the first objective, of the completed trials."""
    means: Mapping[str, float]
    """Metric of each objective -> mean over the completed seeds."""
    front: int
    """1 when no other arm is at least as good in all objectives and better in one; 2 when only arms of front 1 are;
    and so on. With one objective always 1."""
    mean: float | None
    sd: float | None
    completed: int
    losses: Mapping[str, int]
    finals: Mapping[str, float]
    """Means over the completed seeds of every final/ metric and of the latest eval/ metrics."""
    best_trial: TrialRecord | None
    never_begun: int = 0
    """Seeds that did not run, as their arm had been pruned."""
    pruned_at: int | None = None
    """The step at which the arm was pruned, if it was."""
    pruned_value: float | None = None
    """The first objective there, the mean over seeds; None where a seed was lost."""

    @property
    def seeds(self) -> int:
        return len(self.arm.trials)

    @property
    def values(self) -> Mapping[str, Value]:
        return self.arm.values


def leaderboard(records: Records, *objectives: Objective) -> list[Standing]:
    """All distinct arms, the best first; then those that were pruned, the latest first, and those without a result.

    With several objectives arms are ranked by their front, and within one by the first objective.
    """
    objective = objectives[0]
    seen: set[str] = set()
    standings = []
    for arm in records.arms:
        if arm.trials[0].key not in seen:
            seen.add(arm.trials[0].key)
            standings.append(_standing(arm, objectives))
    sign = 1 if objective.mode == "min" else -1
    if len(objectives) > 1:
        standings = _with_fronts(standings, objectives)
    return sorted(
        standings,
        key=lambda s: (
            s.mean is None,
            sum(s.losses.values()),
            s.seeds - s.completed,
            s.front,
            0.0 if s.mean is None else sign * s.mean,
            -(s.pruned_at or 0),
            math.inf if s.pruned_value is None else sign * s.pruned_value,
            s.arm.arm,
        ),
    )


def _with_fronts(standings: list[Standing], objectives: Sequence[Objective]) -> list[Standing]:
    """The standings with their fronts: non-dominated sorting (Deb et al. 2002). Arms without a value of every
    objective come after all fronts."""

    def costs(standing: Standing) -> list[float]:
        return [(1 if o.mode == "min" else -1) * standing.means[o.metric] for o in objectives]

    def beats(a: Standing, b: Standing) -> bool:
        pairs = list(zip(costs(a), costs(b), strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    left = [s for s in standings if all(o.metric in s.means for o in objectives)]
    fronts: dict[int, int] = {}
    while left:
        front = [s for s in left if not any(beats(other, s) for other in left)]
        number = max(fronts.values(), default=0) + 1
        fronts |= {s.arm.arm: number for s in front}
        left = [s for s in left if s.arm.arm not in fronts]
    last = max(fronts.values(), default=0) + 1
    return [replace(s, front=fronts.get(s.arm.arm, last)) for s in standings]


def _standing(arm: ArmRecord, objectives: Sequence[Objective]) -> Standing:
    objective = objectives[0]
    completed = [t for t in arm.trials if t.state is State.COMPLETED]
    scored = [(value, t) for t in completed if (value := t.value(objective)) is not None]
    values = [value for value, _ in scored]
    sign = 1 if objective.mode == "min" else -1
    lost = [t for t in arm.trials if t.state.is_final and t.state is not State.COMPLETED]
    ended = [t.state for t in lost if t.attempts]
    per_trial = [t.finals() | {k: v for k, v in t.latest.items() if k.startswith("eval/")} for t in completed]
    names = sorted({name for metrics in per_trial for name in metrics})
    pruned_at = arm.until if any(t.state is State.PRUNED for t in arm.trials) else None
    at_rung = [t.at_rungs.get(pruned_at or 0, {}).get(objective.metric) for t in arm.trials if t.attempts]
    there = [value for value in at_rung if value is not None]
    return Standing(
        arm=arm,
        by_seed={t.seed: value for value, t in scored},
        means={
            o.metric: fmean(found)
            for o in objectives
            if (found := [value for t in completed if (value := t.value(o)) is not None])
        },
        front=1,
        mean=fmean(values) if values else None,
        sd=stdev(values) if len(values) > 1 else None,
        completed=len(completed),
        losses={state.value: ended.count(state) for state in dict.fromkeys(ended)},
        never_begun=len(lost) - len(ended),
        finals={name: fmean(m[name] for m in per_trial if name in m) for name in names},
        best_trial=min(scored, key=lambda pair: sign * pair[0])[1] if scored else None,
        pruned_at=pruned_at,
        pruned_value=fmean(there) if there and len(there) == len(at_rung) else None,
    )


def to_json(standings: list[Standing], objective: Objective) -> list[dict[str, object]]:
    """The leaderboard as plain values, for `--json`."""
    return [
        {
            "rank": rank,
            "arm": standing.arm.arm,
            "values": dict(standing.values),
            "metric": objective.metric,
            "mean": standing.mean,
            "by_seed": {str(seed): value for seed, value in standing.by_seed.items()},
            "means": dict(standing.means),
            "front": standing.front,
            "sd": standing.sd,
            "seeds": standing.seeds,
            "completed": standing.completed,
            "losses": dict(standing.losses),
            "never_begun": standing.never_begun,
            "pruned_at": standing.pruned_at,
            "pruned_value": standing.pruned_value,
            "finals": dict(standing.finals),
            "best_trial": standing.best_trial.key if standing.best_trial else None,
        }
        for rank, standing in enumerate(standings, 1)
    ]
