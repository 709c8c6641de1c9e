"""Checks and number formats that the schemes share."""

from __future__ import annotations

import numpy as np

from fl_core.crypto.block_cipher import Values, Vector
from fl_core.errors import TrainingDiverged

#: Canaries repeat after this many rows: enough to notice exchanged or shifted blocks.
CANARY_PERIOD = 64


def check_range(name: str, values: Vector, limit: float) -> None:
    """Refuse NaN, infinity and anything beyond ±`limit` (`TrainingDiverged`)."""
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (-limit <= low and high <= limit):  # NaN fails both
        worst = max(abs(low), abs(high))
        raise TrainingDiverged(f"{name}: {worst:g} is not within the head-room of ±{limit:g} a party")


def float_canaries(blocks: int) -> Vector:
    """Canaries in [0.5, 1), a different one for each of 64 consecutive rows."""
    return 0.5 + np.arange(blocks) % CANARY_PERIOD / (2.0 * CANARY_PERIOD)


def to_fixed(values: Vector, scale_bits: int) -> Values:
    """Round to multiples of 2^-`scale_bits`, as int64."""
    return np.rint(np.ldexp(values, scale_bits)).astype(np.int64)


def from_fixed(values: Values, scale_bits: int) -> Vector:
    """Inverse of `to_fixed`."""
    return np.ldexp(values.astype(np.float64), -scale_bits)
