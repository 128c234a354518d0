"""The pictures of a study in a page: training arm by arm, samples of every arm, the best one in detail."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.embed import Embedder
from orchestrator.findings import ArmRow, is_ranked
from orchestrator.reading import Reading, Series
from orchestrator.records import TrialRecord
from trials.pictures import evenly
from trials.reports import State

MOST_STRIPS, MOST_COLUMNS = 12, 8
MOST_SHEETS = 12
STRIP_IMAGES = 9
"""Of each grid in the filmstrip: so few that they can be seen."""
CELL, SHEET, DETAIL = 288, 530, 760
"""Largest sides of a filmstrip's pictures, of sheets of samples and of the best arm's, in pixels."""
PIXELS = ("samples/", "animation/")
"""Pictures without letters: small ones are shown with larger pixels, not blurred."""

GALLERY: Mapping[str, str] = {
    "samples/curated": "The discriminator's favourites of many",
    "classes/grid": "Ten images of each class",
    "classes/histogram": "Classes of generated and of real images",
    "latent/slerp": "Paths between two latents, on the sphere",
    "latent/lerp": "The same paths, straight",
    "latent/axis": "One latent coordinate a row",
    "walk/smooth": "A walk between like images",
    "walk/rough": "A walk between unlike images",
    "neighbours/pairs": "Generated images and their nearest training images",
    "animation/training": "The training, from fixed latents",
    "animation/latent": "A walk through the latents",
    "animation/classes": "From class to class",
}


def _shown_trial(row: ArmRow) -> TrialRecord | None:
    """The arm's best trial, or the one that came farthest of those with pictures."""
    if row.standing.best_trial is not None:
        return row.standing.best_trial
    drawn = [trial for trial in row.standing.arm.trials if trial.picture]
    return max(drawn, key=lambda trial: trial.step, default=None)


def filmstrip(reading: Reading, rows: Sequence[ArmRow], embedder: Embedder) -> dict[str, Any] | None:
    """Arms down, training across: the same fixed latents in every picture."""
    trials = [
        (row, _shown_trial(row))
        for row in rows
        if any(t.state is not State.WAITING for t in row.standing.arm.trials)
    ]
    shown = trials[:MOST_STRIPS]
    drawn = [trial for _, trial in shown if trial is not None and trial.picture]
    if not drawn:
        return None
    longest = max(drawn, key=lambda t: len(t.pictures["samples/fixed"]))
    steps = sorted(longest.pictures["samples/fixed"])
    chosen = evenly(steps, MOST_COLUMNS)
    lengths = {trial.steps for trial in drawn}
    shares = [step / longest.steps for step in chosen]
    heads = [f"{step:,}" for step in chosen] if len(lengths) == 1 else [f"{share:.0%}" for share in shares]
    return {
        "heads": heads,
        "unit": "step" if len(lengths) == 1 else "share of the training",
        "left_out": len(trials) - len(shown),
        "rows": [
            {
                "row": row,
                "trial": trial,
                "absent": next(iter(row.standing.losses), "not drawn yet" if trial is None else "none"),
                "cells": [
                    embedder.picture(reading.picture(trial, step=step), CELL, STRIP_IMAGES)
                    if trial is not None and (step := _nearest(trial, share)) is not None
                    else ""
                    for share in shares
                ],
            }
            for row, trial in shown
        ],
    }


def _nearest(trial: TrialRecord, share: float) -> int | None:
    """The trial's picture at a share of its training; None when it has none within half a tenth."""
    steps = trial.pictures.get("samples/fixed")
    if not steps:
        return None
    best = min(steps, key=lambda step: abs(step - share * trial.steps))
    return best if abs(best - share * trial.steps) <= max(0.05 * trial.steps, 1) else None


def sheets(reading: Reading, rows: Sequence[ArmRow], embedder: Embedder) -> list[dict[str, Any]]:
    """One grid an arm, the best first, of the evaluation that its value is from."""
    found: list[dict[str, Any]] = []
    for row in rows:
        trial = _shown_trial(row)
        shown = None if trial is None else trial.picture_at(reading.study.objective)
        if trial is None or shown is None or len(found) == MOST_SHEETS:
            continue
        step = next(step for step, path in trial.pictures["samples/fixed"].items() if path == shown)
        picture = embedder.picture(reading.sample_grid(trial), SHEET)
        found.append(
            {"row": row, "trial": trial, "step": step, "value": _value(reading, trial), "picture": picture}
        )
    return [sheet for sheet in found if sheet["picture"]]


def _value(reading: Reading, trial: TrialRecord) -> float | None:
    return trial.value(reading.study.objective) if trial.state is State.COMPLETED else None


def gallery(reading: Reading, rows: Sequence[ArmRow], embedder: Embedder) -> dict[str, Any] | None:
    """The last pictures of the best arm's best trial."""
    trial = _shown_trial(rows[0]) if rows else None
    if trial is None:
        return None
    pictures = [
        {
            "key": key,
            "title": title,
            "picture": embedder.picture(reading.picture(trial, key), DETAIL),
            "pixels": key.startswith(PIXELS),
        }
        for key, title in GALLERY.items()
        if key in trial.pictures
    ]
    pictures = [entry for entry in pictures if entry["picture"]]
    return {"trial": trial, "row": rows[0], "pictures": pictures} if pictures else None


def write_pictures(reading: Reading, rows: Sequence[ArmRow], directory: Path) -> list[tuple[str, str]]:
    """PNG and GIF files for the Markdown, in `directory`/pictures: title and relative path."""
    from trials.plots import filmstrip as draw_filmstrip
    from trials.plots import picture_sheet, plot_accuracy, plot_losses

    place = directory / "pictures"
    written: dict[str, Path] = {}
    ranked = is_ranked(rows)
    shown = [(row, trial) for row in rows[:MOST_SHEETS] if (trial := _shown_trial(row)) is not None]
    if grids := {
        row.label: path for row, trial in shown if (path := _whole(reading.sample_grid(trial))) is not None
    }:
        written[f"Samples{', the best arm first' if ranked else ''}"] = picture_sheet(
            place / "samples.png", grids
        )
    strips = {row.label: _files(reading, trial) for row, trial in shown}
    if any(strips.values()):
        written["Training, arm by arm"] = draw_filmstrip(place / "filmstrip.png", strips)
    panels = {row.label: seeds for row in rows[:MOST_SHEETS] if (seeds := _seeds(reading, row))}
    if panels:
        written["Losses"] = plot_losses(place / "losses.png", panels)
        written["Accuracy and scores"] = plot_accuracy(place / "accuracy.png", panels)
    for key, title in GALLERY.items() if shown else ():
        if (path := reading.picture(shown[0][1], key)) is not None:
            place.mkdir(parents=True, exist_ok=True)
            copy = place / f"best_{key.replace('/', '_')}{path.suffix}"
            whose = "Best arm" if ranked else shown[0][0].label
            written[f"{whose}: {title[0].lower()}{title[1:]}"] = Path(shutil.copyfile(path, copy))
    return [(title, f"{place.name}/{path.name}") for title, path in written.items()]


def _files(reading: Reading, trial: TrialRecord) -> dict[int, Path]:
    steps = trial.pictures.get("samples/fixed", {})
    return {step: path for step in steps if (path := _whole(reading.picture(trial, step=step))) is not None}


def _whole(path: Path | None) -> Path | None:
    """The path of a picture that can be read, else None."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return path


def _seeds(reading: Reading, row: ArmRow) -> list[dict[str, Series]]:
    found = [reading.curves.get(trial.key, {}) for trial in row.standing.arm.trials]
    return [curves for curves in found if curves]
