"""What a study would run, before anything runs. Pure but for a look at the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Group
from rich.table import Table

from orchestrator import arms
from orchestrator.errors import UsageError
from orchestrator.machine import slots, this_machine
from orchestrator.study import StudySpec
from trials.datasets import DATASETS

SHOWN_ARMS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`arms` are the labels of a grid's arms; a search proposes its own. `problem`: why it cannot run here."""

    study: str
    model: str
    dataset: str
    n_images: int
    sampler: str
    n_arms: int
    seeds: list[int]
    n_trials: int
    steps: list[int]
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
    steps = sorted({arms.trial_spec(study, point, study.seeds[0], "").steps for point in points or [{}]})
    n_trials = n_arms * len(study.seeds)
    try:
        at_once, problem = slots(study.resources, machine, n_trials).count, None
    except UsageError as error:
        at_once, problem = 0, str(error)
    info = DATASETS[study.dataset.name]
    return Plan(
        study=study.name,
        model=study.model,
        dataset=study.dataset.name,
        n_images=min(info.n_images, study.dataset.limit or info.n_images),
        sampler=study.search.sampler,
        n_arms=n_arms,
        seeds=list(study.seeds),
        n_trials=n_trials,
        steps=steps,
        at_once=at_once,
        cpus=machine.cpus,
        gpus=machine.gpus,
        arms=[arms.label(point) for point in points],
        problem=problem,
    )


def plan_table(plan: Plan) -> Group:
    """The plan for people."""
    facts = Table.grid(padding=(0, 2))
    steps = " to ".join(f"{s:,}" for s in dict.fromkeys((plan.steps[0], plan.steps[-1])))
    for name, words in (
        ("study", plan.study),
        ("model", plan.model),
        ("dataset", f"{plan.dataset}, {plan.n_images:,} images"),
        ("arms", f"{plan.n_arms} ({plan.sampler})"),
        ("seeds", " ".join(map(str, plan.seeds))),
        ("trials", f"{plan.n_trials}, each of {steps} steps"),
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
