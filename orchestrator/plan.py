"""What a study would run, before anything runs. Pure but for a look at the machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models import Value
from orchestrator import arms
from orchestrator.arms import show
from orchestrator.costs import (
    WORKER_MB,
    Between,
    Kind,
    Prediction,
    between,
    dataset_mb,
    first_limit,
    free_space_mb,
    megabytes,
    space_problem,
    stretches,
    total,
)
from orchestrator.costs import duration as duration
from orchestrator.home import data_directory, home
from orchestrator.loader import refuse_facts
from orchestrator.machine import Machine, refusal, slots, this_machine
from orchestrator.study import (
    Dataset,
    StudySpec,
    evaluations,
    features,
    n_images,
    of_arm,
    total_steps,
    training_values,
    with_datasets,
)
from trials.datasets import DATASETS, count_images, find_folder, left_aside
from trials.errors import DatasetError

SHOWN_ARMS = 30


class Impossible(TypedDict):
    """An arm that can never run as the study asks, and why."""

    arm: str
    reason: str


class NamedArm(TypedDict):
    """`steps`: of every length that the space makes of it; none when they cannot be counted yet."""

    changes: dict[str, Value]
    steps: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`arms` are the labels of a grid's arms; a search proposes its own. `problem`: why it cannot run here.
    `impossible`: arms that can never run on it. `pack`: how trials share workers, in words; `kernels`: who multiplies
    matrices, and `prediction`: what the study will take, where it was measured. `share`: of all steps, how many pruning
    leaves, at least and at most. `limit`: which of the study's limits ends it first, in words. `free_mb`: on the disk
    of gan-sweep's home; `space`: why that is too little. `evaluations`: how many a trial has, and of what.
    `named`: what each named arm changes, and its steps. `uncounted`: some arm's length is in epochs of a folder
    whose images cannot be counted yet. `missing`: datasets that are not here, with where they were looked for,
    and pictures of kinds that are not read.
    """

    study: str
    models: list[str]
    datasets: list[str]
    sampler: str
    n_arms: int
    seeds: list[int]
    n_trials: int
    steps: list[int]
    uncounted: bool
    at_once: int
    cpus: int
    gpus: int
    arms: list[str]
    named: dict[str, NamedArm]
    missing: list[str]
    claims: int
    pack: list[str]
    kernels: str | None
    evaluations: list[str]
    share: Between
    prediction: Prediction | None
    limit: str | None
    memory_mb: float
    free_mb: float
    space: str | None
    impossible: list[Impossible]
    problem: str | None

    def to_json(self) -> dict[str, object]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        finite = {
            name: None if values[name] == math.inf else values[name] for name in ("memory_mb", "free_mb")
        }
        prediction = self.prediction and self.prediction.to_json()
        return {**values, **finite, "share": list(self.share), "prediction": prediction}


def make_plan(study: StudySpec, missing: Sequence[str] = (), *, measure: bool = False) -> Plan:
    """The plan of a study on this machine. `missing`: as `look_at_datasets` found it.

    `measure`: train a few steps to choose packs and to know what the study takes.
    """
    machine = this_machine()
    n_arms = arms.arm_count(study)
    points = arms.grid(study) if study.search.sampler == "grid" else []
    lengths = [_length(study, point) for point in points or _first_arms(study)]
    n_trials = n_arms * len(study.seeds)
    pack, kernels = ["auto: measured at submit"], None
    if study.execution.pack != "auto":
        pack = [str(study.execution.pack)]
    prediction, at_once, limit = None, 0, first_limit(study.limits, n_trials)
    impossible = _impossible(study, machine)
    n_impossible, problem = len(impossible), refusal(study.resources, machine)
    if problem is None and n_impossible == len(study.arms or [""]):
        problem = impossible[0]["reason"]
    if problem is None:
        granted = slots(study.resources, machine, n_trials)
        at_once = granted.count
        if measure:
            from orchestrator.execution import choose_packs
            from trials.kernels import probe_matmul

            probe = probe_matmul()
            kernels = "torch's own, as on every GPU" if granted.gpu else f"{probe.matmul} ({probe.words})"
            packing = choose_packs(study, granted, probe.matmul, measure_all=True)
            pack, prediction = list(packing.words), packing.prediction
            found = _unable(packing.kinds)
            impossible += found
            if packing.complete and found and all(not kind.fits for kind in packing.kinds):
                problem = found[0]["reason"]
            limit = prediction.limit if prediction else limit
    free_mb = free_space_mb()
    each = [of_arm(study, name) for name in study.arms] or [study]
    return Plan(
        study=study.name,
        models=list(dict.fromkeys(one.model for one in each)),
        datasets=list(dict.fromkeys(dataset_words(one) for one in each)),
        sampler=study.search.sampler,
        n_arms=n_arms,
        seeds=list(study.seeds),
        n_trials=n_trials,
        steps=_known(lengths),
        uncounted=None in lengths,
        at_once=at_once,
        cpus=machine.cpus,
        gpus=machine.gpus,
        arms=[arms.label(point) for point in points],
        named={
            name: NamedArm(
                changes=changes(study, name),
                steps=_known(
                    length
                    for point, length in zip(points or _first_arms(study), lengths, strict=True)
                    if point["arm"] == name
                ),
            )
            for name in study.arms
        },
        missing=list(missing),
        claims=len(study.claims),
        pack=pack,
        kernels=kernels,
        evaluations=list(dict.fromkeys(_evaluation_words(one) for one in each)),
        share=_share(study, n_arms, _known(lengths)),
        prediction=prediction,
        limit=limit,
        memory_mb=machine.memory_mb,
        free_mb=free_mb,
        space=space_problem(prediction, free_mb) if prediction else None,
        impossible=impossible,
        problem=problem,
    )


def _impossible(study: StudySpec, machine: Machine) -> list[Impossible]:
    """What can be known without trying: arms that ask for more than there is, and images larger than the memory."""
    each = {name: of_arm(study, name) for name in study.arms} or {study.model: study}
    wrong = refusal(study.resources, machine)
    found = []
    for name, mine in each.items():
        needed = WORKER_MB + dataset_mb(mine)
        large = (
            f"a worker with the images of {mine.dataset.source.label} takes {megabytes(needed)}, this machine has "
            f"{megabytes(machine.memory_mb)}"
        )
        if reason := wrong or (large if needed > machine.memory_mb else None):
            found.append(Impossible(arm=name, reason=reason))
    return found


def _unable(kinds: Sequence[Kind]) -> list[Impossible]:
    """What trying has shown."""
    found = {kind.arm: kind.problem for kind in kinds if kind.problem}
    return [Impossible(arm=arm, reason=reason) for arm, reason in found.items()]


def _share(study: StudySpec, n_arms: int, lengths: Sequence[int]) -> Between:
    """Of all steps, how many pruning leaves."""
    parts = stretches(study.prune, n_arms, len(study.seeds))
    low = high = 0.0
    for part in parts:
        steps = sum(max(0, min(n, part.end or n) - part.start) for n in lengths)
        low, high = low + part.share.low * steps, high + part.share.high * steps
    return Between(low, high).times(1 / sum(lengths)) if lengths else parts[-1].share


def look_at_datasets(study: StudySpec, source: Path, data_dir: Path | None) -> tuple[StudySpec, list[str]]:
    """The study with the images and classes of its folders counted, and what is not there, in words.

    Damaged files are counted too. Raises InvalidStudyError when the study does not fit what is there.
    """
    place, missing = data_directory(data_dir), dict[str, None]()

    def known(dataset: Dataset) -> Dataset:
        try:
            n_images, n_classes = count_images(
                dataset.source, data_dir=place, search_dirs=[source.absolute().parent]
            )
        except DatasetError as error:
            missing[f"not here yet: {error}"] = None
            return dataset
        if dataset.folder is not None:
            folder = find_folder(dataset.source, data_dir=place, search_dirs=[source.absolute().parent])
            missing.update(
                dict.fromkeys(f"{dataset.source.label}: left out: {line}" for line in left_aside(folder))
            )
        elif _to_download(dataset, place):
            files = place / DATASETS[dataset.name or ""].downloaded
            words = (
                f"not here yet: {dataset.name}; submit downloads it, unless its files are put into {files}"
            )
            missing[words] = None
        return dataset.model_copy(update={"n_images": n_images, "n_classes": n_classes})

    study = with_datasets(study, known)
    refuse_facts(study, source)
    return study, list(missing)


def _to_download(dataset: Dataset, place: Path) -> bool:
    files = DATASETS[dataset.name or ""].downloaded
    prepared = any((home() / "datasets").glob(f"{dataset.name}-*.json"))
    return bool(files) and not prepared and not any((place / files).glob("*"))


def _known(lengths: Iterable[int | None]) -> list[int]:
    return sorted({length for length in lengths if length is not None})


def changes(study: StudySpec, name: str) -> dict[str, Value]:
    """What the arm changes of the study, by the paths of its settings; nothing for a setting that it repeats."""
    arm, base = of_arm(study, name), study
    changes: dict[str, Value] = {} if arm.model == base.model else {"model": arm.model}
    if arm.dataset != base.dataset:
        changes["dataset"] = dataset_words(arm)
    for key, value in study.arms[name].train.model_dump(exclude_none=True).items():
        if value != getattr(base.train, key):
            changes[key] = value
    return changes | {k: v for k, v in arm.fixed.items() if base.fixed.get(k) != v}


def _first_arms(study: StudySpec) -> list[dict[str, Value]]:
    return [{"arm": name} for name in study.arms] or [{}]


def _length(study: StudySpec, point: Mapping[str, Value]) -> int | None:
    study = arms.resolved(study, point)
    return total_steps(study, training_values(study, point))


def _evaluation_words(study: StudySpec) -> str:
    count, n = evaluations(study), n_images(study)
    if not count:
        return "none"
    kind = {
        "classifier": "a classifier trained on its labels",
        "imagenet": "an ImageNet network",
        "random": "an untrained network",
    }[features(study)]
    samples = arms.eval_samples(study, n) if n is not None else study.evaluate.samples
    of = "half as many images as there are" if samples is None else f"{samples:,} images"
    return f"{count} a trial, each of {of} in the features of {kind}"


def dataset_words(study: StudySpec) -> str:
    n = n_images(study)
    dataset = study.dataset
    averaged = f", averaged down to {dataset.size}x{dataset.size}" if dataset.stored != dataset.size else ""
    words = dataset.source.label + (averaged if dataset.stored else "")
    # Of a folder the files are counted, damaged ones included.
    return words + (
        ", images not counted yet" if n is None else f", {n:,} image{' file' if dataset.folder else ''}s"
    )


def plan_table(plan: Plan) -> Group:
    """The plan for people."""
    facts = Table.grid(padding=(0, 2))
    steps = _steps_words(plan.steps)
    if plan.uncounted:
        steps += f"{' or ' if steps else ''}as many epochs of a folder that is not here to be counted"
    for name, words in (
        ("study", plan.study),
        ("model", ", ".join(plan.models)),
        ("dataset", "\n".join(plan.datasets)),
        ("arms", f"{plan.n_arms} ({plan.sampler})"),
        ("seeds", " ".join(map(str, plan.seeds))),
        ("trials", f"{plan.n_trials}, each of {steps}"),
        ("at once", f"{plan.at_once} (this machine has {plan.cpus} cores and {plan.gpus} GPUs)"),
    ):
        facts.add_row(name, words)
    if plan.claims:
        facts.add_row("claims", f"{plan.claims}, judged by gan-sweep report")
    facts.add_row("evaluations", "\n".join(plan.evaluations))
    facts.add_row("packs", "\n".join(plan.pack))
    if plan.kernels is not None:
        facts.add_row("kernels", plan.kernels)
    if plan.share.low < 1:
        facts.add_row("pruning", f"leaves {between(plan.share, '{:.0%}'.format)} of all steps")
    if plan.prediction is not None:
        for name, words in _prediction_rows(plan.prediction, plan):
            facts.add_row(name, words)
    if plan.limit is not None:
        facts.add_row("limit", plan.limit)
    parts: list[RenderableType] = [facts]
    if plan.impossible:
        cannot = Table("arm", "can never run, as", style="red")
        for one in plan.impossible[:SHOWN_ARMS]:
            cannot.add_row(one["arm"], one["reason"])
        parts.append(cannot)
    if plan.space is not None:
        parts.append(Text(plan.space, style="red"))
    if plan.named:
        parts.append(_named_arms(plan))
    if len(plan.arms) > len(plan.named):  # else the named arms are all there is
        table = Table("hyperparameters")
        if plan.named:
            table.title = "every named arm at every point of the space"
        for label in plan.arms[:SHOWN_ARMS]:
            table.add_row(label)
        if len(plan.arms) > SHOWN_ARMS:
            table.add_row(f"and {len(plan.arms) - SHOWN_ARMS} more")
        parts.append(table)
    parts += [Text(words, style="yellow") for words in plan.missing]
    return Group(*parts)


def _prediction_rows(prediction: Prediction, plan: Plan) -> list[tuple[str, str]]:
    """Time, memory and disk for people."""
    seconds, disk = prediction.seconds, prediction.disk_mb
    time = f"about {between(prediction.time_s, duration)}: " + ", ".join(
        f"{what} {between(s, duration)}" for what, s in seconds.items()
    )
    if prediction.left_out:
        time += f"; without {' and '.join(prediction.left_out)}"
    has = "" if plan.memory_mb == math.inf else f" (this machine has {megabytes(plan.memory_mb)})"
    memory = (
        f"{megabytes(prediction.memory_mb)} at once{has}: a worker {megabytes(prediction.worker_mb)}, of which a trial "
        f"{megabytes(prediction.trial_mb)}"
    )
    if prediction.memory_mb > plan.memory_mb:
        memory += "; too much: let fewer run with resources.at_once"
    if prediction.gpu_mb is not None:
        memory += f"; on GPUs {megabytes(prediction.gpu_mb)} at once"
    free = "" if plan.free_mb == math.inf else f" ({megabytes(plan.free_mb)} are free)"
    most = megabytes(prediction.most_disk_mb)
    space = f"{between(total(disk.values()), megabytes)} in the end, at most {most}{free}: "
    return [
        ("time", time),
        ("memory", memory),
        ("disk", space + ", ".join(f"{what} {between(mb, megabytes)}" for what, mb in disk.items())),
    ]


def _named_arms(plan: Plan) -> Table:
    table = Table("arm", "changes")
    differ = len({tuple(arm["steps"]) for arm in plan.named.values()}) > 1
    if differ:
        table.add_column("length", justify="right")
    for name, arm in plan.named.items():
        words = [f"{key} {show(value)}" for key, value in arm["changes"].items()]
        table.add_row(
            name,
            ", ".join(words) or "nothing",
            *([_steps_words(arm["steps"]) or "not known"] if differ else []),
        )
    return table


def _steps_words(steps: Sequence[int]) -> str:
    """`6,000 steps`, or `6,000 to 9,000 steps`; nothing when none are known."""
    ends = dict.fromkeys((*steps[:1], *steps[-1:]))
    return " to ".join(f"{n:,}" for n in ends) + (" steps" if ends else "")
