"""Networks, keys and a look inside ciphertexts for the tests of encrypted networks."""

from __future__ import annotations

import numpy as np

from fl_core.crypto.network_encoder import exponents
from fl_core.crypto.network_inference import EvaluationKeys, NetworkSide
from fl_core.crypto.network_keys import NetworkKey
from fl_core.crypto.network_ring import DEGREE

SLOTS = DEGREE // 2


def network(sizes, seed=0):
    """Weights and biases such that hidden units and outputs are about 1."""
    rng, (d, h, o) = np.random.default_rng(seed), sizes
    first = rng.normal(size=(h, d)) / np.sqrt(d), rng.normal(size=h) * 0.3
    return [first, (rng.normal(size=(o, h)) / np.sqrt(h), rng.normal(size=o))]


def plain(layers, x):
    """The slow, obvious reference."""
    (first, hidden), (last, bias) = layers
    return (x @ first.T + hidden) ** 2 @ last.T + bias


def parties(ring, layers, **more):
    """Model side, client and the client's keys at the model's owner."""
    side = NetworkSide(ring, layers, **more)
    key = NetworkKey(ring, side.layout.rotations)
    return side, key, EvaluationKeys(ring, side.layout.rotations, key.public)


def summed(side, columns):
    sums = side.begin()
    for column in columns:
        side.add(sums, column)
    return sums


def by_columns(side, key, keys, x):
    return key.open_columns(side.finish(summed(side, key.encrypt_columns(x)), keys, len(x)), len(x))


def by_row(side, key, keys, row):
    return key.open_row(side.answer_row(key.encrypt_row(row, side.layout), keys), side.layout)


def opened(ring, key, ciphertext):
    """Everything that the key's owner sees in a ciphertext, slots as whole numbers mod its primes: (slots,) complex."""
    plaintext = ring.seal.Plaintext()
    key._decryptor.decrypt(ciphertext, plaintext)
    return np.array(ring.encoder.decode_complex(plaintext))


def difference(ring, key, one, other):
    """The slots of the difference, which holds noise alone where both are of the same numbers."""
    apart = ring.seal.Ciphertext()
    ring.evaluator.sub(one, other, apart)
    return opened(ring, key, apart)


def coefficients(slots, count):
    """The first `count` coefficients of the polynomial of `slots`."""
    root = np.exp(1j * np.pi * exponents(DEGREE) / DEGREE)
    return np.array([(slots * root**-o).real.mean() for o in range(count)])


def exact_coefficients(ring, key, ciphertext, count):
    """The first `count` coefficients that the key's owner sees under two primes, whole numbers."""
    words, primes, found = ring.coefficients(ciphertext), ring.primes[:2], []
    for k in range(count):
        turned, parts = np.concatenate([key._secret[k::-1], -key._secret[:k:-1]]), []
        for i, prime in enumerate(primes):
            low, high = (words[1, i] & np.uint64(2**30 - 1)).astype(int), (words[1, i] >> np.uint64(30)).astype(int)
            parts.append((int(words[0, i, k]) + int(low @ turned) + (int(high @ turned) << 30)) % prime)
        value = parts[0] + primes[0] * ((parts[1] - parts[0]) * pow(primes[0], -1, primes[1]) % primes[1])
        found.append(value - ring.kept if value > ring.kept // 2 else value)
    return found


def worst_row(layers):
    """Features at the limits, along the direction in which noise on the hidden units counts most."""
    (first, hidden), (last, _) = layers
    found = []
    for row in last:
        along = np.linalg.svd(row[:, None] * first)[2][0]
        x = np.clip(along * min(8 * np.sqrt(len(along)), 64.0), -8, 8)
        x *= 1.0 if (first @ x) @ hidden >= 0 else -1.0
        x *= min(1.0, 64.0 * (1 - 1e-12) / np.linalg.norm(x))
        found.append((float(np.linalg.norm(row * (first @ x + hidden))), x))
    return max(found, key=lambda pair: pair[0])[1]
