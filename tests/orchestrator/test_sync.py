"""sync sends what is pending, once, and says how much stays when the store is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from orchestrator import shipper as shipping
from orchestrator import sync as syncing
from orchestrator.home import StudyFiles
from orchestrator.journal import read
from orchestrator.sync import pending_events
from orchestrator.testing import BackendContract, tiny_study
from tests.orchestrator.invoking import Invoke, invoke
from tests.orchestrator.test_tracking import (
    Painter,
    assert_everything_once,
    empty_store,
    facts,
    paint,
    store,
)

__all__ = ["empty_store", "invoke", "store"]

# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "POLL_S", 0.01)
    monkeypatch.setattr(syncing, "PATIENCE_S", 0.05)


@pytest.fixture
def finished(store: Path, private_home: Path) -> StudyFiles:
    """A finished study that MLflow knows nothing of."""
    study = tiny_study()
    return paint(study, private_home / "studies", BackendContract.ARMS, Painter(), facts(study))


def n_events(files: StudyFiles) -> int:
    return sum(1 for _ in read(files.journal))


def test_everything_is_sent_once(invoke: Invoke, finished: StudyFiles) -> None:
    before = finished.journal.read_bytes()
    code, stdout, _ = invoke("sync", "--json")
    assert (code, json.loads(stdout)) == (0, [{"study": "tiny", "sent": n_events(finished)}])
    assert_everything_once(finished.root.parent)
    assert finished.journal.read_bytes() == before
    assert pending_events(finished) == 0
    assert "nothing is pending" in invoke("sync")[1]
    assert json.loads(invoke("sync", "tiny", "--json")[1]) == [{"study": "tiny", "sent": 0}]
    assert_everything_once(finished.root.parent)


def test_a_store_that_stays_away_leaves_everything_pending(
    invoke: Invoke, finished: StudyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(shipping.Shipper.__init__, "__kwdefaults__", {"backoff_s": (0.01,)})
    code, _, stderr = invoke("sync")
    assert code == 3
    assert f"{n_events(finished)} events pending in all" in " ".join(stderr.split())
    assert pending_events(finished) == n_events(finished)


def test_a_running_study_sends_for_itself(invoke: Invoke, finished: StudyFiles) -> None:
    with FileLock(finished.lock):
        code, _, stderr = invoke("sync", "tiny")
        assert (code, "study tiny is running, and sends its events itself" in stderr) == (2, True)
        code, _, stderr = invoke("sync")
        assert (code, "is running" in stderr) == (0, True)
    assert pending_events(finished) == n_events(finished)


def test_what_another_store_has_counts_for_nothing_here(invoke: Invoke, finished: StudyFiles) -> None:
    finished.shipped.write_text(json.dumps({"store": "http://elsewhere 1 2", "offset": 10**6}))
    assert pending_events(finished) == n_events(finished)
    finished.shipped.write_text("damaged")
    assert pending_events(finished) == n_events(finished)
