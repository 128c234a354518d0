"""The search: Optuna by ask and tell. The only other module that imports Optuna is charts.py, for importance.

One Optuna trial is one arm. The study lies in a journal file beside ours, so Optuna's own tools can read it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from models import Value
from orchestrator.arms import grid
from orchestrator.records import ArmRecord
from orchestrator.study import Choices, Range, StudySpec, axes, hyperparameters, of_arm
from trials.spec import stream_seed

logging.getLogger("optuna").setLevel(logging.WARNING)


class OptunaSearch:
    """Proposes arms and learns their values. Not thread-safe: the driver alone calls it."""

    def __init__(self, study: StudySpec, path: Path, arms: Sequence[ArmRecord] = ()) -> None:
        """Open the store at `path`, or make it. `arms`: those that our own journal knows, the newest last.

        A store that was lost or damaged is made anew from them; the old file is kept beside it.
        """
        self._spec = study
        first = next(iter(study.arms), None)  # every arm's model takes what is searched, of the same kind
        known = hyperparameters(of_arm(study, first) if first else study)
        kinds = {name: param.kind for name, param in known.items()} | {"arm": str}
        self._space = {name: distribution(axis, kinds[name]) for name, axis in axes(study).items()}
        try:
            self._study = self._open(path)
        except (ValueError, KeyError, OSError):  # a torn or foreign line in the file
            path.rename(path.with_name(f"{path.name}.damaged"))
            self._study = self._open(path)
        for arm in arms:
            self._restore(arm)
        there = self._study.get_trials(deepcopy=False)
        self._n, self._finished = len(there), {trial.number for trial in there if trial.state.is_finished()}
        # Asked for by a driver that died; this one records what it asks for before it asks again.
        self._orphans = [trial for trial in there if trial.state is TrialState.RUNNING]
        self._points = grid(study) if study.search.sampler == "grid" else []

    def _open(self, path: Path) -> optuna.Study:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=self._spec.name,
            directions=["minimize" if o.mode == "min" else "maximize" for o in self._spec.objectives],
            load_if_exists=True,
        )

    def _restore(self, arm: ArmRecord) -> None:
        """Make the arm's trial running again, under its own number, if the store does not know it."""
        blank = optuna.trial.create_trial(state=TrialState.FAIL)
        while len(self._study.get_trials(deepcopy=False)) < arm.proposal:
            self._study.add_trial(blank)
        if len(self._study.get_trials(deepcopy=False)) == arm.proposal:
            self._study.add_trial(self._running(arm.values))

    def _running(self, values: Mapping[str, Value]) -> optuna.trial.FrozenTrial:
        return optuna.trial.create_trial(
            state=TrialState.RUNNING, params=dict(values), distributions=dict(self._space)
        )

    def propose(self, taken: set[int]) -> tuple[int, dict[str, Value]]:
        """The next arm and its number here. `taken`: the numbers whose arms are known already.

        An arm that was asked for before a crash but never recorded is handed out again.
        """
        while self._orphans:
            orphan = self._orphans.pop(0)
            if orphan.number not in taken:
                if self._points:  # a number stands for its point
                    return orphan.number, dict(self._points[orphan.number])
                if orphan.params.keys() == self._space.keys():
                    return orphan.number, dict(orphan.params)
                self.tell(orphan.number, None)
        if self._points:
            # Added as running, in order: Optuna's queue is searched from its beginning for every arm.
            self._study.add_trial(self._running(self._points[self._n]))
            self._n += 1
            return self._n - 1, dict(self._points[self._n - 1])
        # A sampler that is built anew after a restart would repeat its first proposals: seed it by the arm.
        seed = stream_seed(self._spec.search.seed, "arm", self._n) % 2**32
        self._study.sampler = (
            optuna.samplers.TPESampler(seed=seed)
            if self._spec.search.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        trial = self._study.ask(self._space)
        self._n += 1
        return trial.number, dict(trial.params)

    def tell(self, proposal: int, values: Sequence[float] | None) -> None:
        """The arm's value of each objective, or None when it has none (a seed diverged or failed). Telling twice is
        harmless."""
        if proposal in self._finished:
            return
        self._finished.add(proposal)
        if values is None:
            self._study.tell(proposal, state=TrialState.FAIL)
        else:
            self._study.tell(proposal, list(values))


def distribution(axis: Choices | Range, kind: type) -> BaseDistribution:
    """What Optuna calls an axis. `kind`: int where its values are whole numbers."""
    if isinstance(axis, Choices):
        return CategoricalDistribution(axis.choices)
    bounds: dict[str, Any] = {"log": axis.log}
    if kind is int:
        return IntDistribution(int(axis.low), int(axis.high), step=int(axis.step or 1), **bounds)
    return FloatDistribution(axis.low, axis.high, step=axis.step, **bounds)
