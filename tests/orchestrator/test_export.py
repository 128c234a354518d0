"""Tables for other programs."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.export import FORMULAS, export, guarded, make_tables, to_frame
from orchestrator.reading import read_study
from tests.orchestrator.fabricated import Trials, fabricate

NAMES = ["claims", "leaderboard", "metrics", "trials"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_there_is_a_row_for_every_trial_arm_claim_and_measured_value(tmp_path: Path) -> None:
    files = fabricate(claims=[{"id": "a", "says": "words"}])
    written = export(files, tmp_path)
    assert sorted(written) == NAMES
    measured = sum(len(v) for curves in read_study(files).curves.values() for _, v in curves.values())
    assert {name: len(read_csv(path)) for name, path in written.items()} == {
        "trials": 6, "leaderboard": 2, "claims": 1, "metrics": measured,
    }  # fmt: skip
    assert measured == 6 * 2 * 9


def test_a_trial_has_its_values_its_objective_and_its_best(tmp_path: Path) -> None:
    first = read_csv(export(fabricate(), tmp_path)["trials"])[0]
    assert (first["lr"], first["seed"], first["state"], first["objective"]) == (
        "0.001",
        "0",
        "completed",
        "eval/fd",
    )
    assert (float(first["value"]), float(first["value_step"])) == (0.3, 12)
    assert (float(first["eval/fd.highest"]), float(first["eval/fd.highest_step"])) == (0.6, 6)


def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe_and_numbers_do_not(tmp_path: Path) -> None:
    arms: Trials = [({"optimizer": "=1+1"}, [-0.5, "failed"])]
    files = fabricate(arms, reason="@SUM(A1)", space={"optimizer": {"choices": ["=1+1"]}})
    rows = read_csv(export(files, tmp_path)["trials"])
    assert [row["optimizer"] for row in rows] == ["'=1+1", "'=1+1"]
    assert rows[1]["reason"] == "'@SUM(A1)"
    assert float(rows[0]["eval/fd.lowest"]) == -1.0


@given(st.lists(st.one_of(st.none(), st.text(max_size=8)), min_size=1, max_size=5), st.floats(-9, 9))
def test_no_cell_of_text_begins_as_a_formula(texts: list[str | None], number: float) -> None:
    frame = guarded(pd.DataFrame({"text": texts, "number": [number] * len(texts)}))
    for before, after in zip(texts, frame["text"], strict=True):
        if isinstance(before, str):
            assert not after.startswith(FORMULAS)
            assert after in (before, f"'{before}")
    assert list(frame["number"]) == [number] * len(texts)


def test_parquet_reads_back_as_it_was(tmp_path: Path) -> None:
    files = fabricate([({"lr": 1e-3}, [0.3, "failed"]), ({"lr": 1e-4}, [0.6, 0.6])], reason="=odd")
    tables = make_tables(read_study(files))
    for name, path in export(files, tmp_path, "parquet").items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), to_frame(tables[name]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_study_that_has_not_begun_has_tables_with_headers(kind: str, tmp_path: Path) -> None:
    written = export(fabricate([], ended=None), tmp_path, kind)  # type: ignore[arg-type]
    for path in written.values():
        frame = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
        assert len(frame) == 0
        assert len(frame.columns) > 5


def test_an_axis_that_is_called_like_a_column_keeps_both(tmp_path: Path) -> None:
    arms = {"plain": {}, "wide": {"fixed": {"width": 16}}}
    files = fabricate([({"arm": "plain"}, [0.3]), ({"arm": "wide"}, [0.4])], arms=arms, space={})
    rows = read_csv(export(files, tmp_path)["trials"])
    assert [(row["arm"], row["space.arm"]) for row in rows] == [("0", "plain"), ("1", "wide")]
