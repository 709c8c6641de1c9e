"""Trees over a union: those of the rows in common, of which nothing can be told from what the active party gets."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import BadFrame, DataError, PeerLost
from fl_core.learning.boosting import Objective, PlainHistograms, TreeSettings
from fl_core.learning.tree_parts import joint_scores
from fl_core.protocols.vertical.course import MemoryCourse, Split
from fl_core.protocols.vertical.union_splits import CHOICES, FIGURES, REPLY, SHARES, deal_union
from fl_core.protocols.vertical.union_trees import train_union_active, train_union_passive
from tests.fl_core.learning import plain_boosting
from tests.fl_core.protocols.parties import converse


class Data:
    """Rows of a union, about two thirds in common; labels that hang on both parties' columns."""

    def __init__(self, objective="binary", outputs=1, n=1200, own=3, seed=0):
        rng = np.random.default_rng(seed)
        self.objective, self.outputs = objective, outputs
        self.sizes = np.array([9, 4, 7][:own]), np.array([6, 8, 2])
        self.codes = [
            np.stack([rng.integers(0, s, n) for s in sizes], axis=1).astype(np.uint8) if len(sizes) else
            np.zeros((n, 0), np.uint8) for sizes in self.sizes
        ]  # fmt: skip
        z = sum((c[:, 0] > 3) + 0.2 * c[:, 1] for c in self.codes if c.shape[1]) + rng.normal(size=n)
        cuts = np.quantile(z, np.linspace(0, 1, max(outputs, 2) + 1)[1:-1])
        self.y = z * 30 + 200 if objective == "regression" else np.searchsorted(cuts, z).astype(float)
        self.members = rng.random(n) < 0.85, rng.random(n) < 0.85
        order = rng.permutation(n)
        self.split = Split(*(np.sort(p) for p in np.split(order, (n * 7 // 10, n * 85 // 100))))
        self.common = np.flatnonzero(self.members[0] & self.members[1])
        self.y[~self.members[0]] = np.nan

    def train(self, settings, *, courses=None, fault=None, active=None, timeout=30.0):
        courses = courses or {"g": MemoryCourse(), "h": MemoryCourse()}
        own, others = active or settings, settings
        programs = {
            "g": lambda c: train_union_active(
                c, "d", "h", self.codes[0], self.sizes[0], self.y, self.objective, self.outputs, self.split, own,
                member=self.members[0], course=courses["g"]),
            "h": lambda c: train_union_passive(
                c, "d", "g", self.codes[1], self.sizes[1], self.split, others, member=self.members[1],
                course=courses["h"]),
            "d": lambda c: deal_union(c, "g", "h", self.objective, settings),
        }  # fmt: skip
        return converse(programs, fault=fault, timeout=timeout), courses

    def scores(self, session):
        return joint_scores(session.result("g"), self.codes[0], [(session.result("h"), self.codes[1])])

    def plain(self, settings):
        """Grown from the rows in common alone, by somebody who knows them."""
        mine = self.split.train[self.members[0][self.split.train]]
        goal = Objective.of(self.objective, self.outputs, self.y, mine, (), settings.class_weight)
        union = plain_boosting.Union(goal.base(mine), self.y[mine].min(), self.y[mine].max())
        position = np.full(len(self.y), -1)
        position[self.common] = np.arange(len(self.common))
        inside = [position[rows][position[rows] >= 0] for rows in (self.split.train, self.split.valid, self.split.test)]
        return plain_boosting.train(
            [c[self.common] for c in self.codes], self.sizes, self.y[self.common], self.objective, self.outputs,
            Split(*inside), settings, union,
        )  # fmt: skip


SETTINGS = TreeSettings(trees=4, min_rows_open=30)


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (Data(), {}),
        (Data(own=0), {"l2": 0.3}),
        (Data(), {"class_weight": (1.0, 3.0)}),
        (Data("multiclass", 3), {"depth": 2, "trees": 3}),
        (Data("regression"), {}),
    ],
)
def test_trees_are_those_of_the_rows_in_common(data, more):
    settings = TreeSettings(**{"trees": 4, "min_rows_open": 30} | more)
    session, courses = data.train(settings)
    session.result("d")
    plain, scores = data.plain(settings), data.scores(session)
    rows = np.intersect1d(data.split.train, data.common)
    unit = np.ptp(scores) if data.objective == "regression" else 1.0
    assert np.abs(scores[rows] - plain.scores[np.searchsorted(data.common, rows)]).max() < 5e-3 * unit
    told = [metrics for _, metrics in courses["g"].told]
    assert np.allclose([m["loss"] for m in told], plain.losses, rtol=3e-3)
    assert np.allclose([m["valid_loss"] for m in told], plain.valid_losses, rtol=3e-3)
    assert {"loss", "valid_loss", "test_loss"} == set(told[0]) and courses["h"].told[-1] == (settings.trees, {})
    assert {party for *_, party, _ in plain.splits} == ({0, 1} if len(data.sizes[0]) else {1})


def test_membership_counts():
    """The same data with all rows in common gives other trees: weights of hidden rows are not lost on the way."""
    data, whole = Data(), Data()
    whole.members = np.ones(1200, bool), np.ones(1200, bool)
    whole.y = np.where(np.isnan(data.y), 0.0, data.y)
    one, two = (d.scores(d.train(SETTINGS)[0]) for d in (data, whole))
    assert np.abs(one - two).max() > 0.02


def test_a_resumed_training_and_a_sample_a_tree():
    data, settings = Data(), TreeSettings(trees=4, min_rows_open=25, subsample=0.7)
    whole, courses = data.train(settings)
    again = {name: MemoryCourse(begun=2, state=course.kept[2]) for name, course in courses.items()}
    rest, later = data.train(settings, courses=again)
    assert later["g"].told == courses["g"].told[2:]
    assert (data.scores(rest) == data.scores(whole)).all()


def test_early_stopping():
    data = Data(n=6000)
    settings = TreeSettings(
        trees=50, depth=2, learning_rate=1.0, early_stopping=2, min_rows_open=20, min_child_weight=0
    )
    session, courses = data.train(settings)
    losses = [metrics["valid_loss"] for _, metrics in courses["g"].told]
    assert session.result("g").rounds == session.result("h").trees == int(np.argmin(losses)) + 1 == len(losses) - 2


# ---- what is learned


def recover(codes, sizes, y, member, rounds=6):
    """Membership bits from opened sums of own columns, by least squares; the coefficients are the party's own."""
    rng, n = np.random.default_rng(0), len(y)
    counted, equations, sums = PlainHistograms(codes, sizes), [], []
    features, cuts = np.repeat(np.arange(len(sizes)), sizes - 1), np.concatenate([np.arange(s - 1) for s in sizes])
    columns = (codes[:, features] <= cuts).astype(float)
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-rng.normal(size=n)))
        for v in (p - y, p * (1 - p)):
            equations.append(columns * v[:, None])
            sums.append(counted.sums(None, v * member)[:, 0])
    found = np.linalg.lstsq(np.concatenate(equations, axis=1).T, np.concatenate(sums), rcond=None)[0]
    return found > 0.5


def test_opened_histograms_of_own_columns_would_show_who_is_in_common():
    """Why the active party gets no histogram of its own columns here: they are equations in the hidden bits."""
    rng = np.random.default_rng(1)
    n, sizes = 150, np.array([16, 16, 16])
    codes = np.stack([rng.integers(0, s, n) for s in sizes], axis=1).astype(np.uint8)
    member = rng.random(n) < 0.6
    assert (recover(codes, sizes, rng.integers(0, 2, n), member) == member).all()


def test_the_active_party_gets_no_histogram():
    """All that is not uniform and goes to it: choices, sides of rows, mean losses."""
    data = Data(n=2000)
    session, _ = data.train(SETTINGS)
    session.result("d")
    told = [m for m in session.said if m.to == "g" and m.sender == "d" and m.step != "dealer"]
    assert {m.step for m in told} == {CHOICES, FIGURES}
    nodes = sum(len(m.data) for m in told if m.step == CHOICES) / REPLY.itemsize
    assert nodes <= SETTINGS.trees * (2**SETTINGS.depth - 1)
    assert all(len(m.data) == 24 for m in told if m.step == FIGURES)
    for message in (m for m in told if m.step == CHOICES):
        for reply in np.frombuffer(message.data, REPLY):
            assert reply["gain"] == float(f"{reply['gain']:.3g}") and reply["left"] == round(float(reply["left"]), 3)
    hidden = [
        m
        for m in session.said
        if m.to == "g" and m.step in ("masked shares", "membership", "dealer") and len(m.data) > 32
    ]
    hidden += [m for m in session.said if m.step == SHARES]
    counts = np.bincount(np.frombuffer(b"".join(m.data for m in hidden), np.uint8), minlength=256)
    mean = counts.sum() / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 6 * np.sqrt(2 * 255)
    assert not [m for m in session.said if m.to == "d" and m.sender == "h" and m.step not in (SHARES, FIGURES)]


def test_no_leaf_has_few_rows_in_common():
    data = Data(n=2000)
    session, _ = data.train(TreeSettings(trees=6, min_rows_open=40, min_child_weight=0))
    trees, part = session.result("g"), session.result("h")
    from fl_core.learning.tree_parts import allowed_leaves

    rows = np.intersect1d(data.split.train, data.common)
    for tree in range(trees.trees):
        marks = allowed_leaves(trees, tree, data.codes[0][rows]) & allowed_leaves(part, tree, data.codes[1][rows])
        counts = marks.sum(axis=0)
        assert counts[counts > 0].min() >= 40 and counts.sum() == len(rows)


def test_too_few_rows_in_common_end_it_at_the_coordinator():
    data = Data()
    few = np.zeros(1200, bool)
    few[data.split.train[:29]] = True
    data.members = np.ones(1200, bool), few
    data.y = np.nan_to_num(data.y)
    session, _ = data.train(SETTINGS, timeout=3)
    assert isinstance(session.results["d"], DataError) and "29" not in str(session.results["d"])
    assert isinstance(session.results["g"], PeerLost)


def test_more_leaves_than_rows_can_hide_are_refused_by_both():
    data, many = Data(n=800), TreeSettings(trees=40, min_rows_open=30)
    session, _ = data.train(many, timeout=2)
    assert isinstance(session.results["g"], DataError)
    session, _ = data.train(many, active=TreeSettings(trees=1, min_rows_open=30), timeout=2)
    assert isinstance(session.results["d"], DataError)


@pytest.mark.parametrize(
    ("sender", "to", "step", "change", "at"),
    [
        ("d", "g", CHOICES, lambda d: d[:-1], "g"),
        ("d", "g", CHOICES, lambda d: b"\x05" + bytes(d[1:]), "g"),
        ("d", "g", CHOICES, lambda d: bytes(d[:8]) + b"\xff" * 8 + bytes(d[16:]), "g"),
        ("h", "d", SHARES, lambda d: d[:-4], "d"),
        ("h", "g", "masked shares", lambda d: d[:-4], "g"),
        ("g", "h", "trees of nodes", lambda d: b"\x09" + bytes(d[1:]), "h"),
        ("h", "g", "sides of rows", lambda d: b"\xff" * len(d), "g"),
    ],
)
def test_what_does_not_fit_is_named(sender, to, step, change, at):
    data = Data(own=0)
    session, _ = data.train(
        SETTINGS, fault=lambda *m: change(m[3]) if (m[0], m[1], m[2]) == (sender, to, step) else m[3], timeout=2
    )
    assert isinstance(session.results[at], BadFrame), session.results[at]
