"""Every training option against its definition, on real steps of small models."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from tests.trials.helpers import images_for, labels_for, small_spec
from trials.feed import DataOrder
from trials.state import TrainState, fresh_state
from trials.step import Trainer, average_, faded, held_by_max_norm, judges_alone, project_, pyramid


def begin(model: str = "obs_mlp", *, steps: int = 12, n: int = 40, seed: int = 0, **options: Any) -> Trainer:
    """A trainer at step 0, on noise."""
    spec = small_spec(model, steps=steps, seed=seed, **options)
    images = images_for(spec, n)
    state = fresh_state(spec, (images.shape[1], images.shape[2], images.shape[3]), torch.device("cpu"))
    state.gan.generator.train()
    state.gan.discriminator.train()
    return Trainer(spec, state, images, labels_for(images))


def after(trainer: Trainer, steps: int = 1) -> dict[str, float]:
    """The metrics of the next steps."""
    for _ in range(steps):
        trainer.step()
    return trainer.state.meter.read(**trainer.gradient_norms())


def weights(module: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def seen_by(module: nn.Module, batch: int = 0) -> list[Any]:
    """Grows with every input the module is given, cut into batches of `batch` images."""
    seen: list[Any] = []
    module.register_forward_pre_hook(
        lambda _, args: seen.extend(args[0].split(batch) if batch else [args[0]])
    )
    return seen


def updates_of(optimizer: torch.optim.Optimizer) -> list[None]:
    """Grows with every update."""
    made: list[None] = []
    optimizer.register_step_pre_hook(lambda *_: made.append(None))
    return made


@pytest.mark.parametrize("model", models.names())
def test_gradients_have_the_strides_of_their_parameters(model: str) -> None:
    """The fused optimisers on a CPU compute wrong updates from others, without a word."""
    trainer = begin(model, augment=False)
    trainer.step()
    for net in (trainer.gan.generator, trainer.gan.discriminator):
        for parameter in net.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()


# Targets


@pytest.mark.parametrize(
    ("option", "metric"),
    [("label_real", "d_loss_real"), ("label_fake", "d_loss_fake"), ("label_generator", "g_loss")],
)
def test_cross_entropy_is_linear_in_its_target(option: str, metric: str) -> None:
    others: dict[str, Any] = {"label_real": 1.0} if option != "label_real" else {"label_fake": 0.0}
    # The generator's loss is seen after D's update, which must be the same in all three runs.
    loss = {t: after(begin(**{**others, option: t}))[metric] for t in (0.3, 0.9, 0.6)}
    assert loss[0.6] == pytest.approx(0.5 * (loss[0.3] + loss[0.9]), rel=1e-5)
    assert loss[0.3] != loss[0.9]


def test_targets_change_no_accuracy() -> None:
    hard, soft = after(begin()), after(begin(label_real=0.9, label_fake=0.1))
    assert (hard["d_acc_real"], hard["d_acc_fake"]) == (soft["d_acc_real"], soft["d_acc_fake"])


def test_a_drawn_target_is_new_every_epoch_normal_and_at_most_1() -> None:
    """With one batch an epoch and hardly any learning, the loss on the same images tells the target."""
    one = begin(n=8, lr=1e-30, label_real=1.0)
    half = begin(n=8, lr=1e-30, label_real=0.5)
    ends = after(one)["d_loss_real"], after(half)["d_loss_real"]
    trainer = begin(n=8, steps=400, lr=1e-30, label_real=0.9, label_real_sd=0.05)
    losses = np.array([after(trainer)["d_loss_real"] for _ in range(400)])
    targets = 0.5 + 0.5 * (losses - ends[1]) / (ends[0] - ends[1])
    assert targets.max() <= 1 + 1e-4
    assert np.isclose(targets, 1, atol=1e-3).mean() == pytest.approx(0.0228, abs=0.025)  # cut off at 2 sd
    assert targets.mean() == pytest.approx(0.9, abs=0.01)
    assert targets.std() == pytest.approx(0.05, abs=0.008)


def test_a_drawn_target_stays_the_same_within_an_epoch() -> None:
    whole, parts = begin(n=8, lr=1e-30, label_real=0.8, label_real_sd=0.1), None
    parts = begin(n=16, lr=1e-30, label_real=0.8, label_real_sd=0.1)
    same = begin(n=16, lr=1e-30, label_real=0.8)
    assert after(whole)["d_loss_real"] != pytest.approx(after(same)["d_loss_real"])
    drawn = [after(parts)["d_loss_real"] for _ in range(2)]
    fixed = [after(begin(n=16, lr=1e-30, label_real=t), 2)["d_loss_real"] for t in (0.0, 1.0)]
    assert min(fixed) <= np.mean(drawn) <= max(fixed)


# Rates and optimisers


@pytest.mark.parametrize("net", ["g", "d"])
def test_each_net_has_its_own_rate(net: str) -> None:
    moves = []
    for factor in (1, 3):
        own: dict[str, Any] = {f"lr_{net}": factor * 1e-4}
        trainer = begin(optimizer="sgd", lr=1e-4, **own)
        module = trainer.gan.generator if net == "g" else trainer.gan.discriminator
        before = weights(module)
        after(trainer)
        moves.append(weights(module) - before)
    assert (moves[1] / moves[0])[moves[0].abs() > 1e-7].median().item() == pytest.approx(3, rel=1e-2)


def test_every_parameter_of_an_optimizer_reaches_the_net_it_is_meant_for() -> None:
    trainer = begin(
        optimizer_g="rmsprop", alpha_g=0.7, eps_g=1e-3, momentum_g=0.2, centered=True, weight_decay_g=0.01, lr_g=1e-2,
        optimizer_d="sgd", momentum_d=0.6, nesterov_d=True, weight_decay_d=0.02, lr_d=1e-3,
    )  # fmt: skip
    g, d = trainer.state.g_optimizer.param_groups[0], trainer.state.d_optimizer.param_groups[0]
    assert isinstance(trainer.state.g_optimizer, torch.optim.RMSprop)
    assert (g["lr"], g["alpha"], g["eps"], g["momentum"], g["centered"], g["weight_decay"]) == (
        1e-2, 0.7, 1e-3, 0.2, True, 0.01,
    )  # fmt: skip
    assert isinstance(trainer.state.d_optimizer, torch.optim.SGD)
    assert (d["lr"], d["momentum"], d["nesterov"], d["weight_decay"]) == (1e-3, 0.6, True, 0.02)
    adam = begin(amsgrad=True, beta1_d=0.1, dampening=0.0).state.d_optimizer.param_groups[0]
    assert (adam["amsgrad"], adam["betas"][0]) == (True, 0.1)
    damped = begin(optimizer="sgd", momentum=0.5, dampening=0.3).state.d_optimizer.param_groups[0]
    assert damped["dampening"] == 0.3


def rates(trainer: Trainer) -> tuple[float, float]:
    state = trainer.state
    return state.g_optimizer.param_groups[0]["lr"], state.d_optimizer.param_groups[0]["lr"]


def test_a_schedule_sets_the_rates_stage_by_stage_and_keeps_the_nets_ratio() -> None:
    trainer = begin(steps=10, lr=1e-3, lr_d=2e-3, lr_schedule="30:1e-3 20:1e-4")
    seen = []
    for _ in range(10):
        trainer.step()
        seen.append(rates(trainer))
    assert np.array(seen) == pytest.approx(np.array([(1e-3, 2e-3)] * 6 + [(1e-4, 2e-4)] * 4))


def test_random_rates_are_drawn_for_every_update_of_each_net() -> None:
    trainer = begin(steps=300, n_critic=2, lr_schedule="1:2e-5..6e-5")
    g_rates, d_rates = [], []
    trainer.state.d_optimizer.register_step_pre_hook(lambda *_: d_rates.append(rates(trainer)[1]))
    for _ in range(300):
        trainer.step()
        g_rates.append(rates(trainer)[0])
    assert len(set(d_rates)) == 600
    assert not set(g_rates) & set(d_rates)
    for drawn in (g_rates, d_rates):
        assert 2e-5 <= min(drawn) < max(drawn) <= 6e-5
        inverse = 1 / np.array(drawn)
        middle = 0.5 * (1 / 2e-5 + 1 / 6e-5)
        assert inverse.mean() == pytest.approx(middle, rel=0.04)


# How often, and on what, D is trained


def test_n_critic_counts_the_updates_of_d_in_a_step() -> None:
    trainer = begin(n_critic=4)
    d, g = updates_of(trainer.state.d_optimizer), updates_of(trainer.state.g_optimizer)
    trainer.step()
    assert (len(d), len(g)) == (4, 1)


@pytest.mark.parametrize(("real_batch", "n_different"), [("same", 1), ("fresh", 4)])
def test_the_updates_of_a_step_see_one_real_batch_or_one_each(real_batch: str, n_different: int) -> None:
    trainer = begin(n_critic=4, real_batch=real_batch)
    seen = seen_by(trainer.gan.discriminator, 8)
    trainer.step()
    real, fakes = seen[0:8:2], seen[1:8:2]
    assert len({x.sum().item() for x in real}) == n_different
    assert len({x.sum().item() for x in fakes}) == 4
    assert trainer.epoch == pytest.approx((1 if real_batch == "same" else 4) * 8 / 40)


@pytest.mark.parametrize(
    ("d_update", "updates", "batches"), [("joint", 1, [16]), ("separate", 2, [8, 8]), ("mixed", 1, [16])]
)
def test_the_kinds_of_update_differ_in_updates_and_batches(
    d_update: str, updates: int, batches: list[int]
) -> None:
    trainer = begin(d_update=d_update)
    made, seen = updates_of(trainer.state.d_optimizer), seen_by(trainer.gan.discriminator)
    trainer.step()
    assert len(made) == updates
    assert [len(x) for x in seen] == [*batches, 8]  # the last is the generator's


def test_mixed_and_joint_updates_agree_without_layers_that_look_at_the_batch() -> None:
    """The same loss of the same images: only the random stream differs, by the shuffle."""
    joint, mixed = begin(d_update="joint"), begin(d_update="mixed")
    a, b = after(joint), after(mixed)
    for name in ("d_loss_real", "d_loss_fake", "d_acc_real", "grad_norm_d"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_a_joint_update_is_that_of_two_batches() -> None:
    """Seen as one batch, real and fake images have the same logits and losses to rounding."""
    joined, apart = begin(), begin()
    apart._joins = False
    a, b = after(joined, 3), after(apart, 3)
    assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({}, True),
        ({"model": "obs_dcgan"}, True),  # with dropout
        ({"model": "rnn_timestep"}, True),
        ({"minibatch_stddev": True}, False),
        ({"spectral_norm": "d"}, False),
        ({"spectral_norm": "both", "model": "rgan_v2"}, False),
    ],
)
def test_what_looks_at_the_batch_sees_real_and_fake_apart(options: dict[str, Any], alone: bool) -> None:
    assert judges_alone(begin(**options).gan.discriminator) is alone


def test_separate_updates_take_real_images_first() -> None:
    trainer = begin(d_update="separate", optimizer="sgd", lr=0.5)
    seen = seen_by(trainer.gan.discriminator)
    before = copy.deepcopy(trainer.gan.discriminator)
    metrics = after(trainer)
    real_logits, fake_logits = before(seen[0]), before(seen[1])
    bce = nn.BCEWithLogitsLoss()
    assert metrics["d_loss_real"] == pytest.approx(bce(real_logits, torch.ones(8)).item(), rel=1e-5)
    assert metrics["d_loss_fake"] != pytest.approx(bce(fake_logits, torch.zeros(8)).item(), rel=1e-3)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 2)])
def test_the_reduction_scales_the_gradient_and_not_the_logged_terms(reduction: str, factor: int) -> None:
    base, other = after(begin(d_reduction="mean")), after(begin(d_reduction=reduction))
    assert other["d_loss_mean"] == pytest.approx(base["d_loss_mean"])
    assert other["grad_norm_d"] == pytest.approx(factor * base["grad_norm_d"], rel=1e-5)


@given(n=st.integers(4, 50), batch=st.integers(2, 4), seed=st.integers(0, 5))
def test_with_replacement_an_epoch_draws_at_least_as_many_as_there_are(n: int, batch: int, seed: int) -> None:
    order = DataOrder(n, batch, seed, torch.device("cpu"), "replacement")
    assert order.batches_per_epoch * batch >= n > (order.batches_per_epoch - 1) * batch
    drawn = torch.cat([order.batch(i) for i in range(3 * order.batches_per_epoch)])
    assert 0 <= drawn.min() <= drawn.max() < n
    assert [len(order.batch(i)) for i in range(order.batches_per_epoch)] == [batch] * order.batches_per_epoch


def test_with_replacement_images_repeat_as_often_as_chance_says() -> None:
    order = DataOrder(1000, 10, 0, torch.device("cpu"), "replacement")
    distinct = len(torch.cat([order.batch(i) for i in range(100)]).unique())
    assert distinct == pytest.approx(1000 * (1 - np.exp(-1)), abs=40)


# Noise, penalties, limits


def test_instance_noise_is_on_every_image_that_d_sees_and_falls_linearly_to_0() -> None:
    clean = begin("obs_dcgan", steps=8, batch_size=40)
    noisy = begin("obs_dcgan", steps=8, batch_size=40, instance_noise=0.4, instance_noise_anneal=0.5)
    without, with_noise = seen_by(clean.gan.discriminator, 40), seen_by(noisy.gan.discriminator, 40)
    made: list[Tensor] = []
    noisy.gan.generator.register_forward_hook(lambda _, __, out: made.append(out.detach()))
    for step in range(8):
        clean.step()
        noisy.step()
        expected = 0.4 * max(0.0, 1 - step / 4)
        real = (with_noise[3 * step] - without[3 * step]).std().item()
        fake = (with_noise[3 * step + 1] - made[2 * step]).std().item()
        g_fake = (with_noise[3 * step + 2] - made[2 * step + 1]).detach().std().item()
        assert [real, fake, g_fake] == pytest.approx([expected] * 3, rel=0.06, abs=1e-6)


class _Linear(nn.Module):
    """D(x) = w . x, whose gradient is w everywhere."""

    def __init__(self, shape: tuple[int, int, int], norm: float) -> None:
        super().__init__()
        w = torch.ones(shape)
        self.w = nn.Parameter(w * norm / w.norm())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1)


def with_discriminator(trainer: Trainer, module: nn.Module, lr: float = 0.0) -> Trainer:
    """The trainer with another discriminator, trained by SGD."""
    state = trainer.state
    gan = dataclasses.replace(state.gan, discriminator=module)
    changed = TrainState(
        gan=gan, averaged=None, g_optimizer=state.g_optimizer,
        d_optimizer=torch.optim.SGD(module.parameters(), lr), noise=state.noise, meter=state.meter,
        watch=state.watch,
    )  # fmt: skip
    images = images_for(trainer.spec)
    return Trainer(trainer.spec, changed, images, labels_for(images))


@pytest.mark.parametrize("target", [1.0, 0.5])
@pytest.mark.parametrize("norm", [0.2, 1.0, 3.0])
def test_the_penalty_is_the_squared_distance_of_the_slope_from_its_target(norm: float, target: float) -> None:
    trainer = begin("obs_dcgan", gradient_penalty=10.0, gp_target=target)
    metrics = after(with_discriminator(trainer, _Linear((1, 8, 8), norm)))
    assert metrics["gp_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["gp"] == pytest.approx((norm - target) ** 2, rel=1e-4, abs=1e-9)


def test_the_penalty_s_weight_scales_its_gradient() -> None:
    """d/dw of lambda (|w| - 1)^2 is 2 lambda (|w| - 1) along w."""
    moves = []
    for weight in (0.0, 10.0):
        options: dict[str, Any] = {"gradient_penalty": weight} if weight else {}
        module = _Linear((1, 8, 8), 3.0)
        before = module.w.detach().clone()
        trainer = with_discriminator(begin("obs_dcgan", **options), module, lr=1e-3)
        if not weight:  # the same random numbers as with a penalty are drawn after the images: D's are equal
            trainer.state.meter = begin("obs_dcgan").state.meter
        trainer.step()
        moves.append(module.w.detach() - before)
    along = (moves[1] - moves[0]).norm().item()
    assert along == pytest.approx(1e-3 * 2 * 10 * (3 - 1), rel=1e-3)


@pytest.mark.parametrize("alpha", ["uniform", "normal"])
def test_points_between_real_and_fake_are_drawn_as_asked(alpha: str) -> None:
    trainer = begin("obs_dcgan", n=400, batch_size=400, gradient_penalty=10.0, gp_alpha=alpha)
    seen = seen_by(trainer.gan.discriminator, 400)
    trainer.step()
    real, fake, mixed = (x.detach().flatten(1) for x in seen[:3])
    a = ((mixed - real) * (fake - real)).sum(1) / (fake - real).square().sum(1)  # one number an image
    assert torch.allclose(mixed, real + a[:, None] * (fake - real), atol=1e-4)
    moments = (a.mean().item(), a.std().item())
    assert moments == pytest.approx((0.5, 12**-0.5) if alpha == "uniform" else (0.0, 1.0), abs=0.08)
    assert (0 <= a.min().item() <= a.max().item() <= 1) == (alpha == "uniform")


def test_drift_is_the_mean_square_of_real_scores_or_half_their_sum() -> None:
    mean = after(begin("wgan_gp_32", drift=0.001, drift_reduction="mean"))["drift"]
    half_sum = after(begin("wgan_gp_32", drift=0.001, drift_reduction="half_sum"))["drift"]
    assert half_sum == pytest.approx(0.5 * 8 * mean, rel=1e-3)  # 8 images
    trainer = begin("wgan_gp_32", n_critic=1, dropout=0.0)
    seen, critic = seen_by(trainer.gan.discriminator), copy.deepcopy(trainer.gan.discriminator)
    logged = after(trainer)
    scores = critic(seen[0].detach())
    assert logged["drift"] == pytest.approx(scores.square().mean().item(), rel=1e-4)
    assert logged["w_dist"] == pytest.approx(
        (scores.mean() - critic(seen[1].detach()).mean()).item(), rel=1e-3
    )


def test_clipping_limits_the_move_and_not_the_logged_norm() -> None:
    free, clipped = begin(optimizer="sgd", lr=1.0), begin(optimizer="sgd", lr=1.0, grad_clip=0.01)
    before = weights(clipped.gan.discriminator)
    a, b = after(free), after(clipped)
    assert (weights(clipped.gan.discriminator) - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert b["grad_norm_d"] == pytest.approx(a["grad_norm_d"], rel=1e-5)


def test_l2_adds_the_weights_to_the_gradient_and_is_logged_apart() -> None:
    plain, held = begin(optimizer="sgd", lr=0.1), begin(optimizer="sgd", lr=0.1, l2=0.5)
    before = weights(held.gan.discriminator)
    after(plain)
    logged = after(held)
    difference = weights(held.gan.discriminator) - weights(plain.gan.discriminator)
    assert torch.allclose(difference, -0.1 * 0.5 * before, atol=1e-6)
    assert logged["l2_d"] == pytest.approx(0.5 * before.square().sum().item(), rel=1e-5)


@given(st.lists(st.floats(-50, 50), min_size=6, max_size=6), st.floats(0.1, 10))
def test_projection_shortens_long_rows_to_the_limit_and_leaves_short_ones(
    values: list[float], limit: float
) -> None:
    for shape in ((2, 3), (6,)):
        parameter = nn.Parameter(torch.tensor(values, dtype=torch.float64).reshape(shape))
        rows = parameter.detach().clone().reshape(-1, shape[-1])
        project_([parameter], limit)
        for row, projected in zip(rows, parameter.detach().reshape(-1, shape[-1]), strict=True):
            assert projected.norm().item() == pytest.approx(min(row.norm().item(), limit), rel=1e-9)
            assert torch.allclose(projected * row.norm(), row * projected.norm())


def test_max_norm_holds_recurrent_weights_after_every_update_and_others_only_when_asked() -> None:
    trainer = begin("rgan_v2", max_norm=0.5, lr_d=0.1)
    after(trainer, 2)
    for layer in trainer.gan.discriminator.modules():
        if isinstance(layer, nn.LSTM):
            for name, p in layer.named_parameters():
                norms = p.norm() if "bias" in name else p.norm(dim=1).max()
                assert norms.item() <= 0.5 + 1e-5
    linear = begin().gan.discriminator
    assert list(held_by_max_norm(linear, "lstm")) == []
    assert all(p.dim() > 1 for p in held_by_max_norm(linear, "all"))


# The averaged generator


def test_the_average_follows_its_recursion_and_starts_as_a_copy() -> None:
    trainer = begin(ema=0.7, lr=1e-2)
    assert trainer.state.averaged is not None
    expected = weights(trainer.gan.generator)
    assert torch.equal(weights(trainer.state.averaged), expected)
    for _ in range(4):
        trainer.step()
        expected = 0.7 * expected + 0.3 * weights(trainer.gan.generator)
    assert torch.allclose(weights(trainer.state.averaged), expected, atol=1e-6)
    for kept, buffer in zip(trainer.state.averaged.buffers(), trainer.gan.generator.buffers(), strict=True):
        assert torch.equal(kept, buffer)


def test_averaging_changes_no_training() -> None:
    plain, averaged = begin(), begin(ema=0.9)
    assert after(plain, 5) == after(averaged, 5)


def test_average_works_on_parametrised_weights() -> None:
    trainer = begin("obs_dcgan", ema=0.5, spectral_norm="both")
    assert trainer.state.averaged is not None
    trainer.step()
    kept = {name: p.clone() for name, p in trainer.state.averaged.named_parameters()}
    average_(trainer.state.averaged, trainer.gan.generator, 0.0)
    for (name, p), q in zip(
        trainer.state.averaged.named_parameters(), trainer.gan.generator.parameters(), strict=True
    ):
        assert torch.allclose(p, q)
        assert p.shape == kept[name].shape


# Multi-scale gradients and progressive growing


def test_a_pyramid_holds_the_image_averaged_down_to_every_scale() -> None:
    x = torch.rand(2, 1, 8, 8)
    levels = pyramid(x, (2, 4, 8))
    assert [level.shape[-1] for level in levels] == [2, 4, 8]
    assert torch.equal(levels[-1], x)
    assert torch.allclose(levels[0][0, 0, 0, 0], x[0, 0, :4, :4].mean())


def test_with_several_scales_d_sees_all_of_them_and_g_learns_from_each() -> None:
    trainer = begin("obs_dcgan", multi_scale=True)
    seen = seen_by(trainer.gan.discriminator)
    before = {name: p.detach().clone() for name, p in trainer.gan.generator.named_parameters()}
    trainer.step()
    assert [[x.shape[-1] for x in images] for images in seen] == [
        [2, 4, 8]
    ] * 2  # D's update sees real and fake at once
    moved = [name for name, p in trainer.gan.generator.named_parameters() if not torch.equal(p, before[name])]
    assert {name.split(".")[1] for name in moved if name.startswith("to_images")} == {"0", "1", "2"}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_real_images_fade_from_the_coarser_level(alpha: float) -> None:
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    shown = faded(x, (4, 8, 16), 1, alpha)
    pool: Callable[[Tensor, int], Tensor] = lambda t, k: nn.functional.avg_pool2d(t, k)  # noqa: E731
    up: Callable[[Tensor, int], Tensor] = lambda t, k: nn.functional.interpolate(t, scale_factor=k)  # noqa: E731
    expected = (1 - alpha) * up(pool(x, 4), 4) + alpha * up(pool(x, 2), 2)
    assert torch.allclose(shown, expected)
    assert torch.allclose(faded(x, (4, 8, 16), 2, 1.0), x)


def test_growing_goes_through_every_level_and_starts_adam_anew_at_each() -> None:
    trainer = begin("wgan_gp_32", steps=20, progressive=True, train_kimg=0.016, fade_kimg=0.016, n_critic=1)
    levels, fresh = [], []
    for _ in range(20):
        trainer.step()
        levels.append(trainer.gan.generator.level)
        counts = {int(s["step"]) for s in trainer.state.g_optimizer.state.values()}
        fresh.append(counts == {1})
    assert levels == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert [i for i, new in enumerate(fresh) if new] == [0, 2, 6, 10]


def test_at_a_coarse_level_penalty_and_noise_are_those_of_the_level_s_pixels() -> None:
    options: dict[str, Any] = {"progressive": True, "train_kimg": 1.0, "n_critic": 1, "dropout": 0.0}
    trainer = begin("wgan_gp_32", instance_noise=0.4, **options)
    seen = seen_by(trainer.gan.discriminator)
    clean = begin("wgan_gp_32", **options)
    without = seen_by(clean.gan.discriminator)
    trainer.step()
    clean.step()
    at_level = nn.functional.avg_pool2d(seen[0] - without[0], 8)  # 4x4 of 32x32
    assert at_level.std().item() == pytest.approx(0.4, rel=0.15)
    small = begin("wgan_gp_32", **options)
    critic = small.gan.discriminator
    x = torch.randn(8, 1, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(nn.functional.interpolate(x, scale_factor=8.0)).sum(), x)
    (full,) = torch.autograd.grad(critic(big := nn.functional.interpolate(x, scale_factor=8.0)).sum(), big)
    assert (slope.flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1)).mean().item() == pytest.approx(
        8, rel=1e-4
    )
    assert small._repeats == 8


def test_growth_counts_every_real_image_that_d_sees() -> None:
    options: dict[str, Any] = {"progressive": True, "train_kimg": 0.016, "fade_kimg": 0.016, "n_critic": 2}
    levels = {}
    for real_batch in ("same", "fresh"):
        trainer = begin("wgan_gp_32", real_batch=real_batch, **options)
        for _ in range(3):
            trainer.step()
        levels[real_batch] = trainer.gan.generator.level
    assert levels == {"same": 1, "fresh": 1}
    assert trainer.gan.generator.alpha == 1.0  # 32 images of 8: the fade is over


# Augmentation and conditions


def test_d_sees_real_images_changed_and_the_same_change_in_every_trial_of_a_seed() -> None:
    plain, a, b, c = begin(), begin(augment=True), begin(augment=True), begin(augment=True, seed=1)
    inputs = [seen_by(t.gan.discriminator, 8) for t in (plain, a, b, c)]
    for trainer in (plain, a, b, c):
        trainer.step()
    first = [seen[0] for seen in inputs]
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[3])
    assert first[1].abs().max().item() <= 1 + 1e-5


def test_real_images_come_with_their_own_labels_and_fakes_with_random_ones() -> None:
    trainer = begin("rnn_timestep", d_update="joint", n_critic=1, batch_size=30)
    labels: list[Tensor] = []
    trainer.gan.discriminator.register_forward_pre_hook(lambda _, args: labels.extend(args[1].split(30)))
    order = DataOrder(40, 30, 0, torch.device("cpu")).batch(0)
    trainer.step()
    assert torch.equal(labels[0], order % 3)
    assert not torch.equal(labels[1], labels[0])
    assert set(labels[1].tolist()) == {0, 1, 2}
