"""Wire forms of ciphertexts and keys for networks under encryption: fixed sizes, words packed, half of it a seed.

SEAL loads streams whose heads were learned from its own here, never a length from outside; a form has no place for a
secret key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto import seal_io
from fl_core.crypto.seal_stream import HEADER_BYTES, CiphertextForm, inflated, plain_stream
from fl_core.errors import BadMessage

Words = NDArray[np.uint64]

WORD_BITS = 60
MAX_OBJECT_BYTES = 16 << 20  # a rotation key takes five
_SEED = 64
_TAIL = 17 + _SEED  # of a seeded stream: nested header, PRNG type, seed
_SWITCHING_PREFIX = 32 + 8  # digest, places


def packed_bytes(count: int) -> int:
    """Bytes of `count` packed words, an even number of them."""
    return 15 * count // 2


def pack(words: Words) -> bytes:
    """(rows, N) numbers below 2^60, a pair in 15 bytes: all first 8 bytes of a row, then all last 7."""
    parts = []
    for row in words:
        first, second = row[0::2], row[1::2]
        parts.append((first | (second << np.uint64(WORD_BITS))).astype("<u8").tobytes())
        rest = (second >> np.uint64(4)).astype("<u8")
        parts.append(rest.view(np.uint8).reshape(-1, 8)[:, :7].tobytes())
    return b"".join(parts)


def unpack(data: bytes, primes: Sequence[int]) -> Words:
    """What `pack` wrote, a row below each prime; `BadMessage` unless they look like numbers mod the primes."""
    count = 2 * len(data) // 15 // len(primes)
    words, at = np.empty((len(primes), count), dtype=np.uint64), 0
    for row, prime in zip(words, primes, strict=True):
        first = np.frombuffer(data, dtype="<u8", count=count // 2, offset=at)
        wide = np.zeros((count // 2, 8), dtype=np.uint8)
        wide[:, :7] = np.frombuffer(data, dtype=np.uint8, count=7 * count // 2, offset=at + 4 * count).reshape(-1, 7)
        row[0::2] = first & np.uint64((1 << WORD_BITS) - 1)
        row[1::2] = (wide.view("<u8").reshape(-1) << np.uint64(4)) | (first >> np.uint64(WORD_BITS))
        at += packed_bytes(count)
        if int(row.max()) >= prime:
            raise BadMessage("a coefficient beyond the modulus")
        if np.count_nonzero(row) < count * 63 // 64:  # honest ones are uniform
            raise BadMessage("a polynomial of zeros")
    return words


class KeyForms:
    """How public keys and key-switch keys of one ring travel.

    Parameters
    ----------
    sample : a seeded public key that SEAL wrote here. primes : all of the ring, the one for keys last.

    Attributes
    ----------
    public_bytes, switching_bytes : of one; no other size is taken.
    """

    def __init__(self, sample: bytes, primes: Sequence[int], degree: int) -> None:
        self._primes, self._degree, self._parts = list(primes), degree, len(primes) - 1
        words = len(primes) * degree
        plain = CiphertextForm(sample, words=words, seeded=True).check(sample)
        self._head, self._tail = plain[: -_TAIL - 8 * words], plain[-_TAIL:-_SEED]
        self._stream_bytes = len(plain)
        self.public_bytes = len(primes) * packed_bytes(degree) + _SEED
        self.switching_bytes = self.public_bytes * self._parts

    def cut_public(self, stream: bytes) -> bytes:
        """What travels of a seeded public key that SEAL wrote here."""
        return self._cut(bytes(HEADER_BYTES) + inflated(stream, self._stream_bytes - HEADER_BYTES))

    def cut_switching(self, stream: bytes, places: int) -> bytes:
        """What travels of seeded key-switch keys, of which SEAL wrote one here among `places`."""
        each = self._stream_bytes
        body = inflated(stream, _SWITCHING_PREFIX + 8 * places + each * self._parts)
        counts = np.frombuffer(body, dtype="<u8", count=places, offset=_SWITCHING_PREFIX)
        start = _SWITCHING_PREFIX + 8 * (int(np.flatnonzero(counts)[0]) + 1)
        return b"".join(self._cut(body[start + i * each : start + (i + 1) * each]) for i in range(self._parts))

    def public_stream(self, data: bytes) -> bytes:
        """A stream for SEAL of a public key that travelled; `BadMessage` for what is none."""
        if len(data) != self.public_bytes:
            raise BadMessage(f"a public key of {len(data)} bytes, not {self.public_bytes}")
        words = unpack(data[:-_SEED], self._primes)
        return self._head + words.astype("<u8", copy=False).tobytes() + self._tail + data[-_SEED:]

    def switching_stream(self, data: bytes, index: int, places: int) -> bytes:
        """A stream for SEAL of a key-switch key that travelled, at `index` of `places`; `BadMessage` for no such."""
        if len(data) != self.switching_bytes:
            raise BadMessage(f"a key of {len(data)} bytes, not {self.switching_bytes}")
        parts = [data[i : i + self.public_bytes] for i in range(0, len(data), self.public_bytes)]
        keys = self._parts.to_bytes(8, "little") + b"".join(self.public_stream(part) for part in parts)
        digest = self._head[HEADER_BYTES : HEADER_BYTES + 32]
        head = digest + places.to_bytes(8, "little") + bytes(8 * index)
        return plain_stream(head + keys + bytes(8 * (places - 1 - index)))

    def _cut(self, plain: bytes) -> bytes:
        words = np.frombuffer(plain[len(self._head) : -_TAIL], dtype="<u8").reshape(-1, self._degree)
        return pack(words) + plain[-_SEED:]


def load(item: Any, context: Any, stream: bytes) -> Any:
    """Fill a SEAL object from a stream of known form; raises `BadMessage` for what SEAL refuses."""
    return seal_io.load(item, context, stream, limit=MAX_OBJECT_BYTES)
