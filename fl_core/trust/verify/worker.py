"""A process that checks signatures for another (`signatures`): batches on standard input, an answer to each.

A batch is its number of checks and, of each, the length of the signed data, the Ed25519 key (32 bytes), the signature
(64) and the data; numbers are 4 bytes, big-endian.  The answer is the place of the first check that fails, or -1.
"""

from __future__ import annotations

import struct
import sys
from functools import lru_cache
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

COUNT, HEAD, ANSWER = struct.Struct(">I"), struct.Struct(">I32s64s"), struct.Struct(">i")

_key = lru_cache(4096)(Ed25519PublicKey.from_public_bytes)


def first_failure(source: BinaryIO, count: int) -> int:
    """Read `count` checks and return the place of the first that fails, or -1."""
    failed = -1
    for place in range(count):
        size, raw, signature = HEAD.unpack(source.read(HEAD.size))
        data = source.read(size)
        if failed < 0:
            try:
                _key(raw).verify(signature, data)
            except InvalidSignature:
                failed = place
    return failed


def main() -> None:
    """Answer batches until standard input ends."""
    while head := sys.stdin.buffer.read(COUNT.size):
        answer = first_failure(sys.stdin.buffer, *COUNT.unpack(head))
        sys.stdout.buffer.write(ANSWER.pack(answer))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
