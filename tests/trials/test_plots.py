"""What plots show: readable files, the right order, means, labels and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from trials import plots
from trials.pictures import grid, write_png
from trials.plots import (
    ACCURACY,
    CLASSIFICATION,
    LOSSES,
    Seeds,
    dots,
    filmstrip,
    metric_curves,
    nearest_distances,
    picture_sheet,
    plot_accuracy,
    plot_classes,
    plot_classification,
    plot_evolution,
    plot_losses,
    plot_scores,
)

STEPS = [10, 20, 30, 40]


def seed(shift: float = 0.0, *, epochs: float = 2.0) -> dict[str, plots.Curve]:
    """A trial's curves of four rows."""
    names = LOSSES | ACCURACY | CLASSIFICATION
    curves: dict[str, plots.Curve] = {name: (STEPS, [shift + 0.1 * i for i in range(4)]) for name in names}
    return curves | {"train/epoch": (STEPS, [epochs * step / 40 for step in STEPS])}


ARMS: dict[str, Seeds] = {"lr=1": [seed(), seed(0.2)], "lr=2": [seed(0.5)]}
DRAW: dict[str, Callable[[Path], Path]] = {
    "losses": lambda path: plot_losses(path, ARMS),
    "accuracy": lambda path: plot_accuracy(path, ARMS),
    "scores": lambda path: plot_scores(path, ARMS),
    "classification": lambda path: plot_classification(path, ARMS),
    "evolution": lambda path: plot_evolution(path, ARMS),
    "curves": lambda path: metric_curves(path, "train/g_loss", ARMS, floor=0.01),
    "dots": lambda path: dots(path, "eval/fd", {"a": [1.0, 2.0], "b": [50.0], "none": []}, 0.5),
    "classes": lambda path: plot_classes(path, [10, 0, 3], [5, 5, 5]),
    "distances": lambda path: nearest_distances(path, {"real to real": [1.0, 2.0], "generated to real": [3.0]}),
    "losses of no arm": lambda path: plot_losses(path, {}),
    "losses of an arm without rows": lambda path: plot_losses(path, {"a": [{}], "b": []}),
    "evolution without epochs": lambda path: plot_evolution(path, {"a": [{"train/g_loss": (STEPS, STEPS)}]}),
    "curves without the metric": lambda path: metric_curves(path, "eval/fd", ARMS),
    "curves without a common step": lambda path: metric_curves(
        path, "x", {"a": [{"x": ([1], [1.0])}, {"x": ([2], [1.0])}]}
    ),
    "dots of nothing": lambda path: dots(path, "eval/fd", {}),
    "no class found": lambda path: plot_classes(path, [0, 0], [0, 0]),
    "no distances": lambda path: nearest_distances(path, {}),
    "distances of copies": lambda path: nearest_distances(path, {"generated to real": [0.0, 0.0]}),
    "filmstrip of nothing": lambda path: filmstrip(path, {}),
}  # fmt: skip


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_plot_is_a_png_and_leaves_nothing_temporary(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    path = tmp_path / "plots" / "plot.png"
    assert draw(path) == path
    assert [*path.parent.iterdir()] == [path]
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"


def test_few_epochs_show_every_row_and_many_the_means_of_each() -> None:
    few = plots._by_epoch(seed(epochs=2))
    assert few["train/g_loss"][0] == [0.5, 1.0, 1.5, 2.0]
    curves: dict[str, plots.Curve] = {
        "train/epoch": (range(1, 41), [i / 4 for i in range(1, 41)]),  # ten epochs of four rows
        "train/g_loss": (range(1, 41), [float(i) for i in range(1, 41)]),
    }
    epochs, losses = plots._by_epoch(curves)["train/g_loss"]
    assert epochs == list(range(1, 11))
    assert losses == pytest.approx([2.5 + 4 * i for i in range(10)])  # (1 + 2 + 3 + 4) / 4 and so on


def test_seeds_are_compared_at_the_steps_they_all_have() -> None:
    steps, values = plots._common([([1, 2, 3], [10, 20, 30]), ([3, 2, 5], [33, 22, 55])])
    assert steps == [2, 3]
    assert values.tolist() == [[20, 30], [22, 33]]
    assert plots._common([])[0] == []


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.floats(1, 29), st.floats(31, 1e4))
def test_an_axis_is_logarithmic_when_positive_values_span_much(
    values: list[float], little: float, much: float
) -> None:
    low = min(values)
    assert not plots._spans([low, low * little])
    assert plots._spans([low, low * much])
    assert not plots._spans([0.0, low * much])
    assert not plots._spans([-low, low * much])


def test_arms_are_ranked_by_their_means_and_those_without_a_value_are_left_out() -> None:
    values = {"a": [1.0, 9.0], "b": [2.0], "c": [], "d": [6.0, 6.0]}
    assert [name for name, _ in plots._ranked(values, "min")] == ["b", "a", "d"]
    assert [name for name, _ in plots._ranked(values, "max")] == ["d", "a", "b"]


@given(n=st.integers(1, 20))
def test_lines_have_colours_of_their_own(n: int) -> None:
    assert len({plots._colour(i, n) for i in range(n)}) == n


@given(label=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=200))
def test_long_labels_keep_their_ends_and_fit(label: str) -> None:
    short = plots._shortened(label)
    assert len(short) <= 44
    assert short == label or (label.startswith(short[:20]) and label.endswith(short[-20:]) and "..." in short)
    text, font = plots._fitted(label, 120)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.getlength(text) <= 120


def test_a_filmstrip_shows_the_first_four_latents_of_the_chosen_steps(tmp_path: Path) -> None:
    def sheet(arm: int, step: int) -> Path:
        images = np.zeros((9, 1, 28, 28), np.uint8)
        images += (40 * arm + step + 10 * np.arange(9, dtype=np.uint8))[:, None, None, None]
        write_png(path := tmp_path / f"{arm}_{step}.png", grid(images))
        return path

    rows = {f"arm {arm}": {step: sheet(arm, step) for step in range(1, 6)} for arm in (0, 1)}
    del rows["arm 1"][5]
    with Image.open(filmstrip(tmp_path / "strip.png", rows, columns=3)) as image:
        strip = np.asarray(image.convert("L"))
    left = strip.shape[1] - 3 * 126 - 6
    for arm, (column, step) in [(arm, chosen) for arm in (0, 1) for chosen in enumerate((1, 3, 5))]:
        top = 26 + 6 + arm * 126
        cell = strip[top : top + 120, left + 6 + column * 126 :][:, :120]
        middles = [int(cell[y, x]) for y in (30, 90) for x in (30, 90)]
        there = step in rows[f"arm {arm}"]
        assert middles == ([40 * arm + step + 10 * i for i in range(4)] if there else [255] * 4)


def test_a_filmstrip_has_no_more_arms_and_steps_than_can_be_seen(tmp_path: Path) -> None:
    write_png(path := tmp_path / "grid.png", grid(np.zeros((4, 1, 8, 8), np.uint8)))
    rows = {f"{arm}": dict.fromkeys(range(1, 31), path) for arm in range(30)}
    with Image.open(filmstrip(tmp_path / "strip.png", rows)) as image:
        assert image.height == 26 + 24 * 126 + 6
        assert (image.width - 6) // 126 == 10


def test_a_label_of_a_picture_sheet_does_not_run_into_the_next(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), "white").save(tmp_path / "white.png")
    pictures = {"x" * 90: tmp_path / "white.png", "": tmp_path / "white.png"}
    with Image.open(picture_sheet(tmp_path / "sheet.png", pictures)) as image:
        sheet = np.asarray(image.convert("L"))
    assert sheet[:, 8:328].min() < 100
    assert (sheet[:, 329:] == 255).all()
