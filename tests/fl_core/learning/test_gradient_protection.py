"""Protection of what crosses the cut layer: it hides what it says it hides, at the cost it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fl_core.crypto.noise import OsStream, SeededStream
from fl_core.errors import JobFileError
from fl_core.learning.gradient_protection import (
    GradientProtection,
    Variances,
    clip_rows,
    direction_attack_auc,
    epsilon_spent,
    least_leak,
    marvell,
    max_norm,
    moments,
    norm_attack_auc,
    plan_cut_layer,
    release,
    sum_kl,
)


def leaking(m=2000, width=16, share=0.1, seed=0):
    """Gradients as the cross-entropy of rare positives gives them: the residual times a direction common to all."""
    rng = np.random.default_rng(seed)
    y = (rng.random(m) < share).astype(np.int64)
    residual = rng.beta(2, 18, m) - y
    direction = rng.normal(size=width)
    return (residual[:, None] * (direction + 0.3 * rng.normal(size=(m, width)))).astype(np.float32), y


def protected(kind, gradients, y, power=4.0):
    return GradientProtection(kind, power=power, noise=SeededStream(b"g")).protect(gradients, y)


def test_without_protection_norm_and_direction_give_the_labels_away():
    gradients, y = leaking()
    assert norm_attack_auc(gradients, y) > 0.99 and direction_attack_auc(gradients, y) > 0.99
    assert np.array_equal(protected("none", gradients, y), gradients)


@pytest.mark.parametrize("kind", ["max-norm", "marvell"])
def test_norms_no_longer_tell_labels(kind):
    gradients, y = leaking()
    assert norm_attack_auc(protected(kind, gradients, y), y) < 0.65


def test_marvell_hides_the_direction_too_the_more_the_more_power():
    gradients, y = leaking()
    found = [direction_attack_auc(protected("marvell", gradients, y, power), y) for power in (0.25, 4.0, 64.0)]
    assert found[0] > found[1] + 0.05 > found[2] + 0.1 and found[1] < 0.7 and found[2] < 0.58


VARIANCE = st.floats(1e-4, 10.0)
SHARE = st.floats(0.01, 0.99)


@settings(max_examples=60, deadline=None)
@given(VARIANCE, VARIANCE, SHARE, st.integers(1, 200), st.floats(0.01, 100.0), st.integers(0, 2**32))
def test_no_other_noise_of_the_same_power_leaks_less(u, v, p, width, power, seed):
    found = least_leak(u=u, v=v, p=p, gap=2.0, width=width, power=power)
    values = np.array([found.along_negative, found.across_negative, found.along_positive, found.across_positive])
    prices = np.array([1 - p, (1 - p) * (width - 1), p, p * (width - 1)])
    assert (values >= 0).all() and prices @ values <= 2.0 * power * (1 + 1e-6)
    least = sum_kl(found, u=u, v=v, gap=2.0, width=width)
    rng = np.random.default_rng(seed)
    shares = np.concatenate([rng.dirichlet(np.full(4, alpha), 100) for alpha in (0.2, 1.0)])
    near = np.abs(values * prices + 0.02 * power * rng.normal(size=(100, 4)))
    shares = np.concatenate([shares, near / near.sum(axis=1, keepdims=True)])
    for share in shares:
        other = np.divide(share * 2.0 * power, prices, out=np.zeros(4), where=prices > 0)
        assert sum_kl(Variances(*other), u=u, v=v, gap=2.0, width=width) >= least - 1e-7 * (1 + abs(least))


def test_classes_of_no_variance_get_noise_along_the_difference_only():
    """By symmetry both get power · gap, and KL + KL is then 1 / power."""
    found = least_leak(u=0.0, v=0.0, p=0.5, gap=3.0, width=8, power=4.0)
    assert (found.along_negative, found.along_positive) == pytest.approx((12.0, 12.0), rel=1e-5)
    assert found.across_negative == pytest.approx(0.0, abs=1e-6) and found.across_positive == 0.0
    assert sum_kl(found, u=1e-12, v=1e-12, gap=3.0, width=8) == pytest.approx(0.25, rel=1e-4)


def test_the_objective_is_the_divergence_of_the_two_gaussians():
    variances, u, v, width = Variances(0.7, 0.2, 0.4, 0.1), 0.3, 0.5, 5
    direction = np.array([0.6, 0.0, 0.8, 0.0, 0.0])
    gap = 2.5 * direction
    one = (v + 0.1) * np.eye(width) + 0.3 * np.outer(direction, direction)
    zero = (u + 0.2) * np.eye(width) + 0.5 * np.outer(direction, direction)

    def kl(a, b):
        inverse = np.linalg.inv(b)
        logs = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
        return 0.5 * (np.trace(inverse @ a) - width + gap @ inverse @ gap + logs)

    assert sum_kl(variances, u=u, v=v, gap=2.5**2, width=width) == pytest.approx(kl(one, zero) + kl(zero, one))


@pytest.mark.parametrize("swap", [False, True])
def test_marvell_adds_the_noise_it_planned(swap):
    rng = np.random.default_rng(1)
    y = (np.arange(40000) % 4 == 0).astype(np.int64) ^ swap
    gradients = rng.normal(size=(40000, 3)) * np.where(y == 1, 0.2, 1.5)[:, None] + np.outer(y, [1.0, 2.0, 2.0])
    estimate = moments(gradients, y)
    assert estimate.gap == pytest.approx(9.0, rel=0.05) and estimate.p == y.mean()
    assert (estimate.u, estimate.v) == pytest.approx((2.25, 0.04), rel=0.05)
    found = least_leak(u=estimate.u, v=estimate.v, p=estimate.p, gap=estimate.gap, width=3, power=2.0)
    noise = marvell(gradients, y, estimate, power=2.0, noise=SeededStream(b"m")) - gradients
    planned = {0: (found.along_negative, found.across_negative), 1: (found.along_positive, found.across_positive)}
    for label, (along, across) in planned.items():
        rows = noise[y == label]
        line = np.outer(estimate.direction, estimate.direction)
        covariance = along * line + across * (np.eye(3) - line)
        assert np.allclose(rows.mean(axis=0), 0.0, atol=0.15)
        assert np.allclose(np.cov(rows.T), covariance, atol=0.05 * max(along, across))
    assert (noise**2).sum(axis=1).mean() == pytest.approx(2.0 * estimate.gap, rel=0.05)


def test_a_batch_of_one_class_is_not_sent_bare():
    gradients, y = leaking(m=50, share=0.3)
    zeros, fresh = gradients[y == 0], GradientProtection("marvell", power=4.0, noise=SeededStream(b"1"))
    assert moments(zeros, y[y == 0]) is None
    first = fresh.protect(zeros, y[y == 0])
    assert norm_share(first, zeros) > 0.1
    fresh.protect(gradients, y)
    change = fresh.protect(zeros, y[y == 0]) - zeros
    gap = moments(gradients, y).gap
    assert (change**2).sum(axis=1).mean() > gap


def norm_share(noisy, clean):
    return np.linalg.norm(noisy - clean) / np.linalg.norm(clean)


def test_every_rows_expected_squared_norm_is_the_largest_along_its_own_direction():
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -1.0], [0.0, 0.0]])
    noise = SeededStream(b"n")
    drawn = np.array([max_norm(rows, noise) for _ in range(6000)], dtype=np.float64)
    assert (drawn**2).sum(axis=2).mean(axis=0) == pytest.approx([25.0] * 4, rel=0.08)
    assert np.allclose(drawn[:, 0], [3.0, 4.0]) and np.allclose(drawn[:, 1, 0] * 4, drawn[:, 1, 1] * 3, atol=1e-4)
    assert np.allclose(drawn[:, 2, 0], 0.0)
    assert drawn[:, :3].mean(axis=0) == pytest.approx(rows[:3], abs=0.25)


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.zeros((3, 4)), np.ones((1, 4))])
def test_batches_without_anything_to_hide_pass(rows):
    assert np.array_equal(max_norm(rows, OsStream()), rows.astype(np.float32))


def test_equal_means_have_no_direction():
    assert moments(np.ones((4, 3)), np.array([0, 1, 0, 1])) is None


def test_an_unknown_protection_is_refused():
    with pytest.raises(JobFileError, match=r"vertical.gradient: 'noise'; allowed: none \| max-norm \| marvell"):
        GradientProtection("noise", power=1.0, noise=OsStream())


def test_an_attack_takes_the_better_sign():
    gradients, y = leaking()
    assert norm_attack_auc(gradients, 1 - y) == pytest.approx(norm_attack_auc(gradients, y))


def exact_epsilon(sigma, releases, delta):
    """Balle and Wang 2018 (1805.06083), theorem 8: k releases are one with σ/√k."""
    s = sigma / math.sqrt(releases)
    return brentq(lambda e: norm.cdf(0.5 / s - e * s) - math.exp(e) * norm.cdf(-0.5 / s - e * s) - delta, 1e-6, 500.0)


@pytest.mark.parametrize(("releases", "target"), [(1, 1.0), (20, 3.0), (100, 8.0)])
def test_the_plan_meets_its_target_and_wastes_little(releases, target):
    sigma = plan_cut_layer(releases, target, 1e-5)
    assert epsilon_spent(sigma, releases, 1e-5) <= target < epsilon_spent(0.99 * sigma, releases, 1e-5)
    assert 0.8 * target < exact_epsilon(sigma, releases, 1e-5) <= target


def test_released_rows_are_clipped_and_noised():
    """The norm is over a row's embedding; a row within it is left as it is."""
    import torch

    rows = torch.tensor([[3.0, 4.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    clipped = clip_rows(rows, 0.5)
    assert torch.allclose(clipped, torch.tensor([[0.3, 0.4, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    clipped.sum().backward()
    assert torch.isfinite(rows.grad).all() and torch.allclose(rows.grad[1], torch.ones(3))
    values = clipped.detach().numpy()
    noise = SeededStream(b"r")
    drawn = np.array(
        [release(values, clipping_norm=0.5, noise_multiplier=3.0, noise=noise) for _ in range(2500)], dtype=np.float64
    )
    assert drawn.std(axis=0) == pytest.approx(np.full((3, 3), 1.5), rel=0.08)
    assert drawn.mean(axis=0) == pytest.approx(values, abs=0.15)


def test_a_row_over_the_norm_is_clipped_before_its_noise():
    large = np.full((1, 4), 50.0, np.float32)
    sent = release(large, clipping_norm=1.0, noise_multiplier=1e-9, noise=SeededStream(b"c"))
    assert np.linalg.norm(sent) == pytest.approx(1.0)
