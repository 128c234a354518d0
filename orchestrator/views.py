"""A study in MLflow's page: a ready-made view of its trials, the notes beside it, and the colours of its arms. Pure.

MLflow 3.15 and newer keep a "saved view" of an experiment in its tag `mlflow.sharedViewState.<id>`, and open
it when the address has `viewStateShareKey=<id>` (pull requests mlflow#24359 and #24360). The format is
internal to MLflow's UI: read from the scripts that 3.17.2 ships and seen in a browser
(tests/browser/test_mlflow_page.py). So it is best effort: a UI that finds the view missing or unreadable says
so and opens the plain list of runs.

The step of every chart is the training step, as in the journal, the report and the command line. Where arms show
different numbers of images in a step, choose `train/kimg` as the x axis of the line charts ("Configure" on the page):
thousands of real images shown to the discriminator, logged in every row.
"""

from __future__ import annotations

import base64
import colorsys
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

VIEW_ID = "gansweep-overview"
BEST_PICTURES, FINAL_PICTURES, STEP_PICTURES = "best/samples", "final/samples", "samples/fixed"

FOLDED = ("train", "eval", "final", "best", "classes", "perf")
"""MLflow adds a chart for each metric that has none, to the section named like the metric's prefix."""

MOST_AXES = 4
"""Searched hyperparameters with a chart of their own."""
FEW_TRIALS = 8
"""As many as still read well with two curves each in one chart."""

MOST_PICTURES = 10
"""MLflow draws those of the first so many runs, each 256 pixels wide."""
IN_A_ROW = {"Pictures: best and last": 2, "Pictures step by step": 4, "Gallery": 2}
"""Pictures side by side in a card of each section, in a window of 1600 pixels."""

COLOURS = ("#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#00b4d8", "#9a6324", "#f032e6", "#808000",
           "#7f7f7f", "#e178b4", "#ffb000")  # fmt: skip
"""Of arms, here and in reports: they can be told apart on white, and seen on dark grey."""
GOLDEN = 0.618033988749895

NOTE_LIMIT = 7500
"""Characters; MLflow refuses tags of more than 8000."""
TEXT_LIMIT, NAME_LIMIT = 1500, 120
"""Characters of a text and of a name in a note, as shown."""
GAP = "&ensp;"
"""At the end of a table's cells, which MLflow sets without any space."""
NOTE_WIDTH = 700
"""Pixels of a picture in a note: MLflow does not limit it."""

SPECIAL = re.compile(r"[\\`*_{}\[\]#|<>&~$@]|^[-+=]|^\d+[.)](?=\s|$)|(?<=:)/|(?<=www)\.", re.IGNORECASE)
"""Where text may act as markup: the last character of each match. Parentheses and `!` act beside brackets alone."""

Fields = dict[str, object]
"""A JSON object of MLflow's UI."""


def colour(arm: int) -> str:
    """The colour of an arm's runs, `#rrggbb`: all of its seeds share it, the first dozen arms are told apart easily.

    Further hues follow each other at the golden angle, which keeps neighbours apart.
    """
    if arm < len(COLOURS):
        return COLOURS[arm]
    channels = colorsys.hls_to_rgb(arm * GOLDEN % 1, (0.35, 0.5, 0.65)[arm % 3], 0.65)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


# The saved view


def saved_view_tags(
    *,
    objective: str,
    mode: Literal["min", "max"],
    ranked_by: str,
    searched: Sequence[str],
    axes: Mapping[str, bool],
    metrics: Collection[str],
    gallery: Sequence[str],
    image_steps: Sequence[int],
    created_at_ms: int,
    n_trials: int,
) -> dict[str, str]:
    """The experiment tag of the view: trials only, best first, pictures above the curves.

    `objective` is a metric, and `ranked_by` the one that holds what a finished trial counts with: `best/fd` of
    `eval/fd`. `searched` are the parameters of the study's space, `axes` those that are drawn (the logarithm of one
    that is searched in its logarithm), and whether each is a number. `metrics`: those that are logged or will be,
    `gallery`: keys of pictures that trials have at step 0 beside best/samples and final/samples. `image_steps` are the
    steps of samples/fixed; the last one is shown first, the slider leads to the others. MLflow shows the first 20 runs
    of more, and these are the best ones.
    """
    state = {
        **_runs_table(ranked_by, mode, searched),
        **_charts(
            objective, ranked_by, axes, frozenset(metrics), gallery, max(image_steps, default=0), n_trials
        ),
    }
    view = {
        "name": "Overview",
        "createdAt": created_at_ms,
        "updatedAt": created_at_ms,
        "state": _deflated(state),
    }
    return {f"mlflow.sharedViewState.{VIEW_ID}": json.dumps(view)}


def results_link(base_url: str, experiment_id: str) -> str:
    """The address of the view in the tracking server at `base_url`.

    Without `workflowType` a fresh browser opens MLflow's page for language-model applications.

    >>> results_link("http://localhost:5000/", "7")  # doctest: +ELLIPSIS
    'http://localhost:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART&...'
    """
    query = urlencode(
        {"workflowType": "machine_learning", "compareRunsMode": "CHART", "viewStateShareKey": VIEW_ID}
    )
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _deflated(state: Mapping[str, object]) -> str:
    """MLflow's text form of a UI state."""
    text = json.dumps(state, separators=(",", ":"))
    return "deflate;" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _runs_table(ranked_by: str, mode: str, searched: Sequence[str]) -> Fields:
    """Which runs are shown, and their columns.

    Sorting by a metric matters: sorted by creation, trials hide below the folded row of their study, and
    charts show visible rows only.
    """
    columns = [
        f"metrics.`{ranked_by}`",
        *(f"params.`{name}`" for name in searched),
        "params.`seed`",
        "tags.`gan_sweep.state`",
    ]
    return {
        "searchFilter": "tags.`gan_sweep.kind` = 'trial'",
        "orderByKey": f"metrics.`{ranked_by}`",
        "orderByAsc": mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "viewMaximized": False,
        "runListHidden": True,
    }


def _charts(
    objective: str,
    ranked_by: str,
    axes: Mapping[str, bool],
    metrics: frozenset[str],
    gallery: Sequence[str],
    image_step: int,
    n_trials: int,
) -> Fields:
    """Sections from top to bottom, with their cards."""

    def lines(*wanted: tuple[str, ...]) -> list[Fields]:
        found = [[name for name in names if name in metrics] for names in wanted]
        if n_trials > FEW_TRIALS:
            found = [[name] for names in found for name in names]
        return [_line(*names) for names in found if names]

    curves = [("eval/fd",), ("eval/kid",), ("eval/precision", "eval/recall"), ("eval/coverage",)]
    curves.append(("eval/class_tv",))
    if objective.startswith("eval/"):  # final/ metrics are logged once
        curves = [(objective,), *(names for names in curves if objective not in names)]
    sections = {
        "Pictures: best and last": [_pictures(BEST_PICTURES, 0), _pictures(FINAL_PICTURES, 0)],
        "Pictures step by step": [_pictures(STEP_PICTURES, image_step)],
        "Objective and evaluations": [_bar(ranked_by), *lines(*curves)],
        "Losses": lines(("train/g_loss",), ("train/d_loss_mean",), ("train/w_dist",)),
        "Discriminator": lines(("train/d_acc",), ("train/real_score", "train/fake_score")),
        "Search": _search(axes, ranked_by),
        "Differences": [_differences()],
        "Gallery": [_pictures(key, 0) for key in gallery],
    }
    shown = {name: cards for name, cards in sections.items() if cards}
    shown |= {name: [] for name in FOLDED if any(metric.startswith(f"{name}/") for metric in metrics)}
    return {
        "compareRunSections": [
            {
                "uuid": f"gansweep-{name}",
                "name": name,
                "display": name not in FOLDED and name != "Gallery",
                "columns": _columns(name, len(cards)),
                "cardHeight": _height(name, n_trials),
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for name, cards in shown.items()
        ],
        "compareRunCharts": [
            {
                "uuid": f"gansweep-{name}-{i}",
                "metricSectionId": f"gansweep-{name}",
                "runsCountToCompare": 20,
                "deleted": False,
                "isGenerated": False,
                **card,
            }
            for name, cards in shown.items()
            for i, card in enumerate(cards)
        ],
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _columns(section: str, n_cards: int) -> int:
    if section in FOLDED:
        return 3
    return min(n_cards, 2 if section in ("Gallery", "Search") else 3)


def _height(section: str, n_trials: int) -> int:
    """Pixels of a section's cards. Pictures are all seen without scrolling: MLflow draws the best one last."""
    if section in IN_A_ROW:
        rows = -(-min(n_trials, MOST_PICTURES) // IN_A_ROW[section])
        return 150 + 295 * rows
    return {"Search": 360, "Differences": 420}.get(section, 290)


def _search(axes: Mapping[str, bool], ranked_by: str) -> list[Fields]:
    """How the trials' values hang together with what was searched."""
    shown, numbers = list(axes)[:MOST_AXES], [name for name, is_number in axes.items() if is_number]
    cards = [_parallel(list(axes), ranked_by)] if len(axes) > 1 else []
    if len(numbers) > 1:
        cards.append(_contour(numbers[0], numbers[1], ranked_by))
    return cards + [_scatter(name, ranked_by) for name in shown]


def _pictures(image_key: str, step: int) -> Fields:
    return {"type": "IMAGE", "imageKeys": [image_key], "step": step, "showRunParams": False}


def _line(*metrics: str) -> Fields:
    return {
        "type": "LINE",
        "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics),
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _bar(metric: str) -> Fields:
    return {"type": "BAR", "metricKey": metric}


def _parallel(params: Sequence[str], metric: str) -> Fields:
    return {
        "type": "PARALLEL",
        "selectedParams": list(params),
        "selectedMetrics": [metric],
        "showAllRuns": True,
    }


def _scatter(param: str, metric: str) -> Fields:
    return {
        "type": "SCATTER",
        "xaxis": {"key": param, "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }


def _contour(x: str, y: str, metric: str) -> Fields:
    return {
        "type": "CONTOUR",
        "xaxis": {"key": x, "type": "PARAM"},
        "yaxis": {"key": y, "type": "PARAM"},
        "zaxis": {"key": metric, "type": "METRIC"},
    }


def _differences() -> Fields:
    return {
        "type": "DIFFERENCE",
        "chartName": "What differs",
        "compareGroups": ["Parameters", "Model metrics"],
        "showChangeFromBaseline": False,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }


# The notes


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRow:
    """An arm in a note's table. `run`: of its best trial. `means`: of each objective, None for none yet."""

    arm: str
    run: str | None
    means: Sequence[float | None]
    sd: float | None
    seeds: str
    lost: str


def study_note(
    *,
    experiment_id: str,
    name: str,
    description: str,
    source: str,
    space: Sequence[str],
    objectives: Sequence[str],
    rows: Sequence[NoteRow],
    remarks: Sequence[str],
    picture: tuple[str, str, str] | None,
) -> str:
    """The Markdown of an experiment's and its study run's note, at most NOTE_LIMIT characters.

    `space`: a line a searched hyperparameter. `objectives`: the heads of the columns of `rows`' means; the first one
    has the sd. `remarks`: lines below the table. `picture`: run, path of the artifact there, and what it shows. All
    text is shown as it is: nothing in it acts as Markdown or HTML. Of the rows the first ones that fit are shown.
    """
    parts = [f"**{escaped(name, NAME_LIMIT)}**"]
    parts += [escaped(text, TEXT_LIMIT) for text in re.split(r"\n\s*\n", description.strip())[:3] if text]
    parts += [escaped(source, 500)] if source else []
    after = [escaped(remark, 300) for remark in remarks]
    if picture is not None:
        run, path, shows = picture
        # Relative to the page; no address of MLflow's works from within a note.
        # What it shows is in it, so that a browser does not show an older one.
        address = f"get-artifact?run_uuid={quote(run)}&path={quote(path)}&of={quote(shows, safe='')}"
        after += [f"{escaped(shows, NAME_LIMIT)}\n\n![]({address})"]
    if space:
        after.append("\n".join(f"- {escaped(line, 200)}" for line in space))
    head = _short("\n\n".join(parts), NOTE_LIMIT // 3)
    tail = _short("\n\n".join(after), NOTE_LIMIT // 3)
    table = _table(experiment_id, objectives, rows, NOTE_LIMIT - len(head) - len(tail) - 4)
    return "\n\n".join(filter(None, (head, table, tail)))


def _table(experiment_id: str, objectives: Sequence[str], rows: Sequence[NoteRow], room: int) -> str:
    if not rows:
        return ""
    means = [part for i, name in enumerate(objectives) for part in ([name, "sd"] if i == 0 else [name])]
    heads = ["", "arm", *means, "seeds", "lost"]
    lines = [
        "| " + " | ".join(escaped(head, NAME_LIMIT) + GAP for head in heads) + " |",
        "| " + " | ".join("--:" if head in means or not head else "---" for head in heads) + " |",
    ]
    left_out = "\n\nand {} more arms"
    used = sum(len(line) + 1 for line in lines) + len(left_out) + 8
    for rank, row in enumerate(rows, 1):
        shown = escaped(row.arm, NAME_LIMIT)
        linked = (
            f"[{shown}](#/experiments/{quote(experiment_id)}/runs/{quote(row.run)})" if row.run else shown
        )
        values = [number(mean) for mean in row.means]
        cells = [f"{rank}", linked, values[0], number(row.sd), *values[1:], row.seeds, row.lost]
        line = "| " + " | ".join(cell + GAP for cell in cells) + " |"
        used += len(line) + 1
        if used > room:
            return "\n".join(lines) + left_out.format(len(rows) - rank + 1)
        lines.append(line)
    return "\n".join(lines)


def number(value: float | None) -> str:
    """A measured value for people: four digits, a dash for none.

    >>> [number(x) for x in (None, 0.05137, 12345.6, 0.0)]
    ['-', '0.05137', '12346', '0']
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:.4g}"


def escaped(text: str, limit: int) -> str:
    """One line of text that Markdown and HTML show as it is, its first `limit` characters.

    As character references: they never act as markup, in whichever dialect.

    >>> escaped("a|b <i>x</i>", 99)
    'a&#124;b &#60;i&#62;x&#60;/i&#62;'
    """
    line = one_line(text)
    line = line if len(line) <= limit else line[: limit - 3] + "..."
    return without_markup(line, lambda special: f"&#{ord(special)};")


def without_markup(line: str, escape: Callable[[str], str]) -> str:
    """A line with `escape` of every character that may act as markup."""
    return SPECIAL.sub(lambda found: found[0][:-1] + escape(found[0][-1]), line)


def one_line(text: str) -> str:
    """What can be printed of a text, with single spaces."""
    return " ".join("".join(c for c in " ".join(text.split()) if c.isprintable()).split())


def _short(text: str, limit: int) -> str:
    """Whole paragraphs of a text, the first ones that fit."""
    kept = ""
    for part in text.split("\n\n"):
        if len(kept) + len(part) + 2 > limit:
            break
        kept += ("\n\n" if kept else "") + part
    return kept
