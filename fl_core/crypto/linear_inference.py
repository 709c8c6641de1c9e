"""A linear model on encrypted features: the data's owner holds the key, the model's owner answers scores or labels.

CKKS on plain SEAL, N = 4096, two primes of 46 and 47 bits and a short one for keys (`linear_ring.LinearSet`), 128 bits
of security by the Homomorphic Encryption Standard.  Nothing is rotated or relinearised, so there are no further keys.

- *Columns* (many rows): a ciphertext a feature, two rows in each slot.  The model's owner computes Σ w_f · ct_f, adds
  its bias, floods, adds a fresh Enc_pk(0), and divides by a prime (rescale).
- *A row* (low latency): one ciphertext, feature f in slot f, times the encoded weights.  The constant coefficient of
  the product is 2/N · Σ w_f x_f; a polynomial that is uniform mod q everywhere else hides the rest of it.

Who learns what
---------------
The model's owner: number of rows and features, nothing of their values (Ring-LWE).  The data's owner: the number of
outputs, Σ |w| and ‖w‖ to a power of two, by the scales, and the scores: λ = 40.  Honest-but-curious; there is no third
party.

The client knows its ciphertexts' noise e_f, and without more an answer shows Σ w_f c1_f (a linear system) and Σ w_f
e_f (a regression): either gives all weights after one answer.  Enc_pk(0) hides the first.  For the second, the answer
is flooded by a Gaussian of deviation σ = 2^(λ-1) · √τ · ‖Σ w_f e_f‖₂ a coefficient, τ the answers of the set, so that
τ answers have a distance of 2^-λ from ones that depend on the scores alone.  It is encoded in two layers: doubles
leave the low bits of the wide one zero, a narrow one of 2^32 fills them.  Slots that hold no row by the client's own
count get noise of twelve times Σ |w| or more, so that rows beyond the count are drowned.

What remains
------------
- d + 1 exact scores are a linear system for the weights of a linear model, whatever the cryptography.  The quota
  counts rows against it; output noise makes it a regression.
- λ holds for ciphertexts as this module makes them.  A malicious client can choose other polynomials, or another
  public key, and pack several weights into one answer.  Only ciphertexts and public keys that are half a seed are
  taken (AES-256 in counter mode; SEAL's own for keys), so that half is beyond its choice, and a key of zeros is
  refused; that is no proof of honesty.
- A CKKS server cannot round.  With labels only, a row's score comes times a random factor in [1/8, 1] of its own: its
  sign stays, and its size to within 8; asking again about the same row averages the factor out.
- N = 2048 has no room for the flooding; there is no such set.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from fl_core.crypto import seal_io
from fl_core.crypto.linear_ring import (
    COLUMN_LIMIT,
    FEATURE_LIMIT,
    KEY_BYTES,
    STATISTICAL_BITS,
    Floats,
    LinearRing,
    multiply,
    weight_bits,
)
from fl_core.crypto.noise import OsStream
from fl_core.errors import BadMessage, DataError, UsageError

MAX_OUTPUTS = 100
NARROW = 2.0**32
SMALLEST_FACTOR = 1.0 / 8.0
_DEVIATION = 3.24  # of SEAL's noise
_LOW_BITS = np.uint64(24)
_LOW = np.uint64((1 << 24) - 1)


class ClientKey:
    """The data owner's side.  Its secret key is new, and lives as long as this object.

    Attributes
    ----------
    public : the public key, `ring.public_form.bytes` bytes.
    """

    def __init__(self, ring: LinearRing) -> None:
        self._ring = ring
        secret = ring.seal.KeyGenerator(ring.context).secret_key()
        self._encryptor = ring.seal.Encryptor(ring.context, secret)
        self._decryptor = ring.seal.Decryptor(ring.context, secret)
        words = secret.data()
        self._secret = np.array([words.data(i) for i in range(2 * ring.degree)], dtype=np.uint64).reshape(2, -1)
        key = self._encryptor.encrypt_zero_symmetric(ring.context.key_parms_id())
        self.public = ring.public_form.cut(seal_io.save(key))

    def encrypt_columns(self, x: Floats) -> list[bytes]:
        """A block of rows, (rows, d) float64 for which `fits` holds: d ciphertexts.  `DataError` where it does not."""
        check_features(x)
        if not fits(self._ring, x):
            raise DataError("features", f"a block of {len(x)} rows has too large a mean", allowed="fewer rows a block")
        return [self._encrypt(column) for column in x.T]

    def encrypt_row(self, row: Floats) -> bytes:
        """One row, (d,) float64 within ±`FEATURE_LIMIT`, in one ciphertext; else `DataError`."""
        check_features(row)
        if not 0 < len(row) <= self._ring.slots:
            raise DataError("features", f"{len(row)} features", allowed=f"1 to {self._ring.slots}")
        return self._encrypt(row)

    def _encrypt(self, values: Floats) -> bytes:
        """c0 = m + e - a·s, a from a key of its own: SEAL's seeds take the server longer than all else.

        m + e is what SEAL's decryption of SEAL's encryption gives, in the form that c0 has.
        """
        ring, ciphertext, noisy = self._ring, self._ring.seal.Ciphertext(), self._ring.seal.Plaintext()
        plaintext = ring.encode(np.ascontiguousarray(values), ring.feature_scale)
        self._encryptor.encrypt_symmetric(plaintext, ciphertext)
        self._decryptor.decrypt(ciphertext, noisy)
        key = os.urandom(KEY_BYTES)
        words = ring.words(noisy).copy()
        for row, a, s, prime in zip(words, ring.expand(key), self._secret, ring.primes, strict=False):
            row += np.uint64(prime) - multiply(a, s, prime)
            row %= np.uint64(prime)
        return ring.cut_column(words, key)

    def open_columns(self, answer: bytes, rows: int, bits: int) -> Floats:
        """Scores of a block's rows for one output, (rows,) float64; `bits`: of the weights' scale.

        Raises `BadMessage` for what is no answer under this key.
        """
        ring, plaintext = self._ring, self._decrypt(answer)
        slots = np.array(ring.encoder.decode_complex(plaintext)) * (ring.answer_scale / self._scale(bits))
        scores = np.concatenate([slots.real, slots.imag])[:rows]
        self._check(scores, bits)
        return scores

    def open_row(self, answer: bytes, bits: int) -> float:
        """The score of one row for one output; `bits`: of the weights' scale.  Raises `BadMessage`."""
        ring = self._ring
        unit = ring.feature_scale * 2.0**bits / ring.primes[1] * 2.0 / ring.degree
        score = ring.constant(self._decrypt(answer)) / unit
        if not abs(score) <= 2.0**20:
            raise BadMessage("a score out of range: it belongs to another key")
        return score

    def _scale(self, bits: int) -> float:
        ring = self._ring
        return ring.feature_scale * 2.0 ** (bits + ring.chosen.factor_bits) / ring.primes[1]

    def _check(self, scores: Floats, bits: int) -> None:
        """Under another key slots are √(N/24) · q0, far over what one block of rows can reach."""
        limit = self._ring.slots * self._ring.primes[0] / 2 / self._scale(bits)
        typical = self._ring.primes[0] / self._scale(bits) * math.sqrt(self._ring.degree / 24)
        if not (np.abs(scores) <= limit).all() or (len(scores) > 16 and scores.std() > typical / 4):
            raise BadMessage("scores out of range: they belong to another key, or overflowed")

    def _decrypt(self, answer: bytes) -> Any:
        ring = self._ring
        plaintext = ring.seal.Plaintext()
        self._decryptor.decrypt(ring.answer_form.load(ring.seal.Ciphertext(), answer), plaintext)
        return plaintext


def check_features(x: Floats) -> None:
    """`DataError` unless all of `x` is finite and within ±`FEATURE_LIMIT`."""
    if not (np.abs(x) <= FEATURE_LIMIT).all():
        worst = "NaN" if np.isnan(x).any() else f"{np.abs(x).max():g}"
        raise DataError("features", f"a scaled value of size {worst}", allowed=f"finite, within ±{FEATURE_LIMIT:g}")


def fits(ring: LinearRing, x: Floats) -> bool:
    """Whether a block of rows, (rows, d), can overflow in no model: few enough, and each column's Σ |x| small."""
    return 0 < len(x) <= block_rows(ring) and bool((np.abs(x).sum(axis=0) <= COLUMN_LIMIT * ring.slots).all())


def block_rows(ring: LinearRing) -> int:
    """The most rows of a block: two a slot, or one where each has a factor of its own."""
    return ring.slots if ring.chosen.factor_bits else ring.rows


class Sums:
    """Weighted sums of columns so far, (outputs, 4, N) float64 each: of the words' lower 24 bits and of the rest."""

    def __init__(self, outputs: int, degree: int) -> None:
        self.low, self.high, self.columns = (*np.zeros((2, outputs, 4, degree)), 0)


class ModelSide:
    """The model owner's side.

    Parameters
    ----------
    weights, bias : (outputs, d) and (outputs,) float64, for features in the client's own scale.
    output_noise : deviation of a Gaussian added to every score.

    Attributes
    ----------
    bits, row_bits : of the weights' scale, for columns and for one row.
    sigma, row_sigma : (outputs,) deviation of the flooding, of a coefficient.

    Raises
    ------
    UsageError : weights that are not finite or have no room; labels with several outputs or with output noise.
    """

    def __init__(self, ring: LinearRing, weights: Floats, bias: Floats, *, output_noise: float = 0.0) -> None:
        self.ring, self.weights, self.bias, self.output_noise = ring, weights, bias, output_noise
        self._noise = OsStream()
        outputs, features = weights.shape
        if not (np.isfinite(weights).all() and np.isfinite(bias).all() and 0 <= output_noise < math.inf):
            raise UsageError("the model holds a number that is not finite")
        if not (1 <= outputs <= MAX_OUTPUTS and 1 <= features <= ring.slots):
            allowed = f"1 to {MAX_OUTPUTS} outputs, 1 to {ring.slots} features"
            raise UsageError(f"a model of {outputs} outputs and {features} features; allowed: {allowed}")
        if ring.chosen.factor_bits and (outputs > 1 or output_noise):
            raise UsageError("labels only: for models of two classes, without output noise")
        absolute, biases = np.abs(weights).sum(axis=1), np.abs(bias)
        factor = ring.chosen.factor_bits
        most = ring.modulus.bit_length() - ring.chosen.feature_bits - factor - 3  # SEAL takes no scale near the modulus
        self.bits = min(weight_bits(ring, float((COLUMN_LIMIT * absolute + 2 * biases).max())), most)
        largest = float((FEATURE_LIMIT * absolute + biases).max()) * 2 / ring.degree
        self.row_bits = min(weight_bits(ring, largest * 2.0**-factor), 24)
        self._whole = np.rint(weights * 2.0**self.bits)
        scale = ring.feature_scale * 2.0**self.bits
        self._biases = [ring.encode_slots(np.full(ring.slots, complex(b, b)), scale) for b in bias.tolist()]
        self.sigma, self.row_sigma = self._deviations()

    def _deviations(self) -> tuple[Floats, Floats]:
        """Powers of two, so that they tell little of ‖w‖."""
        ring = self.ring
        norm = np.maximum(np.linalg.norm(self.weights, axis=1), 2.0**-20)
        excess = 2.0 ** (STATISTICAL_BITS - 1) * math.sqrt(ring.chosen.answers)
        # N coefficients of deviation 3.24 · ‖w‖; a tenth for chance, and for the encoding of a factor of at most 1
        whole = 1.1 * _DEVIATION * math.sqrt(ring.degree) * norm * 2.0 ** (self.bits + ring.chosen.factor_bits)
        # one coefficient: six deviations of 3.24 · ‖W‖, W the weights' polynomial
        single = 6 * _DEVIATION * (norm * math.sqrt(2.0 / ring.degree) * 2.0**self.row_bits + math.sqrt(ring.degree))
        return 2.0 ** np.ceil(np.log2(excess * whole)), 2.0 ** np.ceil(np.log2(excess * single))

    # ---- columns

    def begin(self) -> Sums:
        """Sums over no column yet."""
        return Sums(len(self.weights), self.ring.degree)

    def add(self, sums: Sums, column: bytes) -> None:
        """Add the next column.  Raises `BadMessage` for what is none, or one too many.

        A weight is a whole number here, and head-room keeps Σ |w| below 2^20: products with 24 bits add up exactly.
        """
        if sums.columns == self.weights.shape[1]:
            raise BadMessage(f"more than {sums.columns} columns")
        words = self.ring.read_column(column)
        low, high = (words & _LOW).astype(np.float64), (words >> _LOW_BITS).astype(np.float64)
        for k, weight in enumerate(self._whole[:, sums.columns].tolist()):
            sums.low[k] += weight * low
            sums.high[k] += weight * high
        sums.columns += 1

    def total(self, sums: Sums, k: int, key: PublicKey) -> Any:
        """The sum of one output as a ciphertext."""
        ring = self.ring
        words = np.empty((4, ring.degree), dtype=np.uint64)
        for i, prime in enumerate(ring.primes[:2] * 2):
            high = (sums.high[k, i].astype(np.int64) % prime).view(np.uint64)
            low = (sums.low[k, i].astype(np.int64) % prime).view(np.uint64)
            shift = np.full(ring.degree, 1 << int(_LOW_BITS), dtype=np.uint64)
            words[i] = (multiply(high, shift, prime) + low) % np.uint64(prime)
        total = ring.ciphertext(words) if words.any() else key.zero()  # SEAL takes no ciphertext that hides nothing
        total.scale = ring.feature_scale * 2.0**self.bits
        return total

    def finish(self, sums: Sums, key: PublicKey, rows: int) -> list[bytes]:
        """The answers, one an output.  Raises `BadMessage` unless all columns were there and `rows` fit a block."""
        if sums.columns != self.weights.shape[1]:
            raise BadMessage(f"{sums.columns} columns, not {self.weights.shape[1]}")
        if not 1 <= rows <= block_rows(self.ring):
            raise BadMessage(f"{rows} rows in a block, not 1 to {block_rows(self.ring)}")
        answers = []
        for k in range(len(self.weights)):
            total = self.total(sums, k, key)
            self.add_bias(total, k)
            self.flood(total, k)
            self.blind(total, rows)
            self.rerandomise(total, key)
            answers.append(self.rescale(total))
        return answers

    def add_bias(self, total: Any, k: int) -> None:
        """Add the bias; then multiply by a factor of each row where the set has one."""
        ring = self.ring
        ring.evaluator.add_plain_inplace(total, self._biases[k])
        if ring.chosen.factor_bits:
            factors = SMALLEST_FACTOR ** self._noise.uniform(ring.slots)
            plaintext = ring.encode_slots(factors.astype(np.complex128), 2.0**ring.chosen.factor_bits)
            ring.evaluator.multiply_plain_inplace(total, plaintext)

    def flood(self, total: Any, k: int) -> None:
        """Add the Gaussian of deviation `sigma` to every coefficient."""
        ring = self.ring
        for sigma in (self.sigma[k], NARROW):
            slots = self._complex(sigma * math.sqrt(ring.slots) / total.scale)
            ring.evaluator.add_plain_inplace(total, ring.encode_slots(slots, total.scale))

    def blind(self, total: Any, rows: int) -> None:
        """Drown what is in slots that hold none of `rows` rows; add the output noise to the others."""
        ring = self.ring
        unused = np.ones(2 * ring.slots, dtype=bool)
        unused[:rows] = False
        if not unused.any() and not self.output_noise:
            return
        size = 2.5 * ring.modulus / 2 / total.scale  # six deviations of a coefficient are a third of the head-room
        level = np.where(unused, size, self.output_noise)
        slots = self._complex(1.0)
        slots = slots.real * level[: ring.slots] + 1j * (slots.imag * level[ring.slots :])
        ring.evaluator.add_plain_inplace(total, ring.encode_slots(slots, total.scale))

    def _complex(self, deviation: float) -> Any:
        drawn = self._noise.gaussian(2 * self.ring.slots, deviation)
        return drawn[: self.ring.slots] + 1j * drawn[self.ring.slots :]

    def rerandomise(self, total: Any, key: PublicKey) -> None:
        """Add a fresh Enc_pk(0)."""
        zero = key.zero()
        zero.scale = total.scale
        self.ring.evaluator.add_inplace(total, zero)

    def rescale(self, total: Any) -> bytes:
        """Divide by a prime and pack.  The scale that the client uses is that of the set."""
        ring, last = self.ring, self.ring.seal.Ciphertext()
        ring.evaluator.rescale_to_next(total, last)
        last.scale = ring.answer_scale
        return ring.answer_form.cut(seal_io.save(last))

    # ---- a row

    def answer_row(self, row: bytes, key: PublicKey) -> list[bytes]:
        """The answers to one row in one ciphertext, one an output.  Raises `BadMessage`."""
        ring = self.ring
        ciphertext = ring.ciphertext(ring.read_column(row))
        answers = []
        for k in range(len(self.weights)):
            factor = SMALLEST_FACTOR ** float(self._noise.uniform(1)[0]) if ring.chosen.factor_bits else 1.0
            total = self.inner_product(ciphertext, k, factor, key)
            self.mask(total, k, factor)
            self.rerandomise(total, key)
            answers.append(self.rescale(total))
        return answers

    def inner_product(self, ciphertext: Any, k: int, factor: float, key: PublicKey) -> Any:
        """The encrypted row times the encoded weights; its constant coefficient is the score."""
        ring, product = self.ring, self.ring.seal.Ciphertext()
        weights = ring.encode(self.weights[k] * factor, 2.0**self.row_bits)
        if weights.is_zero():
            product = key.zero()
            product.scale = ring.feature_scale
            return product
        weights.scale = 1.0  # SEAL keeps count of scales only to refuse ones near the modulus, where a row has room
        ring.evaluator.multiply_plain(ciphertext, weights, product)
        return product

    def mask(self, total: Any, k: int, factor: float) -> None:
        """Add bias, output noise and flooding to the constant coefficient, and uniform numbers to all others."""
        ring = self.ring
        unit = ring.feature_scale * 2.0**self.row_bits * 2.0 / ring.degree
        wide, narrow, extra = self._noise.gaussian(3, 1.0)
        constant = round(wide * self.row_sigma[k]) + round(narrow * NARROW)
        constant += round((self.bias[k] * factor + extra * self.output_noise) * unit)
        ring.evaluator.add_plain_inplace(total, ring.polynomial(constant))


class PublicKey:
    """A client's public key at the model's owner.  Raises `BadMessage` for what is none."""

    def __init__(self, ring: LinearRing, data: bytes) -> None:
        self._ring = ring
        key = ring.public_form.load(ring.seal.PublicKey(), data)
        self._encryptor = ring.seal.Encryptor(ring.context, key)

    def zero(self) -> Any:
        """A fresh encryption of zero."""
        zero = self._ring.seal.Ciphertext()
        self._encryptor.encrypt_zero(self._ring.context.first_parms_id(), zero)
        return zero
