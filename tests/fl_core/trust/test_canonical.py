"""Canonical JSON against the rfc8785 package, and every second spelling refused."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import BadMessage
from fl_core.trust import canonical

KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.booleans() | INTEGERS | TEXTS, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4)
)


@given(VALUES)
def test_bytes_are_those_of_rfc8785(value):
    assert canonical.encode(value) == rfc8785.dumps(value)
    assert canonical.decode(canonical.encode(value)) == value


@given(st.binary(max_size=40))
def test_whatever_decodes_has_only_that_spelling(data):
    try:
        value = canonical.decode(data)
    except BadMessage:
        return
    assert canonical.encode(value) == data


class Colour(IntEnum):
    RED = 1


def cyclic():
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        1.0, float("nan"), None, 2**53, -(2**53), (1, 2), b"x", {1: 2}, {"é": 1}, {"a\n": 1}, {None: 1}, "\ud800",
        ["\udc00"], Colour.RED, np.int64(1), cyclic(), {"a": [{"b": 1.5}]},
    ],
    ids=repr,
)  # fmt: skip
def test_values_outside_the_subset_are_refused(value):
    with pytest.raises(BadMessage):
        canonical.encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}', b'{"b":1,"a":2}', b'{"a": 1}', b" 1", b"1 ", b"-0", b"1.0", b"1e2", b"01", b"null", b"NaN",
        b"Infinity", b'"\\u0041"', b'"\\/"', b'"\\ud800"', b"\xef\xbb\xbf1", b"\xff", b"", b"9007199254740992",
        b"9" * 5000, b"[" * 100_000, b'{"a":1}{"a":1}', "\"é\"".encode("latin-1"), b'{"\\u00e9":1}', b"[1,]",
    ],
    ids=lambda data: repr(data[:20]),
)  # fmt: skip
def test_second_spellings_and_garbage_are_refused(data):
    with pytest.raises(BadMessage):
        canonical.decode(data)


def test_oversized_input_is_refused_before_it_is_parsed():
    with pytest.raises(BadMessage, match="7 bytes; allowed: 6"):
        canonical.decode(b'"abcde"', max_bytes=6)
    assert canonical.decode(b'"abcd"', max_bytes=6) == "abcd"


def test_digest_is_sha256_of_the_hand_written_bytes():
    expected = hashlib.sha256(b'{"a":[true,-1],"b":"\xc3\xa9\\n"}').hexdigest()
    assert canonical.digest({"b": "é\n", "a": [True, -1]}) == expected
