"""Writes a study to MLflow, event by event. The only module that imports MLflow.

shipper.py sends events again after a crash or an outage. Nothing doubles, because

- an experiment is found by its name before one is created, and a run by its trial key: at first by a list of all runs
  of the study, and after a call has failed by asking before and after each creation;
- metric rows carry the journal's timestamps, and MLflow keeps one row of identical ones;
- a picture's file names are the same each time (MLflow's own carry a random part), so it is written over.

Ray's stock MLflow callback does none of this, and blocks the driver while a server is away.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

# Read by MLflow when it is imported. Its own retries block for minutes; ours find what was created before.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for our data
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run, RunTag, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image, ImageOps

from models import Value
from orchestrator import arms, views
from orchestrator.home import StudyFiles, home
from orchestrator.journal import (
    ArmProposed,
    Event,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.leaderboard import leaderboard
from orchestrator.records import Records, TrialRecord
from orchestrator.study import StudySpec, axes
from trials.reports import State

for noisy in ("alembic", "mlflow"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

BATCH_METRICS = 1000  # MLflow's limit a request
PAGE = 1000  # runs a request
COLOURS = ("#00798c", "#d1495b", "#edae49", "#2e933c", "#30638e", "#8f2d56", "#6c757d", "#f4845f", "#5e548e",
           "#3a7d44", "#b08968", "#003d5b")  # fmt: skip
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
        self, files: StudyFiles, study: StudySpec, *, connect: Callable[[], MlflowClient] = open_client
    ) -> None:
        self._files, self._study, self._connect = files, study, connect
        self._records = Records()
        self._client: MlflowClient | None = None
        self._runs: dict[str, str] | None = None
        """By trial key, or the study's name; None until they are listed."""
        self._careful = False
        """A call has failed: there may be runs that are not in `_runs`."""
        self._described: set[str] = set()
        self._pictures: dict[str, set[str]] = {}
        self._metrics: dict[str, list[Metric]] = {}
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
            case ArmProposed():
                pass
            case TrialStarted():
                self._start_trial(records.trials[event.key], event)
            case TrialReported():
                run = self._trial_run(records.trials[event.key])
                self._metrics.setdefault(run, []).extend(
                    Metric(name, value, event.at_ms, step)
                    for step, row in event.rows
                    for name, value in row.items()
                )
                for key, step, path in event.pictures:
                    self._log_picture(run, key, step, self._files.trial(event.key) / path, event.at_ms)
            case TrialEnded():
                self._end_trial(records.trials[event.key], event)
            case StudyEnded():
                self.flush()
                self._end_study(event)
            case _:
                raise TypeError(f"unknown event {event!r}")

    def flush(self) -> None:
        """Write the metric rows that wait."""
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
            "gan_sweep.objective": f"{study.objective.metric} {study.objective.mode}",
            "mlflow.note.content": _note(study),
        }
        for name, text in tags.items():
            self._api.set_experiment_tag(self._opened, name, text)
        self._set_view(event.at_ms, finished=False)
        run = self._study_run()
        params: Mapping[str, Value] = {
            "model": study.model,
            "dataset": study.dataset.source.label,
            "sampler": study.search.sampler,
            "search_seed": study.search.seed,
            "objective": study.objective.metric,
            "mode": study.objective.mode,
            "seeds": " ".join(map(str, study.seeds)),
        }
        self._api.log_batch(run, params=_params(params), tags=_tags(event.provenance))
        self._api.log_artifact(run, str(self._files.definition), "config")
        self._api.log_artifact(run, str(self._files.source), "config")
        self._api.update_run(run, status="RUNNING")
        for trial in self._records.trials.values():  # those that a killed driver left running
            if trial.attempts and not trial.state.is_final:
                self._api.update_run(self._trial_run(trial), status="SCHEDULED")

    def _set_view(self, at_ms: int, *, finished: bool) -> None:
        """The page behind the printed link. It opens at one step's pictures, which must be there to be seen:
        the first ones while trials run, the last ones afterwards."""
        study = self._study
        named = {"arm": next(iter(study.arms))} if study.arms else {}
        first = arms.grid(study)[0] if study.search.sampler == "grid" else named
        steps = arms.trial_spec(study, first, study.seeds[0], "").picture_steps
        view = views.saved_view_tags(
            objective=study.objective.metric,
            mode=study.objective.mode,
            searched=list(axes(study)),
            image_key="samples/fixed",
            image_steps=steps if finished else steps[:1],
            created_at_ms=at_ms,
            n_trials=arms.arm_count(study) * len(study.seeds),
        )
        for name, text in view.items():
            self._api.set_experiment_tag(self._opened, name, text)

    def _study_run(self) -> str:
        tags = {"gan_sweep.study": self._study.name, "mlflow.note.content": _note(self._study)}
        return self._run("study", "gan_sweep.kind", "study", f"study {self._study.name}", tags, 0)

    def _end_study(self, event: StudyEnded) -> None:
        run = self._study_run()
        standings = leaderboard(self._records, self._study.objective)
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
                    metrics=[Metric(f"best/{self._study.objective.metric}", best.mean, event.at_ms, n_final)],
                    tags=_tags({"gan_sweep.best_arm": best.arm.label}),
                )
        self._api.set_tag(run, "gan_sweep.state", event.state)
        self._set_view(event.at_ms, finished=True)
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

    def _trial_run(self, trial: TrialRecord, started: Mapping[str, str] = MappingProxyType({})) -> str:
        """The trial's run. `started`: tags of a run that is made now."""
        if trial.key in self._described:
            return self._known_runs()[trial.key]
        values = self._records.arms[trial.arm].values
        spec = arms.trial_spec(self._study, values, trial.seed, "")
        tags = {
            "mlflow.parentRunId": self._study_run(),
            "mlflow.runColor": COLOURS[trial.arm % len(COLOURS)],
            "gan_sweep.study": self._study.name,
            "gan_sweep.arm": trial.label,
            "gan_sweep.seed": str(trial.seed),
            **{name: text for name, text in self._records.provenance.items() if name.startswith("mlflow.")},
            **started,
        }
        run = self._run("trial", "gan_sweep.trial_key", trial.key, trial.name, tags, self._records.updated_ms)
        params = {
            "model": spec.model, "dataset": spec.dataset, "seed": trial.seed,
            "steps": spec.steps, "eval_samples": spec.eval_samples, **arms.hyperparameters(spec, values),
        }  # fmt: skip
        self._api.log_batch(run, params=_params(params))
        trained_on = arms.resolved(self._study, values).dataset
        digests = json.loads(self._records.provenance.get("gan_sweep.dataset_digests", "{}"))
        dataset = Dataset(
            name=spec.dataset,
            digest=digests.get(str(trained_on.source), "unknown")[:32],
            source_type="gan_sweep",
            source=trained_on.model_dump_json(exclude_none=True),
        )
        self._api.log_inputs(run, [DatasetInput(dataset)])
        self._described.add(trial.key)
        return run

    def _run(self, kind: str, tag: str, value: str, name: str, tags: Mapping[str, str], at_ms: int) -> str:
        """This study's run that carries the tag, created when there is none; of several, the oldest."""
        runs = self._known_runs()
        if value not in runs:
            found = self._find_runs(f"tags.`{tag}` = '{value}'") if self._careful else []
            if not found:
                mine = {"gan_sweep.kind": kind, "gan_sweep.study_uid": self._records.uid, tag: value, **tags}
                made = self._api.create_run(self._opened, start_time=at_ms or None, tags=mine, run_name=name)
                found = [made]
                if self._careful:  # a call that timed out may have made another one
                    found = self._find_runs(f"tags.`{tag}` = '{value}'")
            for double in found[1:]:
                self._api.delete_run(double.info.run_id)
            runs[value] = str(found[0].info.run_id)
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

    def _log_picture(self, run: str, key: str, step: int, path: Path, at_ms: int) -> None:
        """What `log_image(key=, step=, timestamp=)` does, under names that an interrupted upload finds again."""
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{run} {key} {step} {at_ms}")
        name = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{at_ms}+{unique}"
        if run not in self._pictures:
            self._pictures[run] = _logged_pictures(self._api, run)
        if name in self._pictures[run]:
            return
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            # Deleted or damaged on this disk: the rest must go on.
            self._api.set_tag(run, "gan_sweep.lost_picture", f"{key} of step {step}: {error}"[:5000])
        else:
            self._api.log_image(run, picture, f"{name}.png")
            self._api.log_image(run, ImageOps.contain(picture, PREVIEW_SIZE), name + PREVIEW_END)
            self._api.set_tag(run, MLFLOW_LOGGED_IMAGES, "True")
        self._pictures[run].add(name)

    def _end_trial(self, trial: TrialRecord, event: TrialEnded) -> None:
        run = self._trial_run(trial)
        state = State(event.state)
        tags = {"gan_sweep.state": state.value, "gan_sweep.reason": event.reason}
        finals = [Metric(name, value, event.at_ms, event.step) for name, value in trial.finals().items()]
        rows = self._metrics.get(run, []) + (finals if state.is_final else [])
        self._log_rows(run, rows, tags)
        self._metrics.pop(run, None)
        if event.detail:
            self._api.log_text(run, event.detail, f"logs/attempt-{event.attempt}.txt")
        if state.is_final:
            for checkpoint in sorted((self._files.trial(trial.key) / "checkpoints").glob("step_*[0-9]"))[-1:]:
                self._api.log_artifacts(run, str(checkpoint), f"checkpoints/{checkpoint.name}")
        status = RUN_STATUS[state]
        if status == "SCHEDULED":
            self._api.update_run(run, status=status)
        else:
            self._api.set_terminated(run, status, end_time=event.at_ms)


def _logged_pictures(client: MlflowClient, run: str) -> set[str]:
    """Names, without their endings, of the pictures that a run holds completely."""
    paths = (file.path for file in client.list_artifacts(run, "images"))
    return {path.removesuffix(PREVIEW_END) for path in paths if path.endswith(PREVIEW_END)}


def _params(values: Mapping[str, Value]) -> list[Param]:
    """Numbers with all of their digits."""
    return [Param(name, str(value)) for name, value in values.items()]


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, text[:5000]) for name, text in values.items()]


def _note(study: StudySpec) -> str:
    space = "\n".join(
        f"- `{name}`: {axis.model_dump(exclude_none=True)}" for name, axis in study.space.items()
    )
    return f"**{study.name}**: {study.description}\n\n{study.source}\n\n{space}"[:5000]
