"""How a study can be run again: its file, its command, what it was made of."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator import arms
from orchestrator._scalars import resolve
from orchestrator.errors import InvalidStudyError
from orchestrator.reading import Reading
from orchestrator.study import StudySpec, of_arm
from orchestrator.verdicts import budget_of

SHOWN_KEYS = 500
_FOUND = ("n_images", "n_classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`command`: what runs the study from its file again, as far as it can be told; `changes`: what that file and the
    study that was run differ in beyond it. `source`: the file as submitted.
    """

    command: str
    changes: tuple[str, ...]
    source: str
    digests: Mapping[str, str]
    commit: str
    dirty: bool
    versions: Mapping[str, str]
    machine: str
    packs: tuple[str, ...]
    kernels: str
    keys: tuple[tuple[str, str], ...]
    """(name, key) of the trials."""
    keys_left_out: int


def recipe(reading: Reading) -> Recipe:
    """What a reader needs to repeat the study. Looks at nothing but its directory."""
    facts, files = reading.records.provenance, reading.files
    source = files.source.read_text(encoding="utf-8", errors="replace") if files.source.exists() else ""
    name = facts.get("mlflow.source.name", "").removeprefix("gan-sweep submit ") or "study.yaml"
    options, changes = _options(reading.study, source)
    trials = list(reading.records.trials.values())
    return Recipe(
        command=shlex.join(["gan-sweep", "submit", name, *options]),
        changes=tuple(changes),
        source=source,
        digests=_digests(reading.study, facts.get("gan_sweep.dataset_digests", "{}")),
        commit=facts.get("mlflow.source.git.commit", ""),
        dirty=facts.get("gan_sweep.git_dirty") == "true",
        versions={
            key.removeprefix("gan_sweep.version."): version
            for key, version in facts.items()
            if key.startswith("gan_sweep.version.")
        }
        | ({"python": facts["gan_sweep.python"]} if "gan_sweep.python" in facts else {}),
        machine=facts.get("gan_sweep.machine", "not recorded"),
        packs=tuple(facts.get("gan_sweep.pack", "").splitlines()),
        kernels=facts.get("gan_sweep.matmul", ""),
        keys=tuple((trial.name, trial.key) for trial in trials[:SHOWN_KEYS]),
        keys_left_out=max(0, len(trials) - SHOWN_KEYS),
    )


def _options(study: StudySpec, source: str) -> tuple[list[str], list[str]]:
    """The options that turn the file into the study, and what they cannot say."""
    from orchestrator.loader import load_text

    budget = budget_of(study)
    options = [] if budget == "full" else ["--budget", budget]
    try:
        whole = load_text(source.encode(), budget=budget)  # type: ignore[arg-type]
    except InvalidStudyError:
        return options, ["the file cannot be read by this version"] if source else []
    new = dict(arms._leaves(arms.identity(study)))
    old = dict(arms._leaves(arms.identity(whole)))
    if whole.name != study.name:
        options += ["--set", f"name={study.name}"]
    changes = []
    for path in [*new, *(path for path in old if path not in new)]:
        value = new.get(path)
        if old.get(path, ...) == new.get(path, ...) or path.endswith(_FOUND):
            continue
        if path not in new or value is None:
            if path in new and path.startswith("train."):
                continue  # of epochs and steps the given one takes the other's place
            changes.append(f"{path}: {old.get(path)} -> (absent)")
        else:
            options += ["--set", f"{path}={_as_yaml(value)}"]
    return options, changes


def _as_yaml(value: object) -> str:
    """A value in YAML's flow style, of which JSON is a part."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and resolve(value) == value
    return str(value) if plain else json.dumps(value)


def _digests(study: StudySpec, text: str) -> dict[str, str]:
    """Digest of each dataset, by the name that people know."""
    datasets = [(of_arm(study, name) if name else study).dataset for name in ("", *study.arms)]
    known = {str(dataset.source): dataset.source.label for dataset in datasets}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return (
        {known.get(str(name), str(name)): str(digest) for name, digest in found.items()}
        if isinstance(found, dict)
        else {}
    )
