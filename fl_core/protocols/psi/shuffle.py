"""Random orders from the operating system's randomness."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray


def random_order(n: int) -> NDArray[np.int64]:
    """A uniformly random permutation of 0 … n-1."""
    while True:
        keys = np.frombuffer(os.urandom(8 * n), dtype=np.uint64)
        order = np.argsort(keys)
        ranked = keys[order]
        if not (ranked[1:] == ranked[:-1]).any():  # a tie would be broken by place
            return order
