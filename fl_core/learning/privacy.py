"""Privacy accounting: Rényi DP of the sampled Gaussian mechanism (Mironov et al. 2019, arXiv 1908.10530,
section 3.3), turned into (ε, δ) by Balle et al. 2020 (1905.09982, theorem 21). Opacus does the analysis, once
per (σ, q).

RDP of composed steps adds up order by order, so any number of jobs on one dataset costs a multiplication
each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterable
from decimal import ROUND_CEILING, Decimal
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, JobFileError
from fl_core.job import Privacy, Train

_FEW = (1.5, *range(2, 11), *range(12, 64, 4))  # mostly whole: a fractional order costs ten times more
_DEFAULT = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64))  # RDPAccountant.DEFAULT_ALPHAS
_LARGE = (64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)  # for little noise spent
ORDERS: tuple[float, ...] = (*_DEFAULT, *_LARGE)
MIN_NOISE, MAX_NOISE = 0.1, 1e5


class SpendLike(Protocol):
    """`steps` steps of the Gaussian mechanism on Poisson samples of rate `sample_rate` (1: everything)."""

    @property
    def noise_multiplier(self) -> float:
        """σ: standard deviation of the noise over the sensitivity."""

    @property
    def sample_rate(self) -> float:
        """q in (0, 1]."""

    @property
    def steps(self) -> int:
        """How many."""


@dataclasses.dataclass(frozen=True)
class Spend:
    """`steps` steps of the sampled Gaussian mechanism with noise multiplier σ and sample rate q."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job will spend at one party if all its rounds run."""

    noise_multiplier: float
    sample_rate: float
    steps_per_round: int
    rounds: int

    def spend(self, rounds: int) -> Spend:
        """The spending of the first `rounds` rounds."""
        return Spend(self.noise_multiplier, self.sample_rate, self.steps_per_round * rounds)

    def total(self) -> Spend:
        """The spending of all rounds."""
        return self.spend(self.rounds)


@functools.lru_cache(maxsize=4096)
def _rdp_of_one_step(sigma: float, q: float, orders: tuple[float, ...]) -> NDArray[np.float64]:
    from opacus.accountants.analysis.rdp import compute_rdp

    one = np.zeros(len(orders))
    for i, order in enumerate(orders):
        try:
            one[i] = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=[order])[0]
        except (ValueError, OverflowError, ZeroDivisionError):
            one[i] = math.inf  # the series for fractional orders may cancel; the order then proves nothing
    one[np.isnan(one) | (one < -1e-9)] = math.inf
    one = np.maximum(one, 0.0)
    one.flags.writeable = False
    return one


def epsilon(spends: Iterable[SpendLike], delta: float) -> float:
    """ε of all the spendings together at `delta`.

    Parameters
    ----------
    spends : in any order, from any number of jobs on one dataset; adaptive composition is covered.
    delta : in (0, 1).

    Returns
    -------
    float : 0 for nothing spent, infinity for a step without noise.
    """
    return _epsilon(tuple(spends), delta, ORDERS)[0]


def _epsilon(spends: Iterable[SpendLike], delta: float, orders: tuple[float, ...]) -> tuple[float, float]:
    """(ε, best order) over `orders`; fewer orders never give a smaller ε."""
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta} is not in (0, 1)")
    total = np.zeros(len(orders))
    for s in spends:
        if s.noise_multiplier < 0 or not 0 < s.sample_rate <= 1 or s.steps < 0:
            raise ValueError(f"not a spending: {s}")
        if s.steps:
            total += s.steps * _rdp_of_one_step(s.noise_multiplier, s.sample_rate, orders)
    if not total.any():
        return 0.0, math.inf
    if not np.isfinite(total).any():
        return math.inf, orders[0]
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the edge of the orders: the bound is valid, only not tight
        value, order = get_privacy_spent(orders=list(orders), rdp=total, delta=delta)
    return max(0.0, float(value)), float(order)


def round_up(eps: float) -> str:
    """ε as decimal text rounded up to 0.01: what is told to others never understates."""
    if math.isinf(eps):
        return "inf"
    return str(Decimal(repr(float(eps))).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


@functools.lru_cache(maxsize=256)
def find_noise_multiplier(target_epsilon: float, target_delta: float, *, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier that keeps `steps` steps within (target_epsilon, target_delta), to about
    0.1 %.

    A search over few orders finds the neighbourhood, a second one near its best order refines it; a subset of
    orders only overstates ε, so the result always meets the target over all orders.

    Returns
    -------
    float : at least 0.1, the least noise that is worth the name.

    Raises
    ------
    JobFileError : the target is below what RDP can prove at this delta.
    """

    def enough(sigma: float, orders: tuple[float, ...]) -> tuple[bool, float]:
        eps, order = _epsilon([Spend(sigma, sample_rate, steps)], target_delta, orders)
        return eps <= target_epsilon, order

    few = (*_FEW, *_LARGE)
    low, high = MIN_NOISE, 1.0
    if enough(low, few)[0]:
        return low
    while not enough(high, few)[0]:
        low, high = high, 2 * high
        if high > MAX_NOISE:
            raise JobFileError(
                "privacy.target_epsilon",
                f"{target_epsilon:g} cannot be reached with {steps} steps at target_delta {target_delta:g}",
                allowed="a larger target_epsilon or target_delta, or fewer steps",
            )
    low, high = _bisect(enough, few, low, high, tolerance=0.03)
    best = enough(high, few)[1]
    while True:
        at = ORDERS.index(best)
        near = ORDERS[max(0, at - 8) : at + 9]
        while enough(low, near)[0] and low > MIN_NOISE:
            low, high = max(MIN_NOISE, low * 0.97), low
        low, high = _bisect(enough, near, low, high, tolerance=0.0005)
        best = enough(high, near)[1]
        if best in (ORDERS[0], ORDERS[-1]) or best not in (near[0], near[-1]):
            return high


def _bisect(
    enough: Callable[[float, tuple[float, ...]], tuple[bool, float]],
    orders: tuple[float, ...],
    low: float,
    high: float,
    *,
    tolerance: float,
) -> tuple[float, float]:
    """Narrow (too little, enough) until they are `tolerance` apart, relatively."""
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle, orders)[0] else (middle, high)
    return low, high


def plan_dp_sgd(train: Train, privacy: Privacy, n: int) -> Plan:
    """DP-SGD on a party's `n` training rows: Poisson batches of `batch_size` on average, all rounds composed.

    Raises
    ------
    DataError : no rows. JobFileError : the target cannot be reached.
    """
    if n < 1:
        raise DataError("privacy", "no training rows to protect", allowed="one row or more")
    rate = min(1.0, train.batch_size / n)
    steps_per_round = train.local_epochs * max(1, -(-n // train.batch_size))
    return _plan(train, privacy, rate, steps_per_round)


def plan_client_dp(train: Train, privacy: Privacy) -> Plan:
    """A party's whole update, clipped and noised once a round."""
    return _plan(train, privacy, 1.0, 1)


def _plan(train: Train, privacy: Privacy, rate: float, steps_per_round: int) -> Plan:
    steps = steps_per_round * train.rounds
    sigma = find_noise_multiplier(privacy.target_epsilon, privacy.target_delta, sample_rate=rate, steps=steps)
    return Plan(sigma, rate, steps_per_round, train.rounds)
