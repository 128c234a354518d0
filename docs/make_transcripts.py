"""Writes docs/transcripts.md: every command run for real on a small study, with what it prints.

    python docs/make_transcripts.py            runs everything and writes the page (about a minute)
    python docs/make_transcripts.py --check    exit code 1 and a difference when the page is out of date

Of what differs from run to run or from machine to machine (times, sizes, versions, measured and trained numbers) only
the shape is compared: any number is as good as any other.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("transcripts.md")
GAN_SWEEP = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'gan-sweep'; from orchestrator.cli import main; main()",
]
TRAINED = ("submit", "resume", "extend", "best", "report", "compare", "status", "logs", "list")
"""Commands whose words depend on trained values, which differ between processors: only their beginning is compared."""
STUDY = """\
version: 1
name: small
description: Which learning rate suits a tiny GAN on 8x8 digits?
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 60, batch_size: 16, log_every: 10}
fixed: {width: 8, latent_dim: 4}
space:
  lr: {choices: [1e-3, 1e-4, 1e-5, 1e-6]}
pictures: {count: 2, samples: 4, gallery: false}
evaluate: {samples: 64, features: random}
prune: {rungs: [30], keep: 0.5}
"""
WRONG = """\
version: 1
name: wrong
model: obs_mpl
dataset: digits
train: {steps: 60, bach_size: 16}
space: {lr: {choices: [1e-3, -1]}}
"""
SLOW = STUDY.replace("name: small", "name: slow").replace("steps: 60", "steps: 200000")


@dataclass(frozen=True, slots=True)
class Shown:
    """One command, what it printed, and its exit code. `head`: only so many of its lines are shown."""

    words: str
    output: str
    code: int
    head: int | None = None


def run(words: str, directory: Path, home: Path, head: int | None = None) -> Shown:
    """Run `gan-sweep WORDS`, both outputs together as on a terminal of 100 columns."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GAN_SWEEP", "MLFLOW", "RAY"))},
        "GAN_SWEEP_HOME": str(home), "HOME": str(directory), "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb",
    }  # fmt: skip
    done = subprocess.run(
        [*GAN_SWEEP, *shlex.split(words)], cwd=directory, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Shown(words, done.stdout, done.returncode, head)


NUMBER = re.compile(r"(?<![A-Za-z_])-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?%?")


def masked(text: str) -> str:
    """The text without what differs from run to run: numbers, digests, dates, the width of columns."""
    text = re.sub(r"\b[0-9a-f]{12,64}\b|\d{8}T\d{6}", "#", text)
    text = re.sub(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d", "DATE", text)
    text = re.sub(r"\bnan\b|\b(MB|GB|kB|KB|bytes|s|min|h|ms)\b", "#", NUMBER.sub("#", text))
    text = re.sub(r"(\w):(?=\w)", r"\1:", re.sub(r"[━┳┻╇┡┩┏┓└┘┴┬─│┃╸╺]+", "|", text))
    return re.sub(r"#(\s*[:.]?#)+", "#", re.sub(r"[ \t]+", " ", text))


def wait_until_running(home: Path) -> None:
    """Until the slow study reports."""
    journal = home / "studies" / "slow" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if journal.exists() and b"trial_reported" in journal.read_bytes():
            return
        time.sleep(0.2)
    raise RuntimeError("the study in the background did not begin")


def transcripts(directory: Path) -> Iterator[str | Shown]:
    """Headings and commands, in order."""
    home = directory / "home"
    for name, text in (("small", STUDY), ("wrong", WRONG), ("slow", SLOW)):
        (directory / f"{name}.yaml").write_text(text)

    def gan_sweep(words: str, head: int | None = None) -> Shown:
        return run(words, directory, home, head)

    yield "Looking before it runs"
    yield gan_sweep("validate small.yaml")
    yield gan_sweep("validate wrong.yaml")
    yield gan_sweep("plan small.yaml")
    yield gan_sweep("submit small.yaml --dry-run --json", 8)
    yield "Running"
    yield gan_sweep("submit small.yaml --backend inline --smoke")
    yield gan_sweep("submit small.yaml --backend inline --set 'seeds=[0,1,2]'")
    yield gan_sweep("submit small --backend inline --set name=copy --set 'space.lr.choices=[1e-3,1e-2]'", 6)
    yield "Looking at it"
    yield gan_sweep("list")
    yield gan_sweep("status small")
    yield gan_sweep("status smal1")
    yield gan_sweep("logs small", 12)
    yield gan_sweep("logs small --trial 0", 14)
    yield gan_sweep("best small")
    yield gan_sweep("report small")
    yield gan_sweep("compare small copy")
    yield gan_sweep("export small --out tables")
    yield gan_sweep("sample small --n 4 --out four.png")
    yield "Going on"
    yield gan_sweep("resume small", 8)
    yield gan_sweep("retry small")
    yield gan_sweep("extend small --seeds 0-2", 10)
    yield gan_sweep("extend small --steps 80", 10)
    yield gan_sweep("extend small --steps 70")
    yield gan_sweep("submit slow.yaml --backend inline --detach")
    wait_until_running(home)
    yield gan_sweep("stop slow --trial 1")
    yield gan_sweep("stop slow")
    for _ in range(300):
        if b"study_ended" in (home / "studies" / "slow" / "journal.jsonl").read_bytes():
            break
        time.sleep(0.2)
    time.sleep(2)
    yield gan_sweep("stop slow")
    yield "Checking and keeping house"
    yield gan_sweep("replay small 0")
    yield gan_sweep("verify small")
    yield gan_sweep("sync small")
    yield gan_sweep("gc small --dry-run")
    yield gan_sweep("gc small --keep study-best --yes")
    yield gan_sweep("delete slow --yes")
    yield gan_sweep("delete slow --yes")
    yield "What there is"
    yield gan_sweep("models", 12)
    yield gan_sweep("models obs_mlp", 14)
    yield gan_sweep("datasets", 12)
    yield gan_sweep("schema", 6)
    yield gan_sweep("config show --json", 14)
    yield gan_sweep("doctor", 4)
    yield gan_sweep("ui --port 80")
    yield gan_sweep("--help", 14)


def page() -> str:
    """The whole page."""
    parts = [
        "# Transcripts\n\nEvery command on a small study, as it was run by `docs/make_transcripts.py`; CI runs it "
        "again and compares all but the numbers."
    ]
    with tempfile.TemporaryDirectory(prefix="transcripts-") as name:
        directory = Path(name).resolve()
        (directory / "home").mkdir()
        parts.append(f"The study `small.yaml`:\n\n```yaml\n{STUDY}```")
        for each in transcripts(directory):
            parts.append(f"## {each}" if isinstance(each, str) else _block(each, directory))
    return "\n\n".join(parts) + "\n"


def _block(shown: Shown, directory: Path) -> str:
    text = shown.output.replace(str(directory), "~").replace(sys.executable, "python")
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    if shown.head is not None and len(lines) > shown.head:
        lines = [*lines[: shown.head], "..."]
    code = [f"(exit code {shown.code})"] if shown.code else []
    return "\n".join(["```text", f"$ gan-sweep {shown.words}", *lines, *code, "```"])


def compared(text: str) -> list[str]:
    """The lines of a page that have to be the same each time."""
    found: list[str] = []
    for block in re.split(r"\n(?=```text\n)", text):
        lines = block.splitlines()
        words = lines[1].split() if lines[0] == "```text" else []
        if words[2:3] and words[2] in TRAINED:
            ends = [i for i, line in enumerate(lines) if line == "```"][:1] or [len(lines)]
            lines = [*lines[:3], *(x for x in lines[3:] if x.startswith("(exit code")), *lines[ends[0] :]]
        found += [masked(line) for line in lines]
    return found


def main(arguments: Sequence[str]) -> int:
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made)
        return 0
    there, now = compared(PAGE.read_text()), compared(made)
    different = [line for line in difflib.unified_diff(there, now, "transcripts.md", "as it is now", n=1)]
    print("\n".join(different))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
