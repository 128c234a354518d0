"""`status --watch`: a study on its way as a table that is drawn anew each second. Only reads the journal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator._words import one_line
from orchestrator.arms import arm_count
from orchestrator.home import StudyFiles
from orchestrator.journal import Event, StudyStarted, read
from orchestrator.logs import loss_words
from orchestrator.plan import duration
from orchestrator.records import Records, TrialRecord
from orchestrator.status import is_running, load_definition
from orchestrator.study import StudySpec
from trials.reports import State

EVERY_S = 1.0
BAR_WIDTH = 20
LEAST_ENDED = 3
"""Trials that ended which are shown beside running ones, however many run."""
COLOURS = {
    State.COMPLETED: "green", State.DIVERGED: "red", State.FAILED: "red", State.PRUNED: "yellow",
    State.STOPPED: "yellow", State.RUNNING: "cyan", State.WAITING: "dim",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Watched:
    """What is known of a study so far. Changed by `apply` alone."""

    study: StudySpec
    records: Records = field(default_factory=Records)
    ended: list[str] = field(default_factory=list)
    """Keys of the trials that ended, the last one last."""
    steps_before: int = 0
    """Steps that were done when the newest submit began."""

    def apply(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StudyStarted):
            self.steps_before = self.steps_done
        self.records.apply(event)
        key = getattr(event, "key", None)
        if key is not None:
            trial = self.records.trial(key)
            if trial.key in self.ended:
                self.ended.remove(trial.key)
            if trial.state.is_final or trial.state is State.STOPPED:
                self.ended.append(trial.key)

    @property
    def n_trials(self) -> int:
        return self.records.n_trials(arm_count(self.study), len(self.study.seeds))

    @property
    def steps_done(self) -> int:
        return sum(_gone(trial) for trial in self.records.trials.values())

    @property
    def steps_total(self) -> int:
        """Arms that are not proposed yet count as long as the first one."""
        trials = list(self.records.trials.values())
        unknown = max(0, self.n_trials - len(trials))
        return sum(trial.steps for trial in trials) + unknown * (trials[0].steps if trials else 1)

    def seconds_left(self, now_ms: int) -> float | None:
        """By the pace of the newest submit; None until it has one."""
        done = self.steps_done - self.steps_before
        elapsed_s = (now_ms - self.records.submitted_ms) / 1000
        if done <= 0 or elapsed_s <= 0:
            return None
        return (self.steps_total - self.steps_done) * elapsed_s / done


def _gone(trial: TrialRecord) -> int:
    return trial.steps if trial.state.is_final else trial.step


def watch(files: StudyFiles, console: Console, sleep: Callable[[float], None] = time.sleep) -> str:
    """Show the study until it ends; returns its state then. `console` must be a terminal's."""
    watched, offset = Watched(study=load_definition(files)), 0
    with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        while True:
            at_work = is_running(files)  # before reading: what was written before it went is read
            for event, after in read(files.journal, offset):
                watched.apply(event)
                offset = after
            now_ms = int(time.time() * 1000)
            live.update(frame(watched, console.height, now_ms, at_work=at_work), refresh=True)
            if not at_work:
                return "stopped" if watched.records.state == "running" else watched.records.state
            sleep(EVERY_S)


def frame(watched: Watched, height: int, now_ms: int, *, at_work: bool) -> RenderableType:
    """What is shown, in at most `height` lines of a terminal that is wide enough."""
    records = watched.records
    running = [t for t in records.trials.values() if t.state is State.RUNNING] if at_work else []
    running.sort(key=lambda trial: (trial.step / max(1, trial.steps), trial.number), reverse=True)
    ended = [records.trials[key] for key in reversed(watched.ended) if key in records.trials]
    waiting = _waiting_lines(records, at_work=at_work)
    room = max(2, height - 5 - len(waiting))  # two lines of the study, two of what is not shown, one to spare
    n_running = min(len(running), max(1, room - min(LEAST_ENDED, len(ended))))
    n_ended = min(len(ended), max(0, room - n_running))
    parts: list[RenderableType | None] = [
        _head(watched, now_ms, at_work=at_work),
        _counts(records, at_work=at_work),
    ]
    if running:
        parts += [_running_table(running[:n_running]), _more(len(running) - n_running, "running")]
    if n_ended:
        parts += [_ended_table(watched, ended[:n_ended]), _more(len(ended) - n_ended, "ended before")]
    parts += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in waiting]
    return Group(*(part for part in parts if part is not None))


def _head(watched: Watched, now_ms: int, *, at_work: bool) -> Table:
    records, total = watched.records, max(1, watched.steps_total)
    done = sum(trial.state.is_final for trial in records.trials.values())
    end_ms = now_ms if at_work else records.updated_ms
    elapsed = records.active_s + max(0, end_ms - records.submitted_ms) / 1000 if records.submitted_ms else 0.0
    state = "running" if at_work else "stopped" if records.state == "running" else records.state
    words = f"{state}, {done} of {watched.n_trials} trials done, {duration(elapsed)} so far"
    left = watched.seconds_left(now_ms) if at_work else None
    if left is not None:
        words += f", about {duration(left)} left"
    if records.reason:
        words += f" ({one_line(records.reason)})"
    line = Text(words, no_wrap=True, overflow="ellipsis")
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(watched.study.name, style="bold"), _bar(watched.steps_done, total), line)
    return row


def _counts(records: Records, *, at_work: bool) -> Text:
    shown = Counter(_state(trial, at_work=at_work) for trial in records.trials.values())
    line = Text(no_wrap=True, overflow="ellipsis")
    for state in State:
        if shown[state]:
            line.append(f"{shown[state]} {state.value}  ", style=COLOURS[state])
    flagged = sum(bool(trial.flags) for trial in records.trials.values())
    if flagged:
        line.append(f"{flagged} flagged", style="yellow")
    return line


def _state(trial: TrialRecord, *, at_work: bool) -> State:
    return State.STOPPED if trial.state is State.RUNNING and not at_work else trial.state


def _running_table(trials: Sequence[TrialRecord]) -> Table:
    table = Table.grid(padding=(0, 1))
    for trial in trials:
        table.add_row(
            Text(one_line(trial.name), no_wrap=True, overflow="ellipsis"),
            _bar(trial.step, trial.steps),
            Text(f"{trial.step:,}/{trial.steps:,}", no_wrap=True, justify="right"),
            Text(loss_words(trial.latest) or "starting", no_wrap=True, overflow="ellipsis"),
            Text(" ".join(trial.flags), style="yellow", no_wrap=True, overflow="ellipsis"),
        )
    return table


def _ended_table(watched: Watched, trials: Sequence[TrialRecord]) -> Table:
    objective = watched.study.objective
    table = Table.grid(padding=(0, 1))
    for trial in trials:
        value = trial.value(objective)
        words = "" if value is None else f"{objective.metric} {value:.4g}"
        if trial.reason:
            words += ("  " if words else "") + one_line(trial.reason)
        table.add_row(
            Text(trial.state.value, style=COLOURS[trial.state], no_wrap=True),
            Text(one_line(trial.name), no_wrap=True, overflow="ellipsis"),
            Text(words, no_wrap=True, overflow="ellipsis"),
            Text(" ".join(trial.flags), style="yellow", no_wrap=True, overflow="ellipsis"),
        )
    return table


def _waiting_lines(records: Records, *, at_work: bool) -> list[str]:
    """What waits, and for what: a line for each reason."""
    reasons = Counter[str]()
    for trial in records.trials.values():
        if trial.state is State.WAITING:
            reasons[why_waiting(trial) if at_work else "for the study to go on"] += 1
    return [
        f"{n} {'trial waits' if n == 1 else 'trials wait'} {one_line(why)}"
        for why, n in reasons.most_common(3)
    ]


def why_waiting(trial: TrialRecord) -> str:
    """What a waiting trial waits for, after the word "waits"."""
    if trial.held:
        rung = max(trial.at_rungs, default=None)
        if rung is None:
            return "until its arm has passed the last rung"
        return f"at rung {rung} for its arm to be judged"
    return "for a free worker, to be tried again" if trial.lost else "for a free worker"


def _more(n: int, what: str) -> Text | None:
    return Text(f"and {n} more {what}", style="dim") if n > 0 else None


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=done, width=BAR_WIDTH)
