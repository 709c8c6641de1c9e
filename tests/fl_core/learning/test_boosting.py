"""Objectives by numerical derivatives, histograms and gains by counting one by one, parts of trees by walking them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from fl_core.errors import DataError, JobFileError
from fl_core.learning.boosting import (
    Objective,
    PlainHistograms,
    TreeSettings,
    best_gain,
    candidate_cuts,
    leaf_weight,
)
from fl_core.learning.tree_parts import (
    NOBODY,
    ActiveTrees,
    PassiveTrees,
    allowed_leaves,
    empty_part,
    empty_trees,
    joint_scores,
    leaf_of,
)

ALL = np.arange(40)
NONE = np.empty(0, np.int64)


def goal(name, outputs=1, weights=(), n=40):
    rng = np.random.default_rng(5)
    y = rng.normal(3, 20, n) if name == "regression" else rng.integers(0, max(outputs, 2), n).astype(float)
    return Objective.of(name, outputs, y, np.arange(n), (), weights), y


# ---- objectives

OBJECTIVES = [
    ("binary", 1, ()),
    ("binary", 1, (1.0, 3.0)),
    ("multiclass", 3, (2.0, 1.0, 0.5)),
    ("regression", 1, ()),
]


@pytest.mark.parametrize(("name", "outputs", "weights"), OBJECTIVES)
def test_gradients_are_derivatives_of_the_loss_within_their_bounds(name, outputs, weights):
    one, _ = goal(name, outputs, weights)
    z = np.random.default_rng(0).normal(size=(40, outputs))
    g, h = one.gradients(z, ALL)
    unit = 2 * one.factor**2 if name == "regression" else 1  # half the squared error of scaled targets
    for output in range(outputs):
        step = np.zeros((1, outputs))
        step[0, output] = 1e-4
        up, middle, down = (one.weight * one.losses(z + k * step, ALL) / unit for k in (1, 0, -1))
        assert np.allclose(g[output], (up - down) / 2e-4, atol=1e-6)
        assert np.allclose(h[output], (up - 2 * middle + down) / 1e-8, atol=1e-5)
    wide = one.gradients(z * 30, ALL) if name != "regression" else (g, h)
    assert np.abs(wide[0]).max() <= one.bounds[0] and 0 <= wide[1].min() <= wide[1].max() <= one.bounds[1]


@pytest.mark.parametrize(("name", "outputs", "weights"), OBJECTIVES)
def test_the_base_score_is_the_best_constant(name, outputs, weights):
    one, _ = goal(name, outputs, weights)
    base = one.base(ALL)
    g, _ = one.gradients(np.tile(base, (40, 1)), ALL)
    assert np.allclose(g.sum(axis=1), 0, atol=1e-9)


def test_losses_are_those_of_another_library():
    one, y = goal("multiclass", 3)
    z = np.random.default_rng(1).normal(size=(40, 3))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert one.loss(z, ALL) == pytest.approx(log_loss(y, p))
    two, y = goal("regression")
    assert two.loss((y[:, None] - two.offset) / two.factor + 0.5, ALL) == pytest.approx((two.factor / 2) ** 2)
    assert np.isnan(two.loss(z[:0, :1], NONE)) and two.figure(z[:0, :1], NONE) == {}


def test_a_target_without_variation_or_a_class_without_rows_is_no_error():
    one = Objective.of("regression", 1, np.full(40, 7.0), ALL, (), ())
    assert one.offset + one.factor * one.base(ALL)[0] == 7.0
    two = Objective.of("binary", 1, np.zeros(40), ALL, (), ())
    assert -20 < two.base(ALL)[0] < -10


@pytest.mark.parametrize(
    ("name", "outputs", "y", "weights", "error"),
    [
        ("binary", 1, [0, 1, 2], (), DataError),
        ("binary", 1, [0, 1, np.nan], (), DataError),
        ("multiclass", 3, [0, 1, 1.5], (), DataError),
        ("regression", 1, [0, 1, np.inf], (), DataError),
        ("regression", 1, [0, 1, 2], (1.0,), JobFileError),
        ("binary", 2, [0, 1, 1], (), JobFileError),
        ("multiclass", 1, [0, 1, 1], (), JobFileError),
        ("ranking", 1, [0, 1, 1], (), JobFileError),
        ("binary", 1, [0, 1, 1], (1.0, 2.0, 3.0), JobFileError),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, outputs, y, weights, error):
    with pytest.raises(error):
        Objective.of(name, outputs, np.array(y, dtype=float), np.arange(3), (), weights)
    with pytest.raises(DataError):
        Objective.of("binary", 1, np.zeros(3), NONE, (), ())


def test_labels_of_rows_that_do_not_count_may_be_anything():
    y = np.array([0, 1, np.nan, 9])
    assert Objective.of("binary", 1, y, np.array([0]), (np.array([1]),), ()).y.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"trees": 0}, {"depth": 0}, {"depth": 9}, {"learning_rate": 0.0}, {"learning_rate": 1.1}, {"l2": -1.0},
     {"min_child_weight": float("nan")}, {"subsample": 0.0}, {"min_rows_open": 0}, {"early_stopping": -1},
     {"class_weight": (1.0, 0.0)}],
)  # fmt: skip
def test_settings_out_of_range_name_their_key(wrong):
    with pytest.raises(JobFileError, match=f"vertical.{next(iter(wrong))}"):
        TreeSettings(**wrong)


# ---- histograms and gains


@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 32, 200, 256]), max_size=5),
    n=st.integers(0, 60),
    some=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_sums_left_of_each_cut_are_those_of_counting(sizes, n, some, seed):
    rng = np.random.default_rng(seed)
    codes = (
        np.stack([rng.integers(0, s, n) for s in sizes], axis=1).astype(np.uint8)
        if sizes
        else np.zeros((n, 0), np.uint8)
    )
    rows = np.flatnonzero(rng.random(n) < 0.5) if some else None
    chosen = np.arange(n) if rows is None else rows
    g, h = rng.normal(size=(2, len(chosen)))
    made = PlainHistograms(codes, np.array(sizes, dtype=np.int64)).sums(rows, g, h, None)
    features, cuts = candidate_cuts(sizes)
    assert made.shape == (len(features), 3)
    for left, feature, cut in zip(made, features, cuts, strict=True):
        there = codes[chosen, feature] <= cut
        assert np.allclose(left, [g[there].sum(), h[there].sum(), there.sum()])


@given(st.integers(0, 10_000), st.integers(0, 12), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.5]))
@settings(max_examples=80, deadline=None)
def test_the_best_gain_is_that_of_trying_all(seed, k, l2, least):
    rng = np.random.default_rng(seed)
    left, total = np.round(rng.normal(size=(k, 2)), 1), np.array([rng.normal(), 4.0])
    left[:, 1] = np.abs(left[:, 1])
    fits = rng.random(k) < 0.8
    best, found = 1e-6, -1
    for i, (g, h) in enumerate(left):
        rest = total - left[i]
        if fits[i] and min(h, rest[1]) >= least and h > 0 and rest[1] > 0:
            gain = g**2 / (h + l2) + rest[0] ** 2 / (rest[1] + l2) - total[0] ** 2 / (total[1] + l2)
            if gain > best + 1e-12:
                best, found = gain, i
    gain, number = best_gain(left, total, l2=l2, least=least, fits=fits)
    assert number == found or abs(gain - best) < 1e-9
    assert gain == pytest.approx(best if found >= 0 else 0.0)


def test_a_leaf_without_weight_is_zero_not_an_error():
    assert leaf_weight(0.0, 0.0, TreeSettings(l2=0.0)) == 0.0
    assert leaf_weight(-3.0, 2.0, TreeSettings(l2=1.0, learning_rate=0.5)) == 0.5


# ---- parts of trees


def grown(seed=0, *, depth=3, rounds=2, outputs=2, parties=2):
    """Random trees of an active party and `parties` passive ones, a few nodes not split."""
    rng = np.random.default_rng(seed)
    sizes = [np.array([4, 6, 3])] * (1 + parties)
    trees = empty_trees(rounds * outputs, depth, sizes[0], rng.normal(size=outputs), parties)
    others = [empty_part(rounds * outputs, depth, s) for s in sizes[1:]]
    trees.leaves[:] = rng.normal(size=trees.leaves.shape)
    for tree in range(trees.trees):
        for node in range(2**depth - 1):
            stopped = node and (trees.owner[tree, (node - 1) // 2] == NOBODY)
            owner = NOBODY if stopped or rng.random() < 0.15 else rng.integers(0, 1 + parties)
            trees.owner[tree, node] = owner
            if owner >= 0:
                part, feature = [trees, *others][owner], rng.integers(0, 3)
                part.feature[tree, node], part.cut[tree, node] = feature, rng.integers(0, sizes[0][feature] - 1)
                part.gain[tree, node] = trees.gain[tree, node] = rng.random()
    codes = [np.stack([rng.integers(0, s, 50) for s in sizes[0]], axis=1).astype(np.uint8) for _ in sizes]
    return trees, others, codes


def walk(trees, others, codes, tree, row):
    node = 0
    while node < trees.feature.shape[1]:
        owner = trees.owner[tree, node]
        if owner == NOBODY:
            return leaf_of(node, trees.depth)
        part = [trees, *others][owner]
        node = 2 * node + 1 + int(codes[owner][row, part.feature[tree, node]] > part.cut[tree, node])
    return leaf_of(node, trees.depth)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parties", [0, 1, 2])
def test_all_parties_marks_have_exactly_the_leaf_in_common_in_which_the_row_ends(seed, parties):
    trees, others, codes = grown(seed, parties=parties)
    scores = np.tile(trees.base, (50, 1))
    for tree in range(trees.trees):
        marks = allowed_leaves(trees, tree, codes[0])
        for part, theirs in zip(others, codes[1:], strict=True):
            marks &= allowed_leaves(part, tree, theirs)
        ends = [walk(trees, others, codes, tree, row) for row in range(50)]
        assert (marks.sum(axis=1) == 1).all() and marks.argmax(axis=1).tolist() == ends
        scores[:, tree % 2] += trees.leaves[tree, ends]
    assert np.allclose(joint_scores(trees, codes[0], list(zip(others, codes[1:], strict=True))), scores)


def test_gains_are_added_up_by_party_and_by_feature():
    trees, others, _ = grown()
    by_party = [sum(trees.gain[trees.owner == p]) for p in range(3)]
    assert np.allclose(trees.party_gain, by_party)
    assert trees.importance.sum() == pytest.approx(by_party[0])
    assert others[0].importance.sum() == pytest.approx(by_party[1])
    assert trees.first(2).trees == 2 and trees.first(2).rounds == 1 and others[0].first(2).trees == 2


def test_parts_are_kept_as_arrays_without_loss():
    trees, others, _ = grown()
    for part, kind in ((trees, ActiveTrees), (others[0], PassiveTrees)):
        held = part.to_arrays()
        assert all(array.dtype != object for array in held.values())
        back = kind.from_arrays(held).to_arrays()
        assert all((back[name] == held[name]).all() and back[name].dtype == held[name].dtype for name in held)


@pytest.mark.parametrize(
    "spoil",
    [
        {"feature": np.zeros((4, 6), np.int32)},
        {"feature": np.full((4, 7), 3, np.int32)},
        {"cut": np.zeros((4, 7), np.int64)},
        {"gain": np.full((4, 7), np.nan)},
        {"owner": np.full((4, 7), 3, np.int16)},
        {"owner": np.zeros((4, 7), np.int16)},
        {"leaves": np.zeros((4, 7))},
        {"base": np.zeros(3)},
        {"base": np.array([np.inf, 0])},
        {"feature": np.zeros(4, np.int32)},
        {"leaves": None},
    ],
)
def test_arrays_that_are_no_trees_are_refused(spoil):
    held = grown()[0].to_arrays() | spoil
    with pytest.raises(DataError):
        ActiveTrees.from_arrays({name: array for name, array in held.items() if array is not None})
