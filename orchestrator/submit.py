"""Running a study, from a valid definition to its results: submitting it, going on with it, extending it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, cast

from filelock import FileLock, Timeout
from rich.console import Console
from rich.status import Status

from models import Value
from orchestrator import arms, notify, pruning, results
from orchestrator._fields import Limits
from orchestrator.costs import PREDICTION, free_space_mb, space_problem
from orchestrator.errors import UnreachableError, UsageError
from orchestrator.execution import choose_packs
from orchestrator.going_on import Extension, extended
from orchestrator.home import StudyFiles, data_directory, features_directory, home
from orchestrator.leaderboard import Standing, leaderboard
from orchestrator.loader import Budget, load_study, refuse_facts
from orchestrator.machine import slots, this_machine
from orchestrator.progress import Progress, duration
from orchestrator.provenance import matmul_kernels, provenance, write_record
from orchestrator.records import Records
from orchestrator.search import OptunaSearch
from orchestrator.shipper import Shipper
from orchestrator.status import load_definition, load_records
from orchestrator.study import Dataset, StudySpec, of_arm, with_datasets
from orchestrator.sweep import MATMUL, Backend, Sweep
from orchestrator.turns import turn
from orchestrator.warm import warm_start
from trials.data import PreparedDataset, prepare
from trials.datasets import DATASETS, DatasetSource
from trials.errors import DatasetError
from trials.reports import State

SHOWN_SKIPPED = 20
FEATURES = "gan_sweep.features"
"""The fact of a study's provenance that says what its images are compared in."""
SET, BUDGET = "gan_sweep.set", "gan_sweep.budget"
"""Facts: how the submitted definition was made of the file."""
SMOKE_ARMS, SMOKE_STEPS, SMOKE_SAMPLES = 4, 4, 64
LOCK_WAIT_S = 1.0  # `status` takes the lock for a moment to see whether it is held
Backends = Literal["ray", "inline"]
Change = Callable[[Sweep], None]
"""What is done to a sweep before it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: `wait` for a turn when other studies use the machine; `smoke`: a tiny version first. `webhook`: the
    address that is told of the end (notify.webhook)."""

    backend: Backends = "ray"
    data_dir: Path | None = None
    webhook: str | None = None
    wait: bool = True
    smoke: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What came of a submit. `pending`: events that MLflow has not got yet, and why. `reason`: the limit that ended it.
    `saved`: what pruning saved, in words."""

    files: StudyFiles
    study: StudySpec
    state: str
    standings: list[Standing]
    pictures: dict[str, Path]
    experiment_id: str | None
    pending: int
    pending_reason: str | None
    interrupted: bool
    reason: str
    saved: str


def submit(
    study: StudySpec, source: Path, *, options: Options, console: Console, chosen: Mapping[str, str]
) -> Submitted:
    """Run the study to its end, or go on where it stopped. Talks on `console`. `chosen`: facts to record with it.

    Raises UsageError before anything is created when the study does not fit this machine, differs from one
    of the same name, is running already, has no data, or when its smoke run fails.
    """
    slots(study.resources, this_machine(), arms.arm_count(study) * len(study.seeds))
    _check_home()
    datasets = prepare_datasets(study, source, options.data_dir, console)
    study = with_facts(study, datasets)
    refuse_facts(study, source)
    files = StudyFiles.of(study.name)
    _refuse_other_definition(files, study)
    warm_start(study, files)  # refused before anything is created
    if options.smoke:
        smoke_run(study, datasets, options.backend, console)
    with _locked(files):
        _write_definition(files, study, source)
        _write_origin(files, source, options)
        return _go(files, study, datasets, source, options, console, chosen)


def go_on(
    files: StudyFiles,
    *,
    options: Options | None,
    console: Console,
    changes: Sequence[str] = (),
    change: Change = lambda _: None,
) -> Submitted:
    """Go on with a submitted study by its own definition, after `change`. `options`: as it was submitted when None.

    `changes`: KEY=VALUE of what does not decide results, such as limits. Raises UsageError when it is running already,
    when its data are gone, or when the changes would make it another study.
    """
    study, records = load_definition(files), load_records(files)
    source, options = origin(files, options)
    _check_home()
    datasets = prepare_datasets(study, source, options.data_dir, console)
    budget, before = submitted_as(files, records)
    overrides = [*before, *changes]
    if changes:
        study = with_facts(load_study(files.source, budget=budget, overrides=overrides), datasets)
        changed = arms.difference(arms.identity(load_definition(files)), arms.identity(study))
        if changed:
            raise UsageError(
                "resume changes what does not decide results: limits, priority, resources, execution, claims; not\n  "
                + "\n  ".join(changed)
            )
    chosen = {BUDGET: budget, SET: json.dumps(overrides)}
    with _locked(files):
        if changes:
            _write(files.definition, study.model_dump_json(indent=1).encode())
        return _go(files, study, datasets, source, options, console, chosen, change)


def extend(files: StudyFiles, asked: Extension, *, options: Options | None, console: Console) -> Submitted:
    """Give a study more seeds, longer trials or more arms, and run what that adds.

    Trials that get longer go on from their last checkpoints, and are what they would be had they been as long from the
    beginning. Raises UsageError, changing nothing, when that cannot be.
    """
    study = load_definition(files)
    source, options = origin(files, options)
    _check_home()
    datasets = prepare_datasets(study, source, options.data_dir, console)
    with _locked(files):
        study, records = load_definition(files), load_records(files)
        longer = extended(study, records, asked)
        budget, before = submitted_as(files, records)
        chosen = {BUDGET: budget, SET: json.dumps([*before, *asked.changes])}
        _write(files.extending, chosen[SET].encode())
        _write(files.definition, longer.model_dump_json(indent=1).encode())
        return _go(files, longer, datasets, source, options, console, chosen)


def submitted_as(files: StudyFiles, records: Records) -> tuple[Budget, list[str]]:
    """The budget and the changes that make the definition of the study's file, those of extensions included: also of
    one that was interrupted before it was recorded."""
    text = records.provenance.get(SET, "[]")
    if files.extending.exists():
        text = files.extending.read_text() or text
    return cast(Budget, records.provenance.get(BUDGET, "full")), json.loads(text)


def origin(files: StudyFiles, options: Options | None) -> tuple[Path, Options]:
    """Where the study file lay, and how the study was submitted unless `options` say otherwise."""
    try:
        known = json.loads(files.origin.read_text())
    except (OSError, ValueError):  # submitted by an earlier version
        known = {}
    source = Path(known.get("source", files.source))
    if options is None:
        data_dir = known.get("data_dir")
        options = Options(backend=known.get("backend", "ray"), data_dir=Path(data_dir) if data_dir else None)
    return source, options


@contextlib.contextmanager
def _locked(files: StudyFiles) -> Iterator[None]:
    files.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(files.lock)
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        raise UsageError(
            f"study {files.name} is running already; watch it with: gan-sweep status {files.name}"
        ) from None
    try:
        # Of submits that were killed: what is asked from now on is meant for this one.
        for asked in (files.stop, files.stop_request, *files.root.glob("trials/*/stop")):
            asked.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _go(
    files: StudyFiles,
    study: StudySpec,
    datasets: Mapping[DatasetSource, PreparedDataset],
    source: Path,
    options: Options,
    console: Console,
    chosen: Mapping[str, str],
    change: Change = lambda _: None,
) -> Submitted:
    """Run what is left of a study whose lock is held."""
    machine = this_machine()
    granted = slots(study.resources, machine, arms.arm_count(study) * len(study.seeds))
    with turn(
        study.name, study.priority, granted, machine, console,
        wait=options.wait, given_up=files.stop_request.exists,
    ):  # fmt: skip
        records = load_records(files)
        matmul = matmul_kernels(records, granted)
        earlier = warm_start(study, files)
        if earlier and not records.arms:
            console.print(earlier.words, markup=False, highlight=False, soft_wrap=True)
        search = OptunaSearch(study, files.optuna, records.arms, earlier)
        sweep = Sweep(study, files, search, datasets, granted)
        if files.extending.exists():
            going_on, of = sweep.extend(), len(sweep.records.arms)
            console.print(f"extended: {going_on} of {of} arms go on", highlight=False)
            files.extending.unlink()
        change(sweep)
        facts = {**provenance(datasets, source, granted), **matmul, **chosen}
        if not sweep.finished:
            facts |= prepare_features(study, datasets, console)
            facts |= _pack(sweep, matmul[MATMUL], console)
            write_record(files, study, source, facts)
        try:
            return _run(sweep, make_backend(options.backend), facts, console)
        finally:  # also when Ray does not start
            if options.webhook:
                standings = leaderboard(sweep.records, *study.objectives)
                told = notify.payload(study.name, sweep.records, standings, study.objective.metric)
                if failed := notify.notify(options.webhook, told):
                    console.print(failed, style="yellow", markup=False)


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
        study=sweep.study,
        state=state,
        standings=standings,
        pictures=pictures,
        experiment_id=sink.experiment_id,
        pending=pending,
        pending_reason=shipper.error,
        interrupted=bool(interrupted),
        reason=sweep.records.reason,
        saved=saved_words(sweep.records),
    )


def saved_words(records: Records) -> str:
    """What pruning saved; nothing when nothing was pruned."""
    left, total, seconds = pruning.saved(records)
    if not left:
        return ""
    n = records.count(State.PRUNED)
    return (
        f"pruning ended {n} trials early: {left / total:.0%} of all steps not taken, about {duration(seconds)} of "
        "trials' time"
    )


def smoke_run(
    study: StudySpec,
    datasets: Mapping[DatasetSource, PreparedDataset],
    backend: Backends,
    console: Console,
) -> None:
    """Run a tiny version of every arm in a directory that does not stay. Raises UsageError when one fails."""
    tiny = smoke_study(study)
    n = arms.arm_count(tiny)
    granted = slots(tiny.resources, this_machine(), n)
    features = prepare_features(tiny, datasets, console)
    with tempfile.TemporaryDirectory(prefix="smoke-", dir=home()) as directory:
        files = StudyFiles(Path(directory) / "studies" / study.name)
        files.root.mkdir(parents=True)
        sweep = Sweep(tiny, files, OptunaSearch(tiny, files.optuna), datasets, granted)
        sweep.start(features)
        console.print(f"smoke run: {n} arms, a few steps each", highlight=False)
        with _stop_on_signal(sweep, console) as interrupted, Progress(sweep, console):
            make_backend(backend).run(sweep)
        records = sweep.records
        sweep.end()
    if interrupted:
        raise KeyboardInterrupt
    bad = [t for t in records.trials.values() if t.state is not State.COMPLETED]
    if bad:
        lines = "\n".join(
            f"  {trial.label}: {trial.state.value}, {trial.reason}" for trial in bad[:SHOWN_SKIPPED]
        )
        raise UsageError(f"the smoke run failed for {len(bad)} of {n} arms; nothing was submitted:\n{lines}")
    console.print(f"smoke run: all {n} arms work", style="green", highlight=False)


def smoke_study(study: StudySpec) -> StudySpec:
    """Every arm of a grid, or a few of a search, with one seed, a few steps, one small evaluation and one picture."""
    search = study.search.model_copy(
        update={"trials": study.search.trials and min(study.search.trials, SMOKE_ARMS), "warm_start": None}
    )
    samples = min(SMOKE_SAMPLES, study.evaluate.samples or SMOKE_SAMPLES)
    named = {
        name: arm.model_copy(update={"train": arm.train.model_copy(update={"epochs": None, "steps": None})})
        for name, arm in study.arms.items()
    }
    train = study.train.model_copy(
        update={"epochs": None, "steps": SMOKE_STEPS, "log_every": SMOKE_STEPS, "checkpoint_every": None}
    )
    return study.model_copy(
        update={
            "seeds": study.seeds[:1],
            "train": train,
            "arms": named,
            "search": search,
            "prune": None,
            "limits": Limits(),
            "pictures": study.pictures.model_copy(update={"count": 1, "at": [], "gallery": False}),
            "evaluate": study.evaluate.model_copy(update={"count": 1, "samples": samples}),
        }
    )


def _pack(sweep: Sweep, matmul: str, console: Console) -> dict[str, str]:
    """Let the sweep make packs where they are worth it; facts of how that was chosen, and of what the study will take.

    The prediction is that of the first submit.
    """
    with console.status("measuring how fast trials step on this machine"):
        packing = choose_packs(sweep.study, sweep.slots, "onednn" if matmul == "onednn" else "default")
    sweep.pack_size, sweep.recorded = packing.size, packing.is_recorded
    if any(size > 1 for size in packing.sizes.values()) or packing.recorded:
        for words in packing.words:
            console.print(f"[dim]{words}[/dim]", highlight=False)
    facts = {"gan_sweep.pack": "\n".join(packing.words)}
    if packing.prediction is not None:
        if tight := space_problem(packing.prediction, free_space_mb()):
            console.print(tight, style="yellow", markup=False, highlight=False, soft_wrap=True)
        facts[PREDICTION] = json.dumps(packing.prediction.to_json())
    before = sweep.records.provenance
    return facts | {name: text for name, text in before.items() if name == PREDICTION}


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


def make_backend(name: Backends) -> Backend:
    """The backend, for the whole of this machine."""
    if name == "inline":
        from orchestrator.backends.inline import InlineBackend

        return InlineBackend()
    from orchestrator.backends.ray import RayBackend

    machine = this_machine()
    return RayBackend(cpus=machine.cpus, gpus=machine.gpus)


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
            + f"\nTo go on with it as it is: gan-sweep resume {files.name}\n"
            f"For more seeds, longer trials or more arms: gan-sweep extend {files.name}\n"
            "For another study: --set name=NEW_NAME"
        )


def _write_definition(files: StudyFiles, study: StudySpec, source: Path) -> None:
    _write(files.definition, study.model_dump_json(indent=1).encode())
    _write(files.source, source.read_bytes())


def _write_origin(files: StudyFiles, source: Path, options: Options) -> None:
    data_dir = options.data_dir and str(options.data_dir.expanduser().absolute())
    known = {"source": str(source.absolute()), "data_dir": data_dir, "backend": options.backend}
    _write(files.origin, json.dumps(known).encode())


def _write(path: Path, content: bytes) -> None:
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
