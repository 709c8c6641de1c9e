"""Gradient-boosted trees on binned features: objectives, histograms in the open, gains.

Friedman 2001; second-order gains and leaf weights as XGBoost has them (Chen and Guestrin, KDD 2016).  A candidate split
is a feature and a cut: rows with code ≤ cut go left.  With sums G, H of first and second derivatives g, h over a node

    gain = G_L²/(H_L + λ) + G_R²/(H_R + λ) - G²/(H + λ),    leaf weight = -learning_rate · G/(H + λ).

Regression learns from targets scaled to [-1, 1] over the training rows; leaves are scaled back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, JobFileError
from fl_core.learning import scores as figures

Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
OBJECTIVES = ("binary", "multiclass", "regression")
MIN_GAIN = 1e-6
MAX_DEPTH = 8
MAX_REGRESSION_GRADIENT = 4.0
_RARE = 1e-6
_PAIRED = 4096


@dataclass(frozen=True)
class TreeSettings:
    """How trees are grown; the same at all parties.

    Attributes
    ----------
    trees : rounds; a round has a tree for each output.
    depth : levels of splits, 1 to 8.
    learning_rate : factor of leaf weights, over 0 and at most 1.
    l2 : λ above, not negative.
    min_child_weight : least H on either side of a split.
    subsample : share of the training rows that a round learns from, drawn anew each round.
    min_rows_open : nodes of fewer sampled training rows are never opened to the active party.
    early_stopping : rounds without a better loss on the validation rows after which to stop; 0 for never.
    class_weight : of each class in the loss; empty for all alike.
    seed : of what must repeat: the sample, the rounding.

    Raises
    ------
    JobFileError : a value out of range.
    """

    trees: int = 30
    depth: int = 3
    learning_rate: float = 0.3
    l2: float = 1.0
    min_child_weight: float = 1.0
    subsample: float = 1.0
    min_rows_open: int = 50
    early_stopping: int = 0
    class_weight: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for key, fits, allowed in (
            ("trees", self.trees >= 1, "1 or more"),
            ("depth", 1 <= self.depth <= MAX_DEPTH, f"1 to {MAX_DEPTH}"),
            ("learning_rate", 0 < self.learning_rate <= 1, "over 0, at most 1"),
            ("l2", 0 <= self.l2 < math.inf, "0 or more"),
            ("min_child_weight", 0 <= self.min_child_weight < math.inf, "0 or more"),
            ("subsample", 0 < self.subsample <= 1, "over 0, at most 1"),
            ("min_rows_open", self.min_rows_open >= 1, "1 or more"),
            ("early_stopping", self.early_stopping >= 0, "0 or more"),
            ("class_weight", all(0 < w < math.inf for w in self.class_weight), "numbers over 0"),
        ):
            if not fits:
                raise JobFileError(f"vertical.{key}", f"{getattr(self, key)}", allowed=allowed)


# ---- objectives


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised, at the party that has the labels.

    Attributes
    ----------
    y : (n,) float64: 0 and 1, classes from 0, or scaled targets. weight : (n,) of each row in the loss.
    offset, factor : target = offset + factor · y.
    """

    name: str
    outputs: int
    y: Floats
    weight: Floats
    offset: float = 0.0
    factor: float = 1.0

    @staticmethod
    def of(
        name: str, outputs: int, y: NDArray[np.generic], train: Rows, others: Sequence[Rows], weights: Sequence[float]
    ) -> Objective:
        """Check the labels and bring them to the form above.

        Parameters
        ----------
        outputs : classes for `multiclass`, else 1.
        y : (n,) labels of all rows. train, others : the rows that count.
        weights : of each class, or empty.

        Raises
        ------
        JobFileError : an unknown objective, or class weights that do not fit it.
        DataError : labels that do not fit the objective, or no training rows.
        """
        used = np.concatenate([train, *others])
        labels = np.asarray(y, dtype=np.float64)
        if name not in OBJECTIVES or (outputs < 2 if name == "multiclass" else outputs != 1):
            raise JobFileError("vertical.objective", f"{name} of {outputs} outputs", allowed=", ".join(OBJECTIVES))
        classes = {"binary": 2, "multiclass": outputs, "regression": 0}[name]
        if len(weights) not in (0, classes):
            raise JobFileError("vertical.class_weight", f"{len(weights)} numbers", allowed=f"none or {classes}")
        if not len(train):
            raise DataError("training rows", "none", allowed="one or more")
        if not np.isfinite(labels[used]).all():
            raise DataError("label", "a value that is missing or not finite", allowed="numbers")
        if classes:
            return _classes(name, outputs, labels, used, classes, weights)
        low, high = labels[train].min(), labels[train].max()
        offset, factor = (low + high) / 2, max((high - low) / 2, np.finfo(np.float64).tiny)
        return Objective(name, 1, (labels - offset) / factor, np.ones(len(labels)), float(offset), float(factor))

    @property
    def bounds(self) -> tuple[float, float]:
        """What |g| and h of a row do not exceed."""
        return gradient_bounds(self.name, [float(self.weight.max())])

    def base(self, train: Rows) -> Floats:
        """(outputs,) score before the first tree."""
        y, weight = self.y[train], self.weight[train]
        if self.name == "regression":
            return np.array([y.mean()])
        if self.name == "binary":
            p = np.clip((weight * y).sum() / weight.sum(), _RARE, 1 - _RARE)
            return np.array([math.log(p / (1 - p))])
        counts = np.bincount(y.astype(np.int64), weights=weight, minlength=self.outputs)
        return np.asarray(np.log(np.maximum(counts / counts.sum(), _RARE)))

    def gradients(self, scores: Floats, rows: Rows) -> tuple[Floats, Floats]:
        """First and second derivatives of each row's loss.

        Parameters
        ----------
        scores : (m, outputs) of `rows`.

        Returns
        -------
        g, h : (outputs, m) each, within `bounds` but for g of a regression that diverges.
        """
        y, weight = self.y[rows], self.weight[rows]
        if self.name == "regression":
            return (scores[:, 0] - y)[None], np.ones((1, len(rows)))
        if self.name == "binary":
            p = _sigmoid(scores[:, 0])[None]
            return weight * (p - y), weight * p * (1 - p)
        p = np.exp(scores - scores.max(axis=1, keepdims=True)).T
        p = p / p.sum(axis=0)
        truth = y[None] == np.arange(self.outputs)[:, None]
        return weight * (p - truth), weight * p * (1 - p)

    def losses(self, scores: Floats, rows: Rows) -> Floats:
        """(m,) loss of each of `rows`, without its weight; squared error in the unit of the target."""
        y = self.y[rows]
        if self.name == "regression":
            return np.asarray(((scores[:, 0] - y) * self.factor) ** 2)
        if self.name == "binary":
            return np.logaddexp(0.0, np.where(y > 0, -scores[:, 0], scores[:, 0]))
        shifted = scores - scores.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(rows)), y.astype(np.int64)])

    def loss(self, scores: Floats, rows: Rows) -> float:
        """Weighted mean loss over `rows`; NaN without rows."""
        weight = self.weight[rows]
        return float((self.losses(scores, rows) * weight).sum() / weight.sum()) if len(rows) else math.nan

    def figure(self, scores: Floats, rows: Rows) -> dict[str, float]:
        """How good scores are: `auc`, `accuracy` or `rmse` (in the unit of the target); nothing without rows."""
        y = self.y[rows]
        if not len(rows):
            return {}
        if self.name == "regression":
            return {"rmse": self.factor * figures.rmse(y, scores[:, 0])}
        if self.name == "binary":
            return {"auc": figures.auc(y, scores[:, 0])}
        return {"accuracy": figures.accuracy(y, scores.argmax(axis=1))}


def gradient_bounds(objective: str, class_weight: Sequence[float]) -> tuple[float, float]:
    """What |g| and h of a row do not exceed with these class weights."""
    if objective == "regression":
        return MAX_REGRESSION_GRADIENT, 1.0
    heaviest = max([*class_weight], default=1.0)
    return heaviest, heaviest / 4


def _classes(name: str, outputs: int, labels: Floats, used: Rows, classes: int, weights: Sequence[float]) -> Objective:
    if not np.isin(labels[used], np.arange(classes)).all():
        raise DataError("label", "a value that is no class", allowed=f"whole numbers 0 to {classes - 1}")
    y = np.zeros(len(labels))
    y[used] = labels[used]
    weight = np.asarray(weights, dtype=np.float64)[y.astype(np.int64)] if weights else np.ones(len(y))
    return Objective(name, outputs, y, weight)


def _sigmoid(z: Floats) -> Floats:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)


# ---- histograms and gains


def candidate_cuts(sizes: Sequence[int] | NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Feature and cut of each candidate split, (K,) each: features in order, cuts ascending."""
    cuts = [np.arange(max(int(size) - 1, 0)) for size in sizes]
    features = np.repeat(np.arange(len(cuts)), [len(c) for c in cuts])
    return features.astype(np.int64), np.concatenate([*cuts, np.empty(0, np.int64)]).astype(np.int64)


class PlainHistograms:
    """Sums over rows with code ≤ cut for all candidates of a party's own features.

    Features are counted by pairs: one pass over the rows fills the table of two.

    Parameters
    ----------
    codes : (n, d) uint8. sizes : (d,) codes of each feature.
    """

    def __init__(self, codes: Codes, sizes: NDArray[np.int64]) -> None:
        self._parts: list[tuple[NDArray[np.uint16], int, int]] = []
        self.size = int(np.maximum(sizes - 1, 0).sum())
        j = 0
        while j < len(sizes):
            one, two = int(sizes[j]), int(sizes[j + 1]) if j + 1 < len(sizes) else 1
            column = codes[:, j].astype(np.uint16)
            if two > 1 and one * two <= _PAIRED:
                self._parts.append((column * np.uint16(two) + codes[:, j + 1], one, two))
                j += 2
            else:
                self._parts.append((column, one, 1))
                j += 1

    def sums(self, rows: Rows | None, *weights: Floats | None) -> Floats:
        """Sums of each weight over the rows left of each candidate, in the order of `candidate_cuts`.

        Parameters
        ----------
        rows : which rows; None for all. weights : (rows,) of these rows; None to count them.

        Returns
        -------
        (K, number of weights) float64; exact for whole numbers whose sums stay under 2^53.
        """
        made = []
        for column, one, two in self._parts:
            at = (column if rows is None else column[rows]).astype(np.intp)
            table = np.stack([np.bincount(at, weights=w, minlength=one * two) for w in weights], axis=1)
            table = table.reshape(one, two, len(weights)).astype(np.float64)
            made.append(table.sum(axis=1).cumsum(axis=0)[:-1])
            if two > 1:
                made.append(table.sum(axis=0).cumsum(axis=0)[:-1])
        return np.concatenate([*made, np.empty((0, len(weights)))])


def best_gain(
    left: Floats, total: Floats, *, l2: float, least: float, fits: NDArray[np.bool_] | None = None
) -> tuple[float, int]:
    """The best candidate split of a node: (gain, number), the lowest number among equals; (0, -1) if none gains.

    Parameters
    ----------
    left : (K, 2) sums of g and h on the left of each candidate. total : (2,) over the node.
    least : h on either side, at least. fits : (K,) which candidates are allowed at all.
    """
    right = total - left
    good = (np.minimum(left[:, 1], right[:, 1]) >= least) & (left[:, 1] > 0) & (right[:, 1] > 0)
    good = good if fits is None else good & fits
    if not good.any():
        return 0.0, -1
    score = np.full(len(left), -np.inf)
    one, two = left[good], right[good]
    score[good] = one[:, 0] ** 2 / (one[:, 1] + l2) + two[:, 0] ** 2 / (two[:, 1] + l2)
    number = int(score.argmax())
    gain = float(score[number] - total[0] ** 2 / (total[1] + l2))
    return (gain, number) if gain > MIN_GAIN else (0.0, -1)


def leaf_weight(g: float, h: float, settings: TreeSettings) -> float:
    """-learning_rate · G/(H + λ); 0 where H + λ is 0."""
    below = h + settings.l2
    return -settings.learning_rate * g / below if below > 0 else 0.0
