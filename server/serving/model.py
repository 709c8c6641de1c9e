"""Models to serve: a logistic `model.pt` of a horizontal run, turned into weights for a client's own scale.

Features travel as (x - centre) / 2^k.  The client must know both, and they are coarse on purpose: k is the rounded
log2 of the deviation that training standardised with, the centre its mean to the nearest 2^k, so that a client learns
rough location and width of a feature and no statistic of the training data.  Mean and deviation themselves are folded
into the weights.  Of K classes, K - 1 scores are served, each against the first class: the others change nothing.
"""

from __future__ import annotations

import hmac
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_core.crypto.linear_inference import ModelSide, block_rows
from fl_core.crypto.linear_ring import Floats, open_ring
from fl_core.errors import UsageError
from fl_core.serving import Offer, features_digest
from server.serving.keys import HeldKey


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear model on raw features, in alphabetical order of their names.

    weights, bias : (K - 1, d) and (K - 1,) float64. centre, unit_bits : (d,) as in `Offer`.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    centre: Floats
    unit_bits: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Served:
    """A model that is being served: what is told of it, and what answers, a `ModelSide` or `NetworkSide`."""

    offer: Offer
    side: Any

    @property
    def rotations(self) -> tuple[int, ...]:
        """For which a client's keys must serve where it asks about one row."""
        return tuple(self.side.layout.rotations) if self.offer.layers else ()

    @property
    def block_rows(self) -> int:
        """The most rows of a block."""
        return int(self.side.block_rows) if self.offer.layers else block_rows(self.side.ring)

    def begin(self) -> Any:
        """Sums over no column yet."""
        return self.side.begin()

    def add(self, sums: Any, column: bytes) -> None:
        """Add the next column.  Raises `BadMessage`."""
        self.side.add(sums, column)

    def finish(self, sums: Any, key: HeldKey, rows: int) -> list[bytes]:
        """The answers to a block, one an output.  Raises `BadMessage`."""
        return list(self.side.finish(sums, key.key, rows))

    def answer_row(self, row: bytes, key: HeldKey) -> list[bytes]:
        """The answers to one row: one an output of a linear model, one in all of a network.  Raises `BadMessage`."""
        answers = self.side.answer_row(row, key.key)
        return [answers] if self.offer.layers else answers


def load_linear(source: Path) -> Linear:
    """Read a `model.pt`, or the only or first one in a run's folder.

    Raises
    ------
    UsageError : no such file, or not a logistic model with a name for each feature.
    """
    from fl_core.learning.models import load_model

    path = _find(source)
    saved = load_model(path)
    if saved.spec.name != "logistic":
        raise UsageError(f"{path}: a model {saved.spec.name!r}; allowed: logistic")
    names, width = saved.meta.feature_names, int(np.prod(saved.meta.input_shape))
    if len(set(names)) != width or len(names) != width:
        raise UsageError(f"{path}: {len(set(names))} names for {width} features; allowed: a name for each")
    count = len(saved.meta.classes)
    matrix, bias = saved.vector[: count * width].reshape(count, width), saved.vector[count * width :]
    return fold(names, saved.meta.classes, matrix, bias, saved.meta.mean, saved.meta.std)


def _find(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(source.glob("model.pt")) + sorted(source.glob("*/model.pt"))
    if not found:
        raise UsageError(f"{source}: no model.pt there; allowed: a model.pt or the --out folder of a horizontal run")
    return found[0]


def fold(
    names: tuple[str, ...],
    classes: tuple[str, ...],
    matrix: Floats,
    bias: Floats,
    mean: Floats | None,
    std: Floats | None,
) -> Linear:
    """Weights against the first class, for features in the client's scale.

    Parameters
    ----------
    matrix, bias : (K, d) and (K,), a logit a class, for standardised features.
    mean, std : (d,), or None where features were left as they are.
    """
    width = matrix.shape[1]
    mean = np.zeros(width) if mean is None else np.broadcast_to(mean, (width,))
    std = np.ones(width) if std is None else np.broadcast_to(std, (width,))
    bits = [round(math.log2(s)) if s > 0 else 0 for s in std.tolist()]
    unit = np.exp2(bits)
    centre = np.rint(mean / unit) * unit
    safe = np.where(std > 0, std, 1.0)
    against, offset = matrix[1:] - matrix[0], bias[1:] - bias[0]
    order = np.argsort(np.array(names))
    weights = (against * (unit / safe))[:, order]
    biases = offset + against @ ((centre - mean) / safe)
    return Linear(
        tuple(names[i] for i in order), tuple(classes), weights, biases, centre[order], tuple(bits[i] for i in order)
    )


def serve_linear(name: str, model: Linear, *, parameters: str, version_key: bytes, output_noise: float = 0.0) -> Served:
    """A model ready to answer; `version_key` is the owner's own.

    Raises `UsageError` for weights that have no room, or labels of several classes.
    """
    ring = open_ring(parameters)
    side = ModelSide(ring, model.weights, model.bias, output_noise=output_noise)
    offer = Offer(
        name=name,
        version=_version(model, version_key, parameters, output_noise),
        parameters=parameters,
        features=len(model.features),
        feature_digest=features_digest(model.features),
        classes=model.classes,
        centre=tuple(model.centre.tolist()),
        unit_bits=model.unit_bits,
        bits=side.bits,
        row_bits=side.row_bits,
        labels=bool(ring.chosen.factor_bits),
    )
    return Served(offer, side)


def _version(model: Linear, key: bytes, *settings: Any) -> str:
    """16 hex digits that change with the model; under a key, so that nobody can check a guess of the weights."""
    content = [part.astype("<f8").tobytes() for part in (model.weights, model.bias, model.centre)]
    told = repr((model.features, model.classes, model.unit_bits, settings)).encode()
    return hmac.digest(key, b"\0".join([told, *content]), "sha256").hex()[:16]
