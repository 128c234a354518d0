"""What nobody needs goes, and nothing else: checkpoints, litter, studies, and what MLflow keeps of them."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import tidy, tracking
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, all_studies
from orchestrator.study import StudySpec
from orchestrator.testing import BackendContract, tiny_study
from orchestrator.tidy import KEEP, Item, Listing, TrialFiles, litter_of_home, parse_keep, plan_of
from orchestrator.tracking import dead_artifacts, open_client
from tests.orchestrator.fabricated import fabricate
from tests.orchestrator.invoking import Invoke, invoke
from tests.orchestrator.test_tracking import Painter, empty_store, facts, paint, ship, store

__all__ = ["empty_store", "invoke", "store"]

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")


def everything_below(path: Path) -> set[Path]:
    return set(path.rglob("*"))


# The plan


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    """Studies of up to six trials, with checkpoints and copies of some of them in MLflow."""
    trials = []
    for number in range(draw(st.integers(0, 6))):
        steps = sorted(draw(st.sets(st.integers(1, 5), max_size=4)), reverse=True)
        mine = tuple(Item(kind="checkpoint", path=Path(f"{number}/step_{s}"), bytes=s) for s in steps)
        paths = [each.path for each in mine]
        trials.append(
            TrialFiles(
                finished=draw(st.booleans()),
                checkpoints=mine,
                copies=tuple(
                    Item(kind="copy", path=Path(f"mlflow/{number}/step_{s}"), bytes=s)
                    for s in draw(st.sets(st.integers(1, 5)))
                ),
                valued=draw(st.sampled_from(paths)) if paths else None,
                earlier=frozenset(draw(st.sets(st.sampled_from(paths)))) if paths else frozenset(),
            )
        )
    best = draw(st.integers(0, len(trials) - 1)) if trials else None
    litter = (Item(kind="litter", path=Path("x.tmp"), bytes=1),) if draw(st.booleans()) else ()
    return Listing(trials=tuple(trials), best=best, litter=litter)


keeps = st.sets(st.sampled_from(KEEP[1:])).map(lambda more: {*more, "study-best"})


def gone(listing: Listing, keep: set[str]) -> set[Path]:
    paths = [each.path for each in plan_of(listing, keep)]
    assert len(paths) == len(set(paths))
    return set(paths)


@given(listing=listings(), keep=keeps)
def test_nothing_of_an_unfinished_trial_goes(listing: Listing, keep: set[str]) -> None:
    unfinished = {each.path for t in listing.trials if not t.finished for each in (*t.checkpoints, *t.copies)}
    assert not gone(listing, keep) & unfinished


@given(listing=listings(), keep=keeps)
def test_the_best_checkpoint_of_the_best_trial_always_stays(listing: Listing, keep: set[str]) -> None:
    best = listing.trials[listing.best].valued if listing.best is not None else None
    assert best not in gone(listing, keep)


@given(listing=listings(), keep=keeps, more=keeps)
def test_to_keep_more_removes_no_more(listing: Listing, keep: set[str], more: set[str]) -> None:
    assert gone(listing, keep | more) <= gone(listing, keep)


@given(listing=listings())
def test_of_each_finished_trial_stays_exactly_what_was_asked_for(listing: Listing) -> None:
    removed = gone(listing, {"study-best", "trial-best", "latest"})
    for trial in listing.trials:
        if trial.finished:
            stays = [each.path for each in trial.checkpoints if each.path not in removed]
            newest = trial.checkpoints[0].path if trial.checkpoints else None
            assert set(stays) == {trial.valued, newest} - {None}
    only_best = gone(listing, {"study-best"})
    for place, trial in enumerate(listing.trials):
        if trial.finished and place != listing.best:
            assert {each.path for each in trial.checkpoints} <= only_best


@given(listing=listings(), keep=keeps)
def test_a_copy_in_mlflow_goes_with_its_checkpoint_and_stays_where_it_is_the_last(
    listing: Listing, keep: set[str]
) -> None:
    removed = gone(listing, keep)
    for trial in listing.trials:
        left = {each.path.name for each in trial.checkpoints if each.path not in removed}
        for copy in trial.copies:
            if not trial.finished or not trial.checkpoints:
                assert copy.path not in removed
            else:
                assert (copy.path in removed) == (copy.path.name not in left)


@pytest.mark.parametrize("text", ["best", "trial-best", "", "study-best,newest"])
def test_what_cannot_be_kept_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(UsageError, match=r"study-best.*trial-best, latest, earlier"):
        parse_keep(text)


# The disk


@pytest.fixture
def painted(private_home: Path) -> StudyFiles:
    """A finished study of 2 arms x 2 seeds with checkpoints, in the home; MLflow has no store."""
    return paint_into(private_home)


def paint_into(home: Path, name: str = "tiny", **changes: Any) -> StudyFiles:
    study = tiny_study(name=name, **changes)
    return paint(study, home / "studies", BackendContract.ARMS, Painter(), facts(study))


def steps_left(files: StudyFiles) -> dict[str, list[str]]:
    return {
        path.name: sorted(p.name for p in (path / "checkpoints").glob("step_*"))
        for path in (files.root / "trials").iterdir()
    }


def test_a_dry_run_says_what_a_run_removes_and_removes_nothing(invoke: Invoke, painted: StudyFiles) -> None:
    before = everything_below(painted.root)
    arguments = ("gc", "tiny", "--keep", "study-best", "--json")
    code, stdout, _ = invoke(*arguments, "--dry-run")
    dry = json.loads(stdout)
    assert (code, dry["dry_run"], dry["removed"]) == (0, True, 0)
    assert everything_below(painted.root) - before <= {painted.lock}
    done = json.loads(invoke(*arguments, "--yes")[1])
    assert done["paths"] == dry["paths"]
    assert done["removed"] == len(dry["paths"]) > 0
    assert not any(Path(path).exists() for path in dry["paths"])
    assert "there is nothing to remove" in invoke("gc", "tiny", "--keep", "study-best")[1]


def test_only_the_best_checkpoint_of_the_study_is_left(invoke: Invoke, painted: StudyFiles) -> None:
    best = json.loads(invoke("best", "--json")[1])["files"]["best_checkpoint"]
    assert invoke("gc", "tiny", "--keep", "study-best", "--yes")[0] == 0
    left = steps_left(painted)
    assert sum(map(len, left.values())) == 1
    assert Path(best).is_dir()
    assert json.loads(invoke("best", "--json")[1])["files"]["best_checkpoint"] == best


def test_by_default_the_best_and_the_latest_of_each_trial_stay(invoke: Invoke, painted: StudyFiles) -> None:
    directory = next((painted.root / "trials").iterdir()) / "checkpoints"
    shutil.copytree(directory / "step_000000012", directory / "step_000000003")
    manifest = json.loads((directory / "step_000000003" / "manifest.json").read_text())
    (directory / "step_000000003" / "manifest.json").write_text(
        json.dumps(manifest | {"best": False, "step": 3})
    )
    before = steps_left(painted)
    assert invoke("gc", "tiny", "--yes")[0] == 0
    after = steps_left(painted)
    removed = {(key, step) for key in before for step in set(before[key]) - set(after[key])}
    assert removed == {(directory.parent.name, "step_000000003")}


def test_a_stopped_trial_keeps_everything(invoke: Invoke, private_home: Path) -> None:
    from trials.reports import State

    study = tiny_study()
    ends = {number: State.STOPPED for number in range(4)}
    files = paint(study, private_home / "studies", BackendContract.ARMS, Painter(ends=ends), facts(study))
    before = steps_left(files)
    assert any(before.values())
    invoke("gc", "--keep", "study-best", "--yes")
    assert steps_left(files) == before


def test_a_crash_half_way_leaves_no_directory_that_looks_complete(
    invoke: Invoke, painted: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(path: Path) -> None:
        next(Path(path).iterdir()).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            invoke("gc", "tiny", "--keep", "study-best", "--yes")
    for path in painted.root.glob("trials/*/checkpoints/step_*"):
        assert ".tmp-" in path.name or (path / "manifest.json").exists()
    assert list(painted.root.rglob("*.tmp-removed"))
    invoke("gc", "tiny", "--keep", "study-best", "--yes")
    assert not list(painted.root.rglob("*.tmp-*"))


def test_a_running_study_is_left_alone(invoke: Invoke, painted: StudyFiles, private_home: Path) -> None:
    other = paint_into(private_home, "other")
    before = everything_below(painted.root)
    with FileLock(painted.lock):
        code, _, stderr = invoke("gc", "tiny", "--keep", "study-best", "--yes")
        assert (code, "study tiny is running" in stderr) == (2, True)
        code, _, stderr = invoke("gc", "--keep", "study-best", "--yes")
        assert (code, "study tiny is running: nothing of it is removed" in stderr) == (0, True)
        code, _, stderr = invoke("delete", "tiny", "--yes")
        assert (code, "gan-sweep stop tiny" in stderr) == (2, True)
    assert everything_below(painted.root) - before <= {painted.lock}
    assert sum(map(len, steps_left(other).values())) == 1


def test_nobody_is_asked_on_a_pipe_and_nothing_is_removed(
    invoke: Invoke, painted: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything_below(painted.root)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    for command in (("gc", "--keep", "study-best"), ("delete", "tiny")):
        code, _, stderr = invoke(*command)
        assert (code, "Say --yes" in stderr) == (2, True)
    assert everything_below(painted.root) - before <= {painted.lock}


@pytest.mark.parametrize(("answer", "stays"), [("n\n", True), ("y\n", False)])
def test_on_a_terminal_the_user_is_asked(
    answer: str, stays: bool, invoke: Invoke, painted: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    code, stdout, stderr = invoke("delete", "tiny")
    assert (code, painted.root.exists()) == (0, stays)
    assert "Delete study tiny" in stdout + stderr
    assert ("nothing was deleted" in stdout) == stays


def test_litter_of_killed_runs_goes(invoke: Invoke, painted: StudyFiles) -> None:
    trial = next((painted.root / "trials").iterdir())
    unknown = painted.root / "trials" / ("f" * 16)
    half = trial / "checkpoints" / "step_000000009.tmp-2"
    for directory in (unknown / "checkpoints", half):
        directory.mkdir(parents=True)
    files = [painted.root / "study.tmp", trial / "samples" / "x.tmp", painted.stop, painted.stop_request]
    for path in files:
        path.touch()
    kinds = {
        row["kind"]: row["number"] for row in json.loads(invoke("gc", "tiny", "--yes", "--json")[1])["kinds"]
    }
    assert kinds == {"unknown trial": 1, "half-written": 3, "stop request": 2}
    assert not any(path.exists() for path in (unknown, half, *files))


@pytest.mark.parametrize("content", ["", "not json\n"])
def test_without_a_journal_no_trial_is_called_unknown(
    content: str, invoke: Invoke, painted: StudyFiles
) -> None:
    painted.journal.write_text(content)
    before = steps_left(painted)
    invoke("gc", "--keep", "study-best", "--yes")
    assert steps_left(painted) == before


def test_half_written_files_outside_of_studies_go_when_they_are_a_day_old(private_home: Path) -> None:
    names = (
        "datasets/a.part.npy",
        "datasets/b.tmp",
        "features/c.tmp",
        "data/MNIST/raw/d.part",
        "mlflow/new-x/mlflow.db",
    )
    stay = ("datasets/a.images.npy", "data/photos/e.tmp", "data/photos/new-1.png", "mlflow/mlflow.db")
    for name in (*names, *stay):
        (private_home / name).parent.mkdir(parents=True, exist_ok=True)
        (private_home / name).touch()
    day = 24 * 3600
    assert litter_of_home(day - 1, lambda _: 0.0) == []
    found = {
        each.path.relative_to(private_home).as_posix() for each in litter_of_home(day + 1, lambda _: 0.0)
    }
    assert found == {*names[:-1], "mlflow/new-x"}


def test_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    link = tmp_path / "step_1"
    link.symlink_to(tmp_path / "precious")
    tidy.remove_tree(link)
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_a_study_that_is_half_deleted_is_listed_nowhere_and_goes_with_the_next_gc(
    invoke: Invoke, painted: StudyFiles, monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            tidy.delete_files(painted)
    assert all_studies() == []
    assert json.loads(invoke("gc", "--yes", "--json")[1])["kinds"][0]["kind"] == "deleted study"
    assert not list((private_home / "studies").glob(".tmp-*"))


# MLflow


@pytest.fixture
def shipped(store: Path, private_home: Path) -> tuple[StudyFiles, StudySpec]:
    """A finished study in the home, and in MLflow."""
    study, files = tiny_study(), paint_into(private_home)
    assert ship(files, study) == 0
    return files, study


def rows_of_store(private_home: Path) -> dict[str, int]:
    with closing(sqlite3.connect(private_home / "mlflow" / "mlflow.db")) as database:
        tables = ("experiments", "runs", "metrics", "params", "logged_models")
        return {t: database.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in tables}


def run_names(name: str) -> list[str]:
    found = open_client().get_experiment_by_name(name)
    assert found is not None
    return sorted(str(run.info.run_name) for run in open_client().search_runs([found.experiment_id]))


def test_a_deleted_study_is_gone_and_its_name_is_free(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], private_home: Path
) -> None:
    files, _ = shipped
    other = paint_into(private_home, "other")
    ship(other, tiny_study(name="other"))
    experiment = open_client().get_experiment_by_name("other")
    assert experiment is not None
    deleted = open_client().search_runs([experiment.experiment_id])[0]
    open_client().delete_run(deleted.info.run_id)
    before, artifacts = (
        rows_of_store(private_home),
        everything_below(private_home / "mlflow" / "artifacts" / "other"),
    )
    code, stdout, _ = invoke("delete", "tiny", "--yes")
    assert (code, "prepared data stays" in stdout) == (0, True)
    assert not files.root.exists()
    assert not (private_home / "mlflow" / "artifacts" / "tiny").exists()
    assert open_client().get_experiment_by_name("tiny") is None
    after = rows_of_store(private_home)
    assert (after["runs"], after["experiments"]) == (before["runs"] - 5, before["experiments"] - 1)
    assert after["metrics"] * 2 == before["metrics"]
    assert after["logged_models"] == 1
    open_client().restore_run(deleted.info.run_id)
    assert len(run_names("other")) == 5
    assert everything_below(private_home / "mlflow" / "artifacts" / "other") == artifacts

    again = paint_into(private_home, "tiny", seeds=[7])
    assert ship(again, tiny_study(seeds=[7])) == 0
    assert run_names("tiny") == ["000 lr=0.001 seed 7", "001 lr=0.0001 seed 7", "study tiny"]


def test_a_store_that_cannot_delete_for_good_keeps_it_under_another_name(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_sql_store", lambda _: None)
    assert invoke("delete", "tiny", "--yes")[0] == 0
    assert open_client().get_experiment_by_name("tiny") is None
    from mlflow.entities import ViewType

    (kept,) = open_client().search_experiments(ViewType.DELETED_ONLY)
    assert kept.name.startswith("tiny (deleted ")


def test_a_study_that_was_deleted_in_mlflow_s_page_is_deleted_all_the_same(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    experiment = open_client().get_experiment_by_name("tiny")
    assert experiment is not None
    open_client().delete_experiment(experiment.experiment_id)
    assert invoke("delete", "tiny", "--yes")[0] == 0
    assert rows_of_store(private_home)["runs"] == 0


def test_a_store_that_stays_away_keeps_the_study(
    invoke: Invoke, painted: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, _, stderr = invoke("delete", "tiny", "--yes")
    assert (code, "does not answer" in stderr) == (3, True)
    assert painted.definition.exists()


def test_artifacts_of_what_mlflow_holds_as_deleted_go(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], private_home: Path
) -> None:
    client = open_client()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert dead_artifacts() == []
    run = client.search_runs([experiment.experiment_id], "tags.`gan_sweep.kind` = 'trial'")[0]
    client.delete_logged_model(model.model_id)
    client.delete_run(run.info.run_id)
    place = private_home / "mlflow" / "artifacts" / "tiny"
    expected = {place / "models" / model.model_id, place / run.info.run_id}
    assert set(dead_artifacts()) == set(dead_artifacts("tiny")) == expected
    assert dead_artifacts("other") == []
    others = {path for path in place.iterdir() if path not in expected}
    code, stdout, _ = invoke("gc", "--yes")
    assert (code, "deleted in MLflow" in stdout) == (0, True)
    assert not any(path.exists() for path in expected)
    assert all(path.exists() for path in others)


def test_nothing_of_another_store_is_touched(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = open_client().get_experiment_by_name("tiny")
    assert experiment is not None
    open_client().delete_experiment(experiment.experiment_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())
    assert dead_artifacts() == []


def test_checkpoints_in_mlflow_go_with_their_originals(
    invoke: Invoke, shipped: tuple[StudyFiles, StudySpec], private_home: Path
) -> None:
    place = private_home / "mlflow" / "artifacts" / "tiny"
    before = list(place.glob("*/artifacts/checkpoints/step_*"))
    assert len(before) >= 4
    invoke("gc", "tiny", "--keep", "study-best", "--yes")
    (left,) = place.glob("*/artifacts/checkpoints/step_*")
    (original,) = shipped[0].root.glob("trials/*/checkpoints/step_*")
    assert left.name == original.name


def test_a_fabricated_study_needs_no_store(invoke: Invoke, private_home: Path) -> None:
    fabricate()
    assert invoke("gc", "--yes")[0] == 0
    assert invoke("delete", "made", "--yes")[0] == 0
    assert not (private_home / "mlflow").exists()
