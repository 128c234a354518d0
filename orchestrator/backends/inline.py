"""The in-process backend: one trial after the other, for debugging with a breakpoint or a profiler."""

from __future__ import annotations

from orchestrator.sweep import Sweep
from trials.reports import Outcome
from trials.worker import Attempt


class InlineBackend:
    """Runs every trial in this process."""

    def run(self, sweep: Sweep) -> None:
        while (assignment := sweep.next()) is not None:
            attempt = Attempt(assignment)
            while not isinstance(said := attempt.advance(), Outcome):
                sweep.reported(assignment.key, assignment.attempt, said)
                if sweep.stopping:
                    attempt.stop()
            sweep.ended(assignment.key, assignment.attempt, said)
