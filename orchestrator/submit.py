"""Submitting a study: everything between a valid definition and its results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.status import Status

from models import Value
from orchestrator import arms, results
from orchestrator.errors import UnreachableError, UsageError
from orchestrator.execution import choose_packs
from orchestrator.home import StudyFiles, data_directory, features_directory, home
from orchestrator.leaderboard import Standing, leaderboard
from orchestrator.loader import refuse_facts
from orchestrator.machine import Slots, slots, this_machine
from orchestrator.progress import Progress
from orchestrator.records import Records
from orchestrator.search import OptunaSearch
from orchestrator.shipper import Shipper
from orchestrator.status import load_definition, load_records
from orchestrator.study import Dataset, StudySpec, of_arm, with_datasets
from orchestrator.sweep import MATMUL, Backend, Sweep
from trials.data import PreparedDataset, prepare
from trials.datasets import DATASETS, DatasetSource
from trials.errors import DatasetError
from trials.kernels import probe_matmul
from trials.reports import State

SHOWN_SKIPPED = 20
FEATURES = "gan_sweep.features"
"""The fact of a study's provenance that says what its images are compared in."""
LOCK_WAIT_S = 1.0  # `status` takes the lock for a moment to see whether it is held
PACKAGES = ("gan-sweep", "torch", "ray", "mlflow", "optuna", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What came of a submit. `pending`: events that MLflow has not got yet, and why."""

    files: StudyFiles
    state: str
    standings: list[Standing]
    pictures: dict[str, Path]
    experiment_id: str | None
    pending: int
    pending_reason: str | None
    interrupted: bool


def submit(
    study: StudySpec,
    source: Path,
    *,
    backend: Literal["ray", "inline"],
    data_dir: Path | None,
    console: Console,
    chosen: Mapping[str, str] = MappingProxyType({}),
) -> Submitted:
    """Run the study to its end, or go on where it stopped. Talks on `console`. `chosen`: facts to record with it.

    Raises UsageError before anything is created when the study does not fit this machine, differs from one
    of the same name, is running already, or has no data.
    """
    machine = this_machine()
    granted = slots(study.resources, machine, arms.arm_count(study) * len(study.seeds))
    files = StudyFiles.of(study.name)
    _check_home()
    datasets = prepare_datasets(study, source, data_dir, console)
    study = with_facts(study, datasets)
    refuse_facts(study, source)
    _refuse_other_definition(files, study)
    files.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(files.lock).acquire(timeout=LOCK_WAIT_S):
            _write_definition(files, study, source)
            records = load_records(files)
            matmul = matmul_kernels(records, granted)
            search = OptunaSearch(study, files.optuna, records.arms)
            sweep = Sweep(study, files, search, datasets, granted)
            facts = {**provenance(datasets, source), **matmul, **chosen}
            if not sweep.finished:
                facts |= prepare_features(study, datasets, console)
                facts["gan_sweep.pack"] = _pack(sweep, matmul[MATMUL], console)
            return _run(sweep, _make_backend(backend, machine.cpus, machine.gpus), facts, console)
    except Timeout:
        raise UsageError(
            f"study {study.name} is running already; watch it with: gan-sweep status {study.name}"
        ) from None


def _run(sweep: Sweep, backend: Backend, facts: dict[str, str], console: Console) -> Submitted:
    from orchestrator.tracking import MlflowSink

    sink = MlflowSink(sweep.files, sweep.study)
    shipper = Shipper(sweep.files, sink)
    _say_where_it_stands(sweep, console)
    interrupted: list[int] = []
    try:
        if sweep.finished and sweep.records.state in ("completed", "failed"):
            shipper.start()  # what an earlier submit could not send
        else:
            sweep.start(facts)
            shipper.start()
            with _stop_on_signal(sweep, console) as interrupted, Progress(sweep, console):
                backend.run(sweep)
        standings = leaderboard(sweep.records, *sweep.study.objectives)
        pictures = results.write_study_plots(sweep.files, standings, sweep.study.objective)
        results.write_table(sweep.files.leaderboard, standings)
    finally:  # also when Ray does not start: what ran is recorded, and MLflow learns that it stopped
        state = sweep.end()
        with console.status("sending the last results to MLflow"):
            pending = shipper.close()
    return Submitted(
        files=sweep.files,
        state=state,
        standings=standings,
        pictures=pictures,
        experiment_id=sink.experiment_id,
        pending=pending,
        pending_reason=shipper.error,
        interrupted=bool(interrupted),
    )


def _pack(sweep: Sweep, matmul: str, console: Console) -> str:
    """Let the sweep make packs where they are worth it; how that was chosen, a line a kind of trial."""
    with console.status("measuring how fast trials step on this machine"):
        packing = choose_packs(sweep.study, sweep.slots, "onednn" if matmul == "onednn" else "default")
    sweep.pack_size, sweep.recorded = packing.size, packing.is_recorded
    if any(size > 1 for size in packing.sizes.values()) or packing.recorded:
        for words in packing.words:
            console.print(f"[dim]{words}[/dim]", highlight=False)
    return "\n".join(packing.words)


def _say_where_it_stands(sweep: Sweep, console: Console) -> None:
    finals = sum(t.state.is_final for t in sweep.records.trials.values())
    failed = sweep.records.count(State.FAILED)
    words = f"{finals} of {sweep.n_trials} trials are finished already" + (
        f", {failed} failed" if failed else ""
    )
    if sweep.finished:
        console.print(f"nothing is left to run: {words}", highlight=False)
    elif finals:
        console.print(f"going on where the study stopped: {words}", highlight=False)


def prepare_datasets(
    study: StudySpec, source: Path, data_dir: Path | None, console: Console
) -> dict[DatasetSource, PreparedDataset]:
    """The datasets of all arms on disk. Raises UsageError that says where files belong.

    A folder is looked for beside the study file `source`, then below `data_dir`.
    """
    place = data_directory(data_dir)
    prepared = {}
    for wanted in sources(study):
        with console.status(f"dataset {wanted.label}") as shown:

            def show(done: int, total: int, label: str = wanted.label, shown: Status = shown) -> None:
                shown.update(f"dataset {label}: {done:,} of {total:,} images")

            try:
                prepared[wanted] = prepare(
                    wanted,
                    cache_dir=home() / "datasets",
                    data_dir=place,
                    search_dirs=[source.absolute().parent],
                    progress=show,
                )
            except DatasetError as error:
                raise UsageError(str(error)) from error
        found = prepared[wanted]
        console.print(f"[dim]dataset {wanted.label}: {found.n_images:,} images[/dim]", highlight=False)
        for line in found.skipped[:SHOWN_SKIPPED]:
            console.print(f"  left out: {line}", style="yellow", markup=False, highlight=False)
        if len(found.skipped) > SHOWN_SKIPPED:
            console.print(f"  and {len(found.skipped) - SHOWN_SKIPPED} more", style="yellow")
    return prepared


def prepare_features(
    study: StudySpec, datasets: Mapping[DatasetSource, PreparedDataset], console: Console
) -> dict[str, str]:
    """Make what the evaluations of all arms compare images in, training classifiers where there are none yet.

    Returns what they are, for the provenance. Raises UsageError when they cannot be made.
    """
    from trials.evaluation import prepare_extractor

    found: dict[str, str] = {}
    seen: set[tuple[str, int | None, str]] = set()
    for arm in study.arms or [""]:
        point: dict[str, Value] = {"arm": arm} if arm else {}
        prepared = datasets[arms.resolved(study, point).dataset.source]
        spec = arms.trial_spec(study, point, study.seeds[0], prepared.digest)
        this = (spec.dataset_digest, spec.size, spec.features)
        if not spec.eval_steps or this in seen:
            continue
        seen.add(this)
        label = spec.dataset if spec.size is None else f"{spec.dataset}, averaged to {spec.size}"
        with console.status(f"features of {label}") as shown:
            try:
                extractor = prepare_extractor(
                    spec, prepared.images, prepared.labels, features_directory(), shown.update
                )
            except (ValueError, DatasetError) as error:
                raise UsageError(f"images of {spec.dataset} cannot be compared: {error}") from error
        found[label] = extractor.name
        if extractor.accuracy is not None:
            found[label] += f", right about {extractor.accuracy:.2%} of held-out images"
        console.print(f"[dim]features of {label}: {found[label]}[/dim]", highlight=False)
    return {FEATURES: json.dumps(found)} if found else {}


def sources(study: StudySpec) -> list[DatasetSource]:
    """What the study's arms train on, each once."""
    studies = [of_arm(study, name) for name in study.arms] or [study]
    return list(dict.fromkeys(each.dataset.source for each in studies))


def with_facts(study: StudySpec, datasets: Mapping[DatasetSource, PreparedDataset]) -> StudySpec:
    """The study with the number of images and classes of its datasets written in."""

    def known(dataset: Dataset) -> Dataset:
        found = datasets.get(dataset.source)
        if found is None:
            return dataset
        if dataset.name is not None and found.n_images == DATASETS[dataset.name].n_images:
            return dataset.model_copy(update={"n_images": None, "n_classes": None})
        return dataset.model_copy(update={"n_images": found.n_images, "n_classes": found.n_classes})

    return with_datasets(study, known)


def _make_backend(name: Literal["ray", "inline"], cpus: int, gpus: int) -> Backend:
    if name == "inline":
        from orchestrator.backends.inline import InlineBackend

        return InlineBackend()
    from orchestrator.backends.ray import RayBackend

    return RayBackend(cpus=cpus, gpus=gpus)


def _check_home() -> None:
    try:
        home().mkdir(parents=True, exist_ok=True)
        if not os.access(home(), os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise UnreachableError(
            f"{home()} cannot be written ({error}); set GAN_SWEEP_HOME to a directory that can"
        ) from error


def _refuse_other_definition(files: StudyFiles, study: StudySpec) -> None:
    if not files.definition.exists():
        return
    changes = arms.difference(arms.identity(load_definition(files)), arms.identity(study))
    if changes:
        raise UsageError(
            f"a study named {study.name} exists with another definition:\n  "
            + "\n  ".join(changes)
            + "\nSubmit the old definition to go on with it, or choose a new name: --set name=NEW_NAME"
        )


def _write_definition(files: StudyFiles, study: StudySpec, source: Path) -> None:
    for path, content in (
        (files.definition, study.model_dump_json(indent=1).encode()),
        (files.source, source.read_bytes()),
    ):
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)


@contextlib.contextmanager
def _stop_on_signal(sweep: Sweep, console: Console) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM stops the sweep cleanly, a second leaves at once; yields what came."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            console.show_cursor()
            console.print(
                "\nleft at once; the same command goes on from the last checkpoints", style="yellow"
            )
            os._exit(128 + number)  # the journal is synced after every event: nothing is lost
        sweep.request_stop()
        console.print("\nstopping: running trials save a checkpoint (again leaves at once)", style="yellow")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def provenance(datasets: Mapping[DatasetSource, PreparedDataset], source: Path) -> dict[str, str]:
    """Where results come from: versions, machine, dataset digests, and the commit of the study's repository."""
    facts = {
        # In a value: the name of a folder may hold what MLflow takes in no key.
        "gan_sweep.dataset_digests": json.dumps({str(s): found.digest for s, found in datasets.items()}),
        "gan_sweep.python": platform.python_version(),
        "gan_sweep.machine": f"{platform.machine()} {platform.system()}, {this_machine().cpus} cores",
        "mlflow.source.name": f"gan-sweep submit {source.name}",
        "mlflow.source.type": "LOCAL",
        **{f"gan_sweep.version.{name}": version(name) for name in PACKAGES},
    }
    commit = _git(source.absolute().parent, "rev-parse", "HEAD")
    if commit:
        facts["mlflow.source.git.commit"] = commit
        facts["gan_sweep.git_dirty"] = str(
            bool(_git(source.absolute().parent, "status", "--porcelain"))
        ).lower()
    return facts


def matmul_kernels(records: Records, granted: Slots) -> dict[str, str]:
    """Which matrix kernels the study's trials use, with the figures of the probe that chose them.

    A study that goes on keeps those it began with: a trial's numbers may not change half-way.
    """
    if granted.gpu or records.uid:
        before = {name: words for name, words in records.provenance.items() if name.startswith(MATMUL)}
        return {MATMUL: "default"} | before
    probe = probe_matmul()
    return {
        MATMUL: probe.matmul,
        f"{MATMUL}.probe": probe.words,
    }


def _git(directory: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
