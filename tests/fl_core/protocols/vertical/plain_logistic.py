"""The same training in plain numpy on the joined columns: the reference of every secure one."""

from __future__ import annotations

import numpy as np

from fl_core.protocols.vertical.logistic import Layout, probabilities, row_weights, targets


def train(xs, y, outputs, split, settings, *, linear=False, member=None, intercept_l2=False):
    """`xs`: the parties' columns, the active one's first.  Returns weights by party, the intercept with the first's."""
    layout = Layout.of(split, settings)
    x = np.concatenate([np.concatenate([xs[0], np.ones((len(y), 1))], axis=1), *xs[1:]], axis=1)[layout.order]
    labels = y[layout.order]
    t, weight = targets(labels, outputs), row_weights(labels, settings)[:, None]
    if member is not None:
        weight = weight * member[layout.order][:, None]
    w, v = np.zeros((x.shape[1], outputs)), np.zeros((x.shape[1], outputs))
    decay = np.ones_like(w)
    decay[xs[0].shape[1]] = float(intercept_l2)
    losses = []
    for _ in range(settings.epochs):
        loss = 0.0
        for rows in layout.batches:
            z = x[rows] @ w
            r = ((0.5 + z / 8 if linear else probabilities(z)) - t[rows]) * weight[rows]
            loss += (r**2).sum()
            v = settings.momentum * v + settings.learning_rate * (x[rows].T @ r / layout.rows + settings.l2 * decay * w)
            w = w - v
        losses.append(loss)
    cuts = np.cumsum([xs[0].shape[1] + 1, *(part.shape[1] for part in xs[1:])])[:-1]
    return np.split(w, cuts), np.array(losses)


def logits(xs, weights):
    """Of the joined columns."""
    return xs[0] @ weights[0][:-1] + weights[0][-1] + sum(x @ w for x, w in zip(xs[1:], weights[1:], strict=True))
