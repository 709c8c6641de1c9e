"""A small network, x² between two layers, on encrypted features: the data's owner holds the key, the model's answers.

CKKS on plain SEAL, N = 16384, three primes of 60 bits (λ = 20) or four (λ = 40) and one for keys: far inside 128 bits
of security by the Homomorphic Encryption Standard (438 bits).  Nothing is rescaled before an answer is flooded: up to
there arithmetic is exact modulo the product of the primes, so that noise comes from the client's ciphertext (and a
little from keys) alone, and nothing but the answer itself can overflow.

- *A row* (low latency): the features lie in the slots as `network_ring.Layout` says; one or a few products with
  encoded weights, and rotations that add up slots, give the hidden units, repeated with a period p.  After the square
  comes one product with Σ_o X^o w_o(X^(N/2p)), where w_o, of degree below 2p, has row o of the last layer in its p
  slots.  Then coefficient o is Σ_i W_oi a_i² / p: a trace, without rotations.  Those coefficients alone are sent, and
  the second polynomial: the other coefficients cannot be opened without theirs of the first.
- *Columns* (many rows): a ciphertext a feature, a row a slot.  Weights are whole numbers; the first layer is a matrix
  product over words split in halves of 30 bits, exact in doubles.  Squares are weighted and added before they are
  relinearised, once an output.  Nothing is rotated.

Who learns what
---------------
The model's owner: number of rows, nothing of their values (Ring-LWE).  The data's owner: the network's sizes and its
outputs, and to a power of two, by the scales, the largest output that features can reach and the noise's size.
Honest-but-curious; there is no third party.  Outputs are those of the network with weights rounded by the encoding,
1e-4 off or less.

The client knows its key and all noise in what it sent, hence everything in an answer that is not random: without more,
the second polynomial is a system of equations for the weights, and the noise that went through the weights is another.
So an answer gets a fresh Enc_pk(0), which hides the first, and is flooded, which hides the second: by a Gaussian of
deviation σ = 2^(λ-1) · √τ · ‖e‖₂ a coefficient, τ the answers of the set, so that τ answers have a distance of 2^-λ
from ones that depend on the outputs alone.  Only then it is divided by primes.  Of a row's noise one coefficient an
output is sent.  Of a block's noise all are; slots that hold no row by the client's own count get noise of several
times the largest output, so that rows beyond the count are drowned.

‖e‖₂ is bounded in the weights, by `network_bounds`, for all features that a client may send (within ±8, a row at most
64 long), over the client's noise as the usual average case, independent Gaussians of SEAL's deviation: six deviations
for rows, a tenth over the mean for columns.  The tests hold measured noise against it.  For such features overflow is
impossible: the scale leaves room for the largest output.  A client that exceeds them gets wrong outputs.

What remains
------------
- Outputs give a network away, whatever the cryptography: each is a quadratic form, (d + 1)(d + 2) / 2 exact outputs
  determine it, and far fewer the one of a narrow hidden layer.  The quota counts rows; output noise helps.
- λ = 20 is for one answer, λ = 40 for 1,024; over τ times as many it falls by log2(τ) / 2.
- λ holds for ciphertexts and keys as `network_keys` makes them.  A malicious client can choose others: features over
  the limits, copies of a feature that differ, other noise in keys, so that an answer tells more.  Only ciphertexts and
  keys that are half a seed are taken (AES-256 in counter mode; SEAL's own for keys), so that half is beyond its
  choice, and polynomials of zeros are refused; that is no proof of honesty.
- A CKKS server cannot round or give labels only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_core.crypto.linear_ring import pack
from fl_core.crypto.network_bounds import Bounds
from fl_core.crypto.network_encoder import exponents
from fl_core.crypto.network_keys import column_unit, row_unit
from fl_core.crypto.network_ring import ANSWER_BITS, CONJUGATE, Complexes, Floats, Layout, NetworkRing, check_rotations
from fl_core.crypto.noise import OsStream
from fl_core.errors import BadMessage, UsageError

_GATHERED = 32  # columns a matrix product
_BLOCK = 4096  # words a matrix product
_HALF = np.uint64(30)
_HALF_MASK = np.uint64((1 << 30) - 1)
_LAYER_BITS = 44  # of a double, less some for a transform


class EvaluationKeys:
    """A client's public, relinearisation and rotation keys at the model's owner.

    Parameters
    ----------
    rotations : steps that the client made keys for. data : `NetworkKey.public`.

    Attributes
    ----------
    bytes : of memory, about.

    Raises
    ------
    BadMessage : `data` that is not these keys.
    """

    def __init__(self, ring: NetworkRing, rotations: Sequence[int], data: bytes) -> None:
        self._ring, steps = ring, check_rotations(rotations)
        if len(data) != ring.key_bytes(steps):
            raise BadMessage(f"keys of {len(data)} bytes, not {ring.key_bytes(steps)}")
        first, each = ring.key_forms.public_bytes, ring.key_forms.switching_bytes
        self._encryptor = ring.seal.Encryptor(ring.context, ring.read_public(data[:first]))
        parts = [data[i : i + each] for i in range(first, len(data), each)]
        self._relinearise = ring.read_switching(parts[0], None)
        self._rotate = {step: ring.read_switching(part, step) for step, part in zip(steps, parts[1:], strict=True)}
        self.bytes = 16 * ring.degree * len(ring.key_primes) * (1 + len(ring.primes) * len(parts))

    def zero(self, parms: Any) -> Any:
        """A fresh encryption of zero."""
        zero = self._ring.seal.Ciphertext()
        self._encryptor.encrypt_zero(parms, zero)
        zero.scale = 1.0
        return zero

    def check(self, rotations: Sequence[int]) -> None:
        """`BadMessage` unless there are keys for all of `rotations`."""
        missing = [step for step in rotations if step not in self._rotate]
        if missing:
            raise BadMessage(f"no rotation keys for steps {missing}")

    def turn(self, ciphertext: Any, step: int) -> Any:
        """The ciphertext with slots turned to the left by `step`, or conjugated."""
        turned = self._ring.seal.Ciphertext()
        element, keys = self._ring.galois_element(step), self._rotate[step]
        self._ring.evaluator.apply_galois(ciphertext, element, keys, turned)
        return turned

    def relinearise(self, square: Any) -> None:
        """Bring a square back to two polynomials, in place."""
        self._ring.evaluator.relinearize_inplace(square, self._relinearise)


class Sums:
    """Sums of the first layer so far: a float64 array (hidden, 2 halves · words) and columns not yet added to it."""

    def __init__(self, hidden: int, words: int) -> None:
        self.totals = np.zeros((hidden, 2 * words))
        self.waiting = np.empty((_GATHERED, 2 * words))
        self.columns = 0

    @property
    def bytes(self) -> int:
        """Of memory."""
        return self.totals.nbytes + self.waiting.nbytes


class NetworkSide:
    """The model owner's side.

    Parameters
    ----------
    layers : weights (out, in) and bias (out,) of both layers, float64, for features in the client's own scale.
    output_noise : deviation of a Gaussian added to every output.

    Attributes
    ----------
    layout : what the client must know of it. block_rows : the most rows of a block of columns.
    row_scales, column_scales : the scales of weights and the flooding, for either form.

    Raises
    ------
    UsageError : numbers that are not finite, sizes or weights without room, another depth than the set's.
    """

    def __init__(
        self, ring: NetworkRing, layers: Sequence[tuple[Floats, Floats]], *, output_noise: float = 0.0
    ) -> None:
        self.ring, self.output_noise, self._noise = ring, output_noise, OsStream()
        self.block_rows = ring.slots
        if len(layers) != 2:
            raise UsageError(f"a network of {len(layers)} layers; {ring.chosen.name} has one hidden layer, so two")
        (first, hidden), (last, bias) = layers
        shapes = first.ndim == last.ndim == 2 and last.shape[1:] == hidden.shape == first.shape[:1]
        if not (shapes and bias.shape == last.shape[:1]):
            raise UsageError(f"layers of shapes {[(w.shape, b.shape) for w, b in layers]} do not follow each other")
        if not (all(np.isfinite(v).all() for pair in layers for v in pair) and 0 <= output_noise < math.inf):
            raise UsageError("the model holds a number that is not finite")
        self.layout = Layout((first.shape[1], len(first), len(last)))
        used = np.abs(last).sum(axis=0) > 0.0
        first, hidden = first * used[:, None], hidden * used
        self.first, self.hidden, self.last, self.bias = first, hidden, last, bias
        bounds = Bounds(ring, self.layout, first, hidden, last, bias)
        self.row_scales, self.column_scales = bounds.rows(), bounds.columns()
        self._encode_rows()
        self._whole = np.rint(first * self.column_scales.units[:, None])

    # ---- a row

    def _encode_rows(self) -> None:
        """Plaintexts of everything that a row is multiplied with or gets added."""
        layout, units, slots = self.layout, self.row_scales.units, np.arange(self.ring.slots)
        inputs, hidden, _ = layout.sizes
        weights = np.zeros((layout.period, inputs + 1))
        weights[:hidden, :inputs] = self.first * units[:, None]
        self._products = []
        for part in range(layout.chunks):
            unit = (slots - part) % layout.period
            real, imaginary = weights[unit, layout.features]
            both = (real - 1j * imaginary) / 2 if layout.paired else real.astype(np.complex128)
            self._products.append(self.ring.encode(both))
        shift = np.zeros(layout.period)
        shift[:hidden] = np.ldexp(self.hidden * units, self.ring.chosen.row_bits)
        self._shift = self.ring.encode(shift[slots % layout.period].astype(np.complex128))
        self._last = self.ring.encode(self._traces(units))

    def _traces(self, units: Floats) -> Complexes:
        """Slots of Σ_o X^o w_o: the weights of output o times ζ^o."""
        layout, slots = self.layout, np.arange(self.ring.slots)
        _, hidden, outputs = layout.sizes
        weights = np.zeros((outputs, layout.period))
        weights[:, :hidden] = np.ldexp(self.last / units**2, self.row_scales.bits)
        root = np.exp(1j * np.pi * exponents(self.ring.degree) / self.ring.degree)
        total = np.zeros(self.ring.slots, dtype=np.complex128)
        for o, row in enumerate(weights):
            total += root**o * row[slots % layout.period]
        return total

    def answer_row(self, row: bytes, keys: EvaluationKeys) -> bytes:
        """The answer to one row in one ciphertext.  Raises `BadMessage` for what is none, or for missing keys."""
        keys.check(self.layout.rotations)
        total = self.evaluate(self.ring.ciphertext(self.ring.read(row)), keys)
        self.ring.reduce(total, 2)
        self.rerandomise(total, keys)
        return self.sample(total, self.masks())

    def evaluate(self, row: Any, keys: EvaluationKeys) -> Any:
        """The network over an encrypted row, but for the last bias: output o is in coefficient o."""
        evaluator = self.ring.evaluator
        total = self._first_layer(row, keys)
        if self.layout.paired:
            self._added(total, keys.turn(total, CONJUGATE))
        for step in self.layout.folds:
            self._added(total, keys.turn(total, step))
        evaluator.add_plain_inplace(total, self._shift)
        evaluator.square_inplace(total)
        keys.relinearise(total)
        if self._last.is_zero():
            return keys.zero(self.ring.context.first_parms_id())
        evaluator.multiply_plain_inplace(total, self._last)
        return total

    def _first_layer(self, row: Any, keys: EvaluationKeys) -> Any:
        """Σ_r turn^r(weights_r · row), by Horner's rule: one rotation key."""
        evaluator, total = self.ring.evaluator, None
        for part, weights in reversed(list(enumerate(self._products))):
            if not weights.is_zero():
                product = self.ring.seal.Ciphertext()
                evaluator.multiply_plain(row, weights, product)
                total = product if total is None else self._added(total, product)
            if part and total is not None:
                total = keys.turn(total, 1)
        return total or keys.zero(self.ring.context.first_parms_id())

    def _added(self, total: Any, other: Any) -> Any:
        self.ring.evaluator.add_inplace(total, other)
        return total

    def masks(self) -> list[int]:
        """For every output its flooding, bias and output noise, a whole number mod the product of two primes."""
        unit = row_unit(self.ring, self.layout, self.row_scales.bits) / self.ring.modulus * self.ring.kept
        extra = self._noise.gaussian(len(self.bias), self.output_noise)
        wide = self._noise.gaussian(len(self.bias), 1.0).tolist()
        exact = [int((b + e) * unit) for b, e in zip(self.bias.tolist(), extra.tolist(), strict=True)]
        return [value + whole_gaussian(z, self.row_scales.sigma) for value, z in zip(exact, wide, strict=True)]

    def rerandomise(self, total: Any, keys: EvaluationKeys) -> None:
        """Add a fresh Enc_pk(0)."""
        self.ring.evaluator.add_inplace(total, keys.zero(self.ring.kept_parms))

    def sample(self, total: Any, masks: list[int]) -> bytes:
        """First coefficients plus `masks`, and the second polynomial, divided down to `ANSWER_BITS` and packed."""
        ring, modulus = self.ring, 1 << ANSWER_BITS
        q0, q1 = ring.primes[:2]
        words = ring.coefficients(total)[0, :, : len(masks)].astype(object)
        first = []
        for low, high, mask in zip(words[0], words[1], masks, strict=True):
            value = low + q0 * ((high - low) * pow(q0, -1, q1) % q1) + mask
            first.append((value * modulus + ring.kept // 2) // ring.kept % modulus)
        second = ring.coefficients(ring.reduce(total, 1))[1, 0].astype(np.float64)
        rounded = np.rint(second * (modulus / q0)).astype(np.uint64) % np.uint64(modulus)
        head = bytes([self.row_scales.bits])
        return head + pack(np.array(first, dtype=np.uint64), modulus) + pack(rounded, modulus)

    # ---- columns

    def begin(self) -> Sums:
        """Sums over no column yet."""
        return Sums(len(self.first), 2 * len(self.ring.primes) * self.ring.degree)

    def add(self, sums: Sums, column: bytes) -> None:
        """Add the next column.  Raises `BadMessage` for what is none, or one too many.

        Weights are whole numbers with Σ |w| below 2^23: products with 30 bits add up exactly.
        """
        if sums.columns == self.first.shape[1]:
            raise BadMessage(f"more than {sums.columns} columns")
        words = self.ring.read(column).reshape(-1)
        waiting = sums.waiting[sums.columns % _GATHERED]
        waiting[: len(words)], waiting[len(words) :] = words & _HALF_MASK, words >> _HALF
        sums.columns += 1
        if sums.columns % _GATHERED == 0 or sums.columns == self.first.shape[1]:
            start = (sums.columns - 1) // _GATHERED * _GATHERED
            weights = self._whole[:, start : sums.columns]
            for at in range(0, sums.totals.shape[1], _BLOCK):
                sums.totals[:, at : at + _BLOCK] += weights @ sums.waiting[: sums.columns - start, at : at + _BLOCK]

    def finish(self, sums: Sums, keys: EvaluationKeys, rows: int) -> list[bytes]:
        """The answers, one an output.  Raises `BadMessage` unless all columns were there and `rows` fit a block."""
        if sums.columns != self.first.shape[1]:
            raise BadMessage(f"{sums.columns} columns, not {self.first.shape[1]}")
        if not 1 <= rows <= self.ring.slots:
            raise BadMessage(f"{rows} rows in a block, not 1 to {self.ring.slots}")
        answers = []
        for k, total in enumerate(self.outputs(sums, keys)):
            self.flood(total, k)
            self.blind(total, rows)
            self.rerandomise(total, keys)
            answers.append(bytes([self.column_scales.bits]) + self.ring.cut_answer(self.ring.reduce(total, 1)))
        return answers

    def outputs(self, sums: Sums, keys: EvaluationKeys) -> list[Any]:
        """The network over all rows, under two primes: a ciphertext an output, the row's number in its slot."""
        ring, evaluator = self.ring, self.ring.evaluator
        totals: list[Any] = [None] * len(self.last)
        weights = np.rint(np.ldexp(self.last / self.column_scales.units**2, self.column_scales.bits))
        for i in range(len(self.first)):
            square = self.hidden_unit(sums, i, keys)
            evaluator.square_inplace(square)
            for o in np.flatnonzero(weights[:, i]).tolist():
                product = ring.seal.Ciphertext()
                evaluator.multiply_plain(square, ring.constant(weights[o, i]), product)
                totals[o] = product if totals[o] is None else self._added(totals[o], product)
        unit = column_unit(ring, self.column_scales.bits) / ring.modulus * ring.kept
        for o, bias in enumerate(self.bias.tolist()):
            if totals[o] is None:
                totals[o] = keys.zero(ring.context.first_parms_id())
            else:
                keys.relinearise(totals[o])
            ring.reduce(totals[o], 2)
            evaluator.add_plain_inplace(totals[o], ring.constant(bias * unit, ring.kept_parms))
        return totals

    def hidden_unit(self, sums: Sums, i: int, keys: EvaluationKeys) -> Any:
        """One unit before its square: high · 2^30 + low, plus the bias."""
        ring, parms = self.ring, self.ring.context.first_parms_id()
        primes = np.array(ring.primes, dtype=np.int64)[:, None]
        both = sums.totals[i].reshape(2, 2, len(ring.primes), ring.degree).astype(np.int64) % primes
        low, high = both.view(np.uint64)
        rest = np.uint64(1 << 60) - primes.view(np.uint64)  # what 2^60 is mod a prime: below 2^24
        words = (high >> _HALF) * rest + ((high & _HALF_MASK) << _HALF) + low
        # SEAL takes no ciphertext that hides nothing
        total = ring.ciphertext(words % primes.view(np.uint64)) if words.any() else keys.zero(parms)
        bias = math.ldexp(self.hidden[i] * self.column_scales.units[i], ring.chosen.column_bits)
        ring.evaluator.add_plain_inplace(total, ring.constant(bias))
        return total

    def flood(self, total: Any, k: int) -> None:
        """Add the Gaussian of deviation `sigma` to every coefficient, in layers: doubles leave low bits zero."""
        sigma = self.column_scales.sigma
        while sigma >= 1.0:
            self._add_slots(total, np.full(2 * self.ring.slots, sigma * math.sqrt(self.ring.slots)))
            sigma = math.ldexp(sigma, -_LAYER_BITS)

    def blind(self, total: Any, rows: int) -> None:
        """Drown what is in slots that hold none of `rows` rows; add the output noise to the others."""
        if rows == self.ring.slots and not self.output_noise:
            return
        unit = column_unit(self.ring, self.column_scales.bits) / self.ring.modulus * self.ring.kept
        level = np.full((2, self.ring.slots), 2.5 * self.ring.kept)  # six deviations of a coefficient: a sixth
        level[:, :rows] = self.output_noise * unit
        self._add_slots(total, level.reshape(-1))

    def _add_slots(self, total: Any, level: Floats) -> None:
        real, imaginary = (self._noise.gaussian(len(level), 1.0) * level).reshape(2, -1)
        self.ring.evaluator.add_plain_inplace(total, self.ring.encode(real + 1j * imaginary, total.parms_id()))


def whole_gaussian(normal: float, sigma: float) -> int:
    """The whole number σ · z, σ a power of two: the bits that a double leaves zero are uniform."""
    free = max(int(math.log2(sigma)) - 52, 0)
    return (int(math.ldexp(normal, int(math.log2(sigma)) - free)) << free) + secrets.randbits(free)
