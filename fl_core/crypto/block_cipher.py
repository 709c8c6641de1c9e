"""What a scheme must offer to the aggregation: it turns a row of values into one block and back.

`aggregation` lays a vector out over rows, puts a canary at the end of each, and does everything that is the
same for all schemes; a `BlockCipher` knows one scheme with fixed parameters.  Blocks are produced one at a
time and independently of each other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto.profiles import Profile

Values = NDArray[Any]
Vector = NDArray[np.float64]


class BlockKey(Protocol):
    """A secret key at work in this process."""

    def encrypt(self, row: Values) -> bytes:
        """One upload block of `row`: shape (width,), canary included."""
        ...

    def decrypt(self, block: Any) -> Values:
        """The row in a parsed block: shape (width,)."""
        ...


class BlockCipher(Protocol):
    """One scheme with the parameters of one profile for one number of parties.

    Attributes:
        profile, parties: what it was made for.
        width: values a row, the canary included.
        dtype: of a row.
        upload_bytes, sum_bytes: upper bounds of a block, party to coordinator and back.
    """

    profile: Profile
    parties: int
    width: int
    dtype: np.dtype[Any]
    upload_bytes: int
    sum_bytes: int

    @property
    def canary_tolerance(self) -> float:
        """Largest error of a canary's sum."""
        ...

    def parameters(self) -> dict[str, object]:
        """The exact parameters, JSON-able, for the context digest."""
        ...

    def slots(self, length: int, tail: int) -> int:
        """Row values needed for a vector of `length` and a tail of `tail`."""
        ...

    def encode(self, vector: Vector, tail: Vector, clip: float) -> Values:
        """Both as one flat row-value array, checked against the limits (`TrainingDiverged`)."""
        ...

    def decode(self, values: Values, length: int, tail: int, clip: float, count: int) -> tuple[Vector, Vector]:
        """Sums of `count` encoded arrays back to (vector, tail)."""
        ...

    def canaries(self, blocks: int) -> Values:
        """The constant that each party puts at the end of each row."""
        ...

    def extremes(self) -> tuple[Values, Values]:
        """Two rows whose sum lies at the head-room, for the self-test."""
        ...

    def new_secret(self) -> bytes:
        """A fresh secret key from the operating system's randomness."""
        ...

    def open_secret(self, secret: bytes) -> BlockKey:
        """The key in `secret`; `BadMessage` if it is none of these parameters."""
        ...

    def parse(self, block: bytes, *, upload: bool) -> Any:
        """Read a block from outside, strictly; else `BadMessage`."""
        ...

    def add(self, total: Any, other: Any) -> Any:
        """``total += other``, in place where the scheme can; returns the sum."""
        ...

    def dump(self, total: Any) -> bytes:
        """A sum's block."""
        ...
