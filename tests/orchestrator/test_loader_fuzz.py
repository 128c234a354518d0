"""Whatever text comes in, the loader raises InvalidStudyError or nothing."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidStudyError
from orchestrator.loader import load_text

HEAD = "version: 1\nname: s\nmodel: obs_mlp\ndataset: mnist\n"
SHIPPED = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))

PARTS = (
    *"[]{},:-?&*!|>'\"%@`#~ \n\t",
    *(": ", "- ", "\n  ", "&a ", "*a", "<<", "!!str ", "!x ", "---\n", "...\n", "\r\n"),
    *("\x85", "\u2028", "\ufeff", "010", "1e-4", ".nan", "no", "${A}", "1"),
    *("version", "name", "space", "lr", "choices", "low", "budgets", "smoke", "train", "steps", "mnist"),
)
WORDS = st.sampled_from(PARTS)


def readable(data: bytes, *overrides: str) -> bool:
    """Whether the data loads or is refused in printable lines; any other exception escapes."""
    try:
        load_text(data, overrides=overrides)
    except InvalidStudyError as error:
        return bool(error.lines) and all(line.isprintable() for line in error.lines)
    return True


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_loader(data: bytes) -> None:
    assert readable(data)


@settings(max_examples=100)
@given(st.lists(WORDS, max_size=40).map("".join), st.booleans())
def test_random_yaml_never_crashes_the_loader(text: str, is_tail: bool) -> None:
    assert readable((HEAD * is_tail + text).encode())


@settings(max_examples=40)
@given(st.lists(WORDS, max_size=8).map("".join), st.lists(WORDS, max_size=12).map("".join))
def test_random_overrides_never_crash_the_loader(key: str, value: str) -> None:
    assert readable((HEAD + "budgets: {smoke: {seeds: [7]}}\n").encode(), f"{key}={value}")


@settings(max_examples=60)
@given(st.data())
def test_a_mutated_shipped_study_never_crashes_the_loader(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED)).read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.lists(WORDS, max_size=3).map("".join)) + text[end:]
    assert readable(text.encode())


KEYS = st.sampled_from(["choices", "low", "high", "step", "log", "lr", "width", "batch_size", "name"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "adam", "digits"])
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=8
)
SECTIONS = st.sampled_from(["space", "fixed", "train", "dataset", "search", "budgets", "claims", "resources"])


@settings(max_examples=100)
@given(VALUES, SECTIONS)
def test_any_value_in_any_section_is_loaded_or_refused(value: object, section: str) -> None:
    text = HEAD.replace("dataset: mnist\n", "" if section == "dataset" else "dataset: mnist\n")
    assert readable((text + f"{section}: {_flow(value)}\n").encode())


def _flow(value: object) -> str:
    """`value` as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
