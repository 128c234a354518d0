"""Running a submit in the background: a process of its own that outlives the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.home import StudyFiles, home
from orchestrator.status import load_records
from orchestrator.turns import tickets

POLL_S = 0.2
OURS = ("--detach", "--follow")
"""Options that are not the background process's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """The process, and where it writes. `code`: its exit code when it ended before the study began, or None."""

    pid: int
    log: Path
    code: int | None


def detach(study: str, arguments: Sequence[str]) -> Detached:
    """Start `gan-sweep ARGUMENTS` in the background; returns once the study runs or waits for its turn, or it ended."""
    began_ms = int(time.time() * 1000)
    directory = home() / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{study}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    command = [sys.executable, "-P", "-c", "from orchestrator.cli import main; main()"]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, *(word for word in arguments if word not in OURS)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    files = StudyFiles.of(study)
    while process.poll() is None:
        began = load_records(files).submitted_ms >= began_ms
        if began or any(ticket.pid == process.pid for ticket in tickets()):
            break
        time.sleep(POLL_S)
    process_code = process.poll()
    process.returncode = process.returncode or 0  # it is left to itself: Python must not warn of it
    return Detached(pid=process.pid, log=log, code=process_code)
