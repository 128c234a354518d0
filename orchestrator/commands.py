"""What commands answer that read or tidy what studies left; cli.py prints it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.home import StudyFiles, all_studies, home
from orchestrator.status import find_study, find_trial, is_running, load_definition, load_records

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.study import StudySpec
    from orchestrator.tidy import Item
    from trials.data import PreparedDataset

Confirm = Callable[[str], bool]
"""Asks the user a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`json`: plain values for `--json`. For people `lines`, `tables` of rows and `files`; `notes` go to stderr."""

    json: object
    lines: Sequence[str] = ()
    tables: Sequence[Sequence[dict[str, object]]] = ()
    files: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failed: bool = False
    """Whether the command exits with 1."""


def report(study: str | None, out: Path | None) -> Answer:
    """Write the report of a study; by default into its own directory."""
    from orchestrator.report import write_report

    written = write_report(find_study(study), out)
    files = {"html": written.html, "markdown": written.markdown}
    return Answer(
        json={**written.summary, "files": {name: str(path) for name, path in files.items()}},
        lines=written.answer,
        files=files,
    )


def compare(names: Sequence[str], html: Path | None) -> Answer:
    """Studies or trials side by side; with `html` as a page too."""
    from orchestrator.comparison import compare_all, write_page

    compared = compare_all(names)
    files = {"html": write_page(compared, html)} if html else {}
    differences = compared.difference_rows()
    return Answer(
        json={**compared.to_json(), "files": {name: str(path) for name, path in files.items()}},
        lines=[f"{compared.objective.metric} ({compared.objective.mode})"],
        tables=[compared.rows(), *([differences] if differences else [])],
        files=files,
        notes=[compared.warning] if compared.warning else [],
    )


def export(study: str | None, out: Path, format: Literal["csv", "parquet"]) -> Answer:
    """Write a study's tables to the directory `out`."""
    from orchestrator.export import export as write

    files = write(find_study(study), out, format)
    return Answer(json={name: str(path) for name, path in files.items()}, files=files)


def sample(
    target: str | None,
    *,
    trial: str | None,
    n: int,
    seed: int,
    label: int | None,
    out: Path,
    raw: bool,
) -> Answer:
    """Images of a checkpoint, or of a study's best trial, to `out`."""
    from orchestrator.sampling import draw, find_source, targets, write

    targets(out, n)  # refused before anything is drawn
    samples = draw(find_source(target, trial), n, seed, label=label, raw=raw)
    paths = write(samples, out)
    generator = "averaged generator" if samples.averaged else "generator"
    return Answer(
        json={
            "checkpoint": str(samples.checkpoint),
            "step": samples.step,
            "averaged": samples.averaged,
            "n": len(samples.images),
            "seed": seed,
            "class": label,
            "files": [str(path) for path in paths],
            "notes": list(samples.notes),
        },
        lines=[f"{samples.words}, step {samples.step:,}: {len(samples.images)} images of the {generator}"],
        files={"images": paths[0] if len(paths) == 1 else paths[0].parent},
        notes=samples.notes,
    )


def stop(files: StudyFiles, wanted: Sequence[str]) -> Answer:
    """Ask a running study to stop, or some of its trials."""
    from orchestrator.status import find_trial, is_running, load_records

    if not is_running(files):
        raise UsageError(f"study {files.name} is not running; go on with it: gan-sweep resume {files.name}")
    records = load_records(files)
    trials = [find_trial(records, name, files.name) for name in wanted]
    for trial in trials:
        if trial.state.is_final:
            raise UsageError(f"trial {trial.name} is {trial.state.value} already")
    for trial in trials:
        files.trial(trial.folder).mkdir(parents=True, exist_ok=True)
        files.stop_of(trial.folder).touch()
    if not trials:
        files.stop_request.touch()
    names = [trial.name for trial in trials]
    what = f"trial {', '.join(names)}" if names else f"study {files.name}"
    return Answer(
        json={"study": files.name, "stopping": names or True},
        lines=[f"{what} saves a checkpoint and stops; go on later with: gan-sweep resume {files.name}"],
    )


def gc(study: str | None, keep: str, *, dry_run: bool, confirm: Confirm) -> Answer:
    """Remove what nobody needs, of one study or of all and the home, after asking; `dry_run`: only say what."""
    from orchestrator import tidy

    wanted, notes = tidy.parse_keep(keep), list[str]()
    chosen = [find_study(study)] if study else all_studies()
    if study and is_running(chosen[0]):
        raise UsageError(f"study {chosen[0].name} is running; nothing of it is removed before it ends")
    shared = [] if study else tidy.litter_of_home(time.time())
    try:
        shared += _dead_in_mlflow(study and chosen[0].name)
    except UnreachableError as error:
        notes.append(f"{error}; nothing of MLflow's is removed")
    found = [each for files in chosen for each in _removable(files, wanted, notes)] + shared
    rows = tidy.by_kind(found)
    total = tidy.size_words(sum(each.bytes for each in found))
    tables = [[{**row, "bytes": tidy.size_words(int(str(row["bytes"])))} for row in rows]] if rows else []
    plan = {"dry_run": dry_run, "kinds": rows, "paths": [str(each.path) for each in found]}
    if not found or dry_run:
        said = f"{total} would be removed" if found else "there is nothing to remove"
        return Answer(json={**plan, "removed": 0}, lines=[said], tables=tables, notes=notes)
    if not confirm(f"Remove {_count(len(found), 'file')} or directories, {total}?"):
        return Answer(json={**plan, "removed": 0}, lines=["nothing was removed"], tables=tables, notes=notes)
    shown = {each.path for each in found}
    gone, problems = tidy.remove(shared)
    for files in chosen:
        with tidy.held(files) as free:
            if not free:  # it was submitted again meanwhile
                continue
            still = tidy.plan_of(tidy.look(files, _copies(files, notes)), wanted)
            mine = [each for each in still if each.path in shown]
            tidy.note_collected(files, mine)
            done, failed = tidy.remove(mine)
            gone, problems = [*gone, *done], [*problems, *failed]
    freed = tidy.size_words(sum(each.bytes for each in gone))
    return Answer(
        json={**plan, "removed": len(gone), "problems": problems},
        lines=[f"removed {freed}"],
        tables=tables,
        notes=[*notes, *problems],
        failed=bool(problems),
    )


def _removable(files: StudyFiles, keep: frozenset[str], notes: list[str]) -> list[Item]:
    from orchestrator import tidy

    with tidy.held(files) as free:
        if not free:
            notes.append(f"study {files.name} is running: nothing of it is removed")
            return []
        try:
            return tidy.plan_of(tidy.look(files, _copies(files, notes)), keep)
        except UsageError as error:  # another version's
            notes.append(str(error))
            return []


def _has_store() -> bool:
    return (home() / "mlflow" / "mlflow.db").exists()


def _copies(files: StudyFiles, notes: list[str]) -> dict[str, Path]:
    """Where MLflow's copies of a study's checkpoints lie, if in our home."""
    if not _has_store():
        return {}
    from orchestrator.tracking import checkpoint_copies, reachable

    try:
        with reachable():
            return checkpoint_copies(files.name, load_records(files).uid)
    except UnreachableError as error:
        notes.append(f"{error}; copies of checkpoints in it stay")
        return {}


def _dead_in_mlflow(study: str | None) -> list[Item]:
    from orchestrator import tidy

    if not _has_store():
        return []
    from orchestrator.tracking import dead_artifacts, reachable

    with reachable():
        return [tidy.item("deleted in MLflow", path) for path in dead_artifacts(study)]


def delete(study: str, *, confirm: Confirm) -> Answer:
    """Delete a study, here and in MLflow, after asking. Raises UsageError for one that is running."""
    from orchestrator import tidy

    files = find_study(study)
    size = tidy.size_words(tidy.item("study", files.root).bytes)
    if is_running(files):
        raise UsageError(f"study {files.name} is running; stop it first: gan-sweep stop {files.name}")
    if not confirm(f"Delete study {files.name} ({files.root}, {size}) and its runs in MLflow?"):
        return Answer(json={"study": files.name, "deleted": False}, lines=["nothing was deleted"])
    from orchestrator.tracking import delete_experiment, reachable

    with tidy.held(files) as free:
        if not free:
            raise UsageError(f"study {files.name} was submitted again meanwhile; nothing was deleted")
        with reachable():  # first: while the study is there, deleting can be tried again
            copies = [tidy.item("artifacts", path) for path in delete_experiment(files.name)]
        _, problems = tidy.remove(copies)
        for each in copies:
            tidy.remove_empty(each.path.parent, home() / "mlflow" / "artifacts")
        freed = sum(each.bytes for each in copies) + tidy.delete_files(files)
    return Answer(
        json={"study": files.name, "deleted": True, "bytes": freed, "problems": problems},
        lines=[
            f"deleted study {files.name}, {tidy.size_words(freed)}; prepared data stays in {home() / 'datasets'}, "
            f"downloads in {home() / 'data'}"
        ],
        notes=problems,
        failed=bool(problems),
    )


def sync(study: str | None) -> Answer:
    """Send MLflow what it has not got, of one study or of all."""
    from orchestrator import sync as syncing
    from orchestrator.tracking import reachable

    with reachable():
        chosen = [find_study(study)] if study else syncing.pending_studies()
    notes, rows = [], list[dict[str, object]]()
    for files in chosen:
        if not study and is_running(files):
            notes.append(f"study {files.name} is running, and sends its events itself")
            continue
        try:
            rows.append({"study": files.name, "sent": syncing.sync(files)})
        except UnreachableError as error:
            left = sum(syncing.pending_events(each) for each in chosen)
            raise UnreachableError(f"{error}\n{_count(left, 'event')} pending in all") from error
    lines = [] if rows else ["nothing is pending"]
    return Answer(json=rows, lines=lines, tables=[rows] if rows else [], notes=notes)


def replay(
    study: str | None, trial: str, steps: int | None, data_dir: Path | None, console: Console
) -> Answer:
    """Train a trial again and compare; `failed` when it is different. Talks on `console`."""
    from orchestrator.machine import Slots, this_machine
    from orchestrator.provenance import provenance
    from orchestrator.replay import replay as again
    from orchestrator.submit import origin, prepare_datasets, prepare_features

    files = find_study(study)
    records, resources = load_records(files), load_definition(files).resources
    found = find_trial(records, trial, files.name)
    source, submitted = origin(files, None)

    def prepare(arm: StudySpec) -> PreparedDataset:
        datasets = prepare_datasets(arm, source, data_dir or submitted.data_dir, console)
        prepare_features(arm, datasets, console)
        return datasets[arm.dataset.source]

    facts = provenance({}, source, Slots(cpu=resources.cpu, gpu=resources.gpu, count=1))
    with console.status(f"training trial {found.name} again") as shown:
        done = again(
            files, records, found, steps=steps, prepare=prepare, facts=facts, machine=this_machine(),
            show=lambda step, goal: shown.update(f"trial {found.name}: step {step:,} of {goal:,}"),
        )  # fmt: skip
    doubts = [f"not the same to the last bit, as {doubt}" for doubt in done.doubts]
    return Answer(
        json={"study": files.name, **done.to_json()},
        lines=[f"trial {done.trial}: {done.verdict}"],
        tables=[[each.to_row() for each in done.differences]] if done.differences else [],
        notes=doubts,
        failed=not done.equal,
    )


def config_show() -> Answer:
    """Every setting, where it comes from, and what it is for."""
    from orchestrator.settings import settings

    rows: list[dict[str, object]] = [
        {"setting": each.name, "value": each.value, "from": each.source, "what": each.what}
        for each in settings()
    ]
    return Answer(json=rows, tables=[rows])


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
