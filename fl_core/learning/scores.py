"""How well a model does: scores of binary, multi-class and regression models, in float64.

All take the whole truth and the whole prediction, so they run at a party that may see both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_EMPTY_CELL = 0.5


def _curve(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> tuple[Floats, Floats] | None:
    """False and true positive rates from (0, 0) to (1, 1), a point for each different score; None for one class."""
    positive = np.asarray(y) > 0
    values = np.asarray(score, dtype=np.float64)
    weights = np.ones(len(values)) if weight is None else np.asarray(weight, dtype=np.float64)
    if len(values) == 0 or np.isnan(values).any():
        return None
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    true = np.cumsum(np.where(positive, weights, 0.0)[order])[last]
    false = np.cumsum(np.where(positive, 0.0, weights)[order])[last]
    if not (true[-1] > 0 and false[-1] > 0):
        return None
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def auc(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve; equal scores count half.

    Parameters
    ----------
    y : (n,) 1 for positive, 0 for negative. score : (n,) higher is more positive; may be infinite.
    weight : (n,) not negative; 1 each without it.

    Returns
    -------
    In [0, 1]; NaN where one class has no weight, or a score is NaN.
    """
    curve = _curve(y, score, weight)
    return math.nan if curve is None else float(np.trapezoid(curve[1], curve[0]))


def ks(y: ArrayLike, score: ArrayLike) -> float:
    """Kolmogorov-Smirnov: the largest distance of the true from the false positive rate, as for `auc`."""
    curve = _curve(y, score)
    return math.nan if curve is None else float(np.abs(curve[1] - curve[0]).max())


def roc(
    y: ArrayLike, score: ArrayLike, points: int = 101, weight: ArrayLike | None = None
) -> list[tuple[float, float]]:
    """(false, true) positive rates at `points` evenly spaced false ones from 0 to 1, as for `auc`.

    The curve is interpolated, at a step its upper end; empty where `auc` is NaN.
    """
    curve = _curve(y, score, weight)
    if curve is None:
        return []
    grid = np.linspace(0.0, 1.0, points)
    return list(zip(grid.tolist(), np.interp(grid, *curve).tolist(), strict=True))


def log_loss_binary(y: ArrayLike, logits: ArrayLike) -> float:
    """Mean of ln(1 + e^-z) for y = 1 and ln(1 + e^z) for y = 0; (n,) each, NaN without rows."""
    z = np.asarray(logits, dtype=np.float64)
    return _mean(np.logaddexp(0.0, np.where(np.asarray(y) > 0, -z, z)))


def softmax_loss(y: ArrayLike, logits: ArrayLike) -> float:
    """Mean of -ln softmax(logits)[y]; y (n,) classes from 0, logits (n, C). NaN without rows."""
    z = np.asarray(logits, dtype=np.float64)
    if len(z) == 0:
        return math.nan
    z = z - z.max(axis=1, keepdims=True)
    own = np.take_along_axis(z, np.asarray(y, dtype=np.int64)[:, None], axis=1)[:, 0]
    return _mean(np.log(np.exp(z).sum(axis=1)) - own)


def accuracy(y: ArrayLike, predicted: ArrayLike) -> float:
    """Share of rows whose predicted class is the true one; NaN without rows."""
    return _mean(np.asarray(y) == np.asarray(predicted))


def rmse(y: ArrayLike, predicted: ArrayLike) -> float:
    """Root of the mean squared error, in the unit of y; NaN without rows."""
    return math.sqrt(_mean(_errors(y, predicted) ** 2))


def r2(y: ArrayLike, predicted: ArrayLike) -> float:
    """1 - Σ(y - p)² / Σ(y - mean)²; NaN where y does not vary."""
    truth = np.asarray(y, dtype=np.float64)
    if len(truth) == 0 or truth.min() == truth.max():
        return math.nan
    return 1.0 - float((_errors(y, predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def woe_iv(events: ArrayLike, non_events: ArrayLike) -> tuple[Floats, float]:
    """Weight of evidence of each bin, and the feature's information value (Siddiqi 2006).

    An empty cell counts 0.5 so that both stay finite; a bin without rows has weight 0.

    Parameters
    ----------
    events, non_events : (k,) rows of the positive and the negative class in each bin.

    Returns
    -------
    woe (k,): ln(share of all events in the bin / share of all non-events); positive where events are frequent.
    iv: Σ (share of events - share of non-events) · woe. Both NaN for one class.
    """
    e, n = np.asarray(events, dtype=np.float64), np.asarray(non_events, dtype=np.float64)
    if not (e.sum() > 0 and n.sum() > 0):
        return np.full(len(e), math.nan), math.nan
    some = e + n > 0
    p = np.where(some & (e == 0), _EMPTY_CELL, e) / e.sum()
    q = np.where(some & (n == 0), _EMPTY_CELL, n) / n.sum()
    woe = np.zeros(len(e))
    woe[some] = np.log(p[some] / q[some])
    return woe, float(((p - q) * woe).sum())


def _errors(y: ArrayLike, predicted: ArrayLike) -> Floats:
    return np.asarray(predicted, dtype=np.float64) - np.asarray(y, dtype=np.float64)


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
