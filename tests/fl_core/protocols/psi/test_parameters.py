"""Parameters of the intersection: enough columns and bytes for every size, and not one column more."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import pairwise
from math import comb

import pytest

from fl_core.errors import UsageError
from fl_core.protocols.psi.parameters import MAX_ITEMS, Matrix, output_bytes, width


def failure(w, n_sender, n_receiver):
    """n_sender · P[Bin(w, (1 - q)^n_receiver) < 128] with 80 digits."""
    m = 2 * n_receiver
    with localcontext(prec=80):
        p = (1 - Decimal(-(-(2**32) // m)) / 2**32) ** n_receiver
        return n_sender * sum(comb(w, k) * p**k * (1 - p) ** (w - k) for k in range(128))


@pytest.mark.parametrize(("log_n", "w"), [(10, 329), (14, 335), (16, 338), (18, 341), (20, 344), (22, 347), (24, 349)])
def test_width_is_that_of_the_table(log_n, w):
    assert Matrix.of(n_sender=2**log_n, n_receiver=2**log_n) == Matrix(2 ** (log_n + 1), w, -(-(40 + 2 * log_n) // 8))


@pytest.mark.parametrize(
    ("n_sender", "n_receiver"),
    [(1, 1), (2, 1), (1, 2), (2, 2), (3, 5), (1000, 1), (1, 1000), (1 << 20, 1000), (10**7, 10**7), (MAX_ITEMS,) * 2],
)
def test_width_is_the_least_that_holds(n_sender, n_receiver):
    w = width(n_sender, n_receiver)
    assert failure(w, n_sender, n_receiver) <= Decimal(2) ** -40 < failure(w - 1, n_sender, n_receiver)


@pytest.mark.parametrize("m", [2, 6, 10, 22, 1000, 65536, 99998])
def test_no_position_is_likelier_than_the_width_counts_with(m):
    """⌊r·m / 2^32⌋ is j for r from ⌈j·2^32/m⌉ on."""
    starts = [-(-j * 2**32 // m) for j in range(m + 1)]
    assert max(b - a for a, b in pairwise(starts)) <= -(-(2**32) // m)


@pytest.mark.parametrize(
    ("pairs", "size"), [(0, 5), (1, 5), (2, 6), (2**24, 8), (2**24 + 1, 9), (2**40, 10), (10**14, 11)]
)
def test_outputs_keep_pairs_apart(pairs, size):
    assert output_bytes(pairs) == size


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (MAX_ITEMS + 1, 1), (1, MAX_ITEMS + 1)])
def test_sizes_that_the_bound_does_not_cover_are_refused(sizes):
    with pytest.raises(UsageError, match=rf"allowed: 1 to {MAX_ITEMS}"):
        Matrix.of(n_sender=sizes[0], n_receiver=sizes[1])
