"""Studies on disk that nobody trained: a definition, a journal and pictures, made in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from models import Value
from orchestrator.home import StudyFiles
from orchestrator.journal import (
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from orchestrator.testing import tiny_study
from trials.pictures import grid, write_png

Ends = Sequence[float | str]
"""For each seed the value it completed with, or the state it ended in; `running` never ends."""

Trials = Sequence[tuple[Mapping[str, Value], Ends]]

TWO_RATES: Trials = (
    ({"lr": 1e-3}, [0.30, 0.31, 0.29]),
    ({"lr": 1e-4}, [0.60, 0.62, 0.61]),
)
FLOOR = 0.1
HOUR = 3_600_000


def fabricate(
    trials: Trials = TWO_RATES,
    *,
    name: str = "made",
    ended: str | None = "completed",
    reason: str = "",
    detail: str = "",
    floors: Sequence[float] | None = None,
    pictures: bool = True,
    source: str = "",
    provenance: Mapping[str, str] = MappingProxyType({}),
    graded: Sequence[int] = (6, 12),
    **changes: Any,
) -> StudyFiles:
    """A study in the home of the test. Every trial takes an hour and is evaluated at steps 6 and 12.

    `trials`: of each arm its values, and how its seeds ended. `ended`: the study's last state; None while it runs or
    after its driver died. `reason`, `detail`: of what failed. `floors`: of each arm's images. `provenance`: more of it.
    `graded`: the steps of evaluations from the worst to the best. `changes`: of the definition.
    """
    study = tiny_study(
        name=name, seeds=list(range(max((len(ends) for _, ends in trials), default=1))), **changes
    )
    files = StudyFiles.of(name)
    files.root.mkdir(parents=True)
    files.definition.write_text(study.model_dump_json())
    if source:
        files.source.write_text(source)
    if not trials and ended is None:
        return files
    events: list[Event] = [StudyStarted(at_ms=HOUR, uid="u", provenance={**PROVENANCE, **provenance})]
    for number, (values, ends) in enumerate(trials):
        keys = {f"{number:08d}{seed:08d}": seed for seed in range(len(ends))}
        events.append(
            ArmProposed(at_ms=HOUR, arm=number, proposal=number, values=values, keys=keys, steps=12)
        )
        for key, end in zip(keys, ends, strict=True):
            if end == "waiting":
                continue
            floor = floors[number] if floors else FLOOR
            events.append(TrialStarted(at_ms=HOUR, key=key, attempt=1))
            value = end if isinstance(end, float) else 0.9
            rows = sorted(
                (step, _metrics(value * len(graded) / place, floor)) for place, step in enumerate(graded, 1)
            )
            drawn = (
                [("samples/fixed", step, f"samples/step_{step}.png") for step in (6, 12)] if pictures else []
            )
            for _, step, path in drawn:
                images = np.random.default_rng(step + number).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)
                write_png(files.trial(key) / path, grid(images))
            events.append(TrialReported(at_ms=HOUR, key=key, attempt=1, step=12, rows=rows, pictures=drawn))
            if end != "running":
                state = "completed" if isinstance(end, float) else str(end)
                why = {} if state == "completed" else {"reason": reason, "detail": detail}
                events.append(TrialEnded(at_ms=2 * HOUR, key=key, attempt=1, state=state, step=12, **why))
    if ended:
        events.append(StudyEnded(at_ms=2 * HOUR, state=ended))
    journal = Journal(files.journal)
    journal.append(*events)
    journal.close()
    return files


def _metrics(value: float, floor: float) -> dict[str, float]:
    return {
        "eval/fd": value, "eval/fd_floor": floor, "eval/recall": 0.5, "train/g_loss": 1.0, "train/d_loss_mean": 0.7,
        "train/d_acc": 0.6, "train/real_score": 0.6, "train/fake_score": 0.4, "perf/images_per_s": 1000.0,
    }  # fmt: skip


PROVENANCE = {
    "gan_sweep.dataset_digests": "{}", "gan_sweep.python": "3.11.7", "gan_sweep.machine": "x86_64 Linux, 2 cores",
    "mlflow.source.name": "gan-sweep submit made.yaml", "gan_sweep.version.torch": "2.15.0",
    "mlflow.source.git.commit": "0123456789abcdef", "gan_sweep.git_dirty": "true",
}  # fmt: skip
