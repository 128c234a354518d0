"""The report of a study: one HTML page that opens offline, and the same in Markdown."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator import arms, asked, charts, findings, plan, showcase
from orchestrator.charts import ArmCurves, Figure, Point
from orchestrator.embed import Embedder
from orchestrator.findings import FLOORS, ArmRow, count
from orchestrator.home import StudyFiles
from orchestrator.pages import page, render
from orchestrator.reading import Reading, read_study
from orchestrator.reproduce import recipe
from orchestrator.study import axes
from orchestrator.verdicts import Verdict, judge
from orchestrator.views import number
from trials.reports import EVAL_METRICS

MOST_CURVES = 10
"""Arms in a chart of curves: more cannot be told apart by colour."""

TRAINING: Mapping[str, str] = {
    "train/g_loss": "Generator's loss",
    "train/d_loss_mean": "Discriminator's loss",
    "train/w_dist": "Critic's distance",
    "train/gp": "Gradient penalty",
    "train/d_acc": "Discriminator's accuracy",
    "train/real_score": "Mean score of real images, D(x)",
    "train/fake_score": "Mean score of generated images, D(G(z))",
}
OF_A_CRITIC, NOT_OF_A_CRITIC = ("train/w_dist", "train/gp"), ("train/d_acc",)
LN2, HALF = (0.6931, "ln 2"), (0.5, "0.5")
REFERENCES = {"train/d_loss_mean": LN2, "train/g_loss": LN2, "train/d_acc": HALF}
"""Where a discriminator that cannot tell is."""
EVALUATIONS = (
    "fd", "kid", "precision", "recall", "density", "coverage", "class_tv", "modes", "class_fidelity", "swd",
    "nn_train_ratio", "memorisation", "d_holdout_gap", "row_jaggedness", "checkerboard", "spectrum_distance",
)  # fmt: skip
SECTIONS = {
    "asked": "What was asked",
    "leaderboard": "Leaderboard",
    "claims": "Claims",
    "pictures": "Pictures",
    "curves": "Curves",
    "search": "The space",
    "failures": "Failures",
    "resources": "Resources",
    "reproduce": "How to run it again",
}
STATE_WORDS = {
    "running": "Still running: what follows is what there is so far.",
    "waiting": "Not begun yet.",
    "stopped": "Stopped before its end: what follows is what there is so far.",
    "failed": "Ended with failed trials.",
    "completed": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Where a report lies, and what it says in short. `summary` is plain values, for `--json`."""

    html: Path
    markdown: Path
    n_bytes: int
    answer: tuple[str, ...]
    summary: dict[str, object]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure and the name under which the page places it."""

    name: str
    title: str
    figure: Figure
    words: str = ""


def write_report(files: StudyFiles, out: Path | None = None) -> Written:
    """Write index.html, report.md and its pictures to `out`, or to the directory `report` of the study."""
    directory = out or files.root / "report"
    content = Content.of(read_study(files))
    html = content.html()
    directory.mkdir(parents=True, exist_ok=True)
    pictures = showcase.write_pictures(content.reading, content.rows, directory)
    markdown = content.markdown(pictures)
    for name, text in (("index.html", html), ("report.md", markdown)):
        temporary = directory / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, directory / name)
    return Written(
        html=directory / "index.html",
        markdown=directory / "report.md",
        n_bytes=len(html.encode()),
        answer=tuple(content.answer),
        summary=content.summary(),
    )


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the report says, before it is a page."""

    reading: Reading
    rows: Sequence[ArmRow]
    verdicts: Sequence[Verdict]
    answer: Sequence[str]

    @classmethod
    def of(cls, reading: Reading) -> Content:
        rows = findings.arm_rows(reading)
        verdicts = judge(reading.study, reading.records, reading.curves)
        words = [verdict.verdict for verdict in verdicts]
        counted = {word: words.count(word) for word in ("supported", "contradicted", "undecided")}
        answer = findings.answer(reading, rows, counted)
        return cls(reading=reading, rows=rows, verdicts=verdicts, answer=answer)

    def html(self) -> str:
        """The page."""
        parts = [chart for part in ("training", "evaluations", "search") for chart in self.context[part]]
        return page("report.html.j2", figures={chart.name: chart.figure for chart in parts}, **self.context)

    def markdown(self, pictures: Sequence[tuple[str, str]]) -> str:
        """The same without charts; `pictures`: title and relative path."""
        return render("report.md.j2", pictures=pictures, **self.context)

    @cached_property
    def context(self) -> dict[str, Any]:
        """Everything that the templates show."""
        reading, study, embedder = self.reading, self.reading.study, Embedder()
        uses = findings.uses(reading)
        search = self._search()
        absent = {"claims": not self.verdicts, "search": not search}
        updated = datetime.fromtimestamp(reading.records.updated_ms / 1000, UTC)
        return {
            "name": study.name,
            "study": study,
            "state": reading.state,
            "state_words": STATE_WORDS[reading.state],
            "answer": self.answer,
            "contents": [(name, title) for name, title in SECTIONS.items() if not absent.get(name)],
            "asked": asked.facts(reading),
            "space": {name: arms.axis_words(axis) for name, axis in study.space.items()},
            "named": asked.named_arms(study),
            "networks": asked.networks(reading),
            "rows": self.rows,
            "axis": findings.dots(self.rows, one_floor=not self.different_images),
            "different_images": findings.DIFFERENT_IMAGES if self.different_images else "",
            "ranked": findings.is_ranked(self.rows),
            "objective": study.objective,
            "objectives": study.objectives,
            "verdicts": self.verdicts,
            "strip": showcase.filmstrip(reading, self.rows, embedder),
            "sheets": showcase.sheets(reading, self.rows, embedder),
            "gallery": showcase.gallery(reading, self.rows, embedder),
            "embedder": embedder,
            "chips": [row for row in self._curved if any(curves for curves in self._curves(row))],
            "training": self._training(),
            "evaluations": self._evaluations(),
            "search": search,
            "why_no_importance": self._why_no_importance(),
            "failures": findings.failures(reading),
            "uses": uses,
            "total": {
                "trials": sum(use.trials for use in uses),
                "run": plan.duration(sum(use.run_s for use in uses)),
                "busy": plan.duration(reading.busy_s),
                "submits": reading.submits,
            },
            "recipe": recipe(reading),
            "updated": f"{updated:%Y-%m-%d %H:%M} UTC" if reading.records.updated_ms else "its definition",
            "number": number,
            "duration": plan.duration,
            "count": count,
        }

    @cached_property
    def different_images(self) -> bool:
        """Whether the arms are judged on images of their own."""
        return findings.on_different_images(self.reading)

    @property
    def _curved(self) -> Sequence[ArmRow]:
        """The arms whose curves are drawn."""
        return self.rows[:MOST_CURVES]

    def _curves(self, row: ArmRow) -> list[dict[str, Any]]:
        return [self.reading.curves.get(trial.key, {}) for trial in row.standing.arm.trials]

    def _chart(self, metric: str, title: str, words: str = "") -> Chart | None:
        """The metric's curves; None when no arm has it."""
        of_arms = [
            ArmCurves(
                number=row.standing.arm.arm,
                label=row.label,
                colour=row.colour,
                seeds=[curves[metric] for curves in self._curves(row) if metric in curves],
            )
            for row in self._curved
        ]
        if not any(arm.seeds for arm in of_arms):
            return None
        figure = charts.curves(of_arms, reference=self._reference(metric), log=metric in FLOORS)
        if outside := charts.beyond(of_arms, figure["layout"]["yaxis"]):
            words = f"{words} cut off: {findings.listed(outside)}".strip()
        return Chart(metric.replace("/", "-"), title, figure, words)

    def _training(self) -> list[Chart]:
        critic = any("train/w_dist" in curves for curves in self.reading.curves.values())
        left_out = NOT_OF_A_CRITIC if critic else OF_A_CRITIC
        found = [self._chart(metric, title) for metric, title in TRAINING.items() if metric not in left_out]
        return [chart for chart in found if chart]

    def _evaluations(self) -> list[Chart]:
        wanted = [
            *(o.metric for o in self.reading.study.objectives),
            *(f"eval/{name}" for name in EVALUATIONS),
        ]
        names = [name for name in dict.fromkeys(wanted) if name.startswith("eval/")]
        found = [self._chart(name, name, EVAL_METRICS.get(name.removeprefix("eval/"), "")) for name in names]
        return [chart for chart in found if chart]

    def _reference(self, metric: str) -> tuple[float, str] | None:
        """A line for comparison: chance, or what real images reach where that is one value."""
        if metric in REFERENCES:
            critic = any("train/w_dist" in curves for curves in self.reading.curves.values())
            return None if critic else REFERENCES[metric]
        if self.different_images:
            return None
        floors = {
            s.finals[FLOORS[metric]] for s in self.reading.standings if FLOORS.get(metric, "") in s.finals
        }
        return (floors.pop(), "real images") if len({f"{floor:.4g}" for floor in floors}) == 1 else None

    @cached_property
    def _points(self) -> list[Point]:
        return [
            Point(
                number=row.standing.arm.arm,
                label=row.label,
                colour=row.colour,
                values=row.standing.values,
                mean=row.mean,
                seeds=list(row.by_seed.values()),
            )
            for row in self.rows
            if row.mean is not None
        ]

    def _search(self) -> list[Chart]:
        """Charts over the space; none where values do not compare, or there are fewer than two arms."""
        points, study = self._points, self.reading.study
        every, objective = axes(study), study.objective
        if len(points) < 2 or not every or self.different_images:
            return []
        # What only some arms have is shown by itself alone: elsewhere arms are compared in what all of them have.
        space = {name: axis for name, axis in every.items() if all(name in p.values for p in points)}
        found: list[tuple[str, Figure, str]] = []
        shares = charts.importance(points, space, objective.mode)
        if len(space) > 1:
            figure = charts.parallel(points, space, objective.metric, objective.mode)
            found.append(("Every arm, from its hyperparameters to its value", figure, "the best one thick"))
        if shares:
            title = "Importance: share of the arms' spread that each hyperparameter accounts for"
            found.append((title, charts.importances(shares), f"functional ANOVA of {len(points)} arms"))
        line = self._reference(objective.metric)
        for name, axis in every.items():
            having = [p for p in points if name in p.values]
            if having:
                lacking = len(points) - len(having)
                note = "each seed a dot" + (f"; {count(lacking, 'arm')} have no {name}" if lacking else "")
                figure = charts.slice_(having, name, axis, line=line)
                found.append((f"{objective.metric} by {name}", figure, note))
        order = sorted(space, key=lambda name: -(shares or {}).get(name, 0.0))
        for pair, figure in charts.contours(points, space, objective.mode, order).items():
            found.append((f"{objective.metric} over {pair}", figure, "means over seeds"))
        return [Chart(f"search-{i}", *parts) for i, parts in enumerate(found)]

    def _why_no_importance(self) -> str:
        n_axes, n_arms = len(axes(self.reading.study)), len(self._points)
        if n_axes == 1:
            return "With one hyperparameter there is no importance to share out."
        if n_axes > 1 and n_arms < charts.LEAST_ARMS:
            return f"Importance is left out: {count(n_arms, 'finished arm')} cannot tell it."
        return ""

    def summary(self) -> dict[str, object]:
        """The main results as plain values."""
        reading = self.reading
        return {
            "study": reading.study.name,
            "state": reading.state,
            "answer": " ".join(self.answer),
            "objective": reading.study.objective.model_dump(),
            "different_images": self.different_images,
            "arms": [
                {
                    "rank": row.rank,
                    "arm": row.label,
                    "values": dict(row.standing.values),
                    "mean": row.mean,
                    "interval": list(row.bounds) if row.bounds else None,
                    "by_seed": {str(seed): value for seed, value in row.by_seed.items()},
                    "verdict": row.verdict,
                    "more_seeds": row.more_seeds,
                    "losses": dict(row.standing.losses),
                    "floor": row.floor,
                }
                for row in self.rows
            ],
            "claims": [{"id": v.claim, "verdict": v.verdict, "reason": v.reason} for v in self.verdicts],
            "failures": [
                {
                    "trial": f.trial.name,
                    "key": f.trial.key,
                    "state": f.state,
                    "step": f.trial.step,
                    "reason": f.reason,
                }
                for f in findings.failures(reading)
            ],
            "trial_hours": sum(t.run_s for t in reading.records.trials.values()) / 3600,
        }
