"""Ring arithmetic against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.crypto import ring
from fl_core.errors import TrainingDiverged

RINGS = [ring.U32, ring.U64]


def slow(matrix, vectors, bits):
    """Products by Python's integers."""
    return [[sum(int(a) * int(b) for a, b in zip(row, col, strict=True)) % 2**bits for col in vectors.T] for row in matrix]


def elements(shape, dtype, seed=0):
    return ring.Stream(bytes([seed]) * 32).draw(*shape, dtype=dtype)


@pytest.mark.parametrize("dtype", RINGS)
@settings(deadline=None, max_examples=30)
@given(n=st.integers(0, 9), d=st.integers(1, 6), c=st.integers(0, 3), extreme=st.booleans())
def test_products_equal_those_of_python_integers(dtype, n, d, c, extreme):
    bits = 8 * dtype.itemsize
    m, v, t = elements((n, d), dtype), elements((d, c), dtype, 1), elements((n, c), dtype, 2)
    if extreme:
        m[:], v[:], t[:] = 1 << (bits - 1), 2**bits - 1, 2**bits - 1
    assert ring.product(m, v).tolist() == slow(m, v, bits)
    assert ring.product_t(m, t).tolist() == slow(m.T, t, bits)


def test_a_long_product_over_32_bits_stays_exact_where_floats_would_round():
    n = 100_000
    m, v = np.full((n, 3), 2**31, np.uint32), np.full((n, 2), 2**32 - 1, np.uint32)
    m[:, 1], m[:, 2] = 2**31 - 1, 1
    want = [[int(m[0, j]) * (2**32 - 1) * n % 2**32] * 2 for j in range(3)]
    assert ring.product_t(m, v).tolist() == want


@pytest.mark.parametrize("dtype", RINGS)
@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_a_mask_is_the_same_whatever_rows_are_asked_for(dtype, keep):
    mask = ring.Mask(b"k" * 32, 1000, 7, dtype, keep=keep)
    whole = ring.Mask(b"k" * 32, 1000, 7, dtype).rows(0, 1000)
    for start, stop in [(0, 1), (3, 11), (999, 1000), (500, 500)]:
        assert (mask.rows(start, stop) == whole[start:stop]).all()
    rows = np.array([0, 1, 17, 256, 511, 512, 999])
    v, t = elements((7, 2), dtype, 3), elements((len(rows), 2), dtype, 4)
    assert (ring.rows_product(mask, rows, v) == ring.product(whole[rows], v)).all()
    assert (ring.rows_product_t(mask, rows, t) == ring.product_t(whole[rows], t)).all()
    assert (ring.rows_product(mask, slice(10, 300), v) == ring.product(whole[10:300], v)).all()
    assert (ring.rows_product_t(mask, slice(10, 10), t[:0]) == 0).all()


def test_two_holders_of_a_key_draw_the_same_and_others_do_not():
    one, two, other = ring.Stream(b"a" * 32), ring.Stream(b"a" * 32), ring.Stream(b"b" * 32)
    first = [one.draw(3, 5), one.draw(1, dtype=ring.U32), one.draw(200_000)]
    again = [two.draw(3, 5), two.draw(1, dtype=ring.U32), two.draw(200_000)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert one.key() == two.key() != other.key()
    assert len(np.unique(first[2])) == 200_000


@given(st.lists(st.floats(-1000, 1000), max_size=5), st.integers(0, 20))
def test_fixed_point_rounds_to_the_last_place(values, fraction):
    back = ring.decode(ring.encode(np.array(values), fraction), fraction)
    assert np.all(np.abs(back - np.array(values)) <= 2.0 ** -(fraction + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**15, -(2.0**15)])
def test_what_does_not_fit_is_an_error_and_not_another_number(value):
    with pytest.raises(TrainingDiverged, match="allowed: under"):
        ring.encode(np.array([value]), 16, ring.U32)


def test_headroom_is_held():
    ring.check_headroom("a sum", 2.0**61, 62)
    for bound in (2.0**62, np.inf, np.nan):
        with pytest.raises(TrainingDiverged, match="a sum may reach"):
            ring.check_headroom("a sum", bound, 62)
