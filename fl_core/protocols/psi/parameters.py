"""Sizes that make the protocols secure and correct, computed for the sets at hand.

Security κ = 128 bits: for an id that the receiver does not have, at least 128 of the w columns are unknown to it.
Statistical λ = 40: that this fails, or that two different ids get one output, has probability 2^-40 at most a run.
(The bound is that of Chase and Miao, CRYPTO 2020, ePrint 2020/729; their tables have m = n, here m = 2n.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import exp, expm1, fsum, lgamma, log, log1p

from fl_core.errors import UsageError

COMPUTATIONAL = 128
STATISTICAL = 40
#: Ids a party; a position is cut from 32 random bits, which far more ids would use up.
MAX_ITEMS = 1 << 26
#: The least set in a cardinality: the size of a smaller one's intersection would all but say who is in it.
MIN_CARDINALITY_SET = 10


@dataclass(frozen=True)
class Matrix:
    """The dimensions of CM20's bit matrix.

    rows : m = 2 · n_receiver. width : w, the columns. output_bytes : of an OPRF value.
    """

    rows: int
    width: int
    output_bytes: int

    @property
    def column_bytes(self) -> int:
        """A column, packed."""
        return -(-self.rows // 8)

    @property
    def groups(self) -> int:
        """Groups of eight columns, the last perhaps of fewer; bytes of a row."""
        return -(-self.width // 8)

    @classmethod
    def of(cls, *, n_sender: int, n_receiver: int) -> Matrix:
        """For two sets of at least one id; `UsageError` outside 1 … `MAX_ITEMS`."""
        for n in (n_sender, n_receiver):
            if not 1 <= n <= MAX_ITEMS:
                raise UsageError(f"a set of {n} ids; allowed: 1 to {MAX_ITEMS}")
        return cls(2 * n_receiver, width(n_sender, n_receiver), output_bytes(n_sender * n_receiver))


def output_bytes(pairs: int) -> int:
    """Bytes that keep apart `pairs` pairs of different values but for 2^-40: ⌈(40 + log2 pairs) / 8⌉."""
    return -(-(STATISTICAL + (max(pairs, 1) - 1).bit_length()) // 8)


@cache
def width(n_sender: int, n_receiver: int) -> int:
    """The least w with n_sender · P[Bin(w, p) < 128] ≤ 2^-40.

    p bounds from below the probability that none of the receiver's n positions in a column hits a given item's:
    (1 - q)^n, where q is the largest probability of a position.  Positions are ⌊r·m / 2^32⌋ for a random r of 32
    bits, so q = ⌈2^32/m⌉ / 2^32: 1/m where m is a power of two, and never less, so their bias costs columns at
    most, not security.
    """
    m = 2 * n_receiver
    log_p = n_receiver * log1p(-float(-(-(2**32) // m)) / 2**32)
    log_rest = log(-expm1(log_p))
    limit = -STATISTICAL * log(2) - log(n_sender)

    def fails(w: int) -> bool:
        bits = range(COMPUTATIONAL)
        terms = [lgamma(w + 1) - lgamma(k + 1) - lgamma(w - k + 1) + k * log_p + (w - k) * log_rest for k in bits]
        most = max(terms)
        return most + log(fsum(exp(term - most) for term in terms)) > limit

    low, high = COMPUTATIONAL, 4 * COMPUTATIONAL  # fails(low) and not fails(high), for all sizes that are allowed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(middle) else (low, middle)
    return high
