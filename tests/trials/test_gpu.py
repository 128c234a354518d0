"""Training on a CUDA device: the same loop, resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from tests.trials.helpers import EVERYTHING, images_for, labels_for, small_spec, some_images, store_for
from trials.loop import train

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
