"""Runs an assignment inside a worker process: set-up, the loop, and every error turned into an outcome."""

from __future__ import annotations

import traceback
from collections.abc import Generator

import torch

from trials import kernels
from trials.checkpoints import CheckpointStore
from trials.data import resident_images, resident_labels
from trials.errors import DivergedError, FencedError
from trials.loop import train
from trials.reports import Assignment, Outcome, Report, State


class Attempt:
    """One attempt at a trial, advanced report by report. A process has one open attempt at a time."""

    def __init__(self, assignment: Assignment) -> None:
        self._step = 0
        self._ended: Outcome | None = None
        self._reports = _run(assignment)

    def advance(self) -> Report | Outcome:
        """The next report, or the outcome once training has ended. Never raises for the trial's own errors."""
        if self._ended is None:
            try:
                report = next(self._reports)
            except StopIteration:
                self._ended = Outcome(state=State.COMPLETED, step=self._step)
            except Exception as error:
                self._ended = _outcome(error, self._step)
            else:
                self._step = report.step
                return report
        return self._ended

    def stop(self) -> None:
        """Save a checkpoint of where training stands, and end. Does nothing after the end."""
        if self._ended is not None:
            return
        self._ended = Outcome(state=State.STOPPED, step=self._step, reason="stopped on request")
        try:
            if self._step:
                self._reports.send(True)
        except StopIteration:
            pass
        except Exception as error:
            self._ended = _outcome(error, self._step)
        self._reports.close()


def _run(assignment: Assignment) -> Generator[Report, bool | None, None]:
    device = torch.device(assignment.device)
    torch.set_num_threads(assignment.threads)
    kernels.keep_large_blocks()
    kernels.use_matmul(assignment.matmul)
    kernels.use_precision(str(assignment.spec.training["precision"]))
    store = CheckpointStore(
        directory=assignment.directory / "checkpoints", key=assignment.key, attempt=assignment.attempt,
        keep_steps=assignment.spec.keep_steps,
    )  # fmt: skip
    store.open()
    spec = assignment.spec
    images = resident_images(assignment.images, device)[: spec.limit]
    labels = resident_labels(assignment.labels, device)[: spec.limit] if spec.n_classes else None
    yield from train(
        spec, images, labels, store, assignment.directory, checkpoint_every=assignment.checkpoint_every
    )


def _outcome(error: Exception, step: int) -> Outcome:
    """Errors become a state here and nowhere else."""
    detail = "".join(traceback.format_exception(error))
    match error:
        case DivergedError():
            return Outcome(state=State.DIVERGED, step=step, reason=str(error))
        case FencedError():
            return Outcome(state=State.STOPPED, step=step, reason=str(error))
        case torch.OutOfMemoryError() | MemoryError():
            return Outcome(state=State.FAILED, step=step, reason=f"out of memory: {error}", detail=detail)
        case _:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(state=State.FAILED, step=step, reason=reason, detail=detail)
