from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.learning.seeds import derive_seed, generator

PART = st.one_of(st.text(max_size=4), st.integers(-(2**70), 2**70))


def test_the_encoding_is_the_documented_one():
    text = b"i1:7" + b"s5:train" + b"i2:-3"
    assert derive_seed(7, "train", -3) == int.from_bytes(hashlib.sha256(text).digest()[:8], "big") // 2


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_no_two_purposes_share_a_seed(a, b):
    same = [(type(p), p) for p in a] == [(type(p), p) for p in b]
    assert (derive_seed(1, *a) == derive_seed(1, *b)) == same
    assert 0 <= derive_seed(1, *a) < 2**63


def test_ambiguous_parts_are_refused():
    for part in (1.0, True, None, b"x"):
        with pytest.raises(TypeError, match="text and whole numbers"):
            derive_seed(1, part)


def test_a_generator_does_not_continue_an_earlier_one():
    first = generator(5, "a").random(3)
    generator(5, "b").random(100)
    assert (generator(5, "a").random(3) == first).all()
