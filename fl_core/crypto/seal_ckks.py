"""CKKS on plain SEAL with two reals a slot: adjacent values are real and imaginary part.

A row has N values.  The error is that of fresh encryption noise over the scale, about 10^-9 at 2^40.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_core.crypto.block_cipher import Values, Vector
from fl_core.crypto.fixed_point import check_range, float_canaries
from fl_core.crypto.profiles import Profile
from fl_core.crypto.seal_base import SealCipher


class RealRows:
    """Rows of float64 that hold the vector, then the tail: the layout of both CKKS ciphers."""

    profile: Profile
    parties: int
    width: int
    dtype: np.dtype[Any] = np.dtype(np.float64)

    @property
    def canary_tolerance(self) -> float:
        """The stated precision of a sum of eight, with room for the largest number of parties."""
        return 8 * self.profile.precision

    def slots(self, length: int, tail: int) -> int:
        """See `BlockCipher.slots`."""
        return length + tail

    def encode(self, vector: Vector, tail: Vector, clip: float) -> Values:
        """See `BlockCipher.encode`; `clip` plays no part."""
        limit = self.profile.headroom / self.parties
        check_range("update", vector, limit)
        check_range("metrics", tail, limit)
        return np.concatenate([vector, tail])

    def decode(self, values: Values, length: int, tail: int, clip: float, count: int) -> tuple[Vector, Vector]:
        """See `BlockCipher.decode`."""
        return values[:length].copy(), values[length : length + tail].copy()

    def canaries(self, blocks: int) -> Values:
        """See `BlockCipher.canaries`."""
        return float_canaries(blocks)

    def extremes(self) -> tuple[Values, Values]:
        """See `BlockCipher.extremes`."""
        signs = np.where(np.arange(self.width) % 3 == 0, -1.0, 1.0)
        return signs * (self.profile.headroom - 1.0), signs


class SealCkks(RealRows, SealCipher):
    """See the module."""

    def __init__(self, profile: Profile, parties: int) -> None:
        self.profile, self.parties = profile, parties
        self.width = profile.poly_modulus_degree
        self._scale = 2.0**profile.scale_bits
        self._encoder: Any = None
        self._open_context(plain_modulus=None)

    def canary_row(self) -> Values:
        """See `SealCipher.canary_row`."""
        return float_canaries(self.width)

    def to_plaintext(self, row: Values) -> Any:
        """See `SealCipher.to_plaintext`."""
        if self._encoder is None:
            self._encoder = self.seal.CKKSEncoder(self.context)
        plaintext = self.seal.Plaintext()
        self._encoder.encode(row.view(np.complex128).tolist(), self._scale, plaintext)
        return plaintext

    def from_plaintext(self, plaintext: Any) -> Values:
        """See `SealCipher.from_plaintext`."""
        slots = self._encoder.decode_complex(plaintext)
        return np.fromiter(slots, dtype=np.complex128, count=self.width // 2).view(np.float64)
