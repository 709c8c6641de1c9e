"""What the vertical logistic regressions have in common: settings, batches, fixed point, when to stop.

The model: logits = Σ over parties of X_p·W_p, plus an intercept at the active party; one output for two classes, one a
class otherwise.  Minibatch gradient descent with momentum, after each batch

    V ← momentum · V + learning_rate · (Xᵀ R / m + l2 · W),   W ← W - V,

R being predicted probabilities minus labels, times the weight of a row's class; m the rows of the largest batch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import Elements, Floats
from fl_core.errors import BadFrame, DataError, TrainingDiverged
from fl_core.learning.seeds import generator
from fl_core.protocols.vertical.course import Split

GO_ON, STOP = b"g", b"s"
BEST, WORSE = b"b", b"w"
_CONTROL = "after an epoch"
BOUND = 16.0  # of a column's absolute values
COLUMN_BITS = 16  # fractional bits of columns, at most
WEIGHT_BITS = 20  # fractional bits of weights under shares
_ROOM = 61  # a number to be truncated stays under 2^61, half of what truncation takes
_HELLO = struct.Struct(">IBB")  # columns, fractional bits, whether all values are 0 or 1
_LEAST_BITS = 6  # of a constant that stands for learning_rate / m


@dataclass(frozen=True)
class LogisticSettings:
    """How it is trained; see the module.

    early_stopping : epochs without a better loss on the validation rows; 0: never stop early.
    class_weight : a factor for each class, empty for ones.
    """

    epochs: int = 10
    batch_size: int = 2048
    learning_rate: float = 0.2
    momentum: float = 0.9
    l2: float = 0.0
    early_stopping: int = 0
    class_weight: tuple[float, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """The order of rows within a training: batches of the shuffled training rows, then validation, then test rows.

    order : positions in the common order. batches, valid, test : slices of `order`.
    """

    order: NDArray[np.int64]
    batches: tuple[slice, ...]
    valid: slice
    test: slice

    @property
    def held(self) -> slice:
        """Validation and test rows."""
        return slice(self.valid.start, self.test.stop)

    @property
    def rows(self) -> int:
        """Of the largest batch."""
        return max(s.stop - s.start for s in self.batches)

    @classmethod
    def of(cls, split: Split, settings: LogisticSettings) -> Layout:
        """The same at all parties; a last batch of less than half the size joins the one before."""
        n, size = len(split.train), settings.batch_size
        shuffled = generator(settings.seed, "batches").permutation(split.train)
        count = max(1, round(n / size))
        cuts = [min(n, i * size) for i in range(count)] + [n]
        batches = tuple(slice(a, b) for a, b in pairwise(cuts))
        valid = slice(n, n + len(split.valid))
        order = np.concatenate([shuffled, split.valid, split.test])
        return cls(order, batches, valid, slice(valid.stop, len(order)))


@dataclass(frozen=True)
class Columns:
    """What the others must know of a party's columns: how many, their fractional bits, a bound of their values."""

    count: int
    fraction: int
    binary: bool

    @property
    def bound(self) -> float:
        """Of the absolute values."""
        return 1.0 if self.binary else BOUND

    @classmethod
    def of(cls, values: Floats, where: str, most: int = COLUMN_BITS) -> Columns:
        """Raises `DataError` for values that are out of range."""
        if values.size and not np.abs(values).max() <= BOUND:
            raise DataError(where, f"a column reaches {np.abs(values).max():.4g}", allowed=f"at most {BOUND:g}")
        binary = bool(((values == 0) | (values == 1)).all())
        whole = bool((values == np.rint(values)).all())
        return cls(values.shape[1], 0 if whole else most, binary)

    def tell(self, channel: Channel, peers: Sequence[str]) -> None:
        """Send to `peers`."""
        for peer in peers:
            channel.send(peer, _HELLO.pack(self.count, self.fraction, self.binary), step="columns")

    @classmethod
    def hear(cls, channel: Channel, peer: str) -> Columns:
        """What `peer` tells."""
        count, fraction, binary = _HELLO.unpack(channel.recv_exactly(peer, step="columns", size=_HELLO.size))
        if fraction > COLUMN_BITS or count > 1 << 20:
            raise BadFrame(peer, "columns", f"{count} columns of {fraction} fractional bits")
        return cls(count, fraction, bool(binary))


@dataclass(frozen=True)
class Step:
    """Whole numbers that stand for the constants of one batch's update, all times 2^shift.

    gradient : for Xᵀ R as it stands, velocity, weights : for V and W.
    """

    gradient: int
    velocity: int
    weights: int
    shift: int

    @classmethod
    def of(
        cls, settings: LogisticSettings, *, rows: int, gradient_bits: int, weight_bits: int,
        gradient_bound: float, velocity_bound: float, weights_bound: float,
    ) -> Step:  # fmt: skip
        """The largest shift at which nothing can overflow.

        Parameters
        ----------
        gradient_bits, weight_bits : fractional bits of Xᵀ R, and of V and W.
        gradient_bound, velocity_bound, weights_bound : of their absolute values, in units of 1.

        Raises
        ------
        TrainingDiverged : no shift leaves the learning rate enough precision.
        """
        rate = settings.learning_rate / rows
        decay = settings.learning_rate * settings.l2
        for shift in range(_ROOM, 0, -1):
            gradient = math.floor(rate * 2.0 ** (shift + weight_bits - gradient_bits) + 0.5)
            step = cls(gradient, round(settings.momentum * 2.0**shift), round(decay * 2.0**shift), shift)
            reach = gradient * gradient_bound * 2.0**gradient_bits
            reach += (step.velocity * velocity_bound + step.weights * weights_bound) * 2.0**weight_bits
            if reach < 2.0**_ROOM:
                if gradient < 1 << _LEAST_BITS:
                    break
                return step
        raise TrainingDiverged(
            f"a gradient over {rows} rows of up to {gradient_bound:.3g} does not fit fixed point of 64 bits; "
            "allowed: fewer rows a batch, a smaller learning_rate, or columns of a smaller range"
        )


def update(gradient: Elements, v: Elements, w: Elements, step: Step) -> Elements:
    """A share of the next velocity, times 2^shift."""
    whole = gradient * np.uint64(step.gradient) + v * np.uint64(step.velocity)
    return whole + w * np.uint64(step.weights) if step.weights else whole


class Patience:
    """Early stopping at the active party."""

    def __init__(self, epochs: int) -> None:
        self._epochs, self.best, self.least = epochs, 0, math.inf

    def better(self, number: int, loss: float) -> bool:
        """Whether this epoch's loss is the least so far; without early stopping each epoch counts as better."""
        if self._epochs and not loss < self.least:
            return False
        self.best, self.least = number, loss
        return True

    def over(self, number: int) -> bool:
        """Whether to stop after this epoch."""
        return bool(self._epochs) and number - self.best >= self._epochs

    def state(self) -> Floats:
        """To go on from."""
        return np.array([self.best, self.least])

    def restore(self, state: Floats) -> None:
        """Go on from `state`."""
        self.best, self.least = int(state[0]), float(state[1])


def tell_verdict(channel: Channel, passives: Sequence[str], *, better: bool, stop: bool) -> None:
    """The active party's word after an epoch."""
    for peer in passives:
        channel.send(peer, (STOP if stop else GO_ON) + (BEST if better else WORSE), step=_CONTROL)


def hear_verdict(channel: Channel, active: str) -> tuple[bool, bool]:
    """(whether it was the best epoch so far, whether to stop)."""
    said = bytes(channel.recv_exactly(active, step=_CONTROL, size=2))
    if said[:1] not in (GO_ON, STOP) or said[1:] not in (BEST, WORSE):
        raise BadFrame(active, _CONTROL, "neither go on nor stop")
    return said[1:] == BEST, said[:1] == STOP


def row_weights(y: NDArray[np.int64], settings: LogisticSettings) -> Floats:
    """The weight of each row's class, (n,)."""
    return np.asarray(settings.class_weight, dtype=np.float64)[y] if settings.class_weight else np.ones(len(y))


def targets(y: NDArray[np.int64], outputs: int) -> Floats:
    """Labels as (n, outputs) of 0 and 1."""
    return (y[:, None] == (np.arange(outputs) if outputs > 1 else np.array([1]))).astype(np.float64)


def probabilities(logits: Floats) -> Floats:
    """(n, outputs): logistic for one output, softmax for more."""
    if logits.shape[1] == 1:
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def row_losses(z: Floats, labels: NDArray[np.int64]) -> Floats:
    """Each row's log loss, (n,), from its logits (n, outputs) and its class."""
    if z.shape[1] == 1:
        return np.logaddexp(0.0, np.where(labels > 0, -z[:, 0], z[:, 0]))
    shifted = z - z.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - own)


def encode_columns(values: Floats, fraction: int, order: NDArray[np.int64]) -> Elements:
    """Columns in the order of a training."""
    return ring.encode(values[order], fraction)
