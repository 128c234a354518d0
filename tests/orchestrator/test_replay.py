"""A replay is the trial again, says how alike it is, and leaves the study alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import submit as submitting
from orchestrator.home import StudyFiles
from orchestrator.journal import TrialReported, TrialStarted, read
from orchestrator.replay import ABSOLUTE, RELATIVE, compared, doubts_of, history, recorded_rows
from orchestrator.status import load_records
from tests.orchestrator.invoking import Invoke, invoke

__all__ = ["invoke"]

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")

STUDY = """\
version: 1
name: tiny
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 12, batch_size: 8, log_every: 2, checkpoint_every: 4}
fixed: {width: 8, latent_dim: 4}
space: {lr: {choices: [1e-3]}}
pictures: {count: 2, samples: 4, gallery: false}
evaluate: {samples: 16, features: random}
execution: {pack: PACK}
"""
finite = st.floats(-1e6, 1e6)


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: these tests are about training."""

    class Silent:
        error = None

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def start(self) -> None:
            pass

        def close(self) -> int:
            return 0

    monkeypatch.setattr(submitting, "Shipper", Silent)


def trained(invoke: Invoke, tmp_path: Path, pack: str = "off") -> StudyFiles:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("PACK", pack) + "resources: {at_once: 1}\n")
    code, _, stderr = invoke("submit", path, "--backend", "inline", "--no-wait")
    assert code == 0, stderr
    return StudyFiles.of("tiny")


def replayed(invoke: Invoke, *arguments: object) -> tuple[int, dict[str, Any], str]:
    code, stdout, stderr = invoke("replay", "tiny", *arguments, "--json")
    return code, json.loads(stdout), stderr


def spoil(files: StudyFiles, step: int, metric: str, change: float) -> None:
    """Change one value in the journal."""
    lines = []
    for line in files.journal.read_text().splitlines():
        event = json.loads(line)
        for at, metrics in event.get("rows", []):
            if at == step:
                metrics[metric] += change
        lines.append(json.dumps(event))
    files.journal.write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("no_mlflow")
def test_a_trial_that_was_extended_comes_again_but_for_evaluations_of_one_length(
    invoke: Invoke, tmp_path: Path
) -> None:
    files = trained(invoke, tmp_path)
    code, _, stderr = invoke("extend", "tiny", "--steps", 20, "--no-wait")
    assert code == 0, stderr
    code, told, _ = replayed(invoke, 0)
    assert (code, told["verdict"], told["steps"]) == (0, "identical", 20)
    assert any("it was extended" in doubt for doubt in told["doubts"])
    spoil(files, 8, "train/g_loss", 0.5)
    assert replayed(invoke, 0)[1]["verdict"] == "different"


@pytest.mark.usefixtures("no_mlflow")
def test_a_trial_comes_again_to_the_last_bit_and_its_study_is_left_alone(
    invoke: Invoke, tmp_path: Path
) -> None:
    files = trained(invoke, tmp_path)
    before = {p: p.read_bytes() for p in files.root.rglob("*") if p.is_file()}
    code, told, _ = replayed(invoke, 1)
    assert (code, told["verdict"], told["steps"]) == (0, "identical", 12)
    assert told["words"].startswith("identical to the last bit: ")
    rows = [row for event, _ in read(files.journal) if isinstance(event, TrialReported) for row in event.rows]
    n = sum(not name.startswith("perf/") for _, metrics in rows for name in metrics)
    assert told["values"] * 2 == n
    assert {p: p.read_bytes() for p in files.root.rglob("*") if p.is_file()} == before

    code, told, _ = replayed(invoke, "seed 0", "--steps", 5)
    assert (code, told["verdict"], told["steps"]) == (0, "identical", 5)
    assert {row["rows"] for row in told["metrics"]} == {2}

    spoil(files, 8, "train/g_loss", 1e-6)
    code, told, _ = replayed(invoke, 0)
    assert (code, told["verdict"]) == (0, "equal")
    spoil(files, 8, "train/g_loss", 0.5)
    code, stdout, _ = invoke("replay", "tiny", 0)
    assert code == 1
    assert "different from step 8 on" in stdout
    (worst,) = [row for row in replayed(invoke, 0)[1]["metrics"] if row["differs from step"]]
    assert (worst["metric"], worst["differs from step"]) == ("train/g_loss", 8)
    assert worst["largest difference"] == pytest.approx(0.5, abs=1e-5)
    assert invoke("replay", "tiny", 0, "--steps", 6)[0] == 0


@pytest.mark.usefixtures("no_mlflow")
def test_a_trial_of_a_pack_is_said_not_to_come_again_to_the_bit(invoke: Invoke, tmp_path: Path) -> None:
    trained(invoke, tmp_path, pack="2")
    code, told, stderr = replayed(invoke, 0)
    assert code == 0
    assert told["verdict"] in ("equal", "identical")
    assert told["doubts"] == ["it was trained in a pack of 2: sums were rounded in another order"]
    assert "not the same to the last bit, as it was trained in a pack of 2" in stderr


@pytest.mark.usefixtures("no_mlflow")
def test_a_trial_that_would_be_another_one_is_not_compared(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from orchestrator import arms

    trained(invoke, tmp_path)
    real = arms.trial_spec
    monkeypatch.setattr(arms, "trial_spec", lambda *of: replace(real(*of), eval_samples=17))
    code, _, stderr = invoke("replay", "tiny", 0)
    assert (code, "would be another one now" in stderr) == (2, True)


def test_the_pack_and_the_provenance_of_a_trial_are_its_own() -> None:
    from orchestrator.journal import ArmProposed, Event, StudyStarted
    from orchestrator.records import replay

    old, new = {"gan_sweep.version.torch": "2.14"}, {"gan_sweep.version.torch": "2.15"}
    events: list[Event] = [
        StudyStarted(at_ms=1, uid="u", provenance=old),
        ArmProposed(at_ms=1, arm=0, proposal=0, values={}, keys={"a": 0, "b": 1}, steps=9),
        TrialStarted(at_ms=1, key="a", attempt=1, together=4),
        StudyStarted(at_ms=2, uid="u", provenance=new),
        TrialStarted(at_ms=2, key="a", attempt=2),
        TrialStarted(at_ms=2, key="b", attempt=1),
    ]
    records = replay(events)
    assert history(events, records, records.trials["a"]) == (old, 4, True)
    assert history(events, records, records.trials["b"]) == (new, 1, False)


def test_doubts_name_what_is_different() -> None:
    began = {"gan_sweep.version.torch": "2.14", "gan_sweep.machine": "x86_64 Linux, 2 cores"}
    facts = {"gan_sweep.version.torch": "2.15", "gan_sweep.machine": "x86_64 Linux, 2 cores"}

    def doubts(**more: Any) -> tuple[str, ...]:
        usual = {"together": 1, "gpu": False, "has_gpu": False, "continued": False}
        return doubts_of(began, facts, **{**usual, **more})

    assert doubts() == ("torch was 2.14, and is 2.15",)
    assert "this machine has none" in doubts(gpu=True)[0]
    assert "GPU" in doubts(gpu=True, has_gpu=True)[0]
    assert len(doubts(continued=True, together=2)) == 3


@given(values=st.lists(finite, min_size=1, max_size=9), off=st.floats(0, 0.9), at=st.integers(0, 8))
def test_a_difference_within_the_bound_is_equal_and_beyond_it_different(
    values: list[float], off: float, at: int
) -> None:
    at %= len(values)
    bound = ABSOLUTE + RELATIVE * abs(values[at])
    recorded = {step: {"train/g_loss": value} for step, value in enumerate(values, 1)}
    within = {**recorded, at + 1: {"train/g_loss": values[at] + off * bound}}
    beyond = {**recorded, at + 1: {"train/g_loss": values[at] + 1.1 * bound}}
    assert compared("t", 9, recorded, recorded, (), "").identical
    assert compared("t", 9, recorded, within, (), "").equal
    found = compared("t", 9, recorded, beyond, (), "")
    assert not found.equal
    assert found.differences[0].first == at + 1
    assert f"from step {at + 1} on" in found.verdict
    json.dumps(found.to_json(), allow_nan=False)


def test_rows_that_did_not_come_again_or_were_not_there_are_different() -> None:
    one, two = {2: {"a": 1.0}, 4: {"a": 1.0}}, {2: {"a": 1.0}}
    assert not compared("t", 4, one, two, (), "").equal
    assert not compared("t", 4, two, one, (), "").equal
    assert compared("t", 2, one, two, (), "").identical
    assert compared("t", 4, {2: {"perf/s": 1.0, "a": 1.0}}, {2: {"perf/s": 2.0, "a": 1.0}}, (), "").identical
    assert not compared("t", 1, one, two, (), "").equal  # nothing was compared
    assert "nothing to compare" in compared("t", 1, one, two, (), "").verdict


def test_a_value_of_zero_has_no_relative_difference() -> None:
    found = compared("t", 2, {2: {"a": 0.0}}, {2: {"a": 1e-7}}, (), "")
    assert (found.differences[0].relative, found.equal) == (0.0, True)
    assert math.isfinite(found.differences[0].absolute)


def test_rows_of_other_trials_are_not_taken() -> None:
    from tests.orchestrator.fabricated import fabricate

    files = fabricate([({"lr": 1e-3}, [0.3, 0.4])])
    records = load_records(files)
    rows = recorded_rows([event for event, _ in read(files.journal)], records, records.trials["0" * 16])
    assert rows[12]["eval/fd"] == pytest.approx(0.3)
