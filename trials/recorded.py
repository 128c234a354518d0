"""Steps recorded once and replayed: on a GPU one launch a step, in place of some hundred that wait for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from models import Gan
from trials.feed import BLOCK, Rows
from trials.spec import TrialSpec
from trials.step import Step, Trainer

WARM_UP = 3
"""Steps taken before the recording: optimisers make their state in the first, libraries choose their kernels."""


Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs the work that it is given once without effect, and returns what runs it again on the same memory.

The generators that the work draws from go on at every run.
"""


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def why_not(spec: TrialSpec, gan: Gan) -> str | None:
    """Why a trial's steps cannot be replayed from a recording, or None."""
    if spec.training["augment"]:
        return "augmentation draws anew on the host at every step"
    if gan.levels:
        return "growing networks change from step to step"
    return None


class Recorded:
    """Takes the steps of a trial or a pack, from a recording after the first WARM_UP.

    A step is a function of weights, of generators, and of its row: so the recording picks its row out of a block that
    is kept at one place, by a counter that lies on the device and that it moves itself. Losses are added up on the
    device. The host fills in a new block where one ends, and nothing else.

    `failed`: why recording did not work. Nothing is lost then: steps are taken as before.
    """

    def __init__(self, step: Step, record: Record = cuda_graph) -> None:
        self._step, self._record = step, record
        self._replay: Callable[[], None] | None = None
        self._block: Rows = {}
        self._at = torch.empty(0)
        self._left = 0
        self._taken = 0
        self.failed = ""

    @property
    def members(self) -> Sequence[Trainer]:
        return self._step.members

    def step(self) -> None:
        """One step."""
        if self.failed:
            self._step.step()
            return
        if self._taken < WARM_UP:
            self._aside(self._step.step)
            self._taken += 1
            return
        if not self._left:
            self._fill()
        if self._replay is None:
            try:
                self._replay = self._record(self._work)
            except RuntimeError as error:  # a recording computes nothing, so that weights are untouched
                self.failed = f"{type(error).__name__}: {error}".splitlines()[0]
                self._step.step()
                return
        self._replay()
        self._step.advance()
        self._left -= 1

    def _work(self) -> None:
        self._step.row = {name: rows.index_select(0, self._at)[0] for name, rows in self._block.items()}
        self._step.compute()
        self._at += 1

    def _fill(self) -> None:
        """Put the next rows where the recording finds them."""
        ahead = self._step.renew()
        if not self._block:
            self._block = {name: rows.new_zeros((BLOCK, *rows.shape[1:])) for name, rows in ahead.items()}
            self._at = torch.zeros(1, dtype=torch.int64, device=ahead["images"].device)
        for name, rows in ahead.items():
            self._block[name][: len(rows)].copy_(rows)
        self._at.zero_()
        self._left = len(ahead["images"])

    def _aside(self, work: Callable[[], None]) -> None:
        """On a stream of its own, as a recording needs it before."""
        if not self.members[0].images.is_cuda:
            work()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
