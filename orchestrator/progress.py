"""Progress of a sweep on stderr: live bars on a terminal, plain lines otherwise. Only reads the records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.leaderboard import leaderboard
from orchestrator.records import TrialRecord
from orchestrator.sweep import Sweep
from trials.reports import State

LOSSES = (("G", "train/g_loss"), ("D", "train/d_loss_mean"), ("D acc", "train/d_acc"))
PLAIN_EVERY_S = 15.0
STEADY_AFTER_S = 20.0
MARKS = {State.COMPLETED: "green", State.DIVERGED: "red", State.FAILED: "red", State.PRUNED: "yellow"}


class Progress:
    """Use as a context manager around the run."""

    def __init__(self, sweep: Sweep, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._sweep, self._console, self._clock = sweep, console, clock
        self._began = clock()
        self._steps_before = self._steps_done()
        self._states: dict[str, State] = {t.key: t.state for t in sweep.records.trials.values()}
        self._stop = threading.Event()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2)
        if self._console.is_terminal:
            self._live.stop()
        self._say_ended()

    def _watch(self) -> None:
        spoken = self._clock()
        while not self._stop.wait(0.5):
            self._say_ended()
            if not self._console.is_terminal and self._clock() - spoken >= PLAIN_EVERY_S:
                self._console.print(self._summary(), soft_wrap=True)
                spoken = self._clock()

    def _say_ended(self) -> None:
        """One line for every trial that ended since the last look."""
        for trial in list(self._sweep.records.trials.values()):
            if self._states.get(trial.key) != trial.state:
                self._states[trial.key] = trial.state
                if trial.state not in (State.RUNNING, State.WAITING) or (trial.reason and not trial.held):
                    self._console.print(self._ended_line(trial), soft_wrap=True)

    def _ended_line(self, trial: TrialRecord) -> Text:
        value = trial.value(self._sweep.study.objective)
        line = Text(f"{trial.state.value:>9} ", style=MARKS.get(trial.state, ""))
        line.append(f"{trial.name}", style="default")
        if trial.state is State.COMPLETED and value is not None:
            line.append(
                f"  {self._sweep.study.objective.metric} {value:.4g} in {trial.run_s:.0f} s", style="dim"
            )
        if trial.reason:
            line.append(f"  {trial.reason}", style="dim")
        return line

    def _render(self) -> RenderableType:
        running = [t for t in list(self._sweep.records.trials.values()) if t.state is State.RUNNING]
        table = Table.grid(padding=(0, 1))
        table.add_row(Text("study", style="bold"), _bar(*self._share()), self._summary())
        for trial in running:
            losses = "  ".join(f"{n} {trial.latest[m]:.3f}" for n, m in LOSSES if m in trial.latest)
            table.add_row(
                Text("trial", style="dim"),
                _bar(trial.step, trial.steps),
                Text(f"{trial.name}  step {trial.step}/{trial.steps}  {losses or 'starting'}"),
            )
        if self._sweep.stopping:
            return Group(
                table,
                Text(
                    "stopping: running trials save a checkpoint and end (Ctrl-C again leaves at once)",
                    style="yellow",
                ),
            )
        return table

    def _summary(self) -> Text:
        records, objective = self._sweep.records, self._sweep.study.objective
        total = self._sweep.n_trials
        done = sum(t.state.is_final for t in list(records.trials.values()))
        text = f"{done} of {total} trials done, {records.count(State.RUNNING)} running"
        standings = leaderboard(records, *self._sweep.study.objectives)
        if standings and standings[0].mean is not None:
            text += f", best {objective.metric} {standings[0].mean:.4g} ({standings[0].arm.label})"
        left = self._seconds_left()
        return Text(text + ("" if left is None else f", about {duration(left)} left"))

    def _share(self) -> tuple[int, int]:
        return self._steps_done(), max(1, self._steps_total())

    def _steps_done(self) -> int:
        trials = list(self._sweep.records.trials.values())
        return sum(t.steps if t.state.is_final else t.step for t in trials)

    def _steps_total(self) -> int:
        trials = list(self._sweep.records.trials.values())
        known = sum(t.steps for t in trials)
        unknown = self._sweep.n_trials - len(trials)
        return known + max(0, unknown) * (trials[0].steps if trials else 1)

    def _seconds_left(self) -> float | None:
        """None until a rate is known: at first workers start, and nothing moves."""
        if self._sweep.stopping or self._clock() - self._began < STEADY_AFTER_S:
            return None
        done = self._steps_done()
        rate = (done - self._steps_before) / max(1e-9, self._clock() - self._began)
        return (self._steps_total() - done) / rate if rate > 0 else None


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=24)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`.

    >>> duration(45), duration(720), duration(12000)
    ('45 s', '12 min', '3 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
