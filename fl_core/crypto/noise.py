"""Random numbers for differential privacy, from the operating system.

`OsStream` is AES-256 in counter mode under a key from `os.urandom`: a cryptographic stream, as a guarantee
against an adversary needs; numpy's and torch's generators are predictable from their output.  It takes a new
key in a forked child.  `SeededStream` has the same interface and repeats: for tests and for ``noise =
"seeded"`` runs, which have no privacy.

A Gaussian in floating point does not reach all floats, and which ones it misses can tell two inputs apart
(Mironov 2012 for Laplace; Holohan and Braghin, arXiv 2107.10138, for Gaussian).  The remedy used there,
and in Opacus's secure mode, is taken: a sample is the sum of four independent ones, halved.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

_CHUNK = 1 << 16  # values at a time: stays in cache, bounds the memory
_UNIT = 2.0**-53


class NoiseStream(Protocol):
    """Where DP noise and DP sampling come from."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """(n,) float64 in [0, 1), all 53 bits random."""
        ...

    def gaussian(self, n: int, std: float) -> NDArray[np.float64]:
        """(n,) float64 from N(0, std²)."""
        ...

    def bernoulli_mask(self, n: int, p: float) -> NDArray[np.bool_]:
        """(n,) independent coins, True with probability p (to 2^-53)."""
        ...


class _CounterStream:
    """The three distributions over an AES-CTR key stream."""

    def _cipher(self) -> CipherContext:
        raise NotImplementedError

    def _words(self, n: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._cipher().update(bytes(8 * n)), dtype="<u8")

    def uniform(self, n: int) -> NDArray[np.float64]:
        """See `NoiseStream.uniform`."""
        return (self._words(n) >> np.uint64(11)).astype(np.float64) * _UNIT

    def bernoulli_mask(self, n: int, p: float) -> NDArray[np.bool_]:
        """See `NoiseStream.bernoulli_mask`; p outside [0, 1] is a `ValueError`."""
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"a probability of {p}")
        return self.uniform(n) < p

    def gaussian(self, n: int, std: float) -> NDArray[np.float64]:
        """See `NoiseStream.gaussian`; `std` must be finite and not negative (`ValueError`)."""
        if not (math.isfinite(std) and std >= 0.0):
            raise ValueError(f"a standard deviation of {std}")
        out = np.empty(n)
        for start in range(0, n, _CHUNK):
            part = out[start : start + _CHUNK]
            np.multiply(self._standard(len(part)), std, out=part)
        return out

    def _standard(self, n: int) -> NDArray[np.float64]:
        """(n,) sums of four standard normals, halved.

        Box-Muller with u in (0, 1], so that the logarithm is finite.  A pair's cosine and sine go to
        different samples: in one sample they would add up to a single Box-Muller value.
        """
        m = max(n, 2)
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(2 * m)))
        angle = 2.0 * math.pi * self.uniform(2 * m)
        cosines = (radius * np.cos(angle)).reshape(2, m).sum(axis=0)
        sines = (radius * np.sin(angle)).reshape(2, m).sum(axis=0)
        return (cosines + np.roll(sines, 1))[:n] / 2.0


def _counter_mode(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


class OsStream(_CounterStream):
    """Keyed by `os.urandom` when first used in a process and thread: neither a fork nor a thread repeats another's."""

    def __init__(self) -> None:
        self._own = threading.local()

    def _cipher(self) -> CipherContext:
        keyed: tuple[int, CipherContext] | None = getattr(self._own, "keyed", None)
        if keyed is None or keyed[0] != os.getpid():
            keyed = self._own.keyed = os.getpid(), _counter_mode(os.urandom(32))
        return keyed[1]


class SeededStream(_CounterStream):
    """The same numbers for the same `seed` (any bytes).  No privacy: for tests and repeatable runs only."""

    def __init__(self, seed: bytes) -> None:
        self._stream = _counter_mode(hashlib.sha256(b"fedseal/seeded-noise/v1\0" + seed).digest())

    def _cipher(self) -> CipherContext:
        return self._stream
