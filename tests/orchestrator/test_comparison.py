"""Studies and trials side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import commands
from orchestrator.comparison import compare_all
from orchestrator.errors import UsageError
from orchestrator.testing import tiny_study
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


def digests(digest: str, network: str = "") -> dict[str, str]:
    """The provenance of a study of digits."""
    source = str(tiny_study().dataset.source)
    features = (
        {"gan_sweep.features": json.dumps({"digits": f"{network}, right about 97.50%"})} if network else {}
    )
    return {"gan_sweep.dataset_digests": json.dumps({source: digest}), **features}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("mnist5k", "digits; mnist5k"),
        ({"name": "digits", "limit": 900}, "digits; digits, the first 900"),
        ({"name": "digits", "hold_out": 100}, "digits; digits, 100 held out"),
        ({"name": "digits", "stored": 16, "size": 8}, "digits; digits 16x16x1, averaged to 8"),
    ],
)
def test_other_images_are_a_warning_without_a_winner(dataset: object, words: str) -> None:
    two_studies(dataset=dataset)
    found = compare_all(["first", "second"])
    assert f"different images ({words})" in found.warning
    assert found.best is None
    assert found.against == {}
    assert [found.words(item) for item in found.items] == ["not compared"] * 2


def test_one_name_with_other_contents_is_a_warning() -> None:
    fabricate(name="first", provenance=digests("a" * 64, "classifier_a"))
    fabricate(name="second", provenance=digests("b" * 64, "classifier_b"))
    fabricate(name="unrecorded")
    found = compare_all(["first", "second"])
    assert "(digits, SHA-256 aaaaaaaa; digits, SHA-256 bbbbbbbb)" in found.warning
    assert found.best is None
    assert compare_all(["first", "unrecorded"]).warning == ""
    assert compare_all(["first", "second", "unrecorded"]).warning


def test_other_networks_of_the_same_images_are_refused() -> None:
    fabricate(name="first", provenance=digests("a" * 64, "classifier_a"))
    fabricate(name="same", provenance=digests("a" * 64, "classifier_a"))
    fabricate(name="other", provenance=digests("a" * 64, "classifier_b"))
    assert compare_all(["first", "same"]).best == "first"
    with pytest.raises(UsageError, match="first is judged by classifier_a, other by classifier_b"):
        compare_all(["first", "other"])


def test_values_of_training_are_compared_whatever_the_images() -> None:
    objective = {"metric": "final/g_loss"}
    fabricate(name="first", objective=objective)
    fabricate(name="second", objective=objective, dataset="mnist5k")
    assert compare_all(["first", "second"]).warning == ""


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
