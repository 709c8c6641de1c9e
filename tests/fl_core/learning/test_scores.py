"""Scores against scikit-learn and scipy, at their edges against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from fl_core.learning import scores

ROWS = st.lists(st.tuples(st.booleans(), st.integers(-4, 4), st.integers(1, 5)), min_size=1, max_size=40)


def pairs_auc(y, s, w):
    """By definition: the weight of pairs in the right order, ties half."""
    pairs = [(wi * wj, (si > sj) + (si == sj) / 2) for yi, si, wi in zip(y, s, w) if yi
             for yj, sj, wj in zip(y, s, w) if not yj]  # fmt: skip
    return sum(w * right for w, right in pairs) / sum(w for w, _ in pairs) if pairs else math.nan


@settings(deadline=None)
@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order_with_ties_and_weights(rows):
    y, s, w = map(np.array, zip(*rows, strict=True))
    assert scores.auc(y, s, w) == pytest.approx(pairs_auc(y, s, w), abs=1e-12, nan_ok=True)
    assert scores.auc(y, s) == pytest.approx(pairs_auc(y, s, np.ones(len(y))), abs=1e-12, nan_ok=True)


@pytest.fixture(params=[3, 1000])
def drawn(request):
    """Scores of 3 or of 1000 different values, so with many ties or few."""
    rng = np.random.default_rng(request.param)
    score = rng.integers(0, request.param, 2000) / request.param
    return (rng.random(2000) < 0.2 + 0.5 * score).astype(int), score, rng.random(2000)


def test_auc_ks_and_roc_are_those_of_the_libraries(drawn):
    y, s, w = drawn
    assert scores.auc(y, s) == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-12)
    assert scores.auc(y, s, w) == pytest.approx(metrics.roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert scores.ks(y, s) == pytest.approx(stats.ks_2samp(s[y == 1], s[y == 0]).statistic, abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    curve = scores.roc(y, s, 11, w)
    assert [x for x, _ in curve] == np.linspace(0, 1, 11).tolist() and curve[-1] == (1.0, 1.0)
    inner = np.array(curve)[1:-1]
    assert inner[:, 1] == pytest.approx(np.interp(inner[:, 0], fpr, tpr), abs=1e-12)


def test_a_perfect_model_rises_at_once():
    assert scores.roc([0, 1, 1], [-1, 0, math.inf], 3) == [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    assert scores.auc([0, 1, 1], [-math.inf, 0, math.inf]) == scores.ks([0, 1, 1], [-1, 0, 1]) == 1.0


@pytest.mark.parametrize(("y", "s"), [([1, 1], [0, 1]), ([0], [0]), ([], []), ([0, 1, 1], [0, math.nan, 1])])
def test_without_two_classes_or_with_nan_there_is_no_figure(y, s):
    assert math.isnan(scores.auc(y, s)) and math.isnan(scores.ks(y, s)) and scores.roc(y, s) == []
    assert math.isnan(scores.auc([0, 1], [0, 1], [1, 0]))


def test_losses_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, z = rng.integers(0, 2, 500), 3 * rng.normal(size=500)
    assert scores.log_loss_binary(y, z) == pytest.approx(metrics.log_loss(y, 1 / (1 + np.exp(-z))), rel=1e-12)
    y, z = rng.integers(0, 4, 500), 3 * rng.normal(size=(500, 4))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert scores.softmax_loss(y, z) == pytest.approx(metrics.log_loss(y, p), rel=1e-12)


def test_large_logits_neither_overflow_nor_vanish():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert scores.log_loss_binary([1, 0], [800.0, 800.0]) == 400.0
        assert scores.log_loss_binary([1], [40.0]) == pytest.approx(math.exp(-40), rel=1e-12)
    assert scores.softmax_loss([1], [[900.0, -900.0]]) == 1800.0
    assert scores.log_loss_binary([1], np.array([40.0], dtype=np.float32)) == pytest.approx(math.exp(-40))


def test_regression_scores_and_accuracy_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.normal(size=300) * 5 + 100
    p = y + rng.normal(size=300)
    assert scores.rmse(y, p) == pytest.approx(metrics.root_mean_squared_error(y, p), rel=1e-12)
    assert scores.r2(y, p) == pytest.approx(metrics.r2_score(y, p), rel=1e-12)
    assert scores.accuracy(["a", "b", "c", "c"], ["a", "b", "b", "c"]) == 0.75


def test_no_rows_are_nan_and_no_warning():
    nothing = np.empty(0)
    for score in (scores.log_loss_binary, scores.accuracy, scores.rmse, scores.r2):
        assert math.isnan(score(nothing, nothing))
    assert math.isnan(scores.softmax_loss(nothing, np.empty((0, 3)))) and math.isnan(scores.r2([2, 2], [2, 3]))


def test_weight_of_evidence_by_hand():
    woe, iv = scores.woe_iv([10, 30], [60, 20])
    assert woe == pytest.approx([math.log(0.25 / 0.75), math.log(0.75 / 0.25)])
    assert iv == pytest.approx(0.5 * math.log(3) * 2)


def test_an_empty_cell_counts_a_half_and_a_bin_without_rows_nothing():
    woe, iv = scores.woe_iv([0, 5, 0], [4, 0, 0])
    assert woe == pytest.approx([math.log(0.1), math.log(8), 0.0])
    assert iv == pytest.approx((0.1 - 1) * math.log(0.1) + (1 - 0.125) * math.log(8))
    assert math.isnan(scores.woe_iv([0, 0], [1, 2])[1]) and np.isnan(scores.woe_iv([1], [0])[0]).all()
