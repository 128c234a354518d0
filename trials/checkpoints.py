"""Checkpoints of one trial on disk: written atomically, checked when read, fenced against older attempts.

    DIRECTORY/fence                            the newest attempt's number
    DIRECTORY/step_000001000/state.pt          a state dictionary, loads with weights_only=True
    DIRECTORY/step_000001000/manifest.json     key, step, attempt, size and SHA-256 of every file

A directory with the final name is complete: it was written under another name, synced, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trials.errors import CheckpointError, FencedError
from trials.kept import best_checkpoint, checkpoints, was_best

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStore:
    """The checkpoints of the trial `key`, as seen by its attempt number `attempt`.

    The `keep` newest ones stay; two, so that a damaged one costs an interval and not the trial. Those of
    `keep_steps` stay for good, and the newest of those that were saved as the best so far. `was`: earlier keys of the
    same trial, which was shorter then.
    """

    directory: Path
    key: str
    attempt: int
    keep: int = 2
    keep_steps: tuple[int, ...] = ()
    was: tuple[str, ...] = ()

    def open(self) -> None:
        """Make the directory, raise the fence to this attempt, remove what a dead attempt left half done."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_fence()
        _write_synced(self.directory / "fence.tmp", str(self.attempt).encode())
        os.replace(self.directory / "fence.tmp", self.directory / "fence")
        for litter in self.directory.glob("*.tmp-*"):
            shutil.rmtree(litter)

    def save(
        self, state: dict[str, Any], step: int, *, best: bool = False, spare: Collection[int] = ()
    ) -> Path:
        """Write a checkpoint; on return it is durable, and those of later steps are gone.

        `best`: no checkpoint before it was better. One of the same step that was saved as such stays the best.
        `spare`: steps whose checkpoints are not removed this time. Raises FencedError when a newer attempt exists.
        """
        self._check_fence()
        final = self.directory / f"step_{step:09d}"
        best = best or was_best(final)
        temporary = self.directory / f"{final.name}.tmp-{self.attempt}"
        temporary.mkdir()
        with open(temporary / "state.pt", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "step": step,
            "attempt": self.attempt,
            "best": best,
            "files": {"state.pt": _facts(temporary / "state.pt")},
        }
        _write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        self._check_fence()
        for other in self._newest_first():
            if int(other.name.removeprefix("step_")) >= step:
                shutil.rmtree(other)  # load_latest passed over it; kept, it would crowd this one out
        os.replace(temporary, final)
        _sync(self.directory)
        self.prune(self.keep, spare)
        return final

    def prune(self, keep: int, spare: Collection[int] = ()) -> None:
        """Remove all but the newest `keep` checkpoints, the best one, and those of `keep_steps` and `spare`."""
        best = best_checkpoint(self.directory)
        for old in self._newest_first()[keep:]:
            step = int(old.name.removeprefix("step_"))
            if old != best and step not in self.keep_steps and step not in spare:
                shutil.rmtree(old)

    def load_latest(
        self, device: torch.device, among: Collection[int] | None = None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest valid state, or None, and one line for each damaged checkpoint that was passed over.

        `among`: the steps that it may be of.
        """
        notes: list[str] = []
        for path in self._newest_first():
            if among is not None and int(path.name.removeprefix("step_")) not in among:
                continue
            try:
                return load(path, (self.key, *self.was), device), notes
            except CheckpointError as error:
                notes.append(str(error))
        return None, notes

    def latest(self) -> Path | None:
        """The newest checkpoint's directory, unchecked."""
        return next(iter(self._newest_first()), None)

    def _newest_first(self) -> list[Path]:
        return checkpoints(self.directory)

    def _check_fence(self) -> None:
        try:
            newest = int((self.directory / "fence").read_text())
        except FileNotFoundError:
            return
        if newest > self.attempt:
            raise FencedError(f"attempt {self.attempt} of trial {self.key} was replaced by attempt {newest}")


def load(path: Path, keys: Collection[str] | None, device: torch.device) -> dict[str, Any]:
    """Read one checkpoint after checking it. Raises CheckpointError that says what is wrong with it.

    `keys`: those of the trial it must belong to, or None for any.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        expected = manifest["files"]["state.pt"]
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {path.name}: format {manifest['format']}, this version reads {FORMAT}"
            )
        if keys is not None and manifest["key"] not in keys:
            owner = " or ".join(keys)
            raise CheckpointError(f"checkpoint {path.name} belongs to trial {manifest['key']}, not {owner}")
        if _facts(path / "state.pt") != expected:
            raise CheckpointError(f"checkpoint {path.name} is damaged (state.pt: size or sha256 differs)")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path.name} is damaged ({type(error).__name__}: {error})"
        ) from error
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"checkpoint {path.name} cannot be read: {reason}") from error
    return state


def _facts(path: Path) -> dict[str, int | str]:
    with open(path, "rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
