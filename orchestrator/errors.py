"""Errors that the command line shows as one clear message.

GanSweepError           exit_code 1
├── InvalidStudyError   2  the study file has problems, all of them listed
├── UsageError          2  a command cannot do what was asked
└── UnreachableError    3  a cluster, tracking server or store does not answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GanSweepError(Exception):
    """Base class. The message says what was wrong and what would be right."""

    exit_code = 1


class UsageError(GanSweepError):
    """A command cannot do what was asked."""

    exit_code = 2


class UnreachableError(GanSweepError):
    """A cluster, tracking server or store does not answer."""

    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a study. `path` leads to it: ("space", "lr", "low"); () is the whole document."""

    path: tuple[str | int, ...]
    message: str


class InvalidStudyError(GanSweepError):
    """A study has problems. `lines` are all of them as `file:line:column: path: problem`."""

    exit_code = 2

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)
