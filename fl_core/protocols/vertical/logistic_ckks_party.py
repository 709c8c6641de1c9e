"""Settings, labels and the course of an epoch, for the two roles of `logistic_ckks`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.residual_ring import ResidualRing
from fl_core.errors import DataError, JobFailed, JobFileError, TrainingDiverged
from fl_core.learning.scores import accuracy, auc, log_loss_binary, softmax_loss
from fl_core.learning.seeds import generator
from fl_core.protocols.vertical.course import Course, Rows, Split, State

Floats = NDArray[np.float64]

ROWS_PER_FEATURE = 10


@dataclass(frozen=True)
class CkksSettings:
    """How to train; the same at all parties.

    epochs : at most. batch_size : rows, at least ten times the columns of each passive party; what is left of an epoch
    joins its last batch. learning_rate : of plain gradient descent on the mean loss of a batch. l2 : λ of λ/2 · ‖w‖²,
    intercept left out. class_weight : on the loss of each class, () for 1. early_stopping : epochs without a better
    loss on the validation rows before training ends with the best epoch's weights; 0 for all epochs and the last
    weights. seed : the job's; deals the rows.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    l2: float = 0.0
    class_weight: tuple[float, ...] = ()
    early_stopping: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("early_stopping", 0)):
            if getattr(self, name) < least:
                raise JobFileError(f"vertical.{name}", f"{getattr(self, name)}", allowed=f"at least {least}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise JobFileError("vertical.learning_rate", f"{self.learning_rate:g}", allowed="above 0")
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise JobFileError("vertical.l2", f"{self.l2:g}", allowed="0 or above")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.class_weight):
            raise JobFileError("vertical.class_weight", f"{self.class_weight}", allowed="each above 0")

    @property
    def largest_weight(self) -> float:
        """What bounds a residual."""
        return max(self.class_weight, default=1.0)


def batches(split: Split, settings: CkksSettings) -> list[Rows]:
    """The training rows of each batch, the same in every epoch and at every party."""
    rows = split.train[generator(settings.seed, "batches").permutation(len(split.train))]
    count = max(1, len(rows) // settings.batch_size)
    ends = [settings.batch_size * (k + 1) for k in range(count - 1)]
    return np.split(rows, ends)


class Labels:
    """What follows from the labels: residuals and figures."""

    def __init__(self, y: NDArray[Any], outputs: int, class_weight: tuple[float, ...]) -> None:
        classes = max(outputs, 2)
        if class_weight and len(class_weight) != classes:
            raise JobFileError("vertical.class_weight", f"{len(class_weight)} weights", allowed=f"{classes} or none")
        if y.ndim != 1 or not np.isin(y, np.arange(classes)).all():
            raise DataError("label", "a value that is no class", allowed=f"0 to {classes - 1}")
        self.outputs, self.y = outputs, y.astype(np.int64)
        self._weight = np.asarray(class_weight or (1.0,) * classes)[self.y][:, None]

    def residuals(self, scores: Floats, rows: Rows) -> Floats:
        """(rows, C) derivatives of the weighted loss by the scores."""
        if self.outputs == 1:
            p, target = 0.5 + 0.5 * np.tanh(scores / 2.0), self.y[rows, None]
        else:
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            p, target = p / p.sum(axis=1, keepdims=True), self.y[rows, None] == np.arange(self.outputs)
        return self._weight[rows] * (p - target)

    def loss(self, scores: Floats, rows: Rows) -> float:
        """Mean loss without class weights; NaN without rows."""
        if self.outputs == 1:
            return log_loss_binary(self.y[rows], scores[:, 0])
        return softmax_loss(self.y[rows], scores)

    def figures(self, scores: Floats, rows: Rows) -> dict[str, float]:
        """`auc` or `accuracy`; nothing where it is not defined."""
        if self.outputs == 1:
            name, value = "auc", auc(self.y[rows], scores[:, 0])
        else:
            name, value = "accuracy", accuracy(self.y[rows], scores.argmax(axis=1))
        return {} if math.isnan(value) else {name: value}


class Party:
    """What both roles do alike: batches, ring, descent, and the state a course keeps."""

    def __init__(
        self, channel: Channel, shape: tuple[int, int], split: Split, settings: CkksSettings, course: Course
    ) -> None:
        if settings.early_stopping and not len(split.valid):
            raise JobFileError("vertical.early_stopping", "there are no validation rows", allowed="0")
        if not len(split.train):
            raise DataError("rows", "none to learn from", allowed="at least one")
        self.channel, self.settings, self.course = channel, settings, course
        self.batches, self.split = batches(split, settings), split
        self.held = np.concatenate([split.valid, split.test])
        self.ring = ResidualRing(max(map(len, self.batches)), settings.largest_weight)
        self.weights = np.zeros(shape)
        self.best, self.best_epoch, self.best_loss, self.stopped = self.weights.copy(), 0, math.inf, False
        if course.begun:
            self._take_up(course.state)

    def _take_up(self, state: State) -> None:
        if state["weights"].shape != self.weights.shape:
            kept, shape = state["weights"].shape, self.weights.shape
            raise JobFailed(f"weights of shape {kept} were kept, the job's have {shape}: it cannot go on from them")
        self.weights, self.best = state["weights"].copy(), state["best"].copy()
        self.best_epoch, self.best_loss = int(state["best_epoch"]), float(state["best_loss"])
        self.stopped = bool(state["stopped"])

    def train(self) -> Floats:
        """All epochs that are left; the weights of the best one."""
        left = range(self.course.begun + 1, self.settings.epochs + 1)
        if left and not self.stopped:
            self.prepare()
        for epoch in left:
            if self.stopped:
                break
            metrics = self.epoch(epoch)
            if self.best_epoch == epoch:
                self.best = self.weights.copy()
            self.course.done(epoch, self._state(), metrics)
        return self.best

    def prepare(self) -> None:
        """Agree on sizes and keys."""
        raise NotImplementedError

    def epoch(self, number: int) -> dict[str, float]:
        """Learn from every batch once, then agree whether this was the best epoch and the last."""
        raise NotImplementedError

    def _state(self) -> State:
        progress = {"best_epoch": self.best_epoch, "best_loss": self.best_loss, "stopped": self.stopped}
        return {"weights": self.weights, "best": self.best, **{k: np.array(v) for k, v in progress.items()}}

    def check_batch(self, columns: int, party: str) -> None:
        """Refuse a batch in which a party of so many columns could solve for residuals."""
        smallest, least = min(map(len, self.batches)), ROWS_PER_FEATURE * columns
        if smallest < least:
            problem = f"a batch of {smallest} rows for the {columns} columns of party {party}"
            raise JobFileError("vertical.batch_size", problem, allowed=f"at least {least} rows")

    def descend(self, gradient: Floats, decayed: slice) -> None:
        """One step of gradient descent; `decayed` weights are under L2."""
        with np.errstate(over="ignore", invalid="ignore"):
            gradient[decayed] += self.settings.l2 * self.weights[decayed]
            self.weights = self.weights - self.settings.learning_rate * gradient
        if not np.isfinite(self.weights).all():
            raise TrainingDiverged("weights are not finite; a smaller learning rate or l2 may help")
