"""Curve25519 for hashed items: the standard's map, no bit of the hash behind the mask, no foreign points."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fl_core.crypto import curve25519
from fl_core.crypto.curve25519 import check_points, hash_to_curve, mask, new_key
from fl_core.errors import BadMessage, IntegrityError

P = 2**255 - 19
A = 486662
SMALL_ORDER = [
    0,
    1,
    P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
]


def items(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32)).astype(np.uint8)


def numbers(points):
    return [int.from_bytes(row.tobytes(), "little") for row in points]


def as_points(*values):
    data = b"".join(value.to_bytes(32, "little") for value in values)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, 32)


def on_curve(u):
    """1 on the curve, P - 1 on its twist (the Legendre symbol of v²)."""
    return pow(u * (u * u + A * u + 1), (P - 1) // 2, P)


def slow_hash(item, tag):
    """RFC 9380: the map of section 6.7.1 to Montgomery u, then cofactor 8 by doubling thrice (u alone suffices)."""
    r = int.from_bytes(hashlib.sha512(tag + item).digest()[:32], "little") & (2**255 - 1)
    u = -A * pow(1 + 2 * r * r, -1, P) % P
    if on_curve(u) != 1:
        u = (-u - A) % P
    for _ in range(3):
        u = (u * u - 1) ** 2 * pow(4 * u * (u * u + A * u + 1), -1, P) % P
    return u


@pytest.mark.parametrize("n", [0, 1, 30])
def test_hashing_is_the_standards_map(n):
    data = items(n)
    assert numbers(hash_to_curve(data, tag=b"t")) == [slow_hash(item.tobytes(), b"t") for item in data]


def test_another_tag_gives_other_points():
    data = items(5)
    assert not set(numbers(hash_to_curve(data, tag=b"a"))) & set(numbers(hash_to_curve(data, tag=b"b")))


def test_masking_is_x25519():
    points, key = hash_to_curve(items(20), tag=b"t"), new_key()
    other = X25519PrivateKey.from_private_bytes(key)
    expected = [other.exchange(X25519PublicKey.from_public_bytes(point.tobytes())) for point in points]
    assert [row.tobytes() for row in mask(points, key)] == expected


def test_masks_commute():
    points, (a, b) = hash_to_curve(items(10), tag=b"t"), (new_key(), new_key())
    assert (mask(mask(points, a), b) == mask(mask(points, b), a)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_keep_the_order(threads):
    data = items(curve25519._CHUNK + 3)
    whole = hash_to_curve(data, tag=b"t", threads=threads)
    ends = hash_to_curve(data[[0, -4, -3, -1]], tag=b"t")
    assert (whole[[0, -4, -3, -1]] == ends).all()
    key = new_key()
    assert (mask(whole, key, threads=threads)[[0, -4, -3, -1]] == mask(ends, key)).all()


def test_a_raw_hash_as_coordinate_shows_a_bit_through_the_mask():
    """Why a hash must not be taken for a point as it is: the curve or its twist, kept by every mask."""
    raw = as_points(*(int.from_bytes(hashlib.sha256(bytes([i])).digest(), "little") % 2**255 for i in range(200)))
    before = [on_curve(u) for u in numbers(raw)]
    after = [on_curve(u) for u in numbers(mask(raw, new_key()))]
    assert before == after and 60 < before.count(1) < 140


def test_our_points_show_no_such_bit():
    points = hash_to_curve(items(200), tag=b"t")
    assert {on_curve(u) for u in numbers(points)} == {1}
    assert {on_curve(u) for u in numbers(mask(points, new_key()))} == {1}


@pytest.mark.parametrize("value", [P, P + 1, P + 18, 2**255, 2**256 - 1, 2**255 + 9])
def test_a_second_encoding_of_a_point_is_refused(value):
    with pytest.raises(BadMessage, match="point 1 of 3 is not canonical"):
        check_points(as_points(9, value, 9))


def test_the_largest_coordinates_are_canonical():
    check_points(as_points(P - 1, P - 2, 2**255 - 257, 2**255 - 2**9, 2**254, 0))
    check_points(as_points())


@pytest.mark.parametrize("value", SMALL_ORDER)
def test_a_point_of_small_order_is_refused(value):
    with pytest.raises(BadMessage, match="small order"):
        mask(as_points(9, value), new_key())


def test_a_library_with_another_map_is_noticed(monkeypatch):
    monkeypatch.setattr(curve25519.sodium, "crypto_core_ed25519_from_uniform", lambda data: bytes(32))
    curve25519._check_map.cache_clear()
    with pytest.raises(IntegrityError, match="RFC 9380"):
        hash_to_curve(items(1), tag=b"t")
    curve25519._check_map.cache_clear()
