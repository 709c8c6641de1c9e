"""BFV on plain SEAL: exact sums of 16-bit quantised values, two of them in each coefficient.

No batching: the plain modulus is a power of two, a coefficient holds two lanes, and a lane is wide enough
that the sum of all parties' values cannot run over into the next.  A value v in [-clip, clip] becomes
round(32767·v/clip) + 32768.  Tail values keep more: 48 bits over ±headroom/parties, in three 16-bit limbs.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from fl_core.crypto import seal_io
from fl_core.crypto.block_cipher import Values, Vector
from fl_core.crypto.fixed_point import CANARY_PERIOD, check_range
from fl_core.crypto.profiles import Profile
from fl_core.crypto.seal_base import SealCipher
from fl_core.crypto.seal_stream import plain_stream
from fl_core.errors import JobFileError

_LEVELS = 32767
_OFFSET = 32768
_TOP = 65535  # largest value of one party in one lane
_LIMBS = 3
_TAIL_STEPS = 2.0**47 - 1


class SealBfv(SealCipher):
    """See the module."""

    dtype: np.dtype[Any] = np.dtype(np.int64)
    canary_tolerance = 0.0

    def __init__(self, profile: Profile, parties: int) -> None:
        self.profile, self.parties = profile, parties
        rule = profile.lane_rule(parties)
        self.width = 2 * profile.poly_modulus_degree
        self._lane_bits = rule.lane_bits
        self._open_context(plain_modulus=1 << rule.plain_bits)

    def slots(self, length: int, tail: int) -> int:
        """See `BlockCipher.slots`."""
        return length + _LIMBS * tail

    def _step(self) -> float:
        return self.profile.headroom / self.parties / _TAIL_STEPS

    def encode(self, vector: Vector, tail: Vector, clip: float) -> Values:
        """See `BlockCipher.encode`.  The caller clips; a value beyond `clip` is an error, not saturated."""
        if not (0 < clip < math.inf):
            raise JobFileError("encryption.clip", f"{clip:g}", allowed="a positive bound of |update| for BFV")
        check_range("update", vector, clip)
        check_range("metrics", tail, self.profile.headroom / self.parties)
        quantised = np.rint(vector * (_LEVELS / clip)).astype(np.int64) + _OFFSET
        fixed = np.rint(tail / self._step()).astype(np.int64) + (1 << 47)
        limbs = [fixed >> (16 * k) & 0xFFFF for k in range(_LIMBS)]
        return np.concatenate([quantised, *limbs])

    def decode(self, values: Values, length: int, tail: int, clip: float, count: int) -> tuple[Vector, Vector]:
        """See `BlockCipher.decode`."""
        vector = (values[:length] - count * _OFFSET) * (clip / _LEVELS)
        limbs = values[length : length + _LIMBS * tail].reshape(_LIMBS, tail)
        fixed = np.array([1, 1 << 16, 1 << 32]) @ limbs
        return vector, (fixed - (count << 47)) * self._step()

    def canaries(self, blocks: int) -> Values:
        """See `BlockCipher.canaries`."""
        return 1 + 1021 * (np.arange(blocks, dtype=np.int64) % CANARY_PERIOD)

    def extremes(self) -> tuple[Values, Values]:
        """See `BlockCipher.extremes`."""
        return np.full(self.width, _TOP * (self.parties - 1)), np.full(self.width, _TOP)

    def canary_row(self) -> Values:
        """See `SealCipher.canary_row`."""
        return self.canaries(self.width)

    def parameters(self) -> dict[str, object]:
        """See `BlockCipher.parameters`."""
        return {**super().parameters(), "lane_bits": self._lane_bits}

    def to_plaintext(self, row: Values) -> Any:
        """See `SealCipher.to_plaintext`; written as a stream, since SEAL takes no array of coefficients."""
        lanes = row.reshape(-1, 2)
        coefficients = (lanes[:, 0] | lanes[:, 1] << self._lane_bits).astype("<u8").tobytes()
        words = struct.pack("<Q", len(lanes))
        body = bytes(32) + words + struct.pack("<d", 1.0) + plain_stream(words + coefficients)
        return seal_io.load(self.seal.Plaintext(), self.context, plain_stream(body))

    def from_plaintext(self, plaintext: Any) -> Values:
        """See `SealCipher.from_plaintext`."""
        count = plaintext.coeff_count()  # SEAL drops leading zeros
        coefficients = np.zeros(self.profile.poly_modulus_degree, np.int64)
        coefficients[:count] = np.fromiter(map(plaintext.__getitem__, range(count)), np.int64, count)
        low, high = coefficients & ((1 << self._lane_bits) - 1), coefficients >> self._lane_bits
        return np.column_stack([low, high]).ravel()
