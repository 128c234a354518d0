from __future__ import annotations

import base64
import json
import zlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.views import VIEW_ID, results_link, saved_view_tags

TAG = f"mlflow.sharedViewState.{VIEW_ID}"


def tags(**changes: Any) -> dict[str, str]:
    arguments: dict[str, Any] = {
        "objective": "eval/swd",
        "mode": "min",
        "searched": ["lr", "optimizer"],
        "image_key": "samples/fixed",
        "image_steps": [100, 200, 300],
        "created_at_ms": 1_700_000_000_000,
    }
    return saved_view_tags(**{**arguments, **changes})


def state(**changes: Any) -> dict[str, Any]:
    """What MLflow's UI reads back."""
    packed = json.loads(tags(**changes)[TAG])["state"]
    head, text = packed.split(";", 1)
    assert head == "deflate"
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    return found


def charts(kind: str, **changes: Any) -> list[dict[str, Any]]:
    return [chart for chart in state(**changes)["compareRunCharts"] if chart["type"] == kind]


def test_view_is_one_tag_with_a_name_and_times() -> None:
    assert list(tags()) == [TAG]
    view = json.loads(tags()[TAG])
    assert view.keys() == {"name", "createdAt", "updatedAt", "state"}
    assert view["createdAt"] == view["updatedAt"] == 1_700_000_000_000


def test_same_study_gives_the_same_tag() -> None:
    assert tags() == tags()


@pytest.mark.parametrize(("mode", "ascending"), [("min", True), ("max", False)])
def test_trials_only_best_first(mode: str, ascending: bool) -> None:
    found = state(mode=mode)
    assert found["searchFilter"] == "tags.`gan_sweep.kind` = 'trial'"
    assert found["orderByKey"] == "metrics.`eval/swd`"
    assert found["orderByAsc"] is ascending


def test_columns_are_objective_searched_parameters_seed_and_state() -> None:
    assert state()["selectedColumns"] == [
        "metrics.`eval/swd`",
        "params.`lr`",
        "params.`optimizer`",
        "params.`seed`",
        "tags.`gan_sweep.state`",
    ]


@pytest.mark.parametrize(("steps", "first"), [([300, 100, 200], 300), ([], 0)])
def test_pictures_start_at_the_last_step_without_parameters(steps: list[int], first: int) -> None:
    (pictures,) = charts("IMAGE", image_steps=steps)
    assert pictures["imageKeys"] == ["samples/fixed"]
    assert pictures["step"] == first
    assert pictures["showRunParams"] is False


def test_more_than_four_trials_get_more_room_for_pictures() -> None:
    few, many = (state(n_trials=n)["compareRunSections"][0]["cardHeight"] for n in (4, 5))
    assert few < many


def test_losses_scores_and_speed_have_curves() -> None:
    drawn = [metric for chart in charts("LINE") for metric in chart["selectedMetricKeys"]]
    for name in ("g_loss", "d_loss_mean", "d_acc", "real_score", "fake_score"):
        assert f"train/{name}" in drawn
    assert "perf/images_per_s" in drawn


def test_objective_has_a_bar_and_a_curve_where_it_is_logged_during_training() -> None:
    assert [chart["metricKey"] for chart in charts("BAR")] == ["eval/swd"]
    assert "eval/swd" in [chart["metricKey"] for chart in charts("LINE")]
    assert "final/d_acc" not in [chart["metricKey"] for chart in charts("LINE", objective="final/d_acc")]


def test_search_is_shown_by_parallel_coordinates_or_a_scatter_plot_for_one_parameter() -> None:
    (parallel,) = charts("PARALLEL")
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["lr", "optimizer"], ["eval/swd"])
    assert charts("SCATTER") == []
    (scatter,) = charts("SCATTER", searched=["lr"])
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("lr", "eval/swd")
    assert charts("PARALLEL", searched=["lr"]) == []


@pytest.mark.parametrize("searched", [[], ["lr"], ["lr", "optimizer"]])
@pytest.mark.parametrize("objective", ["eval/swd", "final/d_acc"])
def test_charts_and_open_sections_belong_together(searched: list[str], objective: str) -> None:
    found = state(searched=searched, objective=objective)
    used = {chart["metricSectionId"] for chart in found["compareRunCharts"]}
    assert {section["uuid"] for section in found["compareRunSections"] if section["display"]} == used
    names = [chart["uuid"] for chart in found["compareRunCharts"]]
    assert len(names) == len(set(names))


def test_tag_stays_below_the_limit_of_mlflow() -> None:
    searched = [f"hyperparameter_with_a_long_name_{i}" for i in range(50)]
    assert len(tags(searched=searched)[TAG]) < 20_000


@pytest.mark.parametrize("base_url", ["http://localhost:5000", "http://localhost:5000/"])
def test_link_opens_the_view_in_chart_mode_on_the_page_for_training(base_url: str) -> None:
    link = urlsplit(results_link(base_url, "7"))
    path, query = link.fragment.split("?")
    assert (link.netloc, link.path, path) == ("localhost:5000", "/", "/experiments/7/runs")
    assert parse_qs(query) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        "viewStateShareKey": [VIEW_ID],
    }
