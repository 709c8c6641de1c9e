"""What a client encrypts and opens: one key a parameter set, for linear models and for networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto import linear_inference
from fl_core.crypto.linear_ring import SETS as LINEAR_SETS
from fl_core.crypto.linear_ring import open_ring
from fl_core.errors import BadMessage
from fl_core.serving import Offer

Floats = NDArray[np.float64]
ROWS_ONE_BY_ONE = 4
COLUMNS_FOR_A_ROW = 4  # of a network: asking about a row takes as long as some columns


class Asker(Protocol):
    """A client's keys for one parameter set, and rotations.

    Attributes
    ----------
    public : the server gets it. rotations : steps it has keys for.
    """

    public: bytes
    rotations: tuple[int, ...]

    def check(self, x: Floats) -> None:
        """`DataError` for scaled features that cannot be asked about."""
        ...

    def by_row(self, rows: int, features: int) -> bool:
        """Whether so many rows are asked about one by one."""
        ...

    def blocks(self, x: Floats) -> Iterator[Floats]:
        """Rows in blocks as large as fit."""
        ...

    def row(self, offer: Offer, row: Floats) -> bytes:
        """One row, encrypted."""
        ...

    def columns(self, block: Floats) -> list[bytes]:
        """A block of rows, a ciphertext a feature."""
        ...

    def open_row(self, offer: Offer, answers: list[bytes]) -> Floats:
        """(1, K - 1) scores.  Raises `BadMessage`."""
        ...

    def open_columns(self, offer: Offer, answers: list[bytes], rows: int) -> Floats:
        """(rows, K - 1) scores.  Raises `BadMessage`."""
        ...


def make_asker(offer: Offer) -> Asker:
    """New keys for asking about a model.  Raises `BadMessage` for a parameter set that this program does not know."""
    if offer.parameters in LINEAR_SETS and not offer.layers:
        return _Linear(offer)
    from fl_core.crypto.network_ring import SETS

    if offer.parameters not in SETS or not offer.layers:
        raise BadMessage(f"model {offer.name}: parameter set {offer.parameters[:40]!r} is not known here")
    return _Network(offer)


def rotations_for(offer: Offer) -> tuple[int, ...]:
    """Steps that keys for a model's rows need."""
    if not offer.layers:
        return ()
    from fl_core.crypto.network_ring import Layout

    return Layout(offer.layers).rotations


def _expect(answers: list[bytes], count: int) -> None:
    if len(answers) != count:
        raise BadMessage(f"{len(answers)} answers, not {count}")


class _Linear:
    def __init__(self, offer: Offer) -> None:
        self._ring = open_ring(offer.parameters)
        self.rotations: tuple[int, ...] = ()
        self._key = linear_inference.ClientKey(self._ring)
        self.public = self._key.public

    def check(self, x: Floats) -> None:
        linear_inference.check_features(x)

    def by_row(self, rows: int, features: int) -> bool:
        return rows <= ROWS_ONE_BY_ONE and 2 * rows <= features

    def blocks(self, x: Floats) -> Iterator[Floats]:
        at, most = 0, linear_inference.block_rows(self._ring)
        while at < len(x):
            size = min(most, len(x) - at)
            while not linear_inference.fits(self._ring, x[at : at + size]):
                size = size // 2
            yield x[at : at + size]
            at += size

    def row(self, offer: Offer, row: Floats) -> bytes:
        return self._key.encrypt_row(row)

    def columns(self, block: Floats) -> list[bytes]:
        return self._key.encrypt_columns(block)

    def open_row(self, offer: Offer, answers: list[bytes]) -> Floats:
        _expect(answers, len(offer.classes) - 1)
        return np.array([[self._key.open_row(answer, offer.row_bits) for answer in answers]])

    def open_columns(self, offer: Offer, answers: list[bytes], rows: int) -> Floats:
        _expect(answers, len(offer.classes) - 1)
        return np.stack([self._key.open_columns(answer, rows, offer.bits) for answer in answers], axis=1)


class _Network:
    def __init__(self, offer: Offer) -> None:
        from fl_core.crypto.network_keys import NetworkKey
        from fl_core.crypto.network_ring import open_network_ring

        self._ring, self.rotations = open_network_ring(offer.parameters), rotations_for(offer)
        self._key = NetworkKey(self._ring, self.rotations)
        self.public = self._key.public

    def check(self, x: Floats) -> None:
        from fl_core.crypto.network_keys import check_features

        check_features(x)

    def by_row(self, rows: int, features: int) -> bool:
        return rows <= ROWS_ONE_BY_ONE or COLUMNS_FOR_A_ROW * rows <= features

    def blocks(self, x: Floats) -> Iterator[Floats]:
        for at in range(0, len(x), self._ring.slots):
            yield x[at : at + self._ring.slots]

    def row(self, offer: Offer, row: Floats) -> bytes:
        from fl_core.crypto.network_ring import Layout

        return self._key.encrypt_row(row, Layout(offer.layers))

    def columns(self, block: Floats) -> list[bytes]:
        return list(self._key.encrypt_columns(block))

    def open_row(self, offer: Offer, answers: list[bytes]) -> Floats:
        from fl_core.crypto.network_ring import Layout

        _expect(answers, 1)
        return self._key.open_row(answers[0], Layout(offer.layers))[None]

    def open_columns(self, offer: Offer, answers: list[bytes], rows: int) -> Floats:
        _expect(answers, len(offer.classes) - 1)
        return self._key.open_columns(answers, rows)
