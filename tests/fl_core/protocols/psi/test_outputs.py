"""Sorted values: equal ones are found by prefix and in full, each once, and ties keep both parties' order alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.protocols.psi.outputs import match, sort, split
from fl_core.protocols.psi.shuffle import random_order


def rows(values, size):
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, size)


@st.composite
def two_lists(draw):
    """Values of few distinct bytes, so that many share their first eight."""
    size = draw(st.sampled_from([5, 8, 9, 11, 16]))
    tail = st.binary(min_size=1, max_size=1)
    value = st.builds(lambda a, b: bytes([a]) * (size - 1) + b, st.integers(0, 2), tail)
    return size, draw(st.sets(value, max_size=25)), draw(st.sets(value, max_size=25))


@settings(max_examples=150, deadline=None)
@given(two_lists())
def test_what_is_equal_in_full_is_found_and_nothing_else(case):
    size, mine, theirs = case
    a, order_a = sort(rows(sorted(mine, reverse=True), size))
    b, order_b = sort(rows(list(theirs), size))
    own, others = match(a, b)
    listed_a, listed_b = sorted(mine, reverse=True), list(theirs)
    found = [listed_a[order_a[i]] for i in own]
    assert found == [listed_b[order_b[j]] for j in others] == sorted(mine & theirs)
    assert a.ascending() and b.ascending()


def test_a_value_that_is_there_twice_is_matched_once():
    a, _ = sort(rows([b"abcdef", b"abcdef"], 6))
    b, _ = sort(rows([b"abcdef", b"abcdef", b"xxxxxx"], 6))
    own, others = match(a, b)
    assert len(own) == len(others) == 1


@pytest.mark.parametrize(
    "values", [[b"b" * 9, b"a" * 9], [b"a" * 8 + b"2", b"a" * 8 + b"1"], [b"a" * 9, b"c" * 9, b"b" * 9]]
)
def test_a_list_out_of_order_is_noticed(values):
    assert not split(rows(values, 9)).ascending()


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_an_order_is_a_permutation(n):
    assert sorted(random_order(n).tolist()) == list(range(n))


def test_orders_differ_and_have_no_favourite():
    counts = {}
    for _ in range(1200):
        key = tuple(random_order(3).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 120  # 200 expected; less than 121 by chance 1e-9


def test_a_tie_of_random_keys_is_drawn_again(monkeypatch):
    draws = [bytes(24), np.array([3, 1, 2], dtype=np.uint64).tobytes()]
    monkeypatch.setattr("os.urandom", lambda size: draws.pop(0))
    assert random_order(3).tolist() == [1, 2, 0]
