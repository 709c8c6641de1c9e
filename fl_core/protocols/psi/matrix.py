"""CM20's bit matrix as one party sees it: where its items point in each column, and the bits that they find there.

Columns are independent; eight make a group, whose bits are a byte of each item's row.  Items are walked in batches
that stay in the cache, and columns stay packed: a gather from 2^21 bits is a gather from 256 KB.  numpy and the
cipher leave the interpreter free, so groups may run in threads.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fl_core.protocols.psi.parameters import Matrix

Bytes = NDArray[np.uint8]
ITEM_BYTES = 32
PRF_KEY_BYTES = 32

_BATCH = 1 << 16
_BLOCK = 16
_PRF_TAG, _ROW_TAG = b"fedseal/cm20/prf/v1", b"fedseal/cm20/row/v1"
_MARK = 8  # bytes of the session in front of a row; with 43 bytes of row one block of BLAKE2s


def expand(seed: bytes, size: int) -> Bytes:
    """`size` pseudo-random bytes from a seed of 16: AES-128 in counter mode.  A seed is used once."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(_BLOCK))).encryptor()
    return np.frombuffer(stream.update(bytes(size)), dtype=np.uint8)


class ItemRows:
    """A party's items and, group by group, their rows.

    Parameters
    ----------
    items : (n, 32) uint8, hashes of ids.
    key : of the PRF that maps an item to a position in each column, 32 bytes.
    matrix : the dimensions.
    """

    def __init__(self, items: Bytes, key: bytes, matrix: Matrix) -> None:
        self.matrix, self._key = matrix, key
        self._blocks = self._compress(items)
        self._rows = np.empty((matrix.groups, len(items)), dtype=np.uint8)

    def gather(self, group: int, columns: Bytes) -> None:
        """Note the bit that each item finds in each of a group's columns, (at most 8, column_bytes) uint8."""
        self._visit(group, columns, None)

    def gather_and_mark(self, group: int, columns: Bytes) -> Bytes:
        """`gather`, and the group's columns D: all ones, but zero where an item points; shape as `columns`."""
        found = np.empty_like(columns)
        self._visit(group, columns, found)
        return found

    def _visit(self, group: int, columns: Bytes, found: Bytes | None) -> None:
        row, words = self._rows[group], np.empty((4, len(self._blocks)), dtype=np.uint32)
        batch = _Batch(min(_BATCH, len(self._blocks)), self.matrix.rows)
        marks = None if found is None else np.empty(self.matrix.rows, dtype=np.uint8)
        row[:] = 0
        for number, column in enumerate(columns):
            if number % 4 == 0:
                self._draw_words(8 * group + number, words)
            if marks is not None:
                marks[:] = 1
            for start in range(0, len(row), _BATCH):
                batch.look_up(words[number % 4, start : start + _BATCH], column, row[start : start + _BATCH], marks)
            if found is not None and marks is not None:
                found[number] = np.packbits(marks, bitorder="little")

    def _draw_words(self, column: int, words: NDArray[np.uint32]) -> None:
        """The PRF: 32 bits for each item in each of four columns, `column` and those after it."""
        cipher = self._cipher(b"column %d" % column)
        buffer = bytearray(_BLOCK * min(_BATCH, len(self._blocks)) + _BLOCK - 1)
        for start in range(0, len(self._blocks), _BATCH):
            blocks = self._blocks[start : start + _BATCH]
            cipher.update_into(blocks.data.cast("B"), buffer)
            drawn = np.frombuffer(buffer, dtype="<u4", count=4 * len(blocks))
            words[:, start : start + _BATCH] = drawn.reshape(-1, 4).T

    def outputs(self, session: bytes) -> Bytes:
        """(n, output_bytes) uint8: the hash of each item's row, its OPRF value."""
        size, mark = self.matrix.output_bytes, hashlib.blake2s(_ROW_TAG + session).digest()[:_MARK]
        width, count = _MARK + self.matrix.groups, self._rows.shape[1]
        found, rows = np.empty((count, size), np.uint8), np.empty((min(_BATCH, count), width), np.uint8)
        rows[:, :_MARK] = np.frombuffer(mark, dtype=np.uint8)
        each, blake2s = struct.Struct(f"{width}s").iter_unpack, hashlib.blake2s
        for start in range(0, count, _BATCH):
            part = found[start : start + _BATCH]
            rows[: len(part), _MARK:] = self._rows[:, start : start + _BATCH].T
            digests = b"".join([blake2s(row).digest() for (row,) in each(rows[: len(part)].tobytes())])
            part[:] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)[:, :size]
        return found

    def _compress(self, items: Bytes) -> Bytes:
        """256 bits of an item to a block of 128: CBC-MAC, whose key was drawn after the items were fixed."""
        cipher = self._cipher(b"item")
        blocks = np.empty((len(items), _BLOCK), dtype=np.uint8)
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            half = np.frombuffer(cipher.update(part[:, :_BLOCK].tobytes()), dtype=np.uint8).reshape(-1, _BLOCK)
            both = cipher.update((half ^ part[:, _BLOCK:]).tobytes())
            blocks[start : start + _BATCH] = np.frombuffer(both, dtype=np.uint8).reshape(-1, _BLOCK)
        return blocks

    def _cipher(self, use: bytes) -> CipherContext:
        key = hashlib.blake2b(_PRF_TAG + use, key=self._key, digest_size=_BLOCK).digest()
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - a PRF on distinct blocks


class _Batch:
    """Scratch space for as many items as fit the cache."""

    def __init__(self, size: int, m: int) -> None:
        self._m = np.uint64(m)
        self._products, self._positions = np.empty(size, dtype="<u8"), np.empty(size, dtype=np.uint64)
        self._shifts, self._bits = np.empty(size, dtype=np.uint8), np.empty(size, dtype=np.uint8)

    def look_up(self, words: NDArray[np.uint32], column: Bytes, row: Bytes, marks: Bytes | None) -> None:
        """Append to each item's row the bit of a packed column at its position ⌊word · m / 2^32⌋.

        A bit's number in its byte is the lowest three bits of the position, which stand in byte 4 of word · m; the
        number of the byte is what is above them.
        """
        n = len(words)
        products, shifts, bits = self._products[:n], self._shifts[:n], self._bits[:n]
        np.multiply(words, self._m, out=products, dtype=np.uint64)
        if marks is not None:
            positions = np.right_shift(products, np.uint64(32), out=self._positions[:n])
            marks[positions.view(np.int64)] = 0
        np.copyto(shifts, products.view(np.uint8)[4::8])
        np.bitwise_and(shifts, 7, out=shifts)
        np.right_shift(products, np.uint64(35), out=products)
        # In bounds by construction; mode "raise" would copy.
        np.take(column, products.view(np.int64), out=bits, mode="clip")
        np.right_shift(bits, shifts, out=bits)
        np.bitwise_and(bits, 1, out=bits)
        np.add(row, row, out=row)  # a shift by one, vectorised
        np.bitwise_or(row, bits, out=row)
