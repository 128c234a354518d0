"""How a study can be run again: its file, its command, what it was made of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.reading import Reading
from orchestrator.study import of_arm
from orchestrator.verdicts import overrides

SHOWN_KEYS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`command`: what runs the study from its file again; `source`: the file as submitted."""

    command: str
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
    trials = list(reading.records.trials.values())
    return Recipe(
        command=shlex.join(["gan-sweep", "submit", name, *_options(facts)]),
        source=source,
        digests=_digests(reading),
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


def _options(facts: Mapping[str, str]) -> list[str]:
    """The options of the submit, as it recorded them."""
    budget = facts.get("gan_sweep.budget", "full")
    options = [] if budget == "full" else ["--budget", budget]
    for change in overrides(facts):
        options += ["--set", change]
    return options


def _digests(reading: Reading) -> dict[str, str]:
    """Digest of each dataset, by the name that people know."""
    study = reading.study
    datasets = [(of_arm(study, name) if name else study).dataset for name in ("", *study.arms)]
    known = {str(dataset.source): dataset.source.label for dataset in datasets}
    found = reading.recorded("gan_sweep.dataset_digests")
    return {known.get(source, source): digest for source, digest in found.items()}
