"""What a study found, in words and rows for a page: pure functions of a reading."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestrator.arms import arm_count
from orchestrator.charts import LOG_SPAN
from orchestrator.leaderboard import Standing
from orchestrator.reading import Reading, judged_on_different_images
from orchestrator.records import TrialRecord
from orchestrator.stats import Comparison, compare, interval
from orchestrator.study import Objective
from orchestrator.views import colour, number
from trials.reports import State

FLOORS = {"eval/fd": "eval/fd_floor", "eval/kid": "eval/kid_floor", "eval/swd": "eval/swd_floor"}
"""What held-out real images reach, of metrics that have it."""
RATIO_METRICS = ("eval/fd", "eval/swd")
"""A kernel distance's floor is near 0, so that ratios to it mean nothing."""
DIFFERENT_IMAGES = (
    "The arms are judged on different images: their values do not compare, and they have no ranks."
)
MOST_VALUES = 3
"""Arms on different images whose values the answer tells."""
LATE_LOSS = 1.1
"""A last evaluation this many times the best one is worth a remark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """An arm's line of the leaderboard. `rank`: none without a value, and of arms on different images.

    `comparison`: against the best arm; None for that one itself and without a rank. `ratio`: mean over floor.
    """

    rank: int | None
    standing: Standing
    colour: str
    label: str
    mean: float | None
    bounds: tuple[float, float] | None
    by_seed: Mapping[int, float]
    comparison: Comparison | None
    floor: float | None
    ratio: float | None
    remarks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        if self.comparison is None:
            return "best" if self.rank == 1 else ""
        return {"apart": "worse", "tied": "tied with the best"}.get(self.comparison.verdict, "not comparable")

    @property
    def more_seeds(self) -> int | None:
        return self.comparison.more_seeds if self.comparison else None

    @property
    def lost(self) -> str:
        """`diverged 2/5, failed 1/5`."""
        return ", ".join(f"{state} {n}/{self.standing.seeds}" for state, n in self.standing.losses.items())

    @property
    def lost_words(self) -> str:
        """`diverged in 2 of 5 seeds, failed in 1`."""
        first, *others = [f"{state} in {n}" for state, n in self.standing.losses.items()] or [""]
        return ", ".join([f"{first} of {count(self.standing.seeds, 'seed')}", *others]) if first else ""


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def listed(words: Sequence[str], most: int = 3) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    shown = [*words[:most], *([f"{len(words) - most} more"] if len(words) > most else [])]
    return " and ".join(([", ".join(shown[:-1])] if len(shown) > 1 else []) + shown[-1:])


def arm_rows(reading: Reading) -> list[ArmRow]:
    """The arms, the best first. Those on different images are not ranked and not compared."""
    standings, objective = reading.standings, reading.study.objective
    ranked = not on_different_images(reading)
    values = {str(s.arm.arm): s.by_seed for s in standings if s.by_seed}
    best = standings[0].mean if standings and ranked else None
    first = str(standings[0].arm.arm) if best is not None else None
    found = {c.arm: c for c in compare(values, objective.mode, best=first)} if first else {}
    rows = []
    for rank, s in enumerate(standings, 1):
        floor = s.finals.get(FLOORS.get(objective.metric, ""))
        has_ratio = objective.metric in RATIO_METRICS and floor and s.mean is not None
        rows.append(
            ArmRow(
                rank=rank if ranked and s.mean is not None else None,
                standing=s,
                colour=colour(s.arm.arm),
                label=s.arm.label,
                mean=s.mean,
                bounds=interval(list(s.by_seed.values())),
                by_seed=s.by_seed,
                comparison=found.get(str(s.arm.arm)),
                floor=floor,
                ratio=s.mean / floor if has_ratio and floor and s.mean is not None else None,
                remarks=tuple(remarks(s, objective, best)),
            )
        )
    return rows


def on_different_images(reading: Reading) -> bool:
    """Whether the arms are judged on images of their own, so that their values do not compare."""
    return judged_on_different_images(reading.study, (s.values for s in reading.standings))


def is_ranked(rows: Sequence[ArmRow]) -> bool:
    """Whether one of the arms is the best."""
    return any(row.rank for row in rows)


def remarks(s: Standing, objective: Objective, best: float | None) -> Iterator[str]:
    """What an arm's figures say, a clause each; without its value."""
    finals = s.finals
    if s.mean is not None and best and s.mean != best and objective.mode == "min" and best > 0:
        yield f"{s.mean / best:.3g} times the best arm's value"
    if (w := finals.get("final/w_dist")) is not None:
        yield f"the critic's distance ends at {number(w)}"
    elif (accuracy := finals.get("final/d_acc")) is not None:
        yield _balance(accuracy, finals.get("final/g_loss"))
    completed = [t for t in s.arm.trials if t.state is State.COMPLETED]
    if late := _late(completed, objective):
        yield late
    precision, recall = finals.get("eval/precision"), finals.get("eval/recall")
    if precision is not None and recall is not None and recall < 0.05 <= precision:
        yield f"its images are of few kinds: recall {recall:.2f} at precision {precision:.2f}"
    modes = finals.get("eval/modes")
    if modes is not None and (share := finals.get("eval/class_tv")) is not None and share > 0.2:
        yield (
            f"{percent(share)} of its images would have to be of other classes to match the data "
            f"({_modes(modes)})"
        )
    if (ratio := finals.get("eval/nn_train_ratio")) is not None and ratio < 0.8:
        yield f"its images lie close to training images ({ratio:.2f} of a held-out image's distance)"


def _modes(mean: float) -> str:
    """`120 classes appear`, `2.7 classes appear`: the mean over seeds of a number of classes."""
    shown = f"{mean:.1f}".removesuffix(".0")
    return "1 class appears" if shown == "1" else f"{shown} classes appear"


def _balance(accuracy: float, g_loss: float | None) -> str:
    loss = "" if g_loss is None else f", the generator's loss ends at {number(g_loss)}"
    if accuracy > 0.95:
        return f"the discriminator wins: it tells {percent(accuracy)} of the images right at the end{loss}"
    if accuracy < 0.35:
        return f"the discriminator loses: it tells {percent(accuracy)} of the images right at the end{loss}"
    if accuracy <= 0.65:
        return f"the nets are near balance: the discriminator tells {percent(accuracy)} of the images right at the end"
    return f"the discriminator leads: it tells {percent(accuracy)} of the images right at the end"


def _late(trials: Sequence[TrialRecord], objective: Objective) -> str:
    """Where the last evaluation is much worse than the best one."""
    if not objective.metric.startswith("eval/") or objective.mode != "min":
        return ""
    found = [
        (t.best[objective.metric], t.latest[objective.metric], t.steps)
        for t in trials
        if objective.metric in t.best and objective.metric in t.latest and t.steps
    ]
    if not found:
        return ""
    low, last = fmean(best[0] for best, _, _ in found), fmean(last for _, last, _ in found)
    share = fmean(best[1] / steps for best, _, steps in found)
    if low <= 0 or last < LATE_LOSS * low:
        return ""
    return f"at its best after {percent(share)} of the training, at the end {last / low:.3g} times that"


def answer(reading: Reading, rows: Sequence[ArmRow], claims: Mapping[str, int] | None = None) -> list[str]:
    """The study's answer, a sentence each. `claims`: verdict -> how many."""
    records, study = reading.records, reading.study
    n_trials = records.n_trials(arm_count(study), len(study.seeds))
    ended = sum(t.state.is_final for t in records.trials.values())
    scored = [row for row in rows if row.mean is not None]
    sentences = ["No trial has completed, so there is no answer yet."]
    if scored:
        sentences = list(
            _values(scored, study.objective)
            if on_different_images(reading)
            else _winner(scored, study.objective, len(study.objectives))
        )
    if reading.state != "completed":
        state = {
            "waiting": "has not begun",
            "running": "is still running",
            "failed": "has ended with failed trials",
        }
        sentences.append(
            f"The study {state.get(reading.state, 'was stopped before its end')}: "
            f"{ended} of {count(n_trials, 'trial')} {'is' if n_trials == 1 else 'are'} done."
        )
    lost = Counter(
        t.state.value for t in records.trials.values() if t.state.is_final and t.state is not State.COMPLETED
    )
    if lost:
        arms = listed([f"{row.label} {row.lost_words}" for row in rows if row.lost])
        words = listed([f"{n} {state}" for state, n in lost.items()])
        sentences.append(f"Of {count(n_trials, 'trial')} {words}: {arms}.")
    elif reading.state == "completed":
        sentences.append(
            "The only trial completed." if n_trials == 1 else f"All {n_trials:,} trials completed."
        )
    if claims and sum(claims.values()):
        words = listed([f"{n} {'is' if n == 1 else 'are'} {verdict}" for verdict, n in claims.items() if n])
        sentences.append(f"Of {count(sum(claims.values()), 'claim')} of the source {words}.")
    return sentences


def _value(row: ArmRow, objective: Objective) -> str:
    low_high = f"95 % interval {number(row.bounds[0])} to {number(row.bounds[1])}, " if row.bounds else ""
    return f"{objective.metric} {number(row.mean)} ({low_high}{count(len(row.by_seed), 'seed')})"


def _values(scored: Sequence[ArmRow], objective: Objective) -> Iterator[str]:
    """Of arms on different images, each by itself."""
    if len(scored) > 1:
        yield DIFFERENT_IMAGES
    for row in scored[:MOST_VALUES]:
        ratio = (
            "" if row.ratio is None else f", {row.ratio:.3g} times what held-out real images of its own reach"
        )
        yield f"{row.label} reaches {_value(row, objective)}{ratio}."


def _winner(scored: Sequence[ArmRow], objective: Objective, n_objectives: int) -> Iterator[str]:
    best = scored[0]
    value, floor = _value(best, objective), ""
    if best.ratio is not None:
        floor = f", {best.ratio:.3g} times the floor of {number(best.floor)} that held-out real images reach"
    if len(scored) == 1:
        yield f"{best.label} reaches {value}{floor}."
        return
    yield f"{best.label} is best with {value}{floor}."
    if n_objectives > 1:
        front = [row.label for row in scored if row.standing.front == 1]
        if len(front) > 1:
            yield f"No arm beats {listed(front)} in all {n_objectives} objectives at once."
    tied = [row for row in scored[1:] if row.comparison and row.comparison.verdict == "tied"]
    if tied:
        first = tied[0]
        more = (
            f"; about {count(first.more_seeds, 'more seed')} would tell {first.label} apart"
            if first.more_seeds
            else ""
        )
        yield f"It cannot be told apart from {listed([row.label for row in tied])} with these seeds{more}."
    following = scored[1]
    c = following.comparison
    if (
        c is not None
        and c.verdict == "apart"
        and c.difference is not None
        and c.low is not None
        and c.high is not None
    ):
        low, high = sorted((abs(c.low), abs(c.high)))
        others = " and than every other arm" if len(scored) > 2 and not _left(scored) else ""
        yield (
            f"It is better than the next, {following.label}, by {number(abs(c.difference))} "
            f"(interval {number(low)} to {number(high)}, allowing for all comparisons){others}."
        )
    unclear = [row.label for row in scored[1:] if row.comparison and row.comparison.verdict == "undecided"]
    if unclear:
        yield f"With fewer than two seeds in common, nothing can be said of {listed(unclear)} against it."


def _left(scored: Sequence[ArmRow]) -> bool:
    return any(row.comparison is None or row.comparison.verdict != "apart" for row in scored[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """Where a row's marks lie on the leaderboard's common axis, in percent of its width; None for what is not there."""

    mean: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The common axis: from `low` to `high`, by magnitude when `log`; where the floor lies on it."""

    low: float
    high: float
    log: bool
    floor: float | None
    rows: tuple[Dots, ...]


def dots(rows: Sequence[ArmRow], *, one_floor: bool = True) -> Axis | None:
    """The values of all arms on one axis; None when there is no value. `one_floor`: the arms have the same one."""
    values = [v for row in rows for v in row.by_seed.values()]
    if not values:
        return None
    floor = next((row.floor for row in rows if row.floor is not None), None) if one_floor else None
    marks = [*values, *([floor] if floor is not None else [])]
    log = min(marks) > 0 and max(marks) / min(marks) > LOG_SPAN
    spread = max(values) - min(values) or abs(values[0]) or 1.0
    # An interval of two seeds may be wide beyond everything: it is cut off at the axis's ends.
    bounds = [] if log else [b for row in rows for b in row.bounds or ()]
    low = min([*marks, *(b for b in bounds if b > min(marks) - 0.25 * spread)])
    high = max([*marks, *(b for b in bounds if b < max(marks) + 0.25 * spread)])
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9

    def place(value: float) -> float:
        along = (
            math.log(max(value, low) / low) / math.log(high / low) if log else (value - low) / (high - low)
        )
        return round(2 + 96 * min(1.0, max(0.0, along)), 2)

    return Axis(
        low=low,
        high=high,
        log=log,
        floor=None if floor is None else place(floor),
        rows=tuple(
            Dots(
                mean=None if row.mean is None else place(row.mean),
                low=place(row.bounds[0]) if row.bounds else None,
                high=place(row.bounds[1]) if row.bounds else None,
                seeds=tuple(place(v) for v in row.by_seed.values()),
            )
            for row in rows
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A trial that did not complete, and why."""

    trial: TrialRecord
    state: str
    reason: str
    detail: str
    place: str


def failures(reading: Reading) -> list[Failure]:
    """Trials that diverged, failed, were pruned or stopped, in the order of their numbers."""
    found = []
    for trial in reading.records.trials.values():
        state = reading.trial_state(trial)
        if state in (State.DIVERGED, State.FAILED, State.PRUNED, State.STOPPED):
            found.append(
                Failure(
                    trial=trial,
                    state=state.value,
                    reason=trial.reason
                    or ("its submit is gone" if state is State.STOPPED else "no reason recorded"),
                    detail=reading.details.get(trial.key, ""),
                    place=str(reading.files.trial(trial.folder)),
                )
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What an arm's trials took."""

    label: str
    trials: int
    attempts: int
    run_s: float
    images_per_s: float | None


def uses(reading: Reading) -> list[Use]:
    """Resources arm by arm, the best first."""
    rows = []
    for s in reading.standings:
        rates = [t.latest["perf/images_per_s"] for t in s.arm.trials if "perf/images_per_s" in t.latest]
        rows.append(
            Use(
                label=s.arm.label,
                trials=sum(t.attempts > 0 for t in s.arm.trials),
                attempts=sum(t.attempts for t in s.arm.trials),
                run_s=sum(t.run_s for t in s.arm.trials),
                images_per_s=fmean(rates) if rates else None,
            )
        )
    return rows
