"""The files a study leaves for people: plots, the sheet of samples, the table of arms."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.home import StudyFiles
from orchestrator.journal import TrialReported, read
from orchestrator.leaderboard import Standing
from orchestrator.records import TrialRecord
from orchestrator.study import Objective
from trials.plots import (
    Curve,
    Seeds,
    dots,
    filmstrip,
    metric_curves,
    picture_sheet,
    plot_accuracy,
    plot_classification,
    plot_evolution,
    plot_losses,
    plot_scores,
)

MAX_PANELS = 12


def curves(files: StudyFiles, trials: Iterable[TrialRecord]) -> dict[str, dict[str, Curve]]:
    """Every metric's curve of the trials, from the journal: key -> metric -> (steps, values)."""
    of = {key: trial.key for trial in trials for key in trial.keys}
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {key: {} for key in of.values()}
    for event, _ in read(files.journal):
        if isinstance(event, TrialReported) and event.key in of:
            for step, metrics in event.rows:
                for name, value in metrics.items():
                    steps, values = found[of[event.key]].setdefault(name, ([], []))
                    steps.append(step)
                    values.append(value)
    return {key: dict(metrics) for key, metrics in found.items()}


def write_study_plots(files: StudyFiles, standings: list[Standing], objective: Objective) -> dict[str, Path]:
    """Plots of the best arms side by side, and of the best arm alone: name -> file.

    losses, scores, accuracy, classification, evolution, samples, filmstrip: the best MAX_PANELS arms, with bands over
    their seeds; objective and ranking: the objective's curve and every seed's value. best_losses, best_accuracy,
    best_samples: the winner.
    """
    shown = [s for s in standings if any(t.step for t in s.arm.trials)][:MAX_PANELS]
    if not shown:
        return {}
    found = curves(files, [t for s in shown for t in s.arm.trials])
    panels: dict[str, Seeds] = {
        s.arm.label: [found[t.key] for t in s.arm.trials if found[t.key]] for s in shown
    }
    out = files.pictures
    written = {
        "losses": plot_losses(out / "losses.png", panels),
        "scores": plot_scores(out / "scores.png", panels),
        "accuracy": plot_accuracy(out / "accuracy.png", panels),
        "classification": plot_classification(out / "classification.png", panels),
        "evolution": plot_evolution(out / "evolution.png", panels),
    }
    floor_of = f"{objective.metric}_floor"
    floors = {f"{s.finals[floor_of]:.6g}": s.finals[floor_of] for s in shown if floor_of in s.finals}
    floor = next(iter(floors.values())) if len(floors) == 1 else None  # arms may have images of their own
    if any(objective.metric in seed for seeds in panels.values() for seed in seeds):
        written["objective"] = metric_curves(out / "objective.png", objective.metric, panels, floor)
    if values := {s.arm.label: list(s.by_seed.values()) for s in shown if s.by_seed}:
        written["ranking"] = dots(out / "ranking.png", objective.metric, values, floor, mode=objective.mode)
    trials = {s.arm.label: s.best_trial or s.arm.trials[0] for s in shown}
    grids = {
        label: files.trial(trial.folder) / picture
        for label, trial in trials.items()
        if (picture := trial.picture_at(objective) or trial.picture)
    }
    if grids:
        written["samples"] = picture_sheet(out / "samples.png", grids)
        rows = {
            label: {
                step: files.trial(trial.folder) / path
                for step, path in trial.pictures.get("samples/fixed", {}).items()
            }
            for label, trial in trials.items()
        }
        written["filmstrip"] = filmstrip(
            out / "filmstrip.png", {label: steps for label, steps in rows.items() if steps}
        )
    best = shown[0]
    if best.best_trial is not None:
        alone = {best.arm.label: panels[best.arm.label]}
        written["best_losses"] = plot_losses(out / "best_losses.png", alone)
        written["best_accuracy"] = plot_accuracy(out / "best_accuracy.png", alone)
        if best.arm.label in grids:
            written["best_samples"] = grids[best.arm.label]
    return written


def write_table(path: Path, standings: list[Standing]) -> Path:
    """The leaderboard as CSV: one row an arm."""
    searched = list(standings[0].values) if standings else []
    finals = sorted({name for s in standings for name in s.finals})
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", *searched, "mean", "sd", "completed", "seeds", "losses", *finals])
        for rank, s in enumerate(standings, 1):
            losses = " ".join(f"{state} {n}" for state, n in s.losses.items())
            row = [rank, *s.values.values(), s.mean, s.sd, s.completed, s.seeds, losses]
            table.writerow([*row, *(s.finals.get(name) for name in finals)])
    os.replace(temporary, path)
    return path
