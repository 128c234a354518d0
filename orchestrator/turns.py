"""Whose turn it is: studies of one home share the machine, those of higher priority first.

A submit that runs or waits has a ticket, a file in HOME/turns that names its process. A ticket whose process is gone
counts for nothing. No study is interrupted for another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock
from rich.console import Console

from orchestrator.home import home
from orchestrator.machine import Machine, Slots

POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a submit takes or wants: `cpus` and `gpus` of all its slots together. `since`: seconds since 1970.

    `pid`, `born`: its process, and when that began, as numbers of processes are used again.
    """

    study: str
    priority: int
    since: float
    cpus: float
    gpus: float
    pid: int
    born: float
    running: bool = False

    @property
    def rank(self) -> tuple[int, float]:
        """Less goes first."""
        return -self.priority, self.since


def why_wait(mine: Ticket, others: Sequence[Ticket], machine: Machine) -> str | None:
    """Why it is not this ticket's turn, in words; None when it is.

    >>> big = Ticket(study="a", priority=0, since=1.0, cpus=2, gpus=0, pid=1, born=0.0, running=True)
    >>> why_wait(replace(big, study="b", since=2.0, running=False), [big], Machine(cpus=2, gpus=0))
    'needs 2 cores, 0 of 2 are free: a is running'
    """
    running = [ticket for ticket in others if ticket.running]
    before = min(
        (t for t in others if not t.running and t.rank < mine.rank), key=lambda t: t.rank, default=None
    )
    if before is not None:
        return f"{before.study} goes first (priority {before.priority})"
    for kind, needed, there in (("cores", "cpus", machine.cpus), ("GPUs", "gpus", machine.gpus)):
        wanted, taken = getattr(mine, needed), sum(getattr(ticket, needed) for ticket in running)
        if running and wanted and wanted > there - taken + 1e-9:
            names = ", ".join(ticket.study for ticket in running)
            verb = "is" if len(running) == 1 else "are"
            free = max(0.0, there - taken)
            return f"needs {wanted:g} {kind}, {free:g} of {there} are free: {names} {verb} running"
    return None


def tickets() -> list[Ticket]:
    """Those of all submits that run or wait in this home."""
    found = []
    for path in sorted((home() / "turns").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # one that is being written or taken away
            found.append(Ticket(**json.loads(path.read_text())))
    return [ticket for ticket in found if _is_alive(ticket)]


def waiting_words(study: str, machine: Machine) -> str | None:
    """Why a submitted study has not begun; None when it has, or nobody waits to run it."""
    there = tickets()
    mine = next((ticket for ticket in there if ticket.study == study and not ticket.running), None)
    if mine is None:
        return None
    return why_wait(mine, [ticket for ticket in there if ticket != mine], machine) or "about to begin"


@contextlib.contextmanager
def turn(
    study: str,
    priority: int,
    granted: Slots,
    machine: Machine,
    console: Console,
    *,
    wait: bool = True,
    given_up: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Wait until it is this study's turn, and have it until the end of the block. Says what is waited for.

    `wait`: or begin at once, which others see all the same. `given_up`: whether to wait no longer.
    """
    process = psutil.Process()
    mine = Ticket(
        study=study, priority=priority, since=time.time(), cpus=granted.cpu * granted.count,
        gpus=granted.gpu * granted.count, pid=process.pid, born=process.create_time(),
    )  # fmt: skip
    directory = home() / "turns"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{study}-{mine.pid}.json"
    try:
        said = None
        while True:
            with FileLock(directory / "lock"):
                others = [
                    ticket for ticket in tickets() if (ticket.pid, ticket.born) != (mine.pid, mine.born)
                ]
                words = why_wait(mine, others, machine) if wait and not given_up() else None
                mine = replace(mine, running=words is None)
                _write(path, mine)
            if words is None:
                break
            if words != said:
                console.print(f"waiting: {words}", style="yellow", highlight=False, soft_wrap=True)
                said = words
            time.sleep(POLL_S)
        yield
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, ticket: Ticket) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(ticket)))
    os.replace(temporary, path)


def _is_alive(ticket: Ticket) -> bool:
    try:
        return bool(abs(psutil.Process(ticket.pid).create_time() - ticket.born) < 1.0)
    except psutil.Error:
        return False
