"""Loss and accuracy plots with matplotlib's object interface: no global state, any thread.

A curve is (steps, values); several curves of one name are seeds of one arm and drawn as mean and range.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

Curve = tuple[Sequence[int], Sequence[float]]
Seeds = Sequence[Mapping[str, Curve]]
"""For each seed, metric name -> curve."""

LOSSES = {
    "train/g_loss": ("generator loss", "#d1495b"),
    "train/d_loss_mean": ("discriminator loss", "#00798c"),
}
ACCURACY = {
    "train/d_acc": ("discriminator accuracy", "#30638e"),
    "train/real_score": ("mean D(x)", "#2e933c"),
    "train/fake_score": ("mean D(G(z))", "#edae49"),
}
REFERENCES = {"losses": (math.log(2), "ln 2"), "accuracy": (0.5, "0.5")}


def plot_losses(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Generator and discriminator loss against steps, one panel an arm."""
    return _panels(path, arms, LOSSES, REFERENCES["losses"], "loss", None)


def plot_accuracy(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Discriminator accuracy and mean scores against steps, one panel an arm."""
    return _panels(path, arms, ACCURACY, REFERENCES["accuracy"], "accuracy, score", (-0.02, 1.02))


def _panels(
    path: Path,
    arms: Mapping[str, Seeds],
    metrics: Mapping[str, tuple[str, str]],
    reference: tuple[float, str],
    y_label: str,
    y_limits: tuple[float, float] | None,
) -> Path:
    columns = _columns(len(arms))
    rows = math.ceil(len(arms) / columns)
    figure = Figure(figsize=(1.2 + 3.9 * columns, 0.9 + 2.5 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    highest = 0.0
    for axes, (name, seeds) in zip(grid.flat, arms.items(), strict=False):
        for metric, (label, colour) in metrics.items():
            highest = max(
                highest, _band(axes, [seed[metric] for seed in seeds if metric in seed], label, colour)
            )
        axes.axhline(reference[0], color="#888888", linewidth=0.8, linestyle=":", label=reference[1])
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    for axes in grid.flat[max(0, len(arms) - columns) : len(arms)]:
        axes.set_xlabel("step")
        axes.xaxis.set_tick_params(labelbottom=True)
    grid[0, 0].set_ylim(*(y_limits or (0, 1.05 * highest or 1)))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    n_seeds = max(len(seeds) for seeds in arms.values())
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    if n_seeds > 1:
        figure.supxlabel(f"lines: mean of up to {n_seeds} seeds; bands: lowest to highest seed", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path


def _columns(n: int) -> int:
    return 2 if n == 4 else min(3, n)


def _band(axes: Axes, curves: Sequence[Curve], label: str, colour: str) -> float:
    """Draw mean and range over the seeds' common steps; returns the 99th percentile of what was drawn."""
    if not curves:
        return 0.0
    common = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
    if not common:
        return 0.0
    values = np.array([[dict(zip(steps, ys, strict=True))[s] for s in common] for steps, ys in curves])
    mean = values.mean(axis=0)
    axes.plot(common, mean, color=colour, linewidth=1.2, label=label)
    if len(curves) > 1:
        axes.fill_between(
            common, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )
    return float(np.percentile(mean, 99))


def picture_sheet(path: Path, pictures: Mapping[str, Path], *, side: int = 320) -> Path:
    """Sample grids of several arms side by side with their labels."""
    columns = _columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    caption = 22
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + caption + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for i, (label, picture) in enumerate(pictures.items()):
        left, top = (i % columns) * (side + 8) + 8, (i // columns) * (side + caption + 8) + 8
        draw.text((left, top), label, fill="black", font=font)
        with Image.open(picture) as image:
            # Grids that are not square keep their shape.
            sheet.paste(
                ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS), (left, top + caption)
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    os.replace(temporary, path)
    return path
