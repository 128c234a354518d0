"""Charts of a study as plotly figures: plain dictionaries of `data` and `layout`, which plotly.js draws in the page.

Colours of text and grid are left to the page, which knows whether it is light or dark. Nothing here needs WebGL or
evaluates text, so that the page can forbid both, and charts print. plotly renders a few HTML tags in labels; all text
that comes from a study is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations
from statistics import fmean, median
from typing import Any

from models import Value
from orchestrator.arms import show
from orchestrator.reading import Series
from orchestrator.study import Choices, Range

Figure = dict[str, Any]

BAR = "#00798c"
POINTS = 160
"""Of a curve: more cannot be seen at this width, and make the page large."""
MOST_PAIRS = 3
LOG_SPAN = 30
"""Largest over smallest value from which an axis is logarithmic."""
BEYOND = 20
"""Times the median arm's largest value, from which an arm's curve is not what an axis is made for."""
LEAST_ARMS = 4
"""Finished arms below which the importance of hyperparameters says nothing."""
SCALE = [[0.0, "#00798c"], [0.5, "#9aa5ab"], [1.0, "#d1495b"]]
"""From the best value to the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCurves:
    """One metric of an arm: a series a seed. `number` is the arm's, by which the page shows and hides it."""

    number: int
    label: str
    colour: str
    seeds: Sequence[Series]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A finished arm in the space. `mean` of the objective, `seeds` its values."""

    number: int
    label: str
    colour: str
    values: Mapping[str, Value]
    mean: float
    seeds: Sequence[float]


def plotly_js() -> str:
    """plotly.js, 4.8 MB: once a page."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def band(seeds: Sequence[Series]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, mean, lowest and highest of the seeds, at most POINTS of each; the means of neighbours for more.

    Where a seed has ended early the others go on.
    """
    at: dict[int, list[float]] = {}
    for steps, values in seeds:
        for step, value in zip(steps, values, strict=True):
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    rows = [(fmean(at[s]), min(at[s]), max(at[s])) for s in steps]
    size = -(-len(steps) // POINTS) or 1
    bins = [range(i, min(i + size, len(steps))) for i in range(0, len(steps), size)]
    columns = [[_short(fmean(rows[i][k] for i in bin_)) for bin_ in bins] for k in range(3)]
    return [steps[bin_[-1]] for bin_ in bins], columns[0], columns[1], columns[2]


def curves(
    arms: Sequence[ArmCurves], *, reference: tuple[float, str] | None = None, log: bool = False
) -> Figure:
    """One metric of several arms over the steps: means over seeds, with the range of the seeds as a band.

    `log`: by magnitude, where values are positive and span more than LOG_SPAN.
    """
    data: list[Figure] = []
    view = _view(arms, log)
    far = beyond(arms, view)
    for arm in arms:
        steps, mean, low, high = band(arm.seeds)
        if not steps:
            continue
        meta = {"arm": arm.number}
        if len(arm.seeds) > 1 and arm.label not in far:  # its band would cover all others
            data.append(
                {
                    "type": "scatter", "mode": "lines", "x": [*steps, *reversed(steps)],
                    "y": [*high, *reversed(low)], "fill": "toself", "fillcolor": _faint(arm.colour),
                    "line": {"width": 0}, "hoverinfo": "skip", "meta": meta,
                }
            )  # fmt: skip
        data.append(
            {
                "type": "scatter", "mode": "lines+markers" if len(steps) <= 30 else "lines", "x": steps, "y": mean,
                "name": _text(arm.label), "line": {"color": arm.colour, "width": 1.8}, "marker": {"size": 4},
                "meta": meta, "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    figure: Figure = {"data": data, "layout": _layout(height=250)}
    figure["layout"] |= {"hovermode": "x", "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"}}
    figure["layout"]["yaxis"] = view | {"exponentformat": "power"}
    if reference is not None:
        _add_line(figure, *reference)
    return figure


def _view(arms: Sequence[ArmCurves], log: bool) -> Figure:
    """The vertical axis. One that is cut where a few arms go far beyond all others, which would be flat lines: a double
    click on the chart shows all of it."""
    lows = {arm.label: min((min(values) for _, values in arm.seeds if values), default=0.0) for arm in arms}
    highs = {arm.label: max((max(values) for _, values in arm.seeds if values), default=0.0) for arm in arms}
    low, high = min(lows.values()), max(highs.values())
    if log and low > 0 and high / low > LOG_SPAN:
        return {"type": "log", "dtick": 1 if high / low > 1000 else "D1"}
    usual = median(max(abs(lows[label]), abs(highs[label])) for label in highs)
    inside = [label for label in highs if max(abs(lows[label]), abs(highs[label])) <= BEYOND * usual]
    if len(inside) == len(highs):
        return {"tickformat": "~g"}
    low, high = min(lows[label] for label in inside), max(highs[label] for label in inside)
    margin = 0.05 * (high - low)
    return {"tickformat": "~g", "range": [_short(low - margin), _short(high + margin)]}


def beyond(arms: Sequence[ArmCurves], axis: Figure) -> list[str]:
    """The arms whose curves leave the axis that the chart shows at first."""
    view = axis.get("range")
    if view is None:
        return []
    return [
        arm.label
        for arm in arms
        if any(not view[0] <= v <= view[1] for _, values in arm.seeds for v in values)
    ]


def parallel(points: Sequence[Point], axes: Mapping[str, Choices | Range], metric: str, mode: str) -> Figure:
    """Every arm as a line through its hyperparameters to its value; the best ones last, so that they lie on top."""
    ordered = sorted(points, key=lambda p: p.mean, reverse=mode == "min")
    columns = [_Column.of(name, axis, [p.values[name] for p in points]) for name, axis in axes.items()]
    means = [p.mean for p in points]
    columns.append(_Column.numbers(metric, means, log=False))
    shades = _shades(means, mode)
    data = []
    for p in ordered:
        best = p is ordered[-1]
        y = [column.place(p.values.get(column.name, p.mean)) for column in columns]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": list(range(len(columns))), "y": y,
                "line": {"color": shades[p.mean], "width": 3.5 if best else 1.6, "shape": "spline", "smoothing": 0.5},
                "marker": {"size": 6 if best else 4}, "opacity": 1 if best else 0.65, "name": _text(p.label),
                "hovertemplate": f"{_text(p.label)}: {p.mean:.4g}<extra></extra>",
            }
        )  # fmt: skip
    layout = _layout(height=340)
    layout["xaxis"] = {
        "tickvals": list(range(len(columns))), "ticktext": [_text(c.name) for c in columns],
        "range": [-0.25, len(columns) - 0.75], "showgrid": True, "zeroline": False, "fixedrange": True,
    }  # fmt: skip
    layout["yaxis"] = {"visible": False, "range": [-0.08, 1.08], "fixedrange": True}
    layout["annotations"] = [
        {
            "x": i, "y": place, "text": _text(words), "showarrow": False, "xanchor": "left", "xshift": 7,
            "font": {"size": 11},
        }
        for i, column in enumerate(columns)
        for words, place in column.ticks
    ]  # fmt: skip
    return {"data": data, "layout": layout}


def importance(
    points: Sequence[Point], axes: Mapping[str, Choices | Range], mode: str
) -> dict[str, float] | None:
    """How much of the arms' spread each hyperparameter accounts for, summing to 1: functional ANOVA of a random
    forest (Hutter et al. 2014), as Optuna does it. None for fewer than two axes or LEAST_ARMS arms, where it means
    nothing."""
    if len(axes) < 2 or len(points) < LEAST_ARMS or len({p.mean for p in points}) < 2:
        return None
    import optuna

    from orchestrator.search import distribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {name: int if all(isinstance(p.values[name], int) for p in points) else float for name in axes}
    distributions = {name: distribution(axis, kinds[name]) for name, axis in axes.items()}
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    for p in points:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: p.values[name] for name in axes}, distributions=distributions, value=p.mean
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def importances(shares: Mapping[str, float]) -> Figure:
    """Shares as bars, the largest on top."""
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    layout = _layout(height=90 + 32 * len(ordered))
    layout["xaxis"] = {"tickformat": ".0%", "range": [0, 1.08], "fixedrange": True}
    layout["yaxis"] = {"automargin": True, "fixedrange": True}
    bars = {
        "type": "bar", "orientation": "h", "x": [_short(share) for _, share in ordered],
        "y": [_text(name) for name, _ in ordered], "marker": {"color": BAR}, "width": 0.6,
        "texttemplate": "%{x:.0%}", "textposition": "outside", "hoverinfo": "skip", "cliponaxis": False,
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


def slice_(
    points: Sequence[Point], name: str, axis: Choices | Range, *, line: tuple[float, str] | None = None
) -> Figure:
    """The value of every seed against one hyperparameter, an arm a colour."""
    column = _Column.of(name, axis, [p.values[name] for p in points])
    data = [
        {
            "type": "scatter", "mode": "markers", "x": [_coordinate(p.values[name], column)] * len(p.seeds),
            "y": [_short(v) for v in p.seeds], "name": _text(p.label), "meta": {"arm": p.number},
            "marker": {"color": p.colour, "size": 8, "opacity": 0.75},
            "hovertemplate": f"{_text(p.label)}: %{{y:.4g}}<extra></extra>",
        }
        for p in points
    ]  # fmt: skip
    layout = _layout(height=270)
    layout["xaxis"] = {"title": {"text": _text(name)}} | _axis(column)
    layout["yaxis"] = {"tickformat": "~g"}
    figure: Figure = {"data": data, "layout": layout}
    if line is not None:
        _add_line(figure, *line)
    return figure


def contours(
    points: Sequence[Point], axes: Mapping[str, Choices | Range], mode: str, order: Sequence[str]
) -> dict[str, Figure]:
    """The objective over pairs of hyperparameters, the pairs of the most important ones first: cells with numbers
    where every combination was tried, else contours between the arms. `order`: names by importance."""
    found = {}
    for a, b in combinations([name for name in order if name in axes], 2):
        x, y = (_Column.of(name, axes[name], [p.values[name] for p in points]) for name in (a, b))
        if min(len({p.values[name] for p in points}) for name in (a, b)) < 2:
            continue
        figure = _cells(points, x, y, mode) or _contour(points, x, y, mode)
        if figure:
            found[f"{a} and {b}"] = figure
        if len(found) == MOST_PAIRS:
            break
    return found


def _cells(points: Sequence[Point], x: _Column, y: _Column, mode: str) -> Figure | None:
    """A heat map with its numbers; means over what else was varied. None unless most pairs have a value."""
    at: dict[tuple[Value, Value], list[float]] = {}
    for p in points:
        at.setdefault((p.values[x.name], p.values[y.name]), []).append(p.mean)
    across, down = (sorted({pair[k] for pair in at}, key=column.place) for k, column in ((0, x), (1, y)))
    if len(at) < 0.6 * len(across) * len(down) or len(across) * len(down) > 144:
        return None
    z = [[_short(fmean(at[i, j])) if (i, j) in at else None for i in across] for j in down]
    layout = _layout(height=max(200, 110 + 46 * len(down)))
    for key, column, values in (("xaxis", x, across), ("yaxis", y, down)):
        layout[key] = {
            "title": {"text": _text(column.name)}, "type": "category", "showgrid": False, "automargin": True,
        }  # fmt: skip
        layout[key]["tickvals"] = layout[key]["ticktext"] = [_text(show(v)) for v in values]
    cells = {
        "type": "heatmap", "x": [_text(show(v)) for v in across], "y": [_text(show(v)) for v in down], "z": z,
        "texttemplate": "%{z:.4g}", "colorscale": SCALE, "reversescale": mode == "max", "showscale": False,
        "xgap": 2, "ygap": 2, "textfont": {"color": "#ffffff"}, "hovertemplate": "%{x}, %{y}: %{z:.4g}<extra></extra>",
    }  # fmt: skip
    return {"data": [cells], "layout": layout}


def _contour(points: Sequence[Point], x: _Column, y: _Column, mode: str) -> Figure | None:
    """Contours drawn between scattered arms, with the arms; None for too few, or axes that are not numbers."""
    if len(points) < 8 or x.words or y.words:
        return None
    # On logarithmic axes plotly's contours are drawn in the exponents' place, as it interpolates in pixels.
    xs, ys = (sorted({float(p.values[c.name]) for p in points}) for c in (x, y))
    z: list[list[float | None]] = [[None] * len(xs) for _ in ys]
    for p in points:
        z[ys.index(float(p.values[y.name]))][xs.index(float(p.values[x.name]))] = _short(p.mean)
    layout = _layout(height=380)
    layout["xaxis"] = {"title": {"text": _text(x.name)}} | _axis(x)
    layout["yaxis"] = {"title": {"text": _text(y.name)}} | _axis(y)
    surface = {
        "type": "contour", "x": xs, "y": ys, "z": z, "connectgaps": True, "colorscale": SCALE,
        "reversescale": mode == "max", "opacity": 0.6, "line": {"smoothing": 1.1, "width": 0.5}, "hoverinfo": "skip",
        "colorbar": {"thickness": 10, "tickformat": "~g"},
    }  # fmt: skip
    dots = {
        "type": "scatter", "mode": "markers", "x": [float(p.values[x.name]) for p in points],
        "y": [float(p.values[y.name]) for p in points], "text": [f"{_text(p.label)}: {p.mean:.4g}" for p in points],
        "hovertemplate": "%{text}<extra></extra>", "marker": {"color": "#222222", "size": 6},
    }  # fmt: skip
    return {"data": [surface, dots], "layout": layout}


@dataclass(frozen=True, slots=True)
class _Column:
    """One axis: where a value lies on it, from 0 to 1, and what is written beside it.

    `words`: the values of an axis that is not of numbers, in order. `marks`: numbers to write beside it. `log`: by
    magnitude.
    """

    name: str
    words: tuple[str, ...]
    low: float
    high: float
    log: bool
    marks: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, axis: Choices | Range, values: Sequence[Value]) -> _Column:
        if isinstance(axis, Choices) and any(isinstance(v, bool | str) for v in axis.choices):
            return cls(name, tuple(show(v) for v in axis.choices), 0, 1, False)
        numbers = [float(v) for v in values]
        positive = min(numbers) > 0
        log = axis.log if isinstance(axis, Range) else positive and max(numbers) / min(numbers) >= 10
        found = cls.numbers(name, numbers, log=log)
        tried = tuple(sorted(set(numbers)))
        return replace(found, marks=tried if isinstance(axis, Choices) and len(tried) <= 8 else ())

    @classmethod
    def numbers(cls, name: str, numbers: Sequence[float], *, log: bool) -> _Column:
        return cls(name, (), min(numbers), max(numbers), log)

    def place(self, value: Value) -> float:
        if self.words:
            return self.words.index(show(value)) / max(1, len(self.words) - 1)
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return 0.5 if low == high else _short((here - low) / (high - low))

    @property
    def ticks(self) -> list[tuple[str, float]]:
        if self.words:
            return [(word, i / max(1, len(self.words) - 1)) for i, word in enumerate(self.words)]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        values = self.marks or ([self.low] if self.low == self.high else [self.low, middle, self.high])
        return [(f"{v:.4g}", self.place(v)) for v in values]


def _coordinate(value: Value, column: _Column) -> Any:
    return _text(show(value)) if column.words else float(value)


def _axis(column: _Column) -> Figure:
    if column.words:
        words = [_text(word) for word in column.words]
        return {"type": "category", "categoryorder": "array", "categoryarray": words, "automargin": True}
    axis: Figure = (
        {"type": "log", "dtick": 1, "exponentformat": "power"} if column.log else {"tickformat": "~g"}
    )
    if column.marks:
        axis |= {"tickvals": list(column.marks), "ticktext": [_text(f"{mark:g}") for mark in column.marks]}
    return axis


def _shades(means: Sequence[float], mode: str) -> dict[float, str]:
    """A colour for each value, by its rank: distances of one bad arm would make all others look alike."""
    ordered = sorted(set(means), reverse=mode == "max")
    return {mean: _blend(i / max(1, len(ordered) - 1)) for i, mean in enumerate(ordered)}


def _blend(share: float) -> str:
    i = 0 if share < 0.5 else 1
    part = (share - SCALE[i][0]) * 2  # type: ignore[operator]
    ends = [[int(str(SCALE[k][1])[j : j + 2], 16) for j in (1, 3, 5)] for k in (i, i + 1)]
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*ends, strict=True))


def _layout(*, height: int) -> Figure:
    return {
        "height": height, "margin": {"l": 52, "r": 14, "t": 10, "b": 42}, "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"size": 12},
        "hoverlabel": {"namelength": -1},
    }  # fmt: skip


def _add_line(figure: Figure, value: float, words: str) -> None:
    """A dotted line across, such as the value of real images."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    figure["layout"].setdefault("shapes", []).append(
        {**line, "line": {"width": 1.2, "dash": "dot", "color": "#888888"}}
    )
    figure["layout"].setdefault("annotations", []).append(
        {
            "xref": "paper", "x": 1, "y": value, "text": _text(words), "showarrow": False, "xanchor": "right",
            "yanchor": "bottom", "font": {"size": 11},
        }
    )  # fmt: skip


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _short(value: float) -> float:
    """Four digits: what a chart can show."""
    return float(f"{value:.4g}")


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
