"""Models that are being served: what a client is told of one, and what answers."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fl_core.crypto.linear_inference import ModelSide, block_rows
from fl_core.crypto.linear_ring import Floats, open_ring
from fl_core.crypto.network_inference import NetworkSide
from fl_core.crypto.network_ring import open_network_ring
from fl_core.serving import Offer, features_digest
from server.serving.folding import Linear, Network
from server.serving.keys import HeldKey


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


def serve_linear(name: str, model: Linear, *, parameters: str, version_key: bytes, output_noise: float = 0.0) -> Served:
    """A model ready to answer; `version_key` is the owner's own.

    Raises `UsageError` for weights that have no room, or labels of several classes.
    """
    ring = open_ring(parameters)
    side = ModelSide(ring, model.weights, model.bias, output_noise=output_noise)
    version = _version(model, [model.weights, model.bias], version_key, parameters, output_noise)
    labels = bool(ring.chosen.factor_bits)
    offer = _offer(name, version, model, parameters, bits=side.bits, row_bits=side.row_bits, labels=labels)
    return Served(offer, side)


def serve_network(
    name: str, model: Network, *, parameters: str, version_key: bytes, output_noise: float = 0.0
) -> Served:
    """A network ready to answer; as `serve_linear`.

    Raises `UsageError` for sizes or weights that have no room, or another depth than the set's.
    """
    side = NetworkSide(open_network_ring(parameters), model.layers, output_noise=output_noise)
    version = _version(model, [part for layer in model.layers for part in layer], version_key, parameters, output_noise)
    offer = _offer(name, version, model, parameters, bits=0, row_bits=0, labels=False, layers=side.layout.sizes)
    return Served(offer, side)


def _offer(name: str, version: str, model: Linear | Network, parameters: str, **more: Any) -> Offer:
    return Offer(
        name=name,
        version=version,
        parameters=parameters,
        features=len(model.features),
        feature_digest=features_digest(model.features),
        classes=model.classes,
        centre=tuple(model.centre.tolist()),
        unit_bits=model.unit_bits,
        **more,
    )


def _version(model: Linear | Network, weights: Sequence[Floats], key: bytes, *settings: Any) -> str:
    """16 hex digits that change with the model; under a key, so that nobody can check a guess of the weights."""
    content = [part.astype("<f8").tobytes() for part in (*weights, model.centre)]
    told = repr((model.features, model.classes, model.unit_bits, settings)).encode()
    return hmac.digest(key, b"\0".join([told, *content]), "sha256").hex()[:16]
