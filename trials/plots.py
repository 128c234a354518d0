"""Plots with matplotlib's object interface: no global state, any thread.

A curve is (steps, values); several curves of one name are seeds of one arm and drawn as mean and range.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trials.pictures import cells, evenly

Curve = tuple[Sequence[float], Sequence[float]]
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
SCORES = {name: ACCURACY[name] for name in ("train/real_score", "train/fake_score")}
CLASSIFICATION = {
    "train/d_acc": ACCURACY["train/d_acc"],
    "train/g_fool_rate": ("generated images taken for real", "#d1495b"),
}
REFERENCES = {"losses": (math.log(2), "ln 2"), "accuracy": (0.5, "0.5")}
MANY_EPOCHS = 10
"""From so many epochs on, an evolution plot shows means over an epoch."""
LOG_SPAN = 30
"""Largest over smallest value from which an axis is logarithmic."""
FILMSTRIP_ARMS, FILMSTRIP_STEPS = 24, 10


def plot_losses(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Generator and discriminator loss against steps, one panel an arm."""
    return _panels(path, arms, LOSSES, REFERENCES["losses"], "loss", None)


def plot_accuracy(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Discriminator accuracy and mean scores against steps, one panel an arm."""
    return _panels(path, arms, ACCURACY, REFERENCES["accuracy"], "accuracy, score", (-0.02, 1.02))


def plot_scores(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Mean D(x) and mean D(G(z)) against steps, one panel an arm."""
    return _panels(path, arms, SCORES, REFERENCES["accuracy"], "score", (-0.02, 1.02))


def plot_classification(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Discriminator accuracy and the share of generated images taken for real, against steps, one panel an arm."""
    return _panels(path, arms, CLASSIFICATION, REFERENCES["accuracy"], "share of images", (-0.02, 1.02))


def plot_evolution(path: Path, arms: Mapping[str, Seeds]) -> Path:
    """Generator and discriminator loss against epochs, one panel an arm, each of its own length.

    Means over an epoch where there are MANY_EPOCHS or more. Seeds without train/epoch are left out.
    """
    by_epoch = {
        name: [_by_epoch(seed) for seed in seeds if "train/epoch" in seed] for name, seeds in arms.items()
    }
    return _panels(path, by_epoch, LOSSES, REFERENCES["losses"], "loss", None, x_label="epoch", share_x=False)


def _by_epoch(seed: Mapping[str, Curve]) -> dict[str, Curve]:
    epoch_at = dict(zip(*seed["train/epoch"], strict=True))
    curves: dict[str, Curve] = {}
    for name in LOSSES.keys() & seed.keys():
        points = [(epoch_at[step], y) for step, y in zip(*seed[name], strict=True) if step in epoch_at]
        if points and points[-1][0] >= MANY_EPOCHS:
            gathered: dict[float, list[float]] = {}
            for epoch, y in points:
                gathered.setdefault(math.ceil(epoch), []).append(y)
            points = [(epoch, float(np.mean(ys))) for epoch, ys in gathered.items()]
        curves[name] = ([x for x, _ in points], [y for _, y in points])
    return curves


def _panels(
    path: Path,
    arms: Mapping[str, Seeds],
    metrics: Mapping[str, tuple[str, str]],
    reference: tuple[float, str],
    y_label: str,
    y_limits: tuple[float, float] | None,
    *,
    x_label: str = "step",
    share_x: bool = True,
) -> Path:
    columns = _columns(len(arms))
    rows = max(1, math.ceil(len(arms) / columns))
    figure = _figure(1.2 + 3.9 * columns, 0.9 + 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=True)
    highest, n_seeds = 0.0, 0
    for axes, (name, seeds) in zip(grid.flat, arms.items(), strict=False):
        for metric, (label, colour) in metrics.items():
            curves = [seed[metric] for seed in seeds if metric in seed]
            highest, n_seeds = max(highest, _band(axes, curves, label, colour)), max(n_seeds, len(curves))
        axes.axhline(reference[0], color="#888888", linewidth=0.8, linestyle=":", label=reference[1])
        axes.set_title(_shortened(name, 60), fontsize=9)
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(arms) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    for axes in grid.flat[max(0, len(arms) - columns) : len(arms)]:
        axes.set_xlabel(x_label)
        axes.xaxis.set_tick_params(labelbottom=True)
    grid[0, 0].set_ylim(*(y_limits or (0, 1.05 * highest or 1)))
    _legend(figure, "outside upper center", ncols=2 * columns)
    if n_seeds > 1:
        figure.supxlabel(f"lines: mean of up to {n_seeds} seeds; bands: lowest to highest seed", fontsize=8)
    return _save(figure, path)


def _columns(n: int) -> int:
    return 2 if n == 4 else max(1, min(3, n))


def _band(axes: Axes, curves: Sequence[Curve], label: str, colour: str) -> float:
    """Draw mean and range over the seeds' common steps; returns the 99th percentile of what was drawn."""
    common, values = _common(curves)
    if not common:
        return 0.0
    mean = values.mean(axis=0)
    axes.plot(common, mean, color=colour, linewidth=1.2, label=label)
    if len(curves) > 1:
        axes.fill_between(
            common, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0
        )
    return float(np.percentile(mean, 99))


def _common(curves: Sequence[Curve]) -> tuple[list[float], NDArray[np.float64]]:
    """The steps that all seeds have, and (seeds, steps) values; no steps without curves."""
    common = sorted(set[float].intersection(*(set(steps) for steps, _ in curves))) if curves else []
    at = [dict(zip(steps, ys, strict=True)) for steps, ys in curves]
    return common, np.array([[values[step] for step in common] for values in at], dtype=np.float64)


def metric_curves(path: Path, metric: str, arms: Mapping[str, Seeds], floor: float | None = None) -> Path:
    """One metric against steps, all arms in one panel: mean and range over the seeds, `floor` as a dotted line.

    The axis is logarithmic where positive values span more than LOG_SPAN. Arms without the metric are left out.
    """
    drawn = {
        name: curves for name, seeds in arms.items() if (curves := [s[metric] for s in seeds if metric in s])
    }
    size = 9 if len(drawn) <= 12 else 7
    figure = _figure(8.6, max(3.8, 0.9 + 0.022 * size * len(drawn)))
    axes = figure.subplots()
    values, n_seeds = [] if floor is None else [floor], 0
    for i, (name, curves) in enumerate(drawn.items()):
        common, ys = _common(curves)
        if not common:
            continue
        colour, n_seeds = _colour(i, len(drawn)), max(n_seeds, len(curves))
        mean = ys.mean(axis=0)
        dashes: Literal["-", "--"] = "-" if i < 20 else "--"
        marker = "o" if len(common) <= 30 else ""
        axes.plot(
            common,
            mean,
            dashes,
            color=colour,
            linewidth=1.5,
            marker=marker,
            markersize=3,
            label=_shortened(name),
        )
        if len(curves) > 1:
            axes.fill_between(
                common,
                ys.min(axis=0),
                ys.max(axis=0),
                color=colour,
                alpha=0.13 if len(drawn) <= 8 else 0.04,
                linewidth=0,
            )
        values += [*ys.flat]
    if floor is not None:
        axes.axhline(floor, color="#444444", linewidth=1, linestyle=":", label="floor: real against real")
    if _spans(values):
        _logarithmic(axes, "y")
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    _legend(figure, "outside right upper", size=size)
    if n_seeds > 1:
        figure.supxlabel(f"lines: mean of up to {n_seeds} seeds; bands: lowest to highest seed", fontsize=8)
    return _save(figure, path)


def dots(
    path: Path,
    metric: str,
    values: Mapping[str, Sequence[float]],
    floor: float | None = None,
    *,
    mode: Literal["min", "max"] = "min",
) -> Path:
    """The arms below one another, the best mean first: a dot a seed, a bar at the mean, `floor` as a dotted line."""
    ranked = _ranked(values, mode)
    figure = _figure(7.6, 1.1 + 0.3 * max(2, len(ranked)))
    axes = figure.subplots()
    for row, (_, seeds) in enumerate(ranked):
        axes.plot(
            seeds, [row] * len(seeds), "o", color="#00798c", markersize=5, alpha=0.65, markeredgewidth=0
        )
        axes.plot([np.mean(seeds)], [row], "|", color="#d1495b", markersize=14, markeredgewidth=2)
    if floor is not None:
        axes.axvline(floor, color="#444444", linewidth=1, linestyle=":", label="floor: real against real")
    if _spans([*(value for _, seeds in ranked for value in seeds), *([] if floor is None else [floor])]):
        _logarithmic(axes, "x")
    axes.set_yticks(range(len(ranked)), [_shortened(name) for name, _ in ranked], fontsize=9)
    axes.set_ylim(max(1, len(ranked)) - 0.5, -0.5)
    axes.set_xlabel(
        f"{metric}  (dots: seeds; red bars: means{'; dotted: real against real' if floor is not None else ''})"
    )
    axes.grid(alpha=0.25)
    return _save(figure, path)


def _ranked(
    values: Mapping[str, Sequence[float]], mode: Literal["min", "max"]
) -> list[tuple[str, Sequence[float]]]:
    """By their means, the best first, without those that have no value."""
    sign = 1 if mode == "min" else -1
    there = [(name, seeds) for name, seeds in values.items() if len(seeds)]
    return sorted(there, key=lambda arm: sign * float(np.mean(arm[1])))


def plot_classes(path: Path, generated: Sequence[int], real: Sequence[int]) -> Path:
    """Shares of the classes among generated and among real images, with the counts of the generated above the bars."""
    n_classes = len(real)
    figure = _figure(max(6.0, 1.2 + 0.55 * n_classes), 3.4)
    axes = figure.subplots()
    places, width = np.arange(n_classes), 0.4
    shares = [np.array(counts) / max(1, sum(counts)) for counts in (generated, real)]
    labels = [f"{name} ({sum(counts):,})" for name, counts in (("generated", generated), ("real", real))]
    for side, (ys, label, colour) in enumerate(zip(shares, labels, ("#d1495b", "#9aa5b1"), strict=True)):
        axes.bar(places + (side - 0.5) * width, ys, width, label=label, color=colour)
    for k, count in enumerate(generated):
        axes.annotate(
            f"{count:,}", (k - width / 2, shares[0][k]), xytext=(0, 2), textcoords="offset points",
            ha="center", va="bottom", fontsize=7,
        )  # fmt: skip
    axes.margins(x=0.01, y=0.12)
    axes.set_xticks(places, [str(k) for k in range(n_classes)])
    axes.set_xlabel("class, by the classifier")
    axes.set_ylabel("share of images")
    _legend(figure, "outside upper center", ncols=2)
    return _save(figure, path)


def nearest_distances(path: Path, distances: Mapping[str, Sequence[float]], kind: str = "pixel") -> Path:
    """Histograms of distances to the nearest other image, such as of real-real, fake-fake, and real-fake."""
    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    highest = max((float(np.percentile(values, 99.5)) for values in distances.values()), default=1.0) or 1.0
    bins = np.linspace(0, highest, 61).tolist()
    for i, (name, values) in enumerate(distances.items()):
        colour = _colour(i, len(distances))
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, bins, weights=weights, histtype="stepfilled", color=colour, alpha=0.25)
        axes.hist(values, bins, weights=weights, histtype="step", color=colour, linewidth=1.4, label=name)
    axes.set_xlim(0, highest)
    axes.set_xlabel(f"{kind} distance to the nearest other image")
    axes.set_ylabel("share of images")
    axes.grid(alpha=0.25)
    _legend(figure, "outside upper center", ncols=3)
    return _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(
    figure: Figure,
    place: Literal["outside upper center", "outside right upper"],
    *,
    ncols: int = 1,
    size: int = 9,
) -> None:
    """One legend for all panels, each label once: some panels may lack one. None without labels."""
    named = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        ncols = min(ncols, len(named))
        figure.legend([*named.values()], [*named], loc=place, ncols=ncols, frameon=False, fontsize=size)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path


def _colour(i: int, n: int) -> str:
    """The colour of line i of n: ten strong ones, or twenty."""
    return to_hex(colormaps["tab10" if n <= 10 else "tab20"](i % (10 if n <= 10 else 20)))


def _spans(values: Sequence[float]) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) > LOG_SPAN * min(values)


def _logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _shortened(label: str, most: int = 44) -> str:
    """The label, or its beginning and its end: the ends of many labels tell them apart as often as the beginnings."""
    half = (most - 3) // 2
    return label if len(label) <= most else f"{label[:half]}...{label[-half:]}"


def picture_sheet(path: Path, pictures: Mapping[str, Path], *, side: int = 320) -> Path:
    """Sample grids of several arms side by side with their labels."""
    columns = _columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    caption = 22
    sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + caption + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, picture) in enumerate(pictures.items()):
        left, top = (i % columns) * (side + 8) + 8, (i // columns) * (side + caption + 8) + 8
        text, font = _fitted(label, side)
        draw.text((left, top), text, fill="black", font=font)
        with Image.open(picture) as image:
            # Grids that are not square keep their shape.
            sheet.paste(
                ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS), (left, top + caption)
            )
    return _save_image(sheet, path)


def filmstrip(
    path: Path, rows: Mapping[str, Mapping[int, Path]], *, columns: int = FILMSTRIP_STEPS, side: int = 120
) -> Path:
    """How the first four fixed latents' images change: arms down, steps across, each cell `side` pixels.

    `rows`: for each arm its sample grids (PNGs that `grid` made) by step. At most `columns` steps, evenly chosen
    with the last, and FILMSTRIP_ARMS arms; a cell without a grid stays white.
    """
    arms = dict(list(rows.items())[:FILMSTRIP_ARMS])
    steps = evenly(sorted({step for grids in arms.values() for step in grids}), columns)
    font = ImageFont.load_default(14)
    labels = [_fitted(name, 260) for name in arms]
    left = math.ceil(max((f.getlength(text) for text, f in labels), default=0)) + 16
    head, gap = 26, 6
    sheet = Image.new(
        "RGB", (left + len(steps) * (side + gap) + gap, head + len(arms) * (side + gap) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, step in enumerate(steps):
        middle = left + gap + column * (side + gap) + side / 2
        draw.text(
            (middle, head / 2),
            f"{'step ' if not column else ''}{step:,}",
            fill="black",
            font=font,
            anchor="mm",
        )
    for row, ((text, fitted), grids) in enumerate(zip(labels, arms.values(), strict=True)):
        top = head + gap + row * (side + gap)
        draw.text((left - 8, top + side / 2), text, fill="black", font=fitted, anchor="rm")
        for column, step in enumerate(steps):
            if step in grids:
                sheet.paste(_first_four(grids[step], side), (left + gap + column * (side + gap), top))
    return _save_image(sheet, path)


def _first_four(picture: Path, side: int) -> Image.Image:
    """The first four images of a sample grid, two by two."""
    with Image.open(picture) as image:
        first = cells(np.asarray(image.convert("RGB")), 4)
    half = side // 2
    cell = Image.new("RGB", (side, side), "white")
    for i, one in enumerate(first):
        whole = Image.fromarray(np.ascontiguousarray(one))
        shown = side if len(first) == 1 else half - 1
        cell.paste(
            ImageOps.contain(whole, (shown, shown), Image.Resampling.BOX),
            (i % 2 * (half + 1), i // 2 * (half + 1)),
        )
    return cell


def _fitted(label: str, width: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The label in a size at which it is at most `width` pixels wide, shortened where the smallest is too wide."""
    for size in (14, 12, 10):
        font = ImageFont.load_default(size)
        if font.getlength(label) <= width:
            return label, font
    most = len(label)
    while most > 5 and font.getlength(_shortened(label, most)) > width:
        most -= 1
    return _shortened(label, most), font


def _save_image(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    sheet.save(temporary, format="PNG")
    os.replace(temporary, path)
    return path
