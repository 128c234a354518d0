"""Images from checkpoints are the trial's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator import commands
from orchestrator.backends.inline import InlineBackend
from orchestrator.errors import UsageError
from orchestrator.home import StudyFiles, home
from orchestrator.reading import read_study
from orchestrator.sampling import draw, find_source, write
from orchestrator.status import checkpoints_of
from orchestrator.study import Objective
from orchestrator.testing import make_sweep, run_sweep, tiny_study
from tests.orchestrator.fabricated import fabricate
from trials.samples import FIXED_NOISE_SEED


def trained(**changes: Any) -> StudyFiles:
    """A study of one arm and two seeds, trained in this process."""
    study = tiny_study(**{"space": {}, "pictures": {"count": 2, "samples": 4, "gallery": False}, **changes})
    root = home() / "studies"
    sweep, _ = make_sweep(study, root, [{}])
    records = run_sweep(sweep, InlineBackend())
    assert records.state == "completed", [t.reason for t in records.trials.values()]
    files = StudyFiles(root / study.name)
    files.definition.write_text(study.model_dump_json())
    return files


def keys(files: StudyFiles) -> list[str]:
    return sorted(path.name for path in (files.root / "trials").iterdir())


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a trained study, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_SWEEP_HOME", str(tmp_path_factory.mktemp("home")))
        trained(fixed={"width": 8, "latent_dim": 4, "ema": 0.5})
        return home()


@pytest.fixture
def study(kept: Path, private_home: Path) -> StudyFiles:
    shutil.copytree(kept, private_home)
    return StudyFiles.of("tiny")


def test_the_seed_of_the_studys_pictures_draws_the_trials_last_grid_bit_for_bit(
    study: StudyFiles, tmp_path: Path
) -> None:
    for trial, raw, name in (("0", False, ""), ("1", False, ""), ("0", True, "raw_")):
        source = find_source("tiny", trial)
        # The newest checkpoint: the best one may be of an earlier step.
        newest = max(source.checkpoints)
        samples = draw(find_source(str(newest)), 4, FIXED_NOISE_SEED, raw=raw)
        assert samples.averaged is not raw
        (path,) = write(samples, tmp_path / "grid.png")
        own = study.trial(source.key) / "samples" / f"{name}step_{samples.step:09d}.png"
        assert np.array_equal(pixels(path), pixels(own))


def test_another_seed_draws_other_images_and_the_same_one_the_same(study: StudyFiles) -> None:
    source = find_source(None)
    first, again, other = (draw(source, 6, seed).images for seed in (0, 0, 1))
    assert first.shape == (6, 1, 8, 8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_drawing_leaves_the_random_state_alone(study: StudyFiles) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    draw(find_source(None), 2, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_best_trial_is_taken_unless_another_is_named(study: StudyFiles) -> None:
    from orchestrator.leaderboard import leaderboard
    from orchestrator.status import load_definition, load_records

    records = load_records(study)
    best = leaderboard(records, *load_definition(study).objectives)[0].best_trial
    assert best is not None
    assert find_source("tiny").key == best.key
    assert [find_source("tiny", str(i)).key for i in range(2)] == list(records.trials)
    assert find_source("tiny", best.key[:12]).key == best.key


def test_a_damaged_checkpoint_is_passed_over_with_a_note(study: StudyFiles) -> None:
    source = find_source("tiny", "0")
    if len(source.checkpoints) == 1:  # the last step was the best
        shutil.copytree(source.checkpoints[0], source.checkpoints[0].with_name("step_000000001"))
    source = find_source("tiny", "0")
    (source.checkpoints[0] / "state.pt").write_bytes(b"damaged")
    samples = draw(source, 2, 0)
    assert samples.checkpoint == source.checkpoints[1]
    assert len(samples.notes) == 1
    for path in source.checkpoints:
        (path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"no checkpoint can be read:\n  checkpoint step_\d+ is damaged"):
        draw(source, 2, 0)


def test_what_cannot_be_sampled_is_told(study: StudyFiles, tmp_path: Path) -> None:
    for arguments, words in (
        (("tiny", "7777777"), "no trial '7777777'; it has numbers 0 to 1"),
        (("tiny", "zzz"), "no trial 'zzz'"),
        (("absent", None), "no study is called 'absent'"),
        ((str(tmp_path), None), "is no checkpoint"),
        ((str(max(find_source("tiny").checkpoints)), "0"), "a checkpoint is of one trial already"),
    ):
        with pytest.raises(UsageError, match=words):
            find_source(*arguments)
    with pytest.raises(UsageError, match=r"--class 3: obs_mlp makes images of no particular class"):
        draw(find_source("tiny"), 2, 0, label=3)
    with pytest.raises(UsageError, match="--n must be from 1"):
        draw(find_source("tiny"), 0, 0)
    shutil.rmtree(study.trial(find_source("tiny", "0").key) / "checkpoints")
    with pytest.raises(UsageError, match="has no checkpoint"):
        find_source("tiny", "0")


def test_a_checkpoint_away_from_its_study_is_refused(study: StudyFiles, tmp_path: Path) -> None:
    moved = tmp_path / "a" / "b" / "c" / "d" / "step_000000012"
    shutil.copytree(max(find_source("tiny").checkpoints), moved)
    with pytest.raises(UsageError, match="does not lie in a study's directory"):
        find_source(str(moved))


def test_images_come_as_a_grid_an_array_or_a_file_each(study: StudyFiles, tmp_path: Path) -> None:
    samples = draw(find_source("tiny"), 11, 0)
    (array,) = write(samples, tmp_path / "x" / "images.npy")
    assert np.array_equal(np.load(array), samples.images)
    paths = write(samples, tmp_path / "each")
    assert [path.name for path in paths][:2] == ["00.png", "01.png"]
    for path, image in zip(paths, samples.images, strict=True):
        assert np.array_equal(pixels(path)[..., 0], image[0])
    with pytest.raises(UsageError, match=r"write FILE.png"):
        write(samples, tmp_path / "images.gif")
    assert write(samples, tmp_path / "threes.v2")[0] == tmp_path / "threes.v2" / "00.png"


def test_a_directory_with_other_pictures_is_refused_and_one_of_the_same_is_written_over(
    study: StudyFiles, tmp_path: Path
) -> None:
    source = find_source("tiny")
    out = tmp_path / "each"
    write(draw(source, 11, 0), out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    few = draw(source, 4, 0)
    with pytest.raises(UsageError, match=r"each holds other pictures \(00.png and 10 more\)"):
        write(few, out)
    with pytest.raises(UsageError, match="holds other pictures"):
        commands.sample("tiny", trial=None, n=4, seed=1, label=None, out=out, raw=False)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    write(draw(source, 11, 1), out)
    assert len(list(out.iterdir())) == 11


@pytest.mark.parametrize(
    ("objective", "first"),
    [
        (None, 4),
        (Objective(metric="eval/fd"), 4),
        (Objective(metric="eval/fd", at="last"), 12),
        (Objective(metric="eval/nn_train_ratio", mode="max"), 12),
        (Objective(metric="final/d_acc", mode="max"), 12),
    ],
)
def test_the_checkpoint_of_the_value_comes_first(
    objective: Objective | None, first: int, private_home: Path
) -> None:
    files = fabricate()
    trial = next(iter(read_study(files).records.trials.values()))
    for step in (4, 8, 12):
        made = files.trial(trial.key) / "checkpoints" / f"step_{step:09d}"
        made.mkdir(parents=True)
        (made / "manifest.json").write_text(json.dumps({"best": step == 4}))
    steps = [int(path.name.removeprefix("step_")) for path in checkpoints_of(files, trial, objective)]
    assert steps == [first, *(step for step in (12, 8, 4) if step != first)]


def test_a_conditional_model_draws_the_class_that_is_asked_for(private_home: Path) -> None:
    trained(
        model="rnn_timestep",
        fixed={"latent_dim": 4, "g_hidden": 8, "d_hidden": 8, "g_layers": 1, "d_layers": 1},
        seeds=[0],
    )
    source = find_source(None)
    mixed = draw(source, 20, 0).images
    threes = draw(source, 20, 0, label=3).images
    of_class = np.arange(20) % 10 == 3
    assert np.array_equal(mixed[of_class], threes[of_class])
    assert not np.array_equal(mixed[~of_class], threes[~of_class])
    with pytest.raises(UsageError, match="has classes 0 to 9"):
        draw(source, 2, 0, label=10)


def test_the_command_says_what_it_drew(study: StudyFiles, tmp_path: Path) -> None:
    answer = commands.sample(None, trial="0", n=4, seed=1, label=None, out=tmp_path / "s.png", raw=False)
    assert answer.files == {"images": tmp_path / "s.png"}
    assert "4 images of the averaged generator" in answer.lines[0]
