"""Training on a CUDA device: the same loop, resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trials.helpers import small_spec, some_images, store_for
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
