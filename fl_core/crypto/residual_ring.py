"""Parameters, scales and wire forms for encrypted residuals; what they are for and guarantee says `residuals`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto import seal_io
from fl_core.crypto.profiles import HE_STANDARD_128
from fl_core.crypto.seal_stream import CiphertextForm
from fl_core.errors import BadMessage, JobFailed, JobFileError

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

FEATURE_LIMIT = 10.0
MAX_ROWS = 1 << 17  # of a batch: beyond it the flooding is not well above the noise
MAX_WEIGHT = 1024.0
FLOOD = 2.0**-18


@dataclass(frozen=True)
class ResidualSet:
    """A parameter set: ring degree, bits of the one prime, of the columns' scale, and at most of the residuals'."""

    name: str
    degree: int
    prime_bits: int
    column_bits: int
    most_residual_bits: int

    def __post_init__(self) -> None:
        if self.prime_bits > HE_STANDARD_128.get(self.degree, 0):
            raise ValueError(f"{self.name}: {self.prime_bits} bits at N={self.degree} are under 128 bits of security")


CKKS_RESIDUALS = ResidualSet("CKKS_RESIDUALS", degree=2048, prime_bits=54, column_bits=17, most_residual_bits=36)

_SEED = 64
_TAIL = 17 + _SEED  # of a seeded stream: nested header, PRNG type, seed
WORD = 7  # bytes of a number mod q on its way


class ResidualRing:
    """Ring and scales for batches of at most `rows` rows and residuals within ±`weight`; the same at both parties.

    Parameters
    ----------
    rows : of the largest batch, 1 to `MAX_ROWS`.
    weight : the largest class weight, in (0, `MAX_WEIGHT`].

    Attributes
    ----------
    unit : what one unit of Σ r x is in a constant coefficient. sigma : deviation of the flooding, in units of Σ r x.
    rounding : at most the deviation of what rounding the column's coefficients does, in the same unit.
    public_bytes, block_bytes, reply_bytes : of a public key, of one ciphertext of residuals, of a reply.

    Raises
    ------
    JobFileError : `rows` or `weight` out of range.
    """

    def __init__(self, rows: int, weight: float = 1.0) -> None:
        if not 1 <= rows <= MAX_ROWS:
            raise JobFileError("vertical.batch_size", f"a batch of {rows} rows", allowed=f"1 to {MAX_ROWS} with ckks")
        if not 0.0 < weight <= MAX_WEIGHT:
            raise JobFileError("vertical.class_weight", f"{weight:g}", allowed=f"up to {MAX_WEIGHT:g} with ckks")
        self.rows, self.weight, self.degree = rows, weight, CKKS_RESIDUALS.degree
        self._open_context()
        self.column_scale = 2.0**CKKS_RESIDUALS.column_bits
        # a hundredth of the head-room is more than noise and flooding take
        largest = 2.0 / self.degree * self.column_scale * FEATURE_LIMIT * weight * rows
        bits = math.floor(math.log2(0.99 * (self.modulus / 2) / largest))
        self.residual_scale = 2.0 ** min(bits, CKKS_RESIDUALS.most_residual_bits)
        self.unit = self.residual_scale * self.column_scale * 2.0 / self.degree
        self.sigma = FLOOD * rows * weight
        # N errors of deviation 1/√12, in pairs where all slots are real, times coefficients of r, √(2·rows)/N · weight
        self.rounding = math.sqrt(rows / (3.0 * self.degree)) * weight / (self.column_scale * 2.0 / self.degree)
        self.public_bytes = self.block_bytes = WORD * self.degree + _SEED
        self.reply_bytes = WORD * (self.degree + 1)
        self._learn_forms()

    def _open_context(self) -> None:
        from tenseal import sealapi

        self.seal = sealapi
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(self.degree)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(self.degree, [CKKS_RESIDUALS.prime_bits]))
        self.context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise JobFailed(f"SEAL refuses {CKKS_RESIDUALS.name}: {self.context.parameters_error_name()}")
        self.modulus = int(parameters.coeff_modulus()[0].value())
        self.encoder, self.evaluator = sealapi.CKKSEncoder(self.context), sealapi.Evaluator(self.context)

    def _learn_forms(self) -> None:
        """Write one ciphertext of each kind under a throw-away key."""
        encryptor = self.seal.Encryptor(self.context, self.seal.KeyGenerator(self.context).secret_key())
        self.public_form = _SeededForm(self, seal_io.save(encryptor.encrypt_zero_symmetric()))
        sample, product = self.encode(np.ones(1), self.residual_scale), self.seal.Ciphertext()
        self.residual_form = _SeededForm(self, seal_io.save(encryptor.encrypt_symmetric(sample)))
        encryptor.encrypt_symmetric(sample, product)
        self.evaluator.multiply_plain_inplace(product, self.encode(np.ones(1), self.column_scale))
        self._full_form = CiphertextForm(seal_io.save(product), words=2 * self.degree, seeded=False)

    def blocks(self, rows: int) -> int:
        """Ciphertexts for a batch of `rows` rows."""
        return -(-rows // self.degree)

    def encode(self, values: Floats, scale: float, *, conjugate: bool = False) -> Any:
        """A SEAL plaintext of up to N reals: the first half real parts, the rest (negated) imaginary parts."""
        half = self.degree // 2
        slots = np.zeros(half, dtype=np.complex128)
        slots.real[: len(values)] = values[:half]
        slots.imag[: max(len(values) - half, 0)] = -values[half:] if conjugate else values[half:]
        plaintext = self.seal.Plaintext()
        self.encoder.encode(slots.tolist(), scale, plaintext)
        return plaintext

    def words(self, product: Any) -> tuple[Words, Words]:
        """The NTT words of both polynomials, (N,) each, of a ciphertext at the scale of a product."""
        body = self._full_form.check(seal_io.save(product))
        both = np.frombuffer(body[-16 * self.degree :], dtype="<u8")
        return both[: self.degree], both[self.degree :]

    def constant(self, word_sum: int) -> int:
        """The constant coefficient of a polynomial, from the sum of its NTT words."""
        return word_sum * pow(self.degree, -1, self.modulus) % self.modulus

    def unpack(self, data: bytes | bytearray | memoryview) -> Words:
        """Numbers mod q of `WORD` bytes each; `BadMessage` for one that is not below q."""
        wide = np.zeros((len(data) // WORD, 8), dtype=np.uint8)
        wide[:, :WORD] = np.frombuffer(data, dtype=np.uint8).reshape(-1, WORD)
        words = wide.view("<u8").reshape(-1)
        if words.max(initial=0) >= self.modulus:
            raise BadMessage("a coefficient beyond the modulus")
        return words


class _SeededForm:
    """A seeded ciphertext as it travels, coefficients and seed alone, and as the stream that SEAL loads."""

    def __init__(self, ring: ResidualRing, sample: bytes) -> None:
        self._ring, self._form = ring, CiphertextForm(sample, words=ring.degree, seeded=True)
        plain = self._form.check(sample)
        self._start = len(plain) - _TAIL - 8 * ring.degree
        self._head, self._tail = plain[: self._start], plain[-_TAIL:-_SEED]

    def cut(self, stream: bytes) -> bytes:
        """What travels of a stream that SEAL wrote here."""
        plain = self._form.check(stream)
        return pack(np.frombuffer(plain[self._start : -_TAIL], dtype="<u8")) + plain[-_SEED:]

    def load(self, item: Any, data: bytes | bytearray | memoryview) -> Any:
        """The SEAL object of what travelled; `BadMessage` for what is none."""
        if len(data) != self._ring.block_bytes:
            raise BadMessage(f"a ciphertext of {len(data)} bytes, not {self._ring.block_bytes}")
        words = self._ring.unpack(data[:-_SEED])
        if not words.all():  # 2^-43 of the honest ones; a key of zeros is refused by it
            raise BadMessage("a polynomial with zeros")
        return seal_io.load(item, self._ring.context, self._head + words.tobytes() + self._tail + bytes(data[-_SEED:]))


def pack(words: Words) -> bytes:
    """Numbers mod q as `WORD` bytes each."""
    return np.ascontiguousarray(words, dtype="<u8").view(np.uint8).reshape(-1, 8)[:, :WORD].tobytes()
