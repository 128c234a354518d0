"""A real study that is killed and resumed three times, then extended by seeds and by steps: what each of it costs.

    python benchmarks/going_on.py studies/mnist5k_search.yaml > benchmarks/going_on.md

Works in gan-sweep's home. Each kill is SIGKILL to the driver and all of its workers, at a drawn moment. `steps again`:
steps that were reported before the kill and lie after the newest checkpoints, so that they are taken a second time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from _common import table, where

from orchestrator.home import StudyFiles
from orchestrator.loader import load_study
from orchestrator.records import Records
from orchestrator.status import load_records
from trials.kept import checkpoints
from trials.reports import State

GAN_SWEEP = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
KILLS = 3
ENDED = tuple(state for state in State if state.is_final)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """`gan-sweep ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [*GAN_SWEEP, *arguments], start_new_session=True, stdout=sys.stderr, stderr=sys.stderr
    )


def kill_after(process: subprocess.Popen[bytes], files: StudyFiles, more: int) -> None:
    """Kill the whole group once `more` trials have ended or been pruned since it began, and another one reports."""
    before = load_records(files).count(*ENDED)
    while process.poll() is None:
        records = load_records(files)
        running = [t for t in records.trials.values() if t.state is State.RUNNING and t.step]
        if records.submitted_ms and records.count(*ENDED) >= before + more and running:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    process.wait()


def steps_again(files: StudyFiles, records: Records) -> int:
    """Reported steps after the newest checkpoints of the trials that were running."""
    found = 0
    for trial in records.trials.values():
        if trial.state is State.RUNNING:
            kept = checkpoints(files.trial(trial.folder) / "checkpoints")
            found += trial.step - (int(kept[0].name.removeprefix("step_")) if kept else 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", default="0-3")
    parser.add_argument("--steps", default="2500")
    options = parser.parse_args()
    study = load_study(options.study, overrides=options.set)
    files, draws, rows = StudyFiles.of(study.name), random.Random(0), []
    changes = [word for change in options.set for word in ("--set", change)]

    def row(what: str, seconds: float, again: int | str) -> None:
        records = load_records(files)
        trials = records.trials.values()
        states = ", ".join(f"{records.count(s)} {s.value}" for s in State if records.count(s))
        attempts = sum(t.attempts for t in trials)
        steps = f"{sum(t.step for t in trials):,} of {sum(t.steps for t in trials):,}"
        rows.append([what, f"{seconds:.0f} s", states, attempts, steps, again])

    for i in range(KILLS):
        began = time.monotonic()
        process = start("submit", str(options.study), *changes) if i == 0 else start("resume", study.name)
        kill_after(process, files, draws.randint(2, 6))
        row(
            "submit, killed" if i == 0 else "resume, killed",
            time.monotonic() - began,
            steps_again(files, load_records(files)),
        )
    for what, arguments in (
        ("resume", ("resume", study.name)),
        ("extend --seeds", ("extend", study.name, "--seeds", options.seeds)),
        ("extend --steps", ("extend", study.name, "--steps", options.steps)),
        ("verify", ("verify", study.name)),
    ):
        began = time.monotonic()
        code = start(*arguments).wait()
        row(f"{what} (exit code {code})", time.monotonic() - began, "-")
    print(f"# {study.name}, killed and resumed {KILLS} times and extended\n\n{where()}\n")
    print(table(["command", "took", "trials", "attempts", "steps", "steps again"], rows))


if __name__ == "__main__":
    main()
