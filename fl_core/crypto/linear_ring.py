"""Parameters, scales and wire forms for linear models under encryption; what they guarantee says `linear_inference`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl_core.crypto import seal_io
from fl_core.crypto.profiles import HE_STANDARD_128
from fl_core.crypto.seal_stream import HEADER_BYTES, CiphertextForm, inflated, plain_stream
from fl_core.errors import BadMessage, JobFailed, UsageError

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

FEATURE_LIMIT = 64.0
COLUMN_LIMIT = 3.0  # of Σ |x| / slots in one ciphertext
STATISTICAL_BITS = 40


@dataclass(frozen=True)
class LinearSet:
    """A parameter set.

    degree, prime_bits : of the ring; the last prime is in keys only, the one before is divided out of an answer.
    feature_bits : of the features' scale. answers : for how many of them together λ holds.
    factor_bits : of the scale of a row's random factor; 0 where scores are given.
    """

    name: str
    feature_bits: int
    answers: int
    factor_bits: int = 0
    degree: int = 4096
    prime_bits: tuple[int, ...] = (46, 47, 16)

    def __post_init__(self) -> None:
        if sum(self.prime_bits) > HE_STANDARD_128.get(self.degree, 0):
            raise ValueError(f"{self.name}: {self.prime_bits} bits at N={self.degree} are under 128 bits of security")


CKKS_LINEAR = LinearSet("CKKS_LINEAR", feature_bits=70, answers=1)
CKKS_LINEAR_MANY = LinearSet("CKKS_LINEAR_MANY", feature_bits=76, answers=1 << 20)
CKKS_LINEAR_LABELS = LinearSet("CKKS_LINEAR_LABELS", feature_bits=64, answers=1, factor_bits=10)
SETS = {chosen.name: chosen for chosen in (CKKS_LINEAR, CKKS_LINEAR_MANY, CKKS_LINEAR_LABELS)}

KEY_BYTES = 32
_LONG, _SHORT = 6, 2  # bytes of a number mod a prime on its way
_SPARE = 32
_SEED = 64
_TAIL = 17 + _SEED  # of a seeded stream: nested header, PRNG type, seed
_PLAINTEXT_PREFIX = 32 + 8 + 8 + 16 + 8  # digest, coefficients, scale, nested header, word count


@cache
def open_ring(name: str) -> LinearRing:
    """The ring of a parameter set, one a process.  An unknown name is a `UsageError`."""
    if name not in SETS:
        raise UsageError(f"parameter set {name[:40]!r}; allowed: {', '.join(SETS)}")
    return LinearRing(SETS[name])


class LinearRing:
    """Context and wire forms of one `LinearSet`; the same at both parties.

    Attributes
    ----------
    slots : complex numbers a ciphertext. rows : the most rows a block of columns holds.
    modulus : of a ciphertext before an answer's last step, q0 · q1.
    public_form, answer_form : how keys and answers travel. column_bytes : of an encrypted column (or row).
    """

    def __init__(self, chosen: LinearSet) -> None:
        from tenseal import sealapi

        self.seal, self.chosen, self.degree = sealapi, chosen, chosen.degree
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(self.degree)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(self.degree, list(chosen.prime_bits)))
        self.context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise JobFailed(f"SEAL refuses {chosen.name}: {self.context.parameters_error_name()}")
        self.primes = [int(prime.value()) for prime in parameters.coeff_modulus()]
        self.modulus = self.primes[0] * self.primes[1]
        self.encoder, self.evaluator = sealapi.CKKSEncoder(self.context), sealapi.Evaluator(self.context)
        self.slots, self.rows = self.degree // 2, self.degree
        self.feature_scale = 2.0**chosen.feature_bits
        self._learn_forms()

    def _learn_forms(self) -> None:
        """Write one object of each kind under a throw-away key."""
        encryptor = self.seal.Encryptor(self.context, self.seal.KeyGenerator(self.context).secret_key())
        key = seal_io.save(encryptor.encrypt_zero_symmetric(self.context.key_parms_id()))
        self.public_form = PackedForm(self, key, self.primes, seed=_SEED)
        sample, full, last = self.encode(np.ones(1), self.feature_scale), self.seal.Ciphertext(), self.seal.Ciphertext()
        encryptor.encrypt_symmetric(sample, full)
        self._full_form = PackedForm(self, seal_io.save(full), self.primes[:2] * 2)
        self.evaluator.rescale_to_next(full, last)
        self.answer_form = PackedForm(self, seal_io.save(last), self.primes[:1] * 2)
        self.answer_scale = float(last.scale)
        self._plaintext_head = plaintext_body(self, sample)[:_PLAINTEXT_PREFIX]
        self.column_bytes = 2 * _LONG * self.degree + KEY_BYTES

    def ciphertext(self, words: Words) -> Any:
        """A SEAL ciphertext at the features' scale of (4, N) words: each polynomial under both primes."""
        return self._full_form.load_words(self.seal.Ciphertext(), words)

    def cut_column(self, words: Words, key: bytes) -> bytes:
        """What travels of a ciphertext: its first polynomial, (2, N), and the key that `expand` makes the second of."""
        return b"".join(pack(row, prime) for row, prime in zip(words, self.primes, strict=False)) + key

    def read_column(self, data: bytes) -> Words:
        """The (4, N) words of a ciphertext that travelled; `BadMessage` for what is none."""
        if len(data) != self.column_bytes:
            raise BadMessage(f"a ciphertext of {len(data)} bytes, not {self.column_bytes}")
        words, size = np.empty((4, self.degree), dtype=np.uint64), _LONG * self.degree
        for i, prime in enumerate(self.primes[:2]):
            unpack(data, i * size, prime, words[i])
        words[2:] = self.expand(data[-KEY_BYTES:])
        return words

    def expand(self, key: bytes) -> Words:
        """(2, N) words, uniform below q0 and q1: AES-256 in counter mode, words beyond a prime left out."""
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        drawn = np.frombuffer(stream.update(bytes(16 * (self.degree + _SPARE))), dtype="<u8").reshape(2, -1)
        words = np.empty((2, self.degree), dtype=np.uint64)
        for row, found, prime in zip(drawn, words, self.primes, strict=False):
            low = row & np.uint64((1 << prime.bit_length()) - 1)
            found[:] = low[low < prime][: self.degree]  # one in 2^26 is left out
        return words

    def encode(self, values: Floats, scale: float) -> Any:
        """A SEAL plaintext of up to N reals: the first half real parts, the rest imaginary parts."""
        slots = np.zeros(self.slots, dtype=np.complex128)
        slots.real[: len(values)] = values[: self.slots]
        slots.imag[: max(len(values) - self.slots, 0)] = values[self.slots :]
        return self.encode_slots(slots, scale)

    def encode_slots(self, slots: NDArray[np.complex128], scale: float) -> Any:
        """A SEAL plaintext of complex numbers, one a slot."""
        plaintext = self.seal.Plaintext()
        try:
            self.encoder.encode(slots.tolist(), scale, plaintext)
        except (RuntimeError, ValueError):
            raise UsageError(f"numbers too large for {self.chosen.name}") from None
        return plaintext

    def polynomial(self, constant: int) -> Any:
        """A plaintext at the features' scale: the constant coefficient as given, all others uniform mod q0 · q1."""
        words = []
        for prime in self.primes[:2]:
            drawn = uniform(self.degree, prime)
            others = _sum(drawn[1:])
            drawn[0] = (constant * self.degree - others) % prime  # words of a transform add up to N · constant
            words.append(drawn)
        body = self._plaintext_head + np.concatenate(words).astype("<u8").tobytes()
        return seal_io.load(self.seal.Plaintext(), self.context, plain_stream(body))

    def words(self, plaintext: Any) -> Words:
        """The (2, N) words of a plaintext under both primes."""
        return np.frombuffer(plaintext_body(self, plaintext)[_PLAINTEXT_PREFIX:], dtype="<u8").reshape(2, self.degree)

    def constant(self, plaintext: Any) -> int:
        """The constant coefficient of a plaintext mod q0, centred."""
        prime = self.primes[0]
        total = sum(plaintext.data(i) for i in range(self.degree))
        value = total * pow(self.degree, -1, prime) % prime
        return value - prime if value > prime // 2 else value


def plaintext_body(ring: LinearRing, plaintext: Any) -> bytes:
    """The inflated stream of a plaintext under both primes, without its header."""
    return inflated(seal_io.save(plaintext), _PLAINTEXT_PREFIX + 16 * ring.degree)


class PackedForm:
    """A SEAL object as it travels, coefficients packed and the seed alone, and as the stream that SEAL loads.

    Parameters
    ----------
    sample : a stream that SEAL wrote here. primes : of each row of N words in it. seed : bytes of one at its end.

    Attributes
    ----------
    bytes : of one; no other size is taken.
    """

    def __init__(self, ring: LinearRing, sample: bytes, primes: list[int], *, seed: int = 0) -> None:
        self._ring, self._primes, self._seed = ring, primes, seed
        self._end = _TAIL if seed else 0
        self._size = 8 * len(primes) * ring.degree
        plain = CiphertextForm(sample, words=len(primes) * ring.degree, seeded=bool(seed)).check(sample)
        self._start = len(plain) - self._end - self._size
        self._head, self._tail = plain[: self._start], plain[len(plain) - self._end : len(plain) - seed]
        self.bytes = sum(_width(prime) for prime in primes) * ring.degree + seed

    def cut(self, stream: bytes) -> bytes:
        """What travels of a stream that SEAL wrote here."""
        body = inflated(stream, self._start - HEADER_BYTES + self._size + self._end)
        words = np.frombuffer(body, dtype="<u8", count=self._size // 8, offset=self._start - HEADER_BYTES)
        rows = words.reshape(len(self._primes), -1)
        parts = [pack(row, prime) for row, prime in zip(rows, self._primes, strict=True)]
        return b"".join(parts) + body[len(body) - self._seed :]

    def load(self, item: Any, data: bytes) -> Any:
        """The SEAL object of what travelled; `BadMessage` for what is none."""
        if len(data) != self.bytes:
            raise BadMessage(f"an object of {len(data)} bytes, not {self.bytes}")
        words, at = np.empty((len(self._primes), self._ring.degree), dtype=np.uint64), 0
        for row, prime in zip(words, self._primes, strict=True):
            unpack(data, at, prime, row)
            at += _width(prime) * self._ring.degree
        return self.load_words(item, words, data[at:])

    def load_words(self, item: Any, words: Words, seed: bytes = b"") -> Any:
        """The SEAL object of (rows, N) words."""
        stream = self._head + words.astype("<u8", copy=False).tobytes() + self._tail + seed
        return seal_io.load(item, self._ring.context, stream)


def _width(prime: int) -> int:
    return _LONG if prime.bit_length() > 16 else _SHORT


def pack(words: Words, prime: int) -> bytes:
    """(N,) numbers below `prime`, of at most 48 bits: all low halves of 32 bits, then the 16 bits above; or 16 bits."""
    if _width(prime) == _SHORT:
        return words.astype("<u2").tobytes()
    return words.astype("<u4").tobytes() + (words >> np.uint64(32)).astype("<u2").tobytes()


def unpack(data: bytes, at: int, prime: int, words: Words) -> None:
    """Fill (N,) `words` from what `pack` wrote at byte `at`; `BadMessage` unless they look like numbers mod `prime`."""
    if _width(prime) == _SHORT:
        words[:] = np.frombuffer(data, dtype="<u2", count=len(words), offset=at)
    else:
        words[:] = np.frombuffer(data, dtype="<u2", count=len(words), offset=at + 4 * len(words))
        np.left_shift(words, np.uint64(32), out=words)
        np.bitwise_or(words, np.frombuffer(data, dtype="<u4", count=len(words), offset=at), out=words)
    if int(words.max()) >= prime:
        raise BadMessage("a coefficient beyond the modulus")
    if np.count_nonzero(words) < len(words) * 63 // 64:  # honest ones are uniform
        raise BadMessage("a polynomial of zeros")


def multiply(a: Words, b: Words, prime: int) -> Words:
    """a · b mod a prime below 2^50, exact: the quotient in doubles is at most one off, the rest is taken mod 2^64."""
    quotient = (a.astype(np.float64) * b.astype(np.float64) / prime).astype(np.uint64)
    rest = (a * b - quotient * np.uint64(prime)).view(np.int64)
    return np.asarray(rest % prime).view(np.uint64)


def uniform(count: int, bound: int) -> Words:
    """(count,) uint64, uniform below `bound`, from the operating system."""
    mask, found = np.uint64((1 << bound.bit_length()) - 1), np.empty(0, dtype=np.uint64)
    while len(found) < count:
        drawn = np.frombuffer(os.urandom(8 * (count - len(found)) + 64), dtype="<u8") & mask
        found = np.concatenate([found, drawn[drawn < bound]])
    return found[:count].copy()


def _sum(words: Words) -> int:
    """The exact sum of up to 2^32 words."""
    return (int((words >> np.uint64(32)).sum()) << 32) + int((words & np.uint64(0xFFFFFFFF)).sum())


def weight_bits(ring: LinearRing, largest: float) -> int:
    """Bits of the weights' scale at which numbers up to `largest` have room.

    Raises `UsageError` where fewer than 6 are left: the model's weights are too large.
    """
    chosen = ring.chosen
    room = math.log2(0.6 * ring.modulus / 2) - chosen.feature_bits - chosen.factor_bits
    bits = math.floor(room - math.log2(max(largest, 2.0**-10)))
    if bits < 6:
        raise UsageError(f"weights of the model: scores up to {largest:g} do not fit {chosen.name}")
    return min(bits, 24)
