"""Training on a CUDA device: the same loop, resumed from a checkpoint, in packs, and from recorded steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from tests.trials.helpers import EVERYTHING, images_for, labels_for, small_spec, some_images, store_for
from trials.calibrate import calibrate
from trials.loop import train
from trials.packs import Pack, alone_because
from trials.recorded import Recorded, why_not
from trials.spec import TrialSpec
from trials.state import fresh_state
from trials.step import Step, Trainer

pytestmark = pytest.mark.gpu


def test_a_trial_trains_and_resumes_on_the_device(tmp_path: Path) -> None:
    images, spec = some_images().cuda(), small_spec("obs_dcgan")
    first = train(
        spec, images, None, store_for(spec, tmp_path, 1), tmp_path, checkpoint_every=4, report_every_s=0.0
    )
    while next(first).step < 6:
        pass
    resumed = list(train(spec, images, None, store_for(spec, tmp_path, 2), tmp_path, checkpoint_every=4))
    state, _ = store_for(spec, tmp_path, 3).load_latest(torch.device("cuda"))
    assert resumed[0].step > 4
    assert state is not None
    assert state["step"] == spec.steps


@pytest.mark.parametrize("model", models.names())
def test_every_model_trains_on_the_device_with_all_its_options(model: str, tmp_path: Path) -> None:
    options = dict(EVERYTHING.get(model, {}))
    if "gradient_penalty" not in models.preset(model).refuses:
        options["gradient_penalty"] = 1.0  # through an LSTM too, whose cuDNN kernel has no second derivative
    spec = small_spec(model, **options)
    images = images_for(spec).cuda()
    store = store_for(spec, tmp_path)
    reports = list(train(spec, images, labels_for(images).cuda(), store, tmp_path, checkpoint_every=4))
    assert reports[-1].step == spec.steps
    state, _ = store.load_latest(torch.device("cuda"))
    assert state is not None
    assert {value.device.type for value in state["generator"].values()} == {"cuda"}


def test_progressive_growing_on_the_device(tmp_path: Path) -> None:
    spec = small_spec("wgan_gp_32", progressive=True, train_kimg=0.016, fade_kimg=0.016, ema=0.9)
    images = images_for(spec).cuda()
    reports = list(train(spec, images, None, store_for(spec, tmp_path), tmp_path, checkpoint_every=4))
    assert reports[-1].step == spec.steps


CUDA = torch.device("cuda")


def trainer(spec: TrialSpec, *, pack: bool = False) -> Trainer:
    images = images_for(spec).to(CUDA)
    state = fresh_state(spec, (images.shape[1], images.shape[2], images.shape[3]), CUDA)
    if pack:
        state.own_dropout()
    state.gan.generator.train()
    state.gan.discriminator.train()
    return Trainer(spec, state, images, labels_for(images).to(CUDA))


def losses(step: Step | Recorded, n: int) -> list[dict[str, float]]:
    for _ in range(n):
        step.step()
    return [member.state.meter.read(**member.gradient_norms()) for member in step.members]


OPTIONS: dict[str, dict[str, object]] = {
    **{model: {} for model in models.names()},
    "obs_mlp schedule": {"lr_schedule": "1:1e-3 1:1e-4..1e-3", "n_critic": 2, "instance_noise": 0.1},
    "improved sgd": {"optimizer": "sgd", "momentum": 0.5, "optimizer_g": "rmsprop", "grad_clip": 0.1},
    "obs_mlp sgd schedule": {"optimizer": "sgd", "momentum": 0.5, "lr_schedule": "1:1e-3 1:1e-4"},
    "obs_mlp rmsprop schedule": {"optimizer": "rmsprop", "lr_schedule": "1:1e-3 1:1e-4"},
    "obs_mlp bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_recorded_steps_are_the_steps_on_the_device(case: str) -> None:
    spec = small_spec(case.split()[0], steps=200, **{"augment": False, **OPTIONS[case]})  # type: ignore[arg-type]
    plain = trainer(spec)
    assert why_not(spec, plain.gan) is None
    (wanted,), (found,) = losses(plain, 10), losses(Recorded(trainer(spec)), 10)
    assert found == pytest.approx(wanted, rel=2e-2 if "bf16" in case else 1e-3, abs=1e-3)


@pytest.mark.parametrize("model", ["obs_mlp", "improved", "baseline", "rnn_timestep"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_pack_on_the_device_computes_what_its_trials_compute_alone(model: str, recorded: bool) -> None:
    specs = [
        small_spec(model, steps=200, seed=seed, lr=lr, dropout=0.0) for seed, lr in enumerate((1e-3, 1e-4))
    ]
    wanted = [losses(trainer(spec), 10)[0] for spec in specs]
    pack = Pack([trainer(spec, pack=True) for spec in specs])
    assert alone_because(specs[0], pack.members[0].gan) is None
    found = losses(Recorded(pack) if recorded else pack, 10)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_a_checkpoint_moves_between_the_processor_and_the_device(tmp_path: Path) -> None:
    for first, second in ((torch.device("cpu"), CUDA), (CUDA, torch.device("cpu"))):
        spec = small_spec("obs_mlp", lr_schedule="1:1e-3 1:1e-4", optimizer_g="rmsprop")
        directory = tmp_path / first.type
        run = train(
            spec, images_for(spec).to(first), None, store_for(spec, directory, 1), directory,
            checkpoint_every=4, report_every_s=0.0,
        )  # fmt: skip
        while next(run).step < 6:
            pass
        images = images_for(spec).to(second)
        resumed = list(
            train(spec, images, None, store_for(spec, directory, 2), directory, checkpoint_every=4)
        )
        assert resumed[-1].step == spec.steps


def test_measuring_finds_recordings_faster_or_says_why_there_are_none() -> None:
    found = calibrate(small_spec("obs_mlp", width=32), (1, 8, 8), "default", device="cuda", most=4)
    assert set(found.packed_ms) == {2, 4}
    assert found.notes == ()
    assert set(found.recorded_ms) == {1, 2, 4}
