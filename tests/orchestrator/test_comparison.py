"""Studies and trials side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import commands
from orchestrator.comparison import compare_all
from orchestrator.errors import UsageError
from tests.orchestrator.fabricated import fabricate


def two_studies(**changes: object) -> None:
    fabricate(name="first")
    fabricate([({"lr": 1e-3}, [0.5, 0.52, 0.51])], name="second", **changes)  # type: ignore[arg-type]


def test_studies_are_compared_by_their_best_arms_and_the_better_one_is_told() -> None:
    two_studies(fixed={"width": 16, "latent_dim": 4})
    found = compare_all(["first", "second"])
    assert found.best == "first"
    assert [round(item.mean or 0, 3) for item in found.items] == [0.3, 0.51]
    assert found.against["second"].verdict == "apart"
    assert found.differ == {"width": ["8", "16"]}


def test_trials_are_named_by_number_and_a_seed_is_no_difference() -> None:
    fabricate(name="first")
    found = compare_all(["first:0", "fir:1", "first:3"])
    assert [item.name for item in found.items] == ["first:0", "first:1", "first:3"]
    assert found.best == "first:1" or found.best == "first:0"
    assert set(found.differ) == {"lr", "lr_g", "lr_d"}
    assert [len(item.by_seed) for item in found.items] == [1, 1, 1]


def test_a_study_that_lost_a_seed_is_not_the_best() -> None:
    fabricate([({"lr": 1e-3}, [0.1, "diverged", 0.1])], name="first")
    fabricate(name="second")
    assert compare_all(["first", "second"]).best == "second"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"metric": "final/d_acc"}}, "no common value to compare"),
        ({"objective": {"metric": "eval/fd", "at": "last"}}, "no common value to compare"),
        ({"evaluate": {"samples": 32, "features": "random"}}, "different numbers of images do not compare"),
        ({"evaluate": {"samples": 16, "features": "classifier"}}, "in different features does not compare"),
    ],
)
def test_what_does_not_compare_is_refused_with_the_reason(changes: dict[str, object], words: str) -> None:
    two_studies(**changes)
    with pytest.raises(UsageError, match=words):
        compare_all(["first", "second"])


def test_other_images_are_a_warning() -> None:
    two_studies(dataset={"name": "digits", "limit": 900})
    assert compare_all(["first", "second"]).warning == ""
    fabricate(name="third", dataset="mnist5k")
    found = compare_all(["first", "third"])
    assert "different images (digits, mnist5k)" in found.warning
    assert found.best is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["first"], "two or more"),
        (["first", "fir"], "are the same"),
        (["first", "first:99"], "trials 0 to 5"),
        (["first", "first:x"], "trials 0 to 5"),
        (["first", "nothing"], "no study is called"),
    ],
)
def test_names_that_mean_nothing_are_told(names: list[str], words: str) -> None:
    fabricate(name="first")
    with pytest.raises(UsageError, match=words):
        compare_all(names)


def test_the_page_is_written_and_json_is_plain(tmp_path: Path) -> None:
    two_studies(description="<script>alert(1)</script>")
    answer = commands.compare(["first", "second"], tmp_path / "pages" / "both.html")
    page = (tmp_path / "pages" / "both.html").read_text()
    assert page.count('<img class="pixels" src="data:image/webp;base64,') == 2
    assert "<script>alert" not in page
    found = json.loads(json.dumps(answer.json, allow_nan=False))
    assert found["files"] == {"html": str(tmp_path / "pages" / "both.html")}
    assert [item["name"] for item in found["items"]] == ["first", "second"]
    assert len(answer.tables[0]) == 2
