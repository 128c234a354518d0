"""Studies of one home take turns: by priority, then by time, and never more than the machine has."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator import turns
from orchestrator.machine import Machine, Slots
from orchestrator.turns import Ticket, tickets, turn, waiting_words, why_wait

MACHINE = Machine(cpus=4, gpus=1)
MINE = Ticket(study="mine", priority=0, since=5.0, cpus=2, gpus=0, pid=1, born=0.0)

one = st.builds(
    Ticket, study=st.sampled_from("abc"), priority=st.integers(-2, 2), since=st.floats(0, 9),
    cpus=st.sampled_from([1, 2, 4]), gpus=st.sampled_from([0, 0.5, 1]), pid=st.just(2), born=st.just(0.0),
    running=st.booleans(),
)  # fmt: skip


@given(waiting=st.lists(one.map(lambda t: replace(t, running=False)), min_size=1, max_size=5))
def test_of_those_that_wait_for_a_free_machine_exactly_the_first_may_begin(waiting: list[Ticket]) -> None:
    ranks = [ticket.rank for ticket in waiting]
    may = [t for i, t in enumerate(waiting) if why_wait(t, waiting[:i] + waiting[i + 1 :], MACHINE) is None]
    assert {t.rank for t in may} == {min(ranks)}


@given(running=st.lists(one.map(lambda t: replace(t, running=True)), min_size=1, max_size=3), mine=one)
def test_nobody_begins_who_needs_more_than_is_free(running: list[Ticket], mine: Ticket) -> None:
    fits = all(
        not getattr(mine, kind) or getattr(mine, kind) + sum(getattr(t, kind) for t in running) <= there
        for kind, there in (("cpus", 4), ("gpus", 1))
    )
    assert (why_wait(mine, running, MACHINE) is None) == fits


def test_a_study_that_needs_more_than_there_is_begins_when_it_is_alone() -> None:
    assert why_wait(replace(MINE, cpus=9), [], MACHINE) is None


def test_the_reason_names_what_is_waited_for() -> None:
    other = replace(MINE, study="big", cpus=3, running=True)
    assert why_wait(MINE, [other], MACHINE) == "needs 2 cores, 1 of 4 are free: big is running"
    urgent = replace(MINE, study="urgent", priority=3, since=9.0)
    assert why_wait(MINE, [urgent], MACHINE) == "urgent goes first (priority 3)"


def test_a_second_study_begins_when_the_first_is_done_and_its_reason_can_be_asked_for(
    private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "POLL_S", 0.01)
    granted = Slots(cpu=1, gpu=0, count=4)
    foreign = Ticket(
        study="first", priority=0, since=1.0, cpus=4, gpus=0, pid=os.getppid(), running=True,
        born=psutil.Process(os.getppid()).create_time(),
    )  # fmt: skip
    (private_home / "turns").mkdir(parents=True)
    path = private_home / "turns" / "first.json"
    turns._write(path, foreign)
    said, began = io.StringIO(), threading.Event()

    def run() -> None:
        with turn("second", 0, granted, MACHINE, Console(file=said, width=200)):
            began.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not said.getvalue():
        time.sleep(0.01)
    assert not began.is_set()
    assert waiting_words("second", MACHINE) == "needs 4 cores, 0 of 4 are free: first is running"
    assert waiting_words("first", MACHINE) is None
    path.unlink()
    thread.join(10)
    assert began.is_set()
    assert tickets() == []


def test_a_study_that_does_not_wait_is_seen_by_others_and_one_that_is_given_up_waits_no_longer(
    private_home: Path,
) -> None:
    granted, quiet = Slots(cpu=1, gpu=0, count=4), Console(quiet=True)
    with turn("first", 0, granted, MACHINE, quiet), turn("now", 0, granted, MACHINE, quiet, wait=False):
        assert {(ticket.study, ticket.running) for ticket in tickets()} == {("first", True), ("now", True)}
        with turn("stopped", 0, granted, MACHINE, quiet, given_up=lambda: True):
            pass


def test_a_ticket_whose_process_is_gone_or_another_one_counts_for_nothing(private_home: Path) -> None:
    (private_home / "turns").mkdir(parents=True)
    turns._write(private_home / "turns" / "a.json", replace(MINE, pid=os.getpid(), born=1.0))
    (private_home / "turns" / "b.json").write_text("{torn")
    assert tickets() == []
