"""What the coordinator does for trees over a union beside dealing: it opens sums and chooses splits.

See `union_trees` for who learns what.  Nothing that it opens leaves it but choices, leaf weights and mean losses.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64, Elements, Floats
from fl_core.errors import DataError
from fl_core.learning.boosting import TreeSettings, best_gain, gradient_bounds, leaf_weight
from fl_core.learning.tree_parts import NOBODY
from fl_core.protocols.vertical.dealer import MAX_COLUMNS, Dealer, Op
from fl_core.protocols.vertical.histograms import FixedPoint

SHARES, CHOICES, FIGURES = "shares of sums", "choices", "shares of losses"
COLUMNS = 3  # g, h, and one for each row
LOSS_BITS, MAX_LOSS = 24, 64.0
LEAF_DECIMALS, LOSS_DECIMALS = 3, 6
ROWS_PER_LEAF = 20
REPLY = np.dtype([("owner", "<i4"), ("candidate", "<u4"), ("gain", "<f8"), ("left", "<f8"), ("right", "<f8")])


def check_enough_rows(rows: int, outputs: int, settings: TreeSettings) -> None:
    """DataError where leaves are so many that their weights could show which rows count."""
    leaves = settings.trees * outputs * 2**settings.depth
    if rows < ROWS_PER_LEAF * leaves:
        problem = f"{rows} training rows for {leaves} leaves over a union"
        raise DataError("vertical.trees", problem, allowed=f"{ROWS_PER_LEAF} rows or more for each leaf")


def deal_union(channel: Channel, active: str, passive: str, objective: str, settings: TreeSettings) -> None:
    """D's part: deal, open and choose until the active party needs no more.

    Raises
    ------
    DataError : too few rows, or too few in common. BadFrame : orders or shares that do not fit.
    """
    chooser = _Chooser(channel, (active, passive), objective, settings)
    Dealer(channel, active, [active, passive], {"choose": chooser.choose, "figures": chooser.figures}).serve()


class _Chooser:
    def __init__(self, channel: Channel, parties: tuple[str, str], objective: str, settings: TreeSettings) -> None:
        self._channel, self._parties, self._settings = channel, parties, settings
        self._bounds = gradient_bounds(objective, settings.class_weight)
        self._held: dict[tuple[int, int], Elements] = {}

    def choose(self, op: Op) -> None:
        """Open a level's nodes, tell G each one's best split."""
        rows, (left, right), nodes = op["rows"], op["widths"], op["nodes"]
        if not (0 < rows < 1 << 21 and 0 <= left <= MAX_COLUMNS and 0 <= right <= MAX_COLUMNS):
            raise ValueError("sizes")
        if nodes[0][1] == 0:
            check_enough_rows(rows, len(nodes), self._settings)
            self._held = {}
        fixed = replace(FixedPoint.of(rows), bounds=(*self._bounds, 1.0))
        built = [(output, node) for output, node, new in nodes if new]
        opened = self._open((len(built), left + right + 1, COLUMNS), U32, SHARES)
        held = dict(zip(built, opened, strict=True))
        for output, node, new in nodes:
            if not new:
                twin = held[output, node + 1 if node % 2 else node - 1]
                held[output, node] = self._held[output, (node - 1) // 2] - twin
        self._held = held
        replies = [self._best(fixed.decode(held[output, node]), left, bool(op["last"])) for output, node, _ in nodes]
        self._channel.send(self._parties[0], np.array(replies, dtype=REPLY), step=CHOICES)

    def figures(self, op: Op) -> None:
        """Open the sums of losses, tell G the means over rows in common, NaN where these are too few."""
        sums = ring.decode(self._open((3, COLUMNS), U64, FIGURES), LOSS_BITS)
        means = [
            round(float(loss / weight), LOSS_DECIMALS) if count >= self._settings.min_rows_open else math.nan
            for loss, weight, count in sums
        ]
        self._channel.send(self._parties[0], np.array(means, dtype="<f8"), step=FIGURES)

    def _open(self, shape: tuple[int, ...], dtype: np.dtype[Any], step: str) -> Elements:
        size = math.prod(shape) * dtype.itemsize
        parts = [
            np.frombuffer(self._channel.recv_exactly(party, step=step, size=size), dtype=dtype).reshape(shape)
            for party in self._parties
        ]
        return np.asarray(parts[0] + parts[1])

    def _best(self, sums: Floats, width: int, last: bool) -> tuple[int, int, float, float, float]:
        """The best split of a node; its own candidates' sums come before those of the other party and of the node."""
        settings, total = self._settings, sums[-1]
        least = settings.min_rows_open
        if total[2] < least:
            raise DataError("training rows in common", "too few", allowed=f"vertical.min_rows_open = {least} or more")
        gain, owner, number = 0.0, NOBODY, 0
        for party, part in enumerate((sums[:width], sums[width:-1])):
            fits: NDArray[np.bool_] = np.minimum(part[:, 2], total[2] - part[:, 2]) >= least
            new, found = best_gain(part[:, :2], total[:2], l2=settings.l2, least=settings.min_child_weight, fits=fits)
            if found >= 0 and new > gain:
                gain, owner, number = new, party, found
        if owner == NOBODY:
            return NOBODY, 0, 0.0, self._leaf(total), 0.0
        one = sums[number + (width if owner else 0)]
        weights = (self._leaf(one), self._leaf(total - one)) if last else (0.0, 0.0)
        return owner, number, float(f"{gain:.3g}"), *weights

    def _leaf(self, sums: Floats) -> float:
        return round(leaf_weight(float(sums[0]), float(sums[1]), self._settings), LEAF_DECIMALS)
