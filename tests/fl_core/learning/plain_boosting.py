"""The same boosted trees where all columns are in one place: slow, one node and one candidate after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fl_core.learning.boosting import TreeSettings
from fl_core.learning.seeds import generator


@dataclass
class Grown:
    """What came of it: scores of all rows in the unit of the logit or target, and metrics after each round."""

    scores: np.ndarray
    losses: list[float] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    splits: list[tuple[int, int, int, int]] = field(default_factory=list)  # round, output, party, feature
    rows_opened: list[int] = field(default_factory=list)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def derivatives(objective, outputs, scores, y, weight):
    if objective == "regression":
        return scores - y[:, None], np.ones((len(y), 1))
    if objective == "binary":
        p = 1 / (1 + np.exp(-scores))
        return weight[:, None] * (p - y[:, None]), weight[:, None] * p * (1 - p)
    p = softmax(scores)
    return weight[:, None] * (p - np.eye(outputs)[y.astype(int)]), weight[:, None] * p * (1 - p)


def losses(objective, scores, y):
    if objective == "regression":
        return (scores[:, 0] - y) ** 2
    if objective == "binary":
        return np.log1p(np.exp(np.where(y > 0, -scores[:, 0], scores[:, 0])))
    return -np.log(softmax(scores)[np.arange(len(y)), y.astype(int)])


def start(objective, outputs, y, weight):
    if objective == "regression":
        return np.array([y.mean()])
    if objective == "binary":
        p = np.average(y, weights=weight)
        return np.array([np.log(p / (1 - p))])
    return np.log(np.array([weight[y == c].sum() for c in range(outputs)]) / weight.sum())


@dataclass(frozen=True)
class Union:
    """What differs over a union, where only the rows in common are given.

    base : score before the first tree. low, high : of the active party's targets. digits : of leaf weights.
    """

    base: np.ndarray
    low: float = -1.0
    high: float = 1.0
    digits: int = 3


def train(parties, sizes, y, objective, outputs, split, settings: TreeSettings, union: Union | None = None) -> Grown:
    """Grow all rounds (no early stopping).

    parties : codes (n, d_p) of the active party and of each passive one. union : every split, on the last level too,
    leaves `min_rows_open` rows on both sides, counted whoever owns it.
    """
    train_rows, factor, offset = split.train, 1.0, 0.0
    y = np.asarray(y, dtype=float)
    if objective == "regression":
        low, high = (union.low, union.high) if union else (y[train_rows].min(), y[train_rows].max())
        factor, offset = (high - low) / 2, (high + low) / 2
        y = (y - offset) / factor
    weight = np.array(settings.class_weight)[y.astype(int)] if settings.class_weight else np.ones(len(y))
    heaviest = 1.0 if objective == "regression" else weight.max() / 4
    base = union.base if union else start(objective, outputs, y[train_rows], weight[train_rows])
    scores = np.tile(base, (len(y), 1))
    grown = Grown(scores)
    note(grown, objective, outputs, scores, y, weight, split, factor)
    for number in range(settings.trees):
        size = max(1, round(settings.subsample * len(train_rows)))
        sample = train_rows
        if size < len(train_rows):
            order = generator(settings.seed, "subsample", number).permutation(len(train_rows))
            sample = train_rows[np.sort(order[:size])]
        g, h = derivatives(objective, outputs, scores, y, weight)
        steps = np.zeros_like(scores)
        for output in range(outputs):
            node = np.arange(len(y))
            job = parties, sizes, g[:, output], h[:, output], settings, heaviest, union, grown, (number, output)
            divide(node, np.intersect1d(node, sample), 0, steps[:, output], *job)
        scores += steps
        note(grown, objective, outputs, scores, y, weight, split, factor)
    del grown.losses[0], grown.valid_losses[0]
    grown.scores = offset + factor * scores
    return grown


def note(grown, objective, outputs, scores, y, weight, split, factor):
    for rows, told in ((split.train, grown.losses), (split.valid, grown.valid_losses)):
        value = losses(objective, scores[rows], y[rows]) * (factor**2 if objective == "regression" else 1)
        told.append(float(np.average(value, weights=weight[rows])) if len(rows) else float("nan"))


def divide(rows, sample, depth, steps, parties, sizes, g, h, settings, heaviest, union, grown, tree):
    whole = g[sample].sum(), h[sample].sum()
    if depth < settings.depth:
        grown.rows_opened.append(len(sample))
        best = 1e-6, None
        for party, codes in enumerate(parties):
            for feature, size in enumerate(sizes[party]):
                for cut in range(size - 1):
                    goes = codes[sample, feature] <= cut
                    gain = gain_of(sample, goes, g, h, settings, whole, depth, party, heaviest, union)
                    if gain is not None and gain > best[0] + 1e-12:
                        best = gain, (party, feature, cut)
        if best[1]:
            party, feature, cut = best[1]
            grown.splits.append((*tree, party, feature))
            rest = parties, sizes, g, h, settings, heaviest, union, grown, tree
            for side in (True, False):
                mine = rows[(parties[party][rows, feature] <= cut) == side]
                divide(mine, np.intersect1d(mine, sample), depth + 1, steps, *rest)
            return
    step = -settings.learning_rate * whole[0] / (whole[1] + settings.l2)
    steps[rows] = round(step, union.digits) if union else step


def gain_of(sample, goes, g, h, settings, whole, depth, party, heaviest, union):
    one, two = sample[goes], sample[~goes]
    h1, h2 = h[one].sum(), h[two].sum()
    if min(h1, h2) < settings.min_child_weight or min(h1, h2) <= 0 or not len(one) or not len(two):
        return None
    if union or depth < settings.depth - 1:
        counts = (len(one), len(two)) if party == 0 or union else (h1 / heaviest, h2 / heaviest)
        if min(counts) < settings.min_rows_open - 1e-9:
            return None
    g1, g2 = g[one].sum(), g[two].sum()
    lam = settings.l2
    return g1**2 / (h1 + lam) + g2**2 / (h2 + lam) - whole[0] ** 2 / (whole[1] + lam)
