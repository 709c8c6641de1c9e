"""Encoding for networks: exact polynomials against slow arithmetic of many digits, words and their packing."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto.network_encoder import encode_exact, encode_real, exponents, residues
from fl_core.crypto.network_inference import NetworkSide
from fl_core.crypto.network_keys import NetworkKey
from fl_core.crypto.network_ring import DEGREE, Layout, open_network_ring
from fl_core.crypto.network_wire import pack, packed_bytes, unpack
from fl_core.errors import BadMessage
from tests.fl_core.crypto.network_cases import SLOTS, network, opened, summed


@pytest.fixture(scope="module")
def ring():
    return open_network_ring("CKKS_NETWORK")


def slow_coefficients(slots, degree, bits):
    """By the definition, in 200 bits: coefficient k is the mean of Re(slot · ζ^(-k·3^j))."""
    mp = pytest.importorskip("mpmath")
    with mp.workprec(200):
        roots = [[mp.expjpi(mp.mpf(-int(e) * k) / degree) for e in exponents(degree)] for k in range(degree)]
        return [sum((mp.mpc(z) * w).real for z, w in zip(slots, row)) * 2**bits / len(slots) for row in roots]


@given(st.integers(0, 2**32), st.sampled_from([4, 16, 64]))
@settings(max_examples=6, deadline=None)
def test_an_exact_polynomial_is_off_by_rounding_alone(seed, degree):
    rng = np.random.default_rng(seed)
    slots = rng.uniform(-8, 8, degree // 2) + 1j * rng.uniform(-8, 8, degree // 2)
    high, low = encode_exact(slots, 79)
    found = [int(a) + int(b) for a, b in zip(high, low, strict=True)]
    assert all(abs(a - b) < 0.501 for a, b in zip(found, slow_coefficients(slots, degree, 79), strict=True))


def test_copies_of_a_row_agree_to_less_than_the_noise_of_a_ciphertext():
    """Against doubles, which at the scale of 40 bits of flooding do not: then an answer is that of no row."""
    ring, layout = open_network_ring("CKKS_NETWORK_40"), Layout((30, 32, 1))
    row = np.append(np.random.default_rng(0).uniform(-8, 8, 30), 0.0)
    slots, bits = row[layout.features[0]] + 0j, ring.chosen.row_bits
    high, low = encode_exact(slots, bits)
    plaintext = ring.encode(slots * 2.0**bits)
    doubles = ring.ciphertext(np.stack([ring.plaintext_words(plaintext)] * 2))
    words = residues((high, low), ring.primes)[0].astype(np.int64)
    apart = (ring.coefficients(doubles)[0, 0].astype(np.int64) - words + ring.primes[0] // 2) % ring.primes[0]
    assert np.abs(apart - ring.primes[0] // 2).astype(float).std() > 1000 * 3.24


def test_a_columns_slots_are_real_without_rest(ring):
    values = np.random.default_rng(0).uniform(-8, 8, 32)
    whole = encode_real(values, 40)
    assert whole[32] == 0 and (whole[33:] == -whole[1:32][::-1]).all()
    slots = [sum(int(c) * np.exp(1j * np.pi * int(e) * k / 64) for k, c in enumerate(whole)) for e in exponents(64)]
    assert np.abs(np.array(slots) / 2**40 - values).max() < 1e-10


@given(st.lists(st.integers(-(2**99), 2**99), min_size=2, max_size=20), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_residues_are_those_of_the_whole_numbers(ring, values, seed):
    high = np.array([float(v) for v in values])
    low = np.random.default_rng(seed).integers(-(2**50), 2**50, len(values)).astype(float)
    slow = [[(int(a) + int(b)) % q for a, b in zip(high, low, strict=True)] for q in ring.primes]
    assert residues((high, low), ring.primes).tolist() == slow


def test_slots_of_a_sent_row_are_the_features_as_the_layout_says(ring):
    """What the client's key opens, against a slow reading of the layout."""
    key, layout = NetworkKey(ring), Layout((784, 64, 10))
    row = np.random.default_rng(0).uniform(-1, 1, 784)
    found = opened(ring, key, ring.ciphertext(ring.read(key.encrypt_row(row, layout)))) / 2.0**ring.chosen.row_bits
    for unit in (0, 1, 63):
        seen = {}
        for turn in range(layout.chunks):
            for slot in range(unit, SLOTS, 64):
                at = (slot + turn) % SLOTS
                for value, index in zip((found[at].real, found[at].imag), layout.features[:, at], strict=True):
                    seen.setdefault(int(index), []).append(value)
        assert set(seen) - {784} == set(range(784)) and all(len(seen[f]) == 1 for f in range(784))
        assert max(abs(seen[f][0] - row[f]) for f in range(784)) < 1e-9


def test_noise_of_ciphertexts_is_that_of_seal(ring):
    """Deviation 3.24 in every coefficient, and of a rounding: what the flooding is measured by."""
    key = NetworkKey(ring)
    for data in (key.encrypt_row(np.zeros(4), Layout((4, 3, 2))), next(key.encrypt_columns(np.zeros((1, 1))))):
        slots = opened(ring, key, ring.ciphertext(ring.read(data)))
        assert 0.95 < np.sqrt((np.abs(slots) ** 2).mean() / DEGREE) / 3.25 < 1.05


def test_two_ciphertexts_of_one_row_share_nothing(ring):
    key, layout = NetworkKey(ring), Layout((4, 3, 2))
    first, second = (np.frombuffer(key.encrypt_row(np.ones(4), layout), dtype="<u4") for _ in range(2))
    assert (first == second).mean() < 0.01


def test_sums_of_columns_are_exact(ring):
    """Against whole numbers: Σ w c of every word, with weights as large as sums of halves have room for."""
    side = NetworkSide(ring, [(np.array([[3.0, -5.0, 1e-3]] * 2), np.zeros(2)), network((3, 2, 1))[1]])
    side._whole = np.array([[2.0**22, 1 - 2.0**22, 1.0]] * 2)
    columns = list(NetworkKey(ring).encrypt_columns(np.ones((2, 3))))
    total = ring.words(side.hidden_unit(summed(side, columns), 0, None))
    read, places = [ring.read(column) for column in columns], range(0, DEGREE, 97)
    for i, prime in enumerate(ring.primes):
        for k in range(2):
            sums = [sum(int(w) * int(c[k, i, j]) for w, c in zip(side._whole[0], read, strict=True)) for j in places]
            assert total[k, i, places].tolist() == [one % prime for one in sums]


def test_expanded_words_are_those_of_the_cipher_below_the_prime(ring, monkeypatch):
    """With primes of which a quarter of all words is beyond, the ones beyond are left out, in order."""
    monkeypatch.setattr(ring, "primes", [3 << 58] * 3)
    monkeypatch.setattr("fl_core.crypto.network_ring._SPARE", DEGREE)
    found = ring.expand(b"k" * 32)
    stream = Cipher(algorithms.AES(b"k" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(48 * DEGREE))
    drawn = np.frombuffer(stream, dtype="<u8").reshape(3, -1)
    for row, words in zip(found, drawn, strict=True):
        low = [word % 2**60 for word in words.tolist()]
        assert row.tolist() == [word for word in low if word < 3 << 58][:DEGREE]


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_packed_words_come_back_and_ones_beyond_the_prime_do_not(seed):
    primes = [2**60 - 93, 2**59]
    words = np.stack([np.random.default_rng(seed).integers(1, q, 64, dtype=np.uint64) for q in primes])
    words[0, :2] = primes[0] - 1
    assert len(pack(words)) == 2 * packed_bytes(64) and (unpack(pack(words), primes) == words).all()
    for bad in (2**59, 2**60 - 1):
        words[1, seed % 64] = bad
        with pytest.raises(BadMessage, match="beyond the modulus"):
            unpack(pack(words), primes)
    with pytest.raises(BadMessage, match="zeros"):
        unpack(bytes(packed_bytes(64)), primes[:1])
