"""Pages that are made from the program say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from orchestrator.cli import app

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = [name for name, command in typer.main.get_command(app).commands.items() if not command.hidden]  # type: ignore[attr-defined]


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
    check("make_reference.py", 120)


@pytest.mark.parametrize("page", ["reference.md", "transcripts.md"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_on_both_pages(command: str, page: str) -> None:
    assert re.search(rf"gan-sweep {command}\b", (DOCS / page).read_text())


@pytest.mark.slow
def test_every_command_still_does_what_its_transcript_shows() -> None:
    check("make_transcripts.py", 900)
