"""A strict reader for ciphertexts in SEAL 4.1's stream format.

SEAL inflates a stream before it looks at it, nested streams included, so a few kilobytes from outside can ask
for half a gigabyte.  Here a stream is inflated by us, to exactly the size our own ciphertexts have, and every
byte that is not a coefficient or a PRNG seed must be the byte we would have written: parameter digest, NTT
flag, scale, sizes, nested headers, PRNG type.  What is left for SEAL to load is a plain stream of known form.

Layout: 16-byte header (magic, header size, version, compression, size), then parameter digest 32, NTT flag 1,
five words 40, nested header 16, word count 8, the coefficients, and for a seeded ciphertext a nested header,
the PRNG type and its 64-byte seed.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

from fl_core.errors import BadMessage

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, HEADER_BYTES, _MAJOR, _MINOR = 0xA15E, 16, 4, 3
_PLAIN, _ZSTD = 0, 2
_PREFIX = 32 + 1 + 40 + 16 + 8
_SEED_HEADER, _SEED = 17, 64


@cache
def _codec() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd")


def inflated(stream: bytes, size: int) -> bytes:
    """The body of a stream that SEAL wrote here, `size` bytes."""
    body = stream[HEADER_BYTES:]
    return body if len(body) == size else bytes(_codec().decompress(body, size, asbytes=True))


def plain_stream(body: bytes) -> bytes:
    """`body` as an uncompressed SEAL stream."""
    return _HEADER.pack(_MAGIC, HEADER_BYTES, _MAJOR, _MINOR, _PLAIN, 0, HEADER_BYTES + len(body)) + body


class CiphertextForm:
    """What a ciphertext stream of one parameter set must look like, learned from one of our own.

    Args:
        sample: a stream that SEAL wrote in this process.
        words: number of 64-bit coefficients stored in it (N seeded, 2N in full).
        seeded: whether a PRNG seed stands in for the second polynomial.
    """

    def __init__(self, sample: bytes, *, words: int, seeded: bool) -> None:
        self._coefficients = 8 * words
        self._body_bytes = _PREFIX + self._coefficients + (_SEED_HEADER + _SEED if seeded else 0)
        body = self._inflate(sample)
        self._prefix = body[:_PREFIX]
        self._suffix = body[_PREFIX + self._coefficients :][:_SEED_HEADER]
        #: zstd's worst case, so that an honest stream always passes
        self.max_bytes = HEADER_BYTES + self._body_bytes + self._body_bytes // 128 + 128

    def _inflate(self, stream: bytes) -> bytes:
        if len(stream) < HEADER_BYTES:
            raise BadMessage(f"a ciphertext of {len(stream)} bytes")
        *fixed, compression, reserved, size = _HEADER.unpack_from(stream)
        if fixed != [_MAGIC, HEADER_BYTES, _MAJOR, _MINOR] or reserved or size != len(stream):
            raise BadMessage("not a SEAL stream of the expected version and size")
        body = stream[HEADER_BYTES:]
        if compression == _ZSTD:
            try:
                body = _codec().decompress(body, self._body_bytes, asbytes=True)
            except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
                raise BadMessage("a ciphertext that does not inflate to its size") from None
        elif compression != _PLAIN:
            raise BadMessage(f"compression mode {compression}")
        if len(body) != self._body_bytes:
            raise BadMessage(f"a ciphertext of {len(body)} bytes, not {self._body_bytes}")
        return body

    def check(self, stream: bytes) -> bytes:
        """The same ciphertext as an uncompressed stream that is safe to load; else `BadMessage`."""
        if len(stream) > self.max_bytes:
            raise BadMessage(f"a ciphertext of {len(stream)} bytes, at most {self.max_bytes}")
        body = self._inflate(stream)
        suffix = body[_PREFIX + self._coefficients :][:_SEED_HEADER]
        if body[:_PREFIX] != self._prefix or suffix != self._suffix:
            raise BadMessage("a ciphertext of another form: parameters, scale, size or seeding differ")
        return plain_stream(body)
