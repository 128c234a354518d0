"""Writes a study to MLflow, event by event. The only module that imports MLflow.

shipper.py sends events again after a crash or an outage. Nothing doubles, because

- an experiment is found by its name before one is created, and a run by its trial key: at first by a list of all runs
  of the study, and after a call has failed by asking before and after each creation;
- metric rows carry the journal's timestamps, and MLflow keeps one row of identical ones;
- a picture's file names are the same each time (MLflow's own carry a random part), so it is written over;
- parameters that a run has are left as they are: MLflow refuses to change them;
- the best trial's generator is found by its tags before it is logged.

The first part of a metric's name is its section in MLflow's page: `train/` means over the logging interval, `eval/`
the evaluations, `classes/` the shares of classes, `perf/` speed, `final/` means over the end of training, `best/` the
value of the best evaluation and its step. A metric's step is the training step in every trial; `train/kimg`, thousands
of real images shown to the discriminator, is there to be chosen as x axis where arms differ in their batches. Sample
grids lie at their steps; pictures that a trial has once lie at step 0, so that trials of all lengths compare.

Ray's stock MLflow callback does none of this, and blocks the driver while a server is away.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

# Read by MLflow when it is imported. Its own retries block for minutes; ours find what was created before.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for our data
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image, ImageOps

from models import Value
from orchestrator import arms, views
from orchestrator.errors import GanSweepError, UnreachableError
from orchestrator.home import StudyFiles, home
from orchestrator.journal import (
    ArmAdvanced,
    ArmExtended,
    ArmProposed,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialsReopened,
    TrialStarted,
)
from orchestrator.leaderboard import Standing, leaderboard
from orchestrator.records import Records, TrialRecord
from orchestrator.status import checkpoints_of
from orchestrator.study import Choices, Objective, Range, StudySpec, axes
from trials.errors import CheckpointError
from trials.kept import best_checkpoint, checkpoints
from trials.reports import TRAIN_METRICS, State
from trials.spec import TrialSpec

for noisy in ("alembic", "mlflow"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

BATCH_METRICS = 1000  # MLflow's limit a request
BATCH_PARAMS = 100
PAGE = 1000  # runs a request
REFRESH_S = 30.0
"""Between two refreshes of the notes and the view while trials end."""
STEPPED = ("samples/fixed", "samples/raw")
"""Pictures of many steps; all others a trial has once, and they lie at step 0."""
MODEL_TRIES = 3
"""After so many failures a study goes without its best generator in MLflow."""
HEADLINE = ("fd", "kid", "precision", "recall", "coverage", "swd", "class_tv")
"""Metrics of evaluations that the best trial's model carries."""
PICTURE_ERRORS = (OSError, SyntaxError, ValueError)
"""What Pillow raises for a file that is gone or damaged."""
PREVIEW_END, PREVIEW_SIZE = "+compressed.webp", (256, 256)  # what MLflow's page shows in its grids
RUN_STATUS = {
    State.COMPLETED: "FINISHED", State.PRUNED: "FINISHED", State.DIVERGED: "FAILED", State.FAILED: "FAILED",
    State.STOPPED: "KILLED", State.WAITING: "SCHEDULED",
}  # fmt: skip


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI as it is, or a SQLite store in gan-sweep's home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def open_client() -> MlflowClient:
    """A client of the store. Makes our SQLite store on first use, under a lock: MLflow's migrations race."""
    uri = tracking_uri()
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return MlflowClient(uri)
    folder = home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "mlflow.db").exists():
            _make_store(folder)
        return MlflowClient(uri)


def _make_store(folder: Path) -> None:
    """Migrate an empty store under another name, then rename it: MLflow's migrations cannot be taken up again."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as directory:
        new = Path(directory) / "mlflow.db"
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)  # runs the migrations
        with closing(sqlite3.connect(new)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
        os.replace(new, folder / "mlflow.db")


class MlflowSink:
    """One study in MLflow. Sending an event twice leaves what sending it once does."""

    def __init__(
        self,
        files: StudyFiles,
        study: StudySpec,
        *,
        connect: Callable[[], MlflowClient] = open_client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files, self._study, self._connect, self._clock = files, study, connect, clock
        self._records = Records()
        self._client: MlflowClient | None = None
        self._runs: dict[str, str] | None = None
        """By trial key, or the study's name; None until they are listed."""
        self._careful = False
        """A call has failed: there may be runs that are not in `_runs`."""
        self._described: set[str] = set()
        self._params: dict[str, set[str]] = {}
        """By run: the names of the parameters it has, as far as the store was asked."""
        self._pictures: dict[str, set[str]] = {}
        self._metrics: dict[str, list[Metric]] = {}
        self._batches: dict[str, int] = {}
        """By trial key: real images in a step."""
        self._shown: dict[str, str] = {}
        """Notes and view as they were last written."""
        self._pictured: tuple[str, int] | None = None
        """Trial and step of the picture in the notes."""
        self._model_failures = 0
        self._stale = False
        self._refreshed = -math.inf
        self.name = ""
        self.experiment_id: str | None = None

    def open(self) -> None:
        """Connect and find or make the study's experiment."""
        if self.experiment_id is None:
            self._client = self._connect()
            experiment = self._experiment()
            # A store that was deleted and made anew counts its experiments from 1 again.
            self.name = f"{tracking_uri()} {experiment.experiment_id} {experiment.creation_time}"
            self.experiment_id = experiment.experiment_id

    def send(self, event: Event, records: Records) -> None:
        """Write an event to MLflow; metric rows wait for `flush`."""
        self._records = records
        match event:
            case StudyStarted():
                self._start_study(event)
            case ArmProposed() | ArmAdvanced():
                pass
            case ArmExtended():
                self._schedule(event.continues, "extended")
            case TrialStarted():
                self._start_trial(records.trial(event.key), event)
            case TrialReported():
                self._report(records.trial(event.key), event)
            case TrialPaused():
                self._schedule([event.key], f"at rung {event.step}")
            case TrialEnded():
                self._end_trial(records.trial(event.key), event)
            case TrialsReopened():
                self._schedule(event.keys, event.reason)
            case StudyEnded():
                self._write_rows()
                self._end_study(event)
            case _:
                raise TypeError(f"unknown event {event!r}")

    def flush(self) -> None:
        """Write the metric rows that wait, and the notes if they are out of date."""
        self._write_rows()
        if self._stale and self._clock() - self._refreshed >= REFRESH_S:
            self._refresh()

    def _write_rows(self) -> None:
        for run, rows in self._metrics.items():
            self._log_rows(run, rows)
        self._metrics.clear()

    def _log_rows(self, run: str, rows: list[Metric], tags: Mapping[str, str] = MappingProxyType({})) -> None:
        """Metric rows, as many a call as MLflow takes, with the tags in the last one."""
        head, tail = divmod(len(rows), BATCH_METRICS)
        for i in range(head):
            self._api.log_batch(run, metrics=rows[i * BATCH_METRICS : (i + 1) * BATCH_METRICS])
        if tail or tags:
            self._api.log_batch(run, metrics=rows[len(rows) - tail :], tags=_tags(tags))

    def recover(self) -> None:
        """Forget the rows that wait, which will be sent again, and which pictures have arrived."""
        self._careful = True
        self._metrics.clear()
        self._pictures.clear()
        self._shown.clear()
        self._pictured = None

    @property
    def _api(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    @property
    def _opened(self) -> str:
        assert self.experiment_id is not None
        return self.experiment_id

    # Experiment and study run

    def _experiment(self) -> Experiment:
        name = self._study.name
        found = self._api.get_experiment_by_name(name)
        if found is None:
            local = not tracking_uri().startswith("http")  # else MLflow would choose the current directory
            place = (home() / "mlflow" / "artifacts" / name).as_uri() if local else None
            return self._api.get_experiment(self._api.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage != "active":
            self._api.restore_experiment(found.experiment_id)
        return found

    def _start_study(self, event: StudyStarted) -> None:
        study = self._study
        tags = {
            "gan_sweep.dataset": study.dataset.source.label,
            "gan_sweep.objective": ", ".join(f"{o.metric} {o.mode}" for o in study.objectives),
        }
        for name, text in tags.items():
            self._api.set_experiment_tag(self._opened, name, text)
        run = self._study_run()
        self._refresh()
        params: Mapping[str, Value] = {
            "model": study.model,
            "dataset": study.dataset.source.label,
            "sampler": study.search.sampler,
            "search_seed": study.search.seed,
            "objective": " ".join(o.metric for o in study.objectives),
            "mode": " ".join(o.mode for o in study.objectives),
            "seeds": " ".join(map(str, study.seeds)),
        }
        self._log_params(run, params, event.provenance)
        self._api.log_artifact(run, str(self._files.definition), "config")
        self._api.log_artifact(run, str(self._files.source), "config")
        self._api.update_run(run, status="RUNNING")
        for trial in self._records.trials.values():  # those that a killed driver left running
            if trial.attempts and not trial.state.is_final:
                self._api.update_run(self._trial_run(trial), status="SCHEDULED")

    def _refresh(self) -> None:
        """Bring notes and view up to what the records hold, those that changed."""
        standings = leaderboard(self._records, *self._study.objectives)
        note = self._note(standings)
        run = self._study_run()
        if self._shown.get("note") != note:
            self._api.set_tag(run, "mlflow.note.content", note)
            self._api.set_experiment_tag(self._opened, "mlflow.note.content", note)
            self._shown["note"] = note
        for name, text in self._view().items():
            if self._shown.get(name) != text:
                self._api.set_experiment_tag(self._opened, name, text)
                self._shown[name] = text
        self._stale, self._refreshed = False, self._clock()

    def _view(self) -> dict[str, str]:
        """The page behind the printed link: charts of what trials have logged or will. It opens at one step's grids,
        which must be there to be seen: the last one that most trials have come to."""
        study, trials = self._study, self._records.trials.values()
        named = {"arm": next(iter(study.arms))} if study.arms else {}
        first = arms.grid(study)[0] if study.search.sampler == "grid" else named
        spec = arms.trial_spec(study, first, study.seeds[0], "")
        metrics = {name for trial in trials for name in trial.latest}
        if not any(name.startswith("eval/") for name in metrics):
            metrics |= _expected_metrics(spec)
        metrics |= {name.replace("train/", "final/") for name in metrics if name.startswith("train/")}
        drawn = Counter(step for trial in trials for step in trial.pictures.get(views.STEP_PICTURES, {}))
        most = max(drawn.values(), default=0)
        pictured = {key for trial in trials for key in trial.pictures}
        gallery = {key for key in pictured - {*STEPPED} if not key.startswith("animation/")}
        searched = axes(study)
        return views.saved_view_tags(
            objective=study.objective.metric,
            mode=study.objective.mode,
            ranked_by=ranked_by(study.objective),
            searched=list(searched),
            axes={
                _log_name(name) if _in_logarithm(axis) else name: all(map(_is_number, _examples(axis)))
                for name, axis in searched.items()
            },
            metrics=metrics | {ranked_by(study.objective)},
            gallery=sorted(gallery),
            image_steps=[step for step, n in drawn.items() if 2 * n > most] or spec.picture_steps[:1],
            created_at_ms=self._records.started_ms,
            n_trials=arms.arm_count(study) * len(study.seeds),
        )

    def _note(self, standings: Sequence[Standing]) -> str:
        study, runs = self._study, self._known_runs()
        rows = [
            views.NoteRow(
                arm=s.arm.label,
                run=runs.get((s.best_trial or s.arm.trials[0]).key),
                means=[s.mean, *(s.means.get(o.metric) for o in study.objectives[1:])],
                sd=s.sd,
                seeds=f"{s.completed} of {s.seeds}",
                lost=", ".join(f"{n} {state}" for state, n in s.losses.items()),
            )
            for s in standings
            if s.completed or s.losses
        ]
        return views.study_note(
            experiment_id=self._opened,
            name=study.name,
            description=study.description,
            source=study.source,
            space=[f"{name}: {arms.axis_words(axis)}" for name, axis in study.space.items()],
            objectives=[f"{o.metric} ({o.mode})" for o in study.objectives],
            rows=rows,
            remarks=self._remarks() if rows else [],
            picture=self._note_picture(standings),
        )

    def _remarks(self) -> list[str]:
        """What makes the table's figures readable: on how many images they rest, and what real images score."""
        trials, found = self._records.trials.values(), []
        for objective in self._study.objectives:
            floors = [v for t in trials if (v := t.latest.get(f"{objective.metric}_floor")) is not None]
            if floors:
                low, high = views.number(min(floors)), views.number(max(floors))
                between = low if low == high else f"{low} to {high}"
                found.append(f"Floor of {objective.metric}: {between}, what held-out real images score.")
        return found

    def _note_picture(self, standings: Sequence[Standing]) -> tuple[str, str, str] | None:
        """The best trial's best grid, small, as an artifact of the study's run; None when there is none."""
        best = standings[0].best_trial if standings else None
        grid = None if best is None else best.grid_at(self._study.objective)
        if best is None or grid is None:
            return None
        run, name = self._study_run(), "pictures/best.png"
        if self._pictured != (best.key, grid[0]):
            try:
                with Image.open(self._files.trial(best.folder) / grid[1]) as picture:
                    small = _narrowed(picture)
            except PICTURE_ERRORS:
                return None
            self._api.log_image(run, small, name)
            self._pictured = best.key, grid[0]
        return run, name, f"Samples of trial {best.name} at step {grid[0]}:"

    def _study_run(self) -> str:
        tags = {"gan_sweep.study": self._study.name}
        return self._run(
            "study", "gan_sweep.kind", "study", f"study {self._study.name}", tags, self._records.started_ms
        )

    def _end_study(self, event: StudyEnded) -> None:
        run = self._study_run()
        self._refresh()
        standings = leaderboard(self._records, *self._study.objectives)
        for picture in sorted(self._files.pictures.glob("*.png")):
            self._api.log_artifact(run, str(picture), "plots")
        if self._files.leaderboard.exists():
            self._api.log_artifact(run, str(self._files.leaderboard), "tables")
        if standings:
            best = standings[0]
            if best.mean is not None and event.state != "stopped":
                n_final = sum(trial.state.is_final for trial in self._records.trials.values())
                self._api.log_batch(
                    run,
                    metrics=[Metric(_best_name(self._study.objective), best.mean, event.at_ms, n_final)],
                    tags=_tags({"gan_sweep.best_arm": best.arm.label}),
                )
            if best.best_trial is not None and event.state != "stopped":
                self._log_model(best.best_trial)
        self._api.log_batch(
            run, tags=_tags({"gan_sweep.state": event.state, "gan_sweep.reason": event.reason})
        )
        status = {"completed": "FINISHED", "failed": "FAILED"}.get(event.state, "KILLED")
        self._api.set_terminated(run, status, end_time=event.at_ms)

    # Trials

    def _start_trial(self, trial: TrialRecord, event: TrialStarted) -> None:
        tags = {"gan_sweep.state": State.RUNNING.value, "gan_sweep.attempt": str(event.attempt)}
        known = trial.key in self._known_runs()
        run = self._trial_run(trial, tags)
        if known or self._careful:  # a new run carries the tags, and is running
            self._api.log_batch(run, tags=_tags(tags))
            self._api.update_run(run, status="RUNNING")

    def _schedule(self, keys: Iterable[str], reason: str) -> None:
        """Trials that have begun wait to go on."""
        for key in keys:
            trial = self._records.trial(key)
            if trial.attempts:
                run = self._trial_run(trial)
                if trial.state.is_final:  # of an arm that is extended while this one stays as it ended
                    continue
                tags = {"gan_sweep.state": State.WAITING.value, "gan_sweep.reason": reason}
                self._api.log_batch(run, tags=_tags(tags))
                self._api.update_run(run, status="SCHEDULED")

    def _trial_run(self, trial: TrialRecord, started: Mapping[str, str] = MappingProxyType({})) -> str:
        """The trial's run. `started`: tags of a run that is made now."""
        if trial.key in self._described:
            return self._known_runs()[trial.key]
        self._rename_run(trial)
        values = self._records.arms[trial.arm].values
        spec = arms.trial_spec(self._study, values, trial.seed, "")
        tags = {
            "mlflow.parentRunId": self._study_run(),
            "mlflow.runColor": views.colour(trial.arm),
            MLFLOW_LOGGED_IMAGES: "True",
            "gan_sweep.study": self._study.name,
            "gan_sweep.arm": trial.label,
            "gan_sweep.seed": str(trial.seed),
            **{name: text for name, text in self._records.provenance.items() if name.startswith("mlflow.")},
            **started,
        }
        run = self._run("trial", "gan_sweep.trial_key", trial.key, trial.name, tags, self._records.updated_ms)
        params = {
            "model": spec.model, "dataset": spec.dataset, "seed": trial.seed,
            "steps": spec.steps, "eval_samples": spec.eval_samples, "features": spec.features,
            "hold_out": spec.hold_out, **arms.hyperparameters(spec, values), **_logarithms(self._study, values),
        }  # fmt: skip
        self._log_params(run, params)
        self._api.log_inputs(run, [DatasetInput(self._dataset(values))])
        self._described.add(trial.key)
        return run

    def _rename_run(self, trial: TrialRecord) -> None:
        """Let a trial that was extended keep its run."""
        runs = self._known_runs()
        for old in trial.was:
            if old in runs and trial.key not in runs:
                runs[trial.key] = runs[old]  # what it said under its old key may be sent again
                tags = {
                    "gan_sweep.trial_key": trial.key,
                    "gan_sweep.earlier_keys": " ".join(trial.was),
                    "gan_sweep.extended_to": f"{trial.steps} steps",
                }
                self._api.log_batch(runs[trial.key], tags=_tags(tags))

    def _dataset(self, values: Mapping[str, Value]) -> Dataset:
        """What an arm trains on."""
        trained_on = arms.resolved(self._study, values).dataset
        digests = json.loads(self._records.provenance.get("gan_sweep.dataset_digests", "{}"))
        return Dataset(
            name=trained_on.source.label,
            digest=digests.get(str(trained_on.source), "unknown")[:32],
            source_type="gan_sweep",
            source=trained_on.model_dump_json(exclude_none=True),
        )

    def _log_params(
        self, run: str, values: Mapping[str, Value], tags: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Log the parameters that the run has not got, and tags."""
        had = self._params.setdefault(run, set())
        new = [Param(name, str(value)) for name, value in values.items() if name not in had]
        for i in range(0, len(new), BATCH_PARAMS):
            self._api.log_batch(run, params=new[i : i + BATCH_PARAMS])
        if tags:
            self._api.log_batch(run, tags=_tags(tags))
        had |= {param.key for param in new}

    def _run(self, kind: str, tag: str, value: str, name: str, tags: Mapping[str, str], at_ms: int) -> str:
        """This study's run that carries the tag, created when there is none; of several, the oldest."""
        runs = self._known_runs()
        if value not in runs:
            found = self._find_runs(f"tags.`{tag}` = '{value}'") if self._careful else []
            if not found:
                mine = {"gan_sweep.kind": kind, "gan_sweep.study_uid": self._records.uid, tag: value, **tags}
                made = self._api.create_run(self._opened, start_time=at_ms or None, tags=mine, run_name=name)
                found = [made]
                if not self._careful:
                    self._pictures[str(made.info.run_id)] = set()
                if self._careful:  # a call that timed out may have made another one
                    found = self._find_runs(f"tags.`{tag}` = '{value}'")
            for double in found[1:]:
                self._api.delete_run(double.info.run_id)
            runs[value] = str(found[0].info.run_id)
            self._params[runs[value]] = set(found[0].data.params)
        return runs[value]

    def _known_runs(self) -> dict[str, str]:
        """This study's runs, as far as they are known: at first all that the store has, the oldest of doubles."""
        if self._runs is None:
            listed = dict[str, str]()
            for run in self._find_runs():
                tags = run.data.tags
                name = tags.get("gan_sweep.trial_key") or str(tags.get("gan_sweep.kind"))
                if name in listed:
                    self._api.delete_run(run.info.run_id)
                else:
                    listed[name] = str(run.info.run_id)
                    self._params[listed[name]] = set(run.data.params)
                    for earlier in tags.get("gan_sweep.earlier_keys", "").split():
                        listed[earlier] = listed[name]
            self._runs = listed
        return self._runs

    def _find_runs(self, also: str = "") -> list[Run]:
        query = f"tags.`gan_sweep.study_uid` = '{self._records.uid}'" + (f" AND {also}" if also else "")
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self._api.search_runs(
                [self._opened],
                query,
                ViewType.ACTIVE_ONLY,
                order_by=order,
                max_results=PAGE,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def _report(self, trial: TrialRecord, event: TrialReported) -> None:
        run, directory = self._trial_run(trial), self._files.trial(trial.folder)
        images = self._images_in_a_step(trial)
        rows = self._metrics.setdefault(run, [])
        for step, row in event.rows:
            shown = {"train/kimg": step * images / 1000}
            rows += [Metric(name, value, event.at_ms, step) for name, value in {**row, **shown}.items()]
        if event.flags:
            words = "; ".join(words for _, words in trial.flags.values())
            self._api.log_batch(run, tags=_tags({"gan_sweep.flags": words}))
        for key, step, path in event.pictures:
            if path.endswith(".gif"):
                self._log_animation(run, key, step, directory / path)
            else:
                self._log_picture(run, key, step if key in STEPPED else 0, directory / path, event.at_ms)

    def _images_in_a_step(self, trial: TrialRecord) -> int:
        """Real images that the discriminator sees in a training step."""
        if trial.key not in self._batches:
            spec = arms.trial_spec(self._study, self._records.arms[trial.arm].values, trial.seed, "")
            updates = int(spec.training["n_critic"]) if spec.training["real_batch"] == "fresh" else 1
            self._batches[trial.key] = int(spec.training["batch_size"]) * updates
        return self._batches[trial.key]

    def _log_animation(self, run: str, key: str, step: int, path: Path) -> None:
        """A GIF as pictures/NAME.gif, which MLflow shows among the artifacts."""
        name = key.removeprefix("animation/").replace("/", "_") + ".gif"
        if self._read_picture(run, key, step, path):
            self._log_copy(run, path, "pictures", name)

    def _log_copy(self, run: str, path: Path, folder: str, name: str) -> None:
        """Log a file under another name, as it is: encoding a picture again takes longer than all the rest."""
        with tempfile.TemporaryDirectory() as directory:
            shutil.copyfile(path, Path(directory) / name)
            self._api.log_artifact(run, str(Path(directory) / name), folder)

    def _read_picture(self, run: str, key: str, step: int, path: Path) -> Image.Image | None:
        """The picture; None for one that was deleted or damaged on this disk, with a tag: the rest must go on."""
        try:
            with Image.open(path) as picture:
                picture.load()
                return picture
        except PICTURE_ERRORS as error:
            self._api.set_tag(run, "gan_sweep.lost_picture", f"{key} of step {step}: {error}"[:5000])
            return None

    def _log_picture(self, run: str, key: str, step: int, path: Path, at_ms: int) -> None:
        """What `log_image(key=, step=, timestamp=)` does, under names that an interrupted upload finds again."""
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run} {key} {step} {at_ms}")
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{at_ms}+{unique}"
        if run not in self._pictures:
            self._pictures[run] = _logged_pictures(self._api, run)
        if name in self._pictures[run]:
            return
        if picture := self._read_picture(run, key, step, path):
            self._log_copy(run, path, "images", f"{name}.png")
            self._api.log_image(run, ImageOps.contain(picture, PREVIEW_SIZE), f"images/{name}{PREVIEW_END}")
        self._pictures[run].add(name)

    def _end_trial(self, trial: TrialRecord, event: TrialEnded) -> None:
        if not trial.attempts:  # of an arm that was pruned before this seed began: there is nothing to show
            self._stale = True
            return
        run = self._trial_run(trial)
        state = State(event.state)
        tags = {"gan_sweep.state": state.value, "gan_sweep.reason": event.reason}
        rows = self._metrics.get(run, [])
        if state.is_final:
            finals = {**trial.finals(), **_bests(trial, self._study.objectives)}
            rows = rows + [Metric(name, value, event.at_ms, event.step) for name, value in finals.items()]
            self._log_last_pictures(run, trial, event.at_ms)
            self._stale = True
        self._log_rows(run, rows, tags)
        self._metrics.pop(run, None)
        if event.detail:
            self._api.log_text(run, event.detail, f"logs/attempt-{event.attempt}.txt")
        if state.is_final:
            kept = self._files.trial(trial.folder) / "checkpoints"
            wanted = [*checkpoints(kept)[:1], best_checkpoint(kept)]
            for checkpoint in dict.fromkeys(path for path in wanted if path is not None):
                self._api.log_artifacts(run, str(checkpoint), f"checkpoints/{checkpoint.name}")
        status = RUN_STATUS[state]
        if status == "SCHEDULED":
            self._api.update_run(run, status=status)
        else:
            self._api.set_terminated(run, status, end_time=event.at_ms)

    def _log_last_pictures(self, run: str, trial: TrialRecord, at_ms: int) -> None:
        """The last grid, and that of the best evaluation, at a step that trials of all lengths share."""
        grids = trial.pictures.get(views.STEP_PICTURES, {})
        if not grids:
            return
        chosen = {views.FINAL_PICTURES: (max(grids), grids[max(grids)])}
        if best := trial.grid_at(self._study.objective):
            chosen[views.BEST_PICTURES] = best
        for key, (_, path) in chosen.items():
            self._log_picture(run, key, 0, self._files.trial(trial.folder) / path, at_ms)

    # The best trial's generator

    def _log_model(self, trial: TrialRecord) -> None:
        """Log the generator of the study's best trial as a model, unless it is there; no other one stays.

        Best effort: a server that has no models, or a checkpoint that is gone, leaves a tag that says why.
        """
        run = self._trial_run(trial)
        try:
            found = self._api.search_logged_models(
                [self._opened], f"tags.`gan_sweep.study_uid` = '{self._records.uid}'"
            )
            mine = [model for model in found if model.tags.get("gan_sweep.trial_key") == trial.key][:1]
            for model in found:
                if model not in mine:
                    self._api.delete_logged_model(model.model_id)
            if not mine or mine[0].status != LoggedModelStatus.READY:
                self._make_model(run, trial, *mine)
        except Exception as error:  # whatever a store of another version raises
            self._model_failures += 1
            if self._model_failures < MODEL_TRIES:
                raise
            self._api.set_tag(run, "gan_sweep.lost_model", str(error)[:5000])

    def _make_model(self, run: str, trial: TrialRecord, model: LoggedModel | None = None) -> None:
        """Log the trial's generator; `model` is what an earlier try has left."""
        values = self._records.arms[trial.arm].values
        spec = arms.trial_spec(self._study, values, trial.seed, "")
        candidates = checkpoints_of(self._files, trial, self._study.objective)
        with tempfile.TemporaryDirectory() as directory:
            try:
                step = _write_generator(Path(directory), spec, trial.keys, candidates)
            except CheckpointError as error:
                self._api.set_tag(run, "gan_sweep.lost_model", str(error)[:5000])
                return
            if model is None:
                model = self._api.create_logged_model(
                    self._opened,
                    f"generator-{trial.number:03d}",
                    source_run_id=run,
                    tags={
                        "gan_sweep.study_uid": self._records.uid,
                        "gan_sweep.study": self._study.name,
                        "gan_sweep.trial_key": trial.key,
                    },
                    params={k: arms.show(v) for k, v in {"step": step, "seed": trial.seed, **values}.items()},
                    model_type="gan-generator",
                )
            self._api.log_model_artifacts(model.model_id, directory)
        dataset = self._dataset(values)
        self._api.log_batch(
            run,
            metrics=[
                Metric(
                    row.key, row.value, row.timestamp, row.step,
                    model.model_id, dataset.name, dataset.digest, run,
                )
                for name in HEADLINE
                if f"eval/{name}" in trial.latest
                for row in self._api.get_metric_history(run, f"eval/{name}")
                if row.step == step
            ],
        )  # fmt: skip
        self._api.log_outputs(run, [LoggedModelOutput(model.model_id, step)])
        self._api.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def ranked_by(objective: Objective) -> str:
    """The metric that holds what a finished trial counts with."""
    return _best_name(objective) if _keeps_best(objective) else objective.metric


def _keeps_best(objective: Objective) -> bool:
    return objective.metric.startswith("eval/") and objective.at == "best"


def _best_name(objective: Objective) -> str:
    return "best/" + objective.metric.split("/", 1)[-1]


def _bests(trial: TrialRecord, objectives: Iterable[Objective]) -> dict[str, float]:
    """best/NAME of every objective that is the best of evaluations, and the step of the first one's."""
    found = {
        _best_name(o): value for o in objectives if _keeps_best(o) and (value := trial.value(o)) is not None
    }
    first = next(iter(objectives))
    step = trial.value_step(first) if _best_name(first) in found else None
    return found if step is None else {**found, "best/step": float(step)}


def _narrowed(picture: Image.Image) -> Image.Image:
    """A copy of at most NOTE_WIDTH pixels in width."""
    picture.load()
    width = min(picture.width, views.NOTE_WIDTH)
    return picture.convert("RGB").resize((width, max(1, round(picture.height * width / picture.width))))


def _write_generator(
    directory: Path, spec: TrialSpec, keys: Collection[str], candidates: Sequence[Path]
) -> int:
    """Write generator.pt, a state dictionary that loads with weights_only=True, and config.json, what it is.

    Of the first of `candidates`, checkpoints, that is whole; returns its step. Raises CheckpointError when none is.
    """
    import torch  # here: `gan-sweep ui` does without

    from trials.checkpoints import load

    problem = CheckpointError("there is no checkpoint")
    for path in candidates:
        try:
            state = load(path, keys, torch.device("cpu"))
            break
        except CheckpointError as error:
            problem = error
    else:
        raise problem
    averaged = state["averaged"]
    torch.save(state["generator"] if averaged is None else averaged, directory / "generator.pt")
    config = {
        "model": spec.model,
        "model_params": dict(spec.model_params),
        "training": dict(spec.training),
        "dataset": spec.dataset,
        "n_classes": spec.n_classes,
        "seed": spec.seed,
        "step": state["step"],
        "averaged": averaged is not None,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return int(state["step"])


def _expected_metrics(spec: TrialSpec) -> set[str]:
    """What trials will log, as far as it is known before the first evaluation."""
    judged = {"fd", "kid", "precision", "recall", "coverage", "swd"} if spec.eval_steps else set[str]()
    classes = {"class_tv"} if spec.eval_steps and spec.features == "classifier" else set[str]()
    trained = {f"train/{name}" for name in TRAIN_METRICS}
    return {f"eval/{name}" for name in judged | classes} | trained | {"perf/images_per_s"}


def _in_logarithm(axis: object) -> bool:
    return isinstance(axis, Range) and axis.log


def _log_name(name: str) -> str:
    return f"hp/log10_{name}"


def _logarithms(study: StudySpec, values: Mapping[str, Value]) -> dict[str, float]:
    """hp/log10_NAME of what is searched in its logarithm: MLflow's axes are all linear."""
    found = {
        name: values[name] for name, axis in study.space.items() if _in_logarithm(axis) and name in values
    }
    return {_log_name(name): round(math.log10(float(value)), 6) for name, value in found.items()}


def _examples(axis: Choices | Range) -> list[Value]:
    return axis.values() if isinstance(axis, Choices) else [axis.low, axis.high]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _logged_pictures(client: MlflowClient, run: str) -> set[str]:
    """Names, without their endings, of the pictures that a run holds completely."""
    paths = (file.path.removeprefix("images/") for file in client.list_artifacts(run, "images"))
    return {path.removesuffix(PREVIEW_END) for path in paths if path.endswith(PREVIEW_END)}


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, text[:5000]) for name, text in values.items()]


# What the store holds, for those who check and tidy it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """One run of a study. `key`: its trial's, or `study`. `rows`: (metric, step, value), as often as it is there."""

    run_id: str
    key: str
    status: str
    rows: Counter[tuple[str, int, float]]


def tracked_runs(name: str, uid: str) -> list[TrackedRun]:
    """The runs of the study's own trials and of itself; none where the store does not know the study."""
    client = _existing_client()
    experiment = client.get_experiment_by_name(name) if client else None
    if client is None or experiment is None:
        return []
    query = f"tags.`gan_sweep.study_uid` = '{uid}'"
    return [
        TrackedRun(
            run_id=run.info.run_id,
            key=run.data.tags.get("gan_sweep.trial_key") or str(run.data.tags.get("gan_sweep.kind")),
            status=str(run.info.status),
            rows=Counter(
                (row.key, row.step, row.value)
                for metric in run.data.metrics
                for row in client.get_metric_history(run.info.run_id, metric)
            ),
        )
        for run in _all_runs(client, experiment.experiment_id, query)
    ]


def is_of_journal(metric: str) -> bool:
    """Whether a metric is the journal's, and not one that the sink adds."""
    return not metric.startswith(("final/", "best/")) and metric != "train/kimg"


def checkpoint_copies(name: str, uid: str) -> dict[str, Path]:
    """By trial key: where the copies of its checkpoints lie, of runs whose artifacts lie in our home."""
    client = _existing_client()
    experiment = client.get_experiment_by_name(name) if client else None
    if client is None or experiment is None:
        return {}
    found = {}
    for run in _all_runs(client, experiment.experiment_id, f"tags.`gan_sweep.study_uid` = '{uid}'"):
        place, key = _in_home(str(run.info.artifact_uri)), run.data.tags.get("gan_sweep.trial_key")
        if key and place is not None:
            found[key] = place / "checkpoints"
    return found


def dead_artifacts(name: str | None = None) -> list[Path]:
    """Directories in our home of runs and models that our own store holds as deleted; of the study `name` or of all.

    None of stores that MLFLOW_TRACKING_URI names: what they do not know may be another store's.
    """
    client = None if os.environ.get("MLFLOW_TRACKING_URI") else _existing_client()
    if client is None:
        return []
    found: list[Path | None] = []
    for experiment in _all_experiments(client):
        if name is None or experiment.name == name:
            runs = _all_runs(client, experiment.experiment_id, "", ViewType.DELETED_ONLY)
            found += [_run_directory(run) for run in runs]
            found += _model_directories(client, experiment, dead=True)
    return sorted({path for path in found if path is not None and path.is_dir()})


def delete_experiment(name: str) -> list[Path]:
    """Delete a study's experiment with all of its runs, for good where the store can, else under another name.

    Its name is free afterwards. Returns the directories in our home that held its artifacts.
    """
    client = _existing_client()
    experiment = client.get_experiment_by_name(name) if client else None
    if client is None or experiment is None:
        return []
    number, store = experiment.experiment_id, _sql_store(client)
    runs = _all_runs(client, number, "", ViewType.ALL)
    models = _model_directories(client, experiment, dead=False)
    directories = [
        path for path in (*map(_run_directory, runs), *models) if path is not None and path.is_dir()
    ]
    if store is None:  # a server keeps what is deleted until somebody collects it there
        if experiment.lifecycle_stage != "active":
            client.restore_experiment(number)
        client.rename_experiment(number, f"{name} (deleted {time.time_ns() // 1_000_000})")
        client.delete_experiment(number)
        return directories
    if experiment.lifecycle_stage == "active":
        client.delete_experiment(number)
    for run in runs:
        store._hard_delete_run(run.info.run_id)
    store._hard_delete_experiment(number)
    return directories


@contextmanager
def reachable() -> Iterator[None]:
    """Turn errors of the store into UnreachableError."""
    try:
        yield
    except GanSweepError:
        raise
    except Exception as error:  # whatever a store or the network raise
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnreachableError(f"MLflow's store does not answer: {words}") from error


def _existing_client() -> MlflowClient | None:
    """A client of the store; None where our own one was never made."""
    made = os.environ.get("MLFLOW_TRACKING_URI") or (home() / "mlflow" / "mlflow.db").exists()
    return open_client() if made else None


def _sql_store(client: MlflowClient) -> Any:
    """The store behind a client where it can delete for good, as `mlflow gc` does; else None.

    MLflow has no public way to it but that command, which collects everything that was ever deleted.
    """
    store = client._tracking_client.store
    needed = ("_hard_delete_run", "_hard_delete_experiment", "_hard_delete_logged_model")
    return (
        store
        if tracking_uri().startswith("sqlite:") and all(hasattr(store, name) for name in needed)
        else None
    )


def _all_runs(
    client: MlflowClient, experiment_id: str, query: str, view: int = ViewType.ACTIVE_ONLY
) -> list[Run]:
    found, token = list[Run](), None
    while True:
        page = client.search_runs([experiment_id], query, view, max_results=PAGE, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def _all_experiments(client: MlflowClient) -> list[Experiment]:
    found, token = list[Experiment](), None
    while True:
        page = client.search_experiments(ViewType.ALL, max_results=PAGE, page_token=token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def _run_directory(run: Run) -> Path | None:
    place = _in_home(str(run.info.artifact_uri))
    return place.parent if place is not None and place.parent.name == run.info.run_id else None


def _model_directories(client: MlflowClient, experiment: Experiment, *, dead: bool) -> list[Path]:
    """The directories of the experiment's models, of those that are deleted where `dead`, else of all."""
    place, store = _in_home(str(experiment.artifact_location)), _sql_store(client)
    if place is None or store is None:
        return []
    found, alive = list[Path](), set[str]()
    listed = sorted(
        (place / "models").glob("*")
    )  # before asking: a model is in the store before it has files
    if dead and experiment.lifecycle_stage == "active":
        alive = {model.model_id for model in client.search_logged_models([experiment.experiment_id])}
    for path in listed:
        try:
            model = store.get_logged_model(path.name, allow_deleted=True)
        except MlflowException:  # another store's
            continue
        if str(model.experiment_id) == experiment.experiment_id and path.name not in alive:
            found.append(path)
    return found


def _in_home(uri: str) -> Path | None:
    """The directory that an artifact address names, when it lies below our home's artifacts."""
    parts = urlsplit(uri)
    path = Path(unquote(parts.path)).resolve()
    ours = (home() / "mlflow" / "artifacts").resolve()
    return path if parts.scheme in ("", "file") and ours in path.parents else None
