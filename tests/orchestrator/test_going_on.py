"""Going on with a study: extended, retried, stopped, limited; nothing is lost and nothing runs twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from orchestrator.backends.inline import InlineBackend
from orchestrator.errors import UsageError
from orchestrator.going_on import Extension, extended, parse_seeds, to_reopen
from orchestrator.home import StudyFiles
from orchestrator.journal import ArmExtended, TrialEnded, TrialReported, TrialStarted
from orchestrator.records import Records
from orchestrator.study import StudySpec
from orchestrator.submit import Options, Submitted, extend, go_on, smoke_study, submit
from orchestrator.sweep import Sweep
from orchestrator.testing import BackendContract, events, make_sweep, run_sweep, tiny_study
from trials.kept import checkpoints
from trials.reports import Cause, Outcome, State

QUIET = Console(quiet=True)
INLINE = Options(backend="inline")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a study sends is not the subject here."""

    class Nowhere:
        name, experiment_id = "nowhere", None

        def __init__(self, *_: object) -> None: ...
        def open(self) -> None: ...
        def send(self, *_: object) -> None: ...
        def flush(self) -> None: ...
        def recover(self) -> None: ...

    monkeypatch.setattr("orchestrator.tracking.MlflowSink", Nowhere)
    monkeypatch.setattr("orchestrator.submit.results.write_study_plots", lambda *_: {})


def run(study: StudySpec, tmp_path: Path) -> Submitted:
    source = tmp_path / "tiny.yaml"
    source.write_text("as it was written")
    return submit(study, source, options=INLINE, console=QUIET, chosen={})


def records_of(done: Submitted) -> Records:
    from orchestrator.status import load_records

    return load_records(done.files)


def weights(files: StudyFiles, folder: str) -> dict[str, Any]:
    newest = checkpoints(files.trial(folder) / "checkpoints")[0]
    return dict(torch.load(newest / "state.pt", weights_only=True))


def started(done: Submitted) -> list[str]:
    from orchestrator.journal import read

    return [event.key for event, _ in read(done.files.journal) if isinstance(event, TrialStarted)]


def test_a_study_extended_by_steps_is_as_one_that_was_as_long_from_the_beginning(tmp_path: Path) -> None:
    short = run(tiny_study(), tmp_path)
    before = {t.seed: t.folder for t in records_of(short).arms[0].trials}
    longer = extend(short.files, Extension(steps=20), options=None, console=QUIET)
    assert longer.state == "completed"
    after = records_of(longer)
    train = {"steps": 20, "batch_size": 8, "log_every": 2, "checkpoint_every": 4}
    whole = run(tiny_study(name="whole", train=train), tmp_path)
    expected = records_of(whole)
    assert list(after.trials) == list(expected.trials)  # the same trials by their keys
    for key, trial in expected.trials.items():
        mine = after.trials[key]
        assert (mine.step, mine.steps, mine.attempts, mine.number) == (20, 20, 2, trial.number)
        a, b = weights(longer.files, mine.folder), weights(whole.files, trial.folder)
        for net in ("generator", "discriminator"):
            assert all(torch.equal(a[net][name], b[net][name]) for name in b[net])
        assert mine.finals() == trial.finals()
    assert {t.seed: t.folder for t in after.arms[0].trials} == before
    rows = [(e.key, step) for e in _events(longer, TrialReported) for step, _ in e.rows]
    assert len(rows) == len(set(rows)) == 4 * 10


def test_more_seeds_run_and_the_others_are_left_alone(tmp_path: Path) -> None:
    done = run(tiny_study(), tmp_path)
    first = started(done)
    more = extend(done.files, Extension(seeds=(0, 1, 5)), options=None, console=QUIET)
    records = records_of(more)
    assert [[t.seed for t in arm.trials] for arm in records.arms] == [[0, 1, 5]] * 2
    assert {t.state for t in records.trials.values()} == {State.COMPLETED}
    assert len(started(more)) == len(first) + 2
    assert [s.completed for s in more.standings] == [3, 3]
    whole = run(tiny_study(name="whole", seeds=[0, 1, 5]), tmp_path)
    assert set(records_of(whole).trials) == set(records.trials)


def test_a_crash_between_the_definition_and_the_journal_is_made_up_for(tmp_path: Path) -> None:
    done = run(tiny_study(), tmp_path)
    longer = extended(tiny_study(), records_of(done), Extension(steps=20, seeds=(0, 1, 2)))
    done.files.extending.touch()
    done.files.definition.write_text(longer.model_dump_json())
    again = go_on(done.files, options=None, console=QUIET)
    assert again.state == "completed"
    assert {(t.steps, t.step) for t in records_of(again).trials.values()} == {(20, 20)}
    assert len(records_of(again).trials) == 6
    assert not done.files.extending.exists()


def test_extending_twice_says_it_is_so_already_and_extending_is_journalled_once(tmp_path: Path) -> None:
    done = run(tiny_study(), tmp_path)
    extend(done.files, Extension(steps=20), options=None, console=QUIET)
    with pytest.raises(UsageError, match="20 steps already"):
        extend(done.files, Extension(steps=20), options=None, console=QUIET)
    go_on(done.files, options=None, console=QUIET)
    assert len(_events(done, ArmExtended)) == 2


def test_a_trial_that_diverged_or_was_pruned_is_not_taken_up_by_an_extension(tmp_path: Path) -> None:
    fixed = {"width": 8, "latent_dim": 4, "optimizer": "sgd"}
    train = {"steps": 60, "batch_size": 8, "log_every": 2}
    done = run(tiny_study(fixed=fixed, train=train, space={"lr": {"choices": [10.0, 1e-4]}}), tmp_path)
    assert [t.state for t in records_of(done).arms[0].trials] == [State.DIVERGED] * 2
    again = extend(done.files, Extension(steps=80, seeds=(0, 1, 2)), options=None, console=QUIET)
    bad, good = records_of(again).arms
    assert [(t.state, t.attempts) for t in bad.trials] == [(State.DIVERGED, 1)] * 3
    assert [(t.state, t.step) for t in good.trials] == [(State.COMPLETED, 80)] * 3


@pytest.mark.parametrize(
    ("asked", "changes", "words"),
    [
        (Extension(), {}, "say what to extend"),
        (Extension(steps=12), {}, "12 steps already"),
        (Extension(steps=20, epochs=3), {}, "not both"),
        (Extension(seeds=(1, 2)), {}, "0 must stay"),
        (Extension(seeds=(0, 1)), {}, "already"),
        (Extension(trials=9), {}, "a grid has run all of its points"),
        (Extension(steps=20), {"fixed": {"instance_noise": 0.1}}, "instance_noise"),
        (Extension(steps=20), {"arms": {"a": {"train": {"steps": 10}}, "b": {}}}, "lengths of their own: a"),
    ],
)
def test_what_cannot_be_extended_is_said_and_changes_nothing(
    asked: Extension, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    study = tiny_study(**changes)
    named: list[dict[str, Any]] = [{"arm": name, "lr": lr} for name in study.arms for lr in (1e-3, 1e-4)]
    sweep, _ = make_sweep(study, tmp_path, [dict(values) for values in named] or BackendContract.ARMS)
    sweep.start({})
    sweep.next()
    with pytest.raises(UsageError, match=words):
        extended(study, sweep.records, asked)
    sweep.end()


@pytest.mark.parametrize(("text", "seeds"), [("3", (3,)), ("0-2, 7", (0, 1, 2, 7)), ("5,4", (5, 4))])
def test_seeds_are_read_as_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0-99999999", "4294967296", "1,,2", "1.5"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds must be"):
        parse_seeds(text)


def test_a_failed_trial_is_retried_alone_and_the_search_learns_its_value(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    sweep.start({})
    while assignments := sweep.next():
        for a in assignments:
            bad = a.spec.training["lr"] == 1e-4 and a.spec.seed == 1
            _complete(sweep, a.key, a.attempt, failed=bad)
    assert sweep.end() == "failed"
    again, search = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    (key,) = to_reopen(again.records, {State.FAILED}, [])
    again.reopen([key], "retried on request")
    assert not again.finished
    records = run_sweep(again, InlineBackend())
    assert records.state == "completed"
    assert [e.key for e in events(tmp_path, TrialStarted)].count(key) == 2
    assert len(events(tmp_path, TrialStarted)) == 5
    assert search.told[1] is not None
    with pytest.raises(UsageError, match="4 completed"):
        to_reopen(records, {State.FAILED}, [])
    with pytest.raises(UsageError, match="only failed and diverged"):
        to_reopen(records, set(), [records.trials[key]])


def test_a_failed_seed_of_an_arm_that_was_pruned_is_not_retried(tmp_path: Path) -> None:
    study = tiny_study(prune={"rungs": [4], "keep": 0.5})
    sweep, _ = make_sweep(study, tmp_path, BackendContract.ARMS)
    sweep.start({})
    for _ in range(4):
        (a,) = sweep.next()
        bad = a.spec.training["lr"] == 1e-4 and a.spec.seed == 1
        if bad:
            _complete(sweep, a.key, a.attempt, failed=True)
        else:
            sweep.heard(a.key, a.attempt, Outcome(state=State.WAITING, step=4, paused=True))
    pruned = sweep.records.arms[1].trials
    assert {t.state for t in pruned} == {State.PRUNED, State.FAILED}
    with pytest.raises(UsageError, match="there is no trial that is failed"):
        to_reopen(sweep.records, {State.FAILED}, [])
    (failed,) = (trial for trial in pruned if trial.state is State.FAILED)
    with pytest.raises(UsageError, match="an arm that was pruned"):
        to_reopen(sweep.records, set(), [failed])
    sweep.end()


def test_a_pack_that_ran_out_of_memory_goes_on_in_halves(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS, slots=1, pack=4)
    sweep.start({})
    sizes = []
    while assignments := sweep.next():
        sizes.append(len(assignments))
        for a in assignments:
            if len(assignments) > 1:
                outcome = Outcome(state=State.FAILED, step=0, reason="out of memory", cause=Cause.MEMORY)
                sweep.heard(a.key, a.attempt, outcome)
            else:
                _complete(sweep, a.key, a.attempt)
    assert sizes[:2] == [4, 2]
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2, 4]
    assert sweep.end() == "completed"


def test_one_trial_can_be_stopped_while_the_study_goes_on(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    sweep.start({})
    first = sweep.next()[0]
    waiting = next(t for t in sweep.records.trials.values() if t.state is State.WAITING)
    for folder in (first.key, waiting.folder):
        sweep.files.trial(folder).mkdir(parents=True, exist_ok=True)
        sweep.files.stop_of(folder).touch()
    from trials.worker import Attempts

    attempts = Attempts([first])
    while said := attempts.advance():
        for words in said:
            sweep.heard(*words)
    assert sweep.records.trials[first.key].state is State.STOPPED
    InlineBackend().run(sweep)
    assert sweep.end() == "stopped"
    states = {t.key: t.state for t in sweep.records.trials.values()}
    assert [key for key, state in states.items() if state is State.STOPPED] == [first.key, waiting.key]
    again, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    assert run_sweep(again, InlineBackend()).state == "completed"


def test_a_study_stops_at_its_limit_and_goes_on_with_a_higher_one(tmp_path: Path) -> None:
    done = run(tiny_study(limits={"trials": 2}), tmp_path)
    assert (done.state, done.reason) == ("stopped", "limits.trials: 2 trials have ended")
    assert records_of(done).count(State.COMPLETED) == 2
    again = run(tiny_study(limits={"trials": 9}), tmp_path)
    assert (again.state, again.reason) == ("completed", "")


def test_a_study_ends_as_failed_once_more_arms_failed_than_allowed(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(limits={"failed_arms": 0}), tmp_path, BackendContract.ARMS)
    sweep.start({})
    (first,) = sweep.next()
    _complete(sweep, first.key, first.attempt, failed=True)
    assert sweep.next() == []
    assert sweep.finished
    assert sweep.end() == "failed"
    assert sweep.records.reason == "limits.failed_arms: 1 arms have failed"


def test_another_process_can_ask_the_driver_to_stop(tmp_path: Path) -> None:
    sweep, _ = make_sweep(tiny_study(), tmp_path, BackendContract.ARMS)
    sweep.start({})
    sweep.files.stop_request.touch()
    assert sweep.next() == []
    assert sweep.end() == "stopped"
    assert not sweep.files.stop_request.exists()


def test_a_definition_that_changed_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    run(tiny_study(), tmp_path)
    with pytest.raises(UsageError) as refused:
        run(tiny_study(seeds=[0, 1, 2]), tmp_path)
    words = str(refused.value)
    assert "seeds: [0, 1] -> [0, 1, 2]" in words
    assert "gan-sweep extend tiny" in words


def test_how_it_was_run_is_recorded_and_an_extension_says_how_to_repeat_it(tmp_path: Path) -> None:
    done = run(tiny_study(), tmp_path)
    extend(done.files, Extension(steps=20), options=None, console=QUIET)
    found = [json.loads(path.read_text()) for path in sorted(done.files.submits.glob("*.json"))]
    assert len(found) == 2
    assert found[-1]["facts"]["gan_sweep.set"] == '["train.steps=20"]'
    assert found[0]["packages"]["torch"]
    assert found[0]["machine"]["cores"] >= 1
    assert found[0]["seeds"] == [0, 1]
    assert "the last bit" in found[0]["facts"]["gan_sweep.determinism"]


def test_a_smoke_run_is_tiny_and_covers_every_arm() -> None:
    study = tiny_study(arms={"a": {"train": {"epochs": 50}}, "b": {}}, seeds=[3, 4, 5])
    tiny = smoke_study(study)
    assert tiny.seeds == [3]
    assert tiny.train.steps == 4
    assert {arm.train.epochs for arm in tiny.arms.values()} == {None}
    assert list(tiny.arms) == ["a", "b"]


def test_a_smoke_run_that_fails_submits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tiny.yaml"
    source.write_text("as it was written")
    options = Options(backend="inline", smoke=True)
    done = submit(tiny_study(), source, options=options, console=QUIET, chosen={})
    assert done.state == "completed"
    assert len(started(done)) == 4

    def broken(*_: object, **__: object) -> Callable[[], None]:
        raise RuntimeError("no such layer")

    monkeypatch.setattr("trials.loop.fresh_state", broken)
    with pytest.raises(UsageError, match=r"failed for 2 of 2 arms.*\n.*no such layer"):
        submit(tiny_study(name="other"), source, options=options, console=QUIET, chosen={})
    assert not StudyFiles.of("other").root.exists()


def _complete(sweep: Sweep, key: str, attempt: int, *, failed: bool = False) -> None:
    from trials.reports import Report, Row

    if failed:
        sweep.heard(key, attempt, Outcome(state=State.FAILED, step=0, reason="boom", cause=Cause.ERROR))
        return
    row = Row(step=12, metrics={"eval/fd": 1.0})
    sweep.heard(key, attempt, Report(step=12, rows=(row,)))
    sweep.heard(key, attempt, Outcome(state=State.COMPLETED, step=12))


def _events(done: Submitted, kind: type) -> list[Any]:
    from orchestrator.journal import read

    return [event for event, _ in read(done.files.journal) if isinstance(event, kind)]


def test_every_end_that_was_recorded_is_one_of_the_states(tmp_path: Path) -> None:
    done = run(tiny_study(), tmp_path)
    assert {State(event.state) for event in _events(done, TrialEnded)} == {State.COMPLETED}
