"""The journal survives what crashes do to files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.journal import (
    ArmProposed,
    Event,
    Journal,
    StudyEnded,
    StudyStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
    read,
)

EVENTS: list[Event] = [
    StudyStarted(at_ms=1, uid="u", provenance={"v": "1"}),
    ArmProposed(at_ms=2, arm=0, proposal=0, values={"lr": 1e-3, "n": 2, "b": True}, keys={"k": 0}, steps=9),
    TrialStarted(at_ms=3, key="k", attempt=1),
    TrialReported(
        at_ms=4, key="k", attempt=1, step=2, rows=[(2, {"train/g_loss": 0.1})], pictures=[("s", 2, "p")]
    ),
    TrialEnded(at_ms=5, key="k", attempt=1, state="completed", step=9, reason="ü\n", detail=""),
    StudyEnded(at_ms=6, state="completed"),
]


def written(path: Path) -> bytes:
    journal = Journal(path)
    journal.append(*EVENTS)
    journal.close()
    return path.read_bytes()


def as_lists(events: list[Event]) -> list[str]:
    return [repr(event).replace("(", "[").replace(")", "]").replace(",]", "]") for event in events]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    written(tmp_path / "j")
    assert as_lists([event for event, _ in read(tmp_path / "j")]) == as_lists(EVENTS)


def test_reading_from_an_offset_gives_the_rest(tmp_path: Path) -> None:
    size = len(written(tmp_path / "j"))
    offsets = [offset for _, offset in read(tmp_path / "j")]
    assert offsets[-1] == size
    for i, offset in enumerate(offsets, 1):
        assert as_lists([e for e, _ in read(tmp_path / "j", offset)]) == as_lists(EVENTS[i:])


@given(cut=st.integers(0, 2000))
def test_a_torn_end_loses_no_complete_event_and_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("j") / "j"
    content = written(path)
    torn = content[: min(cut, len(content))]
    path.write_bytes(torn)
    complete = torn.count(b"\n")
    assert len(list(read(path))) == complete
    journal = Journal(path)
    journal.append(EVENTS[0])
    journal.close()
    assert len(list(read(path))) == complete + 1


def test_a_journal_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert list(read(tmp_path / "absent")) == []


def test_values_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(
            TrialReported(at_ms=0, key="k", attempt=1, step=1, rows=[(1, {"x": float("nan")})], pictures=[])
        )
    journal.close()
    assert list(read(tmp_path / "j")) == []
