"""Checkpoints: atomic, checked, fenced, and never pickles that run code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.trials.helpers import final_state, run, same, small_spec, start, store_for
from trials.checkpoints import CheckpointStore, load
from trials.errors import CheckpointError, FencedError

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    opened = CheckpointStore(directory=tmp_path / "c", key="k", attempt=1)
    opened.open()
    return opened


def test_what_was_saved_is_loaded(store: CheckpointStore) -> None:
    store.save({"w": torch.arange(3), "step": 5}, 5)
    state, notes = store.load_latest(CPU)
    assert state is not None
    assert torch.equal(state["w"], torch.arange(3))
    assert (state["step"], notes) == (5, [])


def test_the_two_newest_stay(store: CheckpointStore) -> None:
    for step in (10, 200, 9_000):
        store.save({}, step)
    assert sorted(p.name for p in store.directory.glob("step_*")) == ["step_000000200", "step_000009000"]


def test_unusable_checkpoints_of_later_steps_make_way(store: CheckpointStore) -> None:
    for step in (8, 9):
        (store.save({}, step) / "manifest.json").unlink()
    store.save({"step": 1}, 1)
    assert store.load_latest(CPU) == ({"step": 1}, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "torn manifest", "no state"])
def test_a_damaged_checkpoint_is_named_and_passed_over(store: CheckpointStore, damage: str) -> None:
    store.save({"step": 1}, 1)
    newest = store.save({"step": 2}, 2)
    data, manifest = newest / "state.pt", newest / "manifest.json"
    content = data.read_bytes()
    match damage:
        case "truncated":
            data.write_bytes(content[:-10])
        case "flipped":
            data.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_text(manifest.read_text()[:30])
        case "no state":
            data.unlink()
    state, notes = store.load_latest(CPU)
    assert state == {"step": 1}
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint step_000000002 is damaged")


def test_a_damaged_checkpoint_costs_the_trial_one_interval(tmp_path: Path) -> None:
    spec = small_spec(steps=12)
    dying = start(spec, store_for(spec, tmp_path), tmp_path, checkpoint_every=4, report_every_s=0.0)
    while next(dying).step < 10:
        pass
    newest = tmp_path / "checkpoints" / "step_000000008" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    again = run(spec, tmp_path, attempt=2)
    assert min(report.step for report in again) == 6
    run(spec, tmp_path / "whole")
    assert same(final_state(spec, tmp_path), final_state(spec, tmp_path / "whole"))


def test_a_finished_trial_keeps_its_last_checkpoint_alone(tmp_path: Path) -> None:
    run(small_spec(steps=12), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step_*")] == ["step_000000012"]


def test_the_checkpoint_of_another_trial_is_refused(store: CheckpointStore) -> None:
    path = store.save({}, 1)
    with pytest.raises(CheckpointError, match="belongs to trial k, not other"):
        load(path, ("other",), CPU)


def test_a_newer_format_is_refused(store: CheckpointStore) -> None:
    path = store.save({}, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load(path, None, CPU)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("canary",)


def test_a_pickle_that_would_run_code_is_refused(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store.save({"step": 1}, 1)
    store.save({"evil": Evil()}, 2)
    state, notes = store.load_latest(CPU)
    assert state == {"step": 1}
    assert "step_000000002" in notes[0]
    assert not (tmp_path / "canary").exists()


def test_an_older_attempt_can_neither_open_nor_save(store: CheckpointStore) -> None:
    CheckpointStore(directory=store.directory, key="k", attempt=2).open()
    with pytest.raises(FencedError):
        store.save({}, 1)
    with pytest.raises(FencedError):
        store.open()
    assert store.latest() is None


def test_what_a_killed_attempt_left_half_done_is_no_checkpoint_and_is_removed(store: CheckpointStore) -> None:
    litter = store.directory / "step_000000003.tmp-1"
    litter.mkdir()
    (litter / "state.pt").write_bytes(b"half")
    assert store.latest() is None
    CheckpointStore(directory=store.directory, key="k", attempt=2).open()
    assert not litter.exists()


def test_a_failed_write_leaves_no_final_name(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.save({}, 7)
    assert store.latest() is None


def test_the_manifest_says_whose_checkpoint_it_is(tmp_path: Path) -> None:
    spec = small_spec(steps=4)
    run(spec, tmp_path, attempt=3)
    manifest = json.loads(
        (store_for(spec, tmp_path, 3).directory / "step_000000004" / "manifest.json").read_text()
    )
    assert (manifest["key"], manifest["step"], manifest["attempt"]) == (spec.key, 4, 3)
