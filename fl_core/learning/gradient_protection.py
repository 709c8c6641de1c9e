"""What crosses the cut layer of a split network, protected: returned gradients, and embeddings.

**Gradients**, from the active party to a passive one.  A row's gradient gives its label away by its norm and by its
direction (Li et al. 2021, arXiv 2102.08504).  Two of that paper's protections:

- `max-norm`: noise along each row's own gradient, so that all rows have the largest squared norm in expectation.
- `marvell` (binary labels): Gaussian noise, a covariance a class, that makes the two classes' gradients as alike as a
  power allows: it minimises KL(P1 ‖ P0) + KL(P0 ‖ P1) with P1 = N(g1, vI + Σ1) and P0 = N(g0, uI + Σ0).

Both hide labels within **one** batch and rest on a model of the gradients; neither is differential privacy.  A row is
seen again in every epoch, its noise averages out over them, and what the passive party's trained model itself tells
of labels is not touched.

**Embeddings**, from a passive party to the active one, with a guarantee: `clip_rows` and `release` are the Gaussian
mechanism (Dwork and Roth 2014, appendix A) on one row.

- A row's embedding is clipped to L2 ≤ clipping_norm, then each coordinate gets N(0, (σ·clipping_norm)²) from the
  operating system.  Neighbours are tables with and without the row's features (absent: a zero embedding; how many
  rows there are is public), so the sensitivity is clipping_norm; for one row's features exchanged for others, σ counts
  half.  Every release of a row costs a full step: no amplification by sampling is claimed.
- It protects **the passive party's feature row against the active party**, who knows row and label.  It holds for a
  row while the weights of the bottom model do not depend on it: for validation, test and scored rows.  A training row
  is covered in what its own embedding shows, given the weights; not in what it did to the weights, and through them to
  later embeddings, its own and those of other rows.  A person with k rows has the guarantee of a group of k.
- The noise must be secret, and all releases of the row counted: one an epoch, in training or in the evaluation after
  it, and one each time it is scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import JobFileError
from fl_core.learning.privacy import Spend, epsilon, find_noise_multiplier
from fl_core.learning.scores import auc

if TYPE_CHECKING:
    import torch

    from fl_core.crypto.noise import NoiseStream

Floats = NDArray[np.float32] | NDArray[np.float64]
PROTECTIONS = ("none", "max-norm", "marvell")
_LEAST_VARIANCE = 1e-9  # of a class without any, in units of the squared mean difference
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Two classes of gradients, as Gaussians.

    direction : (e,) float64, unit vector from the negatives' mean to the positives'. gap : squared distance of the
    means, above 0. u, v : mean variance of a coordinate among negatives, among positives. p : share of positives.
    """

    direction: NDArray[np.float64]
    gap: float
    u: float
    v: float
    p: float


@dataclass(frozen=True)
class Variances:
    """Noise variances by class: `along` the mean difference, and `across` it (each other direction)."""

    along_negative: float
    across_negative: float
    along_positive: float
    across_positive: float


def moments(gradients: Floats, y: NDArray[Any]) -> Moments | None:
    """Estimate `Moments` from a batch; None where a class is missing or the means are equal.

    Parameters
    ----------
    gradients : (m, e). y : (m,) 0 or 1.
    """
    positive = np.asarray(y) == 1
    if positive.all() or not positive.any():
        return None
    ones, zeros = np.asarray(gradients, np.float64)[positive], np.asarray(gradients, np.float64)[~positive]
    difference = ones.mean(axis=0) - zeros.mean(axis=0)
    gap = float(difference @ difference)
    if not gap > 0.0:
        return None
    u, v = (float(rows.var(axis=0).mean()) for rows in (zeros, ones))
    return Moments(difference / math.sqrt(gap), gap, u, v, float(positive.mean()))


def sum_kl(variances: Variances, *, u: float, v: float, gap: float, width: int) -> float:
    """KL(P1 ‖ P0) + KL(P0 ‖ P1) in nats, for gradients of `width` coordinates and total variances above 0."""
    a, b = variances.along_negative + u, variances.along_positive + v
    c, e = variances.across_negative + u, variances.across_positive + v
    return 0.5 * ((width - 1) * (c / e + e / c) + (a + gap) / b + (b + gap) / a) - width


def least_leak(*, u: float, v: float, p: float, gap: float, width: int, power: float) -> Variances:
    """The noise variances with the least `sum_kl`: 2102.08504, theorem 2.

    Over p·tr(Σ1) + (1-p)·tr(Σ0) ≤ power · gap.  Across the mean difference only the class with less variance gets
    noise.  In the logarithms of the total variances the problem is a geometric program, hence convex: along the
    difference it is solved in closed form, across it by golden section.

    Parameters
    ----------
    u, v, p, gap : as in `Moments`. width : coordinates, at least 1. power : above 0.

    Returns
    -------
    Variances, in the units of u and v.
    """
    if u > v:
        other = least_leak(u=v, v=u, p=1.0 - p, gap=gap, width=width, power=power)
        return Variances(
            other.along_positive, other.across_positive, other.along_negative, other.across_negative
        )  # fmt: skip
    u, v = max(u / gap, _LEAST_VARIANCE), max(v / gap, _LEAST_VARIANCE)
    price = (1.0 - p) * (width - 1)

    def along(c: float) -> tuple[float, float]:
        left = max(power - price * (c - u), 0.0)
        total = left + p * v + (1.0 - p) * u
        ratio = math.sqrt((total + 1.0 - p) / (total + p))
        a = min(max(total / (p * ratio + 1.0 - p), u), u + left / (1.0 - p))
        return a, max((total - (1.0 - p) * a) / p, v)

    def cost(log_c: float) -> float:
        c = math.exp(log_c)
        a, b = along(c)
        return (width - 1) * (c / v + v / c) + (a + 1.0) / b + (b + 1.0) / a

    c = u
    if price > 0.0:
        c = math.exp(_minimum(cost, math.log(u), math.log(min(v, u + power / price))))
    a, b = along(c)
    return Variances(gap * (a - u), gap * max(c - u, 0.0), gap * (b - v), 0.0)


def _minimum(function: Any, low: float, high: float) -> float:
    """Where a convex function of one variable is least, by golden section."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-9:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2.0


def max_norm(gradients: Floats, noise: NoiseStream) -> NDArray[np.float32]:
    """Noise along each row's own gradient: every row's expected squared norm becomes the batch's largest.

    Parameters
    ----------
    gradients : (m, e), finite. A row of zeros gets noise in a random direction.

    Returns
    -------
    (m, e) float32.
    """
    rows = np.asarray(gradients, np.float64)
    squares = (rows**2).sum(axis=1)
    if not len(rows) or not squares.max() > 0.0:
        return rows.astype(np.float32)
    zero = squares == 0.0
    factors = np.sqrt(squares.max() / np.where(zero, squares.max(), squares) - 1.0)
    noisy = rows * (1.0 + factors * noise.gaussian(len(rows), 1.0))[:, None]
    spread = math.sqrt(squares.max() / rows.shape[1])
    noisy[zero] = noise.gaussian(int(zero.sum()) * rows.shape[1], spread).reshape(-1, rows.shape[1])
    return noisy.astype(np.float32)


def marvell(
    gradients: Floats, y: NDArray[Any], estimate: Moments, *, power: float, noise: NoiseStream
) -> NDArray[np.float32]:
    """Add the noise of `least_leak`.

    Parameters
    ----------
    gradients : (m, e), finite. y : (m,) 0 or 1. estimate : `moments` of this batch.
    power : noise power over the squared distance of the class means. With classes of no other variance an attack's
        AUC is about Φ(1/√(2·power)): .76, .64 and .56 for 1, 4 and 20.

    Returns
    -------
    (m, e) float32.
    """
    rows = np.asarray(gradients, np.float64)
    m, width = rows.shape
    found = least_leak(u=estimate.u, v=estimate.v, p=estimate.p, gap=estimate.gap, width=width, power=power)
    positive = np.asarray(y) == 1
    along = np.sqrt(np.where(positive, found.along_positive, found.along_negative))
    across = np.sqrt(np.where(positive, found.across_positive, found.across_negative))
    everywhere = across[:, None] * noise.gaussian(m * width, 1.0).reshape(m, width)
    onward = along * noise.gaussian(m, 1.0) - everywhere @ estimate.direction
    return (rows + everywhere + onward[:, None] * estimate.direction).astype(np.float32)


class GradientProtection:
    """The protection of the gradients that go to one passive party.

    Parameters
    ----------
    kind : of `PROTECTIONS`. power : of `marvell`.

    Notes
    -----
    A batch of one class says nothing of the classes' difference: `marvell` then takes the last batch's that had both,
    and before there was one `max_norm`.
    """

    def __init__(self, kind: str, *, power: float, noise: NoiseStream) -> None:
        if kind not in PROTECTIONS:
            raise JobFileError("vertical.gradient", repr(kind), allowed=" | ".join(PROTECTIONS))
        self._kind, self._power, self._noise = kind, power, noise
        self._last: Moments | None = None

    def protect(self, gradients: Floats, y: NDArray[Any]) -> NDArray[np.float32]:
        """(m, e) gradients of rows with labels y, as they may be sent: (m, e) float32."""
        if self._kind == "none":
            return np.asarray(gradients, np.float32)
        if self._kind == "marvell":
            self._last = moments(gradients, y) or self._last
            if self._last is not None:
                return marvell(gradients, y, self._last, power=self._power, noise=self._noise)
        return max_norm(gradients, self._noise)


def norm_attack_auc(gradients: Floats, y: NDArray[Any]) -> float:
    """How well a gradient's norm tells its label: the AUC, of the better sign, in [0.5, 1].

    Parameters
    ----------
    gradients : (m, e). y : (m,) 0 or 1, both there.
    """
    found = auc(np.asarray(y) == 1, np.linalg.norm(np.asarray(gradients, np.float64), axis=1))
    return max(found, 1.0 - found)


def direction_attack_auc(gradients: Floats, y: NDArray[Any], *, known: int = 64) -> float:
    """How well the cosine to one known positive's gradient tells the other rows' labels.

    Parameters
    ----------
    gradients : (m, e). y : (m,) 0 or 1, two positives and a negative at least.
    known : positives that are tried, the first ones.

    Returns
    -------
    float : the AUC, of the better sign for each known positive, mean over them, in [0.5, 1].
    """
    rows, positive = np.asarray(gradients, np.float64), np.asarray(y) == 1
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0.0)
    found = []
    for one in np.flatnonzero(positive)[:known]:
        others = np.arange(len(rows)) != one
        value = auc(positive[others], units[others] @ units[one])
        found.append(max(value, 1.0 - value))
    return float(np.mean(found))


def clip_rows(embedding: torch.Tensor, clipping_norm: float) -> torch.Tensor:
    """(m, e) with each row's L2 norm at most `clipping_norm`; gradients flow through."""
    norms = embedding.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return embedding * (clipping_norm / norms).clamp_max(1.0)


def release(
    clipped: NDArray[np.float32], *, clipping_norm: float, noise_multiplier: float, noise: NoiseStream
) -> NDArray[np.float32]:
    """Rows (m, e) after `clip_rows`, with the noise under which they may be seen; see the module.

    What the rounding of `clip_rows` left over the norm is clipped once more, in double precision.
    """
    rows = clipped.astype(np.float64)
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), clipping_norm)
    drawn = noise.gaussian(rows.size, noise_multiplier * clipping_norm).reshape(rows.shape)
    return (rows * (clipping_norm / norms) + drawn).astype(np.float32)


def plan_cut_layer(releases: int, target_epsilon: float, target_delta: float) -> float:
    """The noise multiplier that keeps `releases` of one row within (target_epsilon, target_delta).

    Parameters
    ----------
    releases : epochs, plus the times that the row will be scored.

    Raises
    ------
    JobFileError : the target is below what can be proved.
    """
    return find_noise_multiplier(target_epsilon, target_delta, sample_rate=1.0, steps=releases)


def epsilon_spent(noise_multiplier: float, releases: int, target_delta: float) -> float:
    """ε of `releases` of one row at `target_delta`."""
    return epsilon([Spend(noise_multiplier, 1.0, releases)], target_delta)
