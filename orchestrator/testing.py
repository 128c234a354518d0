"""The contract of a backend, for tests: inherit, and give `make_backend`.

    class TestInline(BackendContract):
        def make_backend(self): return InlineBackend()

Ships with the package, so that a backend of your own can be held to it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from models import Value
from orchestrator import policy, pruning
from orchestrator._fields import Objective, Prune
from orchestrator.home import StudyFiles
from orchestrator.journal import (
    ArmAdvanced,
    ArmProposed,
    Event,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialStarted,
    read,
)
from orchestrator.machine import Slots
from orchestrator.records import Records
from orchestrator.study import StudySpec
from orchestrator.sweep import Backend, Sweep
from trials.data import prepare
from trials.reports import State


class ListSearch:
    """A search that hands out given arms in order and remembers what it was told."""

    def __init__(self, arms: list[dict[str, Value]]) -> None:
        self.arms, self.told = arms, dict[int, Sequence[float] | None]()
        self.pruned: dict[int, tuple[int, float]] = {}

    def propose(self, taken: set[int]) -> tuple[int, dict[str, Value]]:
        number = min(set(range(len(self.arms))) - taken)
        return number, self.arms[number]

    def tell(
        self, proposal: int, values: Sequence[float] | None, *, pruned: tuple[int, float] | None = None
    ) -> None:
        self.told.setdefault(proposal, values)
        if pruned:
            self.pruned[proposal] = pruned

    def retell(self, proposal: int, values: Sequence[float]) -> None:
        self.told[proposal] = values


def tiny_study(**changes: Any) -> StudySpec:
    """Two learning rates, two seeds, 8x8 digits: 0.1 s a trial."""
    document: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "model": "obs_mlp",
        "dataset": "digits",
        "seeds": [0, 1],
        "train": {"steps": 12, "batch_size": 8, "log_every": 2, "checkpoint_every": 4},
        "fixed": {"width": 8, "latent_dim": 4},
        "space": {"lr": {"choices": [1e-3, 1e-4]}},
        "pictures": {"count": 2, "samples": 4, "gallery": False},
        "evaluate": {"samples": 16, "features": "random"},
    }
    return StudySpec.model_validate(document | changes)


def make_sweep(
    study: StudySpec, root: Path, arms: list[dict[str, Value]], *, slots: int = 2, pack: int = 1
) -> tuple[Sweep, ListSearch]:
    """A sweep of `study` in `root`, which may hold an earlier one's journal."""
    files = StudyFiles(root / study.name)
    files.root.mkdir(parents=True, exist_ok=True)
    search = ListSearch(arms)
    wanted = study.dataset.source
    datasets = {wanted: prepare(wanted, cache_dir=root / "datasets", data_dir=root / "data")}
    granted = Slots(cpu=1, gpu=0, count=slots)
    sweep = Sweep(study, files, search, datasets, granted)
    sweep.pack_size = lambda _: pack
    return sweep, search


def run_sweep(sweep: Sweep, backend: Backend) -> Records:
    """Run to the end; returns the records."""
    sweep.start({})
    backend.run(sweep)
    sweep.end()
    return sweep.records


def events(root: Path, kind: type[Event]) -> list[Any]:
    """The journal's events of one kind."""
    return [event for event, _ in read(root / "tiny" / "journal.jsonl") if isinstance(event, kind)]


class BackendContract(ABC):
    """What every backend does. Each test is a claim of the contract."""

    ARMS: ClassVar[list[dict[str, Value]]] = [{"lr": 1e-3}, {"lr": 1e-4}]
    PACK: ClassVar[int] = 1
    """How many trials may be one pack."""

    @abstractmethod
    def make_backend(self) -> Backend:
        """The backend that is held to the contract; a new one for every call."""

    def test_every_arm_runs_every_seed_exactly_once(self, tmp_path: Path) -> None:
        sweep, search = make_sweep(tiny_study(), tmp_path, self.ARMS, pack=self.PACK)
        records = run_sweep(sweep, self.make_backend())
        assert [(t.arm, t.seed, t.state, t.attempts) for t in records.trials.values()] == [
            (arm, seed, State.COMPLETED, 1) for arm in (0, 1) for seed in (0, 1)
        ]
        assert len(events(tmp_path, TrialStarted)) == len(events(tmp_path, TrialEnded)) == 4
        assert sorted(search.told) == [0, 1]
        assert None not in search.told.values()

    def test_rows_are_recorded_once_and_in_order(self, tmp_path: Path) -> None:
        sweep, _ = make_sweep(tiny_study(), tmp_path, self.ARMS, pack=self.PACK)
        for key in run_sweep(sweep, self.make_backend()).trials:
            steps = [step for e in events(tmp_path, TrialReported) if e.key == key for step, _ in e.rows]
            assert steps == [2, 4, 6, 8, 10, 12]

    def test_a_trial_that_diverges_leaves_the_others_alone(self, tmp_path: Path) -> None:
        study = tiny_study(fixed={"width": 8, "latent_dim": 4, "optimizer": "sgd"}, train={
            "steps": 300, "batch_size": 8, "log_every": 2,
        })  # fmt: skip
        sweep, search = make_sweep(study, tmp_path, [{"lr": 10.0}, {"lr": 1e-4}], pack=self.PACK)
        records = run_sweep(sweep, self.make_backend())
        states = [[t.state for t in arm.trials] for arm in records.arms]
        assert states == [[State.DIVERGED] * 2, [State.COMPLETED] * 2]
        assert records.arms[0].trials[0].reason.startswith("not finite at step")
        assert search.told[0] is None

    def test_a_trial_that_raises_fails_with_its_reason(self, tmp_path: Path) -> None:
        sweep, _ = make_sweep(tiny_study(), tmp_path, self.ARMS, pack=self.PACK)
        sweep.start({})
        key = next(iter(_first_trials(sweep)))
        checkpoints = sweep.files.trial(key) / "checkpoints"
        checkpoints.parent.mkdir(parents=True)
        checkpoints.write_text("a file where the directory belongs")
        self.make_backend().run(sweep)
        assert sweep.end() == "failed"
        failed = [t for t in sweep.records.trials.values() if t.state is State.FAILED]
        assert [t.key for t in failed] == [key]
        assert "FileExistsError" in failed[0].reason
        assert [e.attempt for e in events(tmp_path, TrialStarted) if e.key == key] == [1]

    def test_a_stopped_sweep_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        study = tiny_study(train={"steps": 400, "batch_size": 8, "log_every": 2, "checkpoint_every": 400})
        whole, _ = make_sweep(study, tmp_path / "whole", self.ARMS, pack=self.PACK)
        expected = run_sweep(whole, self.make_backend())
        sweep, _ = make_sweep(study, tmp_path, self.ARMS, pack=self.PACK)
        _stop_after_first_report(sweep)
        stopped = run_sweep(sweep, self.make_backend())
        assert stopped.state == "stopped"
        begun = [t for t in stopped.trials.values() if t.step and not t.state.is_final]
        assert begun
        assert {t.state for t in begun} == {State.STOPPED}

        again, search = make_sweep(study, tmp_path, self.ARMS, pack=self.PACK)
        records = run_sweep(again, self.make_backend())
        assert records.state == "completed"
        assert {t.state for t in records.trials.values()} == {State.COMPLETED}
        for key, trial in expected.trials.items():
            assert records.trials[key].value(study.objective) == trial.value(study.objective)
            steps = [step for e in events(tmp_path, TrialReported) if e.key == key for step, _ in e.rows]
            assert steps == sorted(set(steps))
        assert sorted(search.told) == [0, 1]

    def test_a_finished_sweep_starts_nothing(self, tmp_path: Path) -> None:
        sweep, _ = make_sweep(tiny_study(), tmp_path, self.ARMS, pack=self.PACK)
        run_sweep(sweep, self.make_backend())
        again, _ = make_sweep(tiny_study(), tmp_path, self.ARMS, pack=self.PACK)
        assert again.finished
        run_sweep(again, self.make_backend())
        assert len(events(tmp_path, TrialStarted)) == 4


def _first_trials(sweep: Sweep) -> list[str]:
    """The keys of the sweep's trials; proposes all arms, starts none."""
    while len(sweep.records.arms) < sweep.n_arms:
        sweep._propose()
    return list(sweep.records.trials)


def _stop_after_first_report(sweep: Sweep) -> None:
    recorded = sweep.reported

    def report_and_stop(key: str, attempt: int, report: Any) -> None:
        recorded(key, attempt, report)
        sweep.request_stop()

    sweep.reported = report_and_stop  # type: ignore[method-assign]


PrunedValue = Callable[[int, int, int], float | None]
"""Arm, seed, step -> value of the objective there; None for a seed that diverges before it."""


def simulate_pruning(
    prune: Prune,
    objective: Objective,
    n_arms: int,
    n_seeds: int,
    value: PrunedValue,
    *,
    steps: int,
    order: int = 0,
    adaptive: bool = False,
    slots: int = 3,
) -> Records:
    """The records of a study in which trials come to their rungs in an order drawn from `order`; nothing is trained.

    Asserts that an arm is judged only when all of its seeds that may run are at the rung, and that judging again gives
    the same.
    """
    records, drawn, running = Records(), random.Random(order), list[str]()

    def obey(verdict: pruning.Verdict) -> None:
        arm = verdict.arm
        there = [trial for trial in arm.open_trials if not trial.state.is_final]
        assert all(t.state is State.WAITING and t.held and t.step == arm.until for t in there)
        if isinstance(verdict, pruning.Advance):
            records.apply(ArmAdvanced(at_ms=0, arm=arm.arm, until=verdict.until))
            return
        for trial in arm.trials:
            if not trial.state.is_final:
                end(trial.key, State.PRUNED, trial.step, verdict.reason)

    def end(key: str, state: State, step: int, reason: str = "") -> None:
        records.apply(TrialEnded(at_ms=0, key=key, attempt=1, state=state, step=step, reason=reason))

    def propose() -> None:
        n = len(records.arms)
        keys = {f"{n}.{seed}": seed for seed in range(n_seeds)}
        records.apply(
            ArmProposed(
                at_ms=0, arm=n, proposal=n, values={"arm": f"{n}"}, keys=keys, steps=steps,
                until=pruning.brackets(prune, n)[0], open_seeds=prune.seeds,
            )
        )  # fmt: skip

    def arrive(key: str) -> None:
        trial = records.trials[key]
        until = records.arms[trial.arm].until
        found = value(trial.arm, trial.seed, until or steps)
        if found is None:
            end(key, State.DIVERGED, trial.step)
        elif until is None:
            rows = [(steps, {objective.metric: found})]
            records.apply(TrialReported(at_ms=0, key=key, attempt=1, step=steps, rows=rows, pictures=[]))
            end(key, State.COMPLETED, steps)
        else:
            values = {objective.metric: found}
            records.apply(TrialPaused(at_ms=0, key=key, attempt=1, step=until, values=values))

    while True:
        complete = len(records.arms) >= n_arms
        while verdicts := pruning.judge(records, prune, objective, complete=complete):
            assert pruning.judge(records, prune, objective, complete=complete) == verdicts
            for verdict in verdicts:
                obey(verdict)
        match policy.decide(records, n_arms=n_arms, adaptive=adaptive, stopping=False):
            case policy.Propose():
                propose()
            case policy.Start(trial) if len(running) < slots:
                attempt = trial.attempts + 1
                records.apply(TrialStarted(at_ms=0, key=trial.key, attempt=attempt))
                running.append(trial.key)
            case policy.Done():
                return records
            case _:
                arrive(running.pop(drawn.randrange(len(running))))
