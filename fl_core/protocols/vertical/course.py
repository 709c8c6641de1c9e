"""What every vertical training has in common: which rows it learns from, and how it tells of its course.

A training is a plain function a party over a `Channel`.  After each epoch or tree it hands its own state to a `Course`,
which keeps it and then reports the metrics: a training that was broken off goes on from a step that all parties kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
State = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of rows in the parties' common order, ascending and disjoint; the same at all parties.

    train : rows to learn from. valid : rows that early stopping looks at, empty without it. test : rows held out.
    """

    train: Rows
    valid: Rows
    test: Rows


class Course(ABC):
    """How a training begins and what it leaves behind after each step.

    Attributes
    ----------
    begun : the epoch or tree that all parties have behind them; 0 at the beginning.
    state : what this party kept after it; empty at the beginning.
    """

    begun: int = 0
    state: State

    @abstractmethod
    def done(self, number: int, state: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]) -> None:
        """After epoch or tree `number` (from 1): keep `state`, then report.

        Parameters
        ----------
        state : all that this party needs to go on from here; arrays of any shape, no objects.
        metrics : what this party may say of the step, `loss` or `auc` for instance; most parties say nothing.
        """


@dataclass
class MemoryCourse(Course):
    """A course in memory, for tests and for figures."""

    begun: int = 0
    state: State = field(default_factory=dict)
    told: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    kept: dict[int, State] = field(default_factory=dict)

    def done(self, number: int, state: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]) -> None:
        """As `Course.done`."""
        self.kept[number] = {name: np.array(value) for name, value in state.items()}
        self.told.append((number, dict(metrics)))
