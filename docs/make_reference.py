"""Writes docs/reference.md from the program itself: commands, the study file, samplers, flags, metrics, options.

python docs/make_reference.py            writes it
python docs/make_reference.py --check    exit code 1 when the file is not what would be written
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

import models
from models import Param
from orchestrator.cli import app
from orchestrator.samplers import SAMPLERS
from orchestrator.schema import json_schema
from orchestrator.settings import SETTINGS
from trials.datasets import DATASETS
from trials.options import TRAINING
from trials.reports import EVAL_METRICS, EXTRA_METRICS, FLAGS, TRAIN_METRICS

PAGE = Path(__file__).with_name("reference.md")
EXIT_CODES = {
    "0": "done: all arms, or what was asked for",
    "1": "the study failed: more arms failed than `limits.failed_arms` allows; or a check found something wrong",
    "2": "bad usage or an invalid study; nothing was created",
    "3": "Ray, the tracking server, the store or the home is out of reach",
    "4": "stopped on request or at a limit; `gan-sweep resume` goes on",
    "130": "interrupted",
}
STATES = {
    "waiting": "for a worker, or at a rung for what is decided about its arm",
    "running": "on a worker",
    "completed": "trained to its end",
    "pruned": "ended at a rung with its arm",
    "diverged": "a number was not finite, or a flag of `health.stop` was raised; counts against its arm",
    "failed": "its code raised an error, or it was retried as often as `limits.retries` allows",
    "stopped": "on request, with a checkpoint; goes on with `resume`",
}


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the program by `docs/make_reference.py`; a test compares them. [Study files](studies.md) and the "
        "[guide](guide.md) explain what is only listed here.",
        "## Commands",
        *_commands(),
        "## Exit codes",
        _table(["code", "meaning"], EXIT_CODES.items()),
        "## Settings",
        "Environment variables; `gan-sweep config show` prints their values and where they come from.",
        _table(["variable", "meaning"], [(f"`{s.name}`", s.what) for s in SETTINGS]),
        "## The study file",
        *_blocks(),
        "## Samplers",
        _table(
            ["sampler", "what it does", "learns", "objectives"],
            [(f"`{n}`", s.doc, "yes" if s.adaptive else "no", s.objectives) for n, s in SAMPLERS.items()],
        ),
        _table(
            ["sampler", "option", "values", "default", "meaning"],
            [(f"`{n}`", *_param(o, p)) for n, s in SAMPLERS.items() for o, p in s.options.items()],
        ),
        "## States of a trial",
        _table(["state", "meaning"], [(f"`{state}`", words) for state, words in STATES.items()]),
        "## Flags",
        _table(["flag", "meaning"], [(f"`{name}`", words) for name, words in FLAGS.items()]),
        "## Metrics",
        "Of training, as `train/NAME` and, over the last tenth, `final/NAME`: "
        + ", ".join(f"`{name}`" for name in (*TRAIN_METRICS, *EXTRA_METRICS))
        + ".",
        _table(["metric", "meaning"], [(f"`eval/{name}`", words) for name, words in EVAL_METRICS.items()]),
        "## Options of training",
        _table(
            ["option", "values", "default", "meaning"],
            [_param(name, param) for name, param in TRAINING.items()],
        ),
        "## Models",
        _table(["model", "what it is"], [(f"`{name}`", models.preset(name).doc) for name in models.names()]),
        "## Datasets",
        _table(
            ["dataset", "images", "classes", "ships"],
            [
                (f"`{name}`", f"{d.n_images:,}", d.n_classes or "-", "yes" if d.ships else "no")
                for name, d in DATASETS.items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _commands() -> Iterator[str]:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        for words, each in _leaves(name, command):
            yield f"### gan-sweep {words}"
            yield _plain(each.help or "")
            rows = []
            for param in each.params:
                if getattr(param, "hidden", False) or param.name == "help":
                    continue
                is_option = param.param_type_name == "option"
                shown = (
                    ", ".join(f"`{o}`" for o in param.opts)
                    if is_option
                    else f"`{param.metavar or param.name}`"
                )
                rows.append((shown, _plain(getattr(param, "help", None) or "")))
            if rows:
                yield _table(["argument or option", "meaning"], rows)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command, or those of a group."""
    if getattr(command, "commands", None):
        for other, inner in command.commands.items():
            yield from _leaves(f"{name} {other}", inner)
    else:
        yield name, command


def _blocks() -> Iterator[str]:
    schema = json_schema()
    definitions: Mapping[str, Any] = schema["$defs"]
    yield _table(["key", "values", "default"], _keys(schema))
    for name, block in definitions.items():
        if name in ("Budget",):
            continue
        yield f"### {name}"
        if block.get("description"):
            yield _plain(block["description"])
        yield _table(["key", "values", "default"], _keys(block))


def _keys(block: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    required = block.get("required", [])
    return [
        (f"`{key}`", _values(of), "required" if key in required else _default(of))
        for key, of in block.get("properties", {}).items()
    ]


def _default(of: Mapping[str, Any]) -> str:
    given = of.get("default")
    if given in (None, "", [], {}):
        return "-"
    text = str(given).lower() if isinstance(given, bool) else str(given)
    return f"`{text}`" if len(text) <= 60 else "see below"


def _values(of: Mapping[str, Any]) -> str:
    """What a part of the schema takes, in words."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    for several in ("anyOf", "oneOf"):
        if several in of:
            kinds = [_values(one) for one in of[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    kind = of.get("type", "any")
    if kind == "array":
        return f"list of {_values(of.get('items', {}))}"
    if kind == "object":
        inner = of.get("additionalProperties")
        return f"mapping to {_values(inner)}" if isinstance(inner, dict) else "mapping"
    bounds = [
        f"{sign} {of[key]:g}"
        for key, sign in (
            ("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"),
        )
        if key in of and abs(of[key]) < 2**62
    ]  # fmt: skip
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
    return " ".join([words.get(kind, str(kind)), *bounds])


def _param(name: str, param: Param) -> tuple[str, str, str, str]:
    default = (
        "-"
        if param.default is None
        else str(param.default).lower()
        if param.kind is bool
        else str(param.default)
    )
    source = f" ({param.source})" if param.source else ""
    return f"`{name}`", param.range, default or "''", param.doc + source


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return _plain(str(value)).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
