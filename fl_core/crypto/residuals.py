"""Inner products of encrypted residuals with a column that another party keeps: the cipher of `logistic_ckks`.

Plain SEAL (`tenseal.sealapi`), CKKS on one 54-bit prime: N = 2048 reals a ciphertext, two in each slot.  The key holder
packs r1 + i·r2, the column's owner x1 − i·x2; the constant coefficient of the product is then 2/N · Σ r x, at the
product of both scales.  Nothing is rotated or relinearised, so there are no further keys.

A reply
-------
For its column x the owner computes c' = Enc(r)·x + Enc_pk(0), Enc_pk(0) fresh, and sends c1' whole, but of c0' only the
constant coefficient plus a mask that is uniform mod q: the others would be opened for nothing.  The key holder opens
mask + product + noise, which is uniform whatever x is.  c1' = c1·x + (a·u + e1) is a Ring-LWE sample under the owner's
one-time secret u, which hides c1·x.  Without Enc_pk(0) c1'/c1 is the encoded column; without the mask the opened value
is the gradient.

Of that sample only a is the key holder's, and only as a 64-byte seed that SEAL expands: it cannot be zero.  SEAL's
Python interface cannot write a public key with a seed; but a public key is an encryption of zero under the secret key,
and those it writes with one.

What the column's owner learns
------------------------------
Σ r x with noise.  A ciphertext's noise depends on its key (Li and Micciancio, EUROCRYPT 2021), so the key holder adds a
Gaussian of deviation σ = FLOOD · rows · weight, in units of Σ r x, before it answers.  `ResidualRing` takes the largest
scale of r at which no column within ±`FEATURE_LIMIT` can overflow; σ is then about 2^31 in the constant coefficient:

- noise of Enc(r), times x, has deviation 3.24 · 2^17 · √(2·rows/N) · rms(x): for the worst allowed column, all ±10, σ
  is 40 times that at `MAX_ROWS` rows and 330 times at 2,048, for a standardised one ten times as much again;
- noise that depends on the key, <e1, s> − <e, u> + e0, has deviation 170, so σ is 2^23 times that.  An answer has a
  divergence of 2^-48 from one that does not depend on the key (2^-42 at ten rows): regression on the key would take
  some 2^60 answers (2^55).

This is no 2^-40 indistinguishability, for which one prime has no room.  FLOOD = 2^-18 is an error of 4·10^-6 on a
batch's mean gradient, a thousandth of its sampling error; rounding the column adds up to √rows · weight / 10^4 to
the sum, which is less from 700 rows on.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from fl_core.crypto import seal_io
from fl_core.crypto.noise import OsStream
from fl_core.crypto.residual_ring import FEATURE_LIMIT, WORD, Floats, ResidualRing, Words, pack
from fl_core.errors import BadMessage, DataError, TrainingDiverged

_LIMB = 18  # bits: a product of two, summed 2^17 times, is exact in float64


class ResidualKey:
    """The key holder's side.  Its secret key is new, and lives as long as this object.

    Attributes
    ----------
    public : the public key, `ring.public_bytes` bytes.
    """

    def __init__(self, ring: ResidualRing) -> None:
        self._ring, self._noise = ring, OsStream()
        secret = ring.seal.KeyGenerator(ring.context).secret_key()
        self._encryptor = ring.seal.Encryptor(ring.context, secret)
        self.public = ring.public_form.cut(seal_io.save(self._encryptor.encrypt_zero_symmetric()))
        words = secret.data()
        self._limbs = _limbs(np.array([words.data(i) for i in range(ring.degree)], dtype=np.uint64))

    def encrypt(self, residuals: Floats) -> bytes:
        """Residuals of a batch, (rows,) float64 within ±`ring.weight`, in `ring.blocks(rows)` ciphertexts.

        Raises
        ------
        TrainingDiverged : a residual that is not finite, or larger.
        """
        ring = self._ring
        limit = ring.weight * (1 + 1e-9)
        if len(residuals) > ring.rows or not (np.abs(residuals) <= limit).all():
            raise TrainingDiverged(f"residuals of {len(residuals)} rows are not finite and within ±{ring.weight:g}")
        blocks = []
        for start in range(0, len(residuals), ring.degree):
            plaintext = ring.encode(residuals[start : start + ring.degree], ring.residual_scale)
            blocks.append(ring.residual_form.cut(seal_io.save(self._encryptor.encrypt_symmetric(plaintext))))
        return b"".join(blocks)

    def answer(self, replies: bytes | bytearray | memoryview) -> Words:
        """Open replies and flood what was in them.

        Parameters
        ----------
        replies : `ring.reply_bytes` each.

        Returns
        -------
        (count,) uint64 mod q, for the columns' owner alone.

        Raises
        ------
        BadMessage : a coefficient beyond the modulus.
        """
        ring = self._ring
        words = ring.unpack(replies).reshape(-1, ring.degree + 1)
        noise = np.rint(self._noise.gaussian(len(words), ring.sigma * ring.unit))
        opened = [
            (int(c0) + ring.constant(inner) + int(flood)) % ring.modulus
            for c0, inner, flood in zip(words[:, 0], _inner(words[:, 1:], self._limbs), noise, strict=True)
        ]
        return np.array(opened, dtype="<u8")


class ColumnSide:
    """The side of the columns' owner.

    Parameters
    ----------
    public : what the key holder sent as `ResidualKey.public`.

    Raises
    ------
    BadMessage : it is no public key.
    """

    def __init__(self, ring: ResidualRing, public: bytes | bytearray) -> None:
        self._ring = ring
        key = ring.public_form.load(ring.seal.PublicKey(), public)
        self._encryptor = ring.seal.Encryptor(ring.context, key)
        self._evaluator = ring.evaluator

    def encode(self, column: Floats) -> list[Any]:
        """SEAL plaintexts of a column, (rows,) float64 within ±`FEATURE_LIMIT`; 16 KiB for each block of rows.

        Raises
        ------
        DataError : a value that is not finite, or larger; more rows than the ring is for.
        """
        ring = self._ring
        check_features(column)
        if len(column) > ring.rows:
            raise DataError("features", f"a batch of {len(column)} rows", allowed=f"up to {ring.rows}")
        starts = range(0, len(column), ring.degree)
        return [ring.encode(column[at : at + ring.degree], ring.column_scale, conjugate=True) for at in starts]

    def read(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """The ciphertexts of `ResidualKey.encrypt`; `BadMessage` for what cannot be one."""
        ring, size = self._ring, self._ring.block_bytes
        starts = range(0, len(data), size)
        return [ring.residual_form.load(ring.seal.Ciphertext(), data[at : at + size]) for at in starts]

    def reply(self, residuals: list[Any], column: list[Any]) -> tuple[bytes, int]:
        """What goes to the key holder, and the mask on it, which stays here."""
        ring = self._ring
        total = ring.seal.Ciphertext()
        self._encryptor.encrypt_zero(total)
        total.scale = ring.residual_scale * ring.column_scale
        product = self._product(residuals, column)
        if product is not None:
            self._evaluator.add_inplace(total, product)
        c0, c1 = ring.words(total)
        mask = secrets.randbelow(ring.modulus)
        masked = (ring.constant(_total(c0)) + mask) % ring.modulus
        return masked.to_bytes(WORD, "little") + pack(c1), mask

    def _product(self, residuals: list[Any], column: list[Any]) -> Any:
        """Enc(r)·x, summed over the blocks; None for zeros.  Not for the key holder's eyes: c1 of it is c1·x."""
        total: Any = None
        for block, plaintext in zip(residuals, column, strict=True):
            if plaintext.is_zero():  # SEAL refuses to make a ciphertext that is zero itself
                continue
            product = self._ring.seal.Ciphertext()
            self._evaluator.multiply_plain(block, plaintext, product)
            if total is None:
                total = product
            else:
                self._evaluator.add_inplace(total, product)
        return total

    def open(self, numbers: Words, masks: list[int], absolute: Floats) -> Floats:
        """Take the masks off.

        Parameters
        ----------
        numbers : (count,) uint64, the key holder's answer. absolute : (count,) Σ |x| of each reply's column.

        Returns
        -------
        (count,) float64, Σ r x, each with the flooding's error.

        Raises
        ------
        BadMessage : a number beyond the modulus, or beyond what the column allows: most ciphertexts and answers under
            another key are caught by it, in a batch with several columns nearly all.
        """
        ring = self._ring
        if numbers.max(initial=0) >= ring.modulus:
            raise BadMessage("a number beyond the modulus")
        half, sums = ring.modulus // 2, np.empty(len(numbers))
        for i, (number, mask) in enumerate(zip(numbers, masks, strict=True)):
            sums[i] = ((int(number) - mask + half) % ring.modulus - half) / ring.unit
        if (np.abs(sums) > ring.weight * absolute + 16.0 * (ring.sigma + ring.rounding)).any():
            raise BadMessage("a gradient that the column does not allow: it belongs to another key or ciphertext")
        return sums


def check_features(x: Floats) -> None:
    """`DataError` unless all of `x` is finite and within ±`FEATURE_LIMIT`."""
    if not (np.abs(x) <= FEATURE_LIMIT).all():
        worst = "NaN" if np.isnan(x).any() else f"{np.abs(x).max():g}"
        raise DataError("features", f"a value of size {worst}", allowed=f"finite, within ±{FEATURE_LIMIT:g} with ckks")


def _total(words: Words) -> int:
    """The exact sum of up to 2^32 words."""
    return (int((words >> np.uint64(32)).sum()) << 32) + int((words & np.uint64(0xFFFFFFFF)).sum())


def _limbs(words: Words) -> Floats:
    """(…, N) numbers below 2^54 → (3, …, N) float64: their lower, middle and upper 18 bits."""
    mask = np.uint64((1 << _LIMB) - 1)
    return np.stack([(words >> np.uint64(k * _LIMB)) & mask for k in range(3)]).astype(np.float64)


def _inner(words: Words, limbs: Floats) -> list[int]:
    """Exact Σ words·key over the last axis of (count, N) words; the key comes in limbs, (3, N)."""
    count, degree = words.shape
    sums = (_limbs(words).reshape(3 * count, degree) @ limbs.T).reshape(3, count, 3)
    return [sum(int(sums[i, row, j]) << (_LIMB * (i + j)) for i in range(3) for j in range(3)) for row in range(count)]
