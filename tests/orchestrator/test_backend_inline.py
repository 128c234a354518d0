"""The in-process backend against the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.inline import InlineBackend
from orchestrator.journal import TrialReported, read
from orchestrator.study import Objective
from orchestrator.sweep import Sweep
from orchestrator.testing import BackendContract, make_sweep, run_sweep, tiny_study
from tests.trials.test_recorded import tape
from trials import worker
from trials.recorded import Recorded
from trials.reports import State
from trials.step import Step


class TestInlineBackend(BackendContract):
    def make_backend(self) -> InlineBackend:
        return InlineBackend()


class TestPackedInlineBackend(BackendContract):
    """Packs change nothing of what a backend promises."""

    PACK = 3

    def make_backend(self) -> InlineBackend:
        return InlineBackend()


class _Taped(Recorded):
    def __init__(self, step: Step) -> None:
        super().__init__(step, tape)


class _Recording(InlineBackend):
    def run(self, sweep: Sweep) -> None:
        sweep.recorded = lambda _: True
        super().run(sweep)


class TestRecordedInlineBackend(BackendContract):
    """Nor do recorded steps, alone or in packs."""

    PACK = 3

    @pytest.fixture(autouse=True)
    def recorded_on_a_tape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "Recorded", _Taped)

    def make_backend(self) -> InlineBackend:
        return _Recording()


def test_a_pack_shrinks_as_its_trials_end_and_all_of_them_complete(tmp_path: Path) -> None:
    """Arms of different lengths: the last trial of the pack goes on alone."""
    arms: dict[str, Any] = {f"a{n}": {"train": {"steps": n}} for n in (6, 12, 18)}
    study = tiny_study(arms=arms, space={}, seeds=[0], fixed={"width": 8, "latent_dim": 4, "dropout": 0.5})
    names: list[dict[str, Any]] = [{"arm": name} for name in arms]
    values = {}
    for pack in (1, 3):
        sweep, _ = make_sweep(study, tmp_path / str(pack), names, slots=1, pack=pack)
        trials = run_sweep(sweep, InlineBackend()).trials.values()
        assert [(t.state, t.step) for t in trials] == [(State.COMPLETED, n) for n in (6, 12, 18)]
        values[pack] = [t.value(Objective(metric="final/g_loss")) for t in trials]
    assert values[3] == pytest.approx(values[1], abs=1e-4)


@pytest.mark.parametrize("pack", [1, 2])
def test_a_recording_that_fails_is_noted_and_its_trials_complete(
    pack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(Recorded):
        def __init__(self, step: Step) -> None:
            super().__init__(step, self.refuse)

        def refuse(self, _: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("capture is not permitted")

    monkeypatch.setattr(worker, "Recorded", Refused)
    values = []
    for backend in (InlineBackend(), _Recording()):
        root = tmp_path / type(backend).__name__
        sweep, _ = make_sweep(tiny_study(), root, BackendContract.ARMS, pack=pack)
        trials = run_sweep(sweep, backend).trials.values()
        assert {t.state for t in trials} == {State.COMPLETED}
        values.append([t.value(Objective(metric="final/g_loss")) for t in trials])
    assert values[0] == values[1]
    notes = [
        note for e in read(sweep.files.journal) if isinstance(e[0], TrialReported) for note in e[0].notes
    ]
    assert notes == ["steps are not recorded: RuntimeError: capture is not permitted"] * len(trials)
