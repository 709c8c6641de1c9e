from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fl_core.crypto.noise import OsStream, SeededStream
from fl_core.errors import JobFileError, TrainingDiverged
from fl_core.job import Model, Privacy, Train
from fl_core.learning import models, training
from fl_core.learning.privacy import Plan, plan_dp_sgd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 64)).astype(np.float32)
Y = RNG.integers(0, 3, 30)


class Chosen:
    """Noise of a chosen size, and the samples asked for, one after another."""

    def __init__(self, *masks, std_factor=0.0):
        self.masks, self.factor, self.asked = list(masks), std_factor, []
        self.rng = np.random.default_rng(1)

    def gaussian(self, n, std):
        self.asked.append((n, std))
        return self.rng.normal(0, 1, n) * std * self.factor

    def bernoulli_mask(self, n, p):
        return self.masks.pop(0) if self.masks else np.ones(n, dtype=bool)


def net(name="mlp", **spec):
    return models.build_model(
        Model(name, **{"hidden": (5,), "activation": "tanh", **spec}),
        input_shape=(64,),
        image_shape=(1, 8, 8),
        num_classes=3,
        seed=0,
    )


def step(model, *, x=X, y=Y, plan=None, norm=0.1, noise=None, train=None, **more):
    plan = plan or Plan(1.0, 1.0, 1, 1)
    return training.local_train_dp(
        model,
        x,
        y,
        train or Train(learning_rate=1.0),
        plan=plan,
        max_grad_norm=norm,
        noise=noise or Chosen(),
        global_vector=models.get_vector(model),
        **more,
    )


def gradient(model, rows):
    model.zero_grad()
    functional.cross_entropy(model(torch.from_numpy(X[rows])), torch.from_numpy(Y[rows])).backward()
    return np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters()])


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn"])
def test_the_step_is_the_sum_of_gradients_clipped_row_by_row(name):
    """The slow reference: one backward pass a row."""
    model, norm = net(name), 0.7
    by_hand = np.zeros(models.num_parameters(model))
    for row in range(30):
        g = gradient(model, [row])
        by_hand += g * min(1.0, norm / np.linalg.norm(g))
    result = step(model, norm=norm)
    assert result.delta == pytest.approx(-by_hand / 30, abs=2e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 29), st.floats(1e-3, 1e3), st.floats(1e-2, 1e19))
def test_no_row_moves_the_sum_further_than_the_bound(row, norm, scale):
    mask = np.arange(30) == row
    x = (X * np.float32(scale)).astype(np.float32)
    result = step(net("logistic"), x=x, norm=norm, noise=Chosen(mask), plan=Plan(1.0, 1 / 30, 1, 1))
    assert np.linalg.norm(result.delta) <= norm * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_a_row_without_a_finite_gradient_neither_counts_nor_ends_the_run(value):
    x = X.copy()
    x[3] = np.float32(value)
    others = np.arange(30) != 3
    whole = step(net(activation="relu"), x=x, noise=Chosen())
    without = step(net(activation="relu"), noise=Chosen(others))
    assert np.isfinite(whole.delta).all()
    assert whole.delta == pytest.approx(without.delta, abs=0.1 / 30 + 1e-6)


def test_an_empty_sample_is_a_step_of_noise_alone():
    nobody = np.zeros(30, dtype=bool)
    noise = Chosen(nobody, nobody, std_factor=1.0)
    result = step(net("cnn"), noise=noise, plan=Plan(2.0, 0.5, 2, 1), norm=0.3)
    assert [std for _, std in noise.asked] == [0.6, 0.6]
    rng = np.random.default_rng(1)
    drawn = sum(rng.normal(0, 1, len(result.delta)) for _ in range(2)) * 0.6 / 15
    assert result.delta == pytest.approx(-drawn, abs=1e-6) and result.loss == 0.0


def test_noise_has_the_stated_deviation_on_every_parameter():
    model, nobody = net("cnn", hidden=(200,)), np.zeros(30, dtype=bool)

    class Nobody(OsStream):
        def bernoulli_mask(self, n, p):
            return nobody

    size = models.num_parameters(model)
    result = step(model, noise=Nobody(), plan=Plan(1.7, 0.4, 1, 1), norm=0.25)
    stated = 1.7 * 0.25 / (0.4 * 30)
    assert result.delta.std() == pytest.approx(stated, abs=5 * stated / np.sqrt(2 * size))
    assert np.count_nonzero(result.delta) == size


def test_steps_are_sampled_at_the_planned_rate():
    asked = []

    class Counting(SeededStream):
        def bernoulli_mask(self, n, p):
            mask = super().bernoulli_mask(n, p)
            asked.append((n, p, int(mask.sum())))
            return mask

    train = Train(batch_size=10, local_epochs=20)
    plan = plan_dp_sgd(train, Privacy(), 30)
    step(net(), train=train, plan=plan, noise=Counting(b"1"))
    assert len(asked) == 60 == plan.steps_per_round and {a[:2] for a in asked} == {(30, 1 / 3)}
    taken = sum(a[2] for a in asked)
    assert abs(taken - 600) < 5 * np.sqrt(60 * 30 * (1 / 3) * (2 / 3))


def test_large_samples_are_processed_in_pieces_with_the_same_result(monkeypatch):
    whole = step(net("cnn"), noise=Chosen(std_factor=1.0))
    monkeypatch.setattr(training, "_SAMPLE_GRADIENT_FLOATS", 7 * models.num_parameters(net("cnn")))
    noise = Chosen(std_factor=1.0)
    pieces = step(net("cnn"), noise=noise)
    assert pieces.delta == pytest.approx(whole.delta, abs=1e-6) and len(noise.asked) == 1
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_seeded_dp_round_repeats_bit_for_bit_and_an_os_one_does_not():
    def once(noise):
        return step(net(), plan=Plan(1.0, 0.3, 5, 1), noise=noise).delta.tobytes()

    assert once(SeededStream(b"7")) == once(SeededStream(b"7")) != once(SeededStream(b"8"))
    assert once(OsStream()) != once(OsStream())


def test_the_model_is_left_without_hooks_and_trains_again():
    model = net()
    keys = {k for p in model.parameters() for k in vars(p)}
    for _ in range(2):
        step(model)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert {k for p in model.parameters() for k in vars(p)} - keys <= {"summed_grad"}
    training.local_train(model, X, Y, Train(), seed=0, global_vector=models.get_vector(model))


def test_fedprox_pulls_after_the_noise():
    nobody = np.zeros(30, dtype=bool)
    train = Train(strategy="fedprox", proximal_mu=0.5, learning_rate=1.0)
    noise = Chosen(nobody, nobody, std_factor=1.0)
    result = step(net(), noise=noise, plan=Plan(1.0, 0.5, 2, 1), train=train)
    rng, size = np.random.default_rng(1), len(result.delta)
    first, second = (-rng.normal(0, 1, size) * 0.1 / 15 for _ in range(2))
    assert result.delta == pytest.approx(first + second - 0.5 * first, abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm1d(64, track_running_stats=False), "BatchNorm"),
        (nn.BatchNorm1d(64), "BatchNorm"),
        (nn.InstanceNorm1d(64, affine=True, track_running_stats=True), "running stats"),
    ],
)
def test_a_layer_that_mixes_rows_is_refused_with_opacus_reason(layer, reason):
    with pytest.raises(JobFileError, match=rf"dp-sgd.*{reason}"):
        step(nn.Sequential(layer, nn.Linear(64, 3)))


def test_a_model_of_ones_own_that_mixes_rows_is_refused():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(dim=0))

    with pytest.raises(JobFileError, match="must not depend on other rows"):
        step(Centred(64, 3))


def test_a_layer_used_twice_is_clipped_as_one_gradient():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x):
            return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))

    torch.manual_seed(0)
    model, by_hand = Twice(), 0
    for row in range(30):
        g = gradient(model, [row])
        by_hand += g * min(1.0, 0.2 / np.linalg.norm(g))
    assert step(model, norm=0.2).delta == pytest.approx(-by_hand / 30, abs=2e-6)


def test_a_parameter_without_a_gradient_for_each_row_is_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(64, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(JobFileError, match=r"parameter 'spare\.weight' has no gradient"):
        step(Unused())


def test_a_frozen_layer_stays_and_gets_no_noise():
    model = net()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    result = step(model, noise=Chosen(std_factor=1.0))
    assert not result.delta[: frozen.numel()].any() and result.delta[frozen.numel() :].all()


def test_divergence_under_dp_is_reported():
    train, noise = Train(learning_rate=1e38), Chosen(std_factor=1e4)
    with pytest.raises(TrainingDiverged, match=r"learning_rate 1e\+38"):
        step(net(), train=train, noise=noise)


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net("cnn"), noise=SeededStream(b"1"), plan=Plan(1.0, 0.05, 10, 1))
