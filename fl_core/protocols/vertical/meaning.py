"""What the scores of a vertical model mean: probabilities of classes, or values."""

from __future__ import annotations

import numpy as np

from fl_core.crypto.ring import Floats
from fl_core.protocols.vertical.logistic import probabilities

LINKS = ("logistic", "linear")
TAIL = 0.02


def predictions(scores: Floats, objective: str, link: str = "logistic") -> Floats:
    """Scores as predictions.

    Parameters
    ----------
    scores : (n, outputs) logits or values.
    link : `linear` for a model whose probability of a class is 1/2 + score/8, as strict logistic regression learns it.

    Returns
    -------
    (n,) values of a regression; (n,) probabilities of the second class; or (n, outputs) one for each class.
    """
    if objective == "regression":
        return scores[:, 0]
    if link == "linear":
        p = linear_probabilities(scores)
        p = p if p.shape[1] == 1 else np.asarray(p / p.sum(axis=1, keepdims=True))
    else:
        p = probabilities(scores)
    return p[:, 0] if p.shape[1] == 1 else p


def linear_probabilities(scores: Floats) -> Floats:
    """1/2 + z/8 within (0, 1): beyond `TAIL` of either end exponential, so that no two scores become equal."""
    p = 0.5 + scores / 8.0
    low = TAIL * np.exp(np.minimum(p - TAIL, 0.0) / TAIL)
    high = 1.0 - TAIL * np.exp(np.minimum(1.0 - TAIL - p, 0.0) / TAIL)
    return np.asarray(np.where(p < TAIL, low, np.where(p > 1.0 - TAIL, high, p)))
