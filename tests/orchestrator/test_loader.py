"""Claims about reading study files: each row of the table of bad inputs has its clear message."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import models
from orchestrator import arms
from orchestrator._fields import NAME_RULE
from orchestrator.errors import InvalidStudyError
from orchestrator.loader import Budget, load_study, load_text
from orchestrator.study import Choices, Range, StudySpec
from trials.datasets import DATASETS

MODELS = ", ".join(models.names())

HEAD = "version: 1\nname: s\nmodel: obs_mlp\ndataset: mnist\n"
SHIPPED = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def lines(text: str | bytes, *overrides: str, budget: Budget = "full") -> list[str]:
    """The problems of a file called s.yaml; none for a good one."""
    data = text.encode() if isinstance(text, str) else text
    try:
        load_text(data, "s.yaml", budget=budget, overrides=overrides)
    except InvalidStudyError as error:
        return list(error.lines) or ["an error without a line"]
    return []


def only(text: str | bytes, *overrides: str, budget: Budget = "full") -> str:
    found = lines(text, *overrides, budget=budget)
    assert len(found) == 1, found
    return found[0]


# What a file means


def test_fields_have_the_values_that_are_written() -> None:
    text = HEAD + "seeds: [3, 0x1f, 0o17]\ntrain: {epochs: 2}\nspace: {lr: {choices: [2e-5, 1E-4, .5]}}\n"
    study = load_text(text.encode())
    assert study.name == "s"
    assert study.dataset.name == "mnist"
    assert study.seeds == [3, 31, 15]
    assert study.train.epochs == 2
    assert study.space["lr"] == Choices(choices=[2e-5, 1e-4, 0.5])


def test_an_axis_is_choices_or_a_range() -> None:
    text = HEAD + "space: {lr: {low: 1e-5, high: 1e-2, log: true}}\nsearch: {sampler: tpe, trials: 3}\n"
    assert load_text(text.encode()).space["lr"] == Range(low=1e-5, high=1e-2, log=True)


@pytest.mark.parametrize(
    "word", ["no", "off", "12:30:45", "2024-01-01", "1_000", "1e4x", "'true'", "!!str 1"]
)
def test_words_that_older_yaml_turns_into_other_things_stay_text(word: str) -> None:
    study = load_text((HEAD + f"description: {word}\n").encode())
    assert study.description == word.removeprefix("!!str ").strip("'")


def test_a_bom_and_crlf_are_accepted() -> None:
    data = b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode()
    assert load_text(data) == load_text(HEAD.encode())


def test_an_alias_repeats_its_value() -> None:
    study = load_text((HEAD + "space:\n  lr_g: &rates {choices: [1e-4, 2e-4]}\n  lr_d: *rates\n").encode())
    assert study.space["lr_g"] == study.space["lr_d"]


# Problems of the file as a whole: one exact line each


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "s.yaml:1:1: study: is empty"),
        (b" \n\n", "s.yaml:1:1: study: is empty"),
        (b"# only\n# comments\n", "s.yaml:1:1: study: is empty but for comments"),
        (b"---\n", "s.yaml:1:1: study: is empty but for comments"),
        (b"- a\n- b\n", "s.yaml:1:1: study: must be a mapping with keys such as name and model (got a list)"),
        (
            b"hello",
            "s.yaml:1:1: study: must be a mapping with keys such as name and model (got text 'hello')",
        ),
        (
            HEAD.encode() + b"---\n" + HEAD.encode(),
            "s.yaml:5:1: study: holds more than one document; a file is one study",
        ),
        (b"a: 1\n" * 200_001, "s.yaml:1:1: study: is larger than 1 MB; is this a study file?"),
        (b"\x7fELF\x02\x01\x00\x00\x00", "s.yaml:1:1: study: is binary, not text (it holds a NUL byte)"),
        (b"name: a\0b\n", "s.yaml:1:1: study: is binary, not text (it holds a NUL byte)"),
        (HEAD.encode("utf-16"), "s.yaml:1:1: study: is UTF-16, not UTF-8; save it as UTF-8"),
        (HEAD.encode("utf-16-le"), "s.yaml:1:1: study: is UTF-16, not UTF-8; save it as UTF-8"),
        (HEAD.encode("utf-16-be"), "s.yaml:1:1: study: is UTF-16, not UTF-8; save it as UTF-8"),
        (b"# x\nname: \xff", "s.yaml:2:7: study: is not UTF-8 text (byte 0xff); save it as UTF-8"),
        (b"# x\nname: \x07", "s.yaml:2:7: study: holds the control character U+0007; remove it"),
        (b"a:\n\tb: 1\n", "s.yaml:2:1: study: is not valid YAML: a tab cannot be used here; use spaces"),
        (
            b"a:\n  b: 1\n\tc: 2\n",
            "s.yaml:3:1: study: is not valid YAML: a tab cannot be used here; use spaces",
        ),
        (b"? [a]\n: 1\n", "s.yaml:1:3: study: a key must be text"),
    ],
)
def test_a_file_that_is_no_study_gets_one_exact_line(data: bytes, line: str) -> None:
    assert lines(data) == [line]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1, 2", "s.yaml:1:9", "']' or ',' is missing in the value that starts at line 1"),
        ("a: 1\nb: 'x", "s.yaml:2:6", "the closing quote is missing in the text that starts at line 2"),
        ("a: b: c", "s.yaml:1:5", "a second ':' in one value, or wrong indentation"),
        ("a: @x", "s.yaml:1:4", "cannot start any token"),
        ("%YAML 3.0\n---\na: 1", "s.yaml:1:1", "version 1.* is required"),
        ("{a: 1}}", "s.yaml:1:7", "expected"),
    ],
)
def test_a_syntax_error_is_one_line_with_its_place(text: str, place: str, words: str) -> None:
    line = only(text)
    assert line.startswith(f"{place}: study: is not valid YAML: ")
    assert words in line


@pytest.mark.parametrize("depth", [51, 500, 100_000])
@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_without_recursion(opening: str, depth: int) -> None:
    assert only("a: " * (opening != "- ") + opening * depth).endswith("study: is nested deeper than 50")


def test_fifty_levels_are_read() -> None:
    found = lines(HEAD + "x: " + "[" * 49 + "]" * 49)
    assert found[0].startswith("s.yaml:5:1: x: unknown key 'x'; known: version, ")


def test_an_alias_bomb_is_refused_quickly_and_in_little_memory() -> None:
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairs
    )
    lines(HEAD)  # imports are not the bomb's
    start = time.process_time()
    tracemalloc.start()
    try:
        line = only(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.endswith("study: has more than 10,000 values (aliases expanded)")
    assert time.process_time() - start < 1
    assert peak < 100e6


def test_a_long_flat_file_is_refused_by_its_number_of_values() -> None:
    assert only("a:\n" + "- 1\n" * 10_001).endswith("study: has more than 10,000 values (aliases expanded)")


def test_aliases_without_a_value_are_named() -> None:
    found = lines(HEAD + "seeds: *nowhere\nfixed: &f {lr: *f}\n")
    assert found == [
        "s.yaml:5:8: seeds: alias *nowhere has no anchor before it",
        "s.yaml:6:16: fixed.lr: alias *f stands inside its own value",
    ]


def test_a_duplicate_key_names_both_lines() -> None:
    assert (
        only(HEAD + "name: t\n") == "s.yaml:5:1: name: the key is given twice (first at line 2); remove one"
    )


def test_a_merge_key_is_refused() -> None:
    line = only(HEAD + "<<: {seeds: [1]}\n")
    assert line == "s.yaml:5:1: <<: merge keys (<<) are not supported; write the keys out"


def test_a_foreign_tag_is_refused_by_name_and_nothing_is_run() -> None:
    found = lines(HEAD + "source: !!python/object/apply:os.system ['touch pwned']\n")
    assert "s.yaml:5:9: source: tag !!python/object/apply:os.system is not allowed" in found
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("tagged", "tag"), [("!mine 1", "!mine"), ("!!binary aGk=", "!!binary"), ("!<x> a", "x")]
)
def test_a_tagged_scalar_is_refused_by_name(tagged: str, tag: str) -> None:
    assert only(HEAD + f"source: {tagged}\n") == f"s.yaml:5:9: source: tag {tag} is not allowed"


def test_a_core_tag_must_be_true() -> None:
    assert only(HEAD + "source: !!int x\n") == "s.yaml:5:9: source: is tagged !!int, which it is not"


# Scalars


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("010", "010 has a leading zero; write 10 or 0o10 (octal) for a number, '010' in quotes for text"),
        ("-089", "-089 has a leading zero; write -89 for a number, '-089' in quotes for text"),
        (".nan", "must be finite (got .nan)"),
        ("-.INF", "must be finite (got -.INF)"),
        ("1e999", "must be finite (the number is too large)"),
        ("7" * 5000, "is a number of 5000 digits; at most 20"),
        ("0x" + "f" * 5000, "is a number of 5002 digits; at most 20"),
    ],
)
def test_numbers_that_mean_trouble_are_refused(value: str, message: str) -> None:
    assert only(HEAD + f"seeds: [1, {value}]\n") == f"s.yaml:5:12: seeds[1]: {message}"


def test_an_environment_variable_is_named_and_its_value_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "hunter2")
    message = "environment variables are not read in study files (found ${CANARY}); write the value"
    for text in ("${CANARY}", '"a ${CANARY} b"', "${CANARY:-fallback}"):
        line = only(HEAD + f"description: {text}\n")
        assert line == f"s.yaml:5:14: description: {message}"
    assert only(HEAD.replace("obs_mlp", "${CANARY}")) == f"s.yaml:3:8: model: {message}"


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("train: {steps: 1e4x}", "s.yaml:5:16: train.steps: must be a whole number (got text '1e4x')"),
        (
            "train: {steps: 1e4}",
            "s.yaml:5:16: train.steps: must be a whole number (got 10000.0; write 10000)",
        ),
        (
            "train: {steps: '20'}",
            "s.yaml:5:16: train.steps: must be a whole number (got text '20'; remove the quotes)",
        ),
        (
            "train: {steps: 1_000}",
            "s.yaml:5:16: train.steps: must be a whole number (got text '1_000'; write 1000)",
        ),
        ("train: {steps: true}", "s.yaml:5:16: train.steps: must be a whole number (got true)"),
        (
            "train: {steps: 12:30:45}",
            "s.yaml:5:16: train.steps: must be a whole number (got text '12:30:45')",
        ),
        ("train: {steps: 0}", "s.yaml:5:16: train.steps: must be >= 1 (got 0)"),
        ("train: {steps: -5}", "s.yaml:5:16: train.steps: must be >= 1 (got -5)"),
        ("train: {steps: 100000001}", "s.yaml:5:16: train.steps: must be <= 100000000 (got 100000001)"),
        ("train: 5", "s.yaml:5:8: train: must be a mapping (got 5)"),
        ("train:", "s.yaml:5:1: train: must be a mapping (got nothing)"),
        ("seeds: 3", "s.yaml:5:8: seeds: must be a list (got 3; write [3])"),
        ("seeds: []", "s.yaml:5:8: seeds: must not be empty"),
        ("seeds: [-1]", "s.yaml:5:9: seeds[0]: must be >= 0 (got -1)"),
        ("seeds: [1, 2, 1]", "s.yaml:5:15: seeds[2]: seed 1 is listed twice"),
        ("source: 2024", "s.yaml:5:9: source: must be text (got 2024; for text put it in quotes)"),
        ("source: true", "s.yaml:5:9: source: must be text (got true; for text put it in quotes)"),
        ("resources: {gpu: -1}", "s.yaml:5:18: resources.gpu: must be >= 0 (got -1)"),
        ("resources: {cpu: 0.0}", "s.yaml:5:18: resources.cpu: must be > 0 (got 0.0)"),
        ("resources: {cpu: many}", "s.yaml:5:18: resources.cpu: must be a number (got text 'many')"),
        (
            "fixed: {lr: '1e-4'}",
            "s.yaml:5:13: fixed.lr: must be a number > 0 and <= 10 (got text '1e-4'; remove the quotes)",
        ),
        (
            "fixed: {width: true}",
            "s.yaml:5:16: fixed.width: must be a whole number >= 1 and <= 4096 (got true)",
        ),
        (
            "fixed: {optimizer: 2024-01-01}",
            "s.yaml:5:20: fixed.optimizer: must be one of adam, rmsprop, sgd (got text '2024-01-01')",
        ),
        ("fixed: {lr: [1]}", "s.yaml:5:13: fixed.lr: must be true or false or a number or text (got a list)"),
        (
            "fixed: {lr: " + "x" * 7000 + "}",
            "s.yaml:5:13: fixed.lr: must have at most 6000 characters (got 7000)",
        ),
        ("objective: {mode: down}", "s.yaml:5:19: objective.mode: must be min or max (got text 'down')"),
        (
            "objective: [{mode: min}, {metric: eval/kid, mode: up}]",
            "s.yaml:5:51: objective[1].mode: must be min or max (got text 'up')",
        ),
        (
            "objective: eval/fd",
            "s.yaml:5:12: objective: must be {metric: ..., mode: min}, or a list of up to three",
        ),
        ("objective: []", "s.yaml:5:12: objective: must not be empty"),
        (
            "objective: [{metric: eval/fd}, {metric: eval/fd, mode: max}]",
            "s.yaml:5:41: objective[1].metric: eval/fd is listed twice",
        ),
        ("search: {sampler: random, trials: 0}", "s.yaml:5:35: search.trials: must be >= 1 (got 0)"),
        ("search: {sampler: random, trials: -1}", "s.yaml:5:35: search.trials: must be >= 1 (got -1)"),
        (
            "search: {sampler: random, trials: 1e9}",
            "s.yaml:5:35: search.trials: must be a whole number (got 1000000000.0; write 1000000000)",
        ),
        (
            "search: {sampler: random, trials: 1000000000}",
            "s.yaml:5:35: search.trials: must be <= 100000 (got 1000000000)",
        ),
        (
            "claims: [{id: a b, says: x}]",
            f"s.yaml:5:15: claims[0].id: {NAME_RULE} (got text 'a b')",
        ),
        ("claims: [{id: a}]", "s.yaml:5:10: claims[0].says: is required"),
    ],
)
def test_a_wrong_value_says_path_expected_and_got(field: str, line: str) -> None:
    assert lines(HEAD + field + "\n") == [line]


def test_a_yes_or_no_field_says_how_to_write_it() -> None:
    line = only(HEAD + "space: {lr: {low: 1, high: 2, step: 1, log: no}}\n")
    assert line == "s.yaml:5:45: space.lr.log: must be true or false (got text 'no'; write false)"


# Keys and names


def test_an_unknown_key_names_the_nearest() -> None:
    assert (
        only(HEAD + "train:\n  epocs: 3\n")
        == "s.yaml:6:3: train.epocs: unknown key 'epocs', did you mean epochs?"
    )


def test_an_unknown_key_far_from_all_lists_them() -> None:
    line = only(HEAD + "objective: {zzz: 1}\n")
    assert line == "s.yaml:5:13: objective.zzz: unknown key 'zzz'; known: metric, mode, at"


def test_missing_required_keys_are_all_named() -> None:
    found = lines("description: x\n")
    assert [line.split(": ")[1] for line in found] == ["dataset", "model", "name", "version"]
    assert found[1] == f"s.yaml:1:1: model: is required; write model: NAME with one of {MODELS}"


@pytest.mark.parametrize("version", ["2", "true", "1.0", "'1'", "null"])
def test_another_version_is_refused(version: str) -> None:
    line = only(HEAD.replace("version: 1", f"version: {version}"))
    assert line.startswith("s.yaml:1:10: version: must be 1, the version of this format (got ")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 300,
        "../../x",
        "/abs",
        "a/b",
        "a\\nb",
        ".",
        "-rf",
        "\\0",
        "😀",
        "=cmd()",
        "<script>",
        "CON",
        "com1.txt",
        "trailing ",
        "ünï",
        "a\\n",
    ],
)
def test_names_that_no_folder_or_tracker_should_have_are_refused(name: str) -> None:
    line = only(HEAD.replace("name: s", f'name: "{name}"'))
    assert line.startswith("s.yaml:2:7: name: ")
    assert "must be 1 to 63 of the characters" in line or "is a device name on Windows" in line
    assert line.isprintable()
    assert len(line) < 250


@pytest.mark.parametrize("model", ["os:system", "os.system", "models.obs", "obs_mpl", "x" * 500_000])
def test_a_model_that_is_not_registered_is_unknown(model: str) -> None:
    line = only(HEAD.replace("obs_mlp", model))
    assert line.startswith(f"s.yaml:3:8: model: unknown model '{model[:80]}")
    assert line.endswith(f"known: {MODELS}")


def test_a_callable_is_an_unknown_key() -> None:
    assert only(HEAD + "callable: os:system\n").startswith(
        "s.yaml:5:1: callable: unknown key 'callable'; known: "
    )


@pytest.mark.parametrize("metric", ["fid", "eval/swb", "x" * 300, "../x", "=x()", '"a\\nb"', '""'])
def test_an_objective_that_is_never_reported_lists_the_known_ones(metric: str) -> None:
    line = only(HEAD + f"objective: {{metric: {metric}}}\n")
    assert line.startswith("s.yaml:5:21: objective.metric: unknown metric ")
    assert "known: eval/ambiguous, eval/checkerboard, " in line


# The space


@pytest.mark.parametrize(
    ("axis", "path", "message"),
    [
        ("{low: 3, high: 2, step: 1}", ".low", "low must be below high (got 3 and 2)"),
        ("{low: 2, high: 2, step: 1}", ".low", "low must be below high (got 2 and 2)"),
        ("{low: 1, high: 6, step: 2}", ".step", "does not divide 1..6 into equal parts (got 2)"),
        ("{low: 1, high: 6, step: 0}", ".step", "must be > 0 (got 0)"),
        ("{low: 1, high: 6, step: 0.5}", ".step", "must be a whole number (got 0.5)"),
        ("{low: 1, high: 4, step: 1, log: true}", ".step", "step and log cannot be combined"),
        ("{choices: []}", ".choices", "must not be empty"),
        ("{choices: [1, 2, 1]}", ".choices[2]", "1 is listed twice"),
        ("{choices: [1], low: 2}", "", "choices and low exclude each other; keep one kind"),
        ("{choice: [1]}", "", "must be {choices: [...]} or {low: ..., high: ...}; did you mean choices?"),
        ("{grid_search: [1]}", "", "must be {choices: [...]} or {low: ..., high: ...}"),
        ("[1, 2]", "", "must be {choices: [...]} or {low: ..., high: ...}"),
        ("16", "", "must be {choices: [...]} or {low: ..., high: ...}"),
        ("{low: 1}", ".high", "is required"),
        ("{low: 1, high: 2, stop: 1}", ".stop", "unknown key 'stop', did you mean step?"),
        ("{low: 0, high: 2}", ".low", "must be a whole number >= 1 and <= 4096 (got 0)"),
    ],
)
def test_a_bad_axis_says_what_is_wrong(axis: str, path: str, message: str) -> None:
    line = only(HEAD + f"space:\n  width: {axis}\n")
    assert line.startswith("s.yaml:6:")
    assert line.partition(": ")[2] == f"space.width{path}: {message}"


def test_log_needs_positive_bounds() -> None:
    text = HEAD + "space:\n  lr: {low: 0, high: 1e-2, log: true}\nsearch: {sampler: random, trials: 3}\n"
    assert only(text) == "s.yaml:6:13: space.lr.low: must be > 0 for log scale (got 0)"


def test_choices_of_mixed_kinds_are_refused() -> None:
    found = lines(HEAD + "space: {optimizer: {choices: [adam, 1, true]}}\n")
    assert "s.yaml:5:30: space.optimizer.choices: mixes numbers, text and true/false; use one kind" in found


def test_a_continuous_range_cannot_be_a_grid() -> None:
    line = only(HEAD + "space: {lr: {low: 1e-5, high: 1e-2, log: true}}\n")
    assert line == "s.yaml:5:13: space.lr: a grid needs choices or a step; else use sampler random or tpe"


def test_logging_less_often_than_the_training_lasts_is_explained() -> None:
    line = only(HEAD + "train:\n  steps: 10\n  log_every: 20\n")
    assert (
        line == "s.yaml:7:14: train.log_every: no metric would ever be logged: training has 10 steps (got 20)"
    )


# All at once


def test_every_problem_comes_in_one_pass_in_the_order_of_the_file() -> None:
    text = """\
version: 1
name: a/b
model: obs_mpl
dataset: {name: mnist, limit: 1}
train: {epocs: 3, batch_size: no}
seeds: [0, 010]
fixed: {lr: 1, beta1: .nan}
space:
  lr: {choices: [1e-4]}
  beta2: {low: x, high: 1}
objective: {metric: fid, mode: down}
search: {sampler: grd}
budgets: {smok: {}, smoke: {sead: 1, train: {steps: 0}}}
"""
    assert " ".join(line.split(": ")[1] for line in lines(text)) == (
        "name model dataset.limit train.epocs train.batch_size seeds[1] fixed.lr fixed.beta1 space.beta2.low "
        "objective.metric objective.mode search.sampler "
        "budgets.smok budgets.smoke.sead budgets.smoke.train.steps"
    )


def test_an_unknown_key_does_not_hide_a_wrong_model_or_bound() -> None:
    found = lines(
        HEAD + "train: {epocs: 3}\nspace: {lr: {low: 0, high: 20, step: 1}, widht: {choices: [1]}}\n"
    )
    assert [line.split(": ")[1] for line in found] == [
        "train.epocs",
        "space.lr.low",
        "space.lr.high",
        "space.widht",
    ]


def test_what_is_missing_is_shown_at_the_mapping_that_lacks_it() -> None:
    assert only(HEAD + "space:\n  lr:\n    low: 1\n").startswith("s.yaml:6:3: space.lr.high: is required")


# Hostile values in messages


def test_long_values_are_cut_and_control_characters_escaped() -> None:
    line = only(HEAD + 'fixed: {optimizer: "' + "\\e[31m\\n" + "x" * 900 + '"}\n')
    assert line.isprintable()
    assert len(line) < 250


def test_values_of_secret_names_are_masked() -> None:
    found = lines(HEAD + "fixed: {api_key: [hunter2]}\ntoken: hunter2\nsearch: {password: {x: hunter2}}\n")
    found += lines(
        HEAD + "claims: [{id: a, says: b, secret: hunter2}]\nspace: {token: {low: hunter2, high: 0777}}\n"
    )
    found += lines(HEAD, "api_token=hunter2", "passwd", "fixed.key=007")
    assert len(found) >= 8
    assert not any(word in line for line in found for word in ("hunter2", "777", "007"))
    assert any("***" in line for line in found)


# Budgets

TWO = (
    HEAD
    + "train: {epochs: 2}\nbudgets:\n  short: {train: {steps: 500}}\n  smoke: {dataset: digits, seeds: [7]}\n"
)


def test_full_is_the_document_as_it_is() -> None:
    study = load_text(TWO.encode())
    assert (study.name, study.train.epochs, study.seeds) == ("s", 2, [0])
    assert study.budgets.keys() == {"short", "smoke"}


def test_a_budget_is_laid_over_the_study_and_joins_its_name() -> None:
    short, smoke = (load_text(TWO.encode(), budget=name) for name in ("short", "smoke"))
    assert (short.name, short.train.steps, short.train.epochs) == ("s-short", 500, None)
    assert (smoke.name, smoke.dataset.name, smoke.seeds, smoke.train.epochs) == ("s-smoke", "digits", [7], 2)
    assert smoke.budgets == {}


def test_a_budget_replaces_a_dataset_and_an_axis_as_a_whole() -> None:
    text = HEAD.replace("mnist", "{name: mnist, limit: 500}") + "space: {lr: {low: 1, high: 3, step: 1}}\n"
    text += "budgets: {smoke: {dataset: {name: digits}, space: {lr: {choices: [2]}}}}\n"
    study = load_text(text.encode(), budget="smoke")
    assert study.dataset.limit is None
    assert study.space["lr"] == Choices(choices=[2])


def test_a_budget_that_the_study_lacks_lists_those_it_has() -> None:
    text = HEAD + "budgets: {smoke: {}}\n"
    assert only(text, budget="short") == "s.yaml:1:1: budgets: there is no budget short; there is full, smoke"


def test_problems_of_every_budget_are_found_whichever_is_chosen() -> None:
    text = (
        HEAD + "budgets:\n  short: {train: {steps: 0}}\n  smoke:\n    dataset: minst\n    fixed: {lr: 99}\n"
    )
    for budget in ("full", "short", "smoke"):
        assert [line.split(": ")[0:2] for line in lines(text, budget=budget)] == [
            ["s.yaml:6:26", "budgets.short.train.steps"],
            ["s.yaml:8:14", "budgets.smoke.dataset"],
            ["s.yaml:9:17", "budgets.smoke.fixed.lr"],
        ]


def test_a_problem_of_the_study_is_not_repeated_for_its_budgets() -> None:
    assert len(lines(TWO.replace("epochs: 2", "epochs: 0"))) == 1


def test_a_problem_that_only_a_budget_makes_says_so() -> None:
    text = HEAD + "train: {batch_size: 256}\nbudgets: {smoke: {dataset: {name: digits, limit: 100}}}\n"
    assert only(text) == (
        "s.yaml:5:21: train.batch_size: "
        "a batch of 256 is larger than the dataset (100 images) (in budget smoke)"
    )


@pytest.mark.parametrize("key", ["version", "name", "budgets"])
def test_a_budget_cannot_change_what_the_study_is(key: str) -> None:
    line = only(HEAD + f"budgets: {{smoke: {{{key}: 1}}}}\n")
    assert line == f"s.yaml:5:19: budgets.smoke.{key}: a budget cannot change {key}; remove it"


def test_a_budget_that_fixes_what_the_study_searches_is_a_duplicate() -> None:
    text = HEAD + "space: {lr: {choices: [1e-4]}}\nbudgets: {smoke: {fixed: {lr: 1e-3}}}\n"
    assert only(text) == "s.yaml:6:31: budgets.smoke.fixed.lr: lr is in space too; remove one"


def test_a_name_too_long_with_its_budget_is_refused() -> None:
    line = only(HEAD.replace("name: s", "name: " + "s" * 60) + "budgets: {smoke: {}}\n")
    assert line.startswith("s.yaml:2:7: name: must be 1 to 63 of the characters")
    assert line.endswith("(in budget smoke)")


# --set


def test_set_changes_a_value_as_the_file_would_write_it() -> None:
    study = load_text(
        TWO.encode(),
        overrides=["train.steps=100", "dataset=digits", "seeds=[0, 0x1]", "space.lr.choices=[1e-4, 2e-4]"],
    )
    assert (study.train.steps, study.train.epochs) == (100, None)
    assert (study.dataset.name, study.seeds) == ("digits", [0, 1])
    assert study.space["lr"] == Choices(choices=[1e-4, 2e-4])


def test_set_wins_over_the_budget_and_the_last_one_counts() -> None:
    study = load_text(TWO.encode(), budget="short", overrides=["train.steps=7", "train.epochs=3", "name=t"])
    assert (study.name, study.train.steps, study.train.epochs) == ("t-short", None, 3)


def test_set_reaches_into_a_budget_and_a_dataset_named_by_text() -> None:
    study = load_text(
        TWO.encode(), budget="short", overrides=["budgets.short.train.epochs=9", "dataset.limit=512"]
    )
    assert (study.train.steps, study.train.epochs) == (None, 9)
    assert (study.dataset.name, study.dataset.limit) == ("mnist", 512)


def test_setting_null_clears_a_field_that_may_be_absent() -> None:
    assert load_text(TWO.encode(), budget="short", overrides=["train.steps=null"]).train.steps is None


def test_set_turns_a_range_into_choices() -> None:
    text = HEAD + "space: {lr: {low: 1, high: 3, step: 1}}\n"
    assert load_text(text.encode(), overrides=["space.lr.choices=[2]"]).space["lr"] == Choices(choices=[2])
    assert load_text(text.encode(), overrides=["space={}"]).space == {}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.stpes=3", "train.stpes: unknown key 'stpes', did you mean steps?"),
        ("train.steps=many", "train.steps: must be a whole number (got text 'many')"),
        ("model=os:system", f"model: unknown model 'os:system'; known: {MODELS}"),
        ("model=", "study: must be KEY=VALUE, for example train.steps=100"),
        ("model=null", "model: must be text (got nothing)"),
        (
            "dataset=mnist5",
            f"dataset: unknown dataset 'mnist5'; did you mean mnist5k? known: {', '.join(DATASETS)}",
        ),
        ("seeds=[0,0]", "seeds[1]: seed 0 is listed twice"),
        ("seeds=[0,1", "seeds: is not valid YAML: ']' or ',' is missing in the value that starts at line 1"),
        (
            "seeds=[010]",
            "seeds[0]: 010 has a leading zero; "
            "write 10 or 0o10 (octal) for a number, '010' in quotes for text",
        ),
        ("steps", "study: must be KEY=VALUE, for example train.steps=100"),
        ("=5", "study: must be KEY=VALUE, for example train.steps=100"),
        ("a..b=5", "study: must be KEY=VALUE, for example train.steps=100"),
        ("a" + ".a" * 5000 + "=5", "study: must be KEY=VALUE, for example train.steps=100"),
        (
            "description=${CANARY}",
            "description: environment variables are not read in study files (found ${CANARY}); "
            "write the value",
        ),
        ("fixed.lr=\x1b", "fixed.lr: holds the control character U+001B; remove it"),
        ("train.steps.x=1", "train.steps: must be a whole number (got a mapping)"),
    ],
)
def test_a_bad_set_is_shown_as_it_was_given(override: str, line: str) -> None:
    shown = override if len(override) <= 80 else override[:80] + "..."
    assert only(HEAD, override) == f"--set {shown}: {line}".replace("\x1b", "\\x1b")


def test_problems_of_the_file_that_only_a_set_makes_say_so() -> None:
    assert only(HEAD + "train: {batch_size: 256}\n", "dataset.limit=100") == (
        "s.yaml:5:21: train.batch_size: a batch of 256 is larger than the dataset (100 images) "
        "(with --set dataset.limit=100)"
    )


def test_a_set_does_not_trouble_budgets_that_were_not_chosen() -> None:
    assert lines(TWO, "train.steps=1000", "train.log_every=900") == []


# Files


@pytest.mark.parametrize("kind", ["missing", "directory", "bad\0name"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    with pytest.raises(InvalidStudyError) as caught:
        load_study(path)
    (line,) = caught.value.lines
    assert line.isprintable()
    assert "cannot be read: " in line or line.endswith(": is not a file; give a study file")


@pytest.mark.parametrize("name", ["with space.yaml", "quote'\".yaml", "new\nline.yaml", "ü.yaml"])
def test_a_hostile_path_is_read_and_shown_on_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(HEAD)
    assert load_study(path).name == "s"
    path.write_text("")
    with pytest.raises(InvalidStudyError, match="is empty") as caught:
        load_study(path)
    assert caught.value.lines[0].isprintable()


def test_loading_imports_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, pathlib; from orchestrator.loader import load_study;"
        "load_study(pathlib.Path(sys.argv[1]));"
        "bad = {'torch', 'numpy', 'ray', 'mlflow', 'optuna', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imports {bad}' if bad else 0)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(SHIPPED[0])], check=True, cwd=Path(__file__).parents[2], timeout=60
    )


@pytest.mark.parametrize("pack", ["1", "65", "fast", "true", "2.0", "[2]"])
def test_a_pack_is_auto_off_or_a_number(pack: str) -> None:
    (line,) = lines(HEAD + f"execution: {{pack: {pack}}}\n")
    assert "execution.pack: must be auto, off, or a number of trials from 2 to 64" in line
    assert lines(HEAD + "execution: {pack: 8}\n") == []


def test_facts_that_are_found_cannot_be_written() -> None:
    text = HEAD.replace("mnist", "{folder: fish, size: 8, n_images: 3}")
    (line,) = lines(text)
    assert "dataset: n_images is found by looking at the images; remove it" in line


def test_claims_that_set_gives_are_read_and_those_of_the_file_are_not_held_against_it() -> None:
    text = (
        HEAD
        + "arms: {a: {}, b: {fixed: {lr: 1e-3}}}\nclaims: [{id: x, says: y, check: 'final(d_acc, arm=b) > 0.5'}]\n"
    )
    assert lines(text, "arms={}") == []
    (line,) = lines(text, "claims=[{id: x, says: y, check: final(d_ac) > 0}]")
    assert "did you mean d_acc?" in line


def test_a_misspelt_arm_in_set_is_no_new_arm() -> None:
    text = HEAD + "arms: {noise: {fixed: {instance_noise: 0.1}}, plain: {}}\n"
    (line,) = lines(text, "arms.nois.fixed.lr=1e-4")
    assert "arms.nois: unknown arm 'nois'; did you mean noise? known: noise, plain" in line
    assert lines(text, "arms.noise.fixed.lr=1e-4") == lines(text, "arms.third={fixed: {lr: 1e-4}}") == []


# Lists of models and datasets

LISTS = "version: 1\nname: s\ntrain: {steps: 20, batch_size: 8}\n"


def labels(text: str, **how: Any) -> list[str]:
    return [arms.label(values) for values in arms.grid(load_text((LISTS + text).encode(), **how))]


def test_a_list_of_models_makes_an_arm_of_each() -> None:
    text = "model: [obs_mlp, obs_dcgan]\ndataset: digits\n"
    study = load_text((LISTS + text).encode())
    assert {name: arm.model for name, arm in study.arms.items()} == {
        "obs_mlp": "obs_mlp",
        "obs_dcgan": "obs_dcgan",
    }
    assert StudySpec.model_validate_json(study.model_dump_json()) == study


def test_models_and_datasets_are_crossed_with_each_other_and_with_named_arms() -> None:
    both = "model: [obs_mlp, obs_dcgan]\ndataset: [digits, {name: mnist5k, limit: 100}]\n"
    assert labels(both) == ["obs_mlp-digits", "obs_mlp-mnist5k", "obs_dcgan-digits", "obs_dcgan-mnist5k"]
    named = "arms: {plain: {}, own: {model: improved}}\n"
    assert labels("model: [obs_mlp, obs_dcgan]\ndataset: digits\n" + named) == [
        "plain-obs_mlp",
        "plain-obs_dcgan",
        "own",
    ]


def test_a_list_of_one_is_that_one() -> None:
    study = load_text((LISTS + "model: [obs_mlp]\ndataset: [digits]\n").encode())
    assert (study.model, study.dataset.name, study.arms) == ("obs_mlp", "digits", {})


def test_a_hyperparameter_may_depend_on_the_model_of_a_list() -> None:
    text = "model: [obs_mlp, improved]\ndataset: digits\n"
    text += "space: {layers: {choices: [1, 2], when: {model: improved}}}\n"
    assert labels(text) == ["obs_mlp", "improved layers=1", "improved layers=2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [obs_mlp, obs_dcgn]\ndataset: digits", "4:18: model[1]: unknown model 'obs_dcgn'; did you mean"),
        ("model: [obs_mlp, 7]\ndataset: digits", "4:18: model[1]: must be text (got 7"),
        ("model: [obs_mlp, obs_mlp]\ndataset: digits", "4:18: model[1]: is the same as arm obs_mlp"),
        ("model: []\ndataset: digits", "4:8: model: must be one, or a list of 1 to 30 (got 0 of them)"),
        ("model: obs_mlp\ndataset: [digits, {name: mnist5k, limt: 3}]", "5:35: dataset[1].limt: unknown key 'limt'"),
        (
            "model: obs_mlp\ndataset: [digits, {name: mnist5k, limit: 100000}]",
            "5:42: dataset[1].limit: mnist5k has 5000 images",
        ),
        (
            "model: [obs_mlp, obs_dcgan]\ndataset: digits\narms: {a: {fixed: {lrr: 1}}}",
            "6:25: arms.a.fixed.lrr: unknown hyperparameter 'lrr'",
        ),
        (
            "model: obs_mlp\ndataset: digits\nbudgets: {smoke: {model: [obs_mlp, x]}}",
            "6:36: budgets.smoke.model[1]: unknown model 'x'",
        ),
    ],
)  # fmt: skip
def test_problems_of_a_list_are_shown_where_they_are_written(text: str, expected: str) -> None:
    found = InvalidStudyError([])
    try:
        load_text((LISTS + text + "\n").encode(), "s.yaml")
    except InvalidStudyError as error:
        found = error
    assert any(line.startswith("s.yaml:" + expected) for line in found.lines), found.lines


def test_set_takes_a_list_of_models_too() -> None:
    text = "model: obs_mlp\ndataset: digits\n"
    assert labels(text, overrides=["model=[obs_mlp, obs_dcgan]"]) == ["obs_mlp", "obs_dcgan"]


def test_problems_of_conditions_are_shown_where_they_are_written() -> None:
    text = "model: obs_mlp\ndataset: digits\nspace:\n  optimizer: {choices: [adam, sgd]}\n"
    text += "  momentum: {choices: [0.5], when: {optimizer: sdg}}\nconstraints:\n  - lr_g <= lrd\n"
    with pytest.raises(InvalidStudyError) as caught:
        load_text((LISTS + text).encode(), "s.yaml")
    first, second = caught.value.lines
    assert first.startswith("s.yaml:8:48: space.momentum.when.optimizer: sdg is no value of optimizer")
    assert second.startswith("s.yaml:10:5: constraints[0]: at character 9: lrd is no hyperparameter")
