"""Networks on encrypted features: right outputs, noise within its bound, and whatever is wrong refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import seal_io
from fl_core.crypto.network_bounds import Bounds
from fl_core.crypto.network_inference import EvaluationKeys, NetworkSide
from fl_core.crypto.network_keys import NetworkKey
from fl_core.crypto.network_ring import DEGREE, FEATURE_LIMIT, NORM_LIMIT, SETS, Layout, NetworkSet, open_network_ring
from fl_core.errors import BadMessage, DataError, UsageError
from tests.fl_core.crypto.network_cases import (
    SLOTS,
    by_columns,
    by_row,
    coefficients,
    difference,
    network,
    parties,
    plain,
    summed,
    worst_row,
)

ALL_STEPS = (0, *(1 << i for i in range(13)))
SIZES = (5, 3, 2)


@pytest.fixture(scope="module")
def ring():
    return open_network_ring("CKKS_NETWORK")


@pytest.fixture(scope="module")
def key(ring):
    """Of a client that has keys for every layout."""
    return NetworkKey(ring, ALL_STEPS)


@pytest.fixture(scope="module")
def keys(ring, key):
    return EvaluationKeys(ring, ALL_STEPS, key.public)


@pytest.fixture(scope="module")
def side(ring):
    return NetworkSide(ring, network(SIZES))


# ------------------------------------------------------------------------------------------------ right results


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 20), st.integers(1, 6)), st.integers(0, 2**32), st.sampled_from("rc")
)
@settings(max_examples=8, deadline=None)
def test_outputs_are_those_of_the_network(ring, key, keys, sizes, seed, form):
    layers = network(sizes, seed)
    side, x = NetworkSide(ring, layers), np.random.default_rng(seed).uniform(-2, 2, (3, sizes[0]))
    found = by_columns(side, key, keys, x) if form == "c" else by_row(side, key, keys, x[0])
    assert np.abs(found - plain(layers, x if form == "c" else x[0])).max() < 1e-3


@pytest.mark.parametrize("sizes", [(784, 64, 10), (300, 33, 2), (9000, 2, 1), (1, 1, 1), (2, 500, 16), (40, 100, 60)])
def test_rows_of_every_kind_of_layout_are_right(ring, key, keys, sizes):
    """One and two features a slot, one and several chunks, one input, as many hidden units and outputs as fit."""
    layers = network(sizes, 1)
    side, row = NetworkSide(ring, layers), np.random.default_rng(2).uniform(0, 1, sizes[0])
    assert np.abs(by_row(side, key, keys, row) - plain(layers, row)).max() < 1e-3


@pytest.mark.parametrize("rows", [1, 100, SLOTS])
def test_columns_of_any_number_of_rows_are_right(key, keys, side, rows):
    x = np.random.default_rng(rows).normal(size=(rows, SIZES[0])).clip(-8, 8)
    assert np.abs(by_columns(side, key, keys, x) - plain(network(SIZES), x)).max() < 1e-3


def test_more_columns_than_one_matrix_product_takes_are_right(ring, key, keys):
    layers = network((70, 4, 2))
    x = np.random.default_rng(0).normal(size=(9, 70))
    assert np.abs(by_columns(NetworkSide(ring, layers), key, keys, x) - plain(layers, x)).max() < 1e-3


def test_the_set_of_forty_bits_is_as_exact():
    layers = network((20, 32, 3))
    side, key, keys = parties(open_network_ring("CKKS_NETWORK_40"), layers)
    x = np.random.default_rng(0).normal(size=(2, 20))
    assert np.abs(by_row(side, key, keys, x[0]) - plain(layers, x[0])).max() < 1e-3
    assert np.abs(by_columns(side, key, keys, x) - plain(layers, x)).max() < 1e-3


def trained(x, y):
    """A network for the digits, by plain gradient descent."""
    rng, hot = np.random.default_rng(0), np.eye(10)[y]
    layers = [np.array(v) for pair in network((64, 16, 10)) for v in pair]
    for _ in range(300):
        batch = rng.choice(len(x), 200)
        first, hidden, last, bias = layers
        a = x[batch] @ first.T + hidden
        logits = a**2 @ last.T + bias
        slope = (softmax(logits) - hot[batch]) / len(batch)
        back = slope @ last * 2 * a
        steps = back.T @ x[batch], back.sum(axis=0), slope.T @ a**2, slope.sum(axis=0)
        for value, step in zip(layers, steps, strict=True):
            value -= 0.1 * step
    return [(layers[0], layers[1]), (layers[2], layers[3])]


def softmax(logits):
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def test_a_trained_network_keeps_its_probabilities(ring, key, keys):
    from sklearn.datasets import load_digits

    data = load_digits()
    layers = trained(data.data[:1200] / 16.0, data.target[:1200])
    x, side = data.data[1200:1300] / 16.0, NetworkSide(ring, layers)
    assert (plain(layers, x).argmax(axis=1) == data.target[1200:1300]).mean() > 0.85
    true = softmax(plain(layers, x))
    assert np.abs(softmax(by_columns(side, key, keys, x)) - true).max() < 1e-3
    for row, expected in zip(x[:3], true, strict=False):
        assert np.abs(softmax(by_row(side, key, keys, row)) - expected).max() < 1e-3


def test_networks_of_zeros_and_of_dead_units_answer(ring, key, keys):
    x = np.ones((2, 5))
    for layers in (
        [(np.zeros((3, 5)), np.zeros(3)), (np.zeros((2, 3)), np.array([1.0, -2.0]))],
        [(np.zeros((3, 5)), np.ones(3)), (np.ones((2, 3)), np.zeros(2))],
        [(np.eye(3, 5), np.zeros(3)), (np.zeros((2, 3)), np.ones(2))],
        [(np.diag([1.0, 0.0, 1e-9]) @ np.ones((3, 5)), np.zeros(3)), (np.array([[1.0, 5.0, 0.0]] * 2), np.ones(2))],
    ):
        side = NetworkSide(ring, layers)
        assert np.abs(by_row(side, key, keys, x[0]) - plain(layers, x[0])).max() < 1e-3
        assert np.abs(by_columns(side, key, keys, x) - plain(layers, x)).max() < 1e-3


@pytest.mark.parametrize("sizes", [(5, 3, 2), (200, 64, 4)])
def test_the_largest_features_do_not_overflow(ring, key, keys, sizes):
    layers = network(sizes, 4)
    layers[1] = np.abs(layers[1][0]), layers[1][1]  # no output cancels
    side, row = NetworkSide(ring, layers), worst_row(layers)
    assert np.linalg.norm(row) > 0.7 * min(8 * np.sqrt(sizes[0]), 64)
    true = plain(layers, row)
    assert true.max() > 0.2 * Bounds(ring, side.layout, *layers[0], *layers[1]).output
    assert np.abs(by_row(side, key, keys, row) / true - 1).max() < 1e-3
    if sizes[0] < 10:
        x = np.repeat(row[None, :], SLOTS, axis=0)
        assert np.abs(by_columns(side, key, keys, x) / true - 1).max() < 1e-3


# ------------------------------------------------------------------------------------------------ noise


def uneven(kind):
    """Networks that a bound could miss."""
    (first, hidden), (last, bias) = network((12, 8, 3), 1)
    changed = {
        "usual": lambda: None,
        "equal rows": lambda: (first.__setitem__(slice(None), first[0]), np.abs(last, out=last)),
        "large bias": lambda: (first.__imul__(0.01), hidden.__iadd__(50)),
        "one large unit": lambda: first[0].__imul__(1e3),
        "one large output weight": lambda: last.__setitem__((0, 0), 1e4),
        "tiny units": lambda: first[1:].__imul__(1e-9),
        "small everything": lambda: (first.__imul__(1e-4), hidden.__imul__(1e-4), last.__imul__(1e-4)),
    }
    changed[kind]()
    return [(first, hidden), (last, bias)]


@pytest.mark.parametrize(
    "kind",
    [
        "usual",
        "equal rows",
        "large bias",
        "one large unit",
        "one large output weight",
        "tiny units",
        "small everything",
        (784, 64, 10),
        (3, 2, 5),
        (20, 100, 60),
    ],
)
def test_noise_stays_below_its_bound_and_not_far_below(ring, key, keys, kind):
    """At the worst features: 4 ciphertexts of the same numbers, evaluated without flooding, differ by their noise."""
    layers = uneven(kind) if isinstance(kind, str) else network(kind, 3)
    side, row = NetworkSide(ring, layers), worst_row(layers)
    sent = [ring.ciphertext(ring.read(key.encrypt_row(row, side.layout))) for _ in range(4)]
    totals = [ring.reduce(side.evaluate(one, keys), 2) for one in sent]
    found = [coefficients(difference(ring, key, totals[0], other), len(layers[1][1])) for other in totals[1:]]
    size = max(float(np.linalg.norm(one)) for one in found) / np.sqrt(2)
    assert 0.01 < size / side.row_scales.noise < 0.75
    if len(row) <= 12:
        pair = [side.outputs(summed(side, key.encrypt_columns(np.repeat(row[None], SLOTS, 0))), keys) for _ in "ab"]
        spread = [np.abs(difference(ring, key, one, other)) ** 2 for one, other in zip(*pair, strict=True)]
        # the norm of coefficients is the root mean square of slots
        size = np.sqrt(sum(one.mean() for one in spread) / 2)
        assert 0.2 < size / side.column_scales.noise < 1.0


def test_noise_of_the_set_of_forty_bits_stays_below_its_bound_too():
    layers = network((12, 8, 3))
    ring, row = open_network_ring("CKKS_NETWORK_40"), worst_row(layers)
    side, key, keys = parties(ring, layers)
    sent = [ring.ciphertext(ring.read(key.encrypt_row(row, side.layout))) for _ in range(4)]
    totals = [ring.reduce(side.evaluate(one, keys), 2) for one in sent]
    found = [coefficients(difference(ring, key, totals[0], other), 3) for other in totals[1:]]
    assert 0.02 < max(float(np.linalg.norm(one)) for one in found) / np.sqrt(2) / side.row_scales.noise < 0.75


def test_sigma_is_what_the_bits_and_the_answers_of_the_set_take(ring):
    for name, bits, answers in (("CKKS_NETWORK", 20, 1), ("CKKS_NETWORK_40", 40, 1024)):
        side = NetworkSide(open_network_ring(name), network(SIZES))
        for scales in (side.row_scales, side.column_scales):
            assert 1.0 <= scales.sigma / (scales.noise * 2.0 ** (bits - 1) * np.sqrt(answers)) <= 2.0


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, FEATURE_LIMIT * 1.001])
def test_a_feature_out_of_range_is_refused(key, side, bad):
    x = np.zeros((3, 5))
    x[1, 1] = bad
    with pytest.raises(DataError, match="allowed: finite, within ±8"):
        key.encrypt_columns(x)
    with pytest.raises(DataError, match="allowed: finite, within ±8"):
        key.encrypt_row(x[1], side.layout)


def test_a_row_too_long_or_of_another_width_is_refused(key, side):
    long = np.full((2, 100), NORM_LIMIT / 10 * 1.01)
    with pytest.raises(DataError, match=r"a row of length 64\.64"):
        key.encrypt_columns(long)
    with pytest.raises(DataError, match=r"a row of length 64\.64"):
        key.encrypt_row(long[0], Layout((100, 3, 2)))
    with pytest.raises(DataError, match="100 features; allowed: 5"):
        key.encrypt_row(long[0], side.layout)
    for rows in (0, SLOTS + 1):
        with pytest.raises(DataError, match="a block of"):
            key.encrypt_columns(np.zeros((rows, 1)))


def test_networks_that_cannot_be_served_are_refused(ring):
    first, last = network(SIZES)
    for layers, message in (
        ([first], "1 layers; CKKS_NETWORK has one hidden layer"),
        ([first, first, last], "3 layers"),
        ([last, first], "do not follow"),
        ([first, (last[0], last[1][:1])], "do not follow"),
        ([(first[0] * np.nan, first[1]), last], "not finite"),
        ([(first[0] * 1e9, first[1]), last], "do not fit CKKS_NETWORK"),
        (network((1, 8, 5000)), "allowed: up to 16384 inputs"),
    ):
        with pytest.raises(UsageError, match=message):
            NetworkSide(ring, layers)
    for noise in (-1.0, np.inf):
        with pytest.raises(UsageError, match="not finite"):
            NetworkSide(ring, [first, last], output_noise=noise)


@pytest.mark.parametrize(
    "sizes", [(3, 2), (3, 2, 2, 2), (0, 2, 1), (16385, 2, 1), (3, 513, 1), (3, 2.0, 1), (3, -1, 1)]
)
def test_sizes_that_make_no_layout_are_refused(sizes):
    with pytest.raises(UsageError, match="a network of sizes"):
        Layout(sizes)


def test_a_set_below_128_bits_of_security_cannot_be_made():
    with pytest.raises(ValueError, match="under 128 bits"):
        NetworkSet("WEAK", 20, 1, 53, 57, prime_bits=(60,) * 8)
    assert {sum(s.prime_bits) for s in SETS.values()} == {240, 300} and {s.degree for s in SETS.values()} == {16384}
    with pytest.raises(UsageError, match="parameter set"):
        open_network_ring("CKKS_LINEAR")


@pytest.mark.parametrize("change", ["empty", "cut", "longer", "oversized", "modulus", "stream", "zeros", "other set"])
def test_what_is_no_ciphertext_is_refused(ring, key, keys, side, change):
    good, full = key.encrypt_row(np.ones(5), side.layout), ring.seal.Ciphertext()
    key._encryptor.encrypt_zero_symmetric(full)
    other = NetworkKey(open_network_ring("CKKS_NETWORK_40"))
    bad = {
        "empty": b"",
        "cut": good[:-1],
        "longer": good + b"\0",
        "oversized": good * 9,
        "modulus": b"\xff" * len(good),
        "stream": seal_io.save(full),
        "zeros": bytes(len(good)),
        "other set": other.encrypt_row(np.ones(5), side.layout),
    }[change]
    with pytest.raises(BadMessage):
        side.answer_row(bad, keys)
    with pytest.raises(BadMessage):
        side.add(side.begin(), bad)


def test_keys_of_zeros_or_of_another_form_are_refused(ring):
    steps = (1,)
    good = NetworkKey(ring, steps).public
    first, each = ring.key_forms.public_bytes, ring.key_forms.switching_bytes
    for at in (0, first, first + each):  # the public key, the relinearisation key, the rotation key
        zeros = good[:at] + bytes(ring.degree * 7) + good[at + ring.degree * 7 :]
        with pytest.raises(BadMessage, match="zeros"):
            EvaluationKeys(ring, steps, zeros)
        full = good[:at] + b"\xff" * 64 + good[at + 64 :]
        with pytest.raises(BadMessage, match="beyond the modulus"):
            EvaluationKeys(ring, steps, full)
    secret = seal_io.save(ring.seal.KeyGenerator(ring.context).secret_key())
    for bad in (b"", good[:-1], good + b"\0", good[:first], secret, bytes(len(good))):
        with pytest.raises(BadMessage):
            EvaluationKeys(ring, steps, bad)
    with pytest.raises(BadMessage, match="keys of"):
        EvaluationKeys(open_network_ring("CKKS_NETWORK_40"), steps, good)
    for steps in ((-1,), (SLOTS,)):
        with pytest.raises(UsageError, match="rotations by"):
            EvaluationKeys(ring, steps, good)


def test_only_keys_that_are_needed_are_sent(ring, side):
    assert side.layout.rotations == (4, 8, 16)
    lone, few = NetworkKey(ring), NetworkKey(ring, side.layout.rotations)
    each = 3 * (4 * 15 * DEGREE // 2 + 64)  # three digits, four primes, 7.5 bytes a word, a seed
    assert len(few.public) - len(lone.public) == 3 * each and len(lone.public) == each + each // 3
    big = Layout((784, 64, 10)).rotations
    assert big == (0, 1, 64, 128, 256, 512, 1024, 2048, 4096) and ring.key_bytes(big) < 16e6
    assert open_network_ring("CKKS_NETWORK_40").key_bytes(big) < 26e6
    held = EvaluationKeys(ring, few_steps := side.layout.rotations, few.public)
    assert held.bytes > len(few.public) and set(held._rotate) == set(few_steps)


def test_missing_rotation_keys_are_named_and_columns_need_none(ring, side):
    key = NetworkKey(ring, (4, 8))
    keys = EvaluationKeys(ring, (4, 8), key.public)
    with pytest.raises(BadMessage, match=r"no rotation keys for steps \[16\]"):
        side.answer_row(key.encrypt_row(np.ones(5), side.layout), keys)
    assert by_columns(side, key, keys, np.ones((2, 5))).shape == (2, 2)


def test_missing_and_surplus_columns_and_rows_are_refused(key, keys, side):
    columns = list(key.encrypt_columns(np.ones((3, 5))))
    with pytest.raises(BadMessage, match="more than 5"):
        summed(side, [*columns, columns[0]])
    with pytest.raises(BadMessage, match="4 columns, not 5"):
        side.finish(summed(side, columns[:-1]), keys, 3)
    for rows in (0, SLOTS + 1):
        with pytest.raises(BadMessage, match="rows in a block"):
            side.finish(summed(side, columns), keys, rows)


def test_an_answer_that_is_none_is_refused_by_the_client(key, keys, side):
    row = side.answer_row(key.encrypt_row(np.ones(5), side.layout), keys)
    (column, _) = side.finish(summed(side, key.encrypt_columns(np.ones((3, 5)))), keys, 3)
    for bad in (b"", row[:-1], row + b"\0", b"\xff" + row[1:], row[:7] + bytes(len(row) - 7)):
        with pytest.raises(BadMessage):
            key.open_row(bad, side.layout)
    for bad in (b"", column[:-1], column + b"\0", b"\xff" + column[1:], column[:1] + b"\xff" * (len(column) - 1)):
        with pytest.raises(BadMessage):
            key.open_columns([bad], 3)


def test_a_ciphertext_under_another_key_gives_noise(ring, key, keys, side):
    """Columns: the client notices.  A row: outputs all over the range, other ones for each ciphertext."""
    other, limit = NetworkKey(ring, side.layout.rotations), 0.25 * ring.modulus
    answers = side.finish(summed(side, other.encrypt_columns(np.ones((100, 5)))), keys, 100)
    with pytest.raises(BadMessage, match="another key"):
        key.open_columns(answers, 100)
    rows = [other.encrypt_row(np.ones(5), side.layout) for _ in range(4)]
    found = np.array([key.open_row(side.answer_row(row, keys), side.layout) for row in rows])
    bound = limit / (2.0 ** (2 * ring.chosen.row_bits + side.row_scales.bits) / side.layout.period)
    assert np.abs(found).max() > 0.2 * bound and np.abs(np.diff(found, axis=0)).min() > 1e-3 * bound
