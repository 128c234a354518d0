"""Runs assignments inside a worker process: set-up, steps, and every error turned into an outcome."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch

from trials import kernels
from trials.checkpoints import CheckpointStore
from trials.data import resident
from trials.errors import DivergedError, FencedError, UnhealthyError
from trials.evaluation import evaluator
from trials.loop import training
from trials.packs import Pack
from trials.recorded import Recorded, why_not
from trials.reports import Assignment, Cause, Outcome, Report, State
from trials.step import Step, Trainer

STOP = "stop"
"""The name of a file that asks attempts to save a checkpoint and end."""
Said = tuple[str, int, Report | Outcome]
"""Trial key, attempt, and what it said."""


@dataclass(slots=True, kw_only=True)
class _Member:
    """One attempt. `trainer`: waits for its step; None after a report, until that is recorded, and after the end."""

    assignment: Assignment
    training: Generator[Report | Trainer, bool | None, bool]
    trainer: Trainer | None = None
    step: int = 0
    ended: bool = False
    told: bool = False
    """Its record says why steps are not recorded."""
    stopping: bool = False
    """Asked to report what there is, save a checkpoint, and end."""


class Attempts:
    """Attempts at one trial, or at several that step together as a pack. A process has one open set at a time."""

    def __init__(self, assignments: Sequence[Assignment], beat: Callable[[], None] = lambda: None) -> None:
        """The assignments have one device and, when there are several, one fusion key (packs.py).

        `beat` is called before every step.
        """
        self._beat = beat
        first = assignments[0]
        torch.set_num_threads(first.threads)
        kernels.keep_large_blocks()
        kernels.use_matmul(first.matmul)
        kernels.use_precision(str(first.spec.training["precision"]))
        self._members = [_Member(assignment=a, training=_training(a)) for a in assignments]
        self._recorded, self._not_recorded = first.recorded, ""
        self._taking: Step | Recorded | None = None
        """What takes the steps of those that are at it."""

    @property
    def ended(self) -> bool:
        """Whether every attempt has said its outcome."""
        return all(member.ended for member in self._members)

    def advance(self) -> list[Said]:
        """What the attempts say next, an outcome each in the end; nothing once all have ended.

        Asking says that what was said before is recorded. Never raises for the trials' own errors. An attempt
        is stopped when there is a file named stop in its own directory or in that of its study.
        """
        self._look_for_stops()
        while not self.ended:
            self._beat()
            # Those without a trainer said something the last time, or have not begun.
            said = [self._hear(member) for member in self._members if not member.ended and not member.trainer]
            said += [
                self._hear(member)
                for member in self._members
                if member.stopping and not member.ended and member.trainer
            ]
            if told := [words for words in said if words is not None]:
                return told
            if failures := self._step():
                return failures
        return []

    def _look_for_stops(self) -> None:
        everything = (self._members[0].assignment.directory.parent.parent / STOP).exists()
        for member in self._members:
            member.stopping |= everything or (member.assignment.directory / STOP).exists()

    def close(self) -> None:
        """End at once, with a checkpoint where the last report stands."""
        for member in self._members:
            if not member.ended and member.step and not member.trainer:
                with contextlib.suppress(Exception):
                    member.training.send(True)
            member.ended = True
            member.training.close()

    def _hear(self, member: _Member) -> Said | None:
        """Let an attempt go on until it says something, or wants a step taken."""
        in_place_of_a_step, member.trainer = member.trainer is not None, None
        if member.stopping and not member.step and not in_place_of_a_step:  # it never began
            return self._end(member, _stopped(member.step))
        try:
            said = member.training.send(True if member.stopping else None)
        except StopIteration as end:
            if end.value:
                member.step = max(member.step, member.assignment.until or 0)
                return self._end(member, Outcome(state=State.WAITING, step=member.step, paused=True))
            completed = Outcome(state=State.COMPLETED, step=member.step)
            return self._end(member, _stopped(member.step) if member.stopping else completed)
        except Exception as error:
            return self._end(member, _outcome(error, member.step))
        if isinstance(said, Trainer):
            member.trainer = said
            if sum(not other.ended for other in self._members) > 1:
                said.state.own_dropout()  # before another member seeds torch's global generator
            return None
        member.step = said.step
        if isinstance(self._taking, Recorded) and self._taking.failed:
            self._recorded, self._not_recorded = False, self._taking.failed
        if self._not_recorded and not member.told:
            member.told = True
            said = replace(said, notes=(*said.notes, f"steps are not recorded: {self._not_recorded}"))
        return member.assignment.key, member.assignment.attempt, said

    def _end(self, member: _Member, outcome: Outcome) -> Said:
        member.ended = True
        member.training.close()
        return member.assignment.key, member.assignment.attempt, outcome

    def _step(self) -> list[Said]:
        """One step of every attempt that is not at its end; the outcomes when that fails."""
        ready = [member for member in self._members if member.trainer]
        trainers = [member.trainer for member in ready if member.trainer]
        try:
            if self._taking is None or list(self._taking.members) != trainers:
                self._taking = self._together(trainers)
            self._taking.step()
        except Exception as error:
            return [self._end(member, _outcome(error, member.step)) for member in ready]
        for member in ready:
            member.trainer = None
        return []

    def _together(self, trainers: list[Trainer]) -> Step | Recorded:
        if len(trainers) == 1:
            trainers[0].state.give_dropout_back()
        step = trainers[0] if len(trainers) == 1 else Pack(trainers)
        recorded = self._recorded and not any(why_not(t.spec, t.gan) for t in trainers)
        return Recorded(step) if recorded else step


def _training(assignment: Assignment) -> Generator[Report | Trainer, bool | None, bool]:
    device, spec = torch.device(assignment.device), assignment.spec
    store = CheckpointStore(
        directory=assignment.directory / "checkpoints", key=assignment.key, attempt=assignment.attempt,
        keep_steps=spec.keep_steps, was=assignment.was,
    )  # fmt: skip
    store.open()
    labelled = spec.n_classes or spec.features == "classifier"
    whole, mine, held_out = resident(
        assignment.images, assignment.labels if labelled else None, device, spec.limit, spec.hold_out
    )
    return (yield from training(
        spec, mine.pixels, mine.labels if spec.n_classes else None, store, assignment.directory,
        lambda: evaluator(spec, whole, mine, held_out, assignment.features),
        checkpoint_every=assignment.checkpoint_every, until=assignment.until, flags=assignment.flags,
    ))  # fmt: skip


def _stopped(step: int) -> Outcome:
    return Outcome(state=State.STOPPED, step=step, reason="stopped on request")


def _outcome(error: Exception, step: int) -> Outcome:
    """Errors become a state here and nowhere else."""
    detail = "".join(traceback.format_exception(error))
    match error:
        case DivergedError():
            return Outcome(state=State.DIVERGED, step=step, reason=str(error), cause=Cause.NAN)
        case UnhealthyError():
            return Outcome(state=State.DIVERGED, step=step, reason=str(error), cause=Cause.UNHEALTHY)
        case FencedError():
            return Outcome(state=State.STOPPED, step=step, reason=str(error))
        case torch.OutOfMemoryError() | MemoryError():
            reason = f"out of memory: {error}".splitlines()[0]
            return Outcome(state=State.FAILED, step=step, reason=reason, detail=detail, cause=Cause.MEMORY)
        case _:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(state=State.FAILED, step=step, reason=reason, detail=detail, cause=Cause.ERROR)
