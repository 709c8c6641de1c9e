"""Σ values · marks between two parties: one holds whole numbers and gets the sum, the other holds the marks, 0 or 1.

The values v_i are the coefficients of a polynomial, Σ (Δ v_i + e_i) X^i, encrypted under the asker's key; the marks b_i
are those of Σ b_i X^-i.  The constant coefficient of the product is Σ b_i (Δ v_i + e_i).  Both polynomials are whole
numbers, so nothing is approximated.  Of a ciphertext (c0, c1) the marker needs of c0 only the coefficients that hold
values, and the asker needs of an answer's c0 only the constant one: nothing else travels, and c1 of a question is a key
of AES-256 in counter mode.  More values than a polynomial has coefficients go in several ciphertexts, with one answer.

CKKS_LINEAR (`linear_ring`): N = 4096, 93 bits of modulus beside the 16 of keys, 128 bits of security by the
Homomorphic Encryption Standard.  12 bytes a value and 32 up, 24,582 down.

Who learns what
---------------
The marker: how many values there are, nothing of them (Ring-LWE).  The asker: the sum, λ = 40.  Honest but curious;
there is no third party.

The asker knows the noise e of its ciphertexts.  Without more an answer shows c1 · marks (a division) and Σ b_i e_i.
A fresh Enc_pk(0) hides the first.  For the second, the constant is flooded by a Gaussian of deviation `SIGMA` =
2^(λ-1) · 6 · 3.24 · √MAX_LEAVES, which is six deviations of Σ e over as many marks as there can be: it depends on no
mark, and not on how many values there are.  With 240 values it is 2^-44 from an answer made of the sum alone, and n
answers about one set of secrets are √n times that.  Δ = 2^58; after the last step, which divides by a prime of 47 bits,
a unit is 2048, the flood has a deviation of 28 and rounding one of 15: a quarter of a unit is 16 deviations, under
2^-190.  So the rounded sum is exact.

What remains
------------
- The sum itself: whoever knows the values can tell likely marks from unlikely ones by it.
- λ holds for questions as this module makes them.  A malicious asker takes powers of two for values, and one sum of
  33 bits is as many marks.
- Answers are not authenticated: of those under a foreign key three in four are noticed.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto import seal_io
from fl_core.crypto.linear_inference import PublicKey
from fl_core.crypto.linear_ring import (
    CKKS_LINEAR,
    KEY_BYTES,
    STATISTICAL_BITS,
    Floats,
    LinearRing,
    PackedForm,
    Words,
    multiply,
    open_ring,
    pack,
    unpack,
)
from fl_core.crypto.noise import OsStream
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, DataError, UsageError

CHUNK = CKKS_LINEAR.degree  # values a ciphertext
MAX_LEAVES = 32 * CHUNK
MAX_VALUE = 1 << 20
MAX_SUM = 1 << 33  # of Σ |values|
UNIT_BITS = 58
DEVIATION = 3.24  # of the noise
SIGMA = 2.0 ** (STATISTICAL_BITS - 1) * 6 * DEVIATION * math.sqrt(MAX_LEAVES)
NARROW = 2.0**32  # doubles leave the low bits of the flood zero: a second one fills them
_COINS = 21
_WORD = 6  # bytes of a number mod a prime on its way
ANSWER_BYTES = _WORD * (1 + CHUNK)


def asked_bytes(leaves: int) -> list[int]:
    """Bytes of each ciphertext of a question of `leaves` values."""
    counts = [min(CHUNK, leaves - start) for start in range(0, leaves, CHUNK)]
    return [2 * _WORD * count + KEY_BYTES for count in counts]


def public_bytes() -> int:
    """Bytes of an asker's public key."""
    return _ring().public_form.bytes


class Asker:
    """The side that holds the values.  Its secret key is new, and lives as long as this object.

    Attributes
    ----------
    public : the public key, `public_bytes()` bytes.
    """

    def __init__(self) -> None:
        self._ring = ring = _ring()
        secret = ring.seal.KeyGenerator(ring.context).secret_key()
        key = ring.seal.Encryptor(ring.context, secret).encrypt_zero_symmetric(ring.context.key_parms_id())
        self.public: bytes = ring.public_form.cut(seal_io.save(key))
        words = secret.data()
        self._secret = np.array([words.data(i) for i in range(2 * CHUNK)], dtype=np.uint64).reshape(2, -1)

    def encrypt(self, values: Floats) -> list[bytes]:
        """A question.

        Parameters
        ----------
        values : (m,) float64 whole numbers within ±`MAX_VALUE`, 1 ≤ m ≤ `MAX_LEAVES`, Σ |values| ≤ `MAX_SUM`.

        Returns
        -------
        Ciphertexts of `asked_bytes(m)` bytes.

        Raises
        ------
        DataError : other values.
        """
        _check_values(values)
        whole = values.astype(np.int64)
        return [self._encrypt(whole[start : start + CHUNK]) for start in range(0, len(whole), CHUNK)]

    def _encrypt(self, values: NDArray[np.int64]) -> bytes:
        """The coefficients that hold values of c0 = Δ · values + e - a · s, and the key of a."""
        key, primes = os.urandom(KEY_BYTES), self._ring.primes[:2]
        a, noise = self._ring.expand(key), _noise(len(values))
        products = [multiply(row, s, prime) for row, s, prime in zip(a, self._secret, primes, strict=True)]
        hidden = _transform().backward(np.stack(products))[:, : len(values)]
        parts = []
        for row, prime in zip(hidden, primes, strict=True):
            unit = np.full(len(values), (1 << UNIT_BITS) % prime, dtype=np.uint64)
            scaled = multiply((values % prime).view(np.uint64), unit, prime).view(np.int64)
            parts.append(pack(((scaled + noise - row.view(np.int64)) % prime).view(np.uint64), prime))
        return b"".join(parts) + key

    def open(self, answers: list[bytes]) -> int:
        """The exact sum.  Raises `BadMessage` for what is no answer under this key."""
        q0, q1 = self._ring.primes[:2]
        if [len(answer) for answer in answers] != [ANSWER_BYTES]:
            raise BadMessage(f"{len(answers)} answers, or one of other than {ANSWER_BYTES} bytes")
        constant, c1 = int.from_bytes(answers[0][:_WORD], "little"), np.empty(CHUNK, dtype=np.uint64)
        if constant >= q0:
            raise BadMessage("a constant beyond the modulus")
        unpack(answers[0], _WORD, q0, c1)
        found = (constant + _constant(multiply(c1, self._secret[0], q0), q0)) % q0
        noisy = (found - q0 if found > q0 // 2 else found) * q1
        total = (noisy + (1 << (UNIT_BITS - 1))) >> UNIT_BITS
        if abs(total) > MAX_SUM or abs(noisy - (total << UNIT_BITS)) > 1 << (UNIT_BITS - 2):
            raise BadMessage("a sum that cannot be: it belongs to another key")
        return total


class Marker:
    """The side that holds the marks.

    Parameters
    ----------
    public : the asker's public key; `BadMessage` for what is none.
    """

    def __init__(self, public: bytes) -> None:
        self._ring = _ring()
        self._key = PublicKey(self._ring, public)

    def answer(self, asked: list[bytes], marks: NDArray[np.bool_]) -> list[bytes]:
        """The answer to a question, `ANSWER_BYTES` bytes; which marks there are changes no step.

        Parameters
        ----------
        marks : (m,) bool.

        Raises
        ------
        BadMessage : `asked` is no question of m values.
        """
        words = self.product(asked, marks)
        self.flood(words)
        return [self.cut(self.rerandomise(words))]

    def product(self, asked: list[bytes], marks: NDArray[np.bool_]) -> Words:
        """(4, N) words of the sum of products: the wanted constant coefficient of c0 alone, under both primes, and c1.

        A polynomial that is a constant is that constant in every word.
        """
        if marks.dtype != bool or marks.ndim != 1 or not 1 <= len(marks) <= MAX_LEAVES:
            raise UsageError(f"marks of shape {marks.shape}, {marks.dtype}; allowed: 1 to {MAX_LEAVES} of type bool")
        if [len(one) for one in asked] != asked_bytes(len(marks)):
            raise BadMessage(f"{len(asked)} ciphertexts that are no question of {len(marks)} values")
        words = np.zeros((4, CHUNK), dtype=np.uint64)
        for number, one in enumerate(asked):
            chosen = marks[number * CHUNK : (number + 1) * CHUNK].astype(np.uint64)
            a, factor = self._ring.expand(one[-KEY_BYTES:]), _transform().forward(self._polynomial(chosen))
            for i, prime in enumerate(self._ring.primes[:2]):
                c0 = np.empty(len(chosen), dtype=np.uint64)
                unpack(one, i * _WORD * len(chosen), prime, c0)
                words[i] = (words[i] + (c0 * chosen).sum() % np.uint64(prime)) % np.uint64(prime)
                words[2 + i] = (words[2 + i] + multiply(a[i], factor[i], prime)) % np.uint64(prime)
        return words

    def _polynomial(self, chosen: Words) -> Words:
        """(2, N) coefficients of Σ chosen_i X^-i, where X^-i = -X^(N-i)."""
        made = np.zeros((2, CHUNK), dtype=np.uint64)
        made[:, 0] = chosen[0]
        for row, prime in zip(made, self._ring.primes, strict=False):
            row[CHUNK + 1 - len(chosen) :] = chosen[:0:-1] * np.uint64(prime - 1)
        return made

    def flood(self, words: Words) -> None:
        """Add the Gaussian of deviation `SIGMA` to the constant coefficient."""
        wide, narrow = OsStream().gaussian(2, 1.0)
        drawn = round(wide * SIGMA) + round(narrow * NARROW)
        for row, prime in zip(words, self._ring.primes[:2], strict=False):
            row[:] = (row + np.uint64(drawn % prime)) % np.uint64(prime)

    def rerandomise(self, words: Words) -> Any:
        """The ciphertext of the words plus a fresh Enc_pk(0)."""
        total = self._key.zero()
        total.scale = self._ring.feature_scale
        self._ring.evaluator.add_inplace(total, self._ring.ciphertext(words))
        return total

    def cut(self, total: Any) -> bytes:
        """Divide by a prime and pack: the constant coefficient of c0, and c1."""
        ring, last, c0 = self._ring, self._ring.seal.Ciphertext(), np.empty(CHUNK, dtype=np.uint64)
        ring.evaluator.rescale_to_next(total, last)
        both = ring.answer_form.cut(seal_io.save(last))
        unpack(both, 0, ring.primes[0], c0)
        return _constant(c0, ring.primes[0]).to_bytes(_WORD, "little") + both[_WORD * CHUNK :]


class _Transform:
    """Polynomials mod both primes, (2, N), from coefficients to words of SEAL's transform and back, by SEAL."""

    def __init__(self, ring: LinearRing) -> None:
        self._ring, count = ring, 4 * CHUNK
        self._rest = np.ones((2, CHUNK), dtype=np.uint64)  # SEAL transforms no ciphertext of which this half is zero
        sample = ring.ciphertext(np.vstack([self._rest, self._rest]))
        self._words = CiphertextForm(seal_io.save(sample), words=count, seeded=False)
        ring.evaluator.transform_from_ntt_inplace(sample)
        stream = seal_io.save(sample)
        self._coefficients = CiphertextForm(stream, words=count, seeded=False)
        self._loaded = PackedForm(ring, stream, ring.primes[:2] * 2)

    def forward(self, coefficients: Words) -> Words:
        """Of coefficients the words."""
        item = self._loaded.load_words(self._ring.seal.Ciphertext(), np.vstack([coefficients, self._rest]))
        self._ring.evaluator.transform_to_ntt_inplace(item)
        return _first_half(self._words, item)

    def backward(self, words: Words) -> Words:
        """Of words the coefficients."""
        item = self._ring.ciphertext(np.vstack([words, self._rest]))
        self._ring.evaluator.transform_from_ntt_inplace(item)
        return _first_half(self._coefficients, item)


@cache
def _transform() -> _Transform:
    return _Transform(_ring())


def _first_half(form: CiphertextForm, item: Any) -> Words:
    body = form.check(seal_io.save(item))
    return np.frombuffer(body[-32 * CHUNK : -16 * CHUNK], dtype="<u8").reshape(2, CHUNK)


def _ring() -> LinearRing:
    return open_ring(CKKS_LINEAR.name)


def _constant(words: Words, prime: int) -> int:
    """The constant coefficient: words of a transform add up to N times it."""
    return int(words.sum()) * pow(CHUNK, -1, prime) % prime


def _noise(count: int) -> NDArray[np.int64]:
    """(count,) from the centred binomial distribution of deviation `DEVIATION`, as SEAL's, from the OS."""
    drawn = np.frombuffer(os.urandom(6 * count), dtype=np.uint8).reshape(count, 6)
    coins = np.unpackbits(drawn, axis=1)[:, : 2 * _COINS].astype(np.int64)
    return np.asarray(coins[:, :_COINS].sum(axis=1) - coins[:, _COINS:].sum(axis=1))


def _check_values(values: Floats) -> None:
    if values.ndim != 1 or not 1 <= len(values) <= MAX_LEAVES:
        raise DataError("values", f"an array of shape {values.shape}", allowed=f"1 to {MAX_LEAVES}")
    size = np.abs(values)
    if not (size <= MAX_VALUE).all() or (np.rint(values) != values).any():
        raise DataError("values", "one that is no whole number or too large", allowed=f"whole, within ±{MAX_VALUE}")
    if size.sum() > MAX_SUM:
        raise DataError("values", f"sizes that add up to {size.sum():.0f}", allowed=f"up to {MAX_SUM}")
