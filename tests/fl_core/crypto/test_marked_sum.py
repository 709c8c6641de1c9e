"""Sums of marked values under encryption: exact, answers that show no mark, and whatever is wrong refused."""

from __future__ import annotations

import itertools
import math
import os
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import marked_sum as module
from fl_core.crypto import seal_io
from fl_core.crypto.marked_sum import ANSWER_BYTES, CHUNK, MAX_LEAVES, MAX_SUM, MAX_VALUE, Asker, Marker, asked_bytes
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, DataError, UsageError

LEAVES = 240  # thirty trees of eight leaves


@cache
def both():
    asker = Asker()
    return asker, Marker(asker.public)


@pytest.fixture
def asker():
    return both()[0]


@pytest.fixture
def marker():
    return both()[1]


@pytest.fixture
def primes(asker):
    return asker._ring.primes[:2]


def drawn(seed, leaves=LEAVES, share=0.4):
    rng = np.random.default_rng(seed)
    return rng.integers(-MAX_VALUE, MAX_VALUE + 1, leaves).astype(float), rng.random(leaves) < share


def asked_sum(asker, marker, values, marks):
    return asker.open(marker.answer(asker.encrypt(values), marks))


def constant(asker, total):
    """What the asker opens before the last step: the constant coefficient, centred mod q0 · q1."""
    stream, (q0, q1) = seal_io.save(total), asker._ring.primes[:2]
    body = CiphertextForm(stream, words=4 * CHUNK, seeded=False).check(stream)
    words = np.frombuffer(body[-32 * CHUNK :], dtype="<u8").reshape(4, CHUNK)
    rest = []
    for i, prime in enumerate((q0, q1)):
        product = sum(int(a) * int(s) for a, s in zip(words[2 + i], asker._secret[i], strict=True))
        rest.append((int(words[i].sum()) + product) * pow(CHUNK, -1, prime) % prime)
    value = rest[0] + q0 * ((rest[1] - rest[0]) * pow(q0, -1, q1) % q1)
    return value - q0 * q1 if value > q0 * q1 // 2 else value


def unmarked_noise(asker, question, values):
    """(m,) the noise of a question's coefficients: the asker subtracts what it put in."""
    q0 = asker._ring.primes[0]
    c0 = np.empty(len(values), np.uint64)
    module.unpack(question[0], 0, q0, c0)
    a = asker._ring.expand(question[0][-32:])
    product = np.stack([module.multiply(a[i], asker._secret[i], asker._ring.primes[i]) for i in (0, 1)])
    hidden = module._transform().backward(product)[0]
    found = [
        (int(c) + int(h) - (int(v) << module.UNIT_BITS)) % q0
        for c, h, v in zip(c0, hidden, values.tolist(), strict=False)
    ]
    return np.array([v - q0 if v > q0 // 2 else v for v in found])


# ------------------------------------------------------------------------------------------------ right results


@given(st.lists(st.tuples(st.integers(-MAX_VALUE, MAX_VALUE), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_the_sum_is_exact(pairs):
    asker, marker = both()
    values, marks = np.array([v for v, _ in pairs], float), np.array([b for _, b in pairs])
    assert asked_sum(asker, marker, values, marks) == sum(v for v, b in pairs if b)


@pytest.mark.parametrize("leaves", [1, LEAVES, 2400, CHUNK, CHUNK + 1, MAX_LEAVES])
@pytest.mark.parametrize("which", ["all", "none", "last", "some"])
def test_the_sum_is_exact_at_the_extremes(asker, marker, leaves, which):
    """The largest values there are, of one sign, in one ciphertext and in several."""
    marks = {
        "all": np.ones(leaves, bool),
        "none": np.zeros(leaves, bool),
        "last": np.arange(leaves) == leaves - 1,
        "some": np.random.default_rng(leaves).random(leaves) < 0.5,
    }[which]
    for sign in (1, -1):
        values = np.full(leaves, float(sign * min(MAX_VALUE, MAX_SUM // leaves)))
        assert asked_sum(asker, marker, values, marks) == int(values[marks].sum())


def test_each_row_of_a_forest_gets_its_own_sum(asker, marker):
    for seed in range(30):
        values, marks = drawn(seed)
        assert asked_sum(asker, marker, values, marks) == int(values[marks].sum())


def test_sizes_are_those_promised(asker, marker):
    for leaves in (1, LEAVES, CHUNK + 7):
        asked = asker.encrypt(np.ones(leaves))
        assert [len(one) for one in asked] == asked_bytes(leaves)
        assert [len(one) for one in marker.answer(asked, np.ones(leaves, bool))] == [ANSWER_BYTES]
    assert asked_bytes(LEAVES) == [LEAVES * 12 + 32] and len(asker.public) == module.public_bytes()


def test_products_of_polynomials_are_those_of_the_slow_way(asker, marker, primes):
    """c0 and c1 of the product, coefficient by coefficient with whole numbers."""
    _, marks = drawn(3, leaves=20)
    asked = asker.encrypt(np.arange(20.0))
    words = marker.product(asked, marks)
    c1 = asker._ring.expand(asked[0][-32:])
    coefficients, found = module._transform().backward(c1), module._transform().backward(words[2:])
    for i, prime in enumerate(primes):
        slow = [
            sum(
                int(coefficients[i, k + j]) if k + j < CHUNK else -int(coefficients[i, k + j - CHUNK])
                for j in np.flatnonzero(marks)
            )
            % prime
            for k in range(0, CHUNK, 37)
        ]
        assert found[i, ::37].tolist() == slow
        c0 = np.empty(20, np.uint64)
        module.unpack(asked[0], i * 120, prime, c0)
        assert set(words[i].tolist()) == {sum(int(v) for v in c0[marks]) % prime}


def test_transforms_invert_each_other(primes):
    rng = np.random.default_rng(0)
    made = np.stack([rng.integers(0, prime, CHUNK, dtype=np.uint64) for prime in primes])
    assert (module._transform().backward(module._transform().forward(made)) == made).all()


# ------------------------------------------------------------------------------------------------ the flooding


def test_the_noise_of_questions_is_that_of_seal(asker):
    values = np.arange(CHUNK) - 2000.0
    seen = np.concatenate([unmarked_noise(asker, asker.encrypt(values), values) for _ in range(4)])
    assert np.abs(seen).max() <= 21 and abs(seen.mean()) < 0.13  # five standard errors
    assert 0.97 < seen.std() / module.DEVIATION < 1.03


def test_sigma_covers_the_noise_of_all_marks_at_any_size():
    """Forty bits: 2^39 times six deviations of the largest sum there can be, hence of every smaller one."""
    largest = 6 * math.sqrt(10.5 * MAX_LEAVES)  # of 21 coins less 21
    assert 0.99 < module.SIGMA / (largest * 2.0**39) < 1.01
    sums = module._noise(100 * LEAVES).reshape(100, LEAVES).sum(axis=1)
    assert np.abs(sums).max() * 2.0**43 < module.SIGMA


def test_a_quarter_of_a_unit_is_sixteen_deviations(primes):
    rounding = math.sqrt((1 + 2 * CHUNK / 3) / 12)  # of c0, and of c1 times a ternary key
    unit = 2.0**module.UNIT_BITS / primes[1]
    assert unit / 4 > 16 * math.hypot(module.SIGMA / primes[1], rounding)
    assert MAX_SUM * unit < primes[0] / 2 - unit


@pytest.mark.parametrize("marked", [0, LEAVES])
def test_the_flood_is_the_same_whatever_is_marked(asker, marker, marked, primes):
    product, seen = marker.product(asker.encrypt(np.ones(LEAVES)), np.arange(LEAVES) < marked), []
    for _ in range(100):
        words = product.copy()
        before = [int(row[0]) for row in words[:2]]
        marker.flood(words)
        assert all(len(set(row.tolist())) == 1 for row in words[:2])
        moved = [(int(row[0]) - b) % p for row, b, p in zip(words, before, primes, strict=False)]
        value = moved[0] + primes[0] * ((moved[1] - moved[0]) * pow(primes[0], -1, primes[1]) % primes[1])
        seen.append(value - primes[0] * primes[1] if value > primes[0] * primes[1] // 2 else value)
    assert 0.7 < np.std([float(v) for v in seen]) / module.SIGMA < 1.3  # four standard errors
    assert 25 < sum(v & 1 for v in seen) < 75


def test_an_answer_without_marks_is_like_any_other(asker, marker, primes):
    values, _ = drawn(0)
    asked = asker.encrypt(values)
    answers = [marker.answer(asked, np.zeros(LEAVES, bool))[0] for _ in range(2)]
    assert [len(a) for a in answers] == [ANSWER_BYTES] * 2
    c1 = np.empty((2, CHUNK), np.uint64)
    for row, answer in zip(c1, answers, strict=True):
        module.unpack(answer, 6, primes[0], row)
        assert abs(row.mean() / primes[0] - 0.5) < 0.03 and abs(row.std() / primes[0] - 12**-0.5) < 0.02
    assert (c1[0] == c1[1]).mean() < 0.01


# ------------------------------------------------------------------------------------------------ attacks


def divided(asker, asked, words):
    """c1 of an answer over c1 of the question, word by word, as coefficients: the asker's attack."""
    factor = []
    for i, prime in enumerate(asker._ring.primes[:2]):
        a = asker._ring.expand(asked[0][-32:])[i]
        factor.append([int(w) * pow(int(v), -1, prime) % prime for w, v in zip(words[2 + i], a, strict=True)])
    return module._transform().backward(np.array(factor, np.uint64))[0]


def test_without_enc_zero_one_answer_gives_all_marks_and_with_it_none(asker, marker):
    values, marks = drawn(1)
    asked = asker.encrypt(values)
    words = marker.product(asked, marks)
    marker.flood(words)  # flooded, and yet
    found = divided(asker, asked, words)
    assert ((found[(-np.arange(LEAVES)) % CHUNK] != 0) == marks).all() and np.count_nonzero(found) == marks.sum()
    stream = seal_io.save(marker.rerandomise(words))
    body = CiphertextForm(stream, words=4 * CHUNK, seeded=False).check(stream)
    found = divided(asker, asked, np.frombuffer(body[-32 * CHUNK :], "<u8").reshape(4, CHUNK))
    assert np.count_nonzero(found) > CHUNK - 3


def paths(seed, trees=4):
    """Marks of some trees of two leaves of equal weight, and all there could be: the sum tells nothing."""
    leaves = np.array(list(itertools.product([False, True], repeat=trees)))
    candidates = np.stack([leaves, ~leaves], axis=2).reshape(len(leaves), -1)
    return np.full(2 * trees, 7.0), candidates, candidates[seed % len(leaves)]


def test_without_enc_zero_what_is_sent_tells_the_path_and_with_it_not(asker, marker, monkeypatch):
    """Division by a prime does not help: the asker makes the answer for each path that there could be."""
    values, candidates, marks = paths(11)
    asked = asker.encrypt(values)

    def fits(answer):
        made = [marker.cut(asker._ring.ciphertext(marker.product(asked, one))) for one in candidates]
        return [one[6:] == answer[6:] for one in made]

    assert not any(fits(marker.answer(asked, marks)[0]))
    monkeypatch.setattr(Marker, "rerandomise", lambda self, words: self._ring.ciphertext(words))
    answer = marker.answer(asked, marks)
    assert asker.open(answer) == 28
    assert [candidates[i].tolist() for i in np.flatnonzero(fits(answer[0]))] == [marks.tolist()]


def noise_and_guesses(asker, marker, values, marks, other):
    """Of one answer, re-randomised: its noise, and what the noise would be by the right marks and by others."""
    asked = asker.encrypt(values)
    words = marker.product(asked, marks)
    marker.flood(words)
    seen = constant(asker, marker.rerandomise(words)) - (int(values[marks].sum()) << module.UNIT_BITS)
    noise = unmarked_noise(asker, asked, values)
    return float(seen), float(noise[marks].sum()), float(noise[other].sum())


def test_without_flooding_the_noise_tells_the_path_and_with_it_not(asker, marker, monkeypatch):
    """Two paths of the same sum, re-randomised answers to the same row: whose noise is it?"""
    marks = np.arange(LEAVES) % 2 == 0
    values = np.full(LEAVES, 5.0)
    seen, right, wrong = np.array([noise_and_guesses(asker, marker, values, marks, ~marks) for _ in range(12)]).T
    assert np.abs(seen).min() > 2.0**30 and np.abs(np.concatenate([right, wrong])).max() < 2.0**9
    assert 0.2 < np.sqrt((seen**2).mean()) / module.SIGMA < 3
    by_right, by_wrong = ((seen - guess) ** 2 for guess in (right, wrong))
    assert abs(by_right.sum() / by_wrong.sum() - 1) < 2.0**-30  # no likelihood to choose by
    monkeypatch.setattr(module, "SIGMA", 0.0)
    monkeypatch.setattr(module, "NARROW", 0.0)
    seen, right, wrong = np.array([noise_and_guesses(asker, marker, values, marks, ~marks) for _ in range(30)]).T
    assert np.sqrt(((seen - right) ** 2).mean()) < 40  # what Enc_pk(0) adds
    assert ((seen - right) ** 2).sum() < ((seen - wrong) ** 2).sum() / 2


def test_without_either_as_many_answers_as_leaves_are_a_linear_system(asker, marker, monkeypatch):
    monkeypatch.setattr(module, "SIGMA", 0.0)
    monkeypatch.setattr(module, "NARROW", 0.0)
    monkeypatch.setattr(Marker, "rerandomise", lambda self, words: self._ring.ciphertext(words))
    values, marks = drawn(4, leaves=12)
    system, right = [], []
    for _ in range(16):
        asked = asker.encrypt(values)
        words = marker.product(asked, marks)
        marker.flood(words)
        right.append(constant(asker, marker.rerandomise(words)) - (int(values[marks].sum()) << module.UNIT_BITS))
        system.append(unmarked_noise(asker, asked, values))
    found = np.linalg.lstsq(np.array(system, float), np.array(right, float), rcond=None)[0]
    assert (np.rint(found) == marks).all() and np.abs(found - marks).max() < 1e-6


def test_two_questions_of_the_same_values_share_nothing(asker):
    values, _ = drawn(0, leaves=1000)
    first, second = (np.frombuffer(asker.encrypt(values)[0], dtype="<u2") for _ in range(2))
    assert (first == second).mean() < 0.01
    counts = np.bincount(np.frombuffer(asker.encrypt(np.zeros(1000))[0][:4000], np.uint8), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 400  # 255 ± 23


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(0), "1 to 131072"),
        (np.zeros(MAX_LEAVES + 1), "1 to 131072"),
        (np.zeros((2, 2)), "1 to 131072"),
        (np.array([0.5]), "whole, within ±1048576"),
        (np.array([1.0, np.nan]), "whole, within"),
        (np.array([np.inf]), "whole, within"),
        (np.array([MAX_VALUE + 1.0]), "whole, within"),
        (np.full(MAX_SUM // MAX_VALUE + 1, float(MAX_VALUE)), "up to 8589934592"),
    ],
)
def test_values_without_room_are_refused(asker, values, said):
    with pytest.raises(DataError, match="values: ") as caught:
        asker.encrypt(values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("marks", [np.ones(3), np.ones(0, bool), np.ones((1, 3), bool), np.ones(MAX_LEAVES + 1, bool)])
def test_marks_that_are_none_are_refused(asker, marker, marks):
    with pytest.raises(UsageError, match="of type bool"):
        marker.answer(asker.encrypt(np.ones(3)), marks)


@pytest.mark.parametrize("change", ["none", "cut", "longer", "fewer", "more", "modulus", "zeros", "random"])
def test_what_is_no_question_is_refused(asker, marker, change):
    leaves = CHUNK + 240
    good = asker.encrypt(np.ones(leaves))
    bad = {
        "none": [],
        "cut": [good[0], good[1][:-1]],
        "longer": [good[0] + b"\0", good[1]],
        "fewer": good[:1],
        "more": [*good, good[1]],
        "modulus": [b"\xff" * len(good[0]), good[1]],
        "zeros": [bytes(len(good[0])), good[1]],
        "random": [os.urandom(len(good[0])), good[1]],
    }[change]
    with pytest.raises(BadMessage):
        marker.answer(bad, np.ones(leaves, bool))
    with pytest.raises(BadMessage):
        marker.answer(good, np.ones(leaves - 1, bool))


def test_what_is_no_answer_is_refused(asker, marker):
    (good,) = marker.answer(asker.encrypt(np.ones(5)), np.ones(5, bool))
    beyond = b"\xff" * 6
    for bad in (
        [],
        [good, good],
        [good[:-1]],
        [good + b"\0"],
        [beyond + good[6:]],
        [good[:6] + b"\xff" * (ANSWER_BYTES - 6)],
    ):
        with pytest.raises(BadMessage):
            asker.open(bad)
    with pytest.raises(BadMessage, match="zeros"):
        asker.open([bytes(ANSWER_BYTES)])


def test_most_answers_under_a_foreign_key_are_noticed(asker):
    other, noticed = Marker(Asker().public), 0
    for _ in range(30):
        try:
            asked_sum(asker, other, np.ones(5), np.ones(5, bool))
        except BadMessage:
            noticed += 1
    assert noticed >= 8  # 22 ± 2


def test_what_is_no_public_key_is_refused(asker):
    size = len(asker.public)
    for bad in (
        b"",
        bytes(size),
        asker.public[:-1],
        asker.public + b"\0",
        b"\xff" * size,
        bytes(size - 64) + asker.public[-64:],
    ):
        with pytest.raises(BadMessage):
            Marker(bad)
