"""Going on with a study that has ended: which trials run again, and what a longer or wider study is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator import arms
from orchestrator._fields import ArmTrain, Search
from orchestrator.errors import UsageError
from orchestrator.records import ArmRecord, Records, TrialRecord
from orchestrator.study import StudySpec, problems
from trials.reports import State
from trials.spec import TrialSpec

MOST_SEEDS = 1000
OF_LENGTH = {
    "lr_schedule": "its stages stretch to the length of training",
    "instance_noise": "it falls to nothing over the length of training",
    "remove_last_epochs": "it keeps a checkpoint that lies before the end",
}
"""Hyperparameters that make a longer training another one from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What is asked for: more seeds, a longer training, more arms of a search. The values that are to be, not those to
    be added."""

    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    steps: int | None = None
    trials: int | None = None

    @property
    def changes(self) -> list[str]:
        """As options of --set, which make the extended study of the original one."""
        named = {"train.epochs": self.epochs, "train.steps": self.steps, "search.trials": self.trials}
        found = [f"{path}={value}" for path, value in named.items() if value is not None]
        return found + ([f"seeds=[{', '.join(map(str, self.seeds))}]"] if self.seeds else [])


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `0,1,2` or `0-2` or both. Raises UsageError that shows the form.

    >>> parse_seeds("0-2,7")
    (0, 1, 2, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(part) > 40:
            raise UsageError(f"--seeds must be whole numbers, such as 0,1,2 or 0-4 (got {text[:80]!r})")
        low, high = int(first), int(last or first)
        if not low <= high < 2**32 or high - low >= MOST_SEEDS:
            raise UsageError(
                f"--seeds must be from 0 to {2**32 - 1}, at most {MOST_SEEDS} of them (got {part[:80]!r})"
            )
        found += range(low, high + 1)
    return tuple(found)


def to_reopen(records: Records, states: Collection[State], trials: Sequence[TrialRecord]) -> list[str]:
    """The keys of the trials to run again: those in `states`, or of `trials` if any are named.

    Raises UsageError when there is nothing to run again.
    """
    for trial in trials:
        if trial.state not in (State.FAILED, State.DIVERGED):
            raise UsageError(
                f"trial {trial.name} is {trial.state.value}; only failed and diverged ones are run again"
            )
    judged = {id(t) for arm in records.arms if _was_pruned(arm) for t in arm.trials}
    for trial in trials:
        if id(trial) in judged:
            raise UsageError(f"trial {trial.name} belongs to an arm that was pruned, which does not go on")
    ended = [t for t in records.trials.values() if t.state in states and id(t) not in judged]
    chosen = trials or ended
    if not chosen:
        words = " or ".join(state.value for state in states)
        there = {state: records.count(state) for state in State if records.count(state)}
        has = ", ".join(f"{n} {state.value}" for state, n in there.items())
        raise UsageError(f"there is no trial that is {words}; the study has {has or 'no trials yet'}")
    return [trial.key for trial in chosen]


def _was_pruned(arm: ArmRecord) -> bool:
    return any(trial.state is State.PRUNED for trial in arm.trials)


def extended(study: StudySpec, records: Records, asked: Extension) -> StudySpec:
    """The study with more seeds, longer trials or more arms. Raises UsageError that says what cannot be."""
    if asked == Extension():
        raise UsageError("say what to extend: --seeds, --epochs, --steps or --trials")
    changed = study
    if asked.seeds:
        changed = changed.model_copy(update={"seeds": _more_seeds(study, asked.seeds)})
    if asked.trials is not None:
        changed = changed.model_copy(update={"search": _more_trials(study, asked.trials)})
    if asked.epochs is not None or asked.steps is not None:
        changed = _longer(changed, asked)
    if wrong := problems(changed):
        listed = "; ".join(f"{'.'.join(map(str, found.path))}: {found.message}" for found in wrong)
        raise UsageError(f"the extended study would not be right: {listed}")
    if asked.epochs is not None or asked.steps is not None:
        _check_longer(study, changed, records)
    return changed


def _more_seeds(study: StudySpec, seeds: Sequence[int]) -> list[int]:
    missing = [seed for seed in study.seeds if seed not in seeds]
    if missing:
        raise UsageError(
            f"--seeds lists all seeds that there are to be: {_listed(missing)} must stay (it has "
            f"{_listed(study.seeds)})"
        )
    new = [seed for seed in dict.fromkeys(seeds) if seed not in study.seeds]
    if not new:
        raise UsageError(f"the study has the seeds {_listed(study.seeds)} already; name others too")
    return [*study.seeds, *new]


def _more_trials(study: StudySpec, trials: int) -> Search:
    search = study.search
    if search.sampler == "grid":
        raise UsageError("a grid has run all of its points; --trials is for samplers that choose")
    if trials <= (search.trials or 0):
        raise UsageError(f"--trials says how many arms there are to be; it has {search.trials} already")
    return search.model_copy(update={"trials": trials})


def _longer(study: StudySpec, asked: Extension) -> StudySpec:
    if asked.epochs is not None and asked.steps is not None:
        raise UsageError("give either --epochs or --steps, not both")
    own = [
        name
        for name, arm in study.arms.items()
        if arm.train.epochs is not None or arm.train.steps is not None
    ]
    if own:
        raise UsageError(
            f"arms have lengths of their own: {', '.join(own)}; they cannot be extended together"
        )
    length = {"epochs": asked.epochs, "steps": asked.steps}
    named = {
        name: arm.model_copy(update={"train": ArmTrain(**_batches(arm.train))})
        for name, arm in study.arms.items()
    }
    return study.model_copy(update={"train": study.train.model_copy(update=length), "arms": named})


def _batches(train: ArmTrain) -> dict[str, int]:
    return train.model_dump(exclude_none=True, exclude={"epochs", "steps"})


def _check_longer(study: StudySpec, longer: StudySpec, records: Records) -> None:
    for arm in records.arms:
        before = arms.trial_spec(study, arm.values, study.seeds[0], "")
        after = arms.trial_spec(longer, arm.values, study.seeds[0], "")
        if after.steps <= before.steps:
            raise UsageError(
                f"trials have {before.steps:,} steps already; {after.steps:,} would not be longer (arm {arm.label})"
            )
        if why := _differs_from_its_beginning(before):
            raise UsageError(f"arm {arm.label} cannot go on for longer: it has {why}")


def _differs_from_its_beginning(spec: TrialSpec) -> str | None:
    for name, why in OF_LENGTH.items():
        if spec.training[name]:
            return f"{name}, and {why}"
    return None


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
