"""A ready-made page of MLflow for a study: pictures of all trials, losses, scores and the objective.

MLflow 3.15 and newer keep a "saved view" of an experiment in its tag `mlflow.sharedViewState.<id>`, and open
it when the address has `viewStateShareKey=<id>` (pull requests mlflow#24359 and #24360). The format is
internal to MLflow's UI: read from the scripts that 3.17.2 ships and seen in a browser
(tests/browser/test_mlflow_page.py). So it is best effort: a UI that finds the view missing or unreadable says
so and opens the plain list of runs.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlencode

VIEW_ID = "gansweep-overview"

FOLDED = ("train", "eval", "final")
"""MLflow adds a chart for each metric that has none, to the section named like the metric's prefix."""

Fields = dict[str, object]
"""A JSON object of MLflow's UI."""


def saved_view_tags(
    *,
    objective: str,
    mode: Literal["min", "max"],
    searched: Sequence[str],
    image_key: str,
    image_steps: Sequence[int],
    created_at_ms: int,
    n_trials: int = 4,
) -> dict[str, str]:
    """The experiment tag of the view: trials only, best first, pictures above the curves.

    `objective` is a metric, `searched` are the parameters of the study's space. `image_steps` are the steps
    at which `image_key` is logged; the last one is shown first, the slider leads to the others. With more
    than four trials (`n_trials`) the pictures get a second row; beyond two rows they scroll.
    """
    state = {
        **_runs_table(objective, mode, searched),
        **_charts(objective, searched, image_key, max(image_steps, default=0), n_trials),
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


def _runs_table(objective: str, mode: str, searched: Sequence[str]) -> Fields:
    """Which runs are shown, and their columns.

    Sorting by a metric matters: sorted by creation, trials hide below the folded row of their study, and
    charts show visible rows only.
    """
    columns = [
        f"metrics.`{objective}`",
        *(f"params.`{name}`" for name in searched),
        "params.`seed`",
        "tags.`gan_sweep.state`",
    ]
    return {
        "searchFilter": "tags.`gan_sweep.kind` = 'trial'",
        "orderByKey": f"metrics.`{objective}`",
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
    objective: str, searched: Sequence[str], image_key: str, image_step: int, n_trials: int
) -> Fields:
    """Sections from top to bottom, with their cards."""
    search = [_line(objective)] if objective.startswith("eval/") else []  # final/ metrics are logged once
    if len(searched) > 1:
        search.append(_parallel(searched, objective))
    elif searched:
        search.append(_scatter(searched[0], objective))
    sections = {
        "Pictures": [_pictures(image_key, image_step)],
        "Losses and objective": [_line("train/g_loss"), _line("train/d_loss_mean"), _bar(objective)],
        "Discriminator": [_line("train/d_acc"), _line("train/real_score", "train/fake_score")],
        **({"Search": search} if search else {}),
        "perf": [_line("perf/images_per_s")],
        **{name: [] for name in FOLDED},
    }
    return {
        "compareRunSections": [
            {
                "uuid": f"gansweep-{name}",
                "name": name,
                "display": name not in FOLDED,
                "columns": max(1, len(cards)) if name not in FOLDED else 3,
                "cardHeight": (420 if n_trials <= 4 else 720) if name == "Pictures" else 290,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for name, cards in sections.items()
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
            for name, cards in sections.items()
            for i, card in enumerate(cards)
        ],
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


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


def _parallel(searched: Sequence[str], objective: str) -> Fields:
    return {
        "type": "PARALLEL",
        "selectedParams": list(searched),
        "selectedMetrics": [objective],
        "showAllRuns": True,
    }


def _scatter(param: str, objective: str) -> Fields:
    return {
        "type": "SCATTER",
        "xaxis": {"key": param, "type": "PARAM"},
        "yaxis": {"key": objective, "type": "METRIC"},
    }
