"""The search: Optuna by ask and tell. The only other module that imports Optuna is charts.py, for importance.

One Optuna trial is one arm. The study lies in a journal file beside ours, so Optuna's own tools can read it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from models import Value
from orchestrator.arms import grid
from orchestrator.errors import UsageError
from orchestrator.records import ArmRecord
from orchestrator.samplers import SAMPLERS, numbers, options_of
from orchestrator.study import (
    Choices,
    Range,
    StudySpec,
    all_points,
    allowing,
    axes,
    each_arm,
    facts,
    holds,
    hyperparameters,
    ordered,
)
from orchestrator.warm import Earlier, freeze
from trials.spec import stream_seed

logging.getLogger("optuna").setLevel(logging.WARNING)
logging.getLogger("optuna._gp").setLevel(logging.ERROR)  # that a package it can do without is not there

ASKED_OF_FEW = 5
"""How often a sampler is asked for an arm of a finite space before one of those left is drawn."""
MOST_DRAWN = 5000
"""How many arms are drawn at random for one that constraints allow and that is new."""
RETOLD = "gan_sweep:retold"
"""Attribute of a trial that stands for one that was told to have failed: that one's number."""


class OptunaSearch:
    """Proposes arms and learns their values. Not thread-safe: the driver alone calls it."""

    def __init__(
        self,
        study: StudySpec,
        path: Path,
        arms: Sequence[ArmRecord] = (),
        earlier: Earlier | None = None,
    ) -> None:
        """Open the store at `path`, or make it. `arms`: those that our own journal knows, the newest last.

        `earlier`: of `warm_start`; kept beside the store, as the numbers of its trials come first for ever.
        A store that was lost or damaged is made anew from them; the old file is kept beside it.
        """
        self._spec, self._sampler = study, SAMPLERS[study.search.sampler]
        self._options = options_of(study.search)
        self._axes = axes(study)
        self._order = ordered(self._axes)
        self._facts = {name: facts(one, name) for name, one in each_arm(study).items()}
        kinds: dict[str, type] = {"arm": str}
        for one in each_arm(study).values():
            kinds = {name: param.kind for name, param in hyperparameters(one).items()} | kinds
        self._space = {name: distribution(axis, kinds[name]) for name, axis in self._axes.items()}
        self._always = {n: self._space[n] for n in numbers(study.space) if not self._space[n].single()}
        self._all: list[dict[str, Value]] | None = None
        self._allowed = allowing(study)
        self._earlier = earlier.arms if earlier else ()
        if earlier:
            freeze(path, earlier)
        self._open_or_mend(path)
        self._add_earlier()
        for arm in arms:
            self._restore(arm)
        there = self._study.get_trials(deepcopy=False)
        self._n, self._finished = len(there), {trial.number for trial in there if trial.state.is_finished()}
        # Asked for by a driver that died; this one records what it asks for before it asks again.
        self._orphans = [trial for trial in there if trial.state is TrialState.RUNNING]
        self._points = grid(study) if study.search.sampler == "grid" else []
        self._seen = {_point(arm.values) for arm in arms}

    def _open_or_mend(self, path: Path) -> None:
        try:
            self._study = self._open(path)
        except (ValueError, KeyError, OSError):  # a torn or foreign line in the file
            path.rename(path.with_name(f"{path.name}.damaged"))
            self._study = self._open(path)

    def _open(self, path: Path) -> optuna.Study:
        self._storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=self._storage,
            study_name=self._spec.name,
            directions=["minimize" if o.mode == "min" else "maximize" for o in self._spec.objectives],
            load_if_exists=True,
        )

    def _add_earlier(self) -> None:
        for values, results in self._earlier[len(self._study.get_trials(deepcopy=False)) :]:
            self._study.add_trial(self._trial(TrialState.COMPLETE, values, values_of=list(results)))

    def _restore(self, arm: ArmRecord) -> None:
        """Make the arm's trial running again, under its own number, if the store does not know it."""
        blank = optuna.trial.create_trial(state=TrialState.FAIL, values=None, params={}, distributions={})
        while len(self._study.get_trials(deepcopy=False)) < arm.proposal:
            self._study.add_trial(blank)
        if len(self._study.get_trials(deepcopy=False)) == arm.proposal:
            self._study.add_trial(self._trial(TrialState.RUNNING, arm.values))

    def _trial(
        self,
        state: TrialState,
        values: Mapping[str, Value],
        *,
        values_of: list[float] | None = None,
        user_attrs: dict[str, Any] | None = None,
        system_attrs: dict[str, Any] | None = None,
    ) -> FrozenTrial:
        return optuna.trial.create_trial(
            state=state,
            params=dict(values),
            distributions={name: self._space[name] for name in values},
            values=values_of,
            user_attrs=user_attrs,
            system_attrs=system_attrs,
        )

    def propose(self, taken: set[int]) -> tuple[int, dict[str, Value]]:
        """The next arm and its number here. `taken`: the numbers whose arms are known already.

        An arm that was asked for before a crash but never recorded is handed out again. Never a point that was
        proposed before, and never one that constraints forbid; raises UsageError when no other is found.
        """
        while self._orphans:
            orphan = self._orphans.pop(0)
            if orphan.number in taken:
                continue
            if self._points:  # a number stands for its point
                return orphan.number, dict(self._points[orphan.number])
            if self._is_whole(orphan.params) and self._is_new(orphan.params):
                return self._proposed(orphan.number, orphan.params)
            self.tell(orphan.number, None)
        if self._points:
            # Added as running, in order: Optuna's queue is searched from its beginning for every arm.
            return self._add(self._points[self._n])
        for i in range(self._sampler.asked):
            if i == ASKED_OF_FEW and self._listed() is not None:
                break
            number, values = self._ask()
            if self._is_new(values):
                return self._proposed(number, values)
            self.tell(number, None)
        return self._add(self._drawn())

    def _ask(self) -> tuple[int, dict[str, Value]]:
        # A sampler that is built anew after a restart would repeat its first proposals: seed it by the arm.
        seed = stream_seed(self._spec.search.seed, "arm", self._n) % 2**32
        with warnings.catch_warnings(), _one_thread(self._spec.search.sampler):
            warnings.simplefilter("ignore", ExperimentalWarning)  # of options that Optuna may still change
            self._study.sampler = self._make_sampler(seed)
            trial = self._study.ask()
            self._n += 1
            values: dict[str, Value] = {}
            for name in self._order:
                if self._holds(name, values):
                    values[name] = _suggest(trial, name, self._space[name])
        return trial.number, {name: values[name] for name in self._axes if name in values}

    def _make_sampler(self, seed: int) -> BaseSampler:
        options: dict[str, Any] = dict(self._options)
        match self._spec.search.sampler:
            case "qmc":
                return _Qmc(self._space, self._n, seed=self._spec.search.seed, **options)
            case "tpe":
                conditional = any(axis.when for axis in self._axes.values())
                options.setdefault("group", conditional and options["multivariate"])
                return optuna.samplers.TPESampler(seed=seed, **options)
            case "cmaes":
                if self._earlier:
                    options["source_trials"] = self._source_trials()
                return _Cmaes(self._always, seed=seed, warn_independent_sampling=False, **options)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False, **options)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, **options)
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(seed=seed, **options)
        return optuna.samplers.RandomSampler(seed=seed)

    def _source_trials(self) -> list[FrozenTrial]:
        """The earlier study's arms as CMA-ES takes them: with the numbers that it searches alone."""
        there = self._study.get_trials(deepcopy=False)[: len(self._earlier)]
        return [
            optuna.trial.create_trial(
                params={name: trial.params[name] for name in self._always},
                distributions=dict(self._always),
                value=trial.value,
            )
            for trial in there
        ]

    def _drawn(self) -> dict[str, Value]:
        """An arm at random: one of those left of a finite space, else one that constraints allow."""
        rng = random.Random(stream_seed(self._spec.search.seed, "drawn", self._n))
        if (listed := self._listed()) is not None:
            left = [point for point in listed if self._is_new(point)]
            if left:
                return rng.choice(left)
            raise UsageError(
                f"every one of the {len(self._seen)} points that the space and its constraints leave was proposed; "
                "lower search.trials, or widen the space"
            )
        sampler = optuna.samplers.RandomSampler(seed=rng.randrange(2**32))
        blank = self._trial(TrialState.RUNNING, {})
        for _ in range(MOST_DRAWN):
            values: dict[str, Value] = {}
            for name in self._order:
                if self._holds(name, values):
                    of = self._space[name]
                    values[name] = sampler.sample_independent(self._study, blank, name, of)
            if self._is_new(values):
                return {name: values[name] for name in self._axes if name in values}
        raise UsageError(
            f"none of {MOST_DRAWN} arms drawn at random meets the constraints ({'; '.join(self._spec.constraints)}); "
            "widen the space, or loosen them"
        )

    def _listed(self) -> list[dict[str, Value]] | None:
        """Every arm that there can be; None when they are too many to list."""
        if self._all is None and (points := all_points(self._spec)) is not None:
            self._all = list(points)
        return self._all

    def _holds(self, name: str, values: Mapping[str, Value]) -> bool:
        """Whether an arm with these values so far has the axis."""
        return holds(self._axes[name], {**values, **self._facts.get(str(values.get("arm", "")), {})})

    def _is_whole(self, values: Mapping[str, Value]) -> bool:
        """Whether no value that the arm has is missing."""
        if self._spec.arms and "arm" not in values:
            return False
        return all((name in values) == self._holds(name, values) for name in self._axes)

    def _is_new(self, values: Mapping[str, Value]) -> bool:
        return _point(values) not in self._seen and self._allowed(values)

    def _add(self, values: Mapping[str, Value]) -> tuple[int, dict[str, Value]]:
        self._study.add_trial(self._trial(TrialState.RUNNING, values))
        self._n += 1
        return self._proposed(self._n - 1, values)

    def _proposed(self, number: int, values: Mapping[str, Value]) -> tuple[int, dict[str, Value]]:
        self._seen.add(_point(values))
        return number, {name: values[name] for name in self._axes if name in values}

    def tell(
        self,
        proposal: int,
        values: Sequence[float] | None,
        *,
        pruned: tuple[int, float] | None = None,
    ) -> None:
        """The arm's value of each objective, or None when it has none (a seed diverged or failed). Telling twice is
        harmless.

        `pruned`: the step at which the arm was ended and its value there, in the place of `values`. Of several
        objectives such an arm has none.
        """
        if proposal in self._finished:
            return
        self._finished.add(proposal)
        if values is not None:
            self._study.tell(proposal, list(values))
        elif pruned is not None and len(self._spec.objectives) == 1:
            of = self._storage.get_study_id_from_name(self._spec.name)
            trial = self._storage.get_trial_id_from_study_id_trial_number(of, proposal)
            self._storage.set_trial_intermediate_value(trial, *pruned)
            self._study.tell(proposal, state=TrialState.PRUNED)
        else:
            self._study.tell(proposal, state=TrialState.FAIL)

    def retell(self, proposal: int, values: Sequence[float]) -> None:
        """The values of an arm that was told to have failed and was retried since. Telling twice is harmless.

        It becomes one more finished trial, as Optuna takes no word back. Samplers that do not learn are not told:
        what is numbered there are the points themselves.
        """
        if not self._sampler.adaptive:
            return
        there = self._study.get_trials(deepcopy=False)
        if any(trial.user_attrs.get(RETOLD) == proposal for trial in there):
            return
        old = there[proposal]
        if old.state is not TrialState.FAIL or not self._is_whole(old.params):
            return
        # What tells a sampler which generation it was of goes along; a state of the sampler does not.
        kept = {k: v for k, v in old.system_attrs.items() if ":optimizer" not in k}
        self._study.add_trial(
            self._trial(
                TrialState.COMPLETE,
                old.params,
                values_of=list(values),
                user_attrs={RETOLD: proposal},
                system_attrs=kept,
            )
        )
        self._finished.add(self._n)
        self._n += 1


@contextlib.contextmanager
def _one_thread(sampler: str) -> Iterator[None]:
    """Gaussian processes of so few arms are faster with one thread, most of all beside trials that use the cores."""
    if sampler != "gp":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Qmc(optuna.samplers.QMCSampler):
    """One sequence over the whole space, whose points are counted by the trials' numbers.

    Optuna's own takes its space from the first finished trial, and all arms are proposed before any has finished.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], number: int, **options: Any) -> None:
        super().__init__(warn_independent_sampling=False, **options)
        self._whole = {name: of for name, of in space.items() if not of.single()}
        self._number = number

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._whole)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class _Cmaes(optuna.samplers.CmaEsSampler):
    """Searches the numbers that every arm has, whatever the arms that have finished say of the space."""

    def __init__(self, always: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._always = dict(always)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._always)


def distribution(axis: Choices | Range, kind: type) -> BaseDistribution:
    """What Optuna calls an axis. `kind`: int where its values are whole numbers."""
    if isinstance(axis, Choices):
        return CategoricalDistribution(axis.choices)
    bounds: dict[str, Any] = {"log": axis.log}
    if kind is int:
        return IntDistribution(int(axis.low), int(axis.high), step=int(axis.step or 1), **bounds)
    return FloatDistribution(axis.low, axis.high, step=axis.step, **bounds)


def _suggest(trial: optuna.Trial, name: str, of: BaseDistribution) -> Value:
    found: Value
    match of:
        case IntDistribution():
            found = trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
        case FloatDistribution():
            found = trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
        case CategoricalDistribution():
            found = trial.suggest_categorical(name, of.choices)  # type: ignore[assignment]
        case _:
            raise TypeError(f"unknown distribution {of!r}")
    return found


def _point(values: Mapping[str, Value]) -> frozenset[tuple[str, str, Value]]:
    """What makes two arms the same: 0.1 + 0.2 and 0.3 are one value, 1 and true are two."""
    return frozenset(
        (name, "bool" if isinstance(v, bool) else "", float(f"{v:.12g}") if isinstance(v, float) else v)
        for name, v in values.items()
    )


def told(path: Path) -> list[tuple[int, str, list[float] | None]]:
    """What the store at `path` knows: of each trial its number, its state in Optuna's words, and its values."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    (study,) = storage.get_all_studies()
    return [(t.number, t.state.name, t.values) for t in storage.get_all_trials(study._study_id)]
