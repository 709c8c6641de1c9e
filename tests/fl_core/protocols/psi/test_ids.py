"""Ids: equal ones meet, different ones do not, and what is no id is refused by column and row, never by value."""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import DataError, UsageError
from fl_core.protocols.psi import ids
from fl_core.protocols.psi.ids import IdHasher, hash_ids, repeats


def hashes(*columns, **options):
    names = [f"c{number}" for number in range(len(columns))]
    return hash_ids([pa.array(c) if isinstance(c, list) else c for c in columns], names, where="party a", **options)


def slow(*values):
    """One row's hash, from its normal texts."""
    data = b"".join(b"%d:%s" % (len(text.encode()), text.encode()) for text in values)
    return hashlib.blake2s(b"fedseal/id/v1/%d/" % len(values) + data).digest()


def rows(found):
    return [row.tobytes() for row in found.hashes]


ASCII = st.text(st.characters(max_codepoint=127), max_size=8)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ASCII, ANY), max_size=12))
def test_fast_and_slow_paths_give_the_hash_of_the_normal_form(pairs):
    normal = [tuple(unicodedata.normalize("NFKC", text).strip() for text in pair) for pair in pairs]
    kept = {pair: one for pair, one in zip(normal, pairs, strict=True) if all(pair)}
    ascii_column = pa.array([one[0] for one in kept.values()], pa.string())
    any_column = pa.array([one[1] for one in kept.values()], pa.string())
    assert rows(hashes(ascii_column, any_column)) == [slow(*pair) for pair in kept]


@settings(max_examples=200, deadline=None)
@given(ASCII)
def test_trimming_ascii_is_what_python_trims(text):
    assert ids._trimmed_ascii(pa.array([text])).to_pylist() == ids._nfkc(pa.array([text])).to_pylist() == [text.strip()]


DATE = datetime.date(2024, 1, 31)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (["7 "], "7"),
        ([7], "7"),
        (pa.array([7], pa.uint8()), "7"),
        (pa.array([-7], pa.int64()), "-7"),
        (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), "1" + "0" * 30),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        ([DATE], "2024-01-31"),
        (pa.array([DATE], pa.date64()), "2024-01-31"),
        (pa.array([datetime.datetime(2024, 1, 31)], pa.timestamp("ns")), "2024-01-31"),
        (pa.array([datetime.datetime(1931, 1, 31)], pa.timestamp("s")), "1931-01-31"),
        (["2024-01-31"], "2024-01-31"),
        ([b"caf\xc3\xa9"], "café"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (["\ufb01ve"], "five"),
        (["cafe\u0301"], "café"),
        (["\uff17\u3000"], "7"),
        (["\u00a0x\u2003"], "x"),
    ],
)
def test_one_id_has_one_hash_however_it_is_typed(column, text):
    assert rows(hashes(column)) == [slow(text)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "A"), ("7", "07"), ("a", "\u0430"), ("a b", "a  b"), ("x", "x\u200b"), ("ss", "ß"), ("é", "e")],
)
def test_look_alikes_stay_apart(one, other):
    assert rows(hashes([one])) != rows(hashes([other]))


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a,b", "c"), ("a", "b,c")), (("a", "bc"), ("ab", "c")), (("1:a", "b"), ("1", ":ab")), (("a", "b"), ("b", "a"))],
)
def test_columns_are_joined_without_doubt(one, other):
    assert rows(hashes(*[[v] for v in one])) != rows(hashes(*[[v] for v in other]))


def test_a_joined_column_is_not_two():
    assert rows(hashes(["1:a1:b"])) != rows(hashes(["a"], ["b"]))


def test_chunks_and_parts_make_no_difference(monkeypatch):
    monkeypatch.setattr(ids, "_BATCH", 4)
    texts, numbers = [f"é{i}" if i % 5 else f"x{i}" for i in range(23)], list(range(23))
    expected = [slow(text, str(number)) for text, number in zip(texts, numbers, strict=True)]
    chunked = pa.chunked_array([texts[:3], texts[3:17], texts[17:]]), pa.chunked_array([numbers[:10], numbers[10:]])
    assert rows(hashes(*chunked)) == expected
    hasher = IdHasher(["a", "b"], where="w")
    for start in range(0, 23, 7):
        hasher.add([pa.array(texts[start : start + 7]), pa.array(numbers).slice(start, 7)])
    assert rows(hasher.finish()) == expected


def test_no_rows_are_no_ids():
    found = hashes(pa.array([], pa.string()))
    assert found.hashes.shape == (0, 32) and found.rows.tolist() == []


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (["secret", None, " ", "\u3000"], "no id in rows 2, 3, 4; allowed: a value in every row"),
        (["secret", "x", ""], "no id in row 3;"),
        (pa.array([None, None]), "no id in rows 1, 2;"),
        (["é", "", "secret"], "no id in row 2;"),
        ([1.5], "holds double; allowed: text, whole numbers, dates"),
        ([True], "holds bool;"),
        (pa.array([Decimal("1.5")]), r"holds decimal128\(2, 1\);"),
        ([[1]], "holds list<"),
        ([datetime.datetime(2024, 1, 31), datetime.datetime(2024, 1, 31, 7)], "a time of day in row 2;"),
        (pa.array([datetime.datetime(1931, 1, 31, 23)], pa.timestamp("us")), "a time of day in row 1;"),
        (pa.array([0], pa.timestamp("s", "UTC")), r"holds timestamp\[s, tz=UTC\];"),
        ([b"ok", b"secret\xff"], "bytes that are not UTF-8 in row 2;"),
    ],
)
def test_what_is_no_id_is_refused_by_place_and_not_by_value(column, problem):
    with pytest.raises(DataError, match=f"^party a, column 'c1': {problem}") as refused:
        hashes(["fine"] * len(column), column)
    assert "secret" not in str(refused.value)


def test_rows_are_counted_over_parts(monkeypatch):
    monkeypatch.setattr(ids, "_BATCH", 3)
    with pytest.raises(DataError, match="no id in row 8;"):
        hashes(["x"] * 7 + [None] + ["x"])


def test_duplicates_are_named_by_columns_and_rows():
    first, second = ["k", "k", "k", "k", "m", "k", "k"], [1, 2, 1, 2, 1, 1, 1]
    expected = (
        "columns 'c0', 'c1': one id in rows 1 and 3; rows 2 and 4; rows 1 and 6 and 1 more; allowed: each id once"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        hashes(first, second)


def test_of_duplicates_the_first_stays_when_asked():
    found = hashes(["a", "b", " a", "b", "c", "a"], duplicates="first")
    assert rows(found) == [slow("a"), slow("b"), slow("c")] and found.rows.tolist() == [0, 1, 4]


def test_without_duplicates_asking_changes_nothing():
    assert hashes(["a", "b"], duplicates="first").rows.tolist() == [0, 1]


def test_an_unknown_way_with_duplicates_and_no_columns_are_refused():
    with pytest.raises(UsageError, match="'last'; allowed: 'error', 'first'"):
        hashes(["a"], duplicates="last")
    with pytest.raises(UsageError, match="no id column"):
        IdHasher([], where="w")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30))
def test_repeats_are_found_among_hashes_that_begin_alike(pairs):
    data = b"".join(bytes([a]) * 24 + bytes([b]) * 8 for a, b in pairs)
    found, earlier = repeats(np.frombuffer(data, dtype=np.uint8).reshape(-1, 32))
    assert found.tolist() == [i for i, pair in enumerate(pairs) if pair in pairs[:i]]
    assert earlier.tolist() == [pairs.index(pairs[i]) for i in found]


@pytest.mark.slow
def test_many_ids_need_little_more_than_their_hashes():
    """2^21 rows: 64 MiB of hashes; what is held besides stays under 160 MiB."""
    import subprocess
    import sys

    code = """
import resource, numpy as np, pyarrow as pa, pyarrow.compute as pc
from fl_core.protocols.psi.ids import hash_ids
column = pc.binary_join_element_wise("id", pa.array(np.arange(2**21)).cast("string"), "")
hash_ids([column.slice(0, 1000)], ["id"], where="w")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = hash_ids([column], ["id"], where="w")
print(len(found.hashes), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 2**21 and grown < 64 + 160
