"""Columns and what linear models see of them: fitted on training rows only, finite whatever comes, kept without loss."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fl_core.errors import DataError
from fl_core.learning.columns import Column, Columns, LinearFeatures


def numbers(name, values):
    return Column(name, numbers=np.array([np.nan if v is None else v for v in values], dtype=np.float64))


def words(name, values):
    categories = tuple(sorted({v for v in values if v is not None}))
    codes = np.array([-1 if v is None else categories.index(v) for v in values], dtype=np.int32)
    return Column(name, codes=codes, categories=categories)


def fit(*columns, rows=None, **how):
    table = Columns(columns)
    rows = np.arange(len(table)) if rows is None else np.array(rows)
    return LinearFeatures.fit(table, rows, where="party a", **{"min_frequency": 1, **how})


NUMBERS = st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=20)
WORDS = st.lists(st.one_of(st.none(), st.sampled_from("abcd")), min_size=1, max_size=20)


@settings(deadline=None)
@given(NUMBERS, NUMBERS, WORDS, WORDS, st.integers(1, 4))
def test_features_are_finite_within_the_clip_and_the_same_after_json(past, now, said, heard, least):
    n, m = min(len(past), len(said)), min(len(now), len(heard))
    try:
        fitted = fit(numbers("x", past[:n]), words("w", said[:n]), min_frequency=least)
    except DataError as error:
        assert "no column is left" in str(error)
        return
    kept = LinearFeatures.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert fitted.names
    for table in (
        Columns((numbers("x", past[:n]), words("w", said[:n]))),
        Columns((numbers("x", now[:m]), words("w", heard[:m]))),
    ):
        x = fitted.transform(table)
        assert x.shape == (len(table), len(fitted.names)) and x.dtype == np.float64
        assert (np.abs(x) <= fitted.clip).all()
        assert np.array_equal(kept.transform(table), x) and kept.names == fitted.names
        for j, name in enumerate(fitted.names):
            assert name == "x" or set(x[:, j].tolist()) <= {0.0, 1.0}


def test_numbers_are_those_of_scikit_learn_and_the_test_rows_change_nothing():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 9, 400)
    values[300:] *= 1000
    fitted = fit(numbers("x", values), rows=range(300), clip=2.0)
    expected = StandardScaler().fit(values[:300, None]).transform(values[:, None])
    assert fitted.transform(Columns((numbers("x", values),))) == pytest.approx(np.clip(expected, -2, 2), abs=1e-12)


def test_a_missing_number_is_the_mean_and_says_so_if_the_training_had_one():
    fitted = fit(numbers("x", [1, None, 3]), numbers("z", [1, 3, 1]))
    assert fitted.names == ("x", "x is missing", "z")
    x = fitted.transform(Columns((numbers("z", [None, 3]), numbers("x", [None, 3]))))
    assert x.tolist() == [[0, 1, 0], [1, 0, pytest.approx(2**0.5)]]
    assert fit(numbers("x", [7, None])).names == ("x is missing",)


def test_categories_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    values = rng.choice(list("abcdef"), 1000, p=[0.5, 0.3, 0.15, 0.03, 0.015, 0.005]).tolist()
    theirs = OneHotEncoder(min_frequency=100, handle_unknown="infrequent_if_exist", sparse_output=False)
    expected = theirs.fit(np.array(values)[:, None]).transform(np.array([*values, "new"])[:, None])
    fitted = fit(words("w", values), min_frequency=100)
    assert fitted.names == ("w = a", "w = b", "w = c", "w is another")
    assert np.array_equal(fitted.transform(Columns((words("w", [*values, "new"]),))), expected)


def test_a_category_never_seen_is_another_or_nothing_and_missing_is_its_own():
    fitted = fit(words("w", ["a", "b", None]))
    assert fitted.names == ("w = a", "w = b", "w is missing")
    assert fitted.transform(Columns((words("w", ["new", None, "b"]),))).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    fitted = fit(words("w", list("aaab")), min_frequency=2)
    assert fitted.transform(Columns((words("w", ["new", None, "a"]),))).tolist() == [[0, 1], [0, 1], [1, 0]]


def test_columns_that_tell_nothing_are_left_out_by_name():
    dull = numbers("one", [0.1] * 6), numbers("none", [None] * 6), words("same", ["a"] * 6), words("void", [None] * 6)
    each = words("each", list("abcdef"))
    fitted = fit(*dull, each, numbers("x", range(6)), min_frequency=2)
    assert fitted.names == ("x",) and list(fitted.kinds) == ["x"] and fitted.notes == [
        "column 'one' is constant and is left out",
        "column 'none' has no values and is left out",
        "column 'same' is constant and is left out",
        "column 'void' has no values and is left out",
        "column 'each' has no category of 2 rows or more and is left out",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"^party a: no column is left: column 'one' is constant .*; column 'none'"):
        fit(*dull)
    with pytest.raises(DataError, match="no feature columns"):
        LinearFeatures.fit(Columns((), rows=3), np.arange(3), where="party a")
    with pytest.raises(DataError, match="no training rows"):
        fit(numbers("x", [1, 2]), rows=np.empty(0, np.int64))


def test_a_column_of_another_name_or_kind_is_refused_later():
    fitted = fit(numbers("income", [1, 2]))
    with pytest.raises(DataError, match="column 'income': is not there; allowed: 'incom'"):
        fitted.transform(Columns((numbers("incom", [1]), numbers("zzz", [1]))))
    with pytest.raises(DataError, match="column 'income': holds categories; allowed: numbers"):
        fitted.transform(Columns((words("income", ["1"]),)))


@pytest.mark.parametrize(
    "held",
    [{}, {"columns": [{"name": "x"}], "clip": 1, "notes": []}, {"columns": [], "clip": None, "notes": []},
     {"columns": [{"name": "x", "mean": float("nan"), "deviation": 1, "missing": False}], "clip": 1, "notes": []}],
)  # fmt: skip
def test_what_is_no_kept_features_is_refused(held):
    with pytest.raises(DataError, match="kept features: malformed"):
        LinearFeatures.from_dict(held)


def test_taking_rows_keeps_order_and_a_negative_one_is_missing():
    table = Columns((numbers("x", [1, 2, None]), words("w", ["a", None, "b"])))
    taken = table.take(np.array([2, -1, 0, 0]))
    assert np.array_equal(taken.columns[0].numbers, [np.nan, np.nan, 1, 1], equal_nan=True)
    assert taken.columns[1].codes.tolist() == [1, -1, 0, 0] and taken.columns[1].categories == ("a", "b")
    assert len(taken) == 4 and taken.names == table.names
    assert len(table.take(np.empty(0, np.int64))) == 0 and len(Columns((), rows=3).take(np.array([-1]))) == 1
    nothing = Columns((numbers("x", []), words("w", []))).take(np.array([-1]))
    assert np.isnan(nothing.columns[0].numbers).all() and nothing.columns[1].codes.tolist() == [-1]


def test_columns_that_do_not_fit_together_cannot_be():
    with pytest.raises(ValueError, match="one length"):
        Columns((numbers("x", [1]), numbers("y", [1, 2])))
    with pytest.raises(ValueError, match="different names"):
        Columns((numbers("x", [1]), numbers("x", [2])))
    with pytest.raises(ValueError, match="either numbers or codes"):
        Column("x")
