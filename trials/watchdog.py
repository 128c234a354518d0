"""Ends a worker process whose trial makes no step for too long: a hang in a kernel or a driver never returns.

The process ends itself, so that it works on every machine; a note in the trial's directory tells why it is gone.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from trials.reports import Assignment, Cause, Outcome, State


class Watchdog:
    """Watches an attempt or a pack by the `stall_s` of its assignments; without one it does nothing.

    `with watchdog:` surrounds what is watched, and `beat` says that it gets on.
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._stall_s = min((a.stall_s for a in assignments if a.stall_s), default=None)
        self._beaten_at: float | None = None
        self._closed = threading.Event()
        if self._stall_s is not None:
            threading.Thread(target=self._watch, args=(self._stall_s,), name="watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self.beat()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beaten_at = None

    def beat(self) -> None:
        """What is watched gets on."""
        self._beaten_at = time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self, stall_s: float) -> None:
        while not self._closed.wait(min(1.0, stall_s / 4)):
            beaten_at = self._beaten_at
            if beaten_at is not None and time.monotonic() - beaten_at > stall_s:
                self._end(stall_s)

    def _end(self, stall_s: float) -> None:
        try:
            for assignment in self._assignments:
                assignment.directory.mkdir(parents=True, exist_ok=True)
                with open(_note(assignment), "w") as file:
                    file.write(f"made no step for {stall_s:g} s\n")
                    file.flush()
                    faulthandler.dump_traceback(file)
        finally:  # also on a full disk, which may be what it hangs on
            os._exit(1)


def lost(assignment: Assignment, step: int) -> Outcome:
    """How an attempt ended whose worker is gone: ended by its watchdog, or died."""
    note = _note(assignment)
    if not note.exists():
        return Outcome(state=State.FAILED, step=step, reason="its worker died", cause=Cause.WORKER)
    reason, _, detail = note.read_text(errors="replace").partition("\n")
    note.unlink()
    return Outcome(state=State.FAILED, step=step, reason=reason, detail=detail, cause=Cause.STALLED)


def _note(assignment: Assignment) -> Path:
    return assignment.directory / f"stalled-{assignment.attempt}"
