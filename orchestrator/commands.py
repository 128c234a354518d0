"""What report, compare, export and sample answer; cli.py prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.status import find_study


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`json`: plain values for `--json`. For people `lines`, `tables` of rows and `files`; `notes` go to stderr."""

    json: object
    lines: Sequence[str] = ()
    tables: Sequence[Sequence[dict[str, object]]] = ()
    files: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()


def report(study: str | None, out: Path | None) -> Answer:
    """Write the report of a study; by default into its own directory."""
    from orchestrator.report import write_report

    written = write_report(find_study(study), out)
    files = {"html": written.html, "markdown": written.markdown}
    return Answer(
        json={**written.summary, "files": {name: str(path) for name, path in files.items()}},
        lines=written.answer,
        files=files,
    )


def compare(names: Sequence[str], html: Path | None) -> Answer:
    """Studies or trials side by side; with `html` as a page too."""
    from orchestrator.comparison import compare_all, write_page

    compared = compare_all(names)
    files = {"html": write_page(compared, html)} if html else {}
    differences = compared.difference_rows()
    return Answer(
        json={**compared.to_json(), "files": {name: str(path) for name, path in files.items()}},
        lines=[f"{compared.objective.metric} ({compared.objective.mode})"],
        tables=[compared.rows(), *([differences] if differences else [])],
        files=files,
        notes=[compared.warning] if compared.warning else [],
    )


def export(study: str | None, out: Path, format: Literal["csv", "parquet"]) -> Answer:
    """Write a study's tables to the directory `out`."""
    from orchestrator.export import export as write

    files = write(find_study(study), out, format)
    return Answer(json={name: str(path) for name, path in files.items()}, files=files)


def sample(
    target: str | None,
    *,
    trial: str | None,
    n: int,
    seed: int,
    label: int | None,
    out: Path,
    raw: bool,
) -> Answer:
    """Images of a checkpoint, or of a study's best trial, to `out`."""
    from orchestrator.sampling import draw, find_source, targets, write

    targets(out, n)  # refused before anything is drawn
    samples = draw(find_source(target, trial), n, seed, label=label, raw=raw)
    paths = write(samples, out)
    generator = "averaged generator" if samples.averaged else "generator"
    return Answer(
        json={
            "checkpoint": str(samples.checkpoint),
            "step": samples.step,
            "averaged": samples.averaged,
            "n": len(samples.images),
            "seed": seed,
            "class": label,
            "files": [str(path) for path in paths],
            "notes": list(samples.notes),
        },
        lines=[f"{samples.words}, step {samples.step:,}: {len(samples.images)} images of the {generator}"],
        files={"images": paths[0] if len(paths) == 1 else paths[0].parent},
        notes=samples.notes,
    )
