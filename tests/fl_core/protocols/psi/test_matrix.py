"""The matrix against a slow, obvious reference of its own: bit by bit, as the paper has it."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.protocols.psi import cm20, matrix
from fl_core.protocols.psi.matrix import ItemRows
from fl_core.protocols.psi.parameters import Matrix
from tests.fl_core.protocols.parties import hashed


def block(key, use, data):
    cipher_key = hashlib.blake2b(b"fedseal/cm20/prf/v1" + use, key=key, digest_size=16).digest()
    return Cipher(algorithms.AES(cipher_key), modes.ECB()).encryptor().update(data)


def positions(item, key, m, w):
    """The PRF F: a position in each of w columns."""
    low, high = item[:16], item[16:]
    short = block(key, b"item", bytes(a ^ b for a, b in zip(block(key, b"item", low), high, strict=True)))
    found = []
    for column in range(w):
        words = block(key, b"column %d" % (column - column % 4), short)
        word = int.from_bytes(words[4 * (column % 4) : 4 * (column % 4) + 4], "little")
        found.append(word * m >> 32)
    return found


def stream(seed, m):
    """m bits of AES-CTR, the lowest of a byte first."""
    data = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(-(-m // 8)))
    return [data[i // 8] >> i % 8 & 1 for i in range(m)]


def value(bits, size, session):
    """H: bits of a row, eight to a byte, the first the highest; a last byte of fewer has them at its low end."""
    groups = [bits[at : at + 8] for at in range(0, len(bits), 8)]
    row = bytes(int("".join(map(str, group)), 2) for group in groups)
    mark = hashlib.blake2s(b"fedseal/cm20/row/v1" + session).digest()[:8]
    return hashlib.blake2s(mark + row).digest()[:size]


def slow_run(mine, theirs, key, seeds, secret, dims, session):
    """What both should get; all columns at once, everything a list of bits."""
    m, w = dims.rows, dims.width
    a = [stream(seed, m) for seed, _ in seeds]
    pointed = [positions(item, key, m, w) for item in mine]
    d = [[0 if any(p[i] == j for p in pointed) else 1 for j in range(m)] for i in range(w)]
    sent = [[x ^ y ^ z for x, y, z in zip(a[i], d[i], stream(seeds[i][1], m), strict=True)] for i in range(w)]
    c = [stream(seeds[i][s], m) for i, s in enumerate(secret)]
    c = [[x ^ y for x, y in zip(c[i], sent[i], strict=True)] if secret[i] else c[i] for i in range(w)]
    own = [value([a[i][p[i]] for i in range(w)], dims.output_bytes, session) for p in pointed]
    other = [positions(item, key, m, w) for item in theirs]
    return own, [value([c[i][p[i]] for i in range(w)], dims.output_bytes, session) for p in other]


def fast_run(mine, theirs, key, seeds, secret, dims, session):
    receiver, sender = ItemRows(mine, key, dims), ItemRows(theirs, key, dims)
    for group in range(dims.groups):
        part = slice(8 * group, 8 * group + 8)
        offered = cm20._offer_group(receiver, group, seeds[part])
        assert offered.shape == (len(seeds[part]), dims.column_bytes)
        chosen = [pair[bit] for pair, bit in zip(seeds[part], secret[part], strict=True)]
        cm20._take_group(sender, group, offered, chosen, np.array(secret[part], dtype=np.uint8))
    return receiver.outputs(session), sender.outputs(session)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.sampled_from([3, 8, 21, 40]))
def test_values_are_those_of_a_slow_reference(n_receiver, n_sender, shift, width):
    mine, theirs = hashed(range(n_receiver)), hashed(range(shift, shift + n_sender))
    dims = Matrix(2 * n_receiver, width, 10)
    seeds = [(os.urandom(16), os.urandom(16)) for _ in range(width)]
    secret = [bit & 1 for bit in os.urandom(width)]
    key = os.urandom(32)
    slow = slow_run([m.tobytes() for m in mine], [t.tobytes() for t in theirs], key, seeds, secret, dims, b"session")
    fast = fast_run(mine, theirs, key, seeds, secret, dims, b"session")
    assert [[row.tobytes() for row in side] for side in fast] == [list(side) for side in slow]


def test_values_are_equal_for_common_items_and_for_no_others():
    mine, theirs = hashed(range(60)), hashed(range(30, 100))
    dims = Matrix.of(n_sender=70, n_receiver=60)
    seeds = [(os.urandom(16), os.urandom(16)) for _ in range(dims.width)]
    secret = [bit & 1 for bit in os.urandom(dims.width)]
    own, other = fast_run(mine, theirs, os.urandom(32), seeds, secret, dims, b"s")
    own, other = [row.tobytes() for row in own], [row.tobytes() for row in other]
    assert own[30:] == other[:30] and len(set(own + other)) == 100


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_make_no_difference(batch, monkeypatch):
    items, key, dims = hashed(range(50)), os.urandom(32), Matrix.of(n_sender=1, n_receiver=50)
    columns = np.random.default_rng(1).integers(0, 256, (8, dims.column_bytes)).astype(np.uint8)
    whole = ItemRows(items, key, dims)
    d = [whole.gather_and_mark(group, columns[: dims.width - 8 * group]) for group in range(dims.groups)]
    monkeypatch.setattr(matrix, "_BATCH", batch)
    parts = ItemRows(items, key, dims)
    for group in range(dims.groups):
        assert (parts.gather_and_mark(group, columns[: dims.width - 8 * group]) == d[group]).all()
    assert (parts.outputs(b"s") == whole.outputs(b"s")).all()


def test_another_session_gives_other_values():
    rows = ItemRows(hashed([1]), bytes(32), Matrix(2, 8, 10))
    rows.gather(0, np.zeros((8, 1), dtype=np.uint8))
    assert (rows.outputs(b"a") != rows.outputs(b"b")).any()


def test_a_column_shows_as_many_zeros_as_chance_has_it():
    """D is one with probability (1 - 1/m)^n, about e^-1/2; 8 columns of 2^15, within 6 standard deviations."""
    n, dims = 1 << 14, Matrix(1 << 15, 8, 8)
    marked = ItemRows(hashed(range(n)), os.urandom(32), dims).gather_and_mark(0, np.zeros((8, 1 << 12), np.uint8))
    ones = np.unpackbits(marked).mean()
    assert abs(ones - np.exp(-0.5)) < 6 * np.sqrt(0.25 / (8 << 15))
