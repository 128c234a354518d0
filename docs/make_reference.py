"""Writes docs/reference.md from the program itself: commands, the study file, samplers, flags, metrics, options.

python docs/make_reference.py            writes it
python docs/make_reference.py --check    exit code 1 and a difference when the file is not what would be written
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

import models
from models import STRUCTURE, Param
from orchestrator import errors
from orchestrator._fields import NAME_PATTERN, NAME_RULE
from orchestrator.cli import app
from orchestrator.samplers import SAMPLERS
from orchestrator.schema import json_schema
from orchestrator.settings import SETTINGS
from trials.datasets import DATASETS
from trials.options import TRAINING
from trials.reports import EVAL_METRICS, EXTRA_METRICS, FINAL_SHARE, FLAGS, OBJECTIVES, TRAIN_METRICS, State

PAGE = Path(__file__).with_name("reference.md")
HOME = "GAN_SWEEP_HOME"
EXIT_CODES = {
    0: "done: every trial ended as it should, or what was asked for was done",
    errors.GanSweepError.exit_code: "the study failed: a trial failed, or more arms than `limits.failed_arms` allows; "
    "or a check (`verify`, `replay`, `doctor`) found something wrong",
    errors.UsageError.exit_code: "bad usage or an invalid study; nothing was begun",
    errors.UnreachableError.exit_code: "Ray, MLflow's server or store, or the home is out of reach",
    4: "stopped on request or at a limit, with trials left; `gan-sweep resume` goes on",
    130: "interrupted (Ctrl-C); the same command goes on",
}
STATES = {
    State.WAITING: "for a worker, or with a checkpoint at a rung, for what is decided about its arm",
    State.RUNNING: "a worker trains it",
    State.COMPLETED: "it trained to its end; final",
    State.PRUNED: "its arm was judged at a rung and ended there; final",
    State.DIVERGED: "a number was not finite, or a flag of `health.stop` was raised; final",
    State.FAILED: "its code raised an error, or it lost its worker more often than `limits.retries` allows; final, but "
    "`gan-sweep retry` runs it again",
    State.STOPPED: "it was stopped, with a checkpoint; `gan-sweep resume` goes on from there",
}
KEYS = {
    "version": "of the study file's format",
    "name": "of the study, the same for ever; what other commands call it",
    "description": "one line for people: the question that the study asks",
    "source": "where the study was published",
    "model": "a [model](#models); every model of a list runs the study",
    "dataset": "a [dataset](#datasets) or a folder of images; every one of a list is trained on",
    "seeds": "every arm is trained with each of them",
    "fixed": "hyperparameters that all arms share: [structure](#options-of-structure), "
    "[training](#options-of-training), and the model's own (`gan-sweep models NAME`)",
    "arms": "arms by name, each of which is run at every point of `space`",
    "space": "hyperparameters that differ between arms",
    "constraints": "expressions that every arm has to fulfil, such as `lr_g <= lr_d`",
    "priority": "among studies that wait for this machine, higher goes first",
    "budgets": "shorter runs of the study, chosen with `--budget`",
    "Arm.model": "instead of the study's",
    "Arm.dataset": "instead of the study's",
    "Arm.fixed": "laid over the study's",
    "ArmTrain.epochs": "length; or `steps`",
    "ArmTrain.steps": "length; or `epochs`",
    "ArmTrain.batch_size": "real images of a D step, and as many fakes",
    "ArmTrain.batch_size_g": "fakes of a G step",
    "Choices.choices": "the values",
    "Choices.when": "`{OTHER: VALUE or [VALUES]}`: the hyperparameter is there only in arms of such values",
    "Claim.id": "its name in reports",
    "Claim.says": "in words",
    "Claim.check": "the same in [figures of this study](claims.md)",
    "Dataset.name": "one that gan-sweep knows; or `folder`",
    "Dataset.folder": "a folder of images, relative to the study file or to `--data-dir`",
    "Objective.metric": "its name",
    "Objective.mode": "which way is better",
    "Pictures.count": "grids in a trial",
    "Pictures.samples": "images in a grid",
    "Prune.method": "[what is asked of arms](#pruning)",
    "Prune.keep": "the share of the arms that goes on at a rung",
    "Range.low": "included",
    "Range.high": "included",
    "Range.step": "distance between the values of a grid; none: any number between",
    "Range.log": "draw evenly in the logarithm",
    "Resources.cpu": "cores of a trial",
    "Resources.gpu": "GPUs of a trial; a fraction lets several share one",
    "Resources.at_once": "trials that may run at the same time; as many as fit when absent",
    "Rollback.times": "how often a trial may go back",
    "Rollback.lr_factor": "what its rates are multiplied by each time",
    "Search.options": "of the [sampler](#samplers)",
    "Search.sampler": "what proposes arms",
    "Search.seed": "of the sampler",
    "Train.epochs": "length; or `steps`",
    "Train.steps": "length; the model's recipe when neither is given",
    "Train.batch_size": "real images of a D step, and as many fakes; the recipe's when absent",
    "Train.batch_size_g": "fakes of a G step; `batch_size` when absent",
}
"""Keys of the study file whose meaning the docstring of their block does not give, or not for this page."""
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
SHORT = {
    tuple(models.names()): "a [model](#models)",
    tuple(DATASETS): "a [dataset](#datasets)",
    tuple(OBJECTIVES): "an [objective](#metrics)",
    tuple(SAMPLERS): "a [sampler](#samplers)",
}
"""Long lists of names that have a section of their own."""


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the program by `docs/make_reference.py`; a test compares them. [Study files](studies.md) and the "
        "[guide](guide.md) explain what is only listed here, [transcripts](transcripts.md) show it at work.",
        "Sections: [commands](#commands), [exit codes](#exit-codes), [settings](#settings), "
        "[the study file](#the-study-file), [samplers](#samplers), [pruning](#pruning), "
        "[states of a trial](#states-of-a-trial), [flags](#flags), [metrics](#metrics), "
        "[options of structure](#options-of-structure), [options of training](#options-of-training), "
        "[models](#models), [datasets](#datasets).",
        "## Commands",
        *_commands(),
        "## Exit codes",
        _table(["code", "meaning"], EXIT_CODES.items()),
        "## Settings",
        "Environment variables; `gan-sweep config show` prints their values and where they come from.",
        _table(["variable", "meaning", "default"], [(f"`{s.name}`", s.what, default(s)) for s in SETTINGS]),
        "## The study file",
        "A YAML mapping with these keys. Absent keys take the defaults; `gan-sweep validate` names all problems.",
        *_blocks(),
        "## Samplers",
        "Of `search.sampler`. One that learns proposes arms from the results of earlier ones.",
        _table(
            ["sampler", "what it does", "learns", "objectives"],
            [
                (f"`{n}`", s.doc, _yes(s.adaptive), "1" if s.objectives == 1 else f"1 to {s.objectives}")
                for n, s in SAMPLERS.items()
            ],
        ),
        "Their options, for `search.options`:",
        _table(
            ["sampler", "option", "values", "default", "meaning"],
            [(f"`{n}`", *_param(o, p)) for n, s in SAMPLERS.items() for o, p in s.options.items()],
        ),
        "## Pruning",
        "Of [`prune.method`](#prune). Arms are judged with all of their seeds that may run.",
        _table(["method", "what it does at a rung"], pruning_methods().items()),
        "## States of a trial",
        _table(["state", "meaning"], [(f"`{state}`", words) for state, words in STATES.items()]),
        "## Flags",
        "Of [`health`](#health); [their conditions](health.md).",
        _table(["flag", "meaning"], [(f"`{name}`", words) for name, words in FLAGS.items()]),
        "## Metrics",
        "Of training, as `train/NAME` at a step: "
        + ", ".join(f"`{name}`" for name in TRAIN_METRICS)
        + "; in trials that have them also "
        + ", ".join(f"`{name}`" for name in EXTRA_METRICS)
        + f". `final/NAME` is the mean over the last {FINAL_SHARE:.0%} of training; an objective can be `final/` and "
        "one of the first list. `health/diversity` is how far generated images are from each other, 1 being as far as "
        "real ones.",
        "Of evaluations, where a trial has them:",
        _table(
            ["metric", "meaning", "objective"],
            [
                (f"`eval/{name}`", words, _yes(f"eval/{name}" in OBJECTIVES))
                for name, words in EVAL_METRICS.items()
            ],
        ),
        "## Options of structure",
        "They shape the networks of any model that does not refuse them; for `fixed` and `space`.",
        _table(
            ["option", "values", "default", "meaning"],
            [_param(name, param) for name, param in STRUCTURE.items()],
        ),
        "## Options of training",
        "For `fixed` and `space`. These are the defaults where a model's recipe has no other; `gan-sweep models NAME` "
        "shows what holds for a model, with the hyperparameters of its own.",
        _table(
            ["option", "values", "default", "meaning"],
            [_param(name, param) for name, param in TRAINING.items()],
        ),
        "## Models",
        _table(
            ["model", "what it is", "source"],
            [(f"`{name}`", models.preset(name).doc, models.preset(name).source) for name in models.names()],
        ),
        "## Datasets",
        _table(
            ["dataset", "what it is", "images", "shape", "classes", "comes with gan-sweep"],
            [
                (f"`{d.name}`", d.doc, f"{d.n_images:,}", "x".join(map(str, d.image_shape)), d.n_classes or "none",
                 _yes(d.ships))
                for d in DATASETS.values()
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(part if part.startswith(("|", "#")) else _wrapped(part) for part in parts) + "\n"


def default(setting: Any) -> str:
    """A setting's default, with gan-sweep's home in place of what it is on this machine."""
    if setting.name == HOME:
        return "the directory of a user's data; on Linux `~/.local/share/gan-sweep`"
    before = os.environ.get(HOME)
    os.environ[HOME] = f"/{HOME}"
    try:
        return str(setting.default()).replace(f"/{HOME}", HOME)
    finally:
        del os.environ[HOME]
        if before is not None:
            os.environ[HOME] = before


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that is shown in help, by its words; those of a group one by one."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if not command.hidden:
            yield from _leaves(name, command)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if getattr(command, "commands", None):
        for other, inner in command.commands.items():
            yield from _leaves(f"{name} {other}", inner)
    else:
        yield name, command


def _commands() -> Iterator[str]:
    yield "Options of `gan-sweep` itself:"
    own = [param for param in typer.main.get_command(app).params if not getattr(param, "hidden", False)]
    yield _table(["option", "meaning"], [(f"`{p.opts[0]}`", p.help) for p in own if p.name != "help"])  # type: ignore[attr-defined]
    for words, command in commands():
        yield f"### gan-sweep {words}"
        yield _plain(command.help or "")
        params = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
        hints = typing.get_type_hints(inspect.unwrap(command.callback))
        if params:
            yield _table(
                ["argument or option", "values", "default", "meaning"],
                [_argument(p, hints[p.name]) for p in params],
            )


def _argument(param: Any, hint: Any) -> tuple[str, str, str, str]:
    """A row on an argument or option of a command."""
    is_option = param.param_type_name == "option"
    names = param.opts if is_option else [(param.metavar or param.name.upper()).strip("[]")]
    given = param.default
    if param.required:
        shown = "required"
    elif given in (None, False) or given == []:
        shown = "-"
    else:
        shown = f"`{given.value if isinstance(given, StrEnum) else given}`"
    values = _hint(hint)
    if is_option and param.metavar:
        values = values.replace("text", f"`{param.metavar}`").replace("whole number", f"`{param.metavar}`")
    bounds = _bounds({"minimum": getattr(param, "min", None), "maximum": getattr(param, "max", None)})
    return ", ".join(f"`{name}`" for name in names), f"{values}{bounds}", shown, _plain(param.help or "")


def _hint(hint: Any) -> str:
    """What an argument takes, by its annotation."""
    inner = [_hint(one) for one in typing.get_args(hint) if one is not types.NoneType]
    if typing.get_origin(hint) is list:
        return f"{inner[0]}, several times"
    if inner:
        return " or ".join(inner)
    if issubclass(hint, StrEnum):
        return ", ".join(f"`{one.value}`" for one in hint)
    return {bool: "flag", int: "whole number", Path: "path", str: "text"}[hint]


def schema() -> Mapping[str, Any]:
    """The study file's schema."""
    return json_schema()


def _blocks() -> Iterator[str]:
    whole = schema()
    yield _table(["key", "values", "default", "meaning"], _keys("", whole)[1])
    for name, block in whole["$defs"].items():
        yield f"### {name}"
        if name == "Budget":
            yield (
                f"{block['description']} Any of " + ", ".join(f"`{key}`" for key in block["properties"]) + "."
            )
            continue
        about, rows = _keys(name, block)
        yield about
        yield _table(["key", "values", "default", "meaning"], rows)


def _keys(name: str, block: Mapping[str, Any]) -> tuple[str, list[tuple[str, str, str, str]]]:
    """What is said of a whole block, and a row for each of its keys."""
    about, meanings = told(block)
    required = block.get("required", [])
    rows = []
    for key, of in block.get("properties", {}).items():
        linked = next((_first(d) for d in _linked(of)), "")
        words = KEYS.get(f"{name}.{key}" if name else key) or meanings.get(key) or linked
        if not words:
            raise ValueError(f"nothing says what {name}.{key} means: its block's docstring, or KEYS here")
        rows.append((f"`{key}`", values(of), "required" if key in required else _default(of), words))
    return about, rows


def _linked(of: Mapping[str, Any]) -> Iterator[str]:
    """The descriptions of the blocks that a key holds."""
    definitions = schema()["$defs"]
    for one in (of, *of.get("anyOf", ()), *of.get("allOf", ()), of.get("items", {})):
        if "$ref" in one:
            yield definitions[one["$ref"].rpartition("/")[2]].get("description", "")


def _first(text: str) -> str:
    return re.split(r"(?<=\.)\s", _plain(text))[0].rstrip(".")


def told(block: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """A block's docstring as what it says of the whole and of its keys, which it introduces as "`key`: "."""
    keys = list(block.get("properties", {}))
    text = _plain(block.get("description", ""))
    starts = re.split(rf"`({'|'.join(keys)})`: ", text) if keys else [text]
    about, meanings = [starts[0]], {}
    for key, words in zip(starts[1::2], starts[2::2], strict=True):
        # A sentence that begins with a name without a colon is about the whole again.
        of_key, *others = re.split(r"(?<=\.) (?=`\w+` )", words.strip())
        meanings[key] = of_key.rstrip(",. ")
        about += others
    return " ".join(part.strip() for part in about if part.strip()), meanings


def pruning_methods() -> dict[str, str]:
    """What the docstring of `prune` says of every method."""
    block = schema()["$defs"]["Prune"]
    names = block["properties"]["method"]["enum"]
    words = re.split(rf'"({"|".join(names)})" ', told(block)[1]["method"])
    found = {f"`{name}`": text.rstrip("; ") for name, text in zip(words[1::2], words[2::2], strict=True)}
    if [name.strip("`") for name in found] != names:
        raise ValueError(f"the docstring of Prune does not introduce every method: {names}")
    return found


def _default(of: Mapping[str, Any]) -> str:
    given = of.get("default")
    if (
        given in (None, "", [], {})
        or isinstance(given, dict)
        or (isinstance(given, list) and "$ref" in str(of))
    ):
        return "-"
    if isinstance(given, list):
        return f"`[{', '.join(map(str, given))}]`"
    return f"`{_shown(given)}`"


def values(of: Mapping[str, Any]) -> str:
    """What a part of the schema takes, in words."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return SHORT.get(tuple(of["enum"])) or ", ".join(f"`{value}`" for value in of["enum"])
    several = [one for one in of.get("anyOf", of.get("oneOf", ())) if one.get("type") != "null"]
    if {one.get("type") for one in several} == {"boolean", "integer", "number", "string"}:
        return "number, text, true or false"
    if several:
        numbers = [_bounded(one) for one in several if one.get("type") == "number"]
        kept = [one for one in several if one.get("type") != "integer" or _bounded(one) not in numbers]
        return " or ".join(dict.fromkeys(map(values, kept)))
    if of.get("type") == "array":
        least, most = of.get("minItems", 0), of.get("maxItems")
        count = f"{least} to {most:,} " if most else f"at least {least} " if least else ""
        return f"list of {count}({values(of['items'])})"
    if of.get("type") == "object":
        inner = [
            *([of["additionalProperties"]] if isinstance(of.get("additionalProperties"), dict) else []),
            *of.get("patternProperties", {}).values(),
        ]
        if "properties" in of and not inner:
            return "; ".join(f"`{key}`: {values(one)}" for key, one in of["properties"].items())
        return f"mapping of names to ({values(inner[0])})"
    if of.get("pattern") == NAME_PATTERN:
        return NAME_RULE.removeprefix("must be ")
    return f"{KINDS[of['type']]}{_bounds(of)}"


def _bounded(of: Mapping[str, Any]) -> dict[str, float]:
    """The bounds of a number, without those of 64 bits."""
    keys = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    return {key: of[key] for key in keys if of.get(key) is not None and abs(of[key]) < 2**62}


def _bounds(of: Mapping[str, Any]) -> str:
    """The bounds of a number in words."""
    found = _bounded(of)
    if of.get("type") == "integer":
        if "exclusiveMinimum" in found:
            found["minimum"] = found.pop("exclusiveMinimum") + 1
        if "exclusiveMaximum" in found:
            found["maximum"] = found.pop("exclusiveMaximum") - 1
    if {"minimum", "maximum"} <= found.keys():
        return f" from {_number(found['minimum'])} to {_number(found['maximum'])}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    words = [f"{sign} {_number(found[key])}" for key, sign in signs.items() if key in found]
    return " " + " and ".join(words) if words else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _shown(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _param(name: str, param: Param) -> tuple[str, str, str, str]:
    """A row on an option."""
    shown = "-" if param.default is None else "`''`" if param.default == "" else f"`{_shown(param.default)}`"
    source = f" ({param.source})" if param.source else ""
    return f"`{name}`", param.range.removeprefix("a "), shown, param.doc + source


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return _plain(str(value)).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main(arguments: Sequence[str]) -> int:
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made)
        return 0
    there = PAGE.read_text().splitlines()
    different = list(difflib.unified_diff(there, made.splitlines(), PAGE.name, "as it is now", "", "", 0, ""))
    sys.stdout.write("".join(f"{line}\n" for line in different))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
