"""Encrypted residuals: right sums, replies that show nothing, and whatever is wrong refused."""

from __future__ import annotations

import math
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import residuals as module
from fl_core.crypto import seal_io
from fl_core.crypto.residual_ring import CKKS_RESIDUALS, FEATURE_LIMIT, MAX_ROWS, ResidualRing, ResidualSet, pack
from fl_core.crypto.residuals import ColumnSide, ResidualKey, check_features
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, DataError, JobFileError, TrainingDiverged

N = CKKS_RESIDUALS.degree


@pytest.fixture(scope="module")
def ring() -> ResidualRing:
    return ResidualRing(2 * N)


@pytest.fixture(scope="module")
def key(ring) -> ResidualKey:
    return ResidualKey(ring)


@pytest.fixture(scope="module")
def side(ring, key) -> ColumnSide:
    return ColumnSide(ring, key.public)


def gradient(ring, key, side, r, x):
    """Σ r x of every column of x by the whole protocol."""
    residuals = side.read(key.encrypt(r))
    replies = [side.reply(residuals, side.encode(column)) for column in x.T]
    numbers = key.answer(b"".join(reply for reply, _ in replies))
    return side.open(numbers, [mask for _, mask in replies], np.abs(x).sum(axis=0))


def plain_words(plaintext):
    return [plaintext.data(i) for i in range(N)]


def both_polynomials(saved):
    """The (2N,) words of a ciphertext or public key that SEAL wrote in full."""
    return np.frombuffer(CiphertextForm(saved, words=2 * N, seeded=False).check(saved)[-16 * N :], dtype="<u8")


# ------------------------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("rows", [1, 1023, 1025, N, N + 1, 2 * N])
def test_sums_are_right_up_to_the_flooding(ring, key, side, rows):
    rng = np.random.default_rng(rows)
    r, x = rng.uniform(-1, 1, rows), rng.uniform(-FEATURE_LIMIT, FEATURE_LIMIT, (rows, 3))
    assert np.abs(gradient(ring, key, side, r, x) - r @ x).max() < 6 * (ring.sigma + ring.rounding)


@pytest.mark.parametrize(("rows", "weight"), [(10, 1.0), (300, 7.3), (2 * N, 1.0), (2 * N, 1024.0)])
def test_the_largest_sum_that_is_allowed_does_not_overflow(rows, weight):
    ring = ResidualRing(rows, weight)
    key = ResidualKey(ring)
    x = np.full((rows, 2), FEATURE_LIMIT) * [1.0, -1.0]
    sums = gradient(ring, key, ColumnSide(ring, key.public), np.full(rows, weight), x)
    assert np.abs(sums - weight * x.sum(axis=0)).max() < 6 * (ring.sigma + ring.rounding)
    assert weight * rows * FEATURE_LIMIT * ring.unit < ring.modulus / 2


@given(st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_inner_products_are_exact(count, seed):
    q, rng = 18014398509404161, np.random.default_rng(seed)
    a, b = rng.integers(0, q, (count, N), dtype=np.uint64), rng.integers(0, q, N, dtype=np.uint64)
    a[0], b[: N // 2] = q - 1, q - 1
    slow = [sum(int(u) * int(v) for u, v in zip(row, b, strict=True)) for row in a]
    assert module._inner(a, module._limbs(b)) == slow
    assert module._total(a[0]) == sum(map(int, a[0]))


def test_rounding_is_what_the_module_says(monkeypatch):
    """Full residuals and columns of real numbers, no flooding: what is left is rounding."""
    ring, rng = ResidualRing(30), np.random.default_rng(1)
    key = ResidualKey(ring)
    side = ColumnSide(ring, key.public)
    monkeypatch.setattr(key._noise, "gaussian", lambda n, std: np.zeros(n))
    x = rng.uniform(-10, 10, (30, 60))
    errors = gradient(ring, key, side, np.ones(30), x) - x.sum(axis=0)
    assert 0.7 < errors.std() / ring.rounding < 1.3 and ring.rounding < math.sqrt(30) / 1e4  # 3 standard errors


def test_a_column_of_zeros_is_answered_like_any_other(ring, key, side):
    """SEAL refuses the product; a reply must still be of the same size and hide that there was none."""
    x = np.zeros((N + 5, 3))
    x[:, 1], x[N:, 2] = 1.0, 1.0  # all zeros, none, zeros in the first block
    assert np.abs(gradient(ring, key, side, np.ones(N + 5), x) - [0.0, N + 5, 5.0]).max() < 6 * ring.sigma
    residuals = side.read(key.encrypt(np.ones(N)))
    first, second = (ring.unpack(side.reply(residuals, side.encode(np.zeros(N)))[0]) for _ in range(2))
    assert len(first) == N + 1 and not (first == second).any()


def test_the_flooding_has_the_stated_deviation_and_hides_the_noise(ring, key, side):
    """300 answers to a column of zeros: what is over the mask is flooding, not the far smaller noise."""
    residuals, zero = side.read(key.encrypt(np.ones(N))), side.encode(np.zeros(N))
    replies = [side.reply(residuals, zero) for _ in range(300)]
    numbers = key.answer(b"".join(reply for reply, _ in replies))
    sums = side.open(numbers, [mask for _, mask in replies], np.zeros(300))
    assert 0.8 < sums.std() / ring.sigma < 1.2  # 5 standard errors of a deviation


@pytest.mark.parametrize(("rows", "factor"), [(2048, 330), (MAX_ROWS, 40)])
def test_the_flooding_is_as_far_above_the_noise_as_the_module_says(rows, factor):
    ring = ResidualRing(rows)
    noise = 3.24 * ring.column_scale * math.sqrt(2 * rows / N) * FEATURE_LIMIT
    assert ring.sigma * ring.unit > factor * noise and ring.sigma * ring.unit > 2**23 * 170


def test_noise_without_flooding_is_what_the_module_says(ring, key, side, monkeypatch):
    monkeypatch.setattr(key._noise, "gaussian", lambda n, std: np.zeros(n))
    rng = np.random.default_rng(0)
    for values, expected in ((np.zeros(N), 170.0), (rng.normal(size=N), 3.24 * 2**17 * math.sqrt(2))):
        column, off = side.encode(values), []
        for _ in range(60):
            residuals = side.read(key.encrypt(np.zeros(N)))
            reply, mask = side.reply(residuals, column)
            off.append(side.open(key.answer(reply), [mask], np.array([1e6]))[0] * ring.unit)
        assert 0.6 < np.std(off) / expected < 1.5


# ------------------------------------------------------------------------------------------------ the attack


def test_without_a_fresh_encryption_of_zero_one_reply_gives_the_column_and_with_it_does_not(ring, key, side):
    q, rng = ring.modulus, np.random.default_rng(3)
    x = np.clip(rng.normal(size=N), -10, 10)
    (encrypted,), column = side.read(key.encrypt(rng.uniform(-1, 1, N))), side.encode(x)
    inverse = [pow(int(word), -1, q) for word in both_polynomials(seal_io.save(encrypted))[N:]]

    def divided_by_c1(words):
        return [int(word) * factor % q for word, factor in zip(words, inverse, strict=True)]

    bare = divided_by_c1(ring.words(side._product([encrypted], column))[1])
    slots = np.array(ring.encoder.decode_complex(column[0]))
    assert bare == plain_words(column[0])  # all of the encoded column, from one reply
    assert np.abs(np.concatenate([slots.real, -slots.imag]) - x).max() < 1e-3

    real = divided_by_c1(ring.unpack(side.reply([encrypted], column)[0])[1:])
    assert not any(a == b for a, b in zip(real, bare, strict=True))


def test_no_two_replies_to_the_same_have_anything_in_common(ring, key, side):
    residuals, column = side.read(key.encrypt(np.ones(N))), side.encode(np.ones(N))
    first, second = (ring.unpack(side.reply(residuals, column)[0]) for _ in range(2))
    assert not (first == second).any()


def test_what_the_key_holder_opens_is_uniform(ring, key, side, monkeypatch):
    """The opened numbers of one column, in 16 classes by their upper bits: χ² of a sum that is always the same."""
    monkeypatch.setattr(key._noise, "gaussian", lambda n, std: np.zeros(n))
    residuals, column = side.read(key.encrypt(np.ones(N))), side.encode(np.full(N, 3.0))
    opened = key.answer(b"".join(side.reply(residuals, column)[0] for _ in range(480)))
    counts = np.bincount((opened.astype(object) * 16 // ring.modulus).astype(int), minlength=16)
    assert ((counts - 30.0) ** 2 / 30.0).sum() < 50.0  # P = 10^-5 for 15 degrees of freedom


def test_c1_of_replies_is_uniform(ring, key, side):
    residuals, column = side.read(key.encrypt(np.zeros(N))), side.encode(np.zeros(N))
    words = np.concatenate([ring.unpack(side.reply(residuals, column)[0])[1:] for _ in range(8)])
    counts = np.bincount((words >> np.uint64(50)).astype(int), minlength=16)
    expected = len(words) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 50.0


def test_the_mask_comes_from_the_whole_of_the_modulus(ring, key, side, monkeypatch):
    asked = []

    def below(limit):
        asked.append(limit)
        return limit - 1

    monkeypatch.setattr(secrets, "randbelow", below)
    residuals, column = side.read(key.encrypt(np.ones(5))), side.encode(np.ones(5))
    reply, mask = side.reply(residuals, column)
    assert asked == [ring.modulus] and mask == ring.modulus - 1
    assert abs(side.open(key.answer(reply), [mask], np.array([5.0]))[0] - 5.0) < 6 * ring.sigma


# ------------------------------------------------------------------------------------------------ refusals


def test_a_public_key_of_zeros_is_refused(ring, key):
    """With b = 0 and a = 0 Enc(0) would be noise alone; a comes from a seed, so b is what is left to try."""
    for bad in (bytes(ring.public_bytes), bytes(ring.public_bytes - 64) + key.public[-64:]):
        with pytest.raises(BadMessage, match="zeros"):
            ColumnSide(ring, bad)


def test_a_public_key_with_its_second_polynomial_written_out_does_not_fit(ring):
    """Only a seed travels: a full key, whose a could be zero, is twice as long."""
    full = ring.seal.PublicKey()
    ring.seal.KeyGenerator(ring.context).create_public_key(full)
    for words in (
        both_polynomials(seal_io.save(full)),
        np.append(both_polynomials(seal_io.save(full))[:N], np.zeros(N)),
    ):
        with pytest.raises(BadMessage, match="bytes"):
            ColumnSide(ring, pack(words.astype(np.uint64)))


def test_coefficients_beyond_the_modulus_are_refused_everywhere(ring, key, side):
    too_large = ring.modulus.to_bytes(7, "little")
    with pytest.raises(BadMessage, match="modulus"):
        ColumnSide(ring, too_large + key.public[7:])
    with pytest.raises(BadMessage, match="modulus"):
        side.read(too_large + key.encrypt(np.ones(3))[7:])
    with pytest.raises(BadMessage, match="modulus"):
        key.answer(bytes(ring.reply_bytes - 7) + too_large)
    with pytest.raises(BadMessage, match="modulus"):
        side.open(np.array([ring.modulus], dtype=np.uint64), [0], np.ones(1))


def test_residuals_of_zeros_are_refused(ring, side):
    with pytest.raises(BadMessage, match="zeros"):
        side.read(bytes(ring.block_bytes))


def test_answers_under_another_key_are_detected(ring, side):
    """Of eight columns at a tenth of the range: each passes by chance in one of ten cases at most."""
    x = np.random.default_rng(0).uniform(-1, 1, (N, 8))
    with pytest.raises(BadMessage, match="another key"):
        gradient(ring, ResidualKey(ring), side, np.ones(N), x)


@pytest.mark.parametrize("value", [10.01, -10.01, math.nan, math.inf])
def test_features_out_of_range_are_refused(side, value):
    for refuse in (check_features, side.encode):
        with pytest.raises(DataError, match="within ±10"):
            refuse(np.array([0.0, value]))


@pytest.mark.parametrize("value", [1.01, -1.01, math.nan, math.inf])
def test_residuals_out_of_range_are_refused(key, value):
    with pytest.raises(TrainingDiverged, match="within ±1"):
        key.encrypt(np.array([0.0, value]))


def test_a_batch_larger_than_the_ring_is_for_is_refused(ring, key, side):
    with pytest.raises(TrainingDiverged):
        key.encrypt(np.zeros(ring.rows + 1))
    with pytest.raises(DataError):
        side.encode(np.zeros(ring.rows + 1))


def test_rows_and_weights_without_room_in_the_modulus_are_refused():
    for rows in (0, MAX_ROWS + 1):
        with pytest.raises(JobFileError, match=r"vertical\.batch_size"):
            ResidualRing(rows)
    for weight in (0.0, 1025.0, math.nan):
        with pytest.raises(JobFileError, match=r"vertical\.class_weight"):
            ResidualRing(100, weight)


def test_a_parameter_set_under_128_bits_cannot_be_made():
    with pytest.raises(ValueError, match="128 bits"):
        ResidualSet("weak", degree=2048, prime_bits=55, column_bits=17, most_residual_bits=36)
