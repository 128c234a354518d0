"""What a study would run, before anything runs. Pure but for a look at the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from models import Value
from orchestrator import arms
from orchestrator.errors import UsageError
from orchestrator.home import data_directory
from orchestrator.machine import slots, this_machine
from orchestrator.study import (
    Dataset,
    StudySpec,
    n_images,
    of_arm,
    total_steps,
    training_values,
    with_datasets,
)
from trials.datasets import count_images

SHOWN_ARMS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`arms` are the labels of a grid's arms; a search proposes its own. `problem`: why it cannot run here.
    `uncounted`: some arm's length is in epochs of a folder whose images cannot be counted yet.
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
    problem: str | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def make_plan(study: StudySpec) -> Plan:
    """The plan of a study on this machine."""
    machine = this_machine()
    n_arms = arms.arm_count(study)
    points = arms.grid(study) if study.search.sampler == "grid" else []
    lengths = {_length(study, point) for point in points or _first_arms(study)}
    n_trials = n_arms * len(study.seeds)
    try:
        at_once, problem = slots(study.resources, machine, n_trials).count, None
    except UsageError as error:
        at_once, problem = 0, str(error)
    each = [of_arm(study, name) for name in study.arms] or [study]
    return Plan(
        study=study.name,
        models=list(dict.fromkeys(one.model for one in each)),
        datasets=list(dict.fromkeys(_dataset_words(one) for one in each)),
        sampler=study.search.sampler,
        n_arms=n_arms,
        seeds=list(study.seeds),
        n_trials=n_trials,
        steps=sorted(length for length in lengths if length is not None),
        uncounted=None in lengths,
        at_once=at_once,
        cpus=machine.cpus,
        gpus=machine.gpus,
        arms=[arms.label(point) for point in points],
        problem=problem,
    )


def counted(study: StudySpec, source: Path, data_dir: Path | None) -> StudySpec:
    """The study with the images of its folders counted, where they are there. Bad files are counted too."""
    place = data_directory(data_dir)

    def known(dataset: Dataset) -> Dataset:
        n = count_images(dataset.source, data_dir=place, search_dirs=[source.absolute().parent])
        return dataset if n is None else dataset.model_copy(update={"n_images": n})

    return with_datasets(study, known)


def _first_arms(study: StudySpec) -> list[dict[str, Value]]:
    return [{"arm": name} for name in study.arms] or [{}]


def _length(study: StudySpec, point: Mapping[str, Value]) -> int | None:
    study = arms.resolved(study, point)
    return total_steps(study, training_values(study, point))


def _dataset_words(study: StudySpec) -> str:
    n = n_images(study)
    return study.dataset.source.label + (", images not counted yet" if n is None else f", {n:,} images")


def plan_table(plan: Plan) -> Group:
    """The plan for people."""
    facts = Table.grid(padding=(0, 2))
    steps = " to ".join(f"{s:,}" for s in dict.fromkeys(plan.steps[:1] + plan.steps[-1:]))
    steps += " steps" if plan.steps else ""
    if plan.uncounted:
        steps += f"{' or ' if steps else ''}as many epochs of a folder that is not here to be counted"
    for name, words in (
        ("study", plan.study),
        ("model", ", ".join(plan.models)),
        ("dataset", "; ".join(plan.datasets)),
        ("arms", f"{plan.n_arms} ({plan.sampler})"),
        ("seeds", " ".join(map(str, plan.seeds))),
        ("trials", f"{plan.n_trials}, each of {steps}"),
        ("at once", f"{plan.at_once} (this machine has {plan.cpus} cores and {plan.gpus} GPUs)"),
    ):
        facts.add_row(name, words)
    table = Table()
    table.add_column("arm", justify="right")
    table.add_column("hyperparameters")
    for i, label in enumerate(plan.arms[:SHOWN_ARMS]):
        table.add_row(str(i), label)
    if len(plan.arms) > SHOWN_ARMS:
        table.add_row("...", f"and {len(plan.arms) - SHOWN_ARMS} more")
    return Group(facts, table) if plan.arms else Group(facts)
