"""Pages that are made from the program say what the program does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, schema
from trials.reports import State

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("reference.md", "transcripts.md")
REFERENCE: dict[str, Any] = runpy.run_path(str(DOCS / "make_reference.py"))
TRANSCRIPTS: dict[str, Any] = runpy.run_path(str(DOCS / "make_transcripts.py"))
COMMANDS = [words for words, _ in REFERENCE["commands"]()]


def check(script: str, timeout_s: float) -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / script), "--check"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"run python docs/{script}\n{done.stdout}{done.stderr}"


def test_the_reference_is_what_the_program_says() -> None:
    assert REFERENCE["page"]() == (DOCS / "reference.md").read_text(), "run python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_on_both_pages(page: str) -> None:
    text = (DOCS / page).read_text()
    assert {words for words in COMMANDS if not re.search(rf"gan-sweep {words}\b", text)} == set()
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_machine_s_paths(page: str) -> None:
    assert not re.search(rf"/tmp/|/home/|/Users/|{re.escape(sys.prefix)}", (DOCS / page).read_text())


def test_exit_codes_are_those_that_the_command_line_has() -> None:
    said = re.search(r"Exit codes: (.+?)\.\n", cli.__doc__ or "", re.DOTALL)
    assert said
    assert [int(code) for code in re.findall(r"\b\d+\b", said[1])] == list(REFERENCE["EXIT_CODES"])


def test_every_state_has_a_meaning() -> None:
    assert list(REFERENCE["STATES"]) == list(State)


def test_only_keys_of_the_study_file_are_explained() -> None:
    whole = schema.json_schema()
    keys = {*whole["properties"]}
    keys |= {f"{name}.{key}" for name, block in whole["$defs"].items() for key in block["properties"]}
    assert set(REFERENCE["KEYS"]) - keys == set()


def test_a_docstring_falls_apart_into_what_it_says_of_the_block_and_of_its_keys() -> None:
    block = {
        "description": "Of it all.\n\n`a`: one, `b`: two, three. Four. `c` is found.",
        "properties": {"a": {}, "b": {}, "c": {}},
    }
    assert REFERENCE["told"](block) == ("Of it all. `c` is found.", {"a": "one", "b": "two, three. Four"})


TABLE = "```text\n$ gan-sweep best\n┏━━━━┓\n│ {} │\n└────┘\nmean {}\n{}```"


def test_a_transcript_is_compared_in_all_but_its_numbers_and_folds() -> None:
    compared = TRANSCRIPTS["compared"]
    page = TABLE.format("lr=0.01 seed 1 won", "3.5 ± 1e-05", "")
    same = TABLE.format("lr=0.02 won\n│ seed 12", "-17 ± 2", "")
    assert compared(page) == compared(same)
    for other in (
        TABLE.format("lr=0.01 seed 1 lost", "3.5 ± 1e-05", ""),
        TABLE.format("lr=0.01 seed 1 won", "nan ± 1e-05", ""),
        TABLE.format("lr=0.01 seed 1 won", "3.5 ± 1e-05", "(exit code 2)\n"),
        page.replace("best", "list"),
    ):
        assert compared(page) != compared(other)


def test_what_a_machine_decides_is_not_compared_but_its_command_and_what_follows_is() -> None:
    compared, mark = TRANSCRIPTS["compared"], TRANSCRIPTS["UNCOMPARED"]

    def page(first: str, second: str, after: str) -> str:
        blocks = [TABLE.format("a", words, "") for words in (first, second, after)]
        return f"{mark}\n\n{blocks[0]}\n\n{mark}\n\n{blocks[1]}\n\n### more\n\n{blocks[2]}"

    assert compared(page("one", "one", "end")) == compared(page("two", "other\nlines", "end"))
    assert compared(page("one", "one", "end")) != compared(page("one", "one", "other end"))
    assert compared(page("one", "one", "end")) != compared(page("one", "one", "end").replace("more", "less"))


@pytest.mark.parametrize("code", [0, 1])
def test_exit_codes_are_compared_as_they_are(code: int) -> None:
    pages = [TABLE.format("a", "b", f"(exit code {n})\n") for n in (2, code)]
    assert TRANSCRIPTS["compared"](pages[0]) != TRANSCRIPTS["compared"](pages[1])


@pytest.mark.slow
def test_every_command_still_does_what_its_transcript_shows() -> None:
    check("make_transcripts.py", 900)
