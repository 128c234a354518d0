"""Plain words for what pydantic finds wrong with a study document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ValidationError

import models
from orchestrator._fields import (
    AXIS_KEYS,
    MOST_LISTED,
    NAME_RULE,
    STUDY_FIELDS,
    Arm,
    ArmTrain,
    Claim,
    KeyPath,
    Objective,
    nearest,
    unknown,
)
from orchestrator._scalars import resolve
from trials.datasets import DATASETS
from trials.options import TRAINING

_LONGEST = 80
_SECRET = re.compile("token|secret|passw|key", re.IGNORECASE)
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_EXAMPLES: dict[KeyPath, Callable[[], str]] = {
    ("version",): lambda: "version: 1",
    ("name",): lambda: "name: NAME",
    ("model",): lambda: "model: NAME with one of " + ", ".join(models.names()),
    ("dataset",): lambda: "dataset: NAME with one of " + ", ".join(DATASETS),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A problem; `at_key`: the key is wrong, not its value."""

    path: KeyPath
    message: str
    at_key: bool = False


_OF_LISTS: dict[str, type[BaseModel]] = {"claims": Claim, "objective": Objective}
_HYPERPARAMETERS = frozenset(TRAINING).union(*(models.preset(name).build_params for name in models.names()))


def field_problems(error: ValidationError, document: Any) -> list[Found]:
    """What pydantic found in `document`, one problem for each place."""
    errors = [(_written_path(e["loc"], e["type"], document), e) for e in error.errors(include_url=False)]
    found = []
    for path, group in groupby(errors, key=lambda pair: pair[0]):
        here = [e for _, e in group]  # several for a union: one for each of its members
        at_key = here[0]["type"] == "extra_forbidden" or (path[0] == "budgets" and len(path) == 2)
        found.append(Found(path, _message(path, here, _at(document, path)), at_key))
    return found


def _written_path(loc: Iterable[str | int], kind: str, document: Any) -> KeyPath:
    """`loc` without the names of union members, which stand nowhere in the document."""
    loc = list(loc)
    if loc[0] == "space" and len(loc) > 2:
        del loc[2]
    if loc[0] == "objective" and len(loc) > 1 and not isinstance(document["objective"], list):
        del loc[1]  # a single one is written without a list
    path: list[str | int] = []
    here = document
    for part in loc:
        inside = isinstance(here, dict) and (part in here or kind == "missing")
        if not inside and not (isinstance(here, list) and isinstance(part, int)):
            break
        path.append(part)
        here = _at(here, (part,))
    return tuple(path)


def _at(document: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        else:
            document = document[part] if isinstance(document, list) and isinstance(part, int) else None
    return document


def _message(path: KeyPath, errors: list[Any], value: Any) -> str:
    # Of a union's errors, one that is not about the type comes from the member that was meant.
    for error in errors:
        if error["type"] == "finite_number":
            return f"must be finite (got {value!r})"
        if error["type"] not in _WANTED:
            return _single_message(path, error, value)
    if path in (("model",), ("dataset",)) and isinstance(value, list):
        return f"must be one, or a list of 1 to {MOST_LISTED} (got {len(value)} of them)"
    wanted = " or ".join(dict.fromkeys(_WANTED[error["type"]] for error in errors))
    wanted = wanted.replace("a whole number or a number", "a number")
    return f"must be {wanted} (got {got(value, wanted)})"


def _single_message(path: KeyPath, error: Any, value: Any) -> str:
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "is required" + (f"; write {_EXAMPLES[path]()}" if path in _EXAMPLES else "")
        case "extra_forbidden":
            words = unknown_key(str(path[-1]), known_keys(path[:-1]))
            above = path[:-1]
            if str(path[-1]) in _HYPERPARAMETERS and (above in ((), ("train",)) or above[:1] == ("arms",)):
                words = (
                    f"{path[-1]} is a hyperparameter; put it under fixed, or under space to compare values"
                )
            return words
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            ((name, limit),) = limits.items()
            return f"must be {_SIGNS[name]} {int(limit)} (got {value!r})"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", limits["expected"])
            if path[0] == "budgets":
                return unknown("budget", str(path[1]), allowed)
            if path == ("version",):
                return f"must be 1, the version of this format (got {got(value)})"
            near = nearest(value, allowed) if isinstance(value, str) else ""
            choices = " or ".join(", ".join(allowed).rsplit(", ", 1))
            return f"must be {choices} (got {got(value)}{near and '; '}{near})"
        case "too_short":
            return "must not be empty"
        case "too_long":
            return f"must have at most {limits['max_length']} items (got {len(value)})"
        case "string_too_long":
            return f"must have at most {limits['max_length']} characters (got {len(value)})"
        case "string_pattern_mismatch":
            return f"{NAME_RULE} (got {got(value)})"
        case "value_error":
            return str(limits["error"])
    return str(error["msg"]).replace("Input should be", "must be", 1)


def known_keys(path: KeyPath) -> Iterable[str]:
    """The keys that a mapping of the study document may have."""
    if not path:
        return STUDY_FIELDS
    if path[0] == "space":
        return AXIS_KEYS
    if path[0] == "arms":
        return (
            known_keys(path[2:])
            if path[2:3] == ("dataset",)
            else ArmTrain.model_fields
            if len(path) > 2
            else Arm.model_fields
        )
    block: Any = _OF_LISTS.get(str(path[0])) or STUDY_FIELDS[str(path[0])].annotation
    return block.model_fields if isinstance(block, type) and issubclass(block, BaseModel) else ()


def unknown_key(name: str, known: Iterable[str]) -> str:
    """`unknown key 'epocs', did you mean epochs?`, or the known ones."""
    near = nearest(name, known)
    return f"unknown key {name[:_LONGEST]!r}{f', {near}' if near else '; known: ' + ', '.join(known)}"


def tidy(message: str, path: KeyPath, value: Any) -> str:
    """`message` with the raw `value` described, shortened, or masked where its path looks like a secret."""
    if not isinstance(value, bool | int | float | str) or value == "":
        return message
    if any(is_secret(part) for part in path if isinstance(part, str)):
        if "leading zero" in message:  # which shows the number in other spellings
            return "has a leading zero (got ***); put text in quotes"
        for raw in (got(value, message), got(value), repr(value), str(value)):
            message = message.replace(raw, "***")
        return message
    message = message.replace(f"(got {value!r})", f"(got {got(value, message)})")
    return message.replace(repr(value), _short(value)) if len(repr(value)) > _LONGEST else message


def got(value: Any, wanted: str = "") -> str:
    """`value` in words, and how to write what was probably meant where `wanted` was expected."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            hint = _meant(value, wanted)
            return f"text {_short(value)}" + (f"; {hint}" if hint else "")
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    if "a list" in wanted:
        return f"{shown}; write [{shown}]"
    if "text" in wanted:
        return f"{shown}; for text put it in quotes"
    if "whole number" in wanted and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{shown}; write {int(value)}"
    return shown


def _meant(text: str, wanted: str) -> str:
    if "true or false" in wanted:
        word = text.lower()
        spelled = {"no": "false", "off": "false", "n": "false", "yes": "true", "on": "true", "y": "true"}
        return f"write {spelled[word]}" if word in spelled else ""
    if "number" in wanted and len(text) <= _LONGEST:
        try:
            bare, joined = resolve(text), resolve(re.sub(r"(?<=\d)[_,](?=\d)", "", text))
        except ValueError:
            return ""
        if isinstance(bare, int | float) and not isinstance(bare, bool):
            return "remove the quotes"
        if isinstance(joined, int | float) and not isinstance(joined, bool):
            return f"write {joined}"
    return ""


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST + 2 else f"{shown[:_LONGEST]}..."


def one_line(text: str) -> str:
    """`text` with everything that would not print escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_secret(name: str) -> bool:
    """Whether a value of that name must not be shown."""
    return bool(_SECRET.search(name))
