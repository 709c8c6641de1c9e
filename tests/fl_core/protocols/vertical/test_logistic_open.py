"""Vertical logistic regression with open logits against the same training in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import DataError, TrainingDiverged
from fl_core.learning.scores import auc
from fl_core.learning.seeds import generator
from fl_core.protocols.vertical import logistic_open
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.dealer import Dealer
from fl_core.protocols.vertical.logistic import LogisticSettings
from tests.fl_core.protocols.parties import converse
from tests.fl_core.protocols.vertical import plain_logistic


def problem(n=900, widths=(3, 4), classes=2, seed=0):
    """Columns of each party, labels that depend on all of them, and a split."""
    rng = np.random.default_rng(seed)
    xs = [np.clip(rng.normal(size=(n, d)), -5, 5) for d in widths]
    whole = np.concatenate(xs, axis=1) @ rng.normal(size=(sum(widths), classes)) + rng.gumbel(size=(n, classes))
    order = rng.permutation(n)
    valid, test, train = np.sort(order[:150]), np.sort(order[150:400]), np.sort(order[400:])
    return xs, whole.argmax(axis=1), Split(train, valid, test)


def run(xs, y, outputs, split, settings, *, courses=None, begin=None):
    names = ["g", *(f"h{i}" for i in range(1, len(xs)))]
    courses = courses or {name: MemoryCourse() for name in names}

    def active(channel):
        return logistic_open.train_active(channel, "d", names[1:], xs[0], y, outputs, split, settings, course=courses["g"])

    def passive(name, x):
        return lambda channel: logistic_open.train_passive(channel, "d", "g", x, outputs, split, settings, course=courses[name])

    programs = {"g": active, "d": lambda channel: Dealer(channel, "g", names).serve()}
    programs |= {name: passive(name, x) for name, x in zip(names[1:], xs[1:], strict=True)}
    done = converse(programs)
    done.result("d")
    return [done.result(name) for name in names], courses, done


SETTINGS = LogisticSettings(epochs=4, batch_size=128, learning_rate=0.1, seed=3)


@pytest.mark.parametrize("widths", [(3, 4), (0, 5), (2, 3, 4)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("more", [{}, {"l2": 0.1, "momentum": 0.0, "class_weight": (1.0, 3.0, 0.5)}])
def test_weights_equal_those_of_plain_training(widths, classes, more):
    xs, y, split = problem(widths=widths, classes=classes)
    outputs = 1 if classes == 2 else classes
    if "class_weight" in more:
        more = more | {"class_weight": more["class_weight"][:classes]}
    settings = LogisticSettings(**(vars(SETTINGS) | more))
    weights, courses, _ = run(xs, y, outputs, split, settings)
    plain, _ = plain_logistic.train(xs, y, outputs, split, settings)
    for secure, clear in zip(weights, plain, strict=True):
        assert secure.shape == clear.shape
        assert np.abs(secure - clear).max() < 1e-3
    told = [metrics for _, metrics in courses["g"].told]
    assert len(told) == 4 and told[-1]["loss"] < told[0]["loss"]
    z = plain_logistic.logits(xs, plain)[split.test]
    if outputs == 1:
        assert told[-1]["auc"] == pytest.approx(auc(y[split.test], z[:, 0]), abs=0.002)
    else:
        assert told[-1]["accuracy"] == pytest.approx((z.argmax(axis=1) == y[split.test]).mean(), abs=0.01)
    assert all(metrics == {} for name in courses if name != "g" for _, metrics in courses[name].told)


def test_a_training_goes_on_from_the_last_epoch_that_all_kept():
    xs, y, split = problem(widths=(3, 2, 2))
    whole, courses, _ = run(xs, y, 1, split, SETTINGS)
    again = {name: MemoryCourse(2, course.kept[2]) for name, course in courses.items()}
    resumed, later, _ = run(xs, y, 1, split, SETTINGS, courses=again)
    for one, two in zip(whole, resumed, strict=True):
        assert np.abs(one - two).max() < 1e-3
    assert [number for number, _ in later["g"].told] == [3, 4]
    assert later["g"].told[-1][1]["loss"] == pytest.approx(courses["g"].told[-1][1]["loss"], abs=1e-4)


def test_early_stopping_keeps_the_best_epoch_at_every_party():
    rng = np.random.default_rng(1)
    xs = [rng.normal(size=(300, 20)), rng.normal(size=(300, 20))]
    y = rng.integers(0, 2, 300)
    split = Split(np.arange(60), np.arange(60, 200), np.arange(200, 300))
    settings = LogisticSettings(epochs=60, batch_size=64, learning_rate=0.5, early_stopping=3, seed=1)
    weights, courses, _ = run(xs, y, 1, split, settings)
    stopped = len(courses["g"].told)
    assert stopped < 20
    best = LogisticSettings(**(vars(settings) | {"epochs": stopped - 3, "early_stopping": 0}))
    plain, _ = plain_logistic.train(xs, y, 1, split, best)
    for secure, clear in zip(weights, plain, strict=True):
        assert np.abs(secure - clear).max() < 5e-3


def test_each_sides_share_of_the_weights_says_nothing():
    xs, y, split = problem()
    weights, courses, _ = run(xs, y, 1, split, SETTINGS)
    mine, theirs = courses["g"].kept[4]["w.h1"], courses["h1"].kept[4]["w"]
    small = np.abs(weights[1]).max() * 2**24
    for share in (mine, theirs):
        assert np.abs(share.view(np.int64).astype(float)).min() > small
    assert np.abs((mine + theirs).view(np.int64) / 2**20 - weights[1]).max() < 1e-6


def test_a_column_out_of_range_is_refused_before_anything_is_sent():
    xs, y, split = problem()
    xs[1][5, 1] = 17.0
    with pytest.raises(DataError, match="party h1: a column reaches 17; allowed: at most 16"):
        raise run_failing(xs, y, split, SETTINGS)["h1"]


def test_a_learning_rate_that_does_not_fit_is_refused_and_trains_no_wrong_model():
    xs, y, split = problem()
    failed = run_failing(xs, y, split, LogisticSettings(epochs=100_000, batch_size=128, learning_rate=1e-13))
    with pytest.raises(TrainingDiverged, match="does not fit fixed point"):
        raise failed["g"]


def test_rows_that_open_logits_show_as_absent():
    """Why a union needs strict mode: rows without data have a logit of exactly zero at their owner."""
    xs, y, split = problem()
    absent = generator(5, "absent").random(len(y)) < 0.3
    xs[1][absent] = 0.0
    weights, _, _ = run(xs, y, 1, split, SETTINGS)
    u = xs[1] @ weights[1]
    assert ((u[:, 0] == 0) == absent).mean() == 1.0


def run_failing(xs, y, split, settings):
    def active(channel):
        return logistic_open.train_active(channel, "d", ["h1"], xs[0], y, 1, split, settings, course=MemoryCourse())

    def passive(channel):
        return logistic_open.train_passive(channel, "d", "g", xs[1], 1, split, settings, course=MemoryCourse())

    return converse({"g": active, "h1": passive, "d": lambda c: Dealer(c, "g", ["g", "h1"]).serve()}).results
