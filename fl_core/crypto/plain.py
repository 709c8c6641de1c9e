"""No encryption, through the same interface: 64-bit fixed point, so that sums do not depend on their order.

The coordinator reads every party's values.  A value is a multiple of 2^-40; |v| ≤ 2^22 / parties.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_core.crypto.block_cipher import Values, Vector
from fl_core.crypto.fixed_point import check_range, float_canaries, from_fixed, to_fixed
from fl_core.crypto.profiles import Profile
from fl_core.errors import BadMessage

_WIDTH = 4096


class Plain:
    """See the module."""

    dtype: np.dtype[Any] = np.dtype(np.int64)
    canary_tolerance = 0.0
    width = _WIDTH
    upload_bytes = sum_bytes = 8 * _WIDTH

    def __init__(self, profile: Profile, parties: int) -> None:
        self.profile, self.parties = profile, parties
        self._limit = profile.headroom / parties
        self._most = int(np.ldexp(self._limit, profile.scale_bits))

    def parameters(self) -> dict[str, object]:
        """See `BlockCipher.parameters`."""
        return {"fixed_point_bits": self.profile.scale_bits}

    def slots(self, length: int, tail: int) -> int:
        """See `BlockCipher.slots`."""
        return length + tail

    def encode(self, vector: Vector, tail: Vector, clip: float) -> Values:
        """See `BlockCipher.encode`; `clip` plays no part."""
        check_range("update", vector, self._limit)
        check_range("metrics", tail, self._limit)
        return to_fixed(np.concatenate([vector, tail]), self.profile.scale_bits)

    def decode(self, values: Values, length: int, tail: int, clip: float, count: int) -> tuple[Vector, Vector]:
        """See `BlockCipher.decode`."""
        numbers = from_fixed(values[: length + tail], self.profile.scale_bits)
        return numbers[:length].copy(), numbers[length:].copy()

    def canaries(self, blocks: int) -> Values:
        """See `BlockCipher.canaries`."""
        return to_fixed(float_canaries(blocks), self.profile.scale_bits)

    def extremes(self) -> tuple[Values, Values]:
        """See `BlockCipher.extremes`."""
        return np.full(_WIDTH, self._most), np.zeros(_WIDTH, np.int64)

    def new_secret(self) -> bytes:
        """There is none."""
        return b""

    def open_secret(self, secret: bytes) -> Plain:
        """See `BlockCipher.open_secret`."""
        if secret:
            raise BadMessage("a plain key holds no secret")
        return self

    def encrypt(self, row: Values) -> bytes:
        """See `BlockKey.encrypt`."""
        return row.astype("<i8").tobytes()

    def decrypt(self, block: Any) -> Values:
        """See `BlockKey.decrypt`."""
        return block

    def parse(self, block: bytes, *, upload: bool) -> Any:
        """See `BlockCipher.parse`; an upload's values must leave room for those of the others."""
        if len(block) != 8 * _WIDTH:
            raise BadMessage(f"a block of {len(block)} bytes, not {8 * _WIDTH}")
        values = np.frombuffer(block, "<i8").astype(np.int64)
        if upload and not (-self._most <= values.min() and values.max() <= self._most):
            raise BadMessage(f"a value beyond ±{self._limit:g}")
        return values

    def add(self, total: Any, other: Any) -> Any:
        """See `BlockCipher.add`."""
        total += other
        return total

    def dump(self, total: Any) -> bytes:
        """See `BlockCipher.dump`."""
        return self.encrypt(total)
