"""What a study will take, from what was measured of it, and the prediction against the facts. Imports no torch.

A prediction is a number, or two between which it lies: with pruning it depends on results who is trained to the end.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from orchestrator._fields import Limits, Prune
from orchestrator.arms import checkpoint_every
from orchestrator.home import StudyFiles, home
from orchestrator.machine import Slots
from orchestrator.pruning import brackets
from orchestrator.records import Records
from orchestrator.study import Dataset, StudySpec
from trials.datasets import DATASETS
from trials.spec import TrialSpec

if TYPE_CHECKING:
    from trials.calibrate import Calibration, Rest

START_S = 12.0
"""Until the first trial steps: Ray, a worker that loads torch, MLflow. Measured (benchmarks/plan.md)."""
TRIAL_S = 0.05
"""Of a trial beside its steps: from one to the next on a warm worker (benchmarks/overhead.md)."""
WORKER_MB = 800.0
"""What a worker takes before its first trial: torch and Ray, measured (2026-11)."""
DRIVER_MB = 900.0
"""What the driver and Ray's own processes take."""
CONTEXT_MB = 500.0
"""What a process takes of a GPU before its first tensor."""
METRICS = 16
"""Of a row that is logged."""
JOURNAL_MB, DATABASE_MB = 40 / 2**20, 290 / 2**20
"""Of one metric of a row, in the journal and in MLflow's SQLite store."""
PLOTS_MB = 1.5
"""Of the plots of a whole study."""
PREVIEW_MB = 0.02
"""Of the preview that lies beside each picture in MLflow."""
MOST_SCHEDULED = 20_000
"""Of more trials than that it makes no difference who comes last."""
DATABASE = "MLflow's database"
MOST_SEARCHED = 60_000
"""Training images among which neighbours are looked for, as in trials/evaluation.py, which imports torch."""


class Between(NamedTuple):
    """A number that lies between two."""

    low: float
    high: float

    def times(self, factor: float) -> Between:
        return Between(self.low * factor, self.high * factor)


def total(parts: Iterable[Between]) -> Between:
    """
    >>> total([Between(1, 2), Between(3, 3)])
    Between(low=4, high=5)
    """
    found = list(parts)
    return Between(sum(part.low for part in found), sum(part.high for part in found))


PREDICTION = "gan_sweep.prediction"
"""The fact of a study's provenance that says what it was expected to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Trials of one shape and length, and what was measured of one of them.

    `spec`: one of them. `arm`: which they are, in words. `pack`: how many step together. `step_s`: of one trial as it
    will run; None when it was not measured. `rest`: None when it was not measured. `trials_mb`: of the trials of one
    worker, on the device that they run on. `n_images`, `pixels`: of the dataset, and values in one image as trained on.
    `make_s`: seconds to make what images are compared in, where that is not there yet. `problem`: why they cannot run
    as the study asks; `fits`: whether they can run at all.
    """

    spec: TrialSpec
    arm: str
    n_trials: int
    pack: int = 1
    step_s: float | None = None
    checkpoint_mb: float = 0.0
    checkpoint_s: float = 0.0
    trial_mb: float = 0.0
    trials_mb: float = 0.0
    rest: Rest | None = None
    n_images: int = 0
    dataset_mb: float = 0.0
    pixels: int = 0
    make_s: float = 0.0
    problem: str = ""
    fits: bool = True

    @staticmethod
    def measured(found: Calibration, pack: int | None, **others: object) -> Kind:
        """As calibration found it. `pack`: a size that the study asks for. `others`: what calibration does not know."""
        size, step_ms = pack or found.size, found.step_ms
        if pack is not None:
            step_ms = found.alone_ms if pack == 1 else found.packed_ms.get(pack)
        problem = "" if found.fits else found.reason
        if found.fits and pack is not None and found.alone_ms is not None and step_ms is None:
            problem = f"a pack of {pack} does not fit: {'; '.join((*found.notes, found.reason))}".rstrip(": ")
        return Kind(
            pack=size,
            problem=problem,
            fits=found.fits,
            step_s=None if step_ms is None else step_ms / 1000,
            checkpoint_mb=found.checkpoint_mb,
            checkpoint_s=found.checkpoint_s,
            trial_mb=found.memory_mb.get(1, 0.0),
            trials_mb=found.memory_mb.get(size, 0.0),
            **others,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a study will take, as plain values.

    `seconds`: by the clock, by part. `left_out`: parts of it that were not measured. `steps`: of all trials together,
    and `all_steps` those without pruning. `worker_mb`: of one worker with its trials and the dataset; `memory_mb`: of
    everything at once, of that `gpu_mb` on GPUs. `disk_mb`: at the end, by what it is; `most_disk_mb`: at any time.
    `at_once`: workers; `packs`: trials in each, by kind. `limit`: what will end the study first, in words.
    """

    seconds: Mapping[str, Between]
    left_out: tuple[str, ...] = ()
    steps: Between
    all_steps: int
    trial_mb: float
    worker_mb: float
    memory_mb: float
    gpu_mb: float | None = None
    disk_mb: Mapping[str, Between]
    most_disk_mb: float
    at_once: int
    packs: tuple[int, ...]
    limit: str | None = None

    @property
    def time_s(self) -> Between:
        return total(self.seconds.values())

    @property
    def disk(self) -> Between:
        """MB of what is the study's own at the end, without its share of a database."""
        return total(mb for what, mb in self.disk_mb.items() if what != DATABASE)

    def to_json(self) -> dict[str, object]:
        """Plain values that JSON holds."""
        return {
            "seconds": {what: list(s) for what, s in self.seconds.items()},
            "left_out": list(self.left_out),
            "steps": list(self.steps),
            "all_steps": self.all_steps,
            "trial_mb": self.trial_mb,
            "worker_mb": self.worker_mb,
            "memory_mb": self.memory_mb,
            "gpu_mb": self.gpu_mb,
            "disk_mb": {what: list(mb) for what, mb in self.disk_mb.items()},
            "most_disk_mb": self.most_disk_mb,
            "at_once": self.at_once,
            "packs": list(self.packs),
            "limit": self.limit,
        }

    @staticmethod
    def from_json(found: str | Mapping[str, object]) -> Prediction | None:
        """What `to_json` said, as text or as values; None for what another version said otherwise."""
        try:
            values = dict(json.loads(found) if isinstance(found, str) else found)
            for name in ("seconds", "disk_mb"):
                values[name] = {what: Between(*pair) for what, pair in values[name].items()}
            values |= {name: tuple(values[name]) for name in ("left_out", "packs")}
            return Prediction(**{**values, "steps": Between(*values["steps"])})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Steps after `start` up to `end` (None: the trial's end), and the share of all trials that takes them."""

    start: int
    end: int | None
    share: Between


def stretches(prune: Prune | None, n_arms: int, n_seeds: int) -> list[Stretch]:
    """How large a share of the trials goes on after each rung.

    Exact for halving and hyperband when no seed is lost. Of the other methods the share depends on the results.
    """
    if prune is None or not n_arms:
        return [Stretch(start=0, end=None, share=Between(1.0, 1.0))]
    cohorts: dict[int, tuple[list[int], int]] = {}
    for arm in range(min(n_arms, len(prune.rungs))):  # brackets take turns
        rungs = brackets(prune, arm)
        cohorts[rungs[0]] = rungs, 0
    for rungs, _ in list(cohorts.values()):
        alike = [i for i in range(len(prune.rungs)) if brackets(prune, i) == rungs]
        cohorts[rungs[0]] = rungs, sum(len(range(i, n_arms, len(prune.rungs))) for i in alike)
    chains = [(rungs, _survivors(prune, len(rungs), n)) for rungs, n in cohorts.values()]
    opened = min(prune.seeds or n_seeds, n_seeds)
    at_end = total(arms[-1] for _, arms in chains)
    found = []
    for start, end in itertools.pairwise([0, *sorted(prune.rungs), None]):
        assert start is not None
        going = total(arms[sum(rung <= start for rung in rungs)] for rungs, arms in chains)
        trials = [arms * opened + last * (n_seeds - opened) for arms, last in zip(going, at_end, strict=True)]
        found.append(Stretch(start=start, end=end, share=Between(*trials).times(1 / (n_arms * n_seeds))))
    return found


def _survivors(prune: Prune, n_rungs: int, n: int) -> list[Between]:
    """How many of `n` arms begin, and how many go on after each rung."""
    found = [Between(n, n)]
    for _ in range(n_rungs):
        low, high = found[-1]
        match prune.method:
            case "halving" | "hyperband":
                low, high = math.ceil(prune.keep * low), math.ceil(prune.keep * high)
            case "asha":
                low = math.ceil(prune.keep * low)
            case "median":  # at worst the first ones are the best, and everyone else is worse than they
                low = min(low, max(1, min(prune.least, low) // 2))
            case "paired":
                low = min(low, 1)
        found.append(Between(low, high))
    return found


def predict(
    study: StudySpec, kinds: Sequence[Kind], slots: Slots, n_arms: int, *, copies: bool = True
) -> Prediction | None:
    """What the study will take; None when the steps of some of its trials were not measured.

    `copies`: MLflow keeps its copies of pictures and checkpoints on this disk.
    """
    if not kinds or any(kind.step_s is None for kind in kinds):
        return None
    parts = stretches(study.prune, n_arms, len(study.seeds))
    counts = [_counts(study, kind, parts) for kind in kinds]
    work = {
        "training steps": [(c.steps, k.step_s or 0.0) for k, c in zip(kinds, counts, strict=True)],
        "evaluations": [(c.evaluations, rest.evaluation_s) for rest, c in _with_rest(kinds, counts)],
        "pictures and galleries": [
            pair
            for rest, c in _with_rest(kinds, counts)
            for pair in ((c.grids, rest.grid_s), (c.completed, rest.end_s))
        ],
        "checkpoints": [(c.checkpoints, k.checkpoint_s) for k, c in zip(kinds, counts, strict=True)],
    }
    busy = {what: total(n.times(s) for n, s in pairs) for what, pairs in work.items()}
    busy_s = total(busy.values())
    together = _together(study, kinds, slots, busy_s)
    seconds = {what: Between(s.low * together.low, s.high * together.high) for what, s in busy.items()}
    n_trials = sum(kind.n_trials for kind in kinds)
    seconds["start-up"] = Between(*[START_S + TRIAL_S * n_trials / slots.count] * 2)
    made = sum(kind.make_s for kind in kinds) + _real_features_s(kinds)
    seconds["features of real images"] = Between(made, made)
    seconds = {what: s for what, s in seconds.items() if s.high}
    trial_mb, worker_mb, gpu_mb = _memory(kinds, slots)
    disk_mb, most_disk_mb = _disk(study, kinds, counts, slots, copies)
    unmeasured = any(kind.rest is None for kind in kinds)
    return Prediction(
        seconds=seconds,
        left_out=("evaluations", "pictures and galleries") if unmeasured else (),
        steps=total(c.steps for c in counts),
        all_steps=sum(kind.spec.steps * kind.n_trials for kind in kinds),
        trial_mb=trial_mb,
        worker_mb=worker_mb,
        memory_mb=DRIVER_MB + slots.count * worker_mb,
        gpu_mb=gpu_mb,
        disk_mb=disk_mb,
        most_disk_mb=most_disk_mb,
        at_once=slots.count,
        packs=tuple(kind.pack for kind in kinds),
        limit=first_limit(study.limits, n_trials, total(seconds.values()), busy_s.times(slots.gpu / 3600)),
    )


def first_limit(
    limits: Limits, n_trials: int, seconds: Between | None = None, gpu_hours: Between | None = None
) -> str | None:
    """The limit that ends the study first, in words; None when it comes to its end, as far as is known."""
    needs: dict[str, tuple[float | None, Between | None, str]] = {
        "trials": (limits.trials, Between(n_trials, n_trials), "{:,.0f} trials"),
        "hours": (limits.hours, seconds and seconds.times(1 / 3600), "{:.3g} hours"),
        "gpu_hours": (limits.gpu_hours, gpu_hours, "{:.3g} GPU-hours"),
    }
    reached = {
        name: (limit / needed.high, limit >= needed.low, form, limit, needed)
        for name, (limit, needed, form) in needs.items()
        if limit is not None and needed is not None and limit < needed.high
    }
    if not reached:
        return None
    name = min(reached, key=lambda name: reached[name][0])
    _, maybe, form, limit, needed = reached[name]
    says = "may end" if maybe else "will end"
    return f"limits.{name} {says} it after {form.format(limit)} of {between(needed, form.format)}"


def whole_images(dataset: Dataset) -> int:
    """How many images the dataset has, those that a study leaves aside included; 0 when nobody has looked yet."""
    info = DATASETS.get(dataset.name or "")
    return dataset.n_images or (info.n_images if info else 0)


def dataset_mb(study: StudySpec) -> float:
    """MB of the images that a worker holds."""
    return whole_images(study.dataset) * math.prod(study.dataset.source.image_shape) / 2**20


def space_problem(prediction: Prediction, free_mb: float) -> str | None:
    """Why the disk of gan-sweep's home is too small, in words; None when it is not. `free_mb`: what is free there."""
    least, most = prediction.disk.low, prediction.most_disk_mb
    if most <= free_mb:
        return None
    says = "will not fit" if least > free_mb else "may not fit"
    largest = max(prediction.disk_mb, key=lambda what: prediction.disk_mb[what].high)
    return (
        f"the study {says} on the disk of {home()}: it takes up to {megabytes(most)}, most of it {largest}, and "
        f"{megabytes(free_mb)} are free"
    )


def free_space_mb() -> float:
    """MB that are free where gan-sweep's home is or will be; infinity where the system does not say."""
    place = home()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free / 2**20
    except OSError:
        return math.inf


def disk_usage(files: StudyFiles) -> int:
    """Bytes of the study's files, and of MLflow's copies of them in our home."""
    places = (files.root, home() / "mlflow" / "artifacts" / files.name)
    return sum(_bytes_below(str(place)) for place in places)


def _bytes_below(directory: str) -> int:
    found = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        found += _bytes_below(entry.path)
                    else:
                        found += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # a checkpoint that was removed meanwhile
                    continue
    except OSError:
        return found
    return found


def compare_with_facts(
    prediction: Prediction, records: Records, disk_bytes: int, now_ms: int
) -> list[tuple[str, str, str]]:
    """(what, predicted, fact) for people.

    `now_ms`: now, while a submit is at work; it is not looked at when the records say that the study has ended.
    """
    running = records.state == "running"
    end_ms = now_ms if running else records.updated_ms
    taken = records.active_s + max(0, end_ms - records.submitted_ms) / 1000
    so_far = " so far" if running or records.state in ("stopped", "waiting") else ""
    left_out = f" without {' and '.join(prediction.left_out)}" if prediction.left_out else ""
    steps = sum(trial.step for trial in records.trials.values())
    return [
        ("time", between(prediction.time_s, duration) + left_out, duration(taken) + so_far),
        ("steps", between(prediction.steps, "{:,.0f}".format), f"{steps:,}{so_far}"),
        ("disk", between(prediction.disk, megabytes), megabytes(disk_bytes / 2**20) + so_far),
    ]


def between(found: Between, form: Callable[[float], str]) -> str:
    """`between 3 and 4 min`, or one of the two when they read the same."""
    low, high = form(found.low), form(found.high)
    return low if low == high else f"between {low} and {high}"


def megabytes(mb: float) -> str:
    """`340 MB`, `12.3 GB`."""
    if mb < 1000:
        return f"{mb:.{0 if mb >= 10 else 1}f} MB"
    return f"{mb / 1024:.1f} GB" if mb < 1000 * 1024 else f"{mb / 2**20:.1f} TB"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h` or `5.1 days`."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 100)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def span(units: Sequence[tuple[float, int]], slots: int) -> float:
    """When the last unit ends, each begun in order as soon as one of the slots is free. `units`: (length, how many)."""
    if sum(n for _, n in units) > MOST_SCHEDULED:
        return max(sum(length * n for length, n in units) / slots, max(length for length, _ in units))
    ends = [0.0] * slots
    for length, n in units:
        for _ in range(n):
            heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


# Parts of a prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """How often the trials of a kind do what, all together."""

    steps: Between
    evaluations: Between
    grids: Between
    checkpoints: Between
    begun: Between
    completed: Between
    rows: Between


def _counts(study: StudySpec, kind: Kind, parts: Sequence[Stretch]) -> _Counts:
    spec, patience = kind.spec, int(kind.spec.training["patience"])
    # The first evaluation is the best one; the earliest end is after so many that are not.
    ends = spec.eval_steps[patience] if 0 < patience < len(spec.eval_steps) else spec.steps
    every = checkpoint_every(study, spec.steps)

    def count(at: Sequence[int] | range) -> Between:
        found = [0.0, 0.0]
        for part in parts:
            last = spec.steps if part.end is None else min(part.end, spec.steps)
            for i, (share, end) in enumerate(zip(part.share, (min(last, ends), last), strict=True)):
                found[i] += share * kind.n_trials * _between(at, part.start, end)
        return Between(*found)

    begun, completed = parts[0].share.times(kind.n_trials), parts[-1].share.times(kind.n_trials)
    steps, evaluations = count(range(1, spec.steps + 1)), count(spec.eval_steps)
    saved = count(range(every, spec.steps + 1, every))
    return _Counts(
        steps=steps,
        evaluations=evaluations,
        grids=count(spec.picture_steps),
        checkpoints=Between(saved.low + begun.low, saved.high + begun.high + evaluations.high),
        begun=begun,
        completed=completed,
        rows=steps.times(1 / spec.log_every),
    )


def _between(at: Sequence[int] | range, start: int, end: int) -> int:
    """How many of ascending steps lie after `start` up to `end`."""
    return max(0, bisect_right(at, end) - bisect_right(at, start))


def _with_rest(kinds: Sequence[Kind], counts: Sequence[_Counts]) -> list[tuple[Rest, _Counts]]:
    return [(kind.rest, c) for kind, c in zip(kinds, counts, strict=True) if kind.rest is not None]


def _together(study: StudySpec, kinds: Sequence[Kind], slots: Slots, busy: Between) -> Between:
    """Seconds by the clock for a second of work, with trials side by side."""
    units = []
    for kind in kinds:
        alone = _trial_s(kind)
        pack = min(kind.pack, -(-kind.n_trials // slots.count))
        full, left = divmod(kind.n_trials, pack)
        units += [(alone * pack, full), *([(alone * left, 1)] if left else [])]
    if study.prune is None:
        work = sum(length * n for length, n in units)
        factor = span(units, slots.count) / work if work else 1 / slots.count
        return Between(factor, factor)
    longest = max(length for length, _ in units)
    low, high = (max(1 / slots.count, min(1.0, longest / s)) if s else 1.0 for s in busy)
    return Between(low, high)


def _trial_s(kind: Kind) -> float:
    """Seconds of work that a trial to its end takes."""
    rest, spec = kind.rest, kind.spec
    found = spec.steps * (kind.step_s or 0.0)
    if rest is not None:
        found += len(spec.eval_steps) * rest.evaluation_s + len(spec.picture_steps) * rest.grid_s + rest.end_s
    return found


def _real_features_s(kinds: Iterable[Kind]) -> float:
    """Seconds for the features of real images, which are made once for all trials of a dataset."""
    found = {
        (k.spec.dataset, k.spec.size, k.spec.eval_samples): k.rest.feature_s
        * (2 * k.spec.eval_samples + min(k.n_images, MOST_SEARCHED))
        for k in kinds
        if k.rest is not None
    }
    return sum(found.values())


def _memory(kinds: Sequence[Kind], slots: Slots) -> tuple[float, float, float | None]:
    """MB of a trial, of a worker, and on GPUs of all workers."""
    trial_mb = max(kind.trial_mb for kind in kinds)
    datasets = {kind.spec.dataset: kind.dataset_mb for kind in kinds}
    # A worker keeps the last two datasets that it trained on, and at the end compares images with all of them.
    images_mb = sum(sorted(datasets.values())[-2:])
    compared_mb = max(
        9 * min(k.n_images, MOST_SEARCHED) * k.pixels / 2**20 if k.spec.eval_steps else 0.0 for k in kinds
    )
    on_device = max(kind.trials_mb for kind in kinds) + images_mb + compared_mb
    if not slots.gpu:
        return trial_mb, WORKER_MB + on_device, None
    return trial_mb, WORKER_MB + images_mb, slots.count * (CONTEXT_MB + on_device)


def _disk(
    study: StudySpec, kinds: Sequence[Kind], counts: Sequence[_Counts], slots: Slots, copies: bool
) -> tuple[dict[str, Between], float]:
    """MB at the end by what it is, and the most that there are at any time."""
    saved, pictures, copied, rows, running = [], [], [], [], 0.0
    for kind, c in zip(kinds, counts, strict=True):
        spec, mb = kind.spec, kind.checkpoint_mb
        kept = {step for step in spec.keep_steps if step != spec.steps}
        best = any(step != spec.steps for step in spec.eval_steps)
        # The newest one and the best, which may be one; of a pruned trial the two newest.
        low = c.begun.low + c.completed.low * len(kept)
        others = any(step not in kept and step != spec.steps for step in spec.eval_steps)
        high = c.begun.high * (1 + others) + c.completed.high * len(kept)
        high += max(0.0, c.begun.high - c.completed.low)
        saved.append(Between(low, high).times(mb))
        running = max(running, kind.pack * (1 + 2) * mb)  # one more at a time, and one that is being written
        rest = kind.rest
        if rest is not None:
            gallery = c.completed.times(rest.gallery_mb)
            pictures.append(total((c.grids.times(rest.grid_mb), gallery)))
            shown = total((c.grids, c.begun.times(2))).times(rest.grid_mb + PREVIEW_MB)
            copied += [shown, gallery.times(1.1)]
        copied.append(Between(c.begun.low, c.begun.high * (1 + best)).times(mb))
        rows.append(c.rows.times(METRICS))
    n_rows = total(rows)
    found = {"checkpoints": total(saved), "pictures": total(pictures), "journal": n_rows.times(JOURNAL_MB)}
    found["plots of the study"] = Between(PLOTS_MB, PLOTS_MB)
    if copies:
        found["plots of the study"] = found["plots of the study"].times(2)
        found["MLflow's copies of checkpoints and pictures"] = total(copied)
        found[DATABASE] = n_rows.times(DATABASE_MB)
    most = total(found.values()).high + slots.count * running
    return {what: mb for what, mb in found.items() if mb.high}, most
