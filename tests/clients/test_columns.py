"""A party's columns out of every kind of source: numbers or categories by what they hold, and nothing guessed silently."""

from __future__ import annotations

import datetime
import gzip
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import sources
from clients.columns import MISSING, classes_of, read_columns
from clients.sources import read_ids, read_table
from clients.sql_source import SqlSource
from fl_core.errors import DataError

TEXT = 'id,age,town,rate,y\n"007",34, Ulm ,0.5,1\nb2,?,Ötz,NA,0\nc3,51,,1e3,1.0\n'


def csv_file(folder, text, name="a.csv"):
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def read(source, *, ids=("id",), label="y", **how):
    return read_columns(source, id_columns=ids, label=label, where="party a", **how)


def shown(loaded):
    """Columns as lists, None where missing."""
    return {
        c.name: [None if np.isnan(v) else v for v in c.numbers.tolist()] if c.numbers is not None
        else [None if code < 0 else c.categories[code] for code in c.codes]
        for c in loaded.columns
    }  # fmt: skip


def every_source(folder):
    csv = csv_file(folder, TEXT)
    packed = csv_file(folder, TEXT, "a.csv.gz")
    parquet = folder / "a.parquet"
    ids, y = ["007", "b2", "c3"], [1, 0, 1]
    pq.write_table(
        pa.table({
            "id": ids, "age": pa.array([34, None, 51], pa.int16()), "town": pa.array(["Ulm", " Ötz", None]).dictionary_encode(),
            "rate": [0.5, float("nan"), 1000.0], "y": y}), parquet)  # fmt: skip
    npz = folder / "a.npz"
    np.savez(npz, id=np.array(ids), age=np.array([34, np.nan, 51]), town=np.array(["Ulm", "Ötz", "null"]),
             rate=np.array([b"0.5", b"?", b"1e3"]), y=np.array(y))  # fmt: skip
    database = folder / "a.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE t (id TEXT, age INT, town TEXT, rate REAL, y INT)")
        rows = [("007", 34, "Ulm", 0.5, 1), ("b2", None, "Ötz", None, 0), ("c3", 51, "None", 1000.0, 1)]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    return {"csv": csv, "csv.gz": packed, "parquet": parquet, "npz": npz,
            "sql": SqlSource(f"sqlite:///{database}", "SELECT * FROM t ORDER BY id")}  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npz", "sql"])
def test_every_source_gives_the_same_columns_ids_and_labels(tmp_path, kind):
    source = every_source(tmp_path)[kind]
    loaded = read(source)
    assert shown(loaded) == {"age": [34, None, 51], "town": ["Ulm", "Ötz", None], "rate": [0.5, None, 1000]}
    assert loaded.labels.tolist() == ["1", "0", "1"] and loaded.block is None and loaded.notes == []
    assert loaded.ids.equals(read_ids(source, ["id"], where="x")) and loaded.ids.num_rows == 3
    some = read(source, label=None, only=["rate", "age"])
    assert shown(some) == {"rate": [0.5, None, 1000], "age": [34, None, 51]} and some.labels is None
    assert read(source, ids=(), only=["age"]).ids.column_names == []


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet", "sql"])
def test_a_source_is_read_once(tmp_path, kind, monkeypatch):
    source, reads = every_source(tmp_path)[kind], []
    for name in ("_read_csv", "_read_parquet", "read_sql"):
        whole = getattr(sources, name)
        monkeypatch.setattr(sources, name, lambda *a, whole=whole, **k: reads.append(1) or whole(*a, **k))
    load = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: reads.append(1) or load(*a, **k))
    read(source)
    assert reads == [1]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npz", "sql"])
def test_columns_that_cannot_be_are_met_with_the_near_ones(tmp_path, kind):
    source = every_source(tmp_path)[kind]
    for how, message in [
        ({"only": ["agee"]}, "no feature column 'agee'; allowed: 'age'"),
        ({"ids": ["idd"]}, "no id column 'idd'; allowed: 'id'"),
        ({"label": "z"}, "no label column 'z'; allowed: 'id', 'age'"),
        ({"only": ["y"]}, "feature 'y' is the label"),
        ({"only": ["id"]}, "feature 'id' is the id"),
        ({"only": ["age", "age"]}, "column 'age' is named twice"),
        ({"label": "id"}, "'id' is both label and id"),
        ({"label": None, "ids": ["id", "age", "town", "rate", "y"]}, "no feature columns; allowed: columns besides"),
    ]:
        with pytest.raises(DataError, match=f"^party a: .*{message}"):
            read(source, **how)


def test_a_party_may_have_the_label_only(tmp_path):
    loaded = read(csv_file(tmp_path, "id,y\n1,0\n2,1\n"))
    assert len(loaded.columns) == 2 and loaded.columns.names == () and loaded.labels.tolist() == ["0", "1"]
    np.savez(tmp_path / "a.npz", y=np.arange(3))
    assert len(read(tmp_path / "a.npz", ids=()).columns) == 3


CELLS = st.sampled_from([*MISSING, "1", "-2.5", " 7 ", "1e3", ".5", "a", " a", "Ötz", "1_0", "0x1", "-"])


@settings(deadline=None, max_examples=60)
@given(st.lists(CELLS, min_size=1, max_size=8))
def test_a_column_is_numbers_exactly_if_all_that_is_there_reads_so(tmp_path_factory, cells):
    path = csv_file(tmp_path_factory.mktemp("cells"), "x,y\n" + "".join(f"{cell},1\n" for cell in cells))
    there = [None if cell.strip() in MISSING else cell.strip() for cell in cells]
    numeric = {"1": 1.0, "-2.5": -2.5, "7": 7.0, "1e3": 1000.0, ".5": 0.5}
    if all(cell is None or cell in numeric for cell in there):
        there = [None if cell is None else numeric[cell] for cell in there]
    assert shown(read(path, ids=()))["x"] == there


def test_true_and_false_are_numbers_and_categories_are_sorted(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"b": [True, None, False], "w": ["z", "ä", "b"], "y": [1, 2, 3]}), path)
    loaded = read(path, ids=())
    assert shown(loaded)["b"] == [1, None, 0] and loaded.columns.columns[1].categories == ("b", "z", "ä")
    pq.write_table(pa.table({"n": pa.nulls(2), "y": [1, 2]}), path)
    assert shown(read(path, ids=())) == {"n": [None, None]}


def test_an_infinite_number_is_named_with_its_line(tmp_path):
    path = csv_file(tmp_path, "x,y\n1,1\n\ninf,1\n?,0\n-1e999,0\n")
    with pytest.raises(DataError, match=r"^party a: a.csv, column 'x': not finite: inf in line 4, -inf in line 6;"):
        read(path, ids=())
    assert shown(read(csv_file(tmp_path, "x,y\ninf,1\na,1\n"), ids=())) == {"x": ["inf", "a"]}


def test_other_types_are_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    for values, kind in (([datetime.date(2026, 1, 2)], "date32"), ([[1.0]], "list"), ([b"x"], "binary")):
        pq.write_table(pa.table({"x": values, "y": [1]}), path)
        with pytest.raises(
            DataError, match=f"a.parquet, column 'x': holds {kind}.*; allowed: numbers, text, true/false"
        ):
            read(path, ids=())
    for array, kind in ((np.array([1j]), "complex128"), (np.array(["2026-01-02"], dtype="M8[D]"), "date32")):
        np.savez(tmp_path / "a.npz", x=array, y=np.ones(1))
        with pytest.raises(DataError, match=f"'x'.* holds {kind}"):
            read(tmp_path / "a.npz", ids=())


def test_labels_are_those_of_the_other_reader_and_a_missing_one_is_named(tmp_path):
    path = csv_file(tmp_path, "id,x,y\n" + "".join(f"{i},1,{v}\n" for i, v in enumerate(["1.0", "+2", " no ", "-0"])))
    assert read(path).labels.tolist() == read_table(path, id_columns=["id"], label="y", where="").labels.tolist()
    for hole in ("", "nan"):
        with pytest.raises(DataError, match=r"column 'y': no label: .* in line 3; allowed: a value in every row"):
            read(csv_file(tmp_path, f"id,x,y\n1,1,1\n2,1,{hole}\n3,1,1\n"))
    with pytest.raises(DataError, match="no rows"):
        read(csv_file(tmp_path, "id,x,y\n"))


def test_a_word_among_numbers_makes_categories_and_a_note(tmp_path):
    loaded = read(csv_file(tmp_path, "code,y\n250.83,1\n?,1\n8,0\n8,1\nV57,0\n"), ids=())
    assert shown(loaded) == {"code": ["250.83", None, "8", "8", "V57"]}
    assert loaded.notes == ["column 'code' is read as categories; rows with a number: 3, other rows: 1, such as 'V57'"]


def test_a_kind_that_a_model_was_trained_on_holds_whatever_the_values(tmp_path):
    path = csv_file(tmp_path, "code,n,y\n8,1,1\n 9 ,oops,0\nNA,?,1\n")
    loaded = read(path, ids=(), only=["code"], kinds={"code": "categories", "other": "numbers"})
    assert shown(loaded) == {"code": ["8", "9", None]} and loaded.notes == []
    with pytest.raises(
        DataError, match="column 'n': not a number: 'oops' in line 3; allowed: numbers, as in the train"
    ):
        read(path, ids=(), kinds={"n": "numbers"})
    pq.write_table(pa.table({"code": [8, 9, None], "y": [1, 1, 1]}), tmp_path / "a.parquet")
    assert shown(read(tmp_path / "a.parquet", ids=(), kinds={"code": "categories"})) == {"code": ["8", "9", None]}


def test_a_matrix_is_a_block_and_columns_and_pictures_are_a_block_only(tmp_path):
    path, x = tmp_path / "a.npz", np.array([[1.1, 2], [3, 4], [5, 6]])
    np.savez(path, x=x, y=np.arange(3), id=np.array(["a", "b", "c"]))
    loaded = read(path)
    assert shown(loaded) == {"x0": [1.1, 3, 5], "x1": [2, 4, 6]} and loaded.ids.to_pydict() == {"id": ["a", "b", "c"]}
    assert loaded.block.dtype == np.float32 and np.array_equal(loaded.block, x.astype(np.float32))
    np.savez(path, x=np.full((2, 4, 3), 255, dtype=np.uint8), id=np.arange(2))
    loaded = read(path, label=None)
    assert loaded.block.shape == (2, 1, 4, 3) and (loaded.block == 1).all() and len(loaded.columns) == 2
    assert loaded.columns.names == () and loaded.labels is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2)), "y": np.ones(2)}, r"array 'x' has shape \(3, 2\); allowed: 2 rows as 'y' has"),
        ({"x": np.ones((2, 2)), "z": np.ones(2), "y": np.ones(2)}, r"array 'x' has shape .* or one array 'x'"),
        ({"x": np.array([["a"]]), "y": np.ones(1)}, "array 'x' holds <U1; allowed: numbers"),
        ({"x": np.array([[np.nan]]), "y": np.ones(1)}, "column 'x': not finite: nan in row 0"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "no rows"),
        ({"x": np.ones(0), "y": np.ones(0)}, "no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"^party a: a.npz.*{message}"):
        read(tmp_path / "a.npz", ids=())


def learnt(labels, objective="auto"):
    y, classes, found = classes_of(np.array(labels), objective, "party a")
    return y.tolist(), classes, found


def test_what_labels_are_is_seen_from_them():
    assert learnt(["yes", "no", "yes"]) == ([1, 0, 1], ("no", "yes"), "binary")
    assert learnt(["10", "9", "-1"]) == ([2, 1, 0], ("-1", "9", "10"), "multiclass")
    assert learnt(["10", "9", "a"]) == ([0, 1, 2], ("10", "9", "a"), "multiclass")
    numbers = [str(i / 2) for i in range(21)]
    assert learnt(numbers) == ([i / 2 for i in range(21)], (), "regression")
    assert learnt(numbers[:20])[2] == learnt([*numbers, "x"])[2] == "multiclass"
    assert learnt(["1", "2"], "regression") == ([1.0, 2.0], (), "regression")
    assert learnt(["1", "2"], "multiclass")[2] == "multiclass"
    assert classes_of(np.array(["1", "2"]), "auto", "x")[0].dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "objective", "message"),
    [
        (["1", "1"], "auto", "one class only"),
        (["1", "1"], "regression", "one class only"),
        (["1", "2", "3"], "binary", "3 classes for binary; allowed: 2$"),
        ([f"n{i}" for i in range(1001)], "auto", "1001 classes for multiclass; allowed: 2 to 1000"),
        (["1", "a"], "regression", "not a finite number"),
        (["1", "inf"], "regression", "not a finite number"),
    ],
)
def test_labels_that_do_not_fit_the_objective_are_refused_without_a_value(labels, objective, message):
    with pytest.raises(DataError, match=f"^party a: label: .*{message}"):
        learnt(labels, objective)


def shared(name):
    path = Path(__file__).parents[3] / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not there")
    return path


def test_public_data_are_read_as_they_are_known():
    loaded = read(shared("adult.csv.gz"), only=["age", "workclass", "hours_per_week"])
    assert [c.kind for c in loaded.columns] == ["numbers", "categories", "numbers"] and len(loaded.columns) == 48842
    assert len(loaded.columns.columns[1].categories) == 8 and loaded.notes == []
    y, _, objective = classes_of(loaded.labels, "auto", "x")
    assert objective == "binary" and round(float(y.mean()), 3) == 0.239
