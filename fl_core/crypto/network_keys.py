"""The data owner's side of networks under encryption; what it guarantees says `network_inference`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fl_core.crypto import linear_ring, seal_io
from fl_core.crypto.network_encoder import encode_exact, encode_real, residues
from fl_core.crypto.network_ring import (
    ANSWER_BITS,
    FEATURE_LIMIT,
    KEY_BYTES,
    NORM_LIMIT,
    Floats,
    Layout,
    NetworkRing,
    Words,
    check_rotations,
)
from fl_core.errors import BadMessage, DataError

MOST_BITS, LEAST_BITS = 120, 16  # of the weights' scale, which an answer names
_ANSWER_WORD = 6


class NetworkKey:
    """The data owner's side.  Its secret key is new, and lives as long as this object.

    Parameters
    ----------
    rotations : steps that `Layout.rotations` names, of all layouts that it will ask; () for columns only.

    Attributes
    ----------
    public : public key, relinearisation key and rotation keys, `ring.key_bytes(rotations)` bytes.
    """

    def __init__(self, ring: NetworkRing, rotations: Sequence[int] = ()) -> None:
        self._ring = ring
        generator = ring.seal.KeyGenerator(ring.context)
        secret = generator.secret_key()
        self._encryptor = ring.seal.Encryptor(ring.context, secret)
        self._decryptor = ring.seal.Decryptor(ring.context, secret)
        self._secret = self._small(secret)
        public = self._encryptor.encrypt_zero_symmetric(ring.context.key_parms_id())
        parts = [ring.key_forms.cut_public(seal_io.save(public))]
        parts.append(ring.cut_switching(generator.create_relin_keys(), None))
        for step in check_rotations(rotations):
            parts.append(ring.cut_switching(generator.create_galois_keys([ring.galois_element(step)]), step))
        self.public = b"".join(parts)

    def _small(self, secret: Any) -> Words:
        """(N,) int64: the secret key's coefficients, each -1, 0 or 1."""
        ring, data = self._ring, secret.data()
        words = np.array([data.data(i) for i in range(len(ring.primes) * ring.degree)], dtype=np.uint64)
        both = np.stack([words.reshape(-1, ring.degree)] * 2)
        found = ring.coefficients(ring.ciphertext(both))[0, 0].astype(np.int64)
        return np.where(found > 1, -1, found)

    def encrypt_row(self, row: Floats, layout: Layout) -> bytes:
        """One row, (inputs,) float64 for which `check_features` holds, in one ciphertext; else `DataError`."""
        if row.shape != layout.sizes[:1]:
            raise DataError("features", f"{row.size} features", allowed=f"{layout.sizes[0]}")
        check_features(row)
        real, imaginary = np.append(row, 0.0)[layout.features]
        parts = encode_exact(real + 1j * imaginary, self._ring.chosen.row_bits)
        return self._encrypt(residues(parts, self._ring.primes))

    def encrypt_columns(self, x: Floats) -> Iterator[bytes]:
        """A block of rows, (rows, d) float64 as for `encrypt_row`: d ciphertexts, one after the other."""
        check_features(x)
        if x.ndim != 2 or not 1 <= len(x) <= self._ring.slots:
            raise DataError("features", f"a block of {len(x)} rows", allowed=f"1 to {self._ring.slots}")
        return self._columns(x)

    def _columns(self, x: Floats) -> Iterator[bytes]:
        ring = self._ring
        for column in x.T:
            slots = np.zeros(ring.slots)
            slots[: len(x)] = column
            yield self._encrypt(residues([encode_real(slots, ring.chosen.column_bits)], ring.primes))

    def _encrypt(self, message: Words) -> bytes:
        """c0 = m + e - a·s, a from a key of its own: SEAL's seeds take the server longer.

        (m + c0, c1) - (0, a) opens as m + c0 + c1·s - a·s, where (c0, c1) is SEAL's encryption of zero.
        """
        ring, zero, found = self._ring, self._ring.seal.Ciphertext(), self._ring.seal.Plaintext()
        self._encryptor.encrypt_zero_symmetric(zero)
        zero.scale = 1.0
        key = os.urandom(KEY_BYTES)
        # SEAL takes no ciphertext whose second polynomial is zero: both get a one
        one = np.zeros_like(message)
        one[:, 0] = 1
        total = ring.ciphertext(np.stack([message, one]), transformed=False)
        ring.evaluator.add_inplace(total, zero)
        primes = np.array(ring.primes, dtype=np.uint64)[:, None]
        taken = ring.ciphertext(np.stack([np.zeros_like(message), (ring.expand(key) + np.uint64(1)) % primes]))
        ring.evaluator.sub_inplace(total, taken)
        self._decryptor.decrypt(total, found)
        return ring.cut(ring.plaintext_words(found), key)

    def open_row(self, answer: bytes, layout: Layout) -> Floats:
        """The outputs for one row, (outputs,) float64.

        An answer under another key opens as noise.  Raises `BadMessage` for what is no answer.
        """
        ring, outputs = self._ring, layout.sizes[-1]
        if len(answer) != answer_bytes(ring, outputs):
            raise BadMessage(f"an answer of {len(answer)} bytes, not {answer_bytes(ring, outputs)}")
        first, second = np.empty(outputs, dtype=np.uint64), np.empty(ring.degree, dtype=np.uint64)
        linear_ring.unpack(answer, 1, 1 << ANSWER_BITS, first)
        linear_ring.unpack(answer, 1 + _ANSWER_WORD * outputs, 1 << ANSWER_BITS, second)
        found, half = np.empty(outputs), 1 << (ANSWER_BITS - 1)
        for o in range(outputs):
            turned = np.concatenate([self._secret[o::-1], -self._secret[:o:-1]])  # X^N = -1
            value = int(first[o]) + int(second.astype(np.int64) @ turned)
            found[o] = (value + half) % (2 * half) - half
        unit = row_unit(ring, layout, _bits(answer)) / ring.modulus * 2.0**ANSWER_BITS
        return found / unit

    def open_columns(self, answers: list[bytes], rows: int) -> Floats:
        """The outputs for a block's rows, (rows, outputs) float64.  Raises `BadMessage` for others than its own."""
        return np.stack([self._open_column(answer, rows) for answer in answers], axis=1)

    def _open_column(self, answer: bytes, rows: int) -> Floats:
        ring, plaintext = self._ring, self._ring.seal.Plaintext()
        self._decryptor.decrypt(ring.read_answer(answer[1:]), plaintext)
        slots = np.array(ring.encoder.decode_complex(plaintext))[:rows]
        # under another key slots are √(N/24) · q0
        if not (np.maximum(np.abs(slots.real), np.abs(slots.imag)) <= ring.primes[0] / 2).all():
            raise BadMessage("outputs out of range: they belong to another key")
        return np.asarray(slots.real / (column_unit(ring, _bits(answer)) / ring.modulus * ring.primes[0]))


def check_features(x: Floats) -> None:
    """`DataError` unless `x`, a row or rows, is finite, within ±`FEATURE_LIMIT`, no row longer than `NORM_LIMIT`."""
    if not (np.abs(x) <= FEATURE_LIMIT).all():
        worst = "NaN" if np.isnan(x).any() else f"{np.abs(x).max():g}"
        raise DataError("features", f"a scaled value of size {worst}", allowed=f"finite, within ±{FEATURE_LIMIT:g}")
    longest = float(np.sqrt((x * x).sum(axis=-1)).max(initial=0.0))
    if longest > NORM_LIMIT:
        problem = f"a row of length {longest:g} after scaling (root of the sum of squares)"
        raise DataError("features", problem, allowed=f"at most {NORM_LIMIT:g}")


def answer_bytes(ring: NetworkRing, outputs: int) -> int:
    """Bytes of the answer to a row: bits of the scale, `outputs` coefficients, a polynomial."""
    return 1 + _ANSWER_WORD * (outputs + ring.degree)


def row_unit(ring: NetworkRing, layout: Layout, bits: int) -> float:
    """What an output of 1 is in a coefficient mod the modulus of a ciphertext."""
    return math.ldexp(1.0 / layout.period, 2 * ring.chosen.row_bits + bits)


def column_unit(ring: NetworkRing, bits: int) -> float:
    """What an output of 1 is in a slot mod the modulus of a ciphertext."""
    return math.ldexp(1.0, 2 * ring.chosen.column_bits + bits)


def _bits(answer: bytes) -> int:
    if not LEAST_BITS <= answer[0] <= MOST_BITS:
        raise BadMessage(f"a scale of {answer[0]} bits")
    return answer[0]
