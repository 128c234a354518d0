"""Images from a checkpoint: the model is built anew from the trial's definition. Imports torch where it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models import Value
from orchestrator import arms
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles
from orchestrator.leaderboard import leaderboard
from orchestrator.records import Records, TrialRecord
from orchestrator.status import checkpoints_of, find_study, find_trial, load_definition, load_records
from orchestrator.study import StudySpec, image_shape, n_images
from trials.spec import TrialSpec

if TYPE_CHECKING:
    import torch

    from trials.state import TrainState

MOST = 100_000
OTHER_FILES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".npz",
    ".pdf",
    ".pt",
    ".svg",
    ".tif",
    ".tiff",
    ".webp",
    ".zip",
)
"""Endings that ask for a file of a kind that is not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A trial and the checkpoints to take, the first that is whole. `keys`: those that its checkpoints may carry.
    `words`: which trial of what, for people."""

    key: str
    keys: tuple[str, ...]
    spec: TrialSpec
    shape: tuple[int, int, int]
    n_images: int
    checkpoints: tuple[Path, ...]
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """uint8 (n, C, H, W), and where they are from. `notes`: damaged checkpoints that were passed over."""

    images: NDArray[np.uint8]
    checkpoint: Path
    step: int
    averaged: bool
    n_classes: int
    words: str
    notes: tuple[str, ...]


def find_source(target: str | None, trial: str | None = None) -> Source:
    """The trial meant by `target`: a checkpoint's directory, or a study (the newest for None) and `trial` of it.

    `trial`: its number, or its key or a beginning of it; the best trial when absent. Of a trial the checkpoint of
    its value comes first (see checkpoints_of). Raises UsageError that says what there is.
    """
    path = Path(target).expanduser() if target else None
    if path is not None and path.is_file() and path.name in ("state.pt", "manifest.json"):
        path = path.parent
    if path is not None and path.is_dir() and path.name.startswith("step_"):
        if trial is not None:
            raise UsageError("--trial chooses from a study; a checkpoint is of one trial already")
        return _of_checkpoint(path.absolute())
    if path is not None and (os.sep in str(target) or path.exists()):
        raise UsageError(
            f"{target} is no checkpoint: name a directory such as .../checkpoints/step_000001000"
        )
    files = find_study(target)
    records = load_records(files)
    return _source(files, records, _find_trial(files, records, trial))


def _of_checkpoint(path: Path) -> Source:
    key, files = path.parents[1].name, StudyFiles(path.parents[3] if len(path.parents) > 3 else path)
    if not files.definition.is_file():
        raise UsageError(
            f"{path} does not lie in a study's directory (STUDY/trials/KEY/checkpoints/STEP), whose definition says "
            "how to build its model"
        )
    records = load_records(files)
    trial = next((trial for trial in records.trials.values() if trial.folder == key), None)
    if trial is None:
        raise UsageError(f"study {files.name} has no trial {key}")
    return _source(files, records, trial, (path,))


def _find_trial(files: StudyFiles, records: Records, wanted: str | None) -> TrialRecord:
    trials = list(records.trials.values())
    if not trials:
        raise UsageError(f"study {files.name} has no trials yet")
    if wanted is None:
        standings = leaderboard(records, *load_definition(files).objectives)
        best = standings[0].best_trial if standings else None
        if best is not None:
            return best
        begun = [trial for trial in trials if checkpoints_of(files, trial)]
        if not begun:
            raise UsageError(f"study {files.name} has no checkpoint yet; a trial saves its first one later")
        return max(begun, key=lambda trial: trial.step)
    return find_trial(records, wanted, files.name)


def _source(
    files: StudyFiles, records: Records, trial: TrialRecord, checkpoints: tuple[Path, ...] | None = None
) -> Source:
    study = load_definition(files)
    values = records.arms[trial.arm].values
    found = checkpoints or tuple(checkpoints_of(files, trial, study.objective))
    if not found:
        raise UsageError(
            f"trial {trial.name} of {files.name} has no checkpoint ({trial.state.value}, step {trial.step})"
        )
    spec, shape, n = _definition(study, values, trial)
    words = f"{files.name}, trial {trial.name}"
    return Source(
        key=trial.key, keys=trial.keys, spec=spec, shape=shape, n_images=n, checkpoints=found, words=words
    )


def _definition(
    study: StudySpec, values: Mapping[str, Value], trial: TrialRecord
) -> tuple[TrialSpec, tuple[int, int, int], int]:
    spec = arms.trial_spec(study, values, trial.seed, "")
    resolved = arms.resolved(study, values)
    shape, n = image_shape(resolved), n_images(resolved)
    assert shape is not None
    assert n is not None
    return spec, shape, n


def draw(source: Source, n: int, seed: int, *, label: int | None = None, raw: bool = False) -> Samples:
    """Images from the latents of `seed`, by the averaged generator if there is one and `raw` does not ask for the
    other. Of a conditional model image i shows class i modulo their number, or all show class `label`.

    Raises UsageError for a class that the model does not have, or when every checkpoint is damaged. Leaves torch's
    random state alone.
    """
    import torch

    from trials.checkpoints import load
    from trials.errors import CheckpointError
    from trials.samples import generate, quantised

    if not 1 <= n <= MOST:
        raise UsageError(f"--n must be from 1 to {MOST:,} (got {n})")
    n_classes = source.spec.n_classes
    if label is not None and not 0 <= label < n_classes:
        has = f"has classes 0 to {n_classes - 1}" if n_classes else "makes images of no particular class"
        raise UsageError(f"--class {label}: {source.spec.model} {has}")
    device, notes = torch.device("cpu"), list[str]()
    for path in source.checkpoints:
        try:
            saved = load(path, source.keys, device)
            break
        except CheckpointError as error:
            notes.append(str(error))
    else:
        raise UsageError(f"{source.words}: no checkpoint can be read:\n  " + "\n  ".join(notes))
    with torch.random.fork_rng(devices=[]):
        state = built(source, saved, device)
        generator = state.gan.generator if raw or state.averaged is None else state.averaged
        chosen = generator if label is None else _one_class(generator, label)
        images = quantised(generate(state.gan, chosen, n, seed, device))
    return Samples(
        images=images.numpy(),
        checkpoint=path,
        step=int(saved["step"]),
        averaged=generator is state.averaged,
        n_classes=n_classes,
        words=source.words,
        notes=tuple(notes),
    )


def built(source: Source, saved: dict[str, object], device: torch.device) -> TrainState:
    """The networks of `source` with the weights of a checkpoint (checkpoints.load), grown as far as they were."""
    import torch

    from trials.state import fresh_state
    from trials.step import Trainer

    state = fresh_state(source.spec, source.shape, device)
    state.load_state_dict(saved)
    if state.gan.levels:  # how far they have grown is counted from the step
        images = torch.zeros((1, *source.shape), dtype=torch.uint8).expand(source.n_images, -1, -1, -1)
        Trainer(source.spec, state, images, None)
    return state


def _one_class(generator: torch.nn.Module, label: int) -> torch.nn.Module:
    import torch

    class OneClass(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = generator

        def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.generator(latents, torch.full_like(labels, label))
            return made

    return OneClass()


def targets(out: Path, n: int) -> list[Path]:
    """The files that `write` makes of n images: FILE.png or FILE.npy itself, else one for each in the directory `out`.

    Raises UsageError when `out` is some other kind of file, or a directory with other PNGs, among which the images
    would be lost.
    """
    suffix = out.suffix.lower()
    if suffix in (".png", ".npy") and not out.is_dir():
        return [out]
    if out.is_file() or (suffix in OTHER_FILES and not out.is_dir()):
        raise UsageError(f"--out {out}: write FILE.png for a grid, FILE.npy for an array, or a directory")
    digits = len(str(n - 1))
    paths = [out / f"{i:0{digits}d}.png" for i in range(n)]
    others = sorted({path.name for path in out.glob("*.png")} - {path.name for path in paths})
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise UsageError(f"--out {out} holds other pictures ({others[0]}{more}); name a directory of its own")
    return paths


def write(samples: Samples, out: Path) -> list[Path]:
    """Write the images: one grid for FILE.png, an array for FILE.npy, else a directory with a PNG for each.

    Raises UsageError as `targets` does; nothing is written then.
    """
    from trials.pictures import grid, write_png

    paths = targets(out, len(samples.images))
    if paths == [out] and out.suffix.lower() == ".png":
        write_png(out, grid(samples.images, columns=samples.n_classes or None))
        return paths
    if paths == [out]:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_suffix(".tmp.npy")
        np.save(temporary, samples.images)
        os.replace(temporary, out)
        return paths
    for path, image in zip(paths, samples.images, strict=True):
        rows = image.transpose(1, 2, 0)
        write_png(path, np.ascontiguousarray(np.broadcast_to(rows, (*rows.shape[:2], 3))))
    return paths
