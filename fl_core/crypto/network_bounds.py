"""How large the outputs of a network get under encryption, how noisy they are, and the scales that follow from it.

Everything holds for all features that a client may send: within ±8, and ‖x‖₂ ≤ R = min(8·√d, 64).  With a = W0·x + b0
an output is Σ_i W_oi a_i², and noise η on the hidden units moves it by 2 Σ_i W_oi a_i η_i.  Both are bounded by norms
of h × h matrices, h hidden units, over K = W0·W0ᵀ: the largest |eigenvalue| of √K diag(W_o) √K for outputs, and so on.

The client's noise has deviation 3.24 a coefficient, hence (by the canonical embedding, on average) 3.24·√N a slot and
2^-1/2 of that in a real part; a row's chunks overlap, which by Cauchy and Schwarz is at most a factor √chunks.  Noise
of keys and roundings is put in at twice its deviation: it depends on the secret key, and slots differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl_core.crypto.network_keys import LEAST_BITS, MOST_BITS, column_unit, row_unit
from fl_core.crypto.network_ring import FEATURE_LIMIT, NORM_LIMIT, Floats, Layout, NetworkRing
from fl_core.errors import UsageError

_VARIANCE = 10.5 + 1.0 / 12.0  # of SEAL's noise, and of the message's rounding
_ROW_ROOM, _COLUMN_ROOM = 0.4, 0.24  # of the modulus, for the largest output; half less noise is all there is
_TAIL = 6.0
_SUM_BITS = 23  # of Σ |w| for columns


@dataclass(frozen=True)
class Scales:
    """Of one form.

    units : (hidden,) of hidden units, and bits : log2 of the outputs', both without the features'.
    noise : bound of ‖e‖₂ over all coefficients that are sent, unflooded. sigma : the flooding; both under two primes.
    """

    units: Floats
    bits: int
    noise: float
    sigma: float


class Bounds:
    """Of one network; parameters as in `NetworkSide`.

    Attributes
    ----------
    output : the largest |output|.
    """

    def __init__(
        self, ring: NetworkRing, layout: Layout, first: Floats, hidden: Floats, last: Floats, bias: Floats
    ) -> None:
        self._ring, self._layout, self._first, self._hidden, self._last = ring, layout, first, hidden, last
        self._radius = min(FEATURE_LIMIT * math.sqrt(first.shape[1]), NORM_LIMIT)
        reached = np.minimum(FEATURE_LIMIT * np.abs(first).sum(axis=1), self._radius * np.linalg.norm(first, axis=1))
        self._limits = reached + np.abs(hidden)
        self._gram = first @ first.T
        values, vectors = np.linalg.eigh(self._gram)
        self._root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        self._forms = np.array([_norm(self._root @ (row[:, None] * self._root)) for row in last])
        self.output = max(float((self._largest() + np.abs(bias)).max()), 2.0**-20)
        self._excess = 2.0 ** (ring.chosen.statistical_bits - 1) * math.sqrt(ring.chosen.answers)

    def _largest(self) -> Floats:
        """(outputs,) bound of |Σ W a²|: the quadratic form's, or the sum of each unit's if that is less."""
        form = self._forms * self._radius**2 + 2 * self._slopes() * self._radius + np.abs(self._last @ self._hidden**2)
        return np.minimum(form, np.abs(self._last) @ self._limits**2)

    def _slopes(self) -> Floats:
        """(outputs,) ‖W0ᵀ (W_o ∘ b0)‖."""
        moved = self._last * self._hidden
        return np.sqrt(np.maximum(np.einsum("oi,ij,oj->o", moved, self._gram, moved), 0.0))

    def _weighted(self, weights: Floats) -> Floats:
        """(outputs,) bound of ‖D ∘ a‖ for each row D of `weights`."""
        norms = np.array([math.sqrt(_norm(row[:, None] * self._gram * row)) for row in weights])
        whole = norms * self._radius + np.linalg.norm(weights * self._hidden, axis=1)
        return np.minimum(whole, np.linalg.norm(weights * self._limits, axis=1))

    def rows(self) -> Scales:
        """For rows in one ciphertext."""
        ring, layout = self._ring, self._layout
        bits = self._bits(ring.modulus * _ROW_ROOM / row_unit(ring, layout, 0))
        rounding = math.sqrt(2 * layout.period * layout.spread / 12.0), math.sqrt(2 * layout.period / 12.0)
        units = self._units(bits, *rounding)
        kept = row_unit(ring, layout, bits) / ring.modulus * ring.kept
        last = self._last**2
        if layout.copies > 1:  # copies do not have the same noise, and the outputs' traces overlap
            last = last + last.sum(axis=0) / layout.spread
        last = np.sqrt(last)
        fresh = math.sqrt(layout.chunks * ring.degree * _VARIANCE / 2 / layout.copies)
        spread = rounding[0] * math.sqrt(2 * layout.spread * layout.chunks) / units  # of weights that ought to be zero
        own = 2.0 * fresh * self._weighted(last * np.hypot(np.linalg.norm(self._first, axis=1), spread))
        folded = 2 * math.sqrt(2 * layout.spread * (layout.chunks + 1) * self._switching)
        keys = 2.0 * folded * self._weighted(last / units)
        parts = [own / 2.0**ring.chosen.row_bits, keys / 2.0**ring.chosen.row_bits]
        squared = np.ldexp(np.linalg.norm(self._last / units**2), -2 * ring.chosen.row_bits)
        parts.append(np.full(len(own), 2 * math.sqrt(layout.period * self._switching / ring.slots) * squared))
        parts.append(np.full(len(own), 2 * math.sqrt(self._rounding) / kept))
        return self._scales(units, bits, _TAIL * math.sqrt(float(sum((p**2).sum() for p in parts))) * kept)

    def columns(self) -> Scales:
        """For blocks of rows, a ciphertext a feature."""
        ring = self._ring
        bits = self._bits(ring.modulus * _COLUMN_ROOM / column_unit(ring, 0))
        most = (2.0**_SUM_BITS - self._first.shape[1]) / np.maximum(np.abs(self._first).sum(axis=1), 2.0**-20)
        units = np.minimum(self._units(bits, math.sqrt(1 / 12.0), math.sqrt(1 / 12.0)), most)
        kept = column_unit(ring, bits) / ring.modulus * ring.kept
        gain = self._forms * self._radius + self._slopes()
        own = 2.0 * math.sqrt(ring.degree * _VARIANCE) * float(np.linalg.norm(gain)) / 2.0**ring.chosen.column_bits
        keys = math.sqrt(self._switching) / column_unit(ring, bits)
        rounding = math.sqrt(ring.degree * self._rounding) / kept
        others = 2 * math.sqrt(len(self._last)) * (keys + rounding)
        return self._scales(units, bits, 1.1 * math.hypot(own, others) * kept)

    def _bits(self, room: float) -> int:
        """Bits of an output's scale for which the largest output has room."""
        bits = math.floor(math.log2(room / self.output))
        if bits < LEAST_BITS:
            reach = f"outputs up to {self.output:g} for features within ±{FEATURE_LIMIT:g}"
            raise UsageError(f"{reach} do not fit {self._ring.chosen.name}")
        return min(bits, MOST_BITS)

    def _units(self, bits: int, first: float, last: float) -> Floats:
        """Scales of the hidden units for which both layers' roundings, `first` and `last` in a slot, weigh the same."""
        norm = math.sqrt(self._first.shape[1])
        usual = np.linalg.norm(self._first, axis=1) * norm / 2 + np.abs(self._hidden)
        weights = np.abs(self._last).max(axis=0)
        cube = 2 * first / last * norm * weights / np.maximum(usual, 2.0**-20)
        return np.where(cube > 0.0, np.clip(np.cbrt(np.ldexp(cube, bits)), 2.0**-100, 2.0**40), 1.0)

    def _scales(self, units: Floats, bits: int, noise: float) -> Scales:
        sigma = 2.0 ** math.ceil(math.log2(self._excess * noise))  # a power of two, so that it tells little
        if 10 * sigma > 0.02 * self._ring.kept:
            raise UsageError(f"the network's noise has no room in {self._ring.chosen.name}: its weights are too uneven")
        return Scales(units, bits, noise, sigma)

    @property
    def _rounding(self) -> float:
        """Variance of a coefficient by dividing by a prime: 1/12 in both polynomials, times a secret of 2N/3 ones."""
        return (1 + 2 * self._ring.degree / 3) / 12.0

    @property
    def _switching(self) -> float:
        """Variance of a slot by switching keys: for every prime a digit below it times noise, over a prime like it."""
        digits = len(self._ring.primes) * self._ring.degree * _VARIANCE / 12.0
        return self._ring.degree * (digits + self._rounding)


def _norm(matrix: Floats) -> float:
    """The largest |eigenvalue| of a symmetric matrix."""
    return float(np.abs(np.linalg.eigvalsh(matrix)).max())
