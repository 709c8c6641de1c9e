"""Id columns out of every kind of source: as they stand there, and nothing else read."""

from __future__ import annotations

import gzip
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.psi import load_ids
from clients.sources import read_ids
from clients.sql_source import SqlSource
from fl_core.config import load_job
from fl_core.errors import DataError
from fl_core.protocols.psi.ids import hash_ids

TEXT = 'name,born,x\n"Ott, Ida",1990-01-02,1\nKlara,1980-05-06,oops\n'
ROWS = [("Ott, Ida", "1990-01-02"), ("Klara", "1980-05-06")]


def sources(folder):
    csv = folder / "a.csv"
    csv.write_text(TEXT)
    packed = folder / "a.csv.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    parquet = folder / "a.parquet"
    names, dates = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"born": pa.array(dates), "x": [1, 2], "name": pa.array(names)}), parquet)
    npz = folder / "a.npz"
    np.savez(npz, name=np.array(names), born=np.array(dates), x=np.zeros((2, 3)))
    database = folder / "a.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE t (name TEXT, born TEXT, x INT)")
        connection.executemany("INSERT INTO t VALUES (?, ?, 1)", ROWS)
    sql = SqlSource(f"sqlite:///{database}", "SELECT born, name FROM t ORDER BY name DESC")
    return {"csv": csv, "csv.gz": packed, "parquet": parquet, "npz": npz, "sql": sql}


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npz", "sql"])
def test_every_source_gives_the_same_ids_in_the_order_that_is_asked_for(tmp_path, kind):
    table = read_ids(sources(tmp_path)[kind], ["name", "born"], where="party a")
    assert table.column_names == ["name", "born"]
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == ROWS
    expected = hash_ids([pa.array(c) for c in zip(*ROWS, strict=True)], ["name", "born"], where="x").hashes
    assert np.array_equal(hash_ids(table.columns, ["name", "born"], where="x").hashes, expected)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npz", "sql"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, kind):
    with pytest.raises(DataError, match=r"party a: .*no id column 'nam'; allowed: .*'name'"):
        read_ids(sources(tmp_path)[kind], ["nam"], where="party a")


def test_an_array_of_two_dimensions_is_no_id(tmp_path):
    with pytest.raises(DataError, match=r"array 'x' has shape \(2, 3\); allowed: one dimension"):
        read_ids(sources(tmp_path)["npz"], ["x"], where="party a")


def test_a_number_read_from_text_and_one_from_a_table_are_the_same_id(tmp_path):
    (tmp_path / "n.csv").write_text("id\n7\n12\n")
    pq.write_table(pa.table({"id": pa.array([7, 12], pa.int64())}), tmp_path / "n.parquet")
    one, two = (
        hash_ids(read_ids(tmp_path / f"n.{k}", ["id"], where="x").columns, ["id"], where="x")
        for k in ("csv", "parquet")
    )
    assert np.array_equal(one.hashes, two.hashes)


def test_duplicates_are_refused_or_the_first_is_kept_as_the_job_says(tmp_path):
    (tmp_path / "a.csv").write_text("id\n1\n2\n1\n")
    (tmp_path / "b.csv").write_text("id\n1\n")
    table = {
        "kind": "psi",
        "party": [{"name": n, "data": str(tmp_path / f"{n}.csv"), "id": "id"} for n in "ab"],
    }
    job = load_job(table)
    with pytest.raises(DataError, match="one id in rows 1 and 3"):
        load_ids(job, job.parties[0], None)
    job = load_job(table, ["psi.duplicates=first"])
    assert load_ids(job, job.parties[0], None)[1].rows.tolist() == [0, 1]
