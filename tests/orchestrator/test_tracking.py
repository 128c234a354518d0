"""MLflow gets every row, run and picture exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from orchestrator.backends.inline import InlineBackend
from orchestrator.home import StudyFiles
from orchestrator.journal import TrialReported
from orchestrator.shipper import Shipper
from orchestrator.study import StudySpec
from orchestrator.testing import BackendContract, events, make_sweep, run_sweep, tiny_study
from orchestrator.tracking import MlflowSink, open_client
from orchestrator.views import VIEW_ID

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated store without experiments; migrating takes seconds, copying nothing."""
    home = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_SWEEP_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_client()
    return home / "mlflow" / "mlflow.db"


@pytest.fixture
def finished(empty_store: Path, private_home: Path, tmp_path: Path) -> tuple[StudyFiles, StudySpec]:
    """A finished study of 2 arms x 2 seeds that MLflow knows nothing of, and an empty store in the home."""
    (private_home / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, private_home / "mlflow" / "mlflow.db")
    study = tiny_study()
    sweep, _ = make_sweep(study, tmp_path, BackendContract.ARMS)
    sweep.files.definition.write_text(study.model_dump_json())
    sweep.files.source.write_text("name: tiny\n")
    sweep.start(
        {
            "gan_sweep.dataset_digests": json.dumps({str(study.dataset.source): "d" * 64}),
            "mlflow.source.git.commit": "c0ffee",
        }
    )
    InlineBackend().run(sweep)
    sweep.end()
    return sweep.files, study


def ship(
    files: StudyFiles, study: StudySpec, connect: Callable[[], Any] = open_client, patience_s: float = 60
) -> int:
    """Send what is to be sent; returns the number of events that could not be."""
    shipper = Shipper(files, MlflowSink(files, study, connect=connect), backoff_s=(0.01,))
    shipper.start()
    return shipper.close(patience_s)


def runs(kind: str) -> list[Run]:
    client = open_client()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.`gan_sweep.kind` = '{kind}'")


def rows(run: Run) -> list[tuple[str, int, float]]:
    client = open_client()
    return [
        (metric.key, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]


def pictures(run: Run) -> list[str]:
    paths = [file.path for file in open_client().list_artifacts(run.info.run_id, "images")]
    return sorted(path.split("+timestamp")[0] for path in paths if path.endswith(".png"))


def assert_everything_once(tmp_path: Path) -> None:
    """MLflow holds exactly what the journal holds."""
    (parent,) = runs("study")
    trials = runs("trial")
    assert len({run.data.tags["gan_sweep.trial_key"] for run in trials}) == len(trials) == 4
    for run in trials:
        key = run.data.tags["gan_sweep.trial_key"]
        acknowledged = [
            (name, step, value)
            for event in events(tmp_path, TrialReported)
            if event.key == key
            for step, metrics in event.rows
            for name, value in metrics.items()
        ]
        found = rows(run)
        assert not [row for row, n in Counter(found).items() if n > 1]
        assert {row for row in found if not row[0].startswith("final/")} == set(acknowledged)
        assert len({name for name, _, _ in found if name.startswith("final/")}) == 13
        assert (run.data.params["width"], run.data.params["lr"]) in (("8", "0.001"), ("8", "0.0001"))
        assert run.inputs is not None
        assert len(run.inputs.dataset_inputs) == 1
        assert pictures(run) == ["images/samples~fixed+step+12", "images/samples~fixed+step+6"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["gan_sweep.state"]) == ("FINISHED", "completed")
    assert (parent.info.status, parent.data.tags["gan_sweep.state"]) == ("FINISHED", "completed")


def test_a_study_is_one_experiment_a_parent_run_and_one_run_a_trial(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    assert ship(*finished) == 0
    assert_everything_once(tmp_path)


def test_a_trial_s_run_says_where_it_comes_from(finished: tuple[StudyFiles, StudySpec]) -> None:
    ship(*finished)
    client, run = open_client(), runs("trial")[0]
    params = run.data.params
    assert params["model"] == "obs_mlp"
    assert (params["optimizer"], params["width"], params["steps"], params["eval_samples"]) == (
        "adam",
        "8",
        "12",
        "16",
    )
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.inputs is not None
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "d" * 32)
    assert [f.path for f in client.list_artifacts(run.info.run_id, "checkpoints")] == [
        "checkpoints/step_000000012"
    ]


def test_the_experiment_carries_the_view_that_the_link_opens(finished: tuple[StudyFiles, StudySpec]) -> None:
    ship(*finished)
    experiment = open_client().get_experiment_by_name("tiny")
    assert experiment is not None
    assert f"mlflow.sharedViewState.{VIEW_ID}" in experiment.tags


def test_shipping_everything_again_doubles_nothing(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    files, study = finished
    ship(files, study)
    files.shipped.unlink()
    assert ship(files, study) == 0
    assert_everything_once(tmp_path)


def test_a_trial_takes_few_calls(finished: tuple[StudyFiles, StudySpec]) -> None:
    """What a trial costs beside its training is mostly these calls."""
    client = open_client()
    made: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            made.append(name)
            return getattr(client, name)

    assert ship(*finished, lambda: Counting()) == 0
    n = len(runs("trial"))
    study_s_own = 3  # the list at first, and its run made and told of
    assert made.count("search_runs") == 1
    assert made.count("create_run") == n + 1
    assert made.count("log_batch") <= 2 * n + study_s_own
    assert made.count("update_run") == 1


def test_runs_of_an_earlier_process_are_found_page_by_page_and_doubles_removed(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(*finished)
    client, first = open_client(), runs("trial")[0]
    tags = {name: text for name, text in first.data.tags.items() if name.startswith("gan_sweep.")}
    client.create_run(first.info.experiment_id, tags=tags)  # as after a call that timed out
    finished[0].shipped.unlink()
    monkeypatch.setattr("orchestrator.tracking.PAGE", 2)
    assert ship(*finished) == 0
    assert_everything_once(tmp_path)
    assert first.info.run_id in {run.info.run_id for run in runs("trial")}


class Flaky:
    """A client whose chosen calls fail the first time they are made: before their work, or after it."""

    def __init__(self, client: MlflowClient, lossy: set[str], *, after: bool) -> None:
        self._after = after
        self._client, self._lossy, self._made, self.lost = client, lossy, set[str](), 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in self._lossy:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            made = f"{name} {[arg for arg in args if not isinstance(arg, Image.Image)]} {kwargs}"
            self.lost += made not in self._made
            if made not in self._made:
                self._made.add(made)
                if self._after:
                    method(*args, **kwargs)
                raise ConnectionError(f"the answer of {name} was lost")
            return method(*args, **kwargs)

        return call


@pytest.mark.parametrize("after", [False, True], ids=["call lost", "answer lost"])
@pytest.mark.parametrize(
    "lossy",
    [
        "create_experiment",
        "create_run",
        "log_batch",
        "log_image",
        "log_artifact",
        "set_terminated",
        "set_tag",
    ],
)
def test_lost_calls_and_answers_lose_and_double_nothing(
    lossy: str, after: bool, finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    files, study = finished
    flaky = Flaky(open_client(), {lossy}, after=after)
    assert ship(files, study, lambda: flaky) == 0
    assert flaky.lost > 0
    assert_everything_once(tmp_path)


def test_a_store_that_is_away_costs_nothing_but_time(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    files, study = finished

    def refuse() -> MlflowClient:
        raise ConnectionError("connection refused")

    shipper = Shipper(files, MlflowSink(files, study, connect=refuse), backoff_s=(0.01,))
    shipper.start()
    assert shipper.close(patience_s=0.3) == len(files.journal.read_text().splitlines())
    assert shipper.error == "ConnectionError: connection refused"
    assert ship(files, study) == 0
    assert_everything_once(tmp_path)


def test_a_store_that_was_deleted_gets_the_whole_study_again(
    finished: tuple[StudyFiles, StudySpec], empty_store: Path, private_home: Path
) -> None:
    files, study = finished
    ship(files, study)
    store = private_home / "mlflow" / "mlflow.db"
    shutil.rmtree(store.parent)
    store.parent.mkdir()
    shutil.copy(empty_store, store)
    code = (
        "import sys; from pathlib import Path; from orchestrator.home import StudyFiles\n"
        "from orchestrator.shipper import Shipper; from orchestrator.status import load_definition\n"
        "from orchestrator.tracking import MlflowSink\n"
        "files = StudyFiles(Path(sys.argv[1])); shipper = Shipper(files, MlflowSink(files, load_definition(files)))\n"
        "shipper.start(); sys.exit(shipper.close())"
    )  # another process: MLflow keeps connections to the deleted file in this one
    subprocess.run([sys.executable, "-c", code, str(files.root)], check=True)
    with closing(sqlite3.connect(store)) as database:
        assert database.execute("SELECT status, count(*) FROM runs GROUP BY 1").fetchall() == [
            ("FINISHED", 5)
        ]
        assert database.execute("SELECT count(*) FROM metrics WHERE key = 'train/g_loss'").fetchone() == (24,)


def test_a_study_that_was_deleted_and_run_again_gets_runs_of_its_own(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    files, study = finished
    ship(files, study)
    shutil.rmtree(files.root)
    sweep, _ = make_sweep(study, tmp_path, BackendContract.ARMS)
    sweep.files.definition.write_text(study.model_dump_json())
    sweep.files.source.write_text("name: tiny\n")
    run_sweep(sweep, InlineBackend())
    assert ship(files, study) == 0
    assert len(runs("study")) == 2
    trials = runs("trial")
    assert len(trials) == 8
    for run in trials:
        assert max(Counter((name, step) for name, step, _ in rows(run)).values()) == 1


def test_a_picture_that_is_gone_does_not_hold_up_the_rest(finished: tuple[StudyFiles, StudySpec]) -> None:
    files, study = finished
    gone, torn = sorted(files.root.glob("trials/*/samples/*.png"))[:2]
    gone.unlink()
    torn.write_bytes(b"half")
    assert ship(files, study) == 0
    assert sum(len(pictures(run)) for run in runs("trial")) == 6
    assert [r for r in runs("trial") if "gan_sweep.lost_picture" in r.data.tags]


def test_a_store_is_made_whole_or_not_at_all(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.tracking.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_client()
    assert not (private_home / "mlflow" / "mlflow.db").exists()
    assert open_client().search_experiments()


def test_another_store_gets_the_whole_study(
    finished: tuple[StudyFiles, StudySpec], empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, study = finished
    ship(files, study)
    other = tmp_path / "other.db"
    shutil.copy(empty_store, other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert ship(files, study) == 0
    assert_everything_once(tmp_path)
