"""The envelope around encrypted vectors: a fixed header, then length-prefixed ciphertext blocks.

A wrong key or other parameters would decrypt to garbage *without an error*, so the header names key,
parameter set and shape, and is compared field by field before a ciphertext is parsed.  Its checksum finds
accidents; it is no authentication: the statement that travels with a blob is signed elsewhere.

Format, big-endian: magic 8, version 2, kind 1, zero 1, profile 16 (ASCII, zero-padded), parties 2, count 2,
key id 8, context digest 32, vector length 8, tail length 4, clip 8 (IEEE double), scale bits 2, blocks 4,
first 16 bytes of SHA-256 over all of that; then per block its length in 4 bytes and its bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from fl_core.errors import BadMessage

_MAGIC = b"FEDSEAL\x01"
_VERSION = 1
_FIELDS = struct.Struct(">8sHBB16sHH8s32sQIdHI")
_CHECK = 16
_LENGTH = struct.Struct(">I")

HEADER_BYTES = _FIELDS.size + _CHECK
#: Longest vector: 2^32 values (half a terabyte of ciphertext) is nobody's model.
MAX_VALUES = 1 << 32


class Kind(IntEnum):
    """Direction of a blob."""

    UPLOAD = 1
    SUM = 2


@dataclass(frozen=True)
class Header:
    """What a blob claims to be.  `key_id` and `context_digest` are lower-case hex."""

    kind: Kind
    profile: str
    parties: int
    count: int
    key_id: str
    context_digest: str
    length: int
    tail: int
    clip: float
    scale_bits: int
    blocks: int

    def pack(self) -> bytes:
        """The header's `HEADER_BYTES` bytes."""
        fields = _FIELDS.pack(
            _MAGIC, _VERSION, self.kind, 0, self.profile.encode("ascii"), self.parties, self.count,
            bytes.fromhex(self.key_id), bytes.fromhex(self.context_digest), self.length, self.tail,
            self.clip, self.scale_bits, self.blocks,
        )  # fmt: skip
        return fields + hashlib.sha256(fields).digest()[:_CHECK]

    @classmethod
    def unpack(cls, blob: bytes) -> Header:
        """Read the header of `blob`; anything but what `pack` writes is `BadMessage`."""
        fields, check = blob[: _FIELDS.size], blob[_FIELDS.size : HEADER_BYTES]
        if len(blob) < HEADER_BYTES or not fields.startswith(_MAGIC):
            raise BadMessage("not an encrypted vector")
        if hashlib.sha256(fields).digest()[:_CHECK] != check:
            raise BadMessage("the header was altered")
        _, version, kind, _, profile, parties, count, key, context, length, tail, clip, scale, blocks = _FIELDS.unpack(
            fields
        )
        if version != _VERSION or length + tail > MAX_VALUES:
            raise BadMessage(f"version {version}, {length} + {tail} values")
        try:
            header = cls(
                Kind(kind), profile.rstrip(b"\0").decode("ascii"), parties, count, key.hex(), context.hex(),
                length, tail, clip, scale, blocks,
            )  # fmt: skip
        except ValueError:  # no such kind, or a name that is not ASCII
            raise BadMessage("a header field is out of range") from None
        if header.pack() != blob[:HEADER_BYTES]:
            raise BadMessage("the header is not in canonical form")
        return header


def join(header: Header, blocks: Iterable[bytes]) -> bytes:
    """One blob of `header` and `blocks`."""
    parts = [header.pack()]
    for block in blocks:
        parts += (_LENGTH.pack(len(block)), block)
    return b"".join(parts)


def split(blob: bytes, header: Header, *, max_block_bytes: int) -> Iterator[bytes]:
    """The blocks of `blob` one by one; too few, too many or too large is `BadMessage`."""
    at = HEADER_BYTES
    for _ in range(header.blocks):
        if at + _LENGTH.size > len(blob):
            raise BadMessage("the blob is truncated")
        (size,) = _LENGTH.unpack_from(blob, at)
        at += _LENGTH.size
        if size > max_block_bytes:
            raise BadMessage(f"a block of {size} bytes, at most {max_block_bytes}")
        if at + size > len(blob):
            raise BadMessage("the blob is truncated")
        yield blob[at : at + size]
        at += size
    if at != len(blob):
        raise BadMessage(f"{len(blob) - at} bytes after the last block")


def max_blob_bytes(blocks: int, max_block_bytes: int) -> int:
    """Upper bound of a blob's size."""
    return HEADER_BYTES + blocks * (_LENGTH.size + max_block_bytes)
