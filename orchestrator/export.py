"""A study as tables for other programs: trials, metrics, leaderboard, claims; CSV or Parquet. The edge to pandas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import findings
from orchestrator.home import StudyFiles
from orchestrator.reading import Reading, read_study
from orchestrator.verdicts import judge
from orchestrator.views import number

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "parquet"]
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under fixed columns, which are there when there are no rows too."""

    columns: tuple[str, ...]
    rows: list[Row]


def export(files: StudyFiles, out: Path, format: Format = "csv") -> dict[str, Path]:
    """Write trials, metrics, leaderboard and claims of the study below `out`: name -> file."""
    tables = make_tables(read_study(files))
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, table in tables.items():
        path, temporary = out / f"{name}.{format}", out / f"{name}.{format}.tmp"
        frame = to_frame(table)
        if format == "csv":
            guarded(frame).to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
        os.replace(temporary, path)
        written[name] = path
    return written


def make_tables(reading: Reading) -> dict[str, Table]:
    """The tables as plain values."""
    return {
        "trials": _trials(reading),
        "metrics": _metrics(reading),
        "leaderboard": _leaderboard(reading),
        "claims": _claims(reading),
    }


def to_frame(table: Table) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(table.rows, columns=list(table.columns))


def guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before text that a spreadsheet would run as a formula. Numbers stay numbers."""

    def guard(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell

    texts = [name for name in frame.columns if not _is_number(frame[name])]
    return frame.assign(**{name: frame[name].map(guard, na_action="ignore") for name in texts})


def _is_number(column: pd.Series[Any]) -> bool:
    from pandas.api.types import is_numeric_dtype

    return bool(is_numeric_dtype(column))


def _table(rows: list[Row], first: tuple[str, ...]) -> Table:
    """`first`: columns that are always there; the others follow in the order in which they come up."""
    return Table(columns=tuple(dict.fromkeys((*first, *(name for row in rows for name in row)))), rows=rows)


def _trials(reading: Reading) -> Table:
    """One row a trial. Columns of an axis that has a column's own name get a leading `space.`."""
    fixed = (
        "trial", "key", "arm", "label", "seed", "state", "reason", "step", "steps", "attempts", "lost", "run_s",
        "objective", "value", "value_step",
    )  # fmt: skip
    objective, rows = reading.study.objective, list[Row]()
    for t in reading.records.trials.values():
        values = reading.records.arms[t.arm].values
        row: Row = {
            "trial": t.number, "key": t.key, "arm": t.arm, "label": t.label, "seed": t.seed,
            "state": reading.trial_state(t).value, "reason": t.reason, "step": t.step, "steps": t.steps,
            "attempts": t.attempts, "lost": t.lost, "run_s": t.run_s, "objective": objective.metric,
            "value": t.value(objective), "value_step": t.value_step(objective),
        }  # fmt: skip
        row |= {f"space.{name}" if name in fixed else name: value for name, value in values.items()}
        row |= {**t.finals(), **{k: v for k, v in t.latest.items() if not k.startswith("train/")}}
        for name, (low, low_step, high, high_step) in t.best.items():
            row |= {f"{name}.lowest": low, f"{name}.lowest_step": low_step}
            row |= {f"{name}.highest": high, f"{name}.highest_step": high_step}
        rows.append(row)
    return _table(rows, fixed)


def _metrics(reading: Reading) -> Table:
    """One row a value that was measured."""

    def found() -> Iterator[Row]:
        for t in reading.records.trials.values():
            for metric, (steps, values) in reading.curves.get(t.key, {}).items():
                about = {"trial": t.number, "key": t.key, "label": t.label, "seed": t.seed, "metric": metric}
                for step, value in zip(steps, values, strict=True):
                    yield {**about, "step": step, "value": value}

    return _table(list(found()), ("trial", "key", "label", "seed", "metric", "step", "value"))


def _leaderboard(reading: Reading) -> Table:
    fixed = (
        "rank", "arm", "label", "objective", "mean", "low", "high", "sd", "seeds", "completed", "lost", "verdict",
        "difference", "p", "more_seeds", "floor",
    )  # fmt: skip
    rows = []
    for r in findings.arm_rows(reading):
        s, c = r.standing, r.comparison
        row: Row = {
            "rank": r.rank, "arm": s.arm.arm, "label": r.label, "objective": reading.study.objective.metric,
            "mean": r.mean, "low": r.bounds[0] if r.bounds else None, "high": r.bounds[1] if r.bounds else None,
            "sd": s.sd, "seeds": s.seeds, "completed": s.completed, "lost": r.lost, "verdict": r.verdict,
            "difference": c.difference if c else None, "p": c.p if c else None, "more_seeds": r.more_seeds,
            "floor": r.floor,
        }  # fmt: skip
        row |= {f"space.{name}" if name in fixed else name: value for name, value in s.values.items()}
        rows.append(row | {name: value for name, value in s.finals.items()})
    return _table(rows, fixed)


def _claims(reading: Reading) -> Table:
    rows: list[Row] = [
        {
            "claim": v.claim, "says": v.says, "check": v.check, "verdict": v.verdict, "reason": v.reason,
            "holds": v.holds, "seeds": v.seeds,
            "figures": "; ".join(f"{n.quantity} = {number(n.mean)}" for n in v.numbers),
        }
        for v in judge(reading.study, reading.records, reading.curves)
    ]  # fmt: skip
    return _table(rows, ("claim", "says", "check", "verdict", "reason", "holds", "seeds", "figures"))
