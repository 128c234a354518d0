"""Writes docs/transcripts.md: every command run for real on small studies, with what it prints.

python docs/make_transcripts.py            runs everything and writes the page (about a minute)
python docs/make_transcripts.py --check    exit code 1 and a difference when the page is out of date

What differs from run to run (times, sizes, digests, versions) is replaced by words such as TIME. Of trained and
counted numbers only the place is compared, as they differ between processors. Every command runs in a process of its
own: a copy of this one (os.fork), which has the libraries loaded, so that they are loaded once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("transcripts.md")
WIDTH = 100
SMALL = """\
version: 1
name: small
description: Which learning rate suits a tiny GAN on 8x8 digits?
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 60, batch_size: 16, log_every: 10}
fixed: {width: 8, latent_dim: 4}
space:
  lr: {choices: [1e-2, 3e-3, 3e-4, 1e-6]}
pictures: {count: 2, samples: 4, gallery: false}
evaluate: {samples: 64, features: random}
prune: {rungs: [30], keep: 0.5}
execution: {pack: off}
"""
WRONG = """\
version: 1
name: wrong
model: obs_mpl
dataset: digits
train: {steps: 60, bach_size: 16}
space: {lr: {choices: [1e-3, -1]}}
"""
UNWELL = """\
version: 1
name: unwell
description: A discriminator that wins at once
model: obs_mlp
dataset: digits
train: {steps: 200, batch_size: 16, log_every: 10}
fixed: {width: 8, latent_dim: 4, lr_g: 1e-6}
space:
  lr_d: {choices: [1e-2, 1e-6]}
pictures: {count: 1, samples: 4, gallery: false}
evaluate: {count: 1, samples: 64, features: random}
health: {stop: [d_win], confirm: 40}
execution: {pack: off}
"""
LONG = f"""\
{SMALL.replace("small", "long").replace("steps: 60", "steps: 200000").replace("[30]", "[100000]")}\
limits: {{hours: 0.1}}
"""
"""Ends by itself where nobody stops it."""
STUDIES = {"small": SMALL, "wrong": WRONG, "unwell": UNWELL, "long": LONG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One command, what it printed, and its exit code.

    `head`: only so many of its lines are shown. `numbers`: whether those that it prints are shown at all. `compared`:
    whether its output has to be the same elsewhere.
    """

    words: str
    output: str
    code: int
    head: int | None = None
    numbers: bool = True
    compared: bool = True


def prepare_environment(directory: Path) -> None:
    """Of a user with a terminal of 100 columns and without a GPU, for this process and those it starts."""
    for name in [*os.environ]:
        if name.startswith(("GAN_SWEEP", "MLFLOW", "RAY", "XDG", "_GAN_SWEEP")):
            del os.environ[name]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ |= {
        "GAN_SWEEP_HOME": str(directory / "home"), "HOME": str(directory), "PATH": programs, "COLUMNS": str(WIDTH),
        "NO_COLOR": "1", "TERM": "dumb", "CUDA_VISIBLE_DEVICES": "", "TZ": "UTC",
    }  # fmt: skip
    time.tzset()


def load_libraries() -> Callable[[], object]:
    """Import what the commands import, and return the command line's main function."""
    for library in ("matplotlib.pyplot", "mlflow", "optuna", "pandas", "sklearn.datasets", "torch._dynamo"):
        importlib.import_module(library)
    for module in ("commands", "replay", "report", "submit"):
        importlib.import_module(f"orchestrator.{module}")
    from orchestrator.cli import main

    return main


def run(main: Callable[[], object], words: str, directory: Path) -> tuple[str, int]:
    """`gan-sweep WORDS` in a copy of this process: both outputs as a terminal shows them, and the exit code."""
    with tempfile.TemporaryFile() as output, open(os.devnull) as nothing:
        child = os.fork()
        if not child:
            os.dup2(nothing.fileno(), 0)
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            os._exit(_run_here(main, ["gan-sweep", *shlex.split(words)], directory))
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return output.read().decode(), os.waitstatus_to_exitcode(status)


def _run_here(main: Callable[[], object], arguments: Sequence[str], directory: Path) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(directory)
    sys.argv = list(arguments)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def wait_for(journal: Path, kind: str) -> None:
    """Until the journal has an event of this kind."""
    deadline = time.monotonic() + 120
    while not (journal.exists() and f'"{kind}"' in journal.read_text()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {kind} in {journal}")
        time.sleep(0.1)


def transcripts(directory: Path) -> Iterator[str | Shown]:
    """Headings, sentences and commands, in order."""
    main = load_libraries()
    for name, text in STUDIES.items():
        (directory / f"{name}.yaml").write_text(text)
    long = directory / "home" / "studies" / "long"

    def gan_sweep(
        words: str, head: int | None = None, *, numbers: bool = True, compared: bool = True
    ) -> Shown:
        output, code = run(main, words, directory)
        return Shown(words=words, output=output, code=code, head=head, numbers=numbers, compared=compared)

    yield "## Looking before it runs"
    yield "### validate"
    yield gan_sweep("validate small.yaml")
    yield gan_sweep("validate wrong.yaml")
    yield gan_sweep("validate smal.yaml")
    yield "### plan"
    yield gan_sweep("plan small.yaml")
    yield gan_sweep(
        "plan small.yaml --set search.sampler=tpe --set search.trials=20 --set train.steps=10", 10
    )
    yield gan_sweep("plan small.yaml --budget short")
    yield "## Running"
    yield "### submit"
    yield gan_sweep("submit small.yaml --dry-run", 10)
    yield gan_sweep("submit small.yaml --backend inline --smoke")
    yield gan_sweep("submit small.yaml --backend inline --set 'seeds=[0,1,2]'")
    yield "A submitted study can be changed into another one. This one stops at a limit:"
    change = "--set name=copy --set 'space.lr.choices=[1e-2,3e-2]' --set limits.trials=2"
    yield gan_sweep(f"submit small --backend inline {change}")
    yield "In a study `unwell` the discriminator wins, and `health.stop` has `d_win`:"
    yield gan_sweep("submit unwell.yaml --backend inline")
    yield "### resume"
    yield gan_sweep("resume copy --set limits.trials=10", 6)
    yield gan_sweep("resume copy --set train.steps=80")
    yield "### stop"
    yield gan_sweep("submit long.yaml --backend inline --detach")
    wait_for(long / "journal.jsonl", "trial_reported")
    yield gan_sweep("stop long --trial 1")
    yield gan_sweep("stop long")
    wait_for(long / "journal.jsonl", "study_ended")
    time.sleep(1)
    yield gan_sweep("stop long")
    yield "### retry"
    yield gan_sweep("retry small")
    yield gan_sweep("retry unwell --diverged", 6)
    yield "### extend"
    yield gan_sweep("extend small --seeds 0-2 --steps 80", 10)
    yield gan_sweep("extend small --steps 70")
    yield "## Looking at it"
    yield "### list"
    yield gan_sweep("list")
    yield "### status"
    yield gan_sweep("status small")
    yield gan_sweep("status unwell --json", 14)
    yield gan_sweep("status smal1")
    yield "### logs"
    yield gan_sweep("logs small", 12, compared=False)
    yield gan_sweep("logs unwell --trial 0", compared=False)
    yield gan_sweep("logs small --trial 99")
    yield "### best"
    yield gan_sweep("best small")
    yield gan_sweep("best long")
    yield "### compare"
    yield gan_sweep("compare small copy")
    yield gan_sweep("compare small:2 small:4")
    yield gan_sweep("compare small")
    yield "### report"
    yield gan_sweep("report small")
    yield "### export"
    yield gan_sweep("export small --out tables")
    yield "### sample"
    yield gan_sweep("sample small --n 4 --out four.png")
    yield gan_sweep("sample small --trial 3 --class 7")
    yield "## Checking and keeping house"
    yield "### replay"
    yield gan_sweep("replay small 2 --steps 20")
    yield "### verify"
    yield gan_sweep("verify small")
    yield "### sync"
    yield gan_sweep("sync small")
    yield "### gc"
    yield gan_sweep("gc --dry-run")
    yield gan_sweep("gc small --keep best")
    yield gan_sweep("gc small --keep study-best --yes")
    yield "### delete"
    yield gan_sweep("delete long")
    yield gan_sweep("delete long --yes")
    yield gan_sweep("delete long --yes")
    yield "## What there is"
    yield "### models"
    yield gan_sweep("models", 10)
    yield gan_sweep("models obs_mlp", 16)
    yield gan_sweep("models obs_mpl")
    yield "### datasets"
    yield gan_sweep("datasets", 9)
    yield "### schema"
    yield gan_sweep("schema", 6)
    yield "### config show"
    yield gan_sweep("config show --json", 14)
    yield "### doctor"
    yield gan_sweep("doctor", numbers=False, compared=False)
    yield "### ui"
    yield gan_sweep("ui --help")
    yield gan_sweep("ui --port 80")
    yield "### gan-sweep itself"
    yield gan_sweep("--version")
    yield gan_sweep("--help")
    yield gan_sweep("sumbit small.yaml")
    yield _completion(directory)


def _completion(directory: Path) -> Shown:
    """From within bash, as the shell is found among the processes above."""
    done = subprocess.run(
        ["bash", "-c", "gan-sweep --show-completion; exit $?"], cwd=directory, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    return Shown(words="--show-completion", output=done.stdout, code=done.returncode, head=6)


def page() -> str:
    """The whole page."""
    parts = [
        "# Transcripts",
        "Every command on small studies, as `docs/make_transcripts.py` ran it; CI runs it again and compares. TIME,\n"
        "SIZE, KEY, PID, VERSION and the like stand for what differs from run to run, HOME for `GAN_SWEEP_HOME`.\n"
        "`--backend inline` trains in the command's own process; without it studies run on Ray and say the same.",
        f"`small.yaml`:\n\n```yaml\n{SMALL}```",
        f"`wrong.yaml`:\n\n```yaml\n{WRONG}```",
        f"`unwell.yaml`:\n\n```yaml\n{UNWELL}```",
    ]
    with tempfile.TemporaryDirectory(prefix="transcripts-") as name:
        directory = Path(name).resolve()
        (directory / "home").mkdir()
        prepare_environment(directory)
        for each in transcripts(directory):
            parts.append(each if isinstance(each, str) else block(each, directory))
    return "\n\n".join(parts) + "\n"


MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
WORDS = (
    (r"-\d{8}T\d{6}-\d+\.log", "-TIME.log"),
    (r"\d{4}-\d\d-\d\dT[\d:.+Z]+", "TIME"),
    (rf"\b({MONTHS}) [ \d]\d \d\d:\d\d(:\d\d)?", "TIME"),
    (r"\bprocess \d+", "process PID"),
    (r"\b[0-9a-f]{16,64}\b", "KEY"),
    (r"\b\d+(\.\d+)? ([kMG]?B|bytes)\b", "SIZE"),
    (r"\b(in|about) \d[\d.]* (ms|s|min|h)( \d+ (s|min))?\b", r"\1 TIME"),
    (r"\b(gan-sweep|torch|torchvision|ray|mlflow|optuna) \d+\.\d[\d.]*", r"\1 VERSION"),
    (r"\S+ Linux, \d+ cores?", "SYSTEM, CORES"),
    (r"\(this machine has [^)]*\)", "(this machine has CORES and GPUS)"),
)
"""What is shown in place of what differs from run to run."""
UNCOMPARED = "<!-- not compared -->"


def block(shown: Shown, directory: Path) -> str:
    """A command and what it printed, in a fenced block."""
    text = shown.output.replace(str(directory / "home"), "HOME").replace(str(directory), "DIRECTORY")
    lines = [_masked(line.rstrip()) for line in text.replace(sys.executable, "python").rstrip().splitlines()]
    # Progress comes every 15 seconds: on a slow machine more often.
    lines = [line for line in lines if not re.match(r"\d+ of \d+ trials done, \d+ running", line)]
    if not shown.numbers:
        lines = [re.sub(r"\b\d[\d,.]*\b", "N", line) for line in lines]
    if shown.head is not None and len(lines) > shown.head:
        lines = [*lines[: shown.head], "..."]
    code = [f"(exit code {shown.code})"] if shown.code else []
    made = "\n".join(["```text", f"$ gan-sweep {shown.words}", *lines, *code, "```"])
    return made if shown.compared else f"{UNCOMPARED}\n\n{made}"


def _masked(line: str) -> str:
    """A line with words in place of what differs from run to run; the columns of a table stay as wide as they are."""
    for pattern, word in WORDS:
        if line.startswith("│"):
            line = re.sub(rf"(?:{pattern}) *", lambda found: found.expand(word).ljust(len(found[0])), line)  # noqa: B023
        else:
            line = re.sub(pattern, word, line)
    return line


NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?%?")


ENDED = ("completed", "pruned", "diverged", "failed", "stopped", "waiting")
"""Words that lines on trials begin with: those that end within half a second are told in the order of their numbers."""


def compared(text: str) -> list[str]:
    """What of a page has to be the same each time: commands, exit codes, and words, however lines are folded."""
    found: list[str] = []
    for part in re.split(r"\n(?=```text\n)", text):
        lines, cells, ends = part.splitlines(), list[str](), list[str]()
        if found and found[-1] == UNCOMPARED:
            lines = lines[:2] + lines[lines.index("```") :]
        for line in [*lines, ""]:
            if line.startswith(("┏", "┃", "┡", "│", "└")):
                cells += re.sub(r"[^\w.:/=%-]+", " ", NUMBER.sub("#", line)).split()
                continue
            found += [" ".join(sorted(cells))] * bool(cells)
            cells = []
            if line.split()[:1] and line.split()[0] in ENDED and part.startswith("```text"):
                ends.append(" ".join(NUMBER.sub("#", line).split()))
            elif line.strip():
                found += (
                    [line]
                    if line.startswith(("$ ", "(exit code", UNCOMPARED))
                    else NUMBER.sub("#", line).split()
                )
        found += sorted(ends)
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" not in arguments:
        PAGE.write_text(made)
        return 0
    there, now = compared(PAGE.read_text()), compared(made)
    different = list(difflib.unified_diff(there, now, PAGE.name, "as it is now", "", "", 4, ""))
    sys.stdout.write("".join(f"{line}\n" for line in different))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
