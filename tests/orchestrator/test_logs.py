"""The journal is told completely, once, and without anything that a terminal would obey."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles
from orchestrator.journal import (
    KINDS,
    ArmAdvanced,
    ArmExtended,
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialPaused,
    TrialReported,
    TrialsReopened,
    TrialStarted,
    read,
)
from orchestrator.logs import QUIET_MS, Teller, follow
from orchestrator.records import Records, replay
from orchestrator.status import find_trial, load_records
from tests.orchestrator.fabricated import fabricate
from tests.orchestrator.invoking import Invoke, invoke

__all__ = ["invoke"]

LOSSES = {"train/g_loss": 0.7, "train/d_loss_mean": 0.6, "train/d_acc": 0.5}


def report(at_ms: int, step: int, key: str = "a", **more: object) -> TrialReported:
    fields: dict[str, object] = {"rows": [(step, LOSSES)], "pictures": []}
    return TrialReported(at_ms=at_ms, key=key, attempt=1, step=step, **{**fields, **more})  # type: ignore[arg-type]


STORY: list[Event] = [
    StudyStarted(at_ms=1, uid="u", provenance={"gan_sweep.version.torch": "2.15.0"}),
    ArmProposed(at_ms=2, arm=0, proposal=0, values={"lr": 0.1}, keys={"a": 0, "b": 1}, steps=100, until=50),
    TrialStarted(at_ms=3, key="a", attempt=1, together=2),
    report(4, 20, flags=[("jump", 10, 20, "the loss doubled")], notes=["a checkpoint was damaged"]),
    TrialReported(at_ms=5, key="a", attempt=1, step=50, rows=[(50, {"eval/fd": 3.5, "eval/swd": 0.2})], pictures=[]),
    TrialPaused(at_ms=6, key="a", attempt=1, step=50, values={"eval/fd": 3.5}),
    ArmAdvanced(at_ms=7, arm=0, until=None, reason="rank 1 of 1"),
    TrialStarted(at_ms=8, key="a", attempt=2),
    TrialEnded(at_ms=9, key="a", attempt=2, state="failed", step=60, reason="boom", detail="Traceback\n  line 1"),
    TrialsReopened(at_ms=10, keys=["a"], reason="retried on request"),
    ArmExtended(at_ms=11, arm=0, keys={"c": 0, "d": 1}, continues={"c": "a", "d": "b"}, steps=200),
    StudyEnded(at_ms=12, state="stopped", reason="limits.hours"),
]  # fmt: skip


def told(events: list[Event], number: int | None = None) -> list[str]:
    teller = Teller("made", number)
    return [line.text for event in events for line in teller.tell(event)]


def test_every_kind_of_event_is_told() -> None:
    assert {type(event) for event in STORY} == set(KINDS.values())
    lines = "\n".join(told(STORY))
    for words in (
        "study made begins: torch 2.15.0",
        "arm 0 lr=0.1: trials 0, 1, to rung 50 first",
        "000 lr=0.1 seed 0  starts, attempt 1, in a pack of 2",
        "step 20/100  G 0.700  D 0.600  D acc 0.500",
        "flag at step 20: the loss doubled",
        "note: a checkpoint was damaged",
        "evaluation at step 50: fd 3.5",
        "waits at rung 50: fd 3.5",
        "arm 0 lr=0.1 goes on to the end (rank 1 of 1)",
        "failed at step 60: boom",
        "to run again: trials 0 (retried on request)",
        "arm 0 lr=0.1 is extended: 2 trials of 200 steps, 2 of them from where they ended",
        "study made ends, stopped: 0 of 2 trials completed (limits.hours)",
    ):
        assert words in lines
    assert "swd" not in lines


def test_of_one_trial_everything_is_told_and_of_others_nothing() -> None:
    lines = told(STORY, number=0)
    assert any("swd 0.2" in line for line in lines)
    assert lines[-1].endswith("  line 1")
    assert all("000 lr=0.1 seed 0" in line for line in lines)
    assert told(STORY, number=1) == []
    assert not any("Traceback" in line for line in told(STORY))


def test_losses_of_a_trial_are_told_every_few_seconds_at_most() -> None:
    reports: list[Event] = [report(1000 * s, s, key=key) for s in range(1, 21) for key in ("a", "b")]
    lines = told([*STORY[:3], *reports])
    for name in ("seed 0", "seed 1"):
        assert sum(name in line and "G 0.7" in line for line in lines) == 20_000 // QUIET_MS
    assert sum("G 0.7" in line for line in told([*STORY[:3], *reports], number=0)) == 20


@given(text=st.text(max_size=40))
def test_no_text_of_a_study_reaches_the_terminal_raw(text: str) -> None:
    events: list[Event] = [
        StudyStarted(at_ms=1, uid="u", provenance={"gan_sweep.version.torch": text}),
        ArmProposed(at_ms=1, arm=0, proposal=0, values={"loss": text}, keys={"a": 0}, steps=9),
        report(2, 3, notes=[text], flags=[("jump", 1, 2, text)]),
        TrialEnded(at_ms=3, key="a", attempt=1, state="failed", step=3, reason=text, detail=text),
        StudyEnded(at_ms=4, state="failed", reason=text),
    ]
    for number in (None, 0):
        assert all(line.isprintable() for line in told(events, number))


def test_json_is_an_object_a_line_with_the_trial_and_all_that_the_event_says(invoke: Invoke) -> None:
    files = fabricate([({"lr": 1e-3}, [0.3, "failed"])], reason="\x1b[31mred", detail="T")
    code, stdout, _ = invoke("logs", "--json")
    objects = [json.loads(line) for line in stdout.splitlines()]
    assert code == 0
    assert [o["event"] for o in objects] == [event.kind for event, _ in read(files.journal)]
    assert [(o["trial"], o["detail"]) for o in objects if o.get("state") == "failed" and "key" in o] == [
        (1, "T")
    ]
    assert "\x1b" not in stdout
    of_one = invoke("logs", "--json", "--trial", "1")[1].splitlines()
    assert {json.loads(line)["trial"] for line in of_one} == {1}


def test_the_log_of_a_study_and_of_a_trial(invoke: Invoke) -> None:
    fabricate([({"lr": 1e-3}, [0.3, "failed"])], reason="it broke", detail="Traceback (most recent)\n  here")
    code, stdout, stderr = invoke("logs")
    assert (code, stderr) == (0, "")
    assert "failed at step 12: it broke" in stdout
    assert "Traceback" not in stdout
    assert "Traceback (most recent)" in invoke("logs", "made", "--trial", "seed 1")[1]


def test_a_study_whose_driver_died_is_said_to_have_no_end(invoke: Invoke) -> None:
    fabricate([({"lr": 1e-3}, ["running"])], ended=None)
    code, _, stderr = invoke("logs", "-f")
    assert (code, "go on with: gan-sweep resume made" in " ".join(stderr.split())) == (0, True)


def follower(files: StudyFiles, steps: list[Callable[[], None]]) -> list[str]:
    """Kinds that are followed, while something happens in each pause."""
    return [event.kind for event in follow(files, sleep=lambda _: steps.pop(0)())]


def append(files: StudyFiles, *events: Event) -> None:
    journal = Journal(files.journal)
    journal.append(*events)
    journal.close()


def test_following_goes_on_past_an_earlier_end_until_the_next_one() -> None:
    files = fabricate([({"lr": 1e-3}, [0.3])])
    before = [event.kind for event, _ in read(files.journal)]
    with FileLock(files.lock):
        kinds = follower(files, [
            lambda: append(files, StudyStarted(at_ms=1, uid="u", provenance={})),
            lambda: None,
            lambda: append(files, StudyEnded(at_ms=2, state="completed")),
        ])  # fmt: skip
    assert kinds == [*before, "study_started", "study_ended"]


def test_following_ends_when_the_submit_is_gone() -> None:
    files = fabricate([({"lr": 1e-3}, ["running"])], ended=None)
    lock = FileLock(files.lock)
    lock.acquire()

    def die() -> None:
        append(files, report(9, 12, key="0" * 16))
        lock.release()

    assert follower(files, [die])[-1] == "trial_reported"


def test_ctrl_c_leaves_quietly(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fabricate([({"lr": 1e-3}, ["running"])], ended=None)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.logs.follow", lambda files: follow(files, sleep=interrupt))
    with FileLock(files.lock):
        code, stdout, stderr = invoke("logs", "-f")
    assert (code, stderr) == (130, "")
    assert "starts, attempt 1" in stdout


class TestTrialNames:
    @pytest.fixture
    def records(self) -> Records:
        return load_records(fabricate([({"lr": 1e-3}, [0.3, 0.4]), ({"lr": 1e-4}, [0.5, 0.6])]))

    @pytest.mark.parametrize(
        ("wanted", "number"),
        [
            ("2", 2),
            ("0000000100000001", 3),
            ("000000010000000", None),
            ("lr=0.0001 seed 1", 3),
            ("SEED 0", None),
        ],
    )
    def test_a_trial_is_named_by_number_key_or_name(
        self, records: Records, wanted: str, number: int | None
    ) -> None:
        if number is None:
            with pytest.raises(UsageError, match="may be several trials"):
                find_trial(records, wanted, "made")
        else:
            assert find_trial(records, wanted, "made").number == number

    def test_an_unknown_trial_lists_near_ones(self, records: Records) -> None:
        with pytest.raises(
            UsageError, match=r"no trial 'lr=0\.0002 seed 1'.*numbers 0 to 3.*lr=0\.0001 seed 1"
        ):
            find_trial(records, "lr=0.0002 seed 1", "made")
        with pytest.raises(UsageError, match="no trial '9'"):
            find_trial(records, "9", "made")
        with pytest.raises(UsageError, match="has no trials yet"):
            find_trial(replay([]), "1", "made")

    def test_an_extended_trial_answers_to_its_earlier_key(self) -> None:
        records = replay(STORY)
        assert find_trial(records, "a", "made").key == "c"
