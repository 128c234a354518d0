"""Removing what studies left: checkpoints that nobody needs, litter of killed runs, and whole studies.

What is there is listed, a pure function decides what may go, and an edge removes it.

A directory is renamed to *.tmp-* before it is emptied: a crash half-way leaves none that looks complete.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from orchestrator.arms import trial_spec
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, features_directory, home
from orchestrator.leaderboard import leaderboard
from orchestrator.status import checkpoints_of, load_definition, load_records
from trials.kept import checkpoints

KEEP = ("study-best", "trial-best", "latest", "earlier")
"""What may be kept: the best checkpoint of the study's best trial, that of each trial, each trial's latest one, and
those that `remove_last_epochs` asks for."""
OLD_S = 24 * 3600.0
"""Age from which a half-written file that another process might be writing is litter."""
LITTER = ("*.tmp", "*.tmp.npy", "*.part.npy", "*.part", "*.tmp-*")
TRASH = ".tmp-deleted-"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that may go. `kind`: what it is, for people."""

    kind: str
    path: Path
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFiles:
    """The checkpoints of one trial, the newest first. `valued`: the one that its value is of; `earlier`: those that
    its study asks for; `copies`: those in MLflow's artifacts."""

    finished: bool
    checkpoints: tuple[Item, ...]
    copies: tuple[Item, ...] = ()
    valued: Path | None = None
    earlier: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies in one study's directory. `best`: index of the study's best trial in `trials`. `litter`: half-written
    files of killed runs, and directories of trials that the journal does not know."""

    trials: tuple[TrialFiles, ...]
    best: int | None
    litter: tuple[Item, ...]


def plan_of(listing: Listing, keep: Collection[str]) -> list[Item]:
    """What may go of a study that nobody works on. `keep`: some of KEEP.

    Of trials that are not finished everything stays, and copies of checkpoints where they are all that is left.
    """
    gone = list(listing.litter)
    for place, trial in enumerate(listing.trials):
        if not trial.finished:
            continue
        stays: set[Path] = set()
        if trial.valued and ("trial-best" in keep or ("study-best" in keep and place == listing.best)):
            stays.add(trial.valued)
        if "latest" in keep and trial.checkpoints:
            stays.add(trial.checkpoints[0].path)
        if "earlier" in keep:
            stays |= trial.earlier
        names = {path.name for path in stays}
        listed = (*trial.checkpoints, *trial.copies) if trial.checkpoints else ()
        gone += [each for each in listed if each.path.name not in names]
    return gone


def parse_keep(text: str) -> frozenset[str]:
    """`study-best,latest` -> its parts. Raises UsageError that lists what there is."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in KEEP]
    if unknown or "study-best" not in parts:
        wrong = (
            f"{unknown[0]!r} is not known" if unknown else "study-best is always kept, so it must be named"
        )
        raise UsageError(f"--keep: {wrong}; choose from {', '.join(KEEP)}, with commas between them")
    return frozenset(parts)


def look(files: StudyFiles, copies: Mapping[str, Path] = MappingProxyType({})) -> Listing:
    """List a study's directory. Hold its lock, or what is found may be in use.

    `copies`: by trial key where MLflow's copies of its checkpoints lie. Raises UsageError when the journal cannot be
    read: without it nobody knows what is needed.
    """
    study = load_definition(files)
    try:
        records = load_records(files)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the journal of study {files.name} cannot be read ({error}); nothing of it is removed"
        ) from error
    standings = leaderboard(records, *study.objectives)
    best = standings[0].best_trial if standings else None
    trials, place = list[TrialFiles](), None
    for trial in records.trials.values():
        directory = files.trial(trial.folder) / "checkpoints"
        spec = trial_spec(study, records.arms[trial.arm].values, trial.seed, "")
        mine = checkpoints(directory)
        if trial is best:
            place = len(trials)
        trials.append(
            TrialFiles(
                finished=trial.state.is_final,
                checkpoints=tuple(item(CHECKPOINT, path) for path in mine),
                copies=tuple(
                    item("checkpoint in MLflow", path)
                    for path in (checkpoints(copies[trial.key]) if trial.key in copies else ())
                ),
                valued=next(iter(checkpoints_of(files, trial, study.objective)), None),
                earlier=frozenset(p for p in mine if int(p.name.removeprefix("step_")) in spec.keep_steps),
            )
        )
    known = {trial.folder for trial in records.trials.values()}
    strays = [p for p in _listed(files.root / "trials") if known and p.is_dir() and p.name not in known]
    half = [path for path in half_written(files.root) if not _below(path, strays)]
    litter = [item("unknown trial", path) for path in strays]
    litter += [item("half-written", path) for path in half]
    litter += [item("stop request", path) for path in stop_files(files)]
    return Listing(trials=tuple(trials), best=place, litter=tuple(litter))


def stop_files(files: StudyFiles) -> list[Path]:
    """Requests to stop, which are none once nobody works on the study."""
    asked = (files.stop, files.stop_request, *sorted((files.root / "trials").glob("*/stop")))
    return [path for path in asked if path.exists()]


def litter_of_home(now_s: float, clock_of: Callable[[Path], float] | None = None) -> list[Item]:
    """Half-written files that lie outside of studies, older than a day, and studies that were being deleted."""
    changed = clock_of or _changed_at
    found = [
        item("deleted study", path) for path in _listed(home() / "studies") if path.name.startswith(TRASH)
    ]
    half = [path for place in (home() / "datasets", features_directory()) for path in half_written(place)]
    half += sorted((home() / "data").rglob("*.part"))  # other files there are the user's
    half += [
        path for path in _listed(home() / "mlflow") if path.name.startswith("new-")
    ]  # stores in the making
    half += [
        path for path in _listed(home()) if path.name.startswith("smoke-")
    ]  # of smoke runs that were killed
    return found + [item("half-written", path) for path in half if now_s - changed(path) > OLD_S]


def item(kind: str, path: Path) -> Item:
    """`path` with all that it takes on the disk."""
    return Item(kind=kind, path=path, bytes=sum(_blocks(p) for p in (path, *path.rglob("*"))))


def remove(items: Iterable[Item]) -> tuple[list[Item], list[str]]:
    """Remove them; returns those that are gone, and a line about each that could not be removed."""
    gone, problems = [], []
    for each in items:
        try:
            remove_tree(each.path)
            gone.append(each)
        except OSError as error:
            problems.append(f"{each.path} cannot be removed: {error.strerror or error}")
    return gone, problems


def remove_empty(path: Path, top: Path) -> None:
    """Remove `path` and the directories above it, below `top`, as far as they are empty."""
    while top in path.parents:
        try:
            path.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        path = path.parent


def note_collected(files: StudyFiles, items: Iterable[Item]) -> None:
    """Write down which checkpoints are to be removed, so that nobody misses them later."""
    known = collected(files)
    for each in items:
        if each.kind == CHECKPOINT:
            known.setdefault(each.path.parents[1].name, set()).add(each.path.name)
    temporary = files.root / "collected.tmp"
    temporary.write_text(json.dumps({folder: sorted(names) for folder, names in known.items()}))
    os.replace(temporary, files.root / "collected.json")


def collected(files: StudyFiles) -> dict[str, set[str]]:
    """By the name of a trial's directory: the checkpoints that were removed on request."""
    try:
        found: dict[str, list[str]] = json.loads((files.root / "collected.json").read_text())
        return {folder: set(names) for folder, names in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remove_tree(path: Path) -> None:
    """Remove a file or a directory; one that is gone already is no error. A link is removed, not what it names."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if ".tmp-" not in path.name:
        half = path.with_name(f"{path.name}.tmp-removed")
        if half.exists():
            shutil.rmtree(half)
        path = path.rename(half)
    shutil.rmtree(path)


@contextmanager
def held(files: StudyFiles) -> Iterator[bool]:
    """Whether the study's lock was free: nobody begins to work on it meanwhile."""
    try:
        with FileLock(files.lock).acquire(timeout=0):
            yield True
    except Timeout:
        yield False


def delete_files(files: StudyFiles) -> int:
    """Remove a study's directory; returns its size. From the first rename on it is no study any more."""
    size = item("study", files.root).bytes
    trash = files.root.with_name(f"{TRASH}{files.name}-{time.time_ns()}")
    trash.mkdir()
    files.root.rename(trash / "study")  # one level deeper: no list of studies finds it there
    shutil.rmtree(trash)
    return size


def by_kind(items: Sequence[Item]) -> list[dict[str, object]]:
    """For each kind how many there are and what they take."""
    kinds = dict.fromkeys(each.kind for each in items)
    return [
        {
            "kind": kind,
            "number": sum(each.kind == kind for each in items),
            "bytes": sum(each.bytes for each in items if each.kind == kind),
        }
        for kind in kinds
    ]


def size_words(n: int) -> str:
    """`512 B`, `1.4 MB`.

    >>> size_words(512), size_words(1_400_000)
    ('512 B', '1.4 MB')
    """
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= length:
            return f"{n / length:.1f} {unit}"
    return f"{n} B"


def half_written(place: Path) -> list[Path]:
    """Half-written files and directories, outermost ones only."""
    found: list[Path] = []
    for directory, names, files in os.walk(place):
        here = Path(directory)
        matching = [name for name in names if _is_litter(name)]
        found += [here / name for name in (*matching, *filter(_is_litter, files))]
        names[:] = [name for name in names if name not in matching]
    return sorted(found)


def _is_litter(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in LITTER)


def _below(path: Path, places: Sequence[Path]) -> bool:
    return any(place in path.parents for place in places)


def _listed(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _blocks(path: Path) -> int:
    try:
        facts = path.lstat()
    except OSError:
        return 0
    return 0 if stat.S_ISDIR(facts.st_mode) else facts.st_size


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()
