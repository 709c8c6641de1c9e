"""Linear models on encrypted features: right scores, answers that show no weight, and whatever is wrong refused."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import linear_inference as module
from fl_core.crypto import seal_io
from fl_core.crypto.linear_inference import ClientKey, ModelSide, PublicKey, block_rows, fits
from fl_core.crypto.linear_ring import (
    CKKS_LINEAR,
    CKKS_LINEAR_LABELS,
    CKKS_LINEAR_MANY,
    FEATURE_LIMIT,
    LinearSet,
    multiply,
    open_ring,
    uniform,
)
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, DataError, UsageError

N = CKKS_LINEAR.degree
D = 12


@pytest.fixture(scope="module")
def ring():
    return open_ring("CKKS_LINEAR")


@pytest.fixture(scope="module")
def key(ring):
    return ClientKey(ring)


@pytest.fixture(scope="module")
def public(ring, key):
    return PublicKey(ring, key.public)


def model_of(ring, outputs=1, features=D, seed=0, bias=True, **more):
    rng = np.random.default_rng(seed)
    return ModelSide(ring, rng.normal(size=(outputs, features)), rng.normal(size=outputs) * bias, **more)


def summed(model, columns):
    sums = model.begin()
    for column in columns:
        model.add(sums, column)
    return sums


def scores(model, key, public, x):
    answers = model.finish(summed(model, key.encrypt_columns(x)), public, len(x))
    return np.stack([key.open_columns(answer, len(x), model.bits) for answer in answers], axis=1)


def words(ciphertext, rows=4):
    """(rows, N) words of a ciphertext: polynomial 0 under each prime, then polynomial 1."""
    stream = seal_io.save(ciphertext)
    body = CiphertextForm(stream, words=rows * N, seeded=False).check(stream)
    return np.frombuffer(body[-8 * rows * N :], dtype="<u8").reshape(rows, N)


def opened(ring, key, ciphertext):
    """Everything that the key's owner sees in a ciphertext: (N,) reals."""
    plaintext = ring.seal.Plaintext()
    key._decryptor.decrypt(ciphertext, plaintext)
    slots = np.array(ring.encoder.decode_complex(plaintext))
    return np.concatenate([slots.real, slots.imag])


def loaded(ring, columns):
    return [ring.ciphertext(ring.read_column(column)) for column in columns]


# ------------------------------------------------------------------------------------------------ right results


@pytest.mark.parametrize("rows", [1, 2048, 2049, N])
def test_scores_of_columns_are_those_of_the_model(ring, key, public, rows):
    model = model_of(ring, outputs=3)
    x = np.random.default_rng(rows).normal(size=(rows, D))
    assert np.abs(scores(model, key, public, x) - (x @ model.weights.T + model.bias)).max() < 5e-4


def test_a_model_of_one_small_weight_is_served(ring, key, public):
    """SEAL refuses scales near the modulus, which small weights would reach."""
    for weight in (1e-12, 1e-3, 0.02):
        model = ModelSide(ring, np.array([[weight]]), np.array([-weight]))
        x = np.linspace(-3, 3, 7)[:, None]
        assert np.abs(scores(model, key, public, x) - (x * weight - weight)).max() < 5e-4


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_the_score_of_a_row_is_that_of_the_model(features, outputs, seed):
    ring = open_ring("CKKS_LINEAR")
    key, rng = ClientKey(ring), np.random.default_rng(seed)
    model = model_of(ring, outputs, features, seed)
    row = rng.uniform(-FEATURE_LIMIT, FEATURE_LIMIT, features)
    answers = model.answer_row(key.encrypt_row(row), PublicKey(ring, key.public))
    found = [key.open_row(answer, model.row_bits) for answer in answers]
    assert np.abs(found - (model.weights @ row + model.bias)).max() < 1e-2  # of scores of some hundreds


def test_the_set_for_many_answers_is_as_exact_as_it_says(ring):
    many = open_ring("CKKS_LINEAR_MANY")
    key, model = ClientKey(many), model_of(many)
    x = np.random.default_rng(3).normal(size=(N, D))
    public = PublicKey(many, key.public)
    assert np.abs(scores(model, key, public, x) - (x @ model.weights.T + model.bias)).max() < 1.5e-2
    row = model.answer_row(key.encrypt_row(x[0]), public)[0]
    assert abs(key.open_row(row, model.row_bits) - (model.weights @ x[0] + model.bias)[0]) < 1.5e-2


def test_the_largest_columns_that_fit_do_not_overflow(ring, key, public):
    """Every feature at the limit, all of one sign: the constant coefficient is as large as it can be."""
    model = ModelSide(ring, np.full((1, D), 0.9), np.array([2.0]))
    x = np.full((N, D), module.COLUMN_LIMIT / 2)
    assert np.abs(scores(model, key, public, x) - (x.sum(axis=1, keepdims=True) * 0.9 + 2)).max() < 5e-3
    assert fits(ring, x) and not fits(ring, x * 1.01) and not fits(ring, np.vstack([x, x[:1]]))
    with pytest.raises(DataError, match="fewer rows"):
        key.encrypt_columns(x * 1.01)


def test_weights_without_room_are_refused_and_large_ones_get_a_smaller_scale(ring):
    small, large = (ModelSide(ring, np.full((1, D), w), np.zeros(1)).bits for w in (0.5, 50.0))
    assert 0 < large < small <= 24
    with pytest.raises(UsageError, match="do not fit CKKS_LINEAR"):
        ModelSide(ring, np.full((1, D), 1e5), np.zeros(1))
    with pytest.raises(UsageError, match="not finite"):
        ModelSide(ring, np.full((1, D), np.nan), np.zeros(1))


def test_a_model_of_zeros_answers_its_bias(ring, key, public):
    model = ModelSide(ring, np.zeros((1, 3)), np.array([1.5]))
    x = np.ones((5, 3))
    assert np.abs(scores(model, key, public, x) - 1.5).max() < 1e-3
    assert abs(key.open_row(model.answer_row(key.encrypt_row(x[0]), public)[0], model.row_bits) - 1.5) < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, FEATURE_LIMIT * 1.001])
def test_a_feature_out_of_range_is_refused(key, bad):
    x = np.zeros((3, 2))
    x[1, 1] = bad
    with pytest.raises(DataError, match="allowed: finite, within ±64"):
        key.encrypt_columns(x)
    with pytest.raises(DataError, match="allowed: finite, within ±64"):
        key.encrypt_row(x[1])


# ------------------------------------------------------------------------------------------------ protections


def test_rows_beyond_those_declared_are_drowned(ring, key, public):
    """A client that declares one row and fills all slots: what it finds there is noise of a hundred scores."""
    model = model_of(ring)
    x = np.random.default_rng(5).normal(size=(N, D))
    (answer,) = model.finish(summed(model, key.encrypt_columns(x)), public, 1)
    found, true = key.open_columns(answer, N, model.bits), (x @ model.weights.T + model.bias)[:, 0]
    assert abs(found[0] - true[0]) < 5e-4
    assert (found[1:] - true[1:]).std() > 20 * true.std()


def test_output_noise_has_the_deviation_asked_for(ring, key, public):
    model = model_of(ring, output_noise=0.3)
    x = np.zeros((N, D))
    found = scores(model, key, public, x)[:, 0] - model.bias[0]
    assert 0.95 < found.std() / 0.3 < 1.05
    rows = [key.open_row(model.answer_row(key.encrypt_row(x[0]), public)[0], model.row_bits) for _ in range(60)]
    assert 0.7 < np.std(rows) / 0.3 < 1.3


def test_labels_only_keeps_signs_and_gives_every_row_another_factor():
    ring = open_ring("CKKS_LINEAR_LABELS")
    key, model = ClientKey(ring), model_of(ring)
    public, x = PublicKey(ring, key.public), np.random.default_rng(2).normal(size=(block_rows(ring), D))
    true = (x @ model.weights.T + model.bias)[:, 0]
    clear = np.abs(true) > 0.05
    first, second = (scores(model, key, public, x)[:, 0] for _ in range(2))
    assert clear.mean() > 0.9 and (np.sign(first) == np.sign(true))[clear].all()
    factors = first[clear] / true[clear]
    assert 0.05 < factors.min() < 0.3 and 0.7 < factors.max() < 1.2
    assert abs(np.corrcoef(factors, second[clear] / true[clear])[0, 1]) < 0.1
    row = int(np.argmax(true))
    found = [key.open_row(model.answer_row(key.encrypt_row(x[row]), public)[0], model.row_bits) for _ in range(12)]
    assert min(found) > 0.1 * true[row] and max(found) < 1.01 * true[row] and np.std(found) > 0.05 * true[row]


def test_labels_of_several_classes_or_with_noise_are_refused():
    ring = open_ring("CKKS_LINEAR_LABELS")
    for more in ({"outputs": 2}, {"output_noise": 0.1}):
        with pytest.raises(UsageError, match="labels only"):
            model_of(ring, **more)


# ------------------------------------------------------------------------------------------------ the flooding


def flooding(ring, model, public, count):
    """Constant coefficients of `count` floodings, exact: from the transform's words, by the Chinese remainder."""
    q0, q1 = ring.primes[:2]
    found = []
    for _ in range(count):
        total = public.zero()
        total.scale = ring.feature_scale * 2.0**model.bits
        before = words(total)
        model.flood(total, 0)
        after = words(total)
        parts = [
            (sum(map(int, after[i])) - sum(map(int, before[i]))) * pow(N, -1, q) % q for i, q in ((0, q0), (1, q1))
        ]
        value = parts[0] + q0 * ((parts[1] - parts[0]) * pow(q0, -1, q1) % q1)
        found.append(value - q0 * q1 if value > q0 * q1 // 2 else value)
    return found


def test_the_flooding_has_the_stated_deviation_and_no_empty_bits(ring, public, monkeypatch):
    model = model_of(ring)
    found = flooding(ring, model, public, 200)
    assert 0.8 < np.std([float(v) for v in found]) / model.sigma[0] < 1.2  # 4 standard errors
    assert 60 < sum(v & 1 for v in found) < 140
    monkeypatch.setattr(module, "NARROW", 0.0)
    assert all(v % 64 == 0 for v in flooding(ring, model, public, 20))  # the trap that the narrow layer is for


def test_sigma_is_what_forty_bits_take(ring, key):
    """From real noise: ‖Σ w e‖ of ciphertexts of zeros, times 2^39 and, for many answers, 2^10."""
    for name, more in (("CKKS_LINEAR", 0), ("CKKS_LINEAR_MANY", 10)):
        ring = open_ring(name)
        key, model = ClientKey(ring), model_of(ring, bias=False)
        public = PublicKey(ring, key.public)
        total = model.total(summed(model, key.encrypt_columns(np.zeros((1, D)))), 0, public)
        # (1/√N) Σ |slot|² over both halves is the norm of the coefficients
        norm = np.linalg.norm(opened(ring, key, total)) * total.scale * np.sqrt(2 / N)
        assert 1.0 <= model.sigma[0] / (norm * 2.0 ** (39 + more)) < 2.5


def test_the_masked_row_is_uniform_but_for_its_constant(ring):
    plaintext = ring.polynomial(-12345)
    assert ring.constant(plaintext) == -12345
    drawn = np.array([plaintext.data(i) for i in range(2 * N)], dtype=float).reshape(2, N)
    for row, prime in zip(drawn, ring.primes, strict=False):
        assert 0.45 < row.mean() / prime < 0.55 and 0.26 < row.std() / prime < 0.32
    low = uniform(20000, 5)
    assert set(low.tolist()) == {0, 1, 2, 3, 4} and np.bincount(low.astype(int)).min() > 3600


def test_a_row_shows_nothing_but_its_score(ring, key, public):
    """Two rows of the same score: whatever else the key's owner opens is uniform for both."""
    model = ModelSide(ring, np.array([[1.0, 2.0]]), np.zeros(1))
    for row in ([2.0, 0.0], [0.0, 1.0]):
        (answer,) = model.answer_row(key.encrypt_row(np.array(row)), public)
        plaintext = key._decrypt(answer)
        seen = np.array([plaintext.data(i) for i in range(N)], dtype=float) / ring.primes[0]
        assert abs(seen.mean() - 0.5) < 0.03 and abs(seen.std() - 12**-0.5) < 0.02


# ------------------------------------------------------------------------------------------------ attacks


def solve(system, right, prime):
    """The unknowns of a square system mod a prime."""
    table = [[*map(int, row), int(value)] for row, value in zip(system, right, strict=True)]
    for i in range(len(table)):
        pivot = next(j for j in range(i, len(table)) if table[j][i])
        table[i], table[pivot] = table[pivot], table[i]
        inverse = pow(table[i][i], -1, prime)
        table[i] = [value * inverse % prime for value in table[i]]
        for j in range(len(table)):
            if j != i:
                table[j] = [(a - table[j][i] * b) % prime for a, b in zip(table[j], table[i], strict=True)]
    return [row[-1] for row in table]


def weights_by_linear_solve(ring, model, columns, total):
    """The client's attack on the second polynomial: D equations of it are enough."""
    prime = ring.primes[0]
    sent = np.stack([words(c)[2] for c in loaded(ring, columns)], axis=1)
    found = solve(sent[:D], words(total)[2][:D], prime)
    return np.array([v - prime if v > prime // 2 else v for v in found], dtype=float) / 2.0**model.bits


def test_without_enc_zero_a_linear_solve_gives_all_weights_and_with_it_none(ring, key, public):
    model = model_of(ring)
    columns = key.encrypt_columns(np.random.default_rng(1).normal(size=(N, D)))
    total = model.total(summed(model, columns), 0, public)
    model.add_bias(total, 0)
    model.flood(total, 0)
    model.blind(total, 10)
    found = weights_by_linear_solve(ring, model, columns, total)
    assert np.abs(found - model.weights[0]).max() < 2.0**-model.bits  # flooded, and yet
    model.rerandomise(total, public)
    found = weights_by_linear_solve(ring, model, columns, total)
    assert np.abs(found).min() > 1000


def weights_by_regression(ring, key, model, columns, ciphertext):
    """The client's attack on the noise: it opens its own ciphertexts and the answer, and fits one to the others."""
    known = np.stack([opened(ring, key, c) for c in loaded(ring, columns)], axis=1)
    return np.linalg.lstsq(known, opened(ring, key, ciphertext), rcond=None)[0]


def test_without_flooding_one_row_gives_all_weights_and_with_it_none(ring, key, public):
    model = model_of(ring, bias=False)
    columns = key.encrypt_columns(np.zeros((1, D)))
    total = model.total(summed(model, columns), 0, public)
    model.rerandomise(total, public)
    found = weights_by_regression(ring, key, model, columns, total)
    assert np.abs(found - model.weights[0]).max() < 1e-3  # re-randomised, and yet
    model.flood(total, 0)
    found = weights_by_regression(ring, key, model, columns, total)
    assert np.abs(found - model.weights[0]).min() > 1000


def test_both_attacks_fail_on_a_real_answer(ring, key, public):
    model = model_of(ring, bias=False)
    columns = key.encrypt_columns(np.zeros((1, D)))
    (answer,) = model.finish(summed(model, columns), public, 1)
    total = ring.answer_form.load(ring.seal.Ciphertext(), answer)
    found = weights_by_regression(ring, key, model, columns, total)
    assert np.abs(found - model.weights[0]).min() > 1000
    sent = np.stack([words(c)[2] for c in loaded(ring, columns)], axis=1)
    received = words(total, rows=2)[1]
    first, second = (solve(sent[at : at + D], received[at : at + D], ring.primes[0]) for at in (0, D))
    assert not set(first) & set(second)


def test_without_enc_zero_a_division_gives_the_weights_of_a_row_and_with_it_not(ring, key, public):
    """c1 · W over c1, word by word: the encoded weights, which decode."""
    model, prime = model_of(ring), ring.primes[0]
    row = loaded(ring, [key.encrypt_row(np.ones(D))])[0]
    total = model.inner_product(row, 0, 1.0, public)
    model.mask(total, 0, 1.0)
    encoded = ring.encode(model.weights[0], 2.0**model.row_bits)
    true = [encoded.data(i) for i in range(0, N, 101)]

    def divided():
        return [int(u) * pow(int(v), -1, prime) % prime for u, v in zip(words(total)[2, ::101], words(row)[2, ::101])]

    assert divided() == true
    model.rerandomise(total, public)
    assert not set(divided()) & set(true)


def test_a_row_without_flooding_shows_its_noise_and_with_it_not(ring, key, public, monkeypatch):
    """A row's answers: their spread is the flooding, 2^40 times what the noise alone would leave."""
    model = model_of(ring, bias=False)
    row = key.encrypt_row(np.zeros(D))
    unit = ring.feature_scale * 2.0**model.row_bits * 2 / N
    found = [key.open_row(model.answer_row(row, public)[0], model.row_bits) * unit for _ in range(60)]
    assert 0.7 < np.std(found) / model.row_sigma[0] < 1.3


# ------------------------------------------------------------------------------------------------ refusals


def test_a_public_key_of_zeros_is_refused(ring, key):
    size = ring.public_form.bytes
    seed = key.public[-64:]
    for data in (bytes(size), bytes(size - 64) + seed, key.public[: 6 * N] + bytes(size - 64 - 6 * N) + seed):
        with pytest.raises(BadMessage, match="zeros"):
            PublicKey(ring, data)


def test_a_secret_key_in_place_of_a_public_one_is_refused(ring):
    secret = ring.seal.KeyGenerator(ring.context).secret_key()
    with pytest.raises(BadMessage, match="bytes, not"):
        PublicKey(ring, seal_io.save(secret))
    unseeded = ring.seal.PublicKey()
    ring.seal.KeyGenerator(ring.context).create_public_key(unseeded)
    with pytest.raises(BadMessage, match="bytes, not"):
        PublicKey(ring, seal_io.save(unseeded))


@pytest.mark.parametrize("change", ["empty", "cut", "longer", "oversized", "modulus", "stream", "zeros"])
def test_what_is_no_ciphertext_is_refused(ring, key, public, change):
    model, good = model_of(ring), key.encrypt_row(np.ones(D))
    full = ring.seal.Ciphertext()
    key._encryptor.encrypt_symmetric(ring.encode(np.ones(1), ring.feature_scale), full)
    bad = {
        "empty": b"",
        "cut": good[:-1],
        "longer": good + b"\0",
        "oversized": good * 40,
        "modulus": b"\xff" * len(good),
        "stream": seal_io.save(full),
        "zeros": bytes(len(good)),
    }[change]
    with pytest.raises(BadMessage):
        model.answer_row(bad, public)
    with pytest.raises(BadMessage):
        model.add(model.begin(), bad)


def test_random_bytes_of_the_right_size_never_crash(ring, public):
    """Half of them have a coefficient beyond the modulus; whatever passes is a ciphertext of nothing."""
    rng, model = np.random.default_rng(0), model_of(ring)
    for _ in range(3):
        with pytest.raises(BadMessage, match="beyond the modulus"):
            model.answer_row(rng.bytes(ring.column_bytes), public)


def test_answers_to_a_foreign_ciphertext_are_noticed_by_the_client(ring, key, public):
    model, other = model_of(ring), ClientKey(ring)
    x = np.ones((100, D))
    answers = model.finish(summed(model, other.encrypt_columns(x)), public, 100)
    with pytest.raises(BadMessage, match="another key"):
        key.open_columns(answers[0], 100, model.bits)
    with pytest.raises(BadMessage, match="bytes, not"):
        key.open_columns(answers[0][:-1], 100, model.bits)


def test_missing_and_surplus_columns_and_rows_are_refused(ring, key, public):
    model = model_of(ring)
    columns = key.encrypt_columns(np.ones((3, D)))
    with pytest.raises(BadMessage, match="more than"):
        summed(model, [*columns, columns[0]])
    with pytest.raises(BadMessage, match=f"{D - 1} columns, not {D}"):
        model.finish(summed(model, columns[:-1]), public, 3)
    for rows in (0, N + 1):
        with pytest.raises(BadMessage, match="rows in a block"):
            model.finish(summed(model, columns), public, rows)


def test_a_set_below_128_bits_of_security_cannot_be_made():
    with pytest.raises(ValueError, match="under 128 bits"):
        LinearSet("WEAK", feature_bits=70, answers=1, prime_bits=(46, 48, 16))
    assert {s.prime_bits for s in (CKKS_LINEAR, CKKS_LINEAR_MANY, CKKS_LINEAR_LABELS)} == {(46, 47, 16)}
    with pytest.raises(UsageError, match="parameter set"):
        open_ring("CKKS_2048")


# ------------------------------------------------------------------------------------------------ arithmetic


@given(st.sampled_from([70368743669761, 140737488273409]), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_products_mod_a_prime_are_exact(prime, seed):
    a, b = np.random.default_rng(seed).integers(0, prime, (2, 200), dtype=np.uint64)
    a[:3], b[1:4] = [0, prime - 1, prime - 1], [prime - 1, 0, 1]
    assert multiply(a, b, prime).tolist() == [int(u) * int(v) % prime for u, v in zip(a, b, strict=True)]


def test_sums_of_the_largest_weights_are_exact(ring, key, public):
    """Against whole numbers: Σ w c of every word, with weights of both signs as large as head-room allows."""
    model = ModelSide(ring, np.array([[5e3, -5e3, 3e-2]]), np.zeros(1))
    columns = key.encrypt_columns(np.ones((2, 3)))
    total = words(model.total(summed(model, columns), 0, public))
    whole = [round(w * 2**model.bits) for w in model.weights[0]]
    read = [ring.read_column(column) for column in columns]
    for i, prime in enumerate(ring.primes[:2] * 2):
        slow = [sum(w * int(c[i, j]) for w, c in zip(whole, read, strict=True)) % prime for j in range(0, N, 97)]
        assert total[i, ::97].tolist() == slow


def test_expanded_words_are_those_of_the_cipher_below_the_prime(ring, monkeypatch):
    """With primes of which a quarter of all words is beyond, the ones beyond are left out, in order."""
    monkeypatch.setattr(ring, "primes", [3 << 44, 3 << 45])
    monkeypatch.setattr("fl_core.crypto.linear_ring._SPARE", N)
    found = ring.expand(b"k" * 32)
    stream = Cipher(algorithms.AES(b"k" * 32), modes.CTR(bytes(16))).encryptor().update(bytes(32 * N))
    drawn = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 32 * N, 8)]
    for row, half, prime in zip(found, (drawn[: 2 * N], drawn[2 * N :]), ring.primes, strict=True):
        low = [word % 2 ** prime.bit_length() for word in half]
        assert row.tolist() == [word for word in low if word < prime][:N]


def test_two_ciphertexts_of_one_row_share_nothing(key):
    first, second = (np.frombuffer(key.encrypt_row(np.ones(D)), dtype="<u4") for _ in range(2))
    assert (first == second).mean() < 0.01


def test_noise_of_ciphertexts_is_that_of_seal(ring, key):
    """Deviation 3.24 in every coefficient: what the flooding is measured by."""
    (ciphertext,) = loaded(ring, [key.encrypt_row(np.zeros(D))])
    found = opened(ring, key, ciphertext) * ring.feature_scale / np.sqrt(N / 2)
    assert 0.9 < found.std() / 3.24 < 1.1
