"""Arithmetic in Z_2^32 and Z_2^64: fixed point, exact products, pseudo-random elements.

Numbers are integers v·2^fraction, negative ones by their two's complement.  Sums and products wrap, so a share of a
number is a uniform element and says nothing about it; whoever adds shares must know that the true result stays under
half the modulus, which `check_headroom` holds the caller to.

Products are exact.  Over 2^32 a transposed product runs on BLAS: an element as a signed number is under 2^31, a limb of
the vector at most 2^11, and 256 products of them stay under 2^53, below which float64 adds without rounding.

Randomness: AES-256 in counter mode under a key from the operating system.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fl_core.errors import TrainingDiverged

Elements = NDArray[Any]  # uint32 or uint64
Floats = NDArray[np.float64]
KEY_BYTES = 32
U64: np.dtype[Any] = np.dtype(np.uint64)
U32: np.dtype[Any] = np.dtype(np.uint32)
_SIGNED: dict[np.dtype[Any], np.dtype[Any]] = {U64: np.dtype(np.int64), U32: np.dtype(np.int32)}
_LIMB, _ROWS = 11, 256
_ZEROS = bytes(1 << 18)


def encode(values: Floats, fraction: int, dtype: np.dtype[Any] = U64) -> Elements:
    """Numbers to elements, rounded to 2^-fraction.

    Parameters
    ----------
    values : float64, any shape.
    dtype : `U64` or `U32`.

    Raises
    ------
    TrainingDiverged : a value that is not finite or does not fit.
    """
    scaled = np.rint(np.asarray(values, dtype=np.float64) * 2.0**fraction)
    limit = 2.0 ** (8 * dtype.itemsize - 1)
    if scaled.size and not (np.abs(scaled) < limit).all():
        raise TrainingDiverged(f"a value of {_largest(values):.4g}; allowed: under {limit * 2.0**-fraction:.4g}")
    return scaled.astype(_SIGNED[dtype]).view(dtype)


def decode(elements: Elements, fraction: int) -> Floats:
    """Elements back to float64."""
    return np.asarray(elements).view(_SIGNED[elements.dtype]).astype(np.float64) * 2.0**-fraction


def check_headroom(what: str, bound: float, bits: int) -> None:
    """`TrainingDiverged` where a result of up to `bound`, in units of the last place, reaches 2^bits."""
    if not bound < 2.0**bits:
        reach = f"2^{math.log2(bound):.1f}" if math.isfinite(bound) and bound > 0 else "no finite number"
        raise TrainingDiverged(f"{what} may reach {reach}; allowed: under 2^{bits}")


def product(matrix: Elements, vectors: Elements) -> Elements:
    """matrix (n, d) · vectors (d, c) → (n, c), modulo 2^32 or 2^64."""
    return _columns("ij,j->i", matrix, vectors)


def product_t(matrix: Elements, vectors: Elements) -> Elements:
    """matrixᵀ · vectors: matrix (n, d), vectors (n, c) → (d, c), modulo 2^32 or 2^64."""
    return _limbs_t(matrix, vectors) if matrix.dtype == U32 else _columns("ij,i->j", matrix, vectors)


def _columns(rule: str, matrix: Elements, vectors: Elements) -> Elements:
    # einsum over one contiguous vector is three times faster than matmul on integers
    made = [np.einsum(rule, matrix, np.ascontiguousarray(vectors[:, i])) for i in range(vectors.shape[1])]
    size = matrix.shape[0] if rule.endswith("i") else matrix.shape[1]
    return np.stack(made, axis=1) if made else np.zeros((size, 0), matrix.dtype)


def _limbs_t(matrix: Elements, vectors: Elements) -> Elements:
    n, d = matrix.shape
    count = vectors.shape[1]
    parts = _limbs(np.ascontiguousarray(vectors.T).view(np.int32))
    limbs = np.concatenate(parts).astype(np.float64)
    signed, block = matrix.view(np.int32), np.empty((min(n, _ROWS), d))
    total = np.zeros((len(limbs), d), dtype=np.int64)
    for start in range(0, n, _ROWS):
        rows = signed[start : start + _ROWS]
        np.copyto(block[: len(rows)], rows)
        total += (limbs[:, start : start + len(rows)] @ block[: len(rows)]).astype(np.int64)
    joined = np.zeros((count, d), dtype=np.uint64)
    for k, part in enumerate(total.view(np.uint64).reshape(len(parts), count, d)):
        joined += part << np.uint64(_LIMB * k)
    return np.ascontiguousarray(joined.astype(np.uint32).T)


def _limbs(values: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Parts of 11 bits, the highest one signed; as few as the largest number needs."""
    reach = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    more = sum(reach > 1 << (_LIMB * k) for k in (1, 2))
    return [(values >> (_LIMB * k)) & ((1 << _LIMB) - 1) for k in range(more)] + [values >> (_LIMB * more)]


# ---- randomness


def new_key() -> bytes:
    """A key from the operating system."""
    return os.urandom(KEY_BYTES)


class Stream:
    """Uniform elements in the order in which they are drawn: whoever has the key draws the same."""

    def __init__(self, key: bytes) -> None:
        self._cipher = _counter(key, 0)

    def draw(self, *shape: int, dtype: np.dtype[Any] = U64) -> Elements:
        """Elements of `shape`."""
        out = np.empty(shape, dtype=dtype)
        _fill(self._cipher, out)
        return out

    def key(self) -> bytes:
        """A key for a stream or a mask of its own."""
        return self.draw(KEY_BYTES // 8).tobytes()


class Mask:
    """A uniform (n, d) matrix that is made from its key where it is needed; any rows, in any order.

    Parameters
    ----------
    key : of this matrix alone.
    keep : it stays in memory if it has at most so many bytes.
    """

    def __init__(self, key: bytes, rows: int, columns: int, dtype: np.dtype[Any], *, keep: int = 512 << 20) -> None:
        self.shape, self.dtype = (rows, columns), dtype
        self._key, self._held = key, None
        self._row = columns * dtype.itemsize
        if rows * self._row <= keep:
            self._held = self._make(0, rows)

    def rows(self, start: int, stop: int) -> Elements:
        """Rows start … stop."""
        return self._held[start:stop] if self._held is not None else self._make(start, stop)

    def _make(self, start: int, stop: int) -> Elements:
        at = start * self._row
        cipher = _counter(self._key, at // 16)
        if at % 16:
            cipher.update(bytes(at % 16))
        out = np.empty((stop - start, self.shape[1]), dtype=self.dtype)
        _fill(cipher, out)
        return out


def _counter(key: bytes, block: int) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()


def _fill(cipher: CipherContext, out: Elements) -> None:
    """Key stream into an array; a little goes through a buffer, since the cipher wants room beyond the end."""
    flat = out.reshape(-1).view(np.uint8).data
    size, spare = len(flat), 16
    at = 0
    while size - at > spare:
        part = min(len(_ZEROS), size - at - spare)
        at += cipher.update_into(_ZEROS[:part] if part < len(_ZEROS) else _ZEROS, flat[at:])
    if at < size:
        flat[at:] = cipher.update(bytes(size - at))


# ---- products with rows of a matrix that may be made as needed


def blocks(source: Mask | Elements, rows: NDArray[np.int64] | slice, block: int) -> Iterator[tuple[slice, Elements]]:
    """The chosen rows of a matrix, in order, by parts: (which of the chosen, those rows).

    Parameters
    ----------
    source : a mask or an array (n, d).
    rows : ascending row numbers, or a slice with start and stop.
    block : rows a part, at most.
    """
    if isinstance(rows, slice):
        for start in range(rows.start, rows.stop, block):
            stop = min(start + block, rows.stop)
            part = source[start:stop] if isinstance(source, np.ndarray) else source.rows(start, stop)
            yield slice(start - rows.start, stop - rows.start), part
        return
    whole = source if isinstance(source, np.ndarray) else source._held
    if whole is not None:
        for start in range(0, len(rows), block):
            yield slice(start, start + block), whole[rows[start : start + block]]
        return
    assert isinstance(source, Mask)
    cuts = np.searchsorted(rows, np.arange(0, source.shape[0] + block, block))
    for number, (first, last) in enumerate(pairwise(cuts.tolist())):
        if first < last:
            begin = number * block
            made = source.rows(begin, min(begin + block, source.shape[0]))
            inside = rows[first:last] - begin
            yield slice(first, last), made if last - first == len(made) else made[inside]


def rows_product(source: Mask | Elements, rows: NDArray[np.int64] | slice, vectors: Elements) -> Elements:
    """matrix[rows] · vectors (d, c) → (rows, c)."""
    made = [product(part, vectors) for _, part in blocks(source, rows, _block(source))]
    return np.concatenate(made) if made else np.zeros((0, vectors.shape[1]), vectors.dtype)


def rows_product_t(source: Mask | Elements, rows: NDArray[np.int64] | slice, vectors: Elements) -> Elements:
    """matrix[rows]ᵀ · vectors (rows, c) → (d, c)."""
    total = np.zeros((source.shape[1], vectors.shape[1]), dtype=vectors.dtype)
    for at, part in blocks(source, rows, _block(source)):
        total += product_t(part, vectors[at])
    return total


def rows_products_t(
    source: Mask | Elements, sets: Sequence[NDArray[np.int64]], vectors: Sequence[Elements]
) -> list[Elements]:
    """`rows_product_t` for several choices of rows; a mask that is not kept is made once for all of them."""
    n, d = source.shape
    if isinstance(source, np.ndarray) or source._held is not None or len(sets) == 1:
        spans = [slice(0, n) if len(rows) == n else rows for rows in sets]
        return [rows_product_t(source, rows, vector) for rows, vector in zip(spans, vectors, strict=True)]
    block = _block(source)
    cuts = [np.searchsorted(rows, np.arange(0, n + block, block)) for rows in sets]
    totals = [np.zeros((d, vector.shape[1]), dtype=vector.dtype) for vector in vectors]
    for number, begin in enumerate(range(0, n, block)):
        parts = [slice(cut[number], cut[number + 1]) for cut in cuts]
        if any(part.start < part.stop for part in parts):
            made = source.rows(begin, min(begin + block, n))
            for total, rows, vector, part in zip(totals, sets, vectors, parts, strict=True):
                if part.start < part.stop:
                    total += product_t(made[rows[part] - begin], vector[part])
    return totals


def _block(source: Mask | Elements) -> int:
    """Rows that fill about a mebibyte, in multiples of what a product takes at once."""
    return max(1, (1 << 20) // max(1, source.shape[1] * source.dtype.itemsize) // _ROWS) * _ROWS


def _largest(values: Floats) -> float:
    return float(np.max(np.abs(np.asarray(values, dtype=np.float64))))
