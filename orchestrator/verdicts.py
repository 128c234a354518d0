"""Whether a study's results bear out its claims: pure.

A claim's check (claims.py) is evaluated on the means over the seeds, and again on bootstrap resamples of the seeds:
as many seeds drawn with replacement, the same ones for every arm, as arms run the same seeds. Up to 5 seeds every
possible draw is taken, above that 2,000. The claim is

- supported when the check holds on the means and in at least 95 % of the resamples,
- contradicted when it fails on the means and holds in at most 5 % of them,
- undecided otherwise, and whenever something that the check needs is not there; the reason says what.

Few seeds support much by chance. Of 20,000 claims that one arm is above another, about arms that were equal, 50 % came
out supported with 1 seed, 25 % with 2, 20 % with 3, 11 % with 5 and 8 % with 10, and as many contradicted. So a verdict
comes with the number of seeds in which the check holds. How sure a difference between arms is says stats.py.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models import Value
from orchestrator._fields import Claim
from orchestrator.arms import arm_count, grid, show
from orchestrator.claims import (
    FUNCTIONS,
    Best,
    Calculation,
    Comparison,
    Condition,
    Logic,
    Measure,
    Number,
    Quantity,
    parse,
)
from orchestrator.records import ArmRecord, Records, TrialRecord
from orchestrator.study import StudySpec, axes
from trials.reports import FINAL_SHARE, State
from trials.series import band_fraction, sd_of_means, smooth, time_to_plateau

Curve = tuple[Sequence[int], Sequence[float]]
"""(steps, values) of one metric of one trial."""

Word = Literal["supported", "contradicted", "undecided"]
Numbers = NDArray[np.float64]

HARMLESS = frozenset({"name", "description", "source", "resources", "execution", "claims"})
"""Keys of a study that --set may change without another length, other arms or other figures."""

SURE = 20
"""One part in SURE of the resamples may say otherwise."""

MOST_ENUMERATED = 5
RESAMPLES = 2000

SMOOTHED_SHARE = 50
"""A series is smoothed over one part in SMOOTHED_SHARE of its values, and at least one value."""

PLATEAU_SHARE = 20
"""The same for the time to its plateau, which one swing that is not smoothed away would put at the end."""

_LEVEL_DIGITS = 4
_SHARE_DOUBT = 1e-9
"""Times as 1 - 0.1 and 0.9 are the same."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One number that a check measures, as `final(d_acc, lr=2e-05)`: its value for every seed that has one, and
    the mean over the seeds; None unless all have one."""

    quantity: str
    mean: float | None
    seeds: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the results say of a claim. `reason` is one line in words.

    `holds`: the number of the study's `seeds` in which the check holds by that seed alone; None when it could not
    be evaluated. A claim that is undecided as it is meant for another budget has its numbers and `holds` all the same.
    """

    claim: str
    says: str
    check: str
    verdict: Word
    reason: str
    numbers: tuple[Measured, ...] = ()
    holds: int | None = None
    seeds: int


def judge(
    study: StudySpec,
    records: Records,
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    budget: str | None = None,
) -> list[Verdict]:
    """The verdicts on the study's claims, in their order.

    `curves`: trial's key -> metric as it is recorded, as train/d_acc or eval/fd -> curve; steps rise, values are
    finite. `budget`: the one that was run; the one that is recorded when None (budget_of).

    Raises CheckError for a check that the study's own loading would have refused.
    """
    results = _Results(study, records, curves)
    return [_judged(claim, results, budget or budget_of(records)) for claim in study.claims]


def budget_of(records: Records) -> str:
    """The budget that a study was submitted with, or "changed" when --set changed what its results are made of."""
    keys = {change.partition("=")[0].partition(".")[0] for change in overrides(records.provenance)}
    return "changed" if keys - HARMLESS else records.provenance.get("gan_sweep.budget", "full")


def overrides(facts: Mapping[str, str]) -> list[str]:
    """The --set KEY=VALUE of a submit, by what it recorded."""
    found = json.loads(facts.get("gan_sweep.set", "[]"))
    return [str(change) for change in found]


def written(quantity: Quantity) -> str:
    """A quantity as it is written in a check.

    >>> written(Measure("final", ("d_acc",), (), (("lr", 2e-5),)))
    'final(d_acc, lr=2e-05)'
    """
    match quantity:
        case Number(value):
            return f"{value:.{_LEVEL_DIGITS}g}"
        case Best(axis):
            return f"best({axis})"
        case Measure(name, metrics, numbers, arms):
            function = FUNCTIONS[name]
            shown = list(numbers)
            required = len(function.numbers) - len(function.defaults)
            if tuple(shown[required:]) == function.defaults:
                del shown[required:]
            words = [metric.replace("/", ".") for metric in metrics]
            words += [f"{number:.{_LEVEL_DIGITS}g}" for number in shown]
            words += [f"{axis}={_quoted(value)}" for axis, value in arms]
            return f"{name}({', '.join(words)})"
        case Calculation(name, parts):
            words = [written(part) for part in parts]
            if name in ("abs", "min", "max"):
                return f"{name}({', '.join(words)})"
            return f"(-{words[0]})" if len(words) == 1 else f"({words[0]} {name} {words[1]})"


class _Unknown(Exception):
    """Why a quantity has no value."""


@dataclass(slots=True)
class _Results:
    """A study's results, and what was looked up in them already."""

    study: StudySpec
    records: Records
    curves: Mapping[str, Mapping[str, Curve]]
    planned: list[dict[str, Value]] = field(init=False)
    """The arms of a grid."""
    draws: Numbers = field(init=False)
    """(R, seeds): how often each seed is in a sample: all of them once, then each alone, then the resamples."""
    known: dict[Measure, tuple[dict[int, float], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planned = grid(self.study) if self.study.search.sampler == "grid" else []
        n = len(self.study.seeds)
        self.draws = np.vstack([np.ones((1, n)), np.eye(n), _resamples(n)])

    def mean(self, per_seed: Numbers) -> Numbers:
        """Means of (..., seeds) over each of the samples of seeds, (..., R)."""
        means: Numbers = per_seed @ self.draws.T / self.draws.sum(axis=1)
        return means

    def selected(self, chosen: Sequence[tuple[str, Value]]) -> list[ArmRecord]:
        """The arms that have all of the `chosen` values, those that share their trials once.

        Raises _Unknown when some that belong there are missing.
        """

        def fits(values: Mapping[str, Value]) -> bool:
            return all(axis in values and _same(values[axis], value) for axis, value in chosen)

        found = [arm for arm in self.records.arms if fits(arm.values)]
        n_planned, n_proposed = arm_count(self.study), len(self.records.arms)
        if not self.planned and n_proposed < n_planned:
            raise _Unknown(f"the search has tried {n_proposed} of {n_planned} arms")
        missing = sum(fits(values) for values in self.planned) - len(found)
        which = " with " + ", ".join(f"{axis}={show(value)}" for axis, value in chosen) if chosen else ""
        if missing > 0:
            raise _Unknown(f"{missing} of {missing + len(found)} arms{which} {_have(missing)} not begun")
        if not found:
            raise _Unknown(f"no arm{which} has been tried")
        distinct: dict[str, ArmRecord] = {}
        for arm in found:
            distinct.setdefault(arm.trials[0].key, arm)
        return list(distinct.values())

    def measured(self, measure: Measure) -> tuple[dict[int, float], str]:
        """The value for each seed for which there is one, and why not all have one."""
        if measure not in self.known:
            self.known[measure] = self._measured(measure)
        return self.known[measure]

    def _measured(self, measure: Measure) -> tuple[dict[int, float], str]:
        try:
            arms = self.selected(measure.arms)
        except _Unknown as unknown:
            return {}, str(unknown)
        wanted = (State.COMPLETED, State.DIVERGED) if measure.function == "diverged" else (State.COMPLETED,)
        problem = next(filter(None, (_lacking(arm, self.study.seeds, wanted) for arm in arms)), "")
        values = dict[int, float]()
        for seed in self.study.seeds:
            trials = [trial for arm in arms for trial in arm.trials if trial.seed == seed]
            if len(trials) < len(arms) or any(trial.state not in wanted for trial in trials):
                continue
            try:
                of_trials = [_value(measure, trial, self.curves.get(trial.key, {})) for trial in trials]
            except _Unknown as unknown:
                problem = problem or f"{unknown} (seed {seed})"
            else:
                values[seed] = float(np.mean(of_trials))
        return values, problem

    def best(self, axis: str) -> Numbers:
        """The value of `axis` in the best arm of each sample of seeds, (R,).

        As on the leaderboard, an arm that lost a seed is behind every arm that did not.
        """
        objective = self.study.objective
        arms = self.selected(())
        for arm in arms:
            if problem := _lacking(arm, self.study.seeds, [state for state in State if state.is_final]):
                raise _Unknown(problem)
        rows, values = [], []
        for arm in sorted(arms, key=lambda arm: arm.arm):
            by_seed = {t.seed: t.value(objective) for t in arm.trials if t.state is State.COMPLETED}
            row = [value for seed in self.study.seeds if (value := by_seed.get(seed)) is not None]
            if len(row) == len(self.study.seeds):
                rows.append(row)
                values.append(float(arm.values.get(axis, np.nan)))
        if not rows:
            raise _Unknown(f"no arm has {objective.metric} of every seed")
        means = self.mean(np.array(rows))
        winners = (means if objective.mode == "min" else -means).argmin(axis=0)
        chosen: Numbers = np.array(values)[winners]
        if np.isnan(chosen).any():
            raise _Unknown(f"the best arm, or one that may be, has no {axis}")
        return chosen

    def quantity(self, quantity: Quantity) -> Numbers:
        """The quantity's value in every sample of seeds, (R,)."""
        match quantity:
            case Number(value):
                return np.full(len(self.draws), value)
            case Best(axis):
                return self.best(axis)
            case Measure():
                values, problem = self.measured(quantity)
                if problem:
                    raise _Unknown(problem)
                return self.mean(np.array([values[seed] for seed in self.study.seeds]))
            case Calculation(name, parts):
                result = _calculated(name, [self.quantity(part) for part in parts])
                if not np.isfinite(result).all():
                    raise _Unknown(f"{written(quantity)} divides by zero or is too large")
                return result

    def condition(self, condition: Condition) -> NDArray[np.bool_]:
        """Whether it holds in every sample of seeds, (R,)."""
        match condition:
            case Comparison(parts, signs):
                numbers = [self.quantity(part) for part in parts]
                pairs = zip(numbers, signs, numbers[1:], strict=False)
                return reduce(np.logical_and, [_compared(a, sign, b) for a, sign, b in pairs])
            case Logic("not", parts):
                return ~self.condition(parts[0])
            case Logic(operator, parts):
                held = [self.condition(part) for part in parts]
                return reduce(np.logical_and if operator == "and" else np.logical_or, held)

    def number(self, quantity: Measure | Best) -> Measured:
        """The quantity for people."""
        try:
            samples = self.quantity(quantity)
        except _Unknown:
            seeds = self.measured(quantity)[0] if isinstance(quantity, Measure) else {}
            return Measured(written(quantity), None, seeds)
        n = len(self.study.seeds)
        alone = zip(self.study.seeds, samples[1 : 1 + n].tolist(), strict=True)
        return Measured(written(quantity), float(samples[0]), dict(alone))


def _judged(claim: Claim, results: _Results, budget: str) -> Verdict:
    n = len(results.study.seeds)
    verdict: Word = "undecided"
    if not claim.check:
        reason = "no check is written"
        return Verdict(claim=claim.id, says=claim.says, check="", verdict=verdict, reason=reason, seeds=n)
    condition = parse(claim.check, axes(results.study))
    holds: int | None = None
    try:
        held = results.condition(condition)
    except _Unknown as unknown:
        reason = str(unknown)
    else:
        holds = int(held[1 : 1 + n].sum())
        verdict, reason = _decided(bool(held[0]), holds, n, held[1 + n :])
    if budget not in claim.holds_for:
        verdict, reason = (
            "undecided",
            f"is meant for budget {' and '.join(claim.holds_for)}; this is {budget}",
        )
    return Verdict(
        claim=claim.id,
        says=claim.says,
        check=claim.check,
        verdict=verdict,
        reason=reason,
        numbers=tuple(results.number(quantity) for quantity in dict.fromkeys(_measures(condition))),
        holds=holds,
        seeds=n,
    )


def _decided(on_means: bool, holds: int, n: int, resampled: NDArray[np.bool_]) -> tuple[Word, str]:
    n_held, n_all = int(resampled.sum()), len(resampled)
    if n == 1:
        return ("supported", "holds; one seed") if on_means else ("contradicted", "does not hold; one seed")
    on_seeds = f"in {holds} of {n} seeds"
    if on_means and SURE * (n_all - n_held) <= n_all:
        return "supported", f"holds on the mean and {on_seeds}"
    if not on_means and SURE * n_held <= n_all:
        return "contradicted", f"does not hold on the mean, and {on_seeds}"
    share = f"and in {n_held / n_all:.0%} of resamples of the seeds".replace("%", " %")
    return "undecided", f"{'holds' if on_means else 'does not hold'} on the mean; holds {on_seeds} {share}"


def _resamples(n: int) -> Numbers:
    """(R, n): how often each of n seeds is in each resample."""
    if n <= MOST_ENUMERATED:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        drawn = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    return np.stack([(drawn == seed).sum(axis=1) for seed in range(n)], axis=1).astype(np.float64)


def _measures(condition: Condition) -> Iterator[Measure | Best]:
    """What a check measures, in the order in which it is written."""
    pending: list[Condition | Quantity] = [condition]
    while pending:
        match pending.pop():
            case Measure() | Best() as found:
                yield found
            case Comparison(parts, _) | Logic(_, parts) | Calculation(_, parts):
                pending.extend(reversed(parts))


def _lacking(arm: ArmRecord, seeds: Sequence[int], wanted: Sequence[State]) -> str:
    """In words, that trials of the arm are in other states than those `wanted`; nothing when none is."""
    others = [trial.state for trial in arm.trials if trial.seed in seeds and trial.state not in wanted]
    if not others:
        absent = len(set(seeds) - {trial.seed for trial in arm.trials})
        return f"{arm.label}: {absent} of {len(seeds)} seeds {_have(absent)} not begun" if absent else ""
    counts = ", ".join(f"{others.count(state)} {state}" for state in dict.fromkeys(others))
    return f"{arm.label}: of {len(arm.trials)} trials {counts}"


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _same(a: Value, b: Value) -> bool:
    """Whether both are one value of an axis: to Python true equals 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _quoted(value: Value) -> str:
    shown = show(value)
    return shown if not isinstance(value, str) or value.isidentifier() else f'"{shown}"'


def _calculated(name: str, parts: Sequence[Numbers]) -> Numbers:
    with np.errstate(all="ignore"):
        match name:
            case "abs":
                return np.abs(parts[0])
            case "-" if len(parts) == 1:
                return -parts[0]
            case "min":
                return reduce(np.minimum, parts)
            case "max":
                return reduce(np.maximum, parts)
        operator = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[name]
        result: Numbers = operator(*parts)
        return result


def _compared(a: Numbers, sign: str, b: Numbers) -> NDArray[np.bool_]:
    operator = {
        "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
    }[sign]  # fmt: skip
    result: NDArray[np.bool_] = operator(a, b)
    return result


@dataclass(frozen=True, slots=True)
class _Series:
    """The values of a metric with their times, as shares of the trial's planned length."""

    metric: str
    steps: NDArray[np.int64]
    values: Numbers
    length: int
    """Steps of the whole training."""

    def between(self, start: float, stop: float = 1.0, least: int = 1) -> tuple[Numbers, Numbers]:
        """(times, values) after `start` and up to `stop`. Raises _Unknown for fewer than `least` values.

        A value of training is the mean since the one before. So when none is written in the span, the next one,
        which covers it, is taken.
        """
        times = self.steps / self.length
        after = times > start + _SHARE_DOUBT if start > 0 else np.ones(len(times), dtype=bool)
        inside = np.flatnonzero(after & (times <= stop + _SHARE_DOUBT))
        if len(inside) == 0 and not self.metric.startswith("eval/"):
            inside = np.flatnonzero(after)[:1]
        if len(inside) < least:
            raise _Unknown(
                f"{self.metric} has {len(inside)} values between {start:.3g} and {stop:.3g} of the training"
                + (f", {least} are needed" if least > 1 else "")
            )
        return times[inside], self.values[inside]

    @property
    def smoothed(self) -> Numbers:
        return smooth(self.values, self.window(SMOOTHED_SHARE))

    def window(self, share: int) -> int:
        """One part in `share` of the values."""
        return max(1, round(len(self.values) / share))


def _series(metric: str, trial: TrialRecord, curves: Mapping[str, Curve]) -> _Series:
    name = metric if metric.startswith("eval/") else f"train/{metric}"
    if name not in curves or len(curves[name][0]) == 0:
        raise _Unknown(f"{metric.replace('/', '.')} was not measured: {trial.label}")
    steps, values = curves[name]
    return _Series(
        metric, np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64), trial.steps
    )


def _value(measure: Measure, trial: TrialRecord, curves: Mapping[str, Curve]) -> float:
    """The value of a function of the language for one trial. Raises _Unknown where it has none."""
    if measure.function == "diverged":
        return float(trial.state is State.DIVERGED)
    series, *others = [_series(metric, trial, curves) for metric in measure.metrics]
    numbers = dict(zip(FUNCTIONS[measure.function].numbers, measure.numbers, strict=True))
    start, stop = numbers.get("start", 0.0), numbers.get("stop", 1.0)
    match measure.function:
        case "mean":
            return float(series.between(start, stop)[1].mean())
        case "first":
            return float(series.between(0.0, numbers["share"])[1].mean())
        case "final":
            return float(series.between(1 - FINAL_SHARE)[1].mean())
        case "last":
            return float(series.values[-1])
        case "lowest":
            return float(series.smoothed.min())
        case "highest":
            return float(series.smoothed.max())
        case "steps_above":
            return float(np.mean(series.smoothed > numbers["level"])) * float(series.steps[-1])
        case "steps_below":
            return float(np.mean(series.smoothed < numbers["level"])) * float(series.steps[-1])
        case "sd":
            return float(series.between(start, stop, least=2)[1].std(ddof=1))
        case "sd100":
            return _sd100(series)
        case "slope":
            return _line(*series.between(start, stop, least=2))[0]
        case "band_fraction":
            return band_fraction(series.between(start)[1], numbers["low"], numbers["high"])
        case "time_to_plateau":
            return _time_to_plateau(series)
        case "corr":
            return _correlation(series, others[0])
    raise AssertionError(measure.function)


def _line(times: Numbers, values: Numbers) -> tuple[float, float]:
    """Slope, and value at time 0, of the straight line of least squares."""
    centred = times - times.mean()
    slope = float(centred @ (values - values.mean()) / (centred @ centred))
    return slope, float(values.mean() - slope * times.mean())


def _sd100(series: _Series) -> float:
    """Sd of the means of 100 steps over the last half, without its straight trend."""
    times, values = series.between(0.5, least=3)
    every = max(1.0, float(np.median(np.diff(series.steps))))
    n_block = max(1, round(100 / every))
    if len(values) < 3 * n_block:  # a line goes through the means of two blocks
        raise _Unknown(f"the last half of {series.metric} has fewer than 3 x 100 steps")
    slope, base = _line(times, values)
    return sd_of_means(values - base - slope * times, n_block, start=0.0)


def _time_to_plateau(series: _Series) -> float:
    """Time from which the smoothed series stays within 2 sd of the mean of the values' last quarter; 1, the end, when
    it does not."""
    step = time_to_plateau(series.steps.tolist(), series.values, series.window(PLATEAU_SHARE))
    return 1.0 if step is None else float(step / series.length)


def _correlation(a: _Series, b: _Series) -> float:
    _, in_a, in_b = np.intersect1d(a.steps, b.steps, return_indices=True)
    x, y = a.values[in_a], b.values[in_b]
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        raise _Unknown(f"{a.metric} and {b.metric} have no correlation: one of them does not change")
    return float(np.corrcoef(x, y)[0, 1])
