"""Which checkpoints a trial has kept, by the names and manifests that checkpoints.py writes. Imports no torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints of a trial's directory of them, the newest first; unchecked."""
    return sorted((p for p in directory.glob("step_*") if ".tmp-" not in p.name), reverse=True)


def best_checkpoint(directory: Path) -> Path | None:
    """The newest of the checkpoints that were saved as the best so far, or None."""
    return next((path for path in checkpoints(directory) if was_best(path)), None)


def was_best(path: Path) -> bool:
    """Whether a checkpoint was the best so far when it was saved."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((path / "manifest.json").read_text()).get("best"))
    return False
