"""Scores of new rows by a linear vertical model, in all the encodings that training knows.

Who learns what: a receiver the logit of each row, which is the sum over the parties; the others nothing
(`fl_core.protocols.vertical.scoring`, for each receiver anew).  **With two parties a receiver can subtract its own
part** and has the other's partial score of each row; with d + 1 rows whose columns it knows otherwise that gives the
other's d weights, whatever the cryptography.  All parties but one may collude with a receiver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_core.channel import Channel
from fl_core.crypto.ring import Floats, check_headroom
from fl_core.learning.binning import BinnedFeatures
from fl_core.learning.columns import Columns, Kind, LinearFeatures
from fl_core.protocols.prediction.part import Arrays, NewRows, Part, Training, malformed
from fl_core.protocols.prediction.plan import Plan
from fl_core.protocols.vertical.exchange import FRACTION
from fl_core.protocols.vertical.meaning import LINKS
from fl_core.protocols.vertical.scoring import score_receiver, score_sender

ENCODINGS = ("standardised", "one-hot", "woe")
BLOCK = 1 << 16


class LinearPart(Part):
    """A party's weights, the intercepts at the active one, and how its columns become features."""

    def __init__(
        self, training: Training, party: str, classes: tuple[str, ...], where: str,
        about: Mapping[str, Any], arrays: Arrays,
    ) -> None:  # fmt: skip
        super().__init__(training, party, classes, where)
        self.link, encoding = str(about.get("link")), about.get("encoding")
        if self.link not in LINKS or encoding not in ENCODINGS:
            raise malformed(where, "neither link nor encoding of a linear model")
        kind = LinearFeatures if encoding == "standardised" else BinnedFeatures
        self.features = kind.from_dict(about["features"]) if about.get("features") is not None else None
        weights = arrays.get("weights")
        if weights is None or weights.dtype != np.float64 or weights.ndim != 2 or not np.isfinite(weights).all():
            raise malformed(where, "no weights")
        self._weights = weights
        if weights.shape != (self._width(str(encoding)) + self.is_active, training.outputs):
            raise malformed(where, f"weights of shape {weights.shape}")
        self._tables = self._binned(str(encoding), arrays.get("woe"))

    def _width(self, encoding: str) -> int:
        if self.features is None:
            return 0
        if isinstance(self.features, BinnedFeatures) and encoding == "one-hot":
            return int(self.features.sizes.sum())
        return len(self.features.names)

    def _binned(self, encoding: str, woe: Any) -> list[Floats]:
        """For each binned feature what its codes add, (codes, outputs)."""
        if not isinstance(self.features, BinnedFeatures):
            return []
        ends = np.cumsum(self.features.sizes)
        if encoding == "one-hot":
            return np.split(self._weights[: ends[-1]], ends[:-1])
        if woe is None or woe.shape != (ends[-1],) or woe.dtype != np.float64 or not np.isfinite(woe).all():
            raise malformed(self.where, "no weights of evidence")
        return [values[:, None] * self._weights[j] for j, values in enumerate(np.split(woe, ends[:-1]))]

    @property
    def kinds(self) -> dict[str, Kind]:
        """As `Part.kinds`."""
        return {} if self.features is None else self.features.kinds

    def partial(self, columns: Columns) -> Floats:
        """What this party adds to the logits, (n, outputs)."""
        total = np.zeros((len(columns), self.training.outputs))
        if self.is_active:
            total += self._weights[-1]
        if isinstance(self.features, LinearFeatures):
            total += self.features.transform(columns) @ self._weights[: len(self.features.names)]
        elif self.features is not None:
            codes = self.features.transform(columns)
            for j, table in enumerate(self._tables):
                total += table[codes[:, j]]
        return total

    def score(self, channel: Channel, plan: Plan, rows: NewRows) -> Floats | None:
        """As `Part.score`."""
        receives, total = channel.me in plan.receivers, np.zeros((len(rows), self.training.outputs))
        for start in range(0, len(rows), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(rows)))
            part = self.partial(rows.columns.take(block))
            reach = float(np.abs(part).max(initial=0.0)) * len(plan.parties)
            check_headroom("a score", reach * 2.0**FRACTION, 63)
            for receiver in plan.receivers:
                others = plan.others(receiver)
                if channel.me == receiver:
                    total[block] = score_receiver(channel, others, part)
                else:
                    score_sender(channel, receiver, others, part)
        return total if receives else None
