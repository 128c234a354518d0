"""Studies and trials side by side: values, intervals, and the hyperparameters in which they differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from models import Value
from orchestrator import arms, charts
from orchestrator.charts import ArmCurves
from orchestrator.embed import Embedder
from orchestrator.errors import UsageError
from orchestrator.findings import FLOORS
from orchestrator.pages import page
from orchestrator.reading import Reading, Series, read_study
from orchestrator.records import TrialRecord
from orchestrator.stats import Comparison, compare, interval
from orchestrator.status import find_study
from orchestrator.study import Objective
from orchestrator.views import colour, number
from trials.options import switched_on
from trials.reports import EVAL_METRICS, State
from trials.spec import TrialSpec

CURVES = {
    "train/g_loss": "Generator's loss",
    "train/d_loss_mean": "Discriminator's loss",
    "train/w_dist": "Critic's distance",
    "train/d_acc": "Discriminator's accuracy",
}
IN_PIXELS = ("swd", "row_", "checkerboard", "spectrum")
IN_FEATURES = tuple(f"eval/{name}" for name in EVAL_METRICS if not name.startswith(IN_PIXELS))
"""Metrics that depend on the features images are compared in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A trial, or the best arm of a study with all of its seeds. `facts`: everything that decides what it computes,
    the seed excepted; `digest`: of its dataset, and `judge`, the network that evaluations compare images in: empty
    where the submit did not record them; `curves`: for each seed."""

    name: str
    label: str
    objective: Objective
    by_seed: Mapping[int, float]
    floor: float | None
    spec: TrialSpec
    digest: str
    judge: str
    facts: Mapping[str, Value]
    states: str
    lost: int
    """Trials that ended without a value."""
    curves: Sequence[Mapping[str, Series]]
    picture: Path | None

    @property
    def mean(self) -> float | None:
        return sum(self.by_seed.values()) / len(self.by_seed) if self.by_seed else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        return interval(list(self.by_seed.values()))

    @property
    def images(self) -> str:
        """The images it is judged on, in words."""
        spec = self.spec
        words = [spec.dataset]
        words += [f"averaged to {spec.size}"] if spec.size else []
        words += [f"the first {spec.limit:,}"] if spec.limit else []
        words += [f"{spec.hold_out:,} held out"] if spec.hold_out else []
        return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The items in the order asked for, each against the best; `differ`: hyperparameter -> one value an item, in
    words. `warning`: why values do not compare although they are of one metric; `best` is None and `against` empty
    then."""

    objective: Objective
    items: Sequence[Item]
    against: Mapping[str, Comparison]
    best: str | None
    differ: Mapping[str, Sequence[str]]
    warning: str

    def to_json(self) -> dict[str, object]:
        return {
            "metric": self.objective.metric,
            "mode": self.objective.mode,
            "best": self.best,
            "warning": self.warning,
            "items": [
                {
                    "name": item.name,
                    "arm": item.label,
                    "mean": item.mean,
                    "interval": list(item.bounds) if item.bounds else None,
                    "by_seed": {str(seed): value for seed, value in item.by_seed.items()},
                    "floor": item.floor,
                    "judged_by": item.judge,
                    "states": item.states,
                    "against_best": self.words(item),
                }
                for item in self.items
            ],
            "differences": {name: list(values) for name, values in self.differ.items()},
        }

    def words(self, item: Item) -> str:
        if item.name == self.best:
            return "best"
        if self.warning:
            return "not compared"
        found = self.against.get(item.name)
        return found.words if found else "no value"

    def rows(self) -> list[dict[str, object]]:
        """A line an item, for a table."""
        return [
            {
                "": item.name,
                "arm": item.label,
                self.objective.metric: item.mean,
                "95 % interval": " to ".join(map(number, item.bounds)) if item.bounds else "",
                "floor": item.floor,
                "trials": item.states,
                "against the best": self.words(item),
            }
            for item in self.items
        ]

    def difference_rows(self) -> list[dict[str, object]]:
        """A line a hyperparameter that differs, a column an item."""
        names = [item.name for item in self.items]
        return [{"": key, **dict(zip(names, values, strict=True))} for key, values in self.differ.items()]


def compare_all(names: Sequence[str]) -> Compared:
    """Compare studies (their best arms) and trials (STUDY:NUMBER), by their names or unique prefixes.

    Raises UsageError when they are judged by different objectives, numbers of images or features.
    """
    if len(names) < 2:
        raise UsageError("name two or more studies, or trials as STUDY:NUMBER")
    read: dict[Path, Reading] = {}
    items = [_item(name, read) for name in names]
    unique = {item.name: item for item in items}
    if len(unique) < 2:
        raise UsageError(f"{names[0]} and {names[1]} are the same; name two different studies or trials")
    items = list(unique.values())
    _refuse_different_judges(items)
    objective = items[0].objective
    values = {item.name: item.by_seed for item in items if item.by_seed}
    sign = 1 if objective.mode == "min" else -1
    ranked = sorted(
        (item for item in items if item.by_seed), key=lambda i: (i.lost > 0, sign * (i.mean or 0.0))
    )
    warning = _warning(items)
    best = ranked[0].name if ranked and not warning else None
    against = compare(values, objective.mode, best=best) if best else []
    keys = dict.fromkeys(key for item in items for key in item.facts)
    shown = {key: [arms.show(item.facts.get(key, "-")) for item in items] for key in keys}
    return Compared(
        objective=objective,
        items=items,
        against={c.arm: c for c in against},
        best=best,
        differ={key: words for key, words in shown.items() if len(set(words)) > 1},
        warning=warning,
    )


def _item(text: str, read: dict[Path, Reading]) -> Item:
    name, colon, wanted = text.rpartition(":")
    files = find_study(name if colon else text)
    if files.root not in read:
        read[files.root] = read_study(files)
    reading = read[files.root]
    if colon:
        return _trial_item(reading, wanted)
    standing = next(iter(reading.standings), None)
    if standing is None:
        raise UsageError(f"study {files.name} has no arm yet")
    trial = standing.best_trial or max(standing.arm.trials, key=lambda t: t.step)
    lost = "".join(f", {state} {n}" for state, n in standing.losses.items())
    return _made(
        reading, files.name, standing.values, standing.arm.trials, trial, dict(standing.by_seed),
        f"{standing.completed}/{standing.seeds} completed{lost}",
    )  # fmt: skip


def _trial_item(reading: Reading, wanted: str) -> Item:
    trials = list(reading.records.trials.values())
    if not wanted.isdecimal() or int(wanted[:9]) >= len(trials):
        study, last = reading.files.name, len(trials) - 1
        raise UsageError(f"study {study} has trials 0 to {last}; write {study}:0 (got {wanted!r})")
    trial = trials[int(wanted)]
    value = trial.value(reading.study.objective) if trial.state is State.COMPLETED else None
    values = reading.records.arms[trial.arm].values
    by_seed = {} if value is None else {trial.seed: value}
    name = f"{reading.files.name}:{trial.number}"
    return _made(reading, name, values, [trial], trial, by_seed, reading.trial_state(trial).value)


def _made(
    reading: Reading,
    name: str,
    values: Mapping[str, Value],
    trials: Sequence[TrialRecord],
    shown: TrialRecord,
    by_seed: Mapping[int, float],
    states: str,
) -> Item:
    spec = arms.trial_spec(reading.study, values, shown.seed, "")
    facts: dict[str, Value] = {"model": spec.model, "dataset": spec.dataset, "steps": spec.steps}
    facts |= {"images": spec.limit} if spec.limit else {}
    facts |= {"held out": spec.hold_out} if spec.hold_out else {}
    facts |= {"averaged to": spec.size} if spec.size else {}
    source = arms.resolved(reading.study, values).dataset.source
    digest, judge = reading.recorded("gan_sweep.dataset_digests").get(str(source), ""), reading.judge(spec)
    facts |= {"digest of the dataset": digest[:16]} if digest else {}
    facts |= {"judged by": judge} if judge else {}
    facts |= switched_on(spec.training) | switched_on(spec.model_params)
    floor = FLOORS.get(reading.study.objective.metric, "")
    return Item(
        name=name,
        label=arms.label(values),
        objective=reading.study.objective,
        by_seed=by_seed,
        floor=next((t.latest[floor] for t in trials if floor in t.latest), None),
        spec=spec,
        digest=digest,
        judge=judge,
        facts=facts,
        states=states,
        lost=sum(t.state.is_final and t.state is not State.COMPLETED for t in trials),
        curves=[reading.curves.get(trial.key, {}) for trial in trials],
        picture=reading.sample_grid(shown),
    )


def _warning(items: Sequence[Item]) -> str:
    """Why values do not compare, as they are of different images; empty where they do."""
    if not items[0].objective.metric.startswith("eval/"):
        return ""
    if all(_have_the_same_images(a, b) for a, b in combinations(items, 2)):
        return ""
    words = list(dict.fromkeys(item.images for item in items))
    if len(words) < len({(item.images, item.digest) for item in items}):  # one name, other contents
        words = list(dict.fromkeys(f"{i.images}, SHA-256 {i.digest[:8] or 'not recorded'}" for i in items))
    return f"they are judged on different images ({'; '.join(words)}), so that their values do not compare"


def _have_the_same_images(a: Item, b: Item) -> bool:
    """By the digests of the datasets; by their names where one is not recorded."""
    same = a.digest == b.digest if a.digest and b.digest else a.spec.dataset == b.spec.dataset
    chosen = ((one.spec.size, one.spec.limit, one.spec.hold_out) for one in (a, b))
    return same and len(set(chosen)) == 1


def _refuse_different_judges(items: Sequence[Item]) -> None:
    """Every two of them: what one has not recorded is not compared with it."""
    for first, item in combinations(items, 2):
        a, b = first.objective, item.objective
        if a != b:
            raise UsageError(
                f"{first.name} is judged by {_goal(a)}, {item.name} by {_goal(b)}: there is no common value to compare"
            )
        if not a.metric.startswith("eval/"):
            continue
        if first.spec.eval_samples != item.spec.eval_samples:
            raise UsageError(
                f"{first.name} is judged with {first.spec.eval_samples:,} images, {item.name} with "
                f"{item.spec.eval_samples:,}: distances at different numbers of images do not compare "
                "(evaluate.samples)"
            )
        if a.metric in IN_FEATURES and first.spec.features != item.spec.features:
            raise UsageError(
                f"{first.name} is judged in the features of {first.spec.features}, {item.name} of "
                f"{item.spec.features}: {a.metric} in different features does not compare (evaluate.features)"
            )
        networks = [one.judge.partition(",")[0] for one in (first, item)]
        if (
            a.metric in IN_FEATURES
            and all(networks)
            and networks[0] != networks[1]
            and _have_the_same_images(
                first, item
            )  # else it is a warning: each has the classifier of its own images
        ):
            raise UsageError(
                f"{first.name} is judged by {networks[0]}, {item.name} by {networks[1]}: {a.metric} in different "
                "features does not compare; submit the older study again under a new name"
            )


def _goal(objective: Objective) -> str:
    at = f" of the {objective.at} evaluation" if objective.metric.startswith("eval/") else ""
    return f"the {'lowest' if objective.mode == 'min' else 'highest'} {objective.metric}{at}"


def write_page(compared: Compared, path: Path) -> Path:
    """A page with curves overlaid and sample grids side by side."""
    embedder = Embedder()
    colours = {item.name: colour(i) for i, item in enumerate(compared.items)}
    figures, titles = {}, list[tuple[str, str]]()
    for metric, title in {**CURVES, compared.objective.metric: compared.objective.metric}.items():
        drawn = [
            ArmCurves(
                number=i,
                label=item.name,
                colour=colours[item.name],
                seeds=[curves[metric] for curves in item.curves if metric in curves],
            )
            for i, item in enumerate(compared.items)
        ]
        if any(arm.seeds for arm in drawn):
            name = metric.replace("/", "-")
            figures[name] = charts.curves(drawn, log=metric in FLOORS)
            titles.append((name, title))
    html = page(
        "comparison.html.j2",
        figures=figures,
        charts=titles,
        compared=compared,
        colours=colours,
        pictures={item.name: embedder.picture(item.picture, 530) for item in compared.items},
        number=number,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path
