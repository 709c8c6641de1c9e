"""Parameters, layouts and wire forms for networks under encryption; what they guarantee says `network_inference`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fl_core.crypto import seal_io
from fl_core.crypto.network_wire import WORD_BITS, KeyForms, load, pack, packed_bytes, unpack
from fl_core.crypto.profiles import HE_STANDARD_128
from fl_core.crypto.seal_stream import CiphertextForm, inflated
from fl_core.errors import BadMessage, JobFailed, UsageError

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Words = NDArray[np.uint64]

FEATURE_LIMIT = 8.0
NORM_LIMIT = 64.0  # of a row, √Σ x²: no limit beside the other up to 64 features
CONJUGATE = 0  # the step that stands for complex conjugation, as in SEAL
DEGREE = 16384  # of every set: a layout does not depend on the set
MAX_HIDDEN = 512  # a unit takes 2 MB in a block of columns

KEY_BYTES = 32
ANSWER_BITS = 48  # of a coefficient in the answer to a row
_SPARE = 32
_PLAINTEXT_PREFIX = 32 + 8 + 8 + 16 + 8  # digest, coefficients, scale, nested header, word count


@dataclass(frozen=True)
class NetworkSet:
    """A parameter set: networks with one hidden layer.

    statistical_bits : λ. answers : to rows, or blocks of rows, for how many of them together λ holds.
    row_bits, column_bits : of the features' scale. prime_bits : of the ring; the last prime is in keys only.
    """

    name: str
    statistical_bits: int
    answers: int
    row_bits: int
    column_bits: int
    prime_bits: tuple[int, ...]
    degree: int = DEGREE

    def __post_init__(self) -> None:
        if sum(self.prime_bits) > HE_STANDARD_128.get(self.degree, 0):
            raise ValueError(f"{self.name}: {self.prime_bits} bits at N={self.degree} are under 128 bits of security")
        if self.degree != DEGREE or set(self.prime_bits) != {WORD_BITS} or len(self.prime_bits) < 4:
            raise ValueError(f"{self.name}: N={DEGREE} and four primes of {WORD_BITS} bits or more")


CKKS_NETWORK = NetworkSet("CKKS_NETWORK", 20, 1, row_bits=53, column_bits=57, prime_bits=(60,) * 4)
CKKS_NETWORK_40 = NetworkSet("CKKS_NETWORK_40", 40, 1024, row_bits=78, column_bits=82, prime_bits=(60,) * 5)
SETS = {chosen.name: chosen for chosen in (CKKS_NETWORK, CKKS_NETWORK_40)}


@dataclass(frozen=True)
class Layout:
    """The public shape of a network and how one row lies in the slots.

    Hidden unit i is computed in every slot j with j mod `period` = i.  The `spread` slots with the same j mod `period`
    and different j // `period` hold different features; the rest of the slots repeats them.  Where that has no room,
    a slot holds two features (real and imaginary part), and neighbouring units hold different ones of `chunks` parts,
    which turning by one slot brings together.

    Parameters
    ----------
    sizes : inputs, hidden units, outputs.

    Raises
    ------
    UsageError : sizes that do not fit 8,192 slots.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        slots = DEGREE // 2
        if len(self.sizes) != 3 or not all(type(size) is int and size > 0 for size in self.sizes):
            raise UsageError(f"a network of sizes {self.sizes}; allowed: inputs, one hidden layer, outputs")
        inputs, hidden, outputs = self.sizes
        if inputs > 2 * slots or hidden > MAX_HIDDEN or outputs * self.period > slots:
            allowed = (
                f"{2 * slots} inputs, {MAX_HIDDEN} hidden units, {slots} for these (to a power of two) times outputs"
            )
            raise UsageError(f"a network of sizes {self.sizes}; allowed: up to {allowed}")

    @property
    def period(self) -> int:
        """Hidden units, up to the next power of two."""
        return max(2, _power(self.sizes[1]))

    @property
    def paired(self) -> bool:
        """Whether a slot holds two features."""
        return _power(self.sizes[0]) * self.period > DEGREE // 2

    @property
    def spread(self) -> int:
        """Slots that add up to a hidden unit."""
        return DEGREE // 2 // self.period if self.paired else _power(self.sizes[0])

    @property
    def chunks(self) -> int:
        """Parts that the features are cut into."""
        return _power(-(-self.sizes[0] // (2 * self.spread))) if self.paired else 1

    @property
    def copies(self) -> int:
        """How often a hidden unit's sum is computed from other slots."""
        return DEGREE // 2 // (self.period * self.spread)

    @property
    def folds(self) -> tuple[int, ...]:
        """Steps of the rotations that add up a hidden unit's slots."""
        return tuple(self.period << i for i in range(self.spread.bit_length() - 1))

    @property
    def rotations(self) -> tuple[int, ...]:
        """Steps that a row needs keys for, ascending; `CONJUGATE` is 0."""
        return (CONJUGATE,) * self.paired + (1,) * (self.chunks > 1) + self.folds

    @cached_property
    def features(self) -> NDArray[np.int64]:
        """(2, slots): which feature is the real and which the imaginary part of a slot; `inputs` where none is."""
        inputs, slot = self.sizes[0], np.arange(DEGREE // 2)
        index, part = slot // self.period % self.spread, slot % self.chunks
        if self.paired:
            index = part * 2 * self.spread + index
        both = np.stack([index, index + self.spread if self.paired else np.full_like(index, inputs)])
        return np.minimum(both, inputs)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


@cache
def open_network_ring(name: str) -> NetworkRing:
    """The ring of a parameter set, one a process.  An unknown name is a `UsageError`."""
    if name not in SETS:
        raise UsageError(f"parameter set {name[:40]!r}; allowed: {', '.join(SETS)}")
    return NetworkRing(SETS[name])


def check_rotations(rotations: Sequence[int]) -> tuple[int, ...]:
    """The same steps, ascending, each once; `UsageError` for what is none."""
    found = tuple(sorted(set(rotations)))
    if found and not (found[0] >= 0 and found[-1] < DEGREE // 2):
        raise UsageError(f"rotations by {found[0]} to {found[-1]}; allowed: 0 to {DEGREE // 2 - 1}")
    return found


class NetworkRing:
    """Context and wire forms of one `NetworkSet`; the same at both parties.

    Scales are kept here and not by SEAL, whose own are 1 throughout.

    Attributes
    ----------
    slots : complex numbers a ciphertext, and the most rows of a block of columns.
    primes, modulus : of a ciphertext. kept, kept_parms : of the two primes that an answer is flooded under.
    ciphertext_bytes : of an encrypted row or column. key_forms : how keys travel.
    """

    def __init__(self, chosen: NetworkSet) -> None:
        from tenseal import sealapi

        self.seal, self.chosen, self.degree, self.slots = sealapi, chosen, chosen.degree, chosen.degree // 2
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(self.degree)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(self.degree, list(chosen.prime_bits)))
        self.context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise JobFailed(f"SEAL refuses {chosen.name}: {self.context.parameters_error_name()}")
        self.key_primes = [int(prime.value()) for prime in parameters.coeff_modulus()]
        self.primes = self.key_primes[:-1]
        self.modulus, self.kept = math.prod(self.primes), math.prod(self.primes[:2])
        self.encoder, self.evaluator = sealapi.CKKSEncoder(self.context), sealapi.Evaluator(self.context)
        self._learn_forms()

    def _learn_forms(self) -> None:
        """Write one object of each kind under a throw-away key."""
        encryptor = self.seal.Encryptor(self.context, self.seal.KeyGenerator(self.context).secret_key())
        sample = self.seal.Ciphertext()
        encryptor.encrypt_zero_symmetric(sample)
        sample.scale = 1.0
        self._ntt_head = self._head(sample)
        self.evaluator.transform_from_ntt_inplace(sample)
        self._plain_head = self._head(sample)
        self.evaluator.transform_to_ntt_inplace(sample)
        self.reduce(sample, 2)
        self.kept_parms = sample.parms_id()
        self.reduce(sample, 1)
        self._last_head = self._head(sample)
        seeded = seal_io.save(encryptor.encrypt_zero_symmetric(self.context.key_parms_id()))
        self.key_forms = KeyForms(seeded, self.key_primes, self.degree)
        self.ciphertext_bytes = len(self.primes) * packed_bytes(self.degree) + KEY_BYTES

    def _head(self, ciphertext: Any) -> bytes:
        count = self.words(ciphertext).size
        return self._plain(ciphertext, count)[: -8 * count]

    @staticmethod
    def _plain(ciphertext: Any, words: int) -> bytes:
        stream = seal_io.save(ciphertext)
        return CiphertextForm(stream, words=words, seeded=False).check(stream)

    # ---- ciphertexts

    def words(self, ciphertext: Any) -> Words:
        """The (polynomials, primes, N) words of a ciphertext."""
        shape = ciphertext.size(), ciphertext.coeff_modulus_size(), self.degree
        return np.frombuffer(self._plain(ciphertext, math.prod(shape))[-8 * math.prod(shape) :], "<u8").reshape(shape)

    def ciphertext(self, words: Words, *, transformed: bool = True) -> Any:
        """A SEAL ciphertext of (2, primes, N) words; unless `transformed`, they are coefficients."""
        head = self._ntt_head if transformed else self._plain_head
        found = load(self.seal.Ciphertext(), self.context, head + words.astype("<u8", copy=False).tobytes())
        if not transformed:
            self.evaluator.transform_to_ntt_inplace(found)
        return found

    def coefficients(self, ciphertext: Any) -> Words:
        """The (polynomials, primes, N) coefficients of a ciphertext."""
        plain = self.seal.Ciphertext()
        self.evaluator.transform_from_ntt(ciphertext, plain)
        return self.words(plain)

    def reduce(self, ciphertext: Any, primes: int) -> Any:
        """Divide by primes, with rounding, until `primes` of them are left."""
        while ciphertext.coeff_modulus_size() > primes:
            self.evaluator.rescale_to_next_inplace(ciphertext)
        ciphertext.scale = 1.0
        return ciphertext

    def cut(self, words: Words, key: bytes) -> bytes:
        """What travels of a ciphertext: its first polynomial, (primes, N), and the key of the other (see `expand`)."""
        return pack(words) + key

    def read(self, data: bytes) -> Words:
        """The (2, primes, N) words of a ciphertext that travelled; `BadMessage` for what is none."""
        if len(data) != self.ciphertext_bytes:
            raise BadMessage(f"a ciphertext of {len(data)} bytes, not {self.ciphertext_bytes}")
        return np.stack([unpack(data[:-KEY_BYTES], self.primes), self.expand(data[-KEY_BYTES:])])

    def expand(self, key: bytes) -> Words:
        """(primes, N) words, uniform below each prime: AES-256 in counter mode, words beyond a prime left out."""
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        drawn = np.frombuffer(stream.update(bytes(8 * len(self.primes) * (self.degree + _SPARE))), dtype="<u8")
        rows = drawn.reshape(len(self.primes), -1) & np.uint64((1 << WORD_BITS) - 1)
        words = np.empty((len(rows), self.degree), dtype=np.uint64)
        for row, found, prime in zip(rows, words, self.primes, strict=True):
            found[:] = row[row < prime][: self.degree]  # one in 2^36 is left out
        return words

    def cut_answer(self, ciphertext: Any) -> bytes:
        """What travels of a ciphertext under one prime."""
        return pack(self.words(ciphertext).reshape(2, -1))

    def read_answer(self, data: bytes) -> Any:
        """The ciphertext under one prime of what travelled; `BadMessage` for what is none."""
        if len(data) != 2 * packed_bytes(self.degree):
            raise BadMessage(f"an answer of {len(data)} bytes")
        words = unpack(data, self.primes[:1] * 2)
        return load(self.seal.Ciphertext(), self.context, self._last_head + words.astype("<u8", copy=False).tobytes())

    # ---- plaintexts

    def encode(self, slots: Complexes, parms: Any = None) -> Any:
        """A SEAL plaintext of complex numbers, one a slot, rounded to whole coefficients."""
        return self._encode(slots.tolist(), parms)

    def constant(self, value: float, parms: Any = None) -> Any:
        """A SEAL plaintext of the same whole number in every slot."""
        return self._encode(float(value), parms)

    def _encode(self, values: Any, parms: Any) -> Any:
        plaintext = self.seal.Plaintext()
        try:
            self.encoder.encode(values, parms or self.context.first_parms_id(), 1.0, plaintext)
        except (RuntimeError, ValueError):
            raise UsageError(f"numbers too large for {self.chosen.name}") from None
        return plaintext

    def plaintext_words(self, plaintext: Any) -> Words:
        """The (primes, N) words of a plaintext."""
        body = inflated(seal_io.save(plaintext), _PLAINTEXT_PREFIX + 8 * self.degree * len(self.primes))
        return np.frombuffer(body[_PLAINTEXT_PREFIX:], dtype="<u8").reshape(-1, self.degree)

    # ---- keys

    def key_bytes(self, rotations: Sequence[int]) -> int:
        """Bytes of a public key, a relinearisation key and rotation keys for `rotations`, each of them once."""
        return self.key_forms.public_bytes + self.key_forms.switching_bytes * (1 + len(rotations))

    def galois_element(self, step: int) -> int:
        """Of the automorphism that turns the slots by `step`."""
        return 2 * self.degree - 1 if step == CONJUGATE else pow(3, step, 2 * self.degree)

    def read_public(self, data: bytes) -> Any:
        """The public key of what travelled; `BadMessage` for what is none."""
        return load(self.seal.PublicKey(), self.context, self.key_forms.public_stream(data))

    def cut_switching(self, keys: Any, step: int | None) -> bytes:
        """What travels of SEAL's rotation key for `step`, or of its relinearisation key for None."""
        return self.key_forms.cut_switching(seal_io.save(keys), self._place(step)[1])

    def read_switching(self, data: bytes, step: int | None) -> Any:
        """The rotation key for `step`, or the relinearisation key for None; `BadMessage` for what is none."""
        item = self.seal.RelinKeys() if step is None else self.seal.GaloisKeys()
        return load(item, self.context, self.key_forms.switching_stream(data, *self._place(step)))

    def _place(self, step: int | None) -> tuple[int, int]:
        return (0, 1) if step is None else ((self.galois_element(step) - 1) // 2, self.degree)
