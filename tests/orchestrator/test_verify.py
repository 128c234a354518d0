"""verify finds what is wrong, names it, and is content with what is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from orchestrator import tracking
from orchestrator.home import StudyFiles
from orchestrator.journal import Journal, StudyEnded, StudyStarted, TrialEnded, read
from orchestrator.status import load_records
from orchestrator.study import StudySpec
from orchestrator.testing import BackendContract, tiny_study
from orchestrator.tracking import open_client, tracked_runs
from orchestrator.verify import of_search, of_trials, read_all
from orchestrator.verify import verify as checks
from tests.orchestrator.fabricated import fabricate
from tests.orchestrator.invoking import Invoke, invoke
from tests.orchestrator.test_tracking import Painter, empty_store, facts, ship, store

__all__ = ["empty_store", "invoke", "store"]

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def shipped(store: Path, private_home: Path) -> StudyFiles:
    """A finished study with its search's store, in the home and in MLflow."""
    study = tiny_study()
    files = searched(study, private_home)
    assert ship(files, study) == 0
    return files


def searched(study: StudySpec, private_home: Path) -> StudyFiles:
    """`paint` with the real search."""
    from orchestrator.machine import Slots
    from orchestrator.search import OptunaSearch
    from orchestrator.sweep import Sweep
    from trials.data import prepare

    files = StudyFiles.of(study.name)
    files.root.mkdir(parents=True)
    wanted = study.dataset.source
    datasets = {wanted: prepare(wanted, cache_dir=private_home / "datasets", data_dir=private_home / "data")}
    search = OptunaSearch(study, files.optuna)
    sweep = Sweep(study, files, search, datasets, Slots(cpu=1, gpu=0, count=1))
    files.definition.write_text(study.model_dump_json())
    files.source.write_text("name: tiny\n")
    sweep.start(facts(study))
    Painter().run(sweep)
    sweep.end()
    return files


def problems(files: StudyFiles) -> dict[str, list[str]]:
    """By check: what is wrong; checks that are content are left out."""
    return {check.what: list(check.problems) for check in checks(files) if not check.good}


def checkpoint(files: StudyFiles) -> Path:
    return sorted(files.root.glob("trials/*/checkpoints/step_000000012"))[0]


def run_id(kind: str = "trial") -> str:
    client = open_client()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return str(
        client.search_runs([experiment.experiment_id], f"tags.`gan_sweep.kind` = '{kind}'")[0].info.run_id
    )


def damage_manifest(files: StudyFiles) -> None:
    (checkpoint(files) / "manifest.json").unlink()


def damage_state(files: StudyFiles) -> None:
    state = checkpoint(files) / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def lose_checkpoint(files: StudyFiles) -> None:
    for path in checkpoint(files).parent.glob("step_*"):
        shutil.rmtree(path)


def swap_checkpoints(files: StudyFiles) -> None:
    first, second, *_ = sorted(files.root.glob("trials/*/checkpoints/step_000000012"))
    shutil.rmtree(first)
    shutil.copytree(second, first)


def tear_journal(files: StudyFiles) -> None:
    with open(files.journal, "ab") as file:
        file.write(b'{"event":"study_')


def garble_journal(files: StudyFiles) -> None:
    lines = files.journal.read_text().splitlines(keepends=True)
    files.journal.write_text("".join([*lines[:-1], "garbage\n"]))


def append(files: StudyFiles, *events: TrialEnded | StudyEnded | StudyStarted) -> None:
    journal = Journal(files.journal)
    journal.append(*events)
    journal.close()


def end_twice(files: StudyFiles) -> None:
    ended = next(event for event, _ in read(files.journal) if isinstance(event, TrialEnded))
    append(files, ended)


def leave_litter(files: StudyFiles) -> None:
    (checkpoint(files).parent / "step_000000099.tmp-1").mkdir()


CASES: list[tuple[Callable[[StudyFiles], object], str, str]] = [
    (damage_manifest, "checkpoints", "step_000000012: has no manifest"),
    (damage_state, "checkpoints", "state.pt is damaged: its SHA-256 differs"),
    (lose_checkpoint, "checkpoints", "completed, and has no checkpoint"),
    (swap_checkpoints, "checkpoints", "belongs to trial "),
    (tear_journal, "journal", "the last line is torn (16 bytes)"),
    (garble_journal, "journal", "cannot be read"),
    (end_twice, "trials", "ended 2 times"),
    (leave_litter, "leftovers", "half-written: "),
    (lambda files: files.stop.touch(), "leftovers", "a stop file is left"),
    (lambda files: (checkpoint(files).parents[1] / "stop").touch(), "leftovers", "a stop file is left"),
    (lambda files: files.optuna.unlink(), "search", "is not there"),
    (lambda _: open_client().log_metric(run_id(), "eval/fd", 1.5, step=5), "MLflow", "1 metric row (eval/fd 1.5 at"),
    (lambda _: open_client().delete_run(run_id()), "MLflow", "has 0 runs instead of 1"),
    (lambda _: open_client().update_run(run_id(), status="RUNNING"), "MLflow", "run is RUNNING instead of FINISHED"),
    (lambda _: open_client().set_terminated(run_id("study"), "FAILED"), "MLflow", "the study's run is FAILED"),
    (lambda files: files.shipped.unlink(), "MLflow", "pending; send with: gan-sweep sync tiny"),
]  # fmt: skip


def test_a_study_in_order_has_no_problems(invoke: Invoke, shipped: StudyFiles) -> None:
    code, stdout, _ = invoke("verify")
    assert code == 0
    assert [line.split(":")[0] for line in stdout.splitlines()] == [
        " ok journal", " ok trials", " ok checkpoints", " ok MLflow", " ok search", " ok leftovers",
    ]  # fmt: skip
    told = json.loads(invoke("verify", "tiny", "--json")[1])
    assert all(check["ok"] for check in told["checks"])


def test_each_damage_is_found_by_its_check_and_named(
    shipped: StudyFiles, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done to MLflow comes last and is not mended in between; until then it is asked once."""
    once = tracked_runs("tiny", load_records(shipped).uid)
    monkeypatch.setattr(tracking, "tracked_runs", lambda *_: once)
    copy = private_home.with_name("copy")
    shutil.copytree(shipped.root, copy)
    for damage, check, words in CASES:
        if check == "MLflow":
            monkeypatch.setattr(tracking, "tracked_runs", tracked_runs)
        damage(shipped)
        found = problems(shipped)
        assert any(words in line for line in found[check]), (words, found)
        if check not in ("journal", "trials"):  # without their events MLflow has too much, and rightly so
            assert list(found) == [check]
        shutil.rmtree(shipped.root)
        shutil.copytree(copy, shipped.root)


def test_problems_are_printed_and_the_exit_code_is_1(invoke: Invoke, shipped: StudyFiles) -> None:
    damage_state(shipped)
    code, stdout, _ = invoke("verify")
    assert code == 1
    assert " NO checkpoints" in stdout
    assert "step_000000012: state.pt is damaged" in stdout


def test_what_gc_removed_on_request_is_not_missed(invoke: Invoke, shipped: StudyFiles) -> None:
    invoke("gc", "tiny", "--keep", "study-best", "--yes")
    assert problems(shipped) == {}


def test_a_study_at_work_and_one_whose_driver_died_are_not_in_order(shipped: StudyFiles) -> None:
    with FileLock(shipped.lock):
        assert "a submit holds the study's lock" in problems(shipped)["leftovers"]
    append(shipped, StudyStarted(at_ms=9, uid="u", provenance={}))
    assert "the study has not ended" in problems(shipped)["trials"][0]


def test_a_store_that_stays_away_is_said_with_exit_code_3(
    invoke: Invoke, shipped: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, _, stderr = invoke("verify")
    assert (code, "does not answer" in stderr) == (3, True)


def test_unfinished_trials_of_a_finished_study_and_missing_arms_and_seeds_are_named() -> None:
    from orchestrator.records import replay
    from orchestrator.status import load_definition

    files = fabricate([({"lr": 1e-3}, [0.3, "running"])])
    events, _ = read_all(files.journal)
    study = load_definition(files)
    found = list(of_trials(study, replay(events), events))
    assert found == [
        "trial 001 lr=0.001 seed 1 is running, though the study is completed", "1 arm of 2 never began",
    ]  # fmt: skip
    wider = study.model_copy(update={"seeds": [0, 1, 2]})
    assert "arm lr=0.001 lacks seeds 2" in list(of_trials(wider, replay(events), events))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ([(0, "COMPLETE", [0.3]), (1, "FAIL", None)], []),
        ([(0, "COMPLETE", [0.4]), (1, "PRUNED", None)], ["told 0.4 instead of 0.3"]),
        ([(0, "RUNNING", None), (1, "FAIL", None)], ["finished, and never told"]),
        ([(0, "COMPLETE", [0.3])], ["Optuna has no trial 1"]),
        ([(0, "COMPLETE", [0.3]), (1, "COMPLETE", [0.9])], ["told as COMPLETE, though a seed has no value"]),
        ([(0, "COMPLETE", [0.3]), (1, "FAIL", None), (2, "RUNNING", None)], ["trial 2 is RUNNING"]),
    ],
)
def test_the_search_is_compared_with_the_journal(
    known: list[tuple[int, str, list[float] | None]], words: list[str]
) -> None:
    from orchestrator.status import load_definition, load_records

    files = fabricate([({"lr": 1e-3}, [0.3]), ({"lr": 1e-4}, ["diverged"])])
    found = list(of_search(load_definition(files), load_records(files), known))
    assert len(found) == len(words)
    assert all(w in line for w, line in zip(words, found, strict=True))


def test_contract_arms_are_those_of_the_fixture() -> None:
    assert [arm["lr"] for arm in BackendContract.ARMS] == [1e-3, 1e-4]
