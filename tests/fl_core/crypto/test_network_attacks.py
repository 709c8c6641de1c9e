"""What a client that knows its key and its noise can learn of a network, with each defence off and on."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.crypto import network_inference as module
from fl_core.crypto.network_inference import NetworkSide, whole_gaussian
from fl_core.crypto.network_keys import column_unit, row_unit
from fl_core.crypto.network_ring import DEGREE, open_network_ring
from tests.fl_core.crypto.network_cases import (
    SLOTS,
    by_columns,
    by_row,
    exact_coefficients,
    network,
    opened,
    parties,
    plain,
    summed,
)

SIZES = (4, 3, 2)
FIRST, (LAST, _) = network(SIZES)
LAYERS = [FIRST, (LAST, -LAST @ FIRST[1] ** 2)]  # a row of zeros has outputs of zero: noise is all that is seen of it


@pytest.fixture(scope="module")
def ring():
    return open_network_ring("CKKS_NETWORK")


@pytest.fixture(scope="module")
def held(ring):
    return parties(ring, LAYERS)


def sent(ring, side, key, row):
    return ring.ciphertext(ring.read(key.encrypt_row(row, side.layout)))


# ------------------------------------------------------------------------------------------------ second polynomial


def test_without_enc_zero_a_division_gives_the_last_layer_of_a_row_and_with_it_not(ring, held):
    """A client that knows the first layer computes its square itself; c1 over its c1 is what it was multiplied with."""
    side, key, keys = held
    (first, last), row = LAYERS, sent(ring, side, key, np.ones(4))
    guess = NetworkSide(ring, [first, (np.ones((2, 3)), last[1])])
    guess.row_scales = side.row_scales
    guess._encode_rows()
    known, prime = ring.plaintext_words(guess._last)[0, ::101], ring.primes[0]
    own = ring.words(guess.evaluate(row, keys))[1, 0, ::101]
    true = ring.plaintext_words(side._last)[0, ::101]

    def divided(total):
        pairs = zip(ring.words(total)[1, 0, ::101].tolist(), own.tolist(), known.tolist(), strict=True)
        return [u * w * pow(v, -1, prime) % prime for u, v, w in pairs]

    total = side.evaluate(row, keys)
    assert divided(total) == true.tolist()
    ring.evaluator.add_inplace(total, keys.zero(ring.context.first_parms_id()))
    assert not set(divided(total)) & set(true.tolist())


def test_without_enc_zero_a_right_guess_at_the_network_shows_and_with_it_not(ring, held):
    """Everything before Enc(0) repeats, so a client can try models; words of the second polynomial tell."""
    side, key, keys = held
    row, columns = sent(ring, side, key, np.ones(4)), list(key.encrypt_columns(np.ones((3, 4))))
    wrong = NetworkSide(ring, network(SIZES, seed=1))

    def second(model, randomise):
        one, others = ring.reduce(model.evaluate(row, keys), 2), model.outputs(summed(model, columns), keys)
        for total in [one, *others] if randomise else []:
            model.rerandomise(total, keys)
        return [ring.words(total)[1] for total in (one, *others)]

    for real, right, bad in zip(second(side, False), second(side, False), second(wrong, False), strict=True):
        assert (real == right).all() and (real == bad).mean() < 0.01
    for real, right in zip(second(side, True), second(side, False), strict=True):
        assert (real == right).mean() < 0.01


def test_real_answers_to_one_message_share_nothing(held):
    side, key, keys = held
    row, columns = key.encrypt_row(np.ones(4), side.layout), list(key.encrypt_columns(np.ones((3, 4))))
    rows = [np.frombuffer(side.answer_row(row, keys)[1:], dtype="<u2") for _ in range(2)]
    assert (rows[0] == rows[1]).mean() < 0.01
    blocks = [side.finish(summed(side, columns), keys, 3) for _ in range(2)]
    for one, other in zip(*blocks, strict=True):
        assert (np.frombuffer(one[1:], dtype="<u4") == np.frombuffer(other[1:], dtype="<u4")).mean() < 0.01


# ------------------------------------------------------------------------------------------------ noise


def column_attack(ring, key, columns, ciphertext):
    """A regression of an answer's slots on those of the client's noise, of rows of zeros: (d,) complex slopes."""
    known = np.stack([opened(ring, key, ring.ciphertext(ring.read(c))) for c in columns], axis=1)
    table = np.column_stack([known, np.ones(SLOTS)])
    return np.linalg.lstsq(table, opened(ring, key, ciphertext), rcond=None)[0][:-1]


def test_without_flooding_a_block_shows_the_gradient_and_with_it_not(ring, held):
    """One row of zeros has a gradient of d numbers beside its output: all of it in the noise of one answer."""
    side, key, keys = held
    (first, hidden), (last, _) = LAYERS
    columns = list(key.encrypt_columns(np.zeros((SLOTS, 4))))
    true = 2 * (last * hidden) @ first
    unit = column_unit(ring, side.column_scales.bits) / ring.modulus * ring.kept / 2.0**ring.chosen.column_bits
    for k, total in enumerate(side.outputs(summed(side, columns), keys)):
        side.rerandomise(total, keys)
        found = column_attack(ring, key, columns, total) / unit
        assert np.abs(found - true[k]).max() < 1e-3  # re-randomised, and yet
        side.flood(total, k)
        assert np.abs(column_attack(ring, key, columns, total) / unit - true[k]).min() > 20


def test_the_gradient_is_not_in_a_real_answer(ring, held):
    side, key, keys = held
    (first, hidden), (last, _) = LAYERS
    columns = list(key.encrypt_columns(np.zeros((SLOTS, 4))))
    answer = side.finish(summed(side, columns), keys, SLOTS)[0]
    unit = column_unit(ring, side.column_scales.bits) / ring.modulus * ring.primes[0] / 2.0**ring.chosen.column_bits
    found = column_attack(ring, key, columns, ring.read_answer(answer[1:])) / unit
    assert np.abs(found - 2 * (last[0] * hidden) @ first).min() > 20


def row_attack(ring, side, key, keys, flooded):
    """A regression over 12 answers to rows of zeros: W_i b_i w_if for every unit and feature, which outputs do not show."""
    layout, known, found = side.layout, [], []
    feature, unit = layout.features[0], np.arange(SLOTS) % layout.period
    cells = [(unit == i) & (feature == f) for i in range(2) for f in range(2)]
    for _ in range(12):
        row = sent(ring, side, key, np.zeros(2))
        noise = opened(ring, key, row).real
        known.append([noise[cell].mean() for cell in cells] + [1.0])
        total = ring.reduce(side.evaluate(row, keys), 2)
        side.rerandomise(total, keys)
        found.append(exact_coefficients(ring, key, total, 1)[0] + (side.masks()[0] if flooded else 0))
    apart = [float(value - found[0]) for value in found]
    slopes = np.linalg.lstsq(np.array(known), np.array(apart), rcond=None)[0][:-1]
    scale = row_unit(ring, layout, side.row_scales.bits) / ring.modulus * ring.kept
    return slopes.reshape(2, 2) / scale * 2.0**ring.chosen.row_bits


def test_without_flooding_rows_show_single_weights_and_with_it_not(ring):
    layers = network((2, 2, 1), seed=4)
    side, key, keys = parties(ring, layers)
    (first, hidden), (last, _) = layers
    true = 2 * (last[0] * hidden)[:, None] * first
    assert np.abs(row_attack(ring, side, key, keys, False) - true).max() < 0.02
    assert np.abs(row_attack(ring, side, key, keys, True) - true).max() > 1000


def test_the_spread_of_a_rows_answers_is_the_flooding(ring, held):
    side, key, keys = held
    row = key.encrypt_row(np.zeros(4), side.layout)
    unit = row_unit(ring, side.layout, side.row_scales.bits) / ring.modulus * ring.kept
    found = np.array([key.open_row(side.answer_row(row, keys), side.layout) for _ in range(20)]) * unit
    assert 0.6 < found.std(axis=0).mean() / side.row_scales.sigma < 1.5


def test_the_flooding_has_the_stated_deviation_and_no_empty_bits(ring, held, monkeypatch):
    side, _, keys = held
    side.bias = np.zeros(2)
    found = [mask for _ in range(300) for mask in side.masks()]
    side.bias = LAYERS[1][1]
    assert 0.9 < np.std([float(v) for v in found]) / side.row_scales.sigma < 1.1
    assert 230 < sum(v & 1 for v in found) < 370 and 0.4 < np.mean([v % 2**40 for v in found]) / 2**40 < 0.6
    assert {whole_gaussian(z, 4.0) for z in (0.1, -0.9, 2.0)} <= {-4, -3, 0, 8}

    def low_bits():
        total = keys.zero(ring.kept_parms)
        before = ring.coefficients(total)[0].astype(object)
        side.flood(total, 0)
        apart = ring.coefficients(total)[0].astype(object) - before
        (a, b), (q0, q1) = apart, ring.primes[:2]
        whole = a % q0 + q0 * ((b - a % q0) * pow(q0, -1, q1) % q1)
        return np.where(whole > ring.kept // 2, whole - ring.kept, whole)

    whole = low_bits()
    assert 0.97 < np.std(whole.astype(float)) / side.column_scales.sigma < 1.03
    assert 0.45 < np.mean(whole % 2) < 0.55
    monkeypatch.setattr(module, "_LAYER_BITS", 1000)
    assert (low_bits() % 64 == 0).all()  # the trap that the layers are for


# ------------------------------------------------------------------------------------------------ too much asked


def test_rows_beyond_those_declared_are_drowned(ring, held):
    side, key, keys = held
    x = np.random.default_rng(5).normal(size=(SLOTS, 4))
    answers = side.finish(summed(side, key.encrypt_columns(x)), keys, 3)
    true = plain(LAYERS, x)
    assert np.abs(key.open_columns(answers, 3) - true[:3]).max() < 1e-3
    unit = column_unit(ring, side.column_scales.bits) / ring.modulus * ring.primes[0]
    slots = opened(ring, key, ring.read_answer(answers[0][1:]))[3:] / unit
    assert slots.real.std() > 100 * true.std() and slots.imag.std() > 100 * true.std()
    assert abs(np.corrcoef(slots.real, true[3:, 0])[0, 1]) < 0.05


def test_an_answer_to_a_row_has_no_coefficient_beyond_the_outputs(ring, held):
    side, key, keys = held
    assert len(side.answer_row(key.encrypt_row(np.ones(4), side.layout), keys)) == 1 + 6 * (2 + DEGREE)


def test_output_noise_has_the_deviation_asked_for(ring, held):
    _, key, keys = held
    side, x = NetworkSide(ring, LAYERS, output_noise=0.3), np.zeros((SLOTS, 4))
    found = by_columns(side, key, keys, x) - plain(LAYERS, x)
    assert 0.97 < found.std() / 0.3 < 1.03
    rows = [by_row(side, key, keys, x[0]) - plain(LAYERS, x[0]) for _ in range(20)]
    assert 0.6 < np.std(rows) / 0.3 < 1.5
