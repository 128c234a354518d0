"""What reads is the same on a terminal, on a pipe, and for those who want no escapes; and it completes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.fabricated import fabricate

ROOT = Path(__file__).parents[2]
VERBS = (
    "list",
    "status",
    "best",
    "logs",
    "logs --trial 1",
    "gc --dry-run",
    "config show",
    "models",
    "datasets",
    "compare made:0 made:2",
)
RUN = """
import sys
from orchestrator.cli import main
for words in sys.argv[1].split(";"):
    sys.argv = ["gan-sweep", *words.split()]
    try:
        main()
    except SystemExit as left:
        assert not left.code, (words, left.code)
"""


@pytest.fixture
def study() -> None:
    fabricate(
        [({"lr": 1e-3}, [0.3, "failed"]), ({"lr": 1e-4}, [0.4, 0.5])],
        reason="\x1b[31mred\x07",
        pictures=False,
    )


def on_a_terminal(verbs: tuple[str, ...], **environment: str) -> str:
    """What the verbs write, one after the other in one process, on a pseudo terminal."""
    ours, theirs = pty.openpty()
    clean = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, ";".join(verbs)], cwd=ROOT, stdin=theirs, stdout=theirs,
        env={**clean, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return said.decode()


@pytest.mark.usefixtures("study")
def test_no_color_means_no_escapes_and_without_it_there_are_some() -> None:
    assert "\x1b[" in on_a_terminal(("status", "best"))
    plain = on_a_terminal(VERBS, NO_COLOR="1")
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert "lr=0.0001" in plain


@pytest.mark.usefixtures("study")
def test_json_holds_no_escapes_on_a_terminal() -> None:
    assert "\x1b" not in on_a_terminal(tuple(f"{verb} --json" for verb in VERBS))


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status", "ma"], ["made"]),
        (["delete", ""], ["made"]),
        (["logs", "made", "--trial", ""], ["0", "1", "2", "3"]),
        (["replay", "made", "2"], ["2"]),
        (["logs", "--trial", ""], ["0", "1", "2", "3"]),
    ],
)
def test_studies_and_trials_complete_without_anything_heavy(words: list[str], expected: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['gan-sweep']\n"
        "from orchestrator.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    asked = {
        "_GAN_SWEEP_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["gan-sweep", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected
