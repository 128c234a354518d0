"""The table of `status --watch` fits the terminal and says what runs, ended and waits."""

from __future__ import annotations

import io

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.journal import (
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialStarted,
)
from orchestrator.records import replay
from orchestrator.testing import tiny_study
from orchestrator.watch import Watched, frame, watch, why_waiting
from tests.orchestrator.fabricated import fabricate
from tests.orchestrator.invoking import Invoke, invoke

__all__ = ["invoke"]
S = 1000


def watched(events: list[Event], n_seeds: int) -> Watched:
    study = tiny_study(seeds=list(range(n_seeds)), space={}, name="made")
    found = Watched(study=study)
    for event in events:
        found.apply(event)
    return found


def story(n_running: int, n_ended: int, n_waiting: int, step: int = 6) -> list[Event]:
    """One arm of 12 steps whose seeds are in these states, at 10 s by the clock."""
    n = n_running + n_ended + n_waiting
    keys = {f"{seed:016d}": seed for seed in range(n)}
    events: list[Event] = [
        StudyStarted(at_ms=S, uid="u", provenance={}),
        ArmProposed(at_ms=S, arm=0, proposal=0, values={}, keys=keys, steps=12),
    ]
    for key in list(keys)[: n_running + n_ended]:
        rows = [(step, {"train/g_loss": 0.7, "eval/fd": 3.0})]
        events += [
            TrialStarted(at_ms=2 * S, key=key, attempt=1),
            TrialReported(at_ms=3 * S, key=key, attempt=1, step=step, rows=rows, pictures=[],
                          flags=[("d_win", 1, 2, "it wins")]),
        ]  # fmt: skip
    for key in list(keys)[:n_ended]:
        events.append(
            TrialEnded(at_ms=4 * S, key=key, attempt=1, state="diverged", step=step, reason="not finite")
        )
    return events


def shown(
    found: Watched, *, height: int = 24, width: int = 120, at_work: bool = True, now_ms: int = 11 * S
) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as captured:
        console.print(frame(found, height, now_ms, at_work=at_work))
    return captured.get()


@given(
    running=st.integers(0, 60), ended=st.integers(0, 60), waiting=st.integers(0, 9),
    height=st.integers(12, 60), width=st.sampled_from([60, 80, 200]),
)  # fmt: skip
def test_the_table_fits_the_terminal(running: int, ended: int, waiting: int, height: int, width: int) -> None:
    n = running + ended + waiting
    lines = shown(watched(story(running, ended, waiting), max(1, n)), height=height, width=width).splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)


@given(running=st.integers(1, 60), ended=st.integers(1, 60))
def test_no_line_is_wasted_while_trials_are_left_out(running: int, ended: int) -> None:
    text = shown(watched(story(running, ended, 0), running + ended), height=20)
    if "more running" in text or "more ended" in text:
        assert len(text.splitlines()) >= 20 - 3


def test_what_runs_ended_and_waits_is_said() -> None:
    text = shown(watched(story(2, 1, 3), 6))
    for words in (
        "running, 1 of 6 trials done",
        "3 waiting  2 running  1 diverged  3 flagged",
        "001 default seed 1",
        "6/12",
        "G 0.700",
        "d_win",
        "diverged 000 default seed 0 eval/fd 3  not finite",
        "3 trials wait for a free worker",
    ):
        assert words in text


def test_the_trials_that_ended_last_are_shown_first() -> None:
    events = story(0, 30, 0)
    lines = shown(watched(events, 30), height=12).splitlines()
    assert "029" in next(line for line in lines if "diverged 0" in line)
    assert "and 23 more ended before" in lines[-1]


def test_time_left_is_by_the_pace_of_this_submit() -> None:
    """Two of four trials of 12 steps are at step 6 after 10 s: 12 of 48 steps, 30 s are left."""
    found = watched(story(2, 0, 2), 4)
    assert found.seconds_left(11 * S) == pytest.approx(30.0)
    assert "10 s so far, about 30 s left" in shown(found)
    again = watched([*story(2, 0, 2), StudyStarted(at_ms=20 * S, uid="u", provenance={})], 4)
    assert again.seconds_left(30 * S) is None
    again.apply(TrialStarted(at_ms=21 * S, key=f"{0:016d}", attempt=2))
    again.apply(
        TrialReported(at_ms=25 * S, key=f"{0:016d}", attempt=2, step=12, rows=[(12, {})], pictures=[])
    )
    assert again.seconds_left(26 * S) == pytest.approx(6 * (48 - 18) / 6)


def test_an_escape_in_a_reason_is_shown_and_not_obeyed() -> None:
    events = story(1, 0, 0)
    events.append(
        TrialEnded(at_ms=4 * S, key=f"{0:016d}", attempt=1, state="failed", step=6, reason="\x1b[2J\x07bad")
    )
    text = shown(watched(events, 1))
    assert "\\x1b[2J\\x07bad" in text
    assert "\x1b" not in text


def test_why_a_trial_waits() -> None:
    events: list[Event] = [
        ArmProposed(
            at_ms=1, arm=0, proposal=0, values={}, keys={"a": 0, "b": 1}, steps=9, until=3, open_seeds=1
        ),
        TrialStarted(at_ms=1, key="a", attempt=1),
        TrialPaused(at_ms=2, key="a", attempt=1, step=3, values={}),
    ]
    records = replay(events)
    assert why_waiting(records.trials["a"]) == "at rung 3 for its arm to be judged"
    assert why_waiting(records.trials["b"]) == "until its arm has passed the last rung"
    lost = replay([
        ArmProposed(at_ms=1, arm=0, proposal=0, values={}, keys={"a": 0}, steps=9),
        TrialStarted(at_ms=1, key="a", attempt=1),
        TrialEnded(at_ms=2, key="a", attempt=1, state="waiting", step=0, reason="its worker died", cause="worker"),
    ])  # fmt: skip
    assert why_waiting(lost.trials["a"]) == "for a free worker, to be tried again"


def test_watching_ends_with_the_study() -> None:
    files = fabricate([({"lr": 1e-3}, ["running"])], ended=None)
    lock, console = (
        FileLock(files.lock),
        Console(file=io.StringIO(), force_terminal=True, width=100, height=20),
    )
    lock.acquire()

    def end(_: float) -> None:
        journal = Journal(files.journal)
        journal.append(
            TrialEnded(at_ms=9, key="0" * 16, attempt=1, state="completed", step=12),
            StudyEnded(at_ms=9, state="completed"),
        )
        journal.close()
        lock.release()

    assert watch(files, console, sleep=end) == "completed"


def test_a_pipe_is_refused_with_a_hint(invoke: Invoke) -> None:
    fabricate()
    code, stdout, stderr = invoke("status", "--watch")
    assert (code, stdout) == (2, "")
    assert "gan-sweep status made --json" in stderr


def test_flags_are_a_column_where_there_are_any(invoke: Invoke) -> None:
    files = fabricate([({"lr": 1e-3}, ["running"])], ended=None)
    assert "flags" not in invoke("status")[1]
    journal = Journal(files.journal)
    flags = [("jump", 1, 2, "the loss doubled")]
    journal.append(
        TrialReported(at_ms=9, key="0" * 16, attempt=1, step=12, rows=[], pictures=[], flags=flags)
    )
    journal.close()
    stdout = invoke("status")[1]
    assert "flags" in stdout
    assert "jump" in stdout
