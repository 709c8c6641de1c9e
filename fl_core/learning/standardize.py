"""Pooled mean and deviation of each feature, through sums only, exact to the last bit of a wide fixed point.

Each party sends Σ1, Σx and Σx² of its training rows; the parties learn their totals over all parties and
nothing of one party; the coordinator, which adds ciphertexts, learns nothing. The sums are integers at 2^-64
of 168 bits, cut into 28 balanced limbs of 6 bits (-32 … 31): a sum over up to 64 parties stays within ±2^11,
CKKS's head-room, and a CKKS error below 0.4 disappears by rounding. Exact totals are not covered by DP.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, TrainingDiverged

MAX_PARTIES = 64
LIMB_BITS = 6
LIMBS = 28
LIMB_BOUND = 1 << (LIMB_BITS - 1)  # no limb of one party is larger
FRACTION_BITS = 64
_BASE = 1 << LIMB_BITS
_LIMIT = 1 << (LIMB_BITS * LIMBS - 2)
_CONSTANT = Fraction(1, 1 << 56)  # a variance below it is rounding: the column is constant
CLIP = 10.0


def num_limbs(d: int) -> int:
    """Length of the limb vector for `d` features."""
    return (1 + 2 * d) * LIMBS


def to_limbs(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """A party's Σ1, Σx, Σx² as small signed whole numbers.

    Parameters
    ----------
    x : (n, d) float32, finite.

    Returns
    -------
    ((1 + 2d) · 28,) float64, each a whole number in [-32, 31].

    Raises
    ------
    DataError : a column whose squares sum to 2^102 or more.
    """
    sums = [len(x) << FRACTION_BITS]
    wide = np.asarray(x, dtype=np.float64)  # the square of a float32 is exact in float64
    for part in (wide, wide * wide):
        sums += [_fixed_point_sum(column.tolist()) for column in part.T]
    for i, value in enumerate(sums):
        if abs(value) >= _LIMIT:
            raise DataError(f"feature {(i - 1) % max(1, x.shape[1])}", "too large to standardise", allowed="rescaled")
    return np.array([limb for value in sums for limb in _cut(value)], dtype=np.float64)


def _fixed_point_sum(values: list[float]) -> int:
    high = math.fsum(values)
    low = math.fsum(chain(values, (-high,)))  # what the first sum rounded away
    return _fixed(high) + _fixed(low)


def _fixed(value: float) -> int:
    return round(Fraction(value) * (1 << FRACTION_BITS))


def _cut(value: int) -> list[int]:
    limbs = []
    for _ in range(LIMBS):
        limb = (value + LIMB_BOUND) % _BASE - LIMB_BOUND
        limbs.append(limb)
        value = (value - limb) >> LIMB_BITS
    return limbs


def from_limbs(sum_vector: NDArray[np.float64], d: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Pooled count, mean and deviation from the decrypted sum over the parties.

    Parameters
    ----------
    sum_vector : ((1 + 2d) · 28,) float64, each within 0.4 of a whole number.

    Returns
    -------
    (count, mean (d,), std (d,)): std has the n denominator and is 1 where the column is constant.

    Raises
    ------
    TrainingDiverged : not such a sum (wrong length, far from whole numbers, no rows, a negative variance).
    """
    limbs = np.rint(sum_vector)
    if limbs.shape != (num_limbs(d),) or not np.abs(sum_vector - limbs).max() < 0.4:
        raise TrainingDiverged("the pooled feature sums did not decrypt to whole numbers")
    sums = []
    for row in limbs.astype(np.int64).reshape(-1, LIMBS).tolist():
        total = sum(limb << (LIMB_BITS * i) for i, limb in enumerate(row))
        sums.append(Fraction(total, 1 << FRACTION_BITS))
    count, first, second = sums[0], sums[1 : 1 + d], sums[1 + d :]
    if count < 1 or count.denominator != 1:
        raise TrainingDiverged(f"the pooled row count is {float(count):g}")
    means = [s / count for s in first]
    variances = [q / count - m * m for q, m in zip(second, means, strict=True)]
    if min(variances, default=Fraction(0)) < -_CONSTANT:
        raise TrainingDiverged("a pooled variance is negative")
    std = [1.0 if v <= _CONSTANT else math.sqrt(v) for v in variances]
    return int(count), np.array([float(m) for m in means]), np.array(std)


def apply_standardization(
    x: NDArray[np.float32], mean: NDArray[np.float64], std: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(x - mean) / std of (n, d) as float32, clipped to ±10 so that one outlier cannot carry an update
    away."""
    return np.clip((x - mean) / std, -CLIP, CLIP).astype(np.float32)
