from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from clients.sources import read_table
from fl_core.errors import DataError


def read(path, *, ids=("id",), label="y"):
    return read_table(path, id_columns=ids, label=label, where="party bank_a")


def csv_file(tmp_path, text, name="bank.csv"):
    path = tmp_path / name
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def refused(path, text, **how):
    with pytest.raises(DataError, match=text) as caught:
        read(path, **how)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"party bank_a: {path.name}")
    return message


GOOD = "id,age,income,y\n007,34,1e3,1\nb2, 51 ,-2.5,0\n"


@pytest.mark.parametrize("name", ["bank.csv", "bank.csv.gz", "BANK.CSV"])
def test_a_csv_is_read_as_written(tmp_path, name):
    table = read(csv_file(tmp_path, GOOD, name))
    assert table.x.tolist() == [[34.0, 1000.0], [51.0, -2.5]] and table.x.dtype == np.float32
    assert table.labels.tolist() == ["1", "0"] and table.feature_names == ("age", "income")
    assert table.ids.tolist() == ["007", "b2"], "an id is text: a leading zero counts"


def test_byte_order_mark_and_windows_lines_are_not_data(tmp_path):
    table = read(csv_file(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()))
    assert table.ids.tolist() == ["007", "b2"] and table.x[1, 1] == -2.5


def test_several_id_columns_cannot_run_into_each_other(tmp_path):
    path = csv_file(tmp_path, "a,b,x,y\n1,23,0,u\n12,3,0,v\n")
    ids = read(path, ids=("a", "b")).ids
    assert len(set(ids.tolist())) == 2
    assert read(path, ids=()).ids is None and read(path, ids=()).feature_names == ("a", "b", "x")


@pytest.mark.parametrize(
    ("written", "label"),
    [("1", "1"), ("1.0", "1"), ("+1", "1"), ("-1", "-1"), ("-0", "0"), ("0.5", "0.5"), ("007", "007"),
     (" yes ", "yes"), ("1e3", "1e3"), ("12345678901234567890", "12345678901234567890")],
)  # fmt: skip
def test_a_label_is_the_same_text_in_every_file(tmp_path, written, label):
    assert read(csv_file(tmp_path, f"id,x,y\n1,0,{written}\n")).labels.tolist() == [label]


BAD_CSV = [
    ("id,age,y\na,34,1\nb,old,0\n", r"column 'age': not a number: 'old' in line 3; allowed: finite numbers"),
    ("id,age,y\na,,1\n", r"column 'age': no value: nothing in line 2"),
    ("id,age,y\na,NaN,1\nb,-inf,0\n", r"column 'age': not finite: nan in line 2, -inf in line 3"),
    ("id,age,y\na,1e39,1\n", r"column 'age': not finite: 1e\+39 in line 2"),
    ("id,age,y\n" + "a,?,1\n" * 9, r"'\?' in line 2, '\?' in line 3, '\?' in line 4 and 6 more"),
    ("id,age,y\na,1_000,1\n", r"not a number: '1_000'"),
    ("id,age,y\na,1,\nb,2,nan\n", r"column 'y': no label: nothing in line 2, 'nan' in line 3"),
    ("id,age,y\n,1,1\n", r"column 'id': no id: nothing in line 2"),
    ("id,age,y\n", r"no rows; allowed: one row or more"),
    ("", r"no columns"),
    ("id,age,label\na,1,1\n", r"no label column 'y'; allowed: 'id', 'age', 'label'"),
    ("id,age,age,y,y\na,1,2,1,1\n", r"duplicate column names: 'age', 'y'"),
    ("id,y\na,1\n", r"no feature columns"),
    ("id,age,y\na,1\n", r"cannot be read \(CSV parse error: Expected 3 columns, got 2"),
    (b"id,age,y\n\xff\xfe,1,1\n", r"cannot be read"),
    (b"\x00\x01\x02", r"bank\.csv"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_a_bad_csv_is_one_line_with_place_value_and_what_is_allowed(tmp_path, text, message):
    refused(csv_file(tmp_path, text), message)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    text = 'id,note,y\n\n"a\nb",1,1\n\nc,x,0\n'
    refused(csv_file(tmp_path, text), r"'x' in line 6")


def test_a_misspelt_column_is_met_with_the_near_ones(tmp_path):
    path = csv_file(tmp_path, "customer_id,income,default_flag\n1,2,3\n")
    message = refused(path, r"no label column 'defalt_flag'; allowed: 'default_flag'", label="defalt_flag")
    assert "income" not in message
    refused(path, r"no id column 'customer'; allowed: 'customer_id'", ids=("customer",), label="default_flag")
    refused(path, "'income' is both label and id", ids=("income",), label="income")


def test_an_unknown_or_missing_file_is_refused(tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    refused(tmp_path / "data.xlsx", r"unknown kind of file '\.xlsx'; allowed: \.csv, \.csv\.gz, \.parquet, \.npz")
    refused(tmp_path / "data.csv", "no such file")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet", "a.npz"])
def test_damaged_files_are_refused(tmp_path, name):
    for data in (
        b"",
        b"PK\x03\x04",
        b"\x1f\x8b\x08\x00garbage",
        b"PAR1" + b"\x00" * 40,
        b"\x93NUMPY\x01\x00",
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "cannot be read|no columns|no arrays")


def frame(tmp_path, **columns):
    path = tmp_path / "bank.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def test_parquet_types_become_numbers_labels_and_ids(tmp_path):
    from decimal import Decimal

    path = frame(
        tmp_path,
        id=pa.array([7, 8]),
        i=pa.array([1, 2], pa.int8()),
        b=pa.array([True, False]),
        d=pa.array([Decimal("1.50"), Decimal("2.25")]),
        s=pa.array([" 1.5", "2"]),
        c=pa.array([3.0, 4.0]).dictionary_encode(),
        h=pa.array([0.5, 1.5], pa.float16()),
        y=pa.array([1.0, 0.0]),
    )
    table = read(path)
    assert table.x.tolist() == [[1, 1, 1.5, 1.5, 3, 0.5], [2, 0, 2.25, 2, 4, 1.5]]
    assert table.labels.tolist() == ["1", "0"] and table.ids.tolist() == ["7", "8"]
    assert read(frame(tmp_path, id=[1], x=[1.0], y=[True])).labels.tolist() == ["1"]


def test_bad_parquet_columns_are_named(tmp_path):
    import datetime

    day = datetime.date(2026, 1, 2)
    refused(frame(tmp_path, id=[1, 2], x=[1.0, None], y=[1, 1]), r"column 'x': no value: nothing in row 2")
    refused(frame(tmp_path, id=[1], x=[day], y=[1]), r"column 'x': holds date32\[day\]; allowed: finite numbers")
    refused(frame(tmp_path, id=[1], x=["red"], y=[1]), r"column 'x': not a number: 'red' in row 1")
    refused(frame(tmp_path, id=[1], x=[[1.0]], y=[1]), r"column 'x': holds list")
    refused(frame(tmp_path, id=[1, 1], x=[1.0, 2.0], y=[1.0, float("nan")]), r"column 'y': no label: nan in row 2")
    refused(frame(tmp_path, id=[1], x=pa.array([None], pa.null()), y=[1]), r"column 'x': no value")
    refused(
        frame(tmp_path, id=pa.array([], pa.int64()), x=pa.array([], pa.int64()), y=pa.array([], pa.int64())),
        "no rows",
    )


def test_a_parquet_file_in_a_folder_named_like_a_partition_has_its_own_columns_only(tmp_path):
    folder = tmp_path / "year=2026"
    folder.mkdir()
    assert read(frame(folder, id=[1], x=[1.0], y=[1])).feature_names == ("x",)


def npz(tmp_path, **arrays):
    path = tmp_path / "bank.npz"
    np.savez(path, **arrays)
    return path


def test_npz_of_features_pictures_and_columns(tmp_path):
    table = read(npz(tmp_path, x=np.ones((3, 2)), y=np.array([0, 1, 1])), ids=())
    assert table.x.shape == (3, 2) and table.feature_names == ("x0", "x1") and table.labels.tolist() == ["0", "1", "1"]
    pictures = np.full((2, 4, 4), 255, dtype=np.uint8)
    table = read(npz(tmp_path, x=pictures, y=np.array(["cat", "dog"]), id=np.array([b"u", b"v"])))
    assert table.x.shape == (2, 1, 4, 4) and (table.x == 1.0).all() and table.ids.tolist() == ["u", "v"]
    assert len(table.feature_names) == 16
    table = read(npz(tmp_path, x=np.full((2, 3, 4, 4), 0.25), y=np.array([0, 1])), ids=())
    assert table.x.shape == (2, 3, 4, 4) and (table.x == 0.25).all()
    table = read(npz(tmp_path, age=np.arange(2), income=np.ones(2), y=np.zeros(2), id=np.array(["a", "b"])))
    assert table.x.tolist() == [[0, 1], [1, 1]] and table.feature_names == ("age", "income")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.array([[1, "a"]], dtype=object), "y": np.zeros(1)},
            "array 'x' holds Python objects; allowed: num",
        ),
        ({"x": np.array([["a"]]), "y": np.zeros(1)}, "array 'x' holds <U1; allowed: numbers"),
        (
            {"x": np.ones((2, 2)), "y": np.zeros(3)},
            r"array 'x' has shape \(2, 2\); allowed: 3 rows as 'y' has",
        ),
        ({"x": np.ones((2, 1, 1, 1, 1)), "y": np.zeros(2)}, "array 'x' has shape"),
        ({"x": np.ones((0, 2)), "y": np.zeros(0)}, "no rows"),
        ({"x": np.ones((2, 0)), "y": np.zeros(2)}, r"array 'x' has shape \(2, 0\)"),
        ({"x": np.ones((2, 2)), "label": np.zeros(2)}, "no label column 'y'"),
        ({"x": np.array([[0, 1], [np.inf, 2]]), "y": np.zeros(2)}, "column 'x': not finite: inf in row 1"),
        ({"x": np.ones((2, 2)), "y": np.array([0, np.nan])}, "column 'y': no label: nan in row 1"),
        ({"x": np.ones((2, 2)), "y": np.zeros((2, 2))}, r"array 'y' has shape \(2, 2\)"),
        ({"a": np.ones((2, 2)), "y": np.zeros(2)}, r"array 'a' has shape \(2, 2\)"),
        ({"x": np.ones((2, 2)) * 1j, "y": np.zeros(2)}, "holds complex128"),
    ],
)
def test_a_bad_npz_is_refused(tmp_path, arrays, message):
    refused(npz(tmp_path, **arrays), message, ids=())


def test_an_npz_with_a_pickle_inside_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "owned").mkdir, ()

    refused(npz(tmp_path, x=np.array([[Evil()]], dtype=object), y=np.zeros(1)), "Python objects", ids=())
    assert not (tmp_path / "owned").exists()


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, st.one_of(CELL, st.floats().map(repr)), CELL), min_size=1, max_size=4))
def test_whatever_a_csv_holds_the_answer_is_finite_or_one_line(tmp_path, rows):
    import csv

    path = tmp_path / "bank.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "x", "y"), *rows])
    try:
        table = read(path)
    except DataError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert np.isfinite(table.x).all() and len(table.x) == len(table.labels) == len(rows)
