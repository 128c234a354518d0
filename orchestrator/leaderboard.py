"""The leaderboard: arms ranked by their seeds, pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    mean: float | None
    sd: float | None
    completed: int
    losses: Mapping[str, int]
    finals: Mapping[str, float]
    """Means over the completed seeds of every final/ metric and of the latest eval/ metrics."""
    best_trial: TrialRecord | None

    @property
    def seeds(self) -> int:
        return len(self.arm.trials)

    @property
    def values(self) -> Mapping[str, Value]:
        return self.arm.values


def leaderboard(records: Records, objective: Objective) -> list[Standing]:
    """All distinct arms, the best first; those without a result come last, in the order of their proposal."""
    seen: set[str] = set()
    standings = []
    for arm in records.arms:
        if arm.trials[0].key not in seen:
            seen.add(arm.trials[0].key)
            standings.append(_standing(arm, objective))
    sign = 1 if objective.mode == "min" else -1
    return sorted(
        standings,
        key=lambda s: (
            s.mean is None,
            sum(s.losses.values()),
            s.seeds - s.completed,
            0.0 if s.mean is None else sign * s.mean,
            s.arm.arm,
        ),
    )


def _standing(arm: ArmRecord, objective: Objective) -> Standing:
    completed = [t for t in arm.trials if t.state is State.COMPLETED]
    scored = [(value, t) for t in completed if (value := t.value(objective.metric)) is not None]
    values = [value for value, _ in scored]
    sign = 1 if objective.mode == "min" else -1
    ended = [t.state for t in arm.trials if t.state.is_final and t.state is not State.COMPLETED]
    per_trial = [t.finals() | {k: v for k, v in t.latest.items() if k.startswith("eval/")} for t in completed]
    names = sorted({name for metrics in per_trial for name in metrics})
    return Standing(
        arm=arm,
        mean=fmean(values) if values else None,
        sd=stdev(values) if len(values) > 1 else None,
        completed=len(completed),
        losses={state.value: ended.count(state) for state in dict.fromkeys(ended)},
        finals={name: fmean(m[name] for m in per_trial if name in m) for name in names},
        best_trial=min(scored, key=lambda pair: sign * pair[0])[1] if scored else None,
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
            "sd": standing.sd,
            "seeds": standing.seeds,
            "completed": standing.completed,
            "losses": dict(standing.losses),
            "finals": dict(standing.finals),
            "best_trial": standing.best_trial.key if standing.best_trial else None,
        }
        for rank, standing in enumerate(standings, 1)
    ]
