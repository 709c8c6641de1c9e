"""Online scores of a vertical model of two parties, by id: what both sides agree on.

The asker had the labels; it sends ids and holds its own part, its own columns of these rows.  The server is the other
party: it holds its part and a table of rows by id.  Of a linear model the server answers its partial sum of each row,
and the asker adds its own and the intercept.  Of boosted trees the asker brings leaf weights where its own columns
allow the leaf, the server its marks, by `fl_core.crypto.marked_sum`.

Who learns what
---------------
The asker: the scores; **which of its ids the server has**; of a linear model the server's partial sum of each row,
which is what it would have by subtracting its own in any protocol with two parties: d + 1 rows whose columns it knows
give the server's d weights; of trees what exact sums of rounded leaves tell (`forest`).  With values other than leaf
weights it gets the marks of a row, 33 bits an answer (`marked_sum`).
The server: who asks, when, for how many ids, and **which of its rows are meant**: an id travels as an unkeyed hash, so
that of an id it does not have it can check guesses.  Of the asker's columns and of the scores nothing.  λ = 40 for
trees, honest but curious; a server that gives wrong sums is not found out.
Others, a reader of the ledger among them: counts.  Digests there are of blocks with a fresh nonce in them, since ids
and answers could else be guessed.

A block of n ids is a nonce of 16 bytes and n hashes of 32, as `fl_core.protocols.psi.ids` makes them.  What is found is
a nonce of 16 bytes, n bytes 0 or 1, and of a linear model, for each that is 1, its sums: whole numbers of 2^-32, 8
bytes each.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto.ring import Elements
from fl_core.errors import BadMessage, DataError
from fl_core.learning.columns import Columns
from fl_core.protocols.prediction.part import Part
from fl_core.protocols.psi.ids import HASH_BYTES
from fl_core.trust.identity import is_hex

NONCE_BYTES = 16
NO_KEY = "0" * 64  # where a linear model is asked
MAX_IDS = 1000
ALGORITHMS = ("logistic", "gbdt")
_TEXT = 128
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class VerticalOffer:
    """What an asker is told of a model.

    name, version : version is of the server's part. run, training : that trained it, and `Training.digest`, hex.
    algorithm : one of `ALGORITHMS`. block : the most ids of a request.
    """

    name: str
    version: str
    run: str
    training: str
    algorithm: str
    block: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, table: Any) -> VerticalOffer:
        """From untrusted JSON; raises `BadMessage`."""
        try:
            offer = cls(**table)
            texts = (offer.name, offer.version, offer.run, offer.algorithm)
            sound = all(isinstance(text, str) and len(text) <= _TEXT for text in texts)
            sound = sound and is_hex(offer.training, 32) and type(offer.block) is int and 1 <= offer.block <= MAX_IDS
        except TypeError:
            sound = False
        if not sound:
            raise BadMessage("a model described in another way")
        return offer


@dataclass(frozen=True, eq=False)
class RowsById:
    """A party's part, and its rows by id.

    digest : of the part, hex. hashes : (n, 32) uint8 of ids, distinct. columns : (n rows) those that the part reads.
    """

    part: Part
    digest: str
    hashes: NDArray[np.uint8]
    columns: Columns


def check_online(part: Part, *, active: bool) -> None:
    """Whether a part can be asked, or asked with.  Raises `DataError`."""
    training, where = part.training, part.where
    if training.algorithm not in ALGORITHMS:
        raise DataError(where, f"a model by {training.algorithm}", allowed="logistic or gbdt for scores by id")
    if len(training.parties) != 2:
        raise DataError(where, f"a model of {len(training.parties)} parties", allowed="two for scores by id")
    if part.is_active != active:
        problem = f"the part of {part.party}, which had {'the' if part.is_active else 'no'} labels"
        allowed = "the part of the party with the labels" if active else "the part of the party without labels"
        raise DataError(where, problem, allowed=allowed)


def make_block(hashes: NDArray[np.uint8]) -> bytes:
    """A block of ids."""
    return os.urandom(NONCE_BYTES) + hashes.tobytes()


def read_block(data: bytes, rows: int) -> NDArray[np.uint8]:
    """(rows, 32) hashes of ids.  Raises `BadMessage` for a block of another size."""
    if len(data) != NONCE_BYTES + rows * HASH_BYTES:
        raise BadMessage(f"a block of {len(data)} bytes for {rows} ids of {HASH_BYTES}")
    return np.frombuffer(data, np.uint8, offset=NONCE_BYTES).reshape(rows, HASH_BYTES)


def make_found(here: Flags, sums: Elements | None = None) -> bytes:
    """What is found; `sums` : (k, outputs) uint64, of those that are here, in order."""
    told = b"" if sums is None else sums.astype("<u8").tobytes()
    return os.urandom(NONCE_BYTES) + here.tobytes() + told


def read_found(data: bytes, rows: int, outputs: int) -> tuple[Flags, Elements]:
    """Which are here, and (k, outputs) their sums; `outputs` is 0 where no sums are told.

    Raises
    ------
    BadMessage : another size, or bytes that are neither 0 nor 1.
    """
    flags = np.frombuffer(data[NONCE_BYTES : NONCE_BYTES + rows], np.uint8)
    count = int(np.count_nonzero(flags))
    if len(data) != NONCE_BYTES + rows + 8 * count * outputs or (flags > 1).any():
        raise BadMessage(f"an answer of {len(data)} bytes that cannot be one to {rows} ids")
    sums = np.frombuffer(data, "<u8", offset=NONCE_BYTES + rows).astype(np.uint64)
    return flags == 1, sums.reshape(count, outputs)
