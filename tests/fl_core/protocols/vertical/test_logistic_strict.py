"""Vertical logistic regression with hidden logits against the same training in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import TrainingDiverged
from fl_core.learning.scores import auc
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.dealer import Dealer
from fl_core.protocols.vertical.logistic import LogisticSettings
from fl_core.protocols.vertical.logistic_strict import Setup, Strict
from tests.fl_core.protocols.parties import converse
from tests.fl_core.protocols.vertical import plain_logistic

SETTINGS = LogisticSettings(epochs=4, batch_size=128, learning_rate=0.2, seed=3)


def problem(n=900, widths=(3, 4), classes=2, seed=0, *, bins=False):
    rng = np.random.default_rng(seed)
    xs = [np.clip(rng.normal(size=(n, d)), -3, 3) for d in widths]
    whole = np.concatenate(xs, axis=1) @ rng.normal(size=(sum(widths), classes)) + rng.gumbel(size=(n, classes))
    if bins:
        xs = [np.concatenate([x < -0.5, (x >= -0.5) & (x < 0.5), x >= 0.5], axis=1).astype(float) for x in xs]
    order = rng.permutation(n)
    return xs, whole.argmax(axis=1), Split(np.sort(order[400:]), np.sort(order[:150]), np.sort(order[150:400]))


def start(xs, y, outputs, split, settings, *, courses=None, members=None):
    names = ["g", *(f"h{i}" for i in range(1, len(xs)))]
    courses = courses or {name: MemoryCourse() for name in names}

    def party(i, name):
        member = None if members is None else members[i]
        setup = Setup(xs[i], outputs, split, settings, member, y if i == 0 else None)
        return lambda channel: Strict(channel, "d", names, setup, courses[name]).run()

    programs = {name: party(i, name) for i, name in enumerate(names)}
    return names, courses, converse(programs | {"d": lambda c: Dealer(c, "g", names).serve()})


def run(*args, **more):
    names, courses, done = start(*args, **more)
    done.result("d")
    return [done.result(name) for name in names], courses, done


@pytest.mark.parametrize("widths", [(3, 4), (0, 5), (2, 3, 4)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("bins", [True, False])
@pytest.mark.parametrize("weights", [(), (1.0, 2.5, 0.5)])
def test_weights_equal_those_of_plain_training(widths, classes, bins, weights):
    xs, y, split = problem(widths=widths, classes=classes, bins=bins)
    outputs = 1 if classes == 2 else classes
    settings = LogisticSettings(**(vars(SETTINGS) | {"class_weight": weights[:classes], "l2": 0.05}))
    found, courses, _ = run(xs, y, outputs, split, settings)
    plain, losses = plain_logistic.train(xs, y, outputs, split, settings, linear=True, intercept_l2=True)
    for secure, clear in zip(found, plain, strict=True):
        assert np.abs(secure - clear).max() < (2e-3 if bins and not weights else 0.03)
    told = [metrics["loss"] for _, metrics in courses["g"].told]
    total = (np.asarray(weights)[y[split.train]] if weights else np.ones(len(split.train))).sum()
    assert told == pytest.approx(losses / total, rel=0.02)
    z = plain_logistic.logits(xs, plain)[split.test]
    secure = plain_logistic.logits(xs, found)[split.test]
    if outputs == 1:
        assert auc(y[split.test], secure[:, 0]) == pytest.approx(auc(y[split.test], z[:, 0]), abs=0.002)


def test_only_rows_of_both_members_count():
    xs, y, split = problem(bins=True)
    rng = np.random.default_rng(7)
    members = [rng.random(len(y)) < 0.8, rng.random(len(y)) < 0.7]
    own = [x * m[:, None] for x, m in zip(xs, members, strict=True)]
    found, courses, _done = run(own, np.where(members[0], y, 0), 1, split, SETTINGS, members=members)
    both = members[0] & members[1]
    plain, losses = plain_logistic.train(xs, y, 1, split, SETTINGS, linear=True, member=both, intercept_l2=True)
    for secure, clear in zip(found, plain, strict=True):
        assert np.abs(secure - clear).max() < 2e-3
    assert [m["loss"] for _, m in courses["g"].told] == pytest.approx(losses / both[split.train].sum(), rel=0.01)


def test_what_a_party_hears_does_not_depend_on_who_is_common():
    """The attack on open logits finds absent rows by their zeros; here nothing of a row's shows who is there."""
    xs, y, split = problem(bins=True)
    here = np.ones(len(y), bool)
    absent = np.random.default_rng(8).random(len(y)) < 0.5
    heard = []
    for gone in (np.zeros(len(y), bool), absent):
        own = [xs[0], xs[1] * ~gone[:, None]]
        *_, done = run(own, y, 1, split, SETTINGS, members=[here, ~gone])
        heard.append([m.outline for m in done.heard_by("g")])
        rows = np.concatenate([split.train, split.valid])
        for message in done.heard_by("g"):
            values = np.frombuffer(message.data, np.uint64) if len(message.data) % 8 == 0 else np.zeros(0)
            if len(values) == len(rows) and message.step != "masked columns":
                assert not (values == 0).any() and len(np.unique(values)) == len(values)
    assert heard[0] == heard[1]


def test_open_logits_would_show_who_is_common():
    """The attack that strict mode is there for: all absent rows recovered from one opened vector of logits."""
    xs, y, split = problem(bins=True)
    absent = np.random.default_rng(8).random(len(y)) < 0.5
    own = [xs[0], xs[1] * ~absent[:, None]]
    found, _, _ = run(own, y, 1, split, SETTINGS, members=[np.ones(len(y), bool), ~absent])
    opened = own[1] @ found[1]
    assert ((opened[:, 0] == 0) == absent).mean() == 1.0


def test_a_training_goes_on_from_the_last_epoch_that_all_kept():
    xs, y, split = problem(widths=(3, 2, 2), bins=True)
    whole, courses, _ = run(xs, y, 1, split, SETTINGS)
    again = {name: MemoryCourse(2, course.kept[2]) for name, course in courses.items()}
    resumed, later, _ = run(xs, y, 1, split, SETTINGS, courses=again)
    for one, two in zip(whole, resumed, strict=True):
        assert np.abs(one - two).max() < 2e-3
    assert [number for number, _ in later["g"].told] == [3, 4]


def test_early_stopping_keeps_the_best_epoch_at_every_party():
    rng = np.random.default_rng(1)
    xs = [rng.integers(0, 2, (300, 20)).astype(float), rng.integers(0, 2, (300, 20)).astype(float)]
    y = rng.integers(0, 2, 300)
    split = Split(np.arange(60), np.arange(60, 200), np.arange(200, 300))
    settings = LogisticSettings(epochs=40, batch_size=64, learning_rate=0.2, early_stopping=3, seed=1)
    found, courses, _ = run(xs, y, 1, split, settings)
    stopped = len(courses["g"].told)
    assert 3 < stopped < 40
    best = LogisticSettings(**(vars(settings) | {"epochs": stopped - 3, "early_stopping": 0}))
    plain, _ = plain_logistic.train(xs, y, 1, split, best, linear=True)
    for secure, clear in zip(found, plain, strict=True):
        assert np.abs(secure - clear).max() < 5e-3


def test_a_training_that_diverges_is_an_error_and_not_a_model():
    xs, y, split = problem(widths=(10, 10))
    _names, _, done = start(xs, y, 1, split, LogisticSettings(epochs=30, batch_size=128, learning_rate=20.0))
    assert isinstance(done.results["g"], TrainingDiverged)
    assert "a smaller learning_rate helps" in str(done.results["g"])
