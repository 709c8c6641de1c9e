"""A party's part of a vertical model at prediction time: what all parts of one model share, and what each can do.

A part is read from plain values and arrays, which are checked: reading one runs no code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Floats
from fl_core.errors import DataError, RefusedError
from fl_core.learning.columns import Columns, Kind
from fl_core.protocols.prediction.plan import Plan
from fl_core.trust import canonical

Arrays = Mapping[str, NDArray[Any]]
OBJECTIVES = ("binary", "multiclass", "regression")
AS_WRITTEN = "the part as its training wrote it"
MAX_CLASSES = 1000


@dataclass(frozen=True)
class Training:
    """What the parts of one model have in common.

    Attributes
    ----------
    run, job : the run that trained it, and its job's digest.
    parties : the active one first, then the others in the job's order.
    outputs : scores a row: 1, or as many as classes.
    shape : what else must fit, by name: link, trees and depth, values of an embedding.
    """

    run: str
    job: str
    parties: tuple[str, ...]
    algorithm: str
    objective: str
    outputs: int
    shape: Mapping[str, int | str]

    @property
    def active(self) -> str:
        """The party that had the labels."""
        return self.parties[0]

    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return bytes.fromhex(canonical.digest({"v": "fedseal/part/v1", **told, "shape": dict(self.shape)}))


@dataclass(frozen=True, eq=False)
class NewRows:
    """Rows to score, in the order common to all parties.

    columns : those of `Part.kinds`. block : (n, …) float32 for a part of pictures, else None.
    """

    columns: Columns
    block: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.columns) if self.block is None else len(self.block)


class Part(ABC):
    """One party's part.

    Parameters
    ----------
    party : its owner. classes : names of a classifier's classes, at the active party.
    where : how messages begin.
    """

    link = "logistic"

    def __init__(self, training: Training, party: str, classes: tuple[str, ...], where: str) -> None:
        self.training, self.party, self.classes, self.where = training, party, classes, where

    @property
    def is_active(self) -> bool:
        """Whether its owner had the labels."""
        return self.party == self.training.active

    @property
    @abstractmethod
    def kinds(self) -> dict[str, Kind]:
        """The columns that it reads, and their kinds; none for pictures, or where its owner had the labels alone."""

    @property
    def picture(self) -> tuple[int, ...] | None:
        """The shape of a row's picture, for a part of pictures."""
        return None

    @property
    def noise_multiplier(self) -> float | None:
        """Of the noise on what it sends of a row, which its owner's privacy budget counts; None without noise."""
        return None

    def check(self, plan: Plan) -> None:
        """Whether it may be used in this way.  Raises `DataError` or `RefusedError`."""
        told = self.training
        if told.run != plan.run:
            raise DataError(self.where, f"its part is of run {told.run}", allowed=f"run {plan.run}, as the job says")
        if set(told.parties) != set(plan.parties):
            raise DataError(self.where, f"a model of {', '.join(told.parties)}", allowed="a job with just these")
        if told.active != plan.active or plan.algorithm not in ("", told.algorithm):
            problem = f"a model by {told.algorithm} with the labels at {told.active}"
            raise DataError(self.where, problem, allowed=f"{plan.algorithm}, labels at {plan.active}, as the job says")
        strangers = [name for name in plan.receivers if name not in told.parties]
        if strangers or not plan.receivers:
            named = ", ".join(strangers) or "none"
            raise RefusedError(f"{self.where}: receivers {named}; allowed: parties of the model")

    @abstractmethod
    def score(self, channel: Channel, plan: Plan, rows: NewRows) -> Floats | None:
        """Take part in scoring the rows: (n, outputs) logits or values at a receiver, None at the others."""


def malformed(where: str, what: str) -> DataError:
    """The error of a part that cannot be one."""
    return DataError(f"{where}: part of a model", what, allowed=AS_WRITTEN)
