"""Scores of new rows by a split network: embeddings to the active party, which has the top of the network.

Who learns what: the active party every other party's embedding of every row, clipped and noised as in training where
the training was; they carry whatever the bottom model passes on (`fl_core.protocols.vertical.split_nn`).  The others
nothing.  Nobody but the active party can be the receiver.  Values are not protected by cryptography.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Floats
from fl_core.errors import DataError, RefusedError
from fl_core.learning.columns import Kind, LinearFeatures
from fl_core.learning.split_models import SplitPart
from fl_core.protocols.prediction.part import Arrays, NewRows, Part, Training, malformed
from fl_core.protocols.prediction.plan import Plan


class NetworkPart(Part):
    """A bottom model, and the top model at the active party."""

    def __init__(
        self, training: Training, party: str, classes: tuple[str, ...], where: str,
        about: Mapping[str, Any], arrays: Arrays,
    ) -> None:  # fmt: skip
        super().__init__(training, party, classes, where)
        held = about.get("features")
        self._features = None if held is None else LinearFeatures.from_dict(held)
        if not isinstance(about.get("network"), Mapping):
            raise malformed(where, "no network")
        self._part = part = SplitPart.from_arrays(about["network"], arrays)
        wide = None if self._features is None else (len(self._features.names),)
        if wide not in (None, part.input_shape):
            raise malformed(where, f"features of width {wide[0] if wide else 0} for rows of shape {part.input_shape}")
        bottoms = len(training.parties) - 1 + (part.input_shape is not None)
        top = (part.embeddings, part.objective, part.outputs)
        fits = top == (bottoms, training.objective, training.outputs) if self.is_active else part.top is None
        if not fits or not (self.is_active or part.input_shape):
            raise malformed(where, "a network of another shape")

    @property
    def kinds(self) -> dict[str, Kind]:
        """As `Part.kinds`."""
        return {} if self._features is None else self._features.kinds

    @property
    def picture(self) -> tuple[int, ...] | None:
        """As `Part.picture`."""
        return self._part.input_shape if self._features is None else None

    @property
    def noise_multiplier(self) -> float | None:
        """As `Part.noise_multiplier`."""
        return None if self.is_active else self._part.settings.noise_multiplier

    def check(self, plan: Plan) -> None:
        """As `Part.check`."""
        super().check(plan)
        if plan.receivers != (self.training.active,):
            problem = f"{self.where}: receivers {', '.join(plan.receivers)} of a split network"
            raise RefusedError(f"{problem}; allowed: {self.training.active}, which has its top")

    def score(self, channel: Channel, plan: Plan, rows: NewRows) -> Floats | None:
        """As `Part.score`."""
        from fl_core.protocols.vertical import split_nn

        every = np.arange(len(rows))
        if self.is_active:
            passives = self.training.parties[1:]
            z = split_nn.score_active(channel, passives, self._part, self._input(rows), every)
            return z.reshape(len(rows), -1)
        x = self._input(rows)
        if x is None:
            raise DataError(self.where, "no features", allowed="columns or pictures")
        split_nn.score_passive(channel, plan.active, self._part, x, every)
        return None

    def _input(self, rows: NewRows) -> NDArray[np.float32] | None:
        if self._features is None:
            return rows.block
        return self._features.transform(rows.columns).astype(np.float32)
