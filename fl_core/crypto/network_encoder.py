"""Slots to integer polynomials more exactly than in doubles: what an encrypted row of a network needs.

A row lies in the slots several times over.  If the copies differ, an answer is that of no row, and what it differs by
depends on the weights; so copies may differ by less than a ciphertext's noise.  At a scale of 2^79 a transform in
doubles is off by 2^20, hence pairs of doubles here (Dekker 1971), 104 bits.  A column has one copy: doubles do, and
exact symmetry of the coefficients keeps its slots real.

Slot j is the value at ζ^(3^j), ζ = exp(iπ/N), as in SEAL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Words = NDArray[np.uint64]

_SPLIT = 134217729.0  # 2^27 + 1
_FIXED = 128
_HALF = 40


@cache
def exponents(degree: int) -> NDArray[np.int64]:
    """(N/2,) int64: 3^j mod 2N, the power of ζ that slot j belongs to."""
    found, power = [], 1
    for _ in range(degree // 2):
        found.append(power)
        power = power * 3 % (2 * degree)
    return np.array(found, dtype=np.int64)


def encode_exact(slots: Complexes, bits: int) -> tuple[Floats, Floats]:
    """The polynomial of `slots`, (N/2,) complex128, times 2^bits: (N,) float64 twice, whose sum is whole numbers.

    Every coefficient is within 1/2 and 2^(bits - 100) · max |slot| of the true one.
    """
    size = len(slots)
    pair = np.zeros((2, 2, size))  # high and low; real and imaginary
    ordered = _by_exponent(slots)
    pair[0, 0], pair[0, 1] = ordered.real, ordered.imag
    pair = _turn(_transform(pair), _roots(2 * size)[..., :size])
    both = np.ldexp(pair.reshape(2, 2 * size), bits - int(math.log2(size)))
    high = np.rint(both[0])
    return high, np.rint((both[0] - high) + both[1])


def encode_real(values: Floats, bits: int) -> Floats:
    """The polynomial of real slots, (N/2,) float64, times 2^bits: (N,) whole numbers; all its slots are real."""
    size = len(values)
    turned = np.fft.fft(_by_exponent(values.astype(np.complex128))) / size
    turned = turned * np.exp(-1j * np.pi * np.arange(size) / (2 * size))
    whole = np.rint(np.ldexp(np.concatenate([turned.real, turned.imag]), bits))
    whole[size] = 0.0
    whole[size + 1 :] = -whole[1:size][::-1]
    return np.asarray(whole, dtype=np.float64)


def residues(parts: Sequence[Floats], primes: Sequence[int]) -> Words:
    """Sums of whole numbers below 2^100 in doubles, (N,) each, as (primes, N) words; primes a little under 2^60."""
    words = np.zeros((len(primes), len(parts[0])), dtype=np.uint64)
    for part in parts:
        size = np.abs(part)
        top = np.floor(np.ldexp(size, -_HALF))
        low, high = (size - np.ldexp(top, _HALF)).astype(np.uint64), top.astype(np.uint64)
        for row, prime in zip(words, primes, strict=True):
            # high · 2^40 = (high >> 20) · 2^60 + (high mod 2^20) · 2^40, and 2^60 is a small number mod the prime
            rest = (high >> np.uint64(20)) * np.uint64((1 << 60) - prime)
            rest = (rest + ((high & np.uint64((1 << 20) - 1)) << np.uint64(_HALF)) + low) % np.uint64(prime)
            row += np.where(part < 0, np.uint64(prime) - rest, rest)
            row %= np.uint64(prime)
    return words


def _by_exponent(slots: Complexes) -> Complexes:
    """Slots and their conjugates by powers of ζ: element a belongs to ζ^(4a + 1)."""
    powers = exponents(2 * len(slots))
    straight = powers % 4 == 1
    index = np.where(straight, powers, 4 * len(slots) - powers) // 4
    ordered = np.empty_like(slots)
    ordered[index] = np.where(straight, slots, slots.conj())
    return ordered


# ------------------------------------------------------------------------------------------- pairs of doubles


def _sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _add(x: Floats, y: Floats) -> Floats:
    high, low = _sum(x[0], y[0])
    low += x[1] + y[1]
    out = np.empty((2, *high.shape))
    np.add(high, low, out=out[0])
    np.subtract(low, out[0] - high, out=out[1])
    return out


def _halves(a: Floats) -> tuple[Floats, Floats]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def _multiply(x: Floats, y: Floats) -> Floats:
    high = x[0] * y[0]
    (xh, xl), (yh, yl) = _halves(x[0]), _halves(y[0])
    low = ((xh * yh - high) + xh * yl + xl * yh) + xl * yl
    low += x[0] * y[1] + x[1] * y[0]
    out = np.empty((2, *high.shape))
    np.add(high, low, out=out[0])
    np.subtract(low, out[0] - high, out=out[1])
    return out


def _turn(x: Floats, root: Floats) -> Floats:
    """x times the conjugates of `root`: (high/low, real/imaginary, ...)."""
    along, across = _multiply(x, root[:, :1]), _multiply(x[:, ::-1], root[:, 1:])
    across[:, 1] *= -1.0  # (a + bi)(c - di) = (ac + bd) + (bc - ad)i
    return _add(along, across)


def _transform(x: Floats) -> Floats:
    """The discrete Fourier transform of (2, 2, size), size a power of two: Stockham's."""
    size = x.shape[-1]
    roots, length, stride = _roots(2 * size), size, 1
    while length > 1:
        half = length // 2
        a, b = (part.reshape(2, 2, half, stride) for part in (x[..., : size // 2], x[..., size // 2 :]))
        out = np.empty((2, 2, half, 2, stride))
        out[..., 0, :] = _add(a, b)
        turns = roots[..., : 2 * size : 2 * size // half][..., :half, None]  # exp(2πi p / length)
        out[..., 1, :] = _turn(_add(a, -b), turns)
        x, length, stride = out.reshape(2, 2, size), half, 2 * stride
    return x


@cache
def _roots(degree: int) -> Floats:
    """exp(iπt/N) for t below N, (high/low, real/imaginary, N), from whole numbers of 128 bits."""
    one = 1 << _FIXED
    cosine, steps = 0, 2  # of π/2; halved until it is π/N
    while steps < degree:
        cosine, steps = math.isqrt((one + cosine) * one // 2), 2 * steps
    sine = math.isqrt(one * one - cosine * cosine)
    real, imaginary, table = one, 0, np.empty((2, 2, degree))
    for t in range(degree):
        for k, value in enumerate((real, imaginary)):
            high = value / one
            table[0, k, t], table[1, k, t] = high, (value - int(math.ldexp(high, _FIXED))) / one
        real, imaginary = (real * cosine - imaginary * sine) >> _FIXED, (real * sine + imaginary * cosine) >> _FIXED
    return table
