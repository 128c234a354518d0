from __future__ import annotations

import base64
import html
import json
import math
import re
import zlib
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.home import StudyFiles
from orchestrator.ui import results_url, study_url, study_words
from orchestrator.views import (
    COLOURS,
    NOTE_LIMIT,
    VIEW_ID,
    NoteRow,
    colour,
    escaped,
    results_link,
    saved_view_tags,
    study_note,
)

TAG = f"mlflow.sharedViewState.{VIEW_ID}"
METRICS = (
    *(f"train/{name}" for name in ("g_loss", "d_loss_mean", "d_acc", "real_score", "fake_score")),
    *(f"eval/{name}" for name in ("fd", "fd_floor", "kid", "precision", "recall", "coverage")),
    "final/g_loss", "best/fd", "best/step", "perf/images_per_s",
)  # fmt: skip


def tags(**changes: Any) -> dict[str, str]:
    arguments: dict[str, Any] = {
        "objective": "eval/fd",
        "mode": "min",
        "ranked_by": "best/fd",
        "searched": ["lr", "optimizer"],
        "axes": {"hp/log10_lr": True, "optimizer": False},
        "metrics": METRICS,
        "gallery": [],
        "image_steps": [100, 200, 300],
        "created_at_ms": 1_700_000_000_000,
        "n_trials": 4,
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


def lines(**changes: Any) -> list[list[str]]:
    return [chart["selectedMetricKeys"] for chart in charts("LINE", **changes)]


def sections(**changes: Any) -> dict[str, dict[str, Any]]:
    return {section["name"]: section for section in state(**changes)["compareRunSections"]}


def test_view_is_one_tag_with_a_name_and_times() -> None:
    assert list(tags()) == [TAG]
    view = json.loads(tags()[TAG])
    assert view.keys() == {"name", "createdAt", "updatedAt", "state"}
    assert view["createdAt"] == view["updatedAt"] == 1_700_000_000_000


def test_same_study_gives_the_same_tag() -> None:
    assert tags() == tags(metrics=set(METRICS)) == tags(metrics=METRICS[::-1])


@pytest.mark.parametrize(("mode", "ascending"), [("min", True), ("max", False)])
def test_trials_only_best_first(mode: str, ascending: bool) -> None:
    found = state(mode=mode)
    assert found["searchFilter"] == "tags.`gan_sweep.kind` = 'trial'"
    assert found["orderByKey"] == "metrics.`best/fd`"
    assert found["orderByAsc"] is ascending


def test_columns_are_objective_searched_parameters_seed_and_state() -> None:
    assert state()["selectedColumns"] == [
        "metrics.`best/fd`",
        "params.`lr`",
        "params.`optimizer`",
        "params.`seed`",
        "tags.`gan_sweep.state`",
    ]


@pytest.mark.parametrize(("steps", "first"), [([300, 100, 200], 300), ([], 0)])
def test_pictures_of_the_end_come_first_then_those_of_all_steps_at_the_last_one(
    steps: list[int], first: int
) -> None:
    pictures = charts("IMAGE", image_steps=steps)
    assert [(p["imageKeys"], p["step"]) for p in pictures] == [
        (["best/samples"], 0), (["final/samples"], 0), (["samples/fixed"], first)
    ]  # fmt: skip
    assert not any(picture["showRunParams"] for picture in pictures)


def test_the_gallery_is_folded_below_and_only_there_when_there_is_one() -> None:
    keys = ["latent/slerp", "walk/smooth"]
    assert "Gallery" not in sections()
    assert sections(gallery=keys)["Gallery"]["display"] is False
    drawn = [c for c in charts("IMAGE", gallery=keys) if c["metricSectionId"] == "gansweep-Gallery"]
    assert [(chart["imageKeys"], chart["step"]) for chart in drawn] == [([key], 0) for key in keys]


def test_every_picture_that_mlflow_draws_has_room() -> None:
    """It draws at most ten, the best one last, 256 pixels and a line of text each."""
    for n_trials in (1, 2, 4, 7, 10, 500):
        found = sections(n_trials=n_trials)
        for name, in_a_row in (("Pictures: best and last", 2), ("Pictures step by step", 4)):
            rows = -(-min(n_trials, 10) // in_a_row)
            assert 285 * rows < found[name]["cardHeight"] <= 300 * rows + 160


def test_only_what_is_logged_is_drawn() -> None:
    assert ["eval/kid"] in lines()
    assert not [names for names in lines() if "eval/class_tv" in names]
    assert ["eval/class_tv"] in lines(metrics=[*METRICS, "eval/class_tv"])
    assert ["train/w_dist"] in lines(metrics=[*METRICS, "train/w_dist"])
    few = {"train/g_loss", "train/real_score"}
    assert {name for names in lines(metrics=few, objective="final/d_acc") for name in names} == few
    assert "eval" not in sections(metrics=few)


def test_pairs_of_curves_come_apart_where_there_are_many_trials() -> None:
    assert ["eval/precision", "eval/recall"] in lines()
    assert ["eval/precision"] in lines(n_trials=9)
    assert max(len(names) for names in lines(n_trials=9)) == 1


def test_objective_has_a_bar_and_a_curve_where_it_is_logged_during_training() -> None:
    assert [chart["metricKey"] for chart in charts("BAR")] == ["best/fd"]
    assert lines()[0] == ["eval/fd"]
    assert lines(objective="eval/recall")[0] == ["eval/recall"]
    drawn = [name for names in lines(objective="eval/recall") for name in names]
    assert drawn.count("eval/recall") == 1
    assert "final/d_acc" not in [
        names[0] for names in lines(objective="final/d_acc", ranked_by="final/d_acc")
    ]


def test_search_is_shown_by_parallel_coordinates_scatters_and_a_contour_of_two_numbers() -> None:
    (parallel,) = charts("PARALLEL")
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (
        ["hp/log10_lr", "optimizer"],
        ["best/fd"],
    )
    assert [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in charts("SCATTER")] == [
        ("hp/log10_lr", "best/fd"), ("optimizer", "best/fd")
    ]  # fmt: skip
    assert charts("CONTOUR") == []
    (contour,) = charts("CONTOUR", axes={"a": True, "b": False, "c": True})
    assert [contour[axis]["key"] for axis in ("xaxis", "yaxis", "zaxis")] == ["a", "c", "best/fd"]
    assert charts("PARALLEL", axes={"lr": True}) == []
    assert "Search" not in sections(axes={})


def test_parameters_and_metrics_that_differ_are_a_table() -> None:
    (table,) = charts("DIFFERENCE")
    assert table["compareGroups"] == ["Parameters", "Model metrics"]


@given(
    st.sets(st.sampled_from([*METRICS, "eval/class_tv", "train/w_dist", "classes/share_0"])),
    st.dictionaries(st.sampled_from(["lr", "beta1", "model", "a", "b"]), st.booleans()),
    st.integers(1, 60),
    st.lists(st.sampled_from(["latent/slerp", "walk/smooth"]), unique=True),
)
def test_charts_and_sections_belong_together(
    metrics: set[str], axes: dict[str, bool], n_trials: int, gallery: list[str]
) -> None:
    found = state(metrics=metrics, axes=axes, n_trials=n_trials, gallery=gallery)
    used = {chart["metricSectionId"] for chart in found["compareRunCharts"]}
    known = {section["uuid"] for section in found["compareRunSections"]}
    shown = {section["uuid"] for section in found["compareRunSections"] if section["display"]}
    assert shown <= used <= known
    assert all(section["columns"] >= 1 for section in found["compareRunSections"])
    names = [chart["uuid"] for chart in found["compareRunCharts"]]
    assert len(names) == len(set(names))


def test_tag_stays_below_the_limit_of_mlflow() -> None:
    searched = [f"hyperparameter_with_a_long_name_{i}" for i in range(50)]
    axes = dict.fromkeys(searched, True)
    assert len(tags(searched=searched, axes=axes, gallery=[f"g/{i}" for i in range(20)])[TAG]) < 20_000


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


# Colours


def test_the_first_dozen_arms_are_told_apart() -> None:
    """CIE76 distances: 2.3 is just noticeable."""
    assert len(COLOURS) == 12
    near = min((distance(a, b), a, b) for a, b in combinations(COLOURS, 2))
    assert near[0] > 25, near
    for paper in ("#ffffff", "#15191c"):  # of the report, by day and by night
        faint = min((distance(c, paper), c) for c in COLOURS)
        assert faint[0] > 40, faint
    assert min(lab(c)[0] for c in COLOURS) > 35


def test_any_number_of_arms_has_colours_and_neighbours_differ() -> None:
    found = [colour(arm) for arm in range(200)]
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in found)
    assert len(set(found)) > 195
    assert min(distance(a, b) for a, b in pairwise(found)) > 25


def distance(a: str, b: str) -> float:
    return math.dist(lab(a), lab(b))


def lab(c: str) -> tuple[float, float, float]:
    """CIELAB of #rrggbb, D65."""
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (int(c[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


# Notes


def note(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "experiment_id": "7",
        "name": "rates",
        "description": "Which rate?",
        "source": "A paper",
        "space": ["lr: 0.001, 0.0001"],
        "objectives": ["eval/fd (min)", "eval/recall (max)"],
        "rows": [row(arm="lr=0.001"), row(arm="lr=0.0001", run=None, sd=None)],
        "remarks": ["Floor of eval/fd: 2.7"],
        "picture": ("abc123", "pictures/best.png", "Samples"),
    }
    return study_note(**{**arguments, **changes})


def row(**changes: Any) -> NoteRow:
    fields: dict[str, Any] = {
        "arm": "lr=0.001", "run": "f00", "means": [1.23456, None], "sd": 0.5, "seeds": "2 of 3", "lost": "1 failed"
    }  # fmt: skip
    return NoteRow(**{**fields, **changes})


def cells(line: str) -> list[str]:
    return [html.unescape(cell).strip() for cell in line.strip("|").split("|")]


def test_note_has_a_row_an_arm_with_a_link_to_its_best_trial() -> None:
    head, _, first, second = [line for line in note().splitlines() if line.startswith("|")]
    assert cells(head) == ["", "arm", "eval/fd (min)", "sd", "eval/recall (max)", "seeds", "lost"]
    assert cells(first) == [
        "1",
        "[lr=0.001](#/experiments/7/runs/f00)",
        "1.235",
        "0.5",
        "-",
        "2 of 3",
        "1 failed",
    ]
    assert cells(second)[:4] == ["2", "lr=0.0001", "1.235", "-"]


def test_note_has_the_picture_where_mlflow_serves_it() -> None:
    assert "![](get-artifact?run_uuid=abc123&path=pictures/best.png&of=Samples)" in note()
    assert "get-artifact" not in note(picture=None)


def test_note_of_a_study_without_results_has_no_table() -> None:
    assert "|" not in note(rows=[], remarks=[], picture=None)


@given(st.text(max_size=4000), st.text(max_size=500), st.text(min_size=1, max_size=300), st.integers(0, 400))
def test_note_is_never_too_long_and_says_how_many_arms_it_leaves_out(
    description: str, source: str, arm: str, n: int
) -> None:
    text = note(description=description, source=source, rows=[row(arm=arm)] * n, space=[arm] * 50)
    assert len(text) <= NOTE_LIMIT
    shown = sum(line.startswith("| ") for line in text.splitlines()) - 2
    if n:
        assert 0 < shown <= n
        assert (f"and {n - shown} more arms" in text) == (shown < n)


@given(st.text() | st.text(st.sampled_from("`*_{}[]()#!|<>&~$\\@-=1. \n\tab"), min_size=5))
def test_no_text_acts_as_markdown_or_html(text: str) -> None:
    shown = escaped(text, 10_000)
    assert not set(re.sub(r"&#\d+;", "", shown)) & set("`*_{}[]#|<>&~$\\")
    assert "\n" not in shown
    printable = "".join(c for c in " ".join(text.split()) if c.isprintable())
    assert html.unescape(shown) == " ".join(printable.split())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("- a", "&#45; a"),
        ("+ a", "&#43; a"),
        ("1. a", "1&#46; a"),
        ("12) a", "12&#41; a"),
        ("0.5 (+1)", "0.5 (+1)"),
        ("=", "&#61;"),
        ("https://a.b", "https:&#47;/a.b"),
        ("www.a.b", "www&#46;a.b"),
        ("a@b.c", "a&#64;b.c"),
    ],
)
def test_nothing_becomes_a_list_a_heading_or_a_link(text: str, shown: str) -> None:
    assert escaped(text, 99) == shown


def test_long_text_is_cut() -> None:
    assert escaped("a" * 50, 10) == "aaaaaaa..."


# Links without MLflow


@pytest.fixture
def sent(tmp_path: Path) -> StudyFiles:
    files = StudyFiles(tmp_path / "rates")
    files.root.mkdir()
    return files


def mark(files: StudyFiles, store: str) -> None:
    files.shipped.write_text(json.dumps({"store": store, "offset": 10}))


def test_study_that_was_sent_to_a_server_links_there_without_its_login(
    sent: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(sent, "https://me:secret@host/mlflow 12 1700000000000")
    assert study_url(sent, 5000) == results_link("https://host/mlflow", "12")
    assert study_words(sent, 5000) == f"results in MLflow: {results_link('https://host/mlflow', '12')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/mlflow")
    assert results_url("12", 5000) == study_url(sent, 5000)


def test_study_in_our_own_store_links_to_the_server_that_ui_starts(
    sent: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(sent, "sqlite:////home/a b/mlflow.db 3 1700000000000")
    assert study_url(sent, 5001) == results_link("http://127.0.0.1:5001", "3")
    words = study_words(sent, 5001)
    assert words is not None
    assert "gan-sweep ui --port 5001" in words or "ui --port 5001" in words
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert study_url(sent, 5001) is None


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"store": "x"}', '{"store": 3}'])
def test_study_that_was_never_sent_has_no_link(sent: StudyFiles, content: str | None) -> None:
    if content is not None:
        sent.shipped.write_text(content)
    assert study_url(sent, 5000) is None
    assert study_words(sent, 5000) is None
