"""MLflow gets every row, run and picture exactly once, whatever happens on the way."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, Run
from PIL import Image

from models import Value
from orchestrator import shipper as shipping
from orchestrator.backends.inline import InlineBackend
from orchestrator.home import StudyFiles
from orchestrator.journal import TrialEnded, TrialReported, read
from orchestrator.records import Records, replay
from orchestrator.shipper import Shipper
from orchestrator.study import StudySpec
from orchestrator.sweep import Sweep
from orchestrator.testing import BackendContract, events, make_sweep, tiny_study
from orchestrator.tracking import REFRESH_S, MlflowSink, open_client, tracking_uri
from orchestrator.views import VIEW_ID
from trials.checkpoints import CheckpointStore
from trials.pictures import write_png
from trials.reports import TRAIN_METRICS, Assignment, Flag, Outcome, Picture, Report, Row, State

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")


class Painter:
    """A backend that trains nothing: its curves are formulas of the learning rate and the seed, its pictures rings.

    `side`: pixels of a grid. `ends`: how trials end, by number, when not completed: half-way.
    """

    def __init__(
        self,
        side: int = 16,
        ends: Mapping[int, State] = MappingProxyType({}),
        gallery: Sequence[str] = ("latent/slerp", "samples/curated"),
    ) -> None:
        self._side, self._ends, self._keys = side, ends, gallery

    def run(self, sweep: Sweep) -> None:
        while not sweep.finished:
            for assignment in sweep.next():
                number = sweep.records.trials[assignment.key].number
                self._run(sweep, assignment, self._ends.get(number, State.COMPLETED))

    def _run(self, sweep: Sweep, assignment: Assignment, state: State) -> None:
        spec, directory = assignment.spec, assignment.directory
        end = spec.steps if state is State.COMPLETED else spec.steps // 2
        store = CheckpointStore(directory=directory / "checkpoints", key=assignment.key, attempt=1)
        store.open()
        bend = float(spec.training["lr"]) ** 0.3 * 4
        least = math.inf
        for step in range(spec.log_every, end + 1, spec.log_every):
            noise = np.random.default_rng([spec.seed, step])
            early = math.exp(-step / (spec.steps * bend))
            row = {f"train/{name}": 0.5 + early + 0.03 * noise.normal() for name in TRAIN_METRICS}
            row["perf/images_per_s"] = 5000 + 50 * noise.normal()
            pictures = []
            if step in spec.picture_steps:
                pictures.append(Picture(key="samples/fixed", step=step, path=f"samples/step_{step:09d}.png"))
                write_png(directory / pictures[0].path, rings(self._side, early, spec.seed))
            best = False
            if step in spec.eval_steps:
                fd = 2 + 40 * early + noise.normal() * 0.3 + (20 if step == spec.steps else 0)
                row |= {"eval/fd": fd, "eval/kid": fd / 20, "eval/precision": 1 - early, "eval/recall": 0.9 - early,
                        "eval/coverage": 0.95 - early, "eval/swd": early / 5, "perf/evaluation_s": 0.2}  # fmt: skip
                if spec.features == "classifier":
                    row |= {"eval/class_tv": early / 3} | {f"classes/share_{k}": 0.1 for k in range(10)}
                if step == spec.eval_steps[0]:
                    row |= {"eval/fd_floor": 1.25, "eval/swd_floor": 0.01}
                best, least = fd < least, min(fd, least)
            if step == spec.steps:
                pictures += self._gallery(directory, step)
            rows = (Row(step=step, metrics=row),)
            report = Report(step=step, rows=rows, pictures=tuple(pictures))
            sweep.reported(assignment.key, assignment.attempt, report)
            if best or step == end:
                weights = {"weight": torch.full((2, 3), float(step))}
                store.save({"generator": weights, "averaged": None, "step": step}, step, best=best)
        reason = "" if state is State.COMPLETED else f"{state.value} by the test"
        outcome = Outcome(state=state, step=end, reason=reason)
        sweep.ended(assignment.key, assignment.attempt, outcome)

    def _gallery(self, directory: Path, step: int) -> list[Picture]:
        found = [
            Picture(key=key, step=step, path=f"gallery/{key.replace('/', '_')}.png") for key in self._keys
        ]
        (directory / "gallery").mkdir(exist_ok=True)
        for i, picture in enumerate(found):
            write_png(directory / picture.path, rings(self._side, 0.1 * i, 0))
        frames = [Image.fromarray(rings(self._side, early, 0)) for early in (0.5, 0.3, 0.1)]
        frames[0].save(directory / "gallery" / "training.gif", save_all=True, append_images=frames[1:])
        return [*found, Picture(key="animation/training", step=step, path="gallery/training.gif")]


def rings(side: int, early: float, seed: int) -> Any:
    """(side, side, 3) uint8: cells with rings, the noisier the earlier."""
    rng, cell = np.random.default_rng(seed), max(8, side // 8)
    y, x = np.mgrid[:side, :side]
    radius = np.hypot(y % cell - cell / 2, x % cell - cell / 2)
    widest = cell * (0.2 + 0.05 * ((y // cell + x // cell + seed) % 5))
    shown = (
        255 * np.exp(-(((radius - widest) / (cell / 14)) ** 2)) + rng.normal(size=(side, side)) * 300 * early
    )
    return np.repeat(shown.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def paint(
    study: StudySpec, root: Path, arms: list[dict[str, Value]], painter: Painter, facts: Mapping[str, str]
) -> StudyFiles:
    """A finished study's journal and files in `root`; MLflow knows nothing of it."""
    sweep, _ = make_sweep(study, root, arms, slots=1)
    sweep.files.definition.write_text(study.model_dump_json())
    sweep.files.source.write_text("name: tiny\n")
    sweep.start(facts)
    painter.run(sweep)
    sweep.end()
    return sweep.files


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
def store(empty_store: Path, private_home: Path) -> Path:
    """An empty store in the home."""
    (private_home / "mlflow").mkdir(parents=True)
    return Path(shutil.copy(empty_store, private_home / "mlflow" / "mlflow.db"))


@pytest.fixture
def finished(store: Path, tmp_path: Path) -> tuple[StudyFiles, StudySpec]:
    """A finished study of 2 arms x 2 seeds that MLflow knows nothing of, and an empty store in the home."""
    study = tiny_study()
    return paint(study, tmp_path, BackendContract.ARMS, Painter(), facts(study)), study


def facts(study: StudySpec) -> dict[str, str]:
    return {
        "gan_sweep.dataset_digests": json.dumps({str(study.dataset.source): "d" * 64}),
        "mlflow.source.git.commit": "c0ffee",
    }


def ship(
    files: StudyFiles, study: StudySpec, connect: Callable[[], Any] = open_client, patience_s: float = 60
) -> int:
    """Send what is to be sent; returns the number of events that could not be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "POLL_S", 0.01)
        shipper = Shipper(files, MlflowSink(files, study, connect=connect), backoff_s=(0.01,))
        shipper.start()
        return shipper.close(patience_s)


def experiment() -> Experiment:
    found = open_client().get_experiment_by_name("tiny")
    assert found is not None
    return found


def runs(kind: str) -> list[Run]:
    found = open_client().search_runs([experiment().experiment_id], f"tags.`gan_sweep.kind` = '{kind}'")
    return list(found)


def models() -> list[LoggedModel]:
    return list(open_client().search_logged_models([experiment().experiment_id]))


def rows(run: Run) -> list[tuple[str, int, float]]:
    with closing(sqlite3.connect(tracking_uri().removeprefix("sqlite:///"))) as database:
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ?"
        return database.execute(query, [run.info.run_id]).fetchall()


def pictures(run: Run) -> list[str]:
    """KEY+step+STEP of every picture that MLflow's page shows, each with its preview."""
    paths = [file.path for file in open_client().list_artifacts(run.info.run_id, "images")]
    whole = sorted(path.removesuffix(".png") for path in paths if path.endswith(".png"))
    assert sorted(path.split("+compressed")[0] for path in paths if path.endswith(".webp")) == whole
    return [path.removeprefix("images/").split("+timestamp")[0] for path in whole]


def artifacts(run: Run, folder: str) -> list[str]:
    return [file.path for file in open_client().list_artifacts(run.info.run_id, folder)]


ALL_PICTURES = sorted([
    "best~samples+step+0", "final~samples+step+0", "samples~fixed+step+12", "samples~fixed+step+6",
    "latent~slerp+step+0", "samples~curated+step+0",
])  # fmt: skip
OURS = ("final/", "best/", "train/kimg")
"""Metrics that the sink adds to the journal's."""


def assert_everything_once(tmp_path: Path, n_trials: int = 4) -> None:
    """MLflow holds exactly what the journal holds."""
    (parent,) = runs("study")
    trials = runs("trial")
    assert len({run.data.tags["gan_sweep.trial_key"] for run in trials}) == len(trials) == n_trials
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
        assert {row for row in found if not row[0].startswith(OURS)} == set(acknowledged)
        assert len({name for name, _, _ in found if name.startswith("final/")}) == 13
        assert sorted(name for name, _, _ in found if name.startswith("best/")) == ["best/fd", "best/step"]
        kimg = sorted((step, value) for name, step, value in found if name == "train/kimg")
        assert kimg == [(step, step * 8 / 1000) for step in (2, 4, 6, 8, 10, 12)]
        assert (run.data.params["width"], run.data.params["lr"]) in (("8", "0.001"), ("8", "0.0001"))
        assert run.inputs is not None
        assert len(run.inputs.dataset_inputs) == 1
        assert pictures(run) == ALL_PICTURES
        assert artifacts(run, "pictures") == ["pictures/training.gif"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.info.status, run.data.tags["gan_sweep.state"]) == ("FINISHED", "completed")
    assert (parent.info.status, parent.data.tags["gan_sweep.state"]) == ("FINISHED", "completed")
    assert parent.data.tags["mlflow.note.content"] == experiment().tags["mlflow.note.content"]
    assert len(artifacts(parent, "pictures")) == 1
    (model,) = models()
    assert model.status == "READY"


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
    kept = {f.path for f in client.list_artifacts(run.info.run_id, "checkpoints")}
    assert "checkpoints/step_000000012" in kept  # the last one; the best one may be another
    assert len(kept) <= 2


def test_the_experiment_carries_the_view_that_the_link_opens(finished: tuple[StudyFiles, StudySpec]) -> None:
    ship(*finished)
    assert f"mlflow.sharedViewState.{VIEW_ID}" in experiment().tags


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
    made = Counter[str]()

    class Counting:
        def __getattr__(self, name: str) -> Any:
            made[name] += 1
            return getattr(client, name)

    assert ship(*finished, lambda: Counting()) == 0
    n = len(runs("trial"))
    study_s_own = 5  # the list at first, its run made and told of, the best one told, its model's metrics
    assert made["search_runs"] == 1
    assert made["create_run"] == n + 1
    assert made["log_batch"] <= 2 * n + study_s_own
    assert made["update_run"] == 1
    assert made["log_inputs"] == n
    assert n <= made["log_artifacts"] <= 2 * n  # the last checkpoint, and the best one where it is another
    assert made["list_artifacts"] == 0, "nothing can lie in a run that was made now"
    assert made["log_image"] == len(ALL_PICTURES) * n + 1, "previews, and one for the notes"
    assert made["log_artifact"] == (len(ALL_PICTURES) + 1) * n + 2, (
        "pictures, an animation, the study's files"
    )
    assert made["set_tag"] <= 3, "tags of trials travel with other calls"


def test_runs_of_an_earlier_process_are_found_page_by_page_and_doubles_removed(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(*finished)
    client, first = open_client(), runs("trial")[0]
    tags = {name: text for name, text in first.data.tags.items() if name.startswith("gan_sweep.")}
    client.create_run(
        first.info.experiment_id, first.info.start_time + 1, tags
    )  # as after a call that timed out
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
            made = re.sub(re.escape(tempfile.gettempdir()) + r"/tmp\w+", "", made)  # another one for each try
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
        "create_logged_model",
        "log_model_artifacts",
    ],
)
def test_lost_calls_and_answers_lose_and_double_nothing(
    lossy: str, after: bool, store: Path, tmp_path: Path
) -> None:
    study = tiny_study(seeds=[0])
    files = paint(study, tmp_path, BackendContract.ARMS, Painter(), facts(study))
    flaky = Flaky(open_client(), {lossy}, after=after)
    assert ship(files, study, lambda: flaky) == 0
    assert flaky.lost > 0
    assert_everything_once(tmp_path, n_trials=2)


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
    paint(study, tmp_path, BackendContract.ARMS, Painter(), {})
    assert ship(files, study) == 0
    assert len(runs("study")) == 2
    trials = runs("trial")
    assert len(trials) == 8
    for run in trials:
        assert max(Counter((name, step) for name, step, _ in rows(run)).values()) == 1


def test_a_picture_that_is_gone_does_not_hold_up_the_rest(finished: tuple[StudyFiles, StudySpec]) -> None:
    files, study = finished
    first, second = sorted(files.root.glob("trials/*"))[:2]
    sorted(first.glob("samples/*.png"))[0].unlink()
    (second / "gallery" / "latent_slerp.png").write_bytes(b"half")
    (second / "gallery" / "training.gif").write_bytes(b"GIF89a")
    assert ship(files, study) == 0
    found = {run.data.tags["gan_sweep.trial_key"]: run for run in runs("trial")}
    gone = {"samples~fixed+step+6", "best~samples+step+0"}  # its best step is unknown: one or both
    assert set(ALL_PICTURES) - set(pictures(found[first.name])) <= gone
    assert set(ALL_PICTURES) - set(pictures(found[second.name])) == {"latent~slerp+step+0"}
    assert artifacts(found[second.name], "pictures") == []
    lost = {key for key, run in found.items() if "gan_sweep.lost_picture" in run.data.tags}
    assert lost == {first.name, second.name}


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


# What the page is made of


def test_a_trial_s_best_value_and_its_grid_are_those_of_its_best_evaluation(
    finished: tuple[StudyFiles, StudySpec],
) -> None:
    files, study = finished
    ship(files, study)
    records = known(files)
    for run in runs("trial"):
        trial = records.trials[run.data.tags["gan_sweep.trial_key"]]
        step = trial.value_step(study.objective)
        assert run.data.metrics["best/fd"] == trial.value(study.objective)
        assert run.data.metrics["best/step"] == step == 6 != trial.step
        (best,) = stored(run, "best~samples")
        with Image.open(files.trial(trial.key) / f"samples/step_{step:09d}.png") as drawn:
            assert np.array_equal(np.asarray(best), np.asarray(drawn))


def test_the_best_grid_is_the_nearest_earlier_one_where_the_best_step_has_none(
    store: Path, tmp_path: Path
) -> None:
    study = tiny_study()
    files = paint(study, tmp_path, BackendContract.ARMS, Painter(), {})
    lines = [json.loads(line) for line in files.journal.read_text().splitlines()]
    for event in lines:
        if event["event"] == "trial_reported":
            event["pictures"] = [p for p in event["pictures"] if p[0] != "samples/fixed" or p[1] == 6]
            event["rows"] = [
                [s, {k: v for k, v in row.items() if k != "eval/fd" or s == 12}] for s, row in event["rows"]
            ]
    files.journal.write_text("".join(json.dumps(event) + "\n" for event in lines))
    assert ship(files, study) == 0
    for run in runs("trial"):
        assert run.data.metrics["best/step"] == 12
        (best,), (final,) = stored(run, "best~samples"), stored(run, "final~samples")
        with Image.open(
            files.trial(run.data.tags["gan_sweep.trial_key"]) / "samples/step_000000006.png"
        ) as drawn:
            assert np.array_equal(np.asarray(best), np.asarray(drawn))
            assert np.array_equal(np.asarray(final), np.asarray(drawn))


def test_trials_that_ended_early_have_pictures_at_the_shared_step_too(store: Path, tmp_path: Path) -> None:
    study = tiny_study()
    ends = {0: State.PRUNED, 3: State.DIVERGED}
    files = paint(study, tmp_path, BackendContract.ARMS, Painter(ends=ends), {})
    assert ship(files, study) == 0
    for run in runs("trial"):
        assert {"best~samples+step+0", "final~samples+step+0"} <= set(pictures(run))
    states = sorted((run.info.status, run.data.tags["gan_sweep.state"]) for run in runs("trial"))
    assert states == [("FAILED", "diverged"), *[("FINISHED", "completed")] * 2, ("FINISHED", "pruned")]


def test_with_the_last_evaluation_as_objective_nothing_is_called_the_best(
    store: Path, tmp_path: Path
) -> None:
    study = tiny_study(objective={"metric": "eval/fd", "at": "last"})
    assert ship(paint(study, tmp_path, BackendContract.ARMS, Painter(), {}), study) == 0
    for run in runs("trial"):
        assert not [name for name in run.data.metrics if name.startswith("best/")]
        assert "best~samples+step+0" in pictures(run)


def test_every_objective_has_its_best_value_and_the_step_is_the_first_one_s(
    store: Path, tmp_path: Path
) -> None:
    objectives = [{"metric": "eval/fd"}, {"metric": "eval/recall", "mode": "max"}]
    study = tiny_study(objective=objectives)
    files = paint(study, tmp_path, BackendContract.ARMS, Painter(), {})
    assert ship(files, study) == 0
    records = known(files)
    for run in runs("trial"):
        trial = records.trials[run.data.tags["gan_sweep.trial_key"]]
        found = {name: v for name, v in run.data.metrics.items() if name.startswith("best/")}
        fd, recall = study.objectives
        assert found == {
            "best/fd": trial.value(fd), "best/recall": trial.value(recall), "best/step": trial.value_step(fd)
        }  # fmt: skip


def test_what_is_searched_in_its_logarithm_is_there_as_one(store: Path, tmp_path: Path) -> None:
    space = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "beta1": {"low": 0.0, "high": 0.9}}
    study = tiny_study(space=space, search={"sampler": "random", "trials": 1}, seeds=[0])
    files = paint(study, tmp_path, [{"lr": 2e-4, "beta1": 0.5}], Painter(), {})
    assert ship(files, study) == 0
    (run,) = runs("trial")
    assert float(run.data.params["hp/log10_lr"]) == pytest.approx(-3.69897, abs=1e-5)
    assert [name for name in run.data.params if name.startswith("hp/")] == ["hp/log10_lr"]


def test_seeds_share_the_colour_of_their_arm(finished: tuple[StudyFiles, StudySpec]) -> None:
    ship(*finished)
    found = {(run.data.params["lr"], run.data.tags["mlflow.runColor"]) for run in runs("trial")}
    assert len(found) == len({colour for _, colour in found}) == 2


def test_parameters_that_a_run_has_are_left_alone(
    finished: tuple[StudyFiles, StudySpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow refuses to change one: a later version that counts otherwise would never get on."""
    ship(*finished)
    finished[0].shipped.unlink()
    monkeypatch.setattr("orchestrator.arms.hyperparameters", lambda *_: {"lr": 7.0, "new": 1})
    assert ship(*finished, patience_s=5) == 0
    for run in runs("trial"):
        assert run.data.params["lr"] in ("0.001", "0.0001")
        assert run.data.params["new"] == "1"


def test_notes_rank_the_arms_with_links_and_a_picture(finished: tuple[StudyFiles, StudySpec]) -> None:
    ship(*finished)
    (parent,) = runs("study")
    note = parent.data.tags["mlflow.note.content"]
    best = min(runs("trial"), key=lambda run: run.data.metrics["best/fd"])
    assert f"#/experiments/{experiment().experiment_id}/runs/{best.info.run_id}" in note
    (path,) = artifacts(parent, "pictures")
    assert f"get-artifact?run_uuid={parent.info.run_id}&path={path}" in note
    assert "Floor of eval/fd: 1.25" in note
    assert "2 of 2" in note


def test_the_picture_in_the_notes_is_narrow(store: Path, tmp_path: Path) -> None:
    study = tiny_study(seeds=[0])
    ship(paint(study, tmp_path, BackendContract.ARMS, Painter(side=750, gallery=()), {}), study)
    (parent,) = runs("study")
    (path,) = artifacts(parent, "pictures")
    with Image.open(open_client().download_artifacts(parent.info.run_id, path, str(tmp_path))) as shown:
        assert shown.size == (700, 700)


def test_notes_are_refreshed_at_intervals_and_only_when_they_changed(
    finished: tuple[StudyFiles, StudySpec],
) -> None:
    files, study = finished
    client, now = open_client(), [0.0]
    written: list[str] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def set_tag(self, run: str, key: str, value: Any) -> None:
            written.extend([value] if key == "mlflow.note.content" else [])
            client.set_tag(run, key, value)

    sink = MlflowSink(files, study, connect=lambda: Watching(), clock=lambda: now[0])  # type: ignore[arg-type, return-value]
    sink.open()
    records = Records()
    for event, _ in read(files.journal):
        records.apply(event)
        sink.send(event, records)
        sink.flush()
        if isinstance(event, TrialEnded):
            before = len(written)
            now[0] += REFRESH_S / 2
            sink.flush()
            sink.flush()
            assert len(written) - before == (1 if len(ended_so_far(records)) % 2 == 0 else 0)
    assert len(written) == len(set(written)) == 3, "at the start, after two trials, after four"


def test_the_best_trial_s_generator_is_a_model_that_loads_without_pickled_classes(
    finished: tuple[StudyFiles, StudySpec], tmp_path: Path
) -> None:
    files, study = finished
    ship(files, study)
    records = known(files)
    trial = min(records.trials.values(), key=lambda t: t.value(study.objective) or math.inf)
    step = trial.value_step(study.objective)
    (model,) = models()
    assert model.name == f"generator-{trial.number:03d}"
    assert model.tags["gan_sweep.trial_key"] == trial.key
    (run,) = [run for run in runs("trial") if run.info.run_id == model.source_run_id]
    assert run.data.tags["gan_sweep.trial_key"] == trial.key
    assert {m.key: (m.value, m.step, m.dataset_name) for m in model.metrics or []}["eval/fd"] == (
        trial.value(study.objective), step, "digits"
    )  # fmt: skip
    place = Path(model.artifact_location.removeprefix("file://"))
    weights = torch.load(place / "generator.pt", weights_only=True)
    assert weights["weight"].unique().tolist() == [step]
    config = json.loads((place / "config.json").read_text())
    assert (config["model"], config["step"], config["model_params"]["width"]) == ("obs_mlp", step, 8)


def test_a_model_without_a_checkpoint_or_a_place_holds_up_nothing(
    finished: tuple[StudyFiles, StudySpec],
) -> None:
    files, study = finished

    class Old:
        """A server from before there were models."""

        def __getattr__(self, name: str) -> Any:
            if "model" in name:
                raise RuntimeError("404 ENDPOINT_NOT_FOUND")
            return getattr(client, name)

    client = open_client()
    assert ship(files, study, lambda: Old()) == 0
    assert [
        run.data.tags["gan_sweep.lost_model"]
        for run in runs("trial")
        if "gan_sweep.lost_model" in run.data.tags
    ]
    assert models() == []
    for checkpoint in files.root.glob("trials/*/checkpoints/step_*/state.pt"):
        checkpoint.write_bytes(b"half")
    files.shipped.unlink()
    assert ship(files, study) == 0
    assert models() == []


def known(files: StudyFiles) -> Records:
    return replay(event for event, _ in read(files.journal))


def ended_so_far(records: Records) -> list[str]:
    return [trial.key for trial in records.trials.values() if trial.state.is_final]


def stored(run: Run, key: str) -> list[Image.Image]:
    """The pictures of a run under a key, in full."""
    client = open_client()
    found: list[Image.Image] = []
    for path in artifacts(run, "images"):
        if path.startswith(f"images/{key}+") and path.endswith(".png"):
            with Image.open(client.download_artifacts(run.info.run_id, path)) as picture:
                picture.load()
                found.append(picture)
    return found


@pytest.mark.parametrize("lossy", [set[str](), {"log_batch"}, {"create_run", "update_run"}])
@pytest.mark.parametrize("when", ["at once", "before too"])
def test_a_study_that_was_extended_keeps_its_runs(
    lossy: set[str], when: str, store: Path, tmp_path: Path
) -> None:
    study = tiny_study()
    files = paint(study, tmp_path, BackendContract.ARMS, Painter(), facts(study))
    if when == "before too":
        assert ship(files, study) == 0
    names = {run.info.run_id for run in runs("trial")} if when == "before too" else set[str]()
    longer = tiny_study(seeds=[0, 1, 2], train={"steps": 20, "batch_size": 8, "log_every": 2})
    sweep, _ = make_sweep(longer, tmp_path, BackendContract.ARMS, slots=1)
    sweep.files.definition.write_text(longer.model_dump_json())
    assert sweep.extend() == 2
    sweep.start(facts(longer))
    Painter().run(sweep)
    assert sweep.end() == "completed"
    flaky = Flaky(open_client(), lossy, after=True)
    assert ship(files, longer, lambda: flaky) == 0
    found = {run.data.tags["gan_sweep.trial_key"]: run for run in runs("trial")}
    assert set(found) == set(sweep.records.trials)
    assert len(runs("trial")) == 6
    assert names <= {run.info.run_id for run in runs("trial")}
    for key, run in found.items():
        steps = [step for name, step, _ in rows(run) if name == "train/g_loss"]
        assert sorted(steps) == list(range(2, 21, 2))
        assert (run.info.status, run.data.tags["gan_sweep.state"]) == ("FINISHED", "completed")
        continued = bool(sweep.records.trials[key].was)
        assert run.data.tags.get("gan_sweep.extended_to") == ("20 steps" if continued else None)
    files.shipped.unlink()  # and all of it once more: what was said under the old keys finds the same runs
    assert ship(files, longer) == 0
    assert {run.info.run_id for run in runs("trial")} == {run.info.run_id for run in found.values()}
    assert {run.info.status for run in runs("trial")} == {"FINISHED"}


def test_trials_at_rungs_wait_and_seeds_that_never_began_have_no_run(store: Path, tmp_path: Path) -> None:
    study = tiny_study(seeds=[0, 1], prune={"rungs": [4], "keep": 0.5, "seeds": 1})
    sweep, _ = make_sweep(study, tmp_path, BackendContract.ARMS)
    sweep.files.definition.write_text(study.model_dump_json())
    sweep.files.source.write_text("name: tiny\n")
    sweep.start(facts(study))
    InlineBackend().run(sweep)
    assert sweep.end() == "completed"
    assert ship(sweep.files, study) == 0
    states = Counter((run.data.tags["gan_sweep.state"], run.info.status) for run in runs("trial"))
    assert states == {("completed", "FINISHED"): 2, ("pruned", "FINISHED"): 1}
    (pruned,) = (run for run in runs("trial") if run.data.tags["gan_sweep.state"] == "pruned")
    assert "rank 2 of 2, of which 1 go on" in pruned.data.tags["gan_sweep.reason"]

    longer = study.model_copy(update={"train": study.train.model_copy(update={"steps": 20})})
    again, _ = make_sweep(longer, tmp_path, BackendContract.ARMS)
    assert again.extend() == 1  # the other one was pruned
    again.start(facts(study))
    InlineBackend().run(again)
    assert again.end() == "completed"
    assert ship(again.files, longer) == 0
    states = Counter((run.data.tags["gan_sweep.state"], run.info.status) for run in runs("trial"))
    assert states == {("completed", "FINISHED"): 2, ("pruned", "FINISHED"): 1}


def test_flags_are_tags_of_their_trial(store: Path, tmp_path: Path) -> None:
    study = tiny_study(seeds=[0], space={})
    sweep, _ = make_sweep(study, tmp_path, [{}], slots=1)
    sweep.files.definition.write_text(study.model_dump_json())
    sweep.files.source.write_text("name: tiny\n")
    sweep.start(facts(study))
    (assignment,) = sweep.next()
    flag = Flag(name="d_win", since=2, step=4, words="d_win: accuracy 1.00 since step 2")
    row = Row(step=4, metrics={"eval/fd": 1.0})
    sweep.heard(assignment.key, 1, Report(step=4, rows=(row,), flags=(flag,)))
    sweep.heard(assignment.key, 1, Outcome(state=State.COMPLETED, step=12))
    sweep.end()
    assert sweep.records.trials[assignment.key].flags == {"d_win": (4, flag.words)}
    assert ship(sweep.files, study) == 0
    (run,) = runs("trial")
    assert run.data.tags["gan_sweep.flags"] == flag.words
