"""Hashed items as points of Curve25519, raised to secret powers: what private set intersection by Diffie-Hellman needs.

`hash_to_curve` maps to the subgroup of prime order: SHA-512, the Elligator 2 map of RFC 9380 (appendix G.2.2, by
libsodium, cofactor cleared), then the Montgomery u coordinate of RFC 7748, section 4.1.  `mask` is X25519.

A hash taken for a u coordinate as it is would be wrong: half of all values belong to the twist, X25519 keeps each on
its side, and that bit of the hash would shine through every mask.

The map alone reaches half of the points (RFC 9380's hash adds two).  Masking needs no more: decisional Diffie-Hellman
on that half is as hard, since the reduction draws g^r until the map reaches it and inverts the map there.

128 bits.  Keys come from the operating system.  X25519's clamped scalars are multiples of 8 and never a multiple of
the order, so each is a permutation of the subgroup.  Received points are checked to be canonical; a point of the twist
gives nothing away (its order has a large prime as well), one of small order is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
from nacl import bindings as sodium
from numpy.typing import NDArray

from fl_core.errors import BadMessage, IntegrityError

POINT_BYTES = 32
KEY_BYTES = 32
Points = NDArray[np.uint8]

_P = 2**255 - 19
_CHUNK = 2048
_LEAST = np.frombuffer((_P).to_bytes(32, "little"), dtype=np.uint8)
# RFC 9380, J.5.2, the first vector: u[0], and P.y as libsodium encodes it, with the sign of x at the top.
_U0 = bytes.fromhex("7f3e7fb9428103ad7f52db32f9df32505d7b427d894c5093f7a0f0374a30641d")[::-1]
_P_Y = bytes.fromhex("222e314d04a4d5725e9f2aff9fb2a6b69ef375a1214eb19021ceab2d687f0f9b")[::-1]


def new_key() -> bytes:
    """A fresh masking key."""
    return os.urandom(KEY_BYTES)


def hash_to_curve(items: NDArray[np.uint8], *, tag: bytes, threads: int = 1) -> Points:
    """A point for each item, which nobody knows a power for.

    Parameters
    ----------
    items : (n, k) uint8.
    tag : separates uses; the same at all who compare.
    threads : for the part of the work that leaves Python free.

    Returns
    -------
    (n, 32) uint8, u coordinates.
    """
    _check_map()
    return _in_chunks(partial(_hash_chunk, hashlib.sha512(tag)), items, threads)


def mask(points: Points, key: bytes, *, threads: int = 1) -> Points:
    """X25519 of `key` and each point: (n, 32) uint8 to (n, 32) uint8, in the same order.

    Masks commute: the order of several keys does not matter.

    Raises
    ------
    BadMessage : a point of small order, whose result would not depend on the key.
    """
    return _in_chunks(partial(_mask_chunk, key), points, threads)


def check_points(points: Points) -> None:
    """`BadMessage` unless every row of (n, 32) is the one encoding of a u coordinate below 2^255 - 19."""
    high = points[:, 31] == 0x7F
    for column in range(30, 0, -1):
        if not high.any():
            break
        high &= points[:, column] == 0xFF
    bad = (points[:, 31] > 0x7F) | (high & (points[:, 0] >= _LEAST[0]))
    if bad.any():
        raise BadMessage(f"point {int(bad.argmax())} of {len(points)} is not canonical")


def _in_chunks(work: Callable[[NDArray[np.uint8]], bytes], rows: NDArray[np.uint8], threads: int) -> Points:
    starts = range(0, len(rows), _CHUNK)
    chunks = (rows[start : start + _CHUNK] for start in starts)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            done = b"".join(pool.map(work, chunks))
    else:
        done = b"".join(map(work, chunks))
    return np.frombuffer(done, dtype=np.uint8).reshape(len(rows), POINT_BYTES)


def _mask_chunk(key: bytes, points: NDArray[np.uint8]) -> bytes:
    data, multiply = points.tobytes(), sodium.crypto_scalarmult
    try:
        return b"".join([multiply(key, data[at : at + 32]) for at in range(0, len(data), 32)])
    except RuntimeError:
        raise BadMessage("a point of small order") from None


def _hash_chunk(start: hashlib._Hash, items: NDArray[np.uint8]) -> bytes:
    to_point, ys = sodium.crypto_core_ed25519_from_uniform, []
    for item in items:
        digest = start.copy()
        digest.update(item)
        ys.append(int.from_bytes(to_point(digest.digest()[:32]), "little") & (2**255 - 1))
    # u = (1 + y) / (1 - y), with one inversion for all: prefix products up, inverses down (Montgomery's trick).
    products, product = [], 1
    for y in ys:
        products.append(product)
        product = product * (1 - y) % _P
    if product == 0:
        raise IntegrityError("an item hashed to the identity")
    inverse, encoded = pow(product, -1, _P), []
    for y, before in zip(reversed(ys), reversed(products), strict=True):
        encoded.append(((1 + y) * inverse * before % _P).to_bytes(32, "little"))
        inverse = inverse * (1 - y) % _P
    return b"".join(reversed(encoded))


@cache
def _check_map() -> None:
    """The library's map must be the standard's: with another one at another party nothing would ever match."""
    y = bytearray(sodium.crypto_core_ed25519_from_uniform(_U0))
    y[31] &= 0x7F
    if bytes(y) != _P_Y:
        raise IntegrityError("libsodium's map to edwards25519 is not that of RFC 9380, appendix J.5.2")
