"""The in-process backend: one trial or pack after the other, for debugging with a breakpoint or a profiler."""

from __future__ import annotations

from orchestrator.sweep import Sweep
from trials.worker import Attempts


class InlineBackend:
    """Runs every trial in this process."""

    def run(self, sweep: Sweep) -> None:
        while assignments := sweep.next():
            attempts = Attempts(assignments)
            while said := attempts.advance():
                for words in said:
                    sweep.heard(*words)
