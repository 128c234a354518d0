"""Sending MLflow what it has not got, without running anything."""

from __future__ import annotations

import json

from orchestrator.errors import UnreachableError, UsageError
from orchestrator.home import StudyFiles, all_studies
from orchestrator.journal import read
from orchestrator.shipper import Shipper
from orchestrator.status import load_definition
from orchestrator.tidy import held
from orchestrator.tracking import MlflowSink, tracking_uri

PATIENCE_S = 30.0
"""Without progress, before the store is given up."""


def pending_events(files: StudyFiles) -> int:
    """How many events of the journal the store that is chosen now has not acknowledged, by the mark beside it."""
    offset = 0
    try:
        mark = json.loads(files.shipped.read_text())
        if str(mark["store"]).startswith(f"{tracking_uri()} "):
            offset = int(mark["offset"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing was sent, or to another store
    return sum(1 for _ in read(files.journal, offset))


def pending_studies() -> list[StudyFiles]:
    """The submitted studies with events that are pending."""
    return [files for files in all_studies() if pending_events(files)]


def sync(files: StudyFiles, patience_s: float = PATIENCE_S) -> int:
    """Send what is pending of a study; returns how many events that was.

    Raises UsageError for a study that is running, which sends for itself, and UnreachableError when the store does
    not take them.
    """
    with held(files) as free:
        if not free:
            raise UsageError(f"study {files.name} is running, and sends its events itself")
        before = pending_events(files)
        if not files.journal.exists():
            return 0
        shipper = Shipper(files, MlflowSink(files, load_definition(files)))
        shipper.start()
        left = shipper.close(patience_s)
    if left:
        raise UnreachableError(
            f"{left:,} event{'s' if left > 1 else ''} of study {files.name} could not be sent to MLflow "
            f"({shipper.error}); they are kept: try again later"
        )
    return before
