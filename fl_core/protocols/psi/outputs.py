"""Lists of pseudo-random values in ascending order, and what two of them have in common.

A list in ascending order says nothing about the order of the items behind it, so it needs no further shuffling; and
both parties of an intersection can put its rows in that order without telling each other more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SortedValues:
    """Values of up to 16 bytes: `high`, the first eight as a number, `low`, the rest. Both (n,) uint64, ascending."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    def ascending(self) -> bool:
        """Whether they are: for lists that another party sent."""
        step, tie = self.high[1:] > self.high[:-1], self.high[1:] == self.high[:-1]
        return bool((step | (tie & (self.low[1:] >= self.low[:-1]))).all())


def split(values: Bytes) -> SortedValues:
    """(n, k ≤ 16) uint8 in the order in which they are."""
    n, size = values.shape
    halves = []
    for first, last in ((0, min(size, 8)), (8, size)):
        words = np.zeros((n, 8), dtype=np.uint8)
        if first < last:
            words[:, : last - first] = values[:, first:last]
        halves.append(words.view(">u8").reshape(n).astype(np.uint64))
    return SortedValues(*halves)


def sort(values: Bytes) -> tuple[SortedValues, Index]:
    """The values in ascending order, and where each stood."""
    keys = split(values)
    order = np.argsort(keys.high)
    high = keys.high[order]
    if (high[1:] == high[:-1]).any():
        order = np.lexsort((keys.low, keys.high))
        high = keys.high[order]
    return SortedValues(high, keys.low[order]), order


def match(mine: SortedValues, theirs: SortedValues) -> tuple[Index, Index]:
    """Positions (in `mine`, in `theirs`) of equal values, ascending: found by the first eight bytes, then in full.

    No position appears twice.
    """
    candidates = np.arange(len(mine.high))
    places = np.searchsorted(theirs.high, mine.high)
    found = [np.empty((2, 0), dtype=np.int64)]
    while candidates.size:
        inside = places < len(theirs.high)
        candidates, places = candidates[inside], places[inside]
        alike = theirs.high[places] == mine.high[candidates]
        candidates, places = candidates[alike], places[alike]
        equal = theirs.low[places] == mine.low[candidates]
        found.append(np.stack([candidates[equal], places[equal]]))
        candidates, places = candidates[~equal], places[~equal] + 1  # more values may begin alike
    own, others = np.concatenate(found, axis=1)
    others, first = np.unique(others, return_index=True)
    return own[first], others
