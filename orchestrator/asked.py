"""What a study asks, for people: its facts, its space, its arms and its networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import models
from models import Value
from orchestrator import arms
from orchestrator.findings import count
from orchestrator.plan import changes, dataset_words
from orchestrator.reading import Reading
from orchestrator.study import StudySpec, image_shape, of_arm
from trials.options import switched_on
from trials.reports import EVAL_METRICS
from trials.spec import TrialSpec

MOST_MODELS = 4
FEATURES = {
    "classifier": "a classifier trained on the dataset's labels",
    "imagenet": "a network trained on photographs",
    "random": "an untrained network",
}


def facts(reading: Reading) -> list[tuple[str, str]]:
    """The facts of the study: what is trained on what, how long, and what makes an arm good."""
    study = reading.study
    each = [of_arm(study, name) for name in study.arms] or [study]
    steps = sorted({trial.steps for trial in reading.records.trials.values()})
    length = " to ".join(f"{n:,}" for n in dict.fromkeys((*steps[:1], *steps[-1:])))
    goal = [
        f"{'lowest' if o.mode == 'min' else 'highest'} {o.metric}"
        + (
            f" ({EVAL_METRICS[o.metric[5:]]})"
            if o.metric[5:] in EVAL_METRICS and o.metric.startswith("eval/")
            else ""
        )
        + (f", {'best' if o.at == 'best' else 'last'} evaluation" if o.metric.startswith("eval/") else "")
        for o in study.objectives
    ]
    found = [
        ("model", "; ".join(dict.fromkeys(f"{one.model} ({models.preset(one.model).doc})" for one in each))),
        ("dataset", "; ".join(dict.fromkeys(dataset_words(one) for one in each))),
        ("arms", f"{arms.arm_count(study)}, by {study.search.sampler}"),
        ("seeds", ", ".join(map(str, study.seeds))),
        ("length", f"{length} steps" if steps else "not known"),
        ("objective", "; ".join(goal)),
    ]
    return found + [("evaluation", words) for words in _evaluations(reading)]


def _evaluations(reading: Reading) -> list[str]:
    """What trials are judged by, a line a dataset; none where there are no evaluations."""
    study = reading.study
    points: list[dict[str, Value]] = [{"arm": name} for name in study.arms] or [{}]
    specs = [spec for point in points if (spec := _spec(reading, point)) and spec.eval_steps]
    lines = dict[str, None]()
    several = len({spec.dataset for spec in specs}) > 1
    for spec in specs:
        real = f" of {spec.dataset}" if several else ""
        network = reading.judge(spec)
        lines[
            f"{count(spec.eval_samples, 'generated image')} against as many real ones{real}, in the features of "
            f"{FEATURES[spec.features]}{f' ({network})' if network else ''}"
        ] = None
    return list(lines)


def named_arms(study: StudySpec) -> dict[str, str]:
    """What each named arm changes of the study."""
    return {
        name: ", ".join(f"{key} {arms.show(value)}" for key, value in changes(study, name).items())
        or "nothing"
        for name in study.arms
    }


def networks(reading: Reading) -> list[dict[str, Any]]:
    """The networks of the study, each kind once: what they are, their layers, and all settings that are on."""
    found: dict[str, dict[str, Any]] = {}
    for standing in reading.standings:
        spec = _spec(reading, standing.arm.values)
        if spec is None:
            continue
        kind = repr((spec.model, sorted(spec.model_params.items()), spec.size, spec.dataset))
        if kind not in found and len(found) < MOST_MODELS:
            searched = {f"{name}{net}" for name in standing.arm.values for net in ("", "_g", "_d")}
            settings = switched_on(spec.training) | switched_on(spec.model_params)
            found[kind] = {
                "arm": standing.arm.label,
                "model": spec.model,
                "nets": _layers(reading, standing.arm.values, spec),
                "settings": {k: arms.show(v) for k, v in settings.items() if k not in searched},
            }
    return list(found.values())


def _layers(reading: Reading, values: Mapping[str, Value], spec: TrialSpec) -> dict[str, Any]:
    from trials.layers import networks as networks_of

    shape = image_shape(arms.resolved(reading.study, values))
    if shape is None:
        return {}
    try:
        gan = models.build(spec.model, shape, spec.model_params, spec.n_classes)
        nets = networks_of(gan, int(spec.model_params.get("minibatch_stddev_group", 0)) or 1)
    except (ValueError, RuntimeError):  # a model of a later version: the report goes on without its layers
        return {}
    return dict(
        zip(("Generator", "Critic" if gan.loss == "wasserstein" else "Discriminator"), nets, strict=True)
    )


def _spec(reading: Reading, values: Mapping[str, Value]) -> TrialSpec | None:
    try:
        return arms.trial_spec(reading.study, values, reading.study.seeds[0], "")
    except (ValueError, KeyError):  # of another version
        return None
