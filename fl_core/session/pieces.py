"""A message as pieces: the first begins with the step and the length, the others go on."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

PIECE = 1 << 20
START, GO_ON = b"\x01", b"\x00"
HEAD = struct.Struct(">HQ")


def pieces(parts: Sequence[memoryview], step: str) -> Iterator[bytes]:
    """A message's pieces: the first begins with the step and the length."""
    name, total = step.encode(), sum(len(part) for part in parts)
    piece: list[bytes | memoryview] = [START, HEAD.pack(len(name), total), name]
    room = PIECE
    for part in parts:
        at = 0
        while at < len(part):
            if room == 0:
                yield b"".join(piece)
                piece, room = [GO_ON], PIECE
            taken = part[at : at + room]
            piece.append(taken)
            at, room = at + len(taken), room - len(taken)
    yield b"".join(piece)
