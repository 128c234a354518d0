"""Recorded steps are the steps themselves: shown on the CPU with a recorder that does what a CUDA graph does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from tests.trials.helpers import images_for, labels_for, same, small_spec
from trials.feed import BLOCK
from trials.packs import Pack, alone_because
from trials.recorded import WARM_UP, Recorded, why_not
from trials.state import fresh_state
from trials.step import Step, Trainer

aten = torch.ops.aten
FROM_THE_HOST = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.lift_fresh.default,
}
"""What a graph cannot record."""

Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class _Tape(TorchDispatchMode):
    """Notes every operation with the tensors that it read and made, below autograd: those of backward too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in FROM_THE_HOST or (
            func is aten.index.Tensor and any(i.dtype is torch.bool for i in args[1] if i is not None)
        ):
            raise AssertionError(f"{func} waits for the device, or brings a number to it")
        self.calls.append((func, args, kwargs or {}, out))
        return out


def tape(work: Callable[[], None]) -> Callable[[], None]:
    """Runs `work` without Python as a CUDA graph does: the same operations on the same memory, in their order.

    Whatever Python put into an operation the first time, such as a number, stays as it was. Unlike a CUDA graph it
    has an effect when it records, so that the first run is over by then.
    """
    with _Tape() as recorded:
        work()
    begun = False

    def replay() -> None:
        nonlocal begun
        if not begun:
            begun = True
            return
        with torch.no_grad():
            for func, args, kwargs, made in recorded.calls:
                new = func(*args, **kwargs)
                for old, fresh in zip(tree_leaves(made), tree_leaves(new), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != fresh.data_ptr():
                        old.copy_(fresh)

    return replay


def trainer(model: str, *, pack: bool = False, seed: int = 0, **options: Any) -> Trainer:
    spec = small_spec(model, steps=200, seed=seed, **options)
    images = images_for(spec)
    state = fresh_state(spec, (images.shape[1], images.shape[2], images.shape[3]), torch.device("cpu"))
    if options.get("lr_schedule"):
        for optimizer in (state.g_optimizer, state.d_optimizer):  # as on a GPU
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
    if pack:
        state.own_dropout()
    state.gan.generator.train()
    state.gan.discriminator.train()
    return Trainer(spec, state, images, labels_for(images))


def metrics_of(step: Step | Recorded, n: int) -> list[dict[str, float]]:
    """The metrics of every member after n steps, read twice on the way."""
    for i in range(n):
        step.step()
        if i in (n // 3, n // 2):
            for member in step.members:
                member.state.meter.read(**member.gradient_norms())
    return [member.state.meter.read(**member.gradient_norms()) for member in step.members]


CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in models.names() if not name.startswith("wgan_gp")},
    "wgan_gp_32": {"augment": False},
    "obs_mlp schedule": {"lr_schedule": "1:1e-3 1:1e-4..1e-3", "n_critic": 2, "real_batch": "fresh"},
    "obs_mlp noise": {"instance_noise": 0.3, "label_real": 0.9, "label_real_sd": 0.05, "ema": 0.9},
    "improved limits": {"l2": 1e-3, "grad_clip": 0.1, "max_norm": 0.5, "max_norm_layers": "all"},
    "improved separate": {"d_update": "separate", "dropout": 0.3, "batch_size_g": 12},
    "improved slopes": {"gradient_penalty": 1.0, "spectral_norm": "d", "precision": "bf16"},
    "improved sgd": {"optimizer": "sgd", "momentum": 0.5, "optimizer_g": "rmsprop"},
    "obs_dcgan scales": {"multi_scale": True, "equalized_lr": True, "drift": 1e-3},
}


@pytest.fixture(autouse=True)
def lstm_in_plain_operations() -> Iterator[None]:
    """oneDNN's LSTM layer hides what it keeps for backward from a tape."""
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of Intel GPUs
    yield
    torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_are_the_steps(case: str) -> None:
    model = case.split()[0]
    plain = trainer(model, **CASES[case])
    assert why_not(plain.spec, plain.gan) is None
    n = BLOCK + 7 if model in ("obs_mlp", "improved") else WARM_UP + 5
    expected = metrics_of(plain, n)
    wanted = plain.state.state_dict()
    recorded = trainer(model, **CASES[case])
    assert metrics_of(Recorded(recorded, tape), n) == expected
    found = recorded.state.state_dict()
    assert same(
        {k: v for k, v in found.items() if "rng" not in k},
        {k: v for k, v in wanted.items() if "rng" not in k},
    )


@pytest.mark.parametrize(
    "case", ["obs_mlp schedule", "obs_mlp noise", "improved separate", "improved slopes"]
)
def test_recorded_packs_are_the_packs(case: str) -> None:
    model = case.split()[0]
    steps = [
        Pack(
            [
                trainer(model, pack=True, seed=seed, lr=lr, **CASES[case])
                for seed, lr in enumerate((1e-3, 1e-4))
            ]
        )
        for _ in range(2)
    ]
    assert alone_because(steps[0].members[0].spec, steps[0].gan) is None
    expected = metrics_of(steps[0], BLOCK + 7)
    assert metrics_of(Recorded(steps[1], tape), BLOCK + 7) == expected


def test_a_recording_goes_on_from_the_middle_of_a_block() -> None:
    plain = trainer("obs_mlp")
    for _ in range(BLOCK - 5):
        plain.step()
    saved = copy.deepcopy(plain.state.state_dict())
    again = trainer("obs_mlp")
    again.state.load_state_dict(saved)
    resumed = Recorded(again, tape)
    assert metrics_of(resumed, 20) == metrics_of(plain, 20)


def test_the_tape_sees_what_python_would_have_changed() -> None:
    """A rate that the host sets is not in a recording: the comparison above can fail."""
    plain, recorded = trainer("obs_mlp", optimizer="sgd"), trainer("obs_mlp", optimizer="sgd")
    replayed = Recorded(recorded, tape)
    for step in (plain, replayed):
        metrics_of(step, WARM_UP + 2)
    for each in (plain, recorded):
        each.state.d_optimizer.param_groups[0]["lr"] = 0.5
    assert metrics_of(plain, 3) != metrics_of(replayed, 3)


def test_a_recording_that_fails_loses_nothing() -> None:
    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain, recorded = trainer("obs_mlp"), Recorded(trainer("obs_mlp"), refuse)
    assert metrics_of(recorded, WARM_UP + 5) == metrics_of(plain, WARM_UP + 5)
    assert recorded.failed == "RuntimeError: operation not permitted when stream is capturing"


@pytest.mark.parametrize(
    ("model", "options"), [("obs_mlp", {"augment": True}), ("wgan_gp_32", {"progressive": True})]
)
def test_what_changes_from_step_to_step_is_not_recorded(model: str, options: dict[str, Any]) -> None:
    grown = trainer(model, **options)
    assert why_not(grown.spec, grown.gan)
