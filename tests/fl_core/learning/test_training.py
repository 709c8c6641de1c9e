from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_core.crypto.noise import OsStream, SeededStream
from fl_core.errors import TrainingDiverged
from fl_core.job import Model, Train
from fl_core.learning import models, training

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def model(name="mlp", seed=0):
    return models.build_model(Model(name, hidden=(5,)), input_shape=(6,), image_shape=None, num_classes=2, seed=seed)


def run(train, *, seed=1, net=None, start=None, x=X, y=Y):
    net = net or model()
    start = models.get_vector(model()) if start is None else start
    return training.local_train(net, x, y, train, seed=seed, global_vector=start)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_a_round_repeats_bit_for_bit_whatever_happened_before(optimizer, strategy):
    train = Train(strategy=strategy, optimizer=optimizer, momentum=0.9, local_epochs=2, batch_size=7)
    first = run(train)
    torch.manual_seed(99)
    torch.rand(10)
    used = model(seed=8)
    run(train, seed=5, net=used)
    training.evaluate(used, X, Y)
    again = run(train, net=used)
    assert again.delta.tobytes() == first.delta.tobytes() and again.loss == first.loss
    assert run(train, seed=2).delta.tobytes() != first.delta.tobytes()


def test_training_leaves_torchs_threads_and_random_state_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(4)
    want = torch.rand(2)
    torch.manual_seed(4)
    run(Train())
    assert torch.get_num_threads() == 2 and (torch.rand(2) == want).all()
    torch.set_num_threads(threads)


def test_one_full_batch_step_is_the_gradient_step_done_by_hand():
    start = models.get_vector(model("logistic"))
    result = run(Train(batch_size=100, learning_rate=0.3), net=model("logistic", seed=9), start=start)
    w, b = start[:12].reshape(2, 6), start[12:]
    logits = X.astype(np.float64) @ w.T + b
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (p - np.eye(2)[Y]) / len(Y)
    by_hand = -0.3 * np.concatenate([(error.T @ X).ravel(), error.sum(axis=0)])
    assert result.delta == pytest.approx(by_hand, abs=1e-6)
    assert result.loss == pytest.approx(-np.log(p[np.arange(40), Y]).mean(), rel=1e-5)
    assert result.num_examples == 40 and result.delta.dtype == np.float64


def test_fedprox_pulls_towards_the_global_model():
    train = {"local_epochs": 5, "batch_size": 10, "learning_rate": 0.2}
    free = run(Train(**train))
    held = run(Train(strategy="fedprox", proximal_mu=2.0, **train))
    off = run(Train(strategy="fedprox", proximal_mu=0.0, **train))
    assert np.linalg.norm(held.delta) < 0.8 * np.linalg.norm(free.delta)
    assert off.delta.tobytes() == free.delta.tobytes()


def test_the_proximal_term_is_the_gradient_of_its_definition():
    p, anchor = nn.Parameter(torch.tensor([1.0, 2.0])), torch.tensor([0.5, 4.0])
    (0.3 / 2 * ((p - anchor) ** 2).sum()).backward()
    want, p.grad = p.grad, torch.zeros(2)
    training._pull([p], [anchor], 0.3)
    assert torch.allclose(p.grad, want)


def test_a_party_without_rows_contributes_nothing():
    result = run(Train(), x=X[:0], y=Y[:0])
    assert not result.delta.any() and (result.num_examples, result.loss) == (0, 0.0)


def test_one_row_trains():
    assert np.isfinite(run(Train(), x=X[:1], y=Y[:1]).delta).all()


def test_divergence_is_reported_and_not_sent():
    with pytest.raises(TrainingDiverged, match="learning_rate 1e"):
        run(Train(learning_rate=1e30, local_epochs=5))
    start = models.get_vector(model())
    start[0] = np.nan
    with pytest.raises(TrainingDiverged):
        run(Train(), start=start)


def test_dropout_repeats_from_the_seed():
    def net():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    torch.manual_seed(0)
    start = models.get_vector(net())
    results = []
    for before in (1, 2):
        torch.manual_seed(before)
        results.append(run(Train(), net=net(), start=start).delta.tobytes())
    assert results[0] == results[1]


def test_evaluation_agrees_with_one_pass_in_float64():
    net = model()
    x, y = np.tile(X, (60, 1)), np.tile(Y, 60)  # more than one batch of rows
    result = training.evaluate(net, x, y)
    logits = net(torch.from_numpy(x)).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert result.correct == (logits.argmax(axis=1) == y).sum() and result.num_examples == 2400
    assert result.loss_sum == pytest.approx(-log_p[np.arange(2400), y].sum(), rel=1e-6)
    assert net.training, "evaluation left the model in another mode"


def test_evaluation_without_rows_is_zero():
    assert training.evaluate(model(), X[:0], Y[:0]) == training.EvalResult(0, 0, 0.0)


def test_evaluation_of_a_broken_model_is_divergence():
    net = model()
    models.set_vector(net, np.full(models.num_parameters(net), np.inf))
    with pytest.raises(TrainingDiverged, match="held-out"):
        training.evaluate(net, X, Y)


class Zero:
    def gaussian(self, n, std):
        return np.zeros(n)

    def bernoulli_mask(self, n, p):
        raise AssertionError("client-dp does not sample")


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=6).map(np.array),
    st.floats(1e-3, 1e3),
)
def test_a_whole_update_never_exceeds_its_norm_and_a_small_one_is_untouched(delta, norm):
    out = training.client_dp(delta, clipping_norm=norm, noise_multiplier=1.0, noise=Zero())
    assert np.linalg.norm(out) <= norm * (1 + 1e-12)
    if np.linalg.norm(delta) <= norm:
        assert (out == delta).all()


def test_the_noise_on_an_update_has_the_stated_deviation():
    n = 200_000
    out = training.client_dp(np.zeros(n), clipping_norm=0.5, noise_multiplier=3.0, noise=OsStream())
    # the deviation of a sample deviation is σ/sqrt(2n): five of them
    assert out.std() == pytest.approx(1.5, abs=5 * 1.5 / np.sqrt(2 * n))
    assert abs(out.mean()) < 5 * 1.5 / np.sqrt(n)


def test_an_update_that_is_not_finite_is_not_clipped_into_shape():
    for bad in (np.nan, np.inf):
        with pytest.raises(TrainingDiverged):
            training.client_dp(np.array([bad, 0.0]), clipping_norm=1.0, noise_multiplier=1.0, noise=SeededStream(b""))
