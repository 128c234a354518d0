"""What each way of pruning would have saved, and cost in quality, on a real study that ran without any.

    gan-sweep submit studies/mnist5k_search.yaml --set name=unpruned --set prune=null
    python benchmarks/pruning.py unpruned > benchmarks/pruning.md

Every trial of that study ran to its end, and has evaluations at the rungs. As a pause changes nothing that a trial
computes, what a method would have done is replayed from the recorded values, by what a sweep uses: for the whole
study, and, as one study says little, for many drawn studies of some of its arms with its seeds in random order.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from _common import table, where

from orchestrator import results
from orchestrator._fields import Objective, Prune
from orchestrator.home import StudyFiles
from orchestrator.records import Records
from orchestrator.status import load_definition, load_records
from orchestrator.testing import simulate_pruning
from trials.reports import State

METHODS: Mapping[str, Mapping[str, object]] = {
    "halving, keep 1/2": {"method": "halving"},
    "halving, keep 1/4": {"method": "halving", "keep": 0.25},
    "halving, keep 1/2, first seed only": {"method": "halving", "seeds": 1},
    "asha, keep 1/2": {"method": "asha"},
    "hyperband, keep 1/2": {"method": "hyperband"},
    "median": {"method": "median"},
    "paired": {"method": "paired"},
}
DRAWN, ARMS = 300, 8
Values = Mapping[tuple[int, int, int], float | None]
"""Arm, seed, step -> the objective there; None for a seed that was lost before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """`taken`: share of all steps. `regret`: how much worse the chosen arm ends than the best one."""

    taken: float
    chosen: int
    regret: float
    kept: bool


def recorded(files: StudyFiles, records: Records, objective: Objective, steps: Sequence[int]) -> Values:
    """The best value so far at each of the steps."""
    curves = results.curves(files, records.trials.values())
    found: dict[tuple[int, int, int], float | None] = {}
    for arm in records.arms:
        for trial in arm.trials:
            at, values = curves[trial.key].get(objective.metric, ([], []))
            for step in steps:
                seen = [value for s, value in zip(at, values, strict=True) if s <= step]
                lost = trial.state is not State.COMPLETED and trial.step < step
                best = min if objective.mode == "min" else max
                found[arm.arm, trial.seed, step] = None if lost or not seen else best(seen)
    return found


def replay(
    values: Values,
    objective: Objective,
    prune: Prune,
    arms: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    draw: int,
) -> Replayed:
    """What `prune` does to a study of some of the arms, with its seeds in this order."""
    sign = 1 if objective.mode == "min" else -1
    ends = {}
    for i, arm in enumerate(arms):
        last = [value for seed in seeds if (value := values[arm, seed, steps]) is not None]
        if len(last) == len(seeds):
            ends[i] = sign * fmean(last)
    records = simulate_pruning(
        prune, objective, len(arms), len(seeds), lambda arm, seed, step: values[arms[arm], seeds[seed], step],
        steps=steps, order=draw,
    )  # fmt: skip
    left = [arm.arm for arm in records.arms if all(t.state is State.COMPLETED for t in arm.trials)]
    best, chosen = min(ends, key=ends.__getitem__), min(left, key=ends.__getitem__)
    return Replayed(
        taken=sum(t.step for t in records.trials.values()) / (len(records.trials) * steps),
        chosen=arms[chosen],
        regret=ends[chosen] - ends[best],
        kept=best in left,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--rungs", default="500,1000", help="steps, at which the study has evaluations")
    options = parser.parse_args()
    files = StudyFiles.of(options.study)
    study, records = load_definition(files), load_records(files)
    objective, seeds = study.objective, study.seeds
    rungs, steps = (
        [int(step) for step in options.rungs.split(",")],
        max(t.steps for t in records.trials.values()),
    )
    values = recorded(files, records, objective, (*rungs, steps))
    draws, every = random.Random(0), range(len(records.arms))
    some = min(ARMS, len(every))
    drawn = [
        (draws.sample(every, some), draws.sample(seeds, len(seeds)), draws.randrange(10**6))
        for _ in range(DRAWN)
    ]
    rows = []
    for name, settings in METHODS.items():
        prune = Prune.model_validate({"rungs": rungs, **settings})
        one = replay(values, objective, prune, every, seeds, steps, 0)
        many = [replay(values, objective, prune, arms, order, steps, draw) for arms, order, draw in drawn]
        rows.append([
            name, f"{one.taken:.0%}", records.arms[one.chosen].label, f"{one.regret:.2f}",
            f"{fmean(m.taken for m in many):.0%}", f"{fmean(m.regret for m in many):.2f}",
            f"{max(m.regret for m in many):.2f}", f"{fmean(m.kept for m in many):.0%}",
        ])  # fmt: skip
    print(f"# Pruning, replayed on a study of {len(every)} arms and {len(seeds)} seeds\n")
    print(f"{where()}\n")
    print(
        f"Rungs at {', '.join(map(str, rungs))} of {steps:,} steps, objective {objective.metric} ({objective.mode})."
    )
    print(f"The last four columns are over {DRAWN} drawn studies of {some} of the arms.\n")
    head = [
        "method",
        "steps taken",
        "chosen arm",
        "regret",
        "steps taken",
        "mean regret",
        "largest",
        "best arm kept",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
