"""A pack computes what its trials compute alone, and nothing of one trial reaches another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import models
from models._batched import Batched, layers_without_twin
from models._layers import MinibatchStddev, PixelNorm
from tests.trials.helpers import images_for, labels_for, small_spec
from trials import step as step_module
from trials.data import to_pixels
from trials.packs import Pack, alone_because, fusion_key
from trials.state import fresh_state
from trials.step import Step, Trainer

Losses = list[tuple[float, ...]]

ARMS: tuple[dict[str, Any], ...] = (
    {"lr": 3e-4, "label_real": 0.9},
    {"lr": 1e-4, "beta1": 0.9, "weight_decay": 1e-3},
    {"optimizer": "rmsprop", "label_fake": 0.1, "lr_d": 3e-4},
    {"optimizer": "sgd", "lr": 0.01, "momentum": 0.5},
)
"""One pack of four trials: their optimisers, rates and targets differ."""

CASES: dict[str, dict[str, Any]] = {
    "obs_mlp": {},
    "baseline": {},
    "improved": {"pixel_norm": "after", "minibatch_stddev": True},
    "obs_mlp dropout": {"dropout": 0.3},
    "obs_mlp noise": {"instance_noise": 0.2, "augment": True, "label_real_sd": 0.05},
    "obs_mlp averaged": {"ema": 0.9, "drift": 1e-2, "lr_schedule": "1:1e-3 1:1e-4..1e-3"},
    "improved limits": {"l2": 1e-3, "grad_clip": 0.1, "max_norm": 0.5, "max_norm_layers": "all"},
    "improved separate": {"d_update": "separate", "sampling": "replacement", "batch_size_g": 12},
    "obs_mlp mixed": {"d_update": "mixed", "n_critic": 2, "real_batch": "fresh", "minibatch_stddev": True},
    "rnn_timestep": {},
    "rnn_timestep 16": {"timesteps": 16, "head": "sigmoid", "minibatch_stddev": True},
    "obs_mlp slopes": {"gradient_penalty": 10.0, "spectral_norm": "d", "gp_target": 0.5},
    "improved slopes": {"gradient_penalty": 1.0, "gp_alpha": "normal", "d_update": "mixed", "dropout": 0.3},
    "baseline slopes": {"gradient_penalty": 1.0, "minibatch_stddev": True, "minibatch_stddev_group": 4},
    "obs_mlp spectral": {"spectral_norm": "d", "n_critic": 2, "ema": 0.9},
    "improved spectral": {"spectral_norm": "both", "d_update": "separate", "l2": 1e-3},
    "obs_mlp equalised": {"equalized_lr": True},
    "improved equalised": {"equalized_lr": True, "gradient_penalty": 1.0, "pixel_norm": "after"},
    "improved groups": {"minibatch_stddev": True, "minibatch_stddev_group": 2, "batch_size_g": 12},
    "rnn_timestep rows": {"sections": "rows", "d_all_layers": True, "d_input_proj": True, "dropout": 0.0},
    "rnn_timestep clipped": {"l2": 0.0, "grad_clip": 1e-4},
    "rnn_timestep slopes": {"gradient_penalty": 1.0, "g_layers": 1},
    "rnn_timestep both": {"spectral_norm": "d", "gradient_penalty": 1.0, "d_input_proj": True},
    "rnn_timestep spectral": {"spectral_norm": "both", "g_layers": 1},
    "rnn_timestep equalised": {"equalized_lr": True, "d_input_proj": True, "head": "sigmoid"},
    "rnn_timestep groups": {"minibatch_stddev": True, "minibatch_stddev_group": 4, "d_layers": 1},
}


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, real images too."""
    single = to_pixels
    monkeypatch.setattr(step_module, "to_pixels", lambda images, pixels: single(images, pixels).double())
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Grows with every step by its losses: those of D on real and fake, of G, and the penalties; (L,) or (L, K)."""
    seen: list[Tensor] = []
    for kind in (Trainer, Pack):

        def end(self: Step, *figures: Any, original: Callable[..., None] = kind._end) -> None:
            penalties: dict[str, Tensor] = figures[-1]
            seen.append(torch.stack([x.detach() for x in (*figures[:3], *penalties.values())]))
            original(self, *figures)

        monkeypatch.setattr(kind, "_end", end)
    return seen


def trainers(model: str, arms: Sequence[dict[str, Any]], *, pack: bool, steps: int = 100) -> list[Trainer]:
    """Fresh trainers of these arms with seeds 0, 1, ...; for a pack each keeps its dropout's stream."""
    made = []
    for seed, arm in enumerate(arms):
        spec = small_spec(model, steps=steps, seed=seed, **arm)
        images = images_for(spec)
        state = fresh_state(spec, (images.shape[1], images.shape[2], images.shape[3]), torch.device("cpu"))
        if pack:
            state.own_dropout()
        state.gan.generator.train()
        state.gan.discriminator.train()
        made.append(Trainer(spec, state, images, labels_for(images)))
    return made


def compared(case: str, steps: int, losses: list[Tensor]) -> float:
    """The largest difference of a loss between trials alone and in a pack; relative where the loss is above 1."""
    model, arms = case.split()[0], [{**arm, **CASES[case]} for arm in ARMS]
    alone = []
    for i in range(len(arms)):
        losses.clear()
        # Only the last one's random state is current: trials alone run one after the other.
        trainer = trainers(model, arms[: i + 1], pack=False)[-1]
        for _ in range(steps):
            trainer.step()
        alone.append(torch.stack(losses))  # (steps, L)
    losses.clear()
    pack = Pack(trainers(model, arms, pack=True))
    for _ in range(steps):
        pack.step()
    wanted = torch.stack(alone, dim=-1)  # (steps, L, K)
    return float(((torch.stack(losses) - wanted) / wanted.abs().clamp(min=1)).abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("float64")
def test_in_float64_a_hundred_steps_are_those_of_the_trials_alone(case: str, losses: list[Tensor]) -> None:
    assert compared(case, 100, losses) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_in_float32_ten_steps_are_those_of_the_trials_alone(case: str, losses: list[Tensor]) -> None:
    assert compared(case, 10, losses) < 5e-5


def test_the_comparison_sees_a_difference(losses: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pack, "real_target", lambda self: self._option("label_fake"))
    assert compared("baseline", 3, losses) > 1e-2


def test_a_trial_that_is_not_finite_leaves_the_others_untouched(losses: list[Tensor]) -> None:
    arms: list[dict[str, Any]] = [{"lr": 1e-3}, {"optimizer": "sgd"}, {"lr": 1e-4}]
    pack = Pack(trainers("improved", arms, pack=True))
    with torch.no_grad():
        next(pack.trainers[1].gan.generator.parameters()).fill_(float("nan"))
    for _ in range(5):
        pack.step()
    poisoned = torch.stack(losses)
    assert poisoned[-1, :, 1].isnan().any()
    losses.clear()
    healthy = Pack(trainers("improved", arms, pack=True))
    for _ in range(5):
        healthy.step()
    assert torch.equal(poisoned[:, :, [0, 2]], torch.stack(losses)[:, :, [0, 2]])


@pytest.mark.parametrize("case", ["obs_mlp averaged", "improved limits", "improved spectral", "rnn_timestep"])
@pytest.mark.usefixtures("float64")
def test_a_trial_moves_between_a_pack_and_being_alone(case: str, losses: list[Tensor]) -> None:
    """Saved in a pack it goes on alone, and saved alone it goes on in a pack, as if nothing had happened."""
    model, arms = case.split()[0], [{**arm, **CASES[case]} for arm in ARMS]
    through = Pack(trainers(model, arms, pack=True))
    for _ in range(20):
        through.step()
    saved = [copy.deepcopy(trainer.state.state_dict()) for trainer in through.trainers]
    losses.clear()
    for _ in range(20):
        through.step()
    wanted = torch.stack(losses)  # (steps, L, K)

    for k, state in enumerate(saved):
        alone = trainers(model, arms[: k + 1], pack=False)[-1]
        alone.state.load_state_dict(copy.deepcopy(state))
        losses.clear()
        for _ in range(20):
            alone.step()
        assert float((torch.stack(losses) - wanted[:, :, k]).abs().max()) < 1e-12

    again = trainers(model, arms, pack=True)
    for trainer, state in zip(again, saved, strict=True):
        trainer.state.load_state_dict(copy.deepcopy(state))
    losses.clear()
    pack = Pack(again[1:])  # the others are compacted, or begin a new pack
    for _ in range(20):
        pack.step()
    assert float((torch.stack(losses) - wanted[:, :, 1:]).abs().max()) < 1e-12


def test_gradients_have_the_strides_of_their_parameters() -> None:
    """The fused optimisers on a CPU compute wrong updates from others, without a word."""
    for case in ("obs_mlp", "improved spectral", "improved equalised", "rnn_timestep", "rnn_timestep both"):
        arms = [{**arm, **CASES[case]} for arm in ARMS]
        pack = Pack(trainers(case.split()[0], arms, pack=True))
        pack.step()
        for trainer in pack.trainers:
            for net in (trainer.gan.generator, trainer.gan.discriminator):
                for parameter in net.parameters():
                    assert parameter.grad is not None
                    assert parameter.grad.stride() == parameter.stride()


def test_vmap_agrees_with_the_twins_of_layers() -> None:
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            nn.Linear(5, 7), nn.LeakyReLU(0.2), nn.BatchNorm1d(7, eps=1e-3, momentum=0.2), nn.Linear(7, 12),
            PixelNorm(), nn.ReLU(), MinibatchStddev(), nn.Linear(13, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)),
            nn.Flatten(), nn.Sigmoid(),
        )
        for _ in range(3)
    ]  # fmt: skip
    x = torch.randn(3, 6, 5)  # (K, N, F)
    parameters, buffers = stack_module_state(copy.deepcopy(nets))
    base = copy.deepcopy(nets[0])
    expected = torch.vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(parameters, buffers, x)
    batched = Batched(nets, [])
    assert torch.allclose(batched(x.transpose(1, 2)).transpose(1, 2), expected, atol=1e-6)
    for name, running in buffers.items():
        for k, net in enumerate(nets):
            assert torch.allclose(dict(net.named_buffers())[name].double(), running[k].double(), atol=1e-6)


@pytest.mark.parametrize("model", models.names())
def test_every_model_has_a_batched_form_or_a_reason(model: str) -> None:
    spec = small_spec(model)
    gan = models.build(spec.model, images_for(spec).shape[1:], spec.model_params, spec.n_classes)  # type: ignore[arg-type]
    reason = alone_because(spec, gan)
    if model in ("obs_mlp", "improved", "baseline", "rnn_timestep"):
        assert reason is None
    assert reason is None or reason.startswith("there is no batched form of ")


@pytest.mark.parametrize(
    "options",
    [
        {"spectral_norm": "both", "gradient_penalty": 1.0},
        {"equalized_lr": True},
        {"minibatch_stddev": True, "minibatch_stddev_group": 4},
    ],
)
@pytest.mark.parametrize("model", ["obs_mlp", "improved", "baseline", "rnn_timestep"])
def test_every_stabiliser_of_mlps_and_lstms_has_a_batched_form(model: str, options: dict[str, Any]) -> None:
    spec = small_spec(model, **options)
    gan = models.build(spec.model, (1, 8, 8), spec.model_params, spec.n_classes)
    assert alone_because(spec, gan) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spectral_norm": "d"}, "_DcganDiscriminator, _DcganGenerator"),
        ({"multi_scale": True}, "images of several scales"),
    ],
)
def test_what_has_no_batched_form_is_named(options: dict[str, Any], words: str) -> None:
    spec = small_spec("obs_dcgan", **options)
    gan = models.build(spec.model, (1, 8, 8), spec.model_params)
    assert alone_because(spec, gan) == f"there is no batched form of {words}"


def test_computed_weights_without_a_twin_are_named_and_layers_by_what_they_were() -> None:
    net = nn.Sequential(spectral_norm(nn.Conv2d(1, 1, 1)), weight_norm(nn.Linear(2, 2)))
    assert set(layers_without_twin(net)) == {"Linear with a computed weight", "Conv2d"}


def test_spectral_norm_finds_the_largest_singular_value_of_every_network() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7) for _ in range(3)]
    weights = [layer.weight.detach().clone() for layer in layers]
    batched = Batched([spectral_norm(layer) for layer in layers], [])
    for _ in range(100):
        out = batched(torch.eye(5).expand(3, 5, 5))  # (K, out, in): the weights, plus the bias
    for layer, weight, mine in zip(layers, weights, out, strict=True):
        assert torch.allclose(
            mine - layer.bias[:, None], weight / torch.linalg.matrix_norm(weight, 2), atol=1e-6
        )


def test_trials_share_a_key_unless_shapes_or_steps_differ() -> None:
    base = small_spec("obs_mlp")
    same = ({"lr": 1e-5}, {"seed": 7}, {"optimizer": "sgd"}, {"label_real": 0.9}, {"ema": 0.9}, {"steps": 50})
    other = (
        {"width": 16},
        {"batch_size": 4},
        {"n_critic": 2},
        {"precision": "bf16"},
        {"dropout": 0.5},
        {"l2": 0.1},
        {"gradient_penalty": 1.0},
        {"spectral_norm": "d"},
    )
    assert {fusion_key(small_spec("obs_mlp", **change)) for change in same} == {fusion_key(base)}
    assert fusion_key(base) not in {fusion_key(small_spec("obs_mlp", **change)) for change in other}
    assert fusion_key(small_spec("obs_mlp", dropout=0.5)) == fusion_key(small_spec("obs_mlp", dropout=0.2))
    slopes = fusion_key(small_spec("obs_mlp", gradient_penalty=1.0))
    assert slopes == fusion_key(small_spec("obs_mlp", gradient_penalty=10.0, gp_target=0.0))
    assert slopes != fusion_key(small_spec("obs_mlp", gradient_penalty=1.0, gp_alpha="normal"))
