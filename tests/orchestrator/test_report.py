"""The report: what it says, that it holds what a study may throw at it, and that it opens without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import itertools
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from orchestrator import asked, charts, commands, findings
from orchestrator.charts import ArmCurves, Point, band
from orchestrator.comparison import compare_all
from orchestrator.embed import Embedder, _native
from orchestrator.export import make_tables
from orchestrator.findings import arm_rows, dots
from orchestrator.home import StudyFiles
from orchestrator.pages import content_policy, markdown
from orchestrator.reading import judged_on_different_images, read_study
from orchestrator.report import SECTIONS, Content, write_report
from orchestrator.reproduce import recipe
from orchestrator.status import load_definition
from orchestrator.study import Choices, Range
from orchestrator.testing import tiny_study
from orchestrator.views import colour, one_line
from tests.orchestrator.fabricated import TWO_RATES, Trials, fabricate

go: Any = importlib.import_module("plotly.graph_objects")  # it ships no types

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & ]]> {{ 7*7 }} | `code`"
ADDRESSES = (
    "src",
    "href",
    "srcset",
    "action",
    "formaction",
    "data",
    "poster",
    "xlink:href",
    "background",
    "ping",
)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts, styles and everything else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text, self.ids = "", set[str]()
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        self.ids.add(found.get("id", ""))
        self._inside = tag
        if tag == "script":
            self.scripts.append((found, ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.text += data


def html_of(files: StudyFiles) -> str:
    return Content.of(read_study(files)).html()


def answer_of(files: StudyFiles) -> list[str]:
    return list(Content.of(read_study(files)).answer)


def text_of(files: StudyFiles) -> str:
    return " ".join(Tags(html_of(files)).text.split())


def hostile_study() -> StudyFiles:
    """A study whose every text is hostile, with a failed trial."""
    return fabricate(
        [({"optimizer": HOSTILE}, [0.3, 0.31]), ({"optimizer": "adam"}, [0.5, "failed"])],
        reason=HOSTILE,
        detail=HOSTILE,
        description=HOSTILE,
        source=HOSTILE,
        space={"optimizer": {"choices": [HOSTILE, "adam"]}},
        claims=[{"id": "hostile", "says": HOSTILE, "check": ""}],
    )


def test_text_of_a_study_is_shown_and_never_becomes_a_tag_or_a_script() -> None:
    page = Tags(html_of(hostile_study()))
    tags = [tag for tag, _ in page.tags]
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in page.tags if tag == "img")
    executable = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert len(executable) == 2
    assert not any("alert(1)" in text for text in executable)
    shown = " ".join(page.text.split())
    assert shown.count("alert(1)") >= 6  # description, source, label, claim, reason, log
    assert "{{ 7*7 }}" in shown
    assert tags.count("script") == len(page.scripts)
    for attributes, text in page.scripts:
        if attributes.get("type") == "application/json":
            json.loads(text)


def test_labels_in_charts_hold_no_markup_that_plotly_would_draw() -> None:
    page = Tags(html_of(hostile_study()))
    drawn = [
        json.loads(text) for attributes, text in page.scripts if attributes.get("type") == "application/json"
    ]
    names = {trace["name"] for figure in drawn for trace in figure["data"] if "name" in trace}
    assert any("alert(1)" in name for name in names)
    assert not any("<" in name for name in names)


def test_the_page_loads_nothing_and_names_its_own_scripts_by_digest() -> None:
    page = Tags(html_of(hostile_study()))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ADDRESSES:
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, name, attributes[name][:60])
        assert "url(" not in attributes.get("style", "")
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    executable = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert allowed == {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in executable}


def test_the_style_asks_for_nothing_from_elsewhere() -> None:
    style = (Path(charts.__file__).parent / "templates" / "page.css").read_text()
    assert not re.search(r"@import|url\(|https?:", style)


def test_a_page_without_scripts_allows_none() -> None:
    assert "script-src 'none'" in content_policy([])


def test_every_section_is_there_in_both_forms() -> None:
    files = fabricate(
        [({"lr": 1e-3}, [0.3, 0.31, "diverged"]), ({"lr": 1e-4}, [0.6, 0.62, 0.61])],
        reason="not finite at step 12",
        claims=[{"id": "a", "says": "A larger rate is better.", "check": "last(eval.fd, lr=1e-3) < 1"}],
    )
    page = Tags(write_report(files).html.read_text(encoding="utf-8"))
    assert set(SECTIONS) <= page.ids
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    text = (files.root / "report" / "report.md").read_text()
    for heading in (
        "What was asked",
        "Leaderboard",
        "Claims of the source",
        "Failures",
        "How to run it again",
    ):
        assert f"\n## {heading}\n" in text
    assert "not finite at step 12" in text
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (files.root / "report" / path).is_file()


def test_the_same_study_makes_the_same_page(tmp_path: Path) -> None:
    files = fabricate()
    first, second = (write_report(files, tmp_path / name).html.read_bytes() for name in "ab")
    assert first == second


def test_the_answer_names_the_best_arm_its_interval_the_floor_and_how_sure_it_is() -> None:
    (first, second, *_) = answer_of(fabricate())
    assert first.startswith("lr=0.001 is best with eval/fd 0.3 (95 % interval ")
    assert "3 seeds), 3 times the floor of 0.1" in first
    assert "better than the next, lr=0.0001, by 0.31" in second


def test_arms_that_cannot_be_told_apart_are_called_so_with_the_seeds_that_would_tell() -> None:
    files = fabricate([({"lr": 1e-3}, [0.30, 0.50, 0.40]), ({"lr": 1e-4}, [0.55, 0.35, 0.45])])
    answer = " ".join(answer_of(files))
    assert "cannot be told apart from lr=0.0001" in answer
    assert re.search(r"about \d+ more seeds would tell lr=0\.0001 apart", answer)
    assert "is better than" not in answer


OTHER_IMAGES = [{"name": "mnist5k"}, {"name": "digits", "limit": 900}, {"name": "digits", "hold_out": 100},
                {"name": "digits", "size": 16}]  # fmt: skip
ON_TWO: Trials = [({"arm": "a"}, [0.30, 0.31, 0.29]), ({"arm": "b"}, [0.60, 0.62, 0.61])]


def on_two(dataset: dict[str, Any], **changes: Any) -> StudyFiles:
    """A study of two arms, of which the second one has a dataset of its own."""
    return fabricate(ON_TWO, arms={"a": {}, "b": {"dataset": dataset}}, space={}, **changes)


@pytest.mark.parametrize("metric", ["eval/fd", "eval/recall"])
@pytest.mark.parametrize("dataset", OTHER_IMAGES)
def test_arms_on_different_images_are_not_compared(dataset: dict[str, Any], metric: str) -> None:
    mode = "min" if metric == "eval/fd" else "max"
    files = on_two(dataset, objective={"metric": metric, "mode": mode})
    written = write_report(files)
    reading = read_study(files)
    assert judged_on_different_images(reading.study, (arm.values for arm in reading.records.arms))
    for row in arm_rows(reading):
        assert (row.rank, row.comparison, row.verdict, row.more_seeds) == (None, None, "", None)
    assert written.summary["different_images"] is True
    assert [arm["rank"] for arm in written.summary["arms"]] == [None, None]  # type: ignore[attr-defined]
    for line in make_tables(reading)["leaderboard"].rows:
        assert (line["rank"], line["verdict"], line["difference"], line["p"]) == (None, "", None, None)
    for text in (Tags(written.html.read_text()).text, written.markdown.read_text(), " ".join(written.answer)):
        text = " ".join(text.split())
        assert "judged on different images" in text
        for verdict in (
            "better than",
            "is best",
            "the best arm",
            "Best arm",
            "times the floor",
            "worse",
            "tied with",
        ):
            assert verdict not in text


def test_arms_on_the_same_images_are_compared_whatever_their_floors() -> None:
    same: list[dict[str, Any]] = [
        {"name": "digits"},
        {"name": "digits", "size": 8},
        {"name": "digits", "channels": 1},
    ]
    for i, dataset in enumerate(same):
        answer = " ".join(answer_of(on_two(dataset, name=f"made{i}", floors=[0.1, 0.2])))
        assert "a is best" in answer
    files = on_two({"name": "mnist5k"}, name="of_training", objective={"metric": "final/g_loss"})
    assert "different images" not in " ".join(answer_of(files))


def test_the_grid_in_every_form_is_of_the_step_that_the_value_is_from() -> None:
    files = fabricate(
        [({"lr": 1e-3}, [0.3]), ({"lr": 1e-4}, [0.6])], graded=(12, 6)
    )  # the best one is the first
    reading = read_study(files)
    (sheet, _) = Content.of(reading).context["sheets"]
    assert sheet["step"] == 6
    trial = next(iter(reading.records.trials.values()))
    first = files.trial(trial.key) / "samples" / "step_6.png"
    assert reading.sample_grid(trial) == first
    (files.trial(trial.key) / "samples" / "step_12.png").unlink()
    assert "samples.png" in write_report(files).markdown.read_text()
    assert all(
        item.picture and item.picture.name == "step_6.png" for item in compare_all(["made:0", "made:1"]).items
    )


def test_what_judged_is_told_a_line_a_dataset_and_nothing_where_nothing_is_judged() -> None:
    networks = {
        "digits": "classifier_0a1b2c3d, right about 97.50% of held-out images",
        "mnist5k": "classifier_9f8e7d6c",
    }
    files = on_two({"name": "mnist5k"}, provenance={"gan_sweep.features": json.dumps(networks)},
                   evaluate={"samples": 16, "features": "classifier"})  # fmt: skip
    lines = [words for key, words in asked.facts(read_study(files)) if key == "evaluation"]
    assert lines == [
        f"16 generated images against as many real ones of {name}, in the features of a classifier trained on the "
        f"dataset's labels ({network})"
        for name, network in networks.items()
    ]
    assert "classifier_0a1b2c3d" in text_of(files)
    files = fabricate(name="unjudged", objective={"metric": "final/g_loss"}, evaluate={"count": 0})
    assert "evaluation" not in dict(asked.facts(read_study(files)))
    files = fabricate(name="unrecorded", provenance={"gan_sweep.features": "[1"})
    (line,) = [words for key, words in asked.facts(read_study(files)) if key == "evaluation"]
    assert line.endswith("in the features of an untrained network")


def test_an_arm_has_the_colour_that_it_has_in_mlflow() -> None:
    trials: Trials = [({"lr": 1e-3 + i * 1e-5}, [0.3 + i / 100]) for i in range(14)]
    rows = arm_rows(read_study(fabricate(trials, pictures=False)))
    assert [row.colour for row in rows] == [colour(i) for i in range(14)]


def test_lost_seeds_are_told_in_the_answer_the_leaderboard_and_the_failures() -> None:
    files = fabricate([({"lr": 1e-3}, [0.3, "diverged"]), ({"lr": 1e-4}, [0.6, 0.6])], reason="not finite")
    content = Content.of(read_study(files))
    assert "lr=0.001 diverged in 1 of 2 seeds" in " ".join(content.answer)
    assert content.summary()["failures"] == [
        {"trial": "001 lr=0.001 seed 1", "key": "0000000000000001", "state": "diverged", "step": 12,
         "reason": "not finite"}
    ]  # fmt: skip
    assert "diverged 1/2" in text_of(files)


@pytest.mark.parametrize("pictures", [True, False])
def test_a_study_that_runs_says_so_at_the_top(pictures: bool) -> None:
    files = fabricate([({"lr": 1e-3}, ["running", "waiting"])], ended=None, pictures=pictures)
    with FileLock(files.lock):
        page = text_of(files)
    assert "Still running" in page
    assert "0 of 4 trials are done" in page
    assert "No trial has completed" in page


def test_a_study_whose_driver_died_is_stopped_and_its_trial_is_among_the_failures() -> None:
    files = fabricate([({"lr": 1e-3}, ["running", 0.3])], ended=None)
    summary = Content.of(read_study(files)).summary()
    assert summary["state"] == "stopped"
    assert [f["state"] for f in summary["failures"]] == ["stopped"]  # type: ignore[attr-defined]
    assert "Stopped before its end" in text_of(files)


def test_a_study_in_which_nothing_has_happened_has_a_report() -> None:
    files = fabricate([], ended=None)
    page = html_of(files)
    assert "Not begun yet" in page
    assert len(page) < 60_000  # without plotly.js, as there is nothing to draw


def test_a_study_without_a_single_completed_trial_has_a_report() -> None:
    page = text_of(fabricate([({"lr": 1e-3}, ["failed", "failed"])], ended="failed", reason="out of memory"))
    assert "No trial has completed, so there is no answer yet." in page
    assert "out of memory" in page


def test_a_damaged_picture_is_named_and_the_rest_is_shown() -> None:
    files = fabricate()
    (files.trial("0000000000000002") / "samples" / "step_12.png").write_bytes(b"no picture")
    assert "step_12.png" in text_of(files)
    assert "samples.png" in write_report(files).markdown.read_text()


def test_json_has_the_answer_and_the_paths() -> None:
    files = fabricate()
    answer = json.loads(json.dumps(commands.report("made", None).json, allow_nan=False))
    assert answer["files"] == {kind: str(files.root / "report" / name) for kind, name in
                               (("html", "index.html"), ("markdown", "report.md"))}  # fmt: skip
    assert [arm["rank"] for arm in answer["arms"]] == [1, 2]
    assert answer["arms"][1]["verdict"] == "worse"
    assert answer["trial_hours"] == pytest.approx(6)


# Charts


def test_every_figure_is_one_that_plotly_knows() -> None:
    space = {"lr": {"choices": [1e-3, 1e-4]}, "optimizer": {"choices": ["adam", "sgd"]}}
    arms = [
        ({"lr": lr, "optimizer": optimizer}, [0.3 + lr, 0.31 + lr, 0.3])
        for lr in (1e-3, 1e-4)
        for optimizer in ("adam", "sgd")
    ]
    context = Content.of(read_study(fabricate(arms, space=space))).context
    figures = [chart.figure for part in ("training", "evaluations", "search") for chart in context[part]]
    assert len(figures) >= 12
    for figure in figures:
        go.Figure(figure)


def test_a_search_of_numbers_has_contours_that_plotly_knows() -> None:
    rng = np.random.default_rng(0)
    axes = {"lr": Range(low=1e-5, high=1e-2, log=True), "beta1": Range(low=0.0, high=0.9)}
    points = [
        point(
            i,
            {"lr": float(10 ** rng.uniform(-5, -2)), "beta1": float(rng.uniform(0, 0.9))},
            float(rng.normal(5)),
        )
        for i in range(12)
    ]
    found = charts.contours(points, axes, "min", ["beta1", "lr"])
    assert list(found) == ["beta1 and lr"]
    go.Figure(found["beta1 and lr"])
    go.Figure(charts.parallel(points, axes, "eval/fd", "min"))


def point(number: int, values: dict[str, Any], mean: float) -> Point:
    return Point(
        number=number, label=f"arm {number}", colour="#00798c", values=values, mean=mean, seeds=[mean]
    )


def test_importance_finds_the_hyperparameter_that_matters() -> None:
    axes = {"lr": Choices(choices=[1, 2, 3]), "beta1": Choices(choices=[1, 2, 3])}
    points = [
        point(3 * i + j, {"lr": i + 1, "beta1": j + 1}, 10.0 * i + 0.1 * j)
        for i in range(3)
        for j in range(3)
    ]
    shares = charts.importance(points, axes, "min")
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["lr"] > 0.9


def test_importance_is_left_out_where_it_means_nothing() -> None:
    axes = {"lr": Choices(choices=[1, 2]), "beta1": Choices(choices=[1, 2])}
    points = [point(i, {"lr": i % 2 + 1, "beta1": 1}, float(i)) for i in range(3)]
    assert charts.importance(points, axes, "min") is None
    assert charts.importance(points * 2, {"lr": axes["lr"]}, "min") is None
    assert "With one hyperparameter" in text_of(fabricate())


SERIES = st.lists(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400).map(
        lambda ys: (list(range(1, len(ys) + 1)), ys)
    ),
    min_size=1,
    max_size=3,
)


@given(SERIES)
@example([(list(range(1, 402)), [float(i % 7) for i in range(401)])])
def test_a_band_encloses_its_mean_ends_with_the_last_step_and_is_short(seeds: Any) -> None:
    steps, mean, low, high = band(seeds)
    assert len(steps) <= charts.POINTS
    assert steps == sorted(set(steps))
    assert steps[-1] == max(len(xs) for xs, _ in seeds)
    reach = 1e-3 * max(1.0, *(abs(y) for _, ys in seeds for y in ys))  # four digits are kept
    assert all(a - reach <= b <= c + reach for a, b, c in zip(low, mean, high, strict=True))


def test_seeds_that_end_early_leave_the_others_alone() -> None:
    steps, mean, _, _ = band([([1, 2, 3], [1.0, 1.0, 1.0]), ([1], [3.0])])
    assert (steps, mean) == ([1, 2, 3], [2.0, 1.0, 1.0])


def test_an_arm_that_explodes_does_not_flatten_the_others() -> None:
    arms = [
        ArmCurves(
            number=i, label=f"arm {i}", colour="#00798c", seeds=[([1, 2], [1.0, top]), ([1, 2], [1.1, top])]
        )
        for i, top in enumerate([2.0, 3.0, 1e11])
    ]
    axis = charts.curves(arms)["layout"]["yaxis"]
    assert axis["range"] == pytest.approx([0.9, 3.1])
    assert charts.beyond(arms, axis) == ["arm 2"]
    assert "range" not in charts.curves(arms[:2])["layout"]["yaxis"]


@given(st.lists(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_leaderboards_axis_keeps_the_order_of_values(values: list[list[float]]) -> None:
    rows = [row_with(i, seeds) for i, seeds in enumerate(values)]
    axis = dots(rows)
    assert axis is not None
    placed = [(v, x) for row, d in zip(rows, axis.rows, strict=True)
              for v, x in zip(row.by_seed.values(), d.seeds, strict=True)]  # fmt: skip
    assert all(0 <= x <= 100 for _, x in placed)
    ordered = sorted(placed)
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ordered))


def row_with(number: int, seeds: list[float]) -> findings.ArmRow:
    standing: Any = None
    return findings.ArmRow(
        rank=number + 1, standing=standing, colour="#000000", label=f"arm {number}", mean=seeds[0], bounds=None,
        by_seed=dict(enumerate(seeds)), comparison=None, floor=None, ratio=None, remarks=(),
    )  # fmt: skip


# Words and pictures


def test_a_discriminator_that_wins_is_remarked() -> None:
    (row, _) = arm_rows(read_study(fabricate()))
    assert any("near balance: the discriminator tells 60 %" in remark for remark in row.remarks)
    assert "the discriminator wins" in findings._balance(0.99, 2.0)
    assert "the discriminator loses" in findings._balance(0.2, 0.1)


@pytest.mark.parametrize(
    ("modes", "words"),
    [(1.0, "1 class appears"), (2.75, "2.8 classes appear"), (120.0, "120 classes appear")],
)
def test_classes_are_counted_in_plain_numbers(modes: float, words: str) -> None:
    assert findings._modes(modes) == words


def test_a_study_of_one_trial_speaks_of_one() -> None:
    assert "The only trial completed." in answer_of(
        fabricate([({"lr": 1e-3}, [0.3])], space={"lr": {"choices": [1e-3]}})
    )


MARKUP = st.text(st.sampled_from("`*_{}[]()#!|<>&~$\\@-+=1.: \n\tab;w/"), min_size=1, max_size=20)
AROUND = ("{}", "- {}", "> {}", "# {}", "**{}**", "| a | b |\n|---|---|\n| {} | c |")
"""Where the template puts text."""


@given(st.text(max_size=60) | MARKUP)
@example("1. one")
@example("12) twelve")
@example("- a")
@example("+ a")
@example("&amp; &#65;")
@example("https://a.b www.a.b")
@example("---")
@example("***")
@example("[a](b) ![c](d)")
@example("\\| \\")
def test_markdown_shows_text_as_it_is_in_one_line(text: str) -> None:
    shown, line = markdown(text), one_line(text)
    assert len(shown.splitlines()) <= 1
    if not line:
        return
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for around in AROUND:
        rendered = reader.render(around.format(shown))
        assert html.unescape(re.sub(r"<[^>]*>", "", rendered)).split() == around_words(around, line)
        assert re.findall(r"<(\w+)", rendered) == re.findall(r"<(\w+)", reader.render(around.format("text")))


def around_words(around: str, line: str) -> list[str]:
    return ["a", "b", *line.split(), "c"] if "|" in around else line.split()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1. one", "1\\. one"),
        ("0.5 (95 % interval 0.4 to 0.6), 1e+10", "0.5 (95 % interval 0.4 to 0.6), 1e+10"),
        ("https://a.b", "https:\\//a.b"),
        ("www.a.b", "www\\.a.b"),
        ("lr=0.001 obs_mlp", "lr=0.001 obs\\_mlp"),
    ],
)
def test_markdown_stays_readable_and_has_no_links_of_its_own(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_hostile_text_breaks_no_row_of_the_markdown() -> None:
    files = hostile_study()
    write_report(files)
    rows = [
        line
        for line in (files.root / "report" / "report.md").read_text().splitlines()
        if line.startswith("|")
    ]
    board = [row for row in rows if "95 % interval" in row or ("alert" in row and "best" in row)]
    assert len(board) == 2
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in board}) == 1


def test_pixels_that_are_repeated_are_embedded_once() -> None:
    small = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    assert np.array_equal(_native(small.repeat(4, axis=0).repeat(4, axis=1)), small)
    assert np.array_equal(_native(small), small)


def test_pictures_beyond_the_budget_are_counted_and_left_out(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(
        tmp_path / "a.png"
    )
    embedder = Embedder(budget=20_000)
    found = [embedder.picture(tmp_path / "a.png", 64) for _ in range(4)]
    assert found[0].startswith("data:image/webp;base64,")
    assert found[-1] == ""
    assert embedder.left_out == found.count("") > 0
    assert embedder.used == sum(map(len, found)) <= 20_000


def test_animations_stay_animated_and_are_thinned_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (8, 8)).astype(np.uint8) for _ in range(59)]
    small.append(np.zeros((8, 8), np.uint8))
    frames = [Image.fromarray(one.repeat(4, axis=0).repeat(4, axis=1)) for one in small]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    data = Embedder().picture(tmp_path / "a.gif", 100).split(",")[1]
    (tmp_path / "a.webp").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "a.webp") as image:
        assert (getattr(image, "n_frames", 1), image.size) == (40, (8, 8))


# Running it again

FILE = """\
version: 1
name: made
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 12, batch_size: 8, log_every: 2}
fixed: {width: 8, latent_dim: 4}
space: {lr: {choices: [1e-3, 1e-4]}}
pictures: {count: 2, samples: 4}
evaluate: {samples: 16}
"""


@pytest.mark.parametrize("budget", ["full", "short"])
@pytest.mark.parametrize("settings", [[], ["train.steps=24", "name=a b"], ["space.lr.choices=[0.001]"]])
def test_the_command_is_the_one_that_was_given(budget: str, settings: list[str]) -> None:
    reading = read_study(fabricate(source=FILE))
    reading.records.provenance = {"gan_sweep.budget": budget, "gan_sweep.set": json.dumps(settings)}
    found = recipe(reading)
    words = shlex.split(found.command)
    options = [] if budget == "full" else ["--budget", budget]
    assert words == [
        "gan-sweep",
        "submit",
        "study.yaml",
        *options,
        *(w for s in settings for w in ("--set", s)),
    ]
    assert found.source == FILE


def test_where_results_come_from_is_told() -> None:
    page = text_of(fabricate(TWO_RATES, source=FILE))
    assert "0123456789abcdef with changes that were not committed" in page
    assert "torch 2.15.0" in page
    assert "made.yaml" in page
    assert "0000000000000000" in page  # a trial's key


def test_the_definition_read_back_is_the_one_that_was_written() -> None:
    assert load_definition(fabricate()) == tiny_study(name="made", seeds=[0, 1, 2])
