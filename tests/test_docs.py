"""The guides are followed literally: what they tell readers to write and to run is written and run here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from models import STRUCTURE
from orchestrator._yaml import compose
from orchestrator.catalogue import PER_NET
from orchestrator.claims import FUNCTIONS, parse
from orchestrator.cli import main
from orchestrator.loader import load_study
from orchestrator.model_page import show
from orchestrator.study import Choices
from trials.options import FOLLOWS, TRAINING
from trials.reports import EVAL_METRICS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUN = """
import json, os, sys
from orchestrator.cli import main
for arguments in json.loads(sys.argv[1]):
    print("$", *arguments, flush=True)
    sys.argv = ["gan-sweep", *arguments]
    try: main()
    except SystemExit as end: assert not end.code, end.code
"""


def blocks(guide: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / guide).read_text(), re.MULTILINE | re.DOTALL)


def named(guide: str) -> dict[str, str]:
    """The files that the guide tells to write: path -> content."""
    text = (DOCS / guide).read_text()
    found = re.findall(
        r"^(?:[^`\n]*?)[Ww]rite\s+`([^`]+)`.*?\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    return dict(found)


def commands(guide: str) -> list[list[str]]:
    """The command lines of the guide's shell blocks."""
    return [shlex.split(line) for block in blocks(guide, "sh") for line in block.splitlines()]


def without_ray(arguments: list[str]) -> list[str]:
    """The same command, without the half minute that Ray takes to start."""
    return [*arguments, "--backend", "inline"] if arguments[0] == "submit" else arguments


def run(directory: Path, environment: dict[str, str], arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of what a reader of the guide to a model changes, and the environment that uses the copy."""
    directory = tmp_path_factory.mktemp("reader")
    for package in ("models", "tests"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    for path, content in named("add-a-model.md").items():
        (directory / path).write_text(content)
    paths = f"{directory}{os.pathsep}{ROOT}"
    home = str(directory / "home")
    return directory, {**os.environ, "PYTHONPATH": paths, "COLUMNS": "100", "GAN_SWEEP_HOME": home}


def test_the_guide_to_a_model_ends_with_a_model_that_trains(reader: tuple[Path, dict[str, str]]) -> None:
    files = ["models/tiny_gan.py", "tiny_gan.yaml", "tests/models/test_tiny_gan.py"]
    assert list(named("add-a-model.md")) == files
    lines = [line[1:] for line in commands("add-a-model.md") if line[0] == "gan-sweep"]
    said = run(*reader, ["-c", RUN, json.dumps([without_ray(line) for line in lines])]).split("$ ")[1:]
    looked, changed, validated, _, best = said
    assert "Linear 16 -> 64" in looked
    assert "Linear 3072 -> 128, spectral norm" in changed
    assert "2 arms x 1 seed" in validated
    assert "smoothed" in best


def test_the_tests_that_the_guide_to_a_model_names_find_the_model(
    reader: tuple[Path, dict[str, str]],
) -> None:
    lines = [line[3:] for line in commands("add-a-model.md") if line[:3] == ["python", "-m", "pytest"]]
    files = [argument for line in lines for argument in line if argument.endswith(".py")]
    assert len(files) == 3
    passed = run(*reader, ["-m", "pytest", "-q", *files, "-k", "tiny_gan"])
    assert int(re.findall(r"(\d+) passed", passed)[0]) > 10


@pytest.mark.filterwarnings("ignore")  # MLflow's store leaves connections to the collector
def test_the_guide_to_a_study_ends_with_a_study_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((path, content),) = named("add-a-study.md").items()
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(content)
    monkeypatch.chdir(tmp_path)
    said = []
    lines = commands("add-a-study.md")
    assert [line[1] for line in lines] == ["validate", "plan", "submit", "submit", "submit"]
    for line in lines[:3]:  # the short and the full budget take hours and a download
        monkeypatch.setattr("sys.argv", [line[0], *without_ray(line[1:])])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said.append(capsys.readouterr().out)
    assert "6 arms x 3 seeds" in said[0]
    assert "two_rates_smoothed" in said[1]
    assert "two_rates_smoothed width=8" in said[2]


def plain(text: str) -> dict[str, Any]:
    root, faults = compose(text)
    assert root is not None
    assert not faults
    return cast(dict[str, Any], root.plain())


def test_the_guide_s_fragments_are_valid_in_its_study(tmp_path: Path) -> None:
    whole, *fragments = blocks("add-a-study.md", "yaml")
    assert len(fragments) == 2
    for fragment in fragments:
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps({**plain(whole), **plain(fragment)}))
        load_study(path)


ERRORS = re.findall(r"^\| `(--set [^`]+)` \| (.+?) \|$", (DOCS / "add-a-study.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("change", "answer"), ERRORS, ids=[change for change, _ in ERRORS])
def test_the_errors_in_the_guide_are_those_that_come(change: str, answer: str, tmp_path: Path) -> None:
    path = tmp_path / "my_ttur.yaml"
    path.write_text(blocks("add-a-study.md", "yaml")[0])
    with pytest.raises(Exception, match=re.escape(answer)):
        load_study(path, overrides=(change.removeprefix("--set "),))


@pytest.mark.parametrize("option", sorted({*TRAINING, *STRUCTURE} - PER_NET))
def test_every_option_is_in_the_reference_with_its_default(option: str) -> None:
    param = {**TRAINING, **STRUCTURE}[option]
    default = (
        f"= {FOLLOWS[option]}"
        if option in FOLLOWS
        else "none"
        if param.default in (None, "")
        else show(param.default)
    )
    row = f"| `{option}` | {default} | "
    assert row in (DOCS / "studies.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), target


def test_the_guide_to_claims_lists_every_function_and_metric_and_its_example_is_right() -> None:
    text = (DOCS / "claims.md").read_text()
    listed = re.findall(r"^\| `(\S+?)\((.*)\)` \| (.+) \|$", text, re.MULTILINE)
    assert listed[:-1] == [(name, function.form, function.doc) for name, function in FUNCTIONS.items()]
    assert listed[-1][0] == "best"
    assert dict(re.findall(r"^\| `eval\.(\w+)` \| (.+) \|$", text, re.MULTILINE)) == dict(EVAL_METRICS)
    (example,) = blocks("claims.md", "yaml")
    (check,) = re.findall(r"check: (.+)", example)
    parse(check, {"lr": Choices(choices=[2e-5, 2e-4, 2e-3])})
