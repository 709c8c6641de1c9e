"""Bins: a cut on codes is the cut on values that it says, no code is empty in training, unseen values have one too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import DataError, JobFileError
from fl_core.learning.binning import BinnedFeatures, cumulative, one_hot
from fl_core.learning.columns import Column, Columns


def numbers(name, values):
    return Column(name, numbers=np.array([np.nan if v is None else v for v in values], dtype=np.float64))


def words(name, values):
    categories = tuple(sorted({v for v in values if v is not None}))
    codes = np.array([-1 if v is None else categories.index(v) for v in values], dtype=np.int32)
    return Column(name, codes=codes, categories=categories)


def fit(*columns, bins=32, rows=None, **how):
    table = Columns(columns)
    rows = np.arange(len(table)) if rows is None else np.array(rows)
    return BinnedFeatures.fit(table, rows, bins=bins, where="party a", **{"min_frequency": 1, **how})


def codes(fitted, *columns):
    return fitted.transform(Columns(columns)).tolist()


VALUES = st.one_of(st.none(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False))


@settings(deadline=None, max_examples=200)
@given(st.lists(VALUES, min_size=2, max_size=60), st.lists(VALUES, max_size=10), st.integers(2, 12))
def test_a_cut_on_codes_is_the_cut_on_values_and_no_bin_is_empty(past, now, bins):
    try:
        fitted = fit(numbers("x", past), bins=bins)
    except DataError:
        assert len(set(past)) == 1
        return
    (feature,), (size,) = fitted.features, fitted.sizes
    seen = fitted.transform(Columns((numbers("x", past),)))[:, 0]
    assert sorted(set(seen.tolist())) == list(range(size)) and size <= bins + (None in past)
    shift = None in past
    for value, code in zip([*past, *now], [*seen, *(row[0] for row in codes(fitted, numbers("x", now)))], strict=True):
        for k, edge in enumerate(feature.edges):
            assert value is None or (value <= edge) == (code <= k + shift)
        assert (value is None) == (code == 0) if shift else value is not None or code == 0
    kept = BinnedFeatures.from_dict(json.loads(json.dumps(fitted.to_dict())))
    table = Columns((numbers("x", past),))
    assert np.array_equal(kept.transform(table), fitted.transform(table)) and kept.notes == fitted.notes


def test_bins_are_quantiles_of_the_training_rows_only():
    values = np.random.default_rng(0).normal(size=1000)
    values[500:] += 100
    fitted = fit(numbers("x", values), bins=10, rows=range(500))
    assert fitted.features[0].edges == pytest.approx(np.quantile(values[:500], np.linspace(0.1, 0.9, 9)))
    assert np.bincount(fitted.transform(Columns((numbers("x", values[:500]),)))[:, 0]).tolist() == [50] * 10
    assert fitted.notes == []


def test_a_value_of_nearly_all_rows_has_a_bin_of_its_own():
    for values in ([0, 1, 2] + [3] * 97, [3, 4, 5] + [2] * 97):
        fitted = fit(numbers("x", values), bins=2)
        seen = fitted.transform(Columns((numbers("x", values),)))[:, 0]
        assert sorted(np.bincount(seen).tolist()) == [3, 97]


def test_fewer_values_than_bins_have_a_bin_each_and_are_noted():
    fitted = fit(numbers("age", [3, 1, 2] * 40), numbers("z", [0.5] * 119 + [9]), bins=4)
    assert fitted.sizes.tolist() == [3, 2] and fitted.notes == ["more bins than values in 'age' (3), 'z' (2)"]
    assert codes(fitted, numbers("age", [0, 1, 1.5, 3, 8]), numbers("z", [0, 0.5, 0.6, 9, None])) == [
        [0, 0], [0, 0], [1, 1], [2, 1], [2, 0]]  # fmt: skip


def test_ranks_of_categories_by_frequency_then_name():
    past = words("r", ["b"] * 3 + ["c"] * 3 + ["a"] * 5 + ["d"] + ["e"])
    fitted = fit(past, min_frequency=2)
    assert fitted.sizes.tolist() == [4]
    assert codes(fitted, words("r", ["a", "b", "c", "d", "new", None])) == [[0], [1], [2], [3], [3], [3]]
    assert [fitted.describe(0, c) for c in range(3)] == ["r in {a}", "r in {a, b}", "r in {a, b, c}"]
    fitted = fit(past, min_frequency=2, bins=2)
    assert codes(fitted, words("r", ["a", "b", "c", "new"])) == [[0], [1], [1], [1]]
    assert fitted.notes == ["column 'r' has more than 2 categories: the rarest are one"]


def test_missing_categories_have_the_first_code_if_the_training_has_one():
    fitted = fit(words("r", ["a", "a", "b", None]))
    assert codes(fitted, words("r", [None, "a", "b", "new"])) == [[0], [1], [2], [2]]
    assert [fitted.describe(0, c) for c in range(2)] == ["r is missing", "r is missing or in {a}"]
    assert fitted.code_names() == ("r is missing", "r = a", "r = b")


def test_one_feature_a_category_if_so_asked():
    fitted = fit(
        words("r", ["a"] * 3 + ["b"] * 2 + ["c", None]), numbers("x", range(7)), categories="one-hot", min_frequency=2
    )
    assert fitted.names == ("r is missing", "r = a", "r = b", "x") and fitted.sizes.tolist()[:3] == [2, 2, 2]
    table = words("r", ["a", "b", "c", None]), numbers("x", [0] * 4)
    assert codes(fitted, *table) == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert fitted.describe(1, 0) == "r ≠ a" and fitted.describe(0, 0) == "r is not missing"
    kept = BinnedFeatures.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert codes(kept, *table) == codes(fitted, *table) and kept.code_names() == fitted.code_names()
    assert fit(words("s", list("mwm")), categories="one-hot").names == ("s = m",), "the other would say the same"


def test_a_cut_reads_as_a_person_would_say_it():
    fitted = fit(numbers("income", [1200.5, 9, None, 1e6]), numbers("x", [1, 2, 1, 2]))
    assert [fitted.describe(0, c) for c in range(3)] == [
        "income is missing", "income ≤ 9 or missing", "income ≤ 1200.5 or missing"]  # fmt: skip
    assert fitted.describe(1, 0) == "x ≤ 1"
    assert fitted.code_names() == (
        "income is missing", "income ≤ 9", "9 < income ≤ 1200.5", "income > 1200.5", "x ≤ 1", "x > 1")  # fmt: skip
    many = fit(words("r", [f"c{i:02}" for i in range(30)]))
    assert many.describe(0, 19) == "r in {c00, c01, c02, c03, c04, c05, c06, c07 and 12 more}"
    for cut in (-1, 1):
        with pytest.raises(ValueError, match="of 2 codes"):
            fitted.describe(1, cut)


def test_columns_that_tell_nothing_are_left_out_by_name():
    dull = numbers("one", [0.1] * 4), numbers("none", [None] * 4), words("same", ["a"] * 4), words("void", [None] * 4)
    fitted = fit(*dull, words("each", list("abcd")), numbers("x", [7, None, 7, 7]), min_frequency=2)
    assert fitted.names == ("x",) and fitted.sizes.tolist() == [2] and fitted.describe(0, 0) == "x is missing"
    assert [note.split("'")[1] for note in fitted.notes] == ["one", "none", "same", "void", "each", "x"]
    with pytest.raises(DataError, match=r"^party a: no column is left: column 'one' is constant"):
        fit(*dull)
    with pytest.raises(DataError, match="no training rows"):
        fit(numbers("x", [1, 2]), rows=np.empty(0, np.int64))


@pytest.mark.parametrize("bins", [1, 256])
def test_bins_that_do_not_fit_a_byte_are_refused(bins):
    with pytest.raises(JobFileError, match=f"^vertical.bins: {bins}; allowed: 2 to 255"):
        fit(numbers("x", [1, 2]), bins=bins)


def test_the_most_bins_and_missing_still_fit_a_byte():
    fitted = fit(numbers("x", [None, *range(5000)]), words("w", [None, *(f"{i:04}" for i in range(5000))]), bins=255)
    table = fitted.transform(Columns((numbers("x", [None, 9999]), words("w", [None, "zz"]))))
    assert fitted.sizes.tolist() == [256, 256] and table.tolist() == [[0, 0], [255, 255]]
    assert one_hot(table, fitted.sizes).sum() == 4 and one_hot(table, fitted.sizes)[1, [255, 511]].all()
    assert cumulative(table, fitted.sizes).sum(axis=1).tolist() == [510, 0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_one_hot_and_cumulative_are_what_loops_give(sizes, n, seed):
    table = (np.random.default_rng(seed).random((n, len(sizes))) * sizes).astype(np.uint8)
    sizes = np.array(sizes)
    hot = [[row[j] == c for j, size in enumerate(sizes) for c in range(size)] for row in table]
    low = [[row[j] <= c for j, size in enumerate(sizes) for c in range(size - 1)] for row in table]
    assert one_hot(table, sizes).tolist() == hot and cumulative(table, sizes).tolist() == low
    some = slice(n // 3, n // 2)
    assert one_hot(table, sizes, some).tolist() == hot[some] and cumulative(table, sizes, some).tolist() == low[some]


def test_more_rows_than_a_block_and_a_code_that_cannot_be():
    table = np.random.default_rng(0).integers(0, 3, (10_000, 2)).astype(np.uint8)
    hot = one_hot(table, np.array([3, 3]))
    assert hot.dtype == np.bool_ and np.array_equal(hot[:, :3].argmax(axis=1), table[:, 0])
    for make in (one_hot, cumulative):
        with pytest.raises(ValueError, match="does not have"):
            make(table, np.array([3, 2]))


@pytest.mark.parametrize(
    "held",
    [{}, {"features": [{"name": "x", "edges": [2, 1], "missing": False}], "notes": []},
     {"features": [{"name": "x", "edges": [], "missing": False}], "notes": []},
     {"features": [{"name": "x", "edges": list(range(300)), "missing": False}], "notes": []}],
)  # fmt: skip
def test_what_is_no_kept_bins_is_refused(held):
    with pytest.raises(DataError, match="kept bins: malformed"):
        BinnedFeatures.from_dict(held)
