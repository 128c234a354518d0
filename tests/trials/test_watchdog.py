"""A trial that makes no step for too long has its process ended, and says why."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trials.helpers import small_spec
from trials.reports import Assignment, Cause
from trials.watchdog import Watchdog, lost


def assignment_in(directory: Path, stall_s: float | None) -> Assignment:
    spec = small_spec()
    return Assignment(
        key=spec.key, attempt=1, spec=spec, directory=directory / "trial", images=directory, labels=directory,
        features=directory, checkpoint_every=2, stall_s=stall_s,
    )  # fmt: skip


HANG = """
import pickle, sys, time
from trials.watchdog import Watchdog

def hang(assignment, beats):
    watchdog = Watchdog([assignment])
    with watchdog:
        for _ in range(beats):
            watchdog.beat()
            time.sleep(0.1)
        time.sleep(0 if beats else 60)

hang(pickle.load(open(sys.argv[1], "rb")), int(sys.argv[2]))
"""


def run(assignment: Assignment, beats: int = 0) -> int:
    """The exit code of a process that is watched while it gets on so many times, or hangs."""
    path = assignment.directory.parent / "assignment"
    path.write_bytes(pickle.dumps(assignment))
    return subprocess.run(
        [sys.executable, "-c", HANG, str(path), str(beats)], timeout=50, check=False
    ).returncode


def test_a_hang_ends_the_process_and_leaves_a_note_with_where_it_hung(tmp_path: Path) -> None:
    assignment = assignment_in(tmp_path, stall_s=0.3)
    assert run(assignment) == 1
    outcome = lost(assignment, 7)
    assert (outcome.cause, outcome.step, outcome.reason) == (Cause.STALLED, 7, "made no step for 0.3 s")
    assert "in hang" in outcome.detail
    assert lost(assignment, 7).cause is Cause.WORKER  # the note is told once


@pytest.mark.parametrize("stall_s", [0.5, None])
def test_what_gets_on_is_left_alone(stall_s: float | None, tmp_path: Path) -> None:
    assert run(assignment_in(tmp_path, stall_s=stall_s), beats=10) == 0


def test_nothing_is_watched_outside_of_the_block(tmp_path: Path) -> None:
    watchdog = Watchdog([assignment_in(tmp_path, stall_s=0.05)])
    with watchdog:
        pass
    time.sleep(0.3)  # an idle worker waits for its next trial as long as it likes
    watchdog.close()
