from __future__ import annotations

import datetime
import logging
import os
import sqlite3
import subprocess
import sys
import traceback
import uuid
from decimal import Decimal
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.sources import read_table
from clients.sql_source import SqlSource, read_sql, without_password
from fl_core.errors import DataError

CSV = "id,age,income,y\n007,34,1e3,1\nb2,51,-2.5,0\n"


def database(tmp_path, *statements, name="bank.db"):
    path = tmp_path / name
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return f"sqlite:///{quote(str(path))}"


def bank(tmp_path, name="bank.db"):
    return database(
        tmp_path,
        "CREATE TABLE loans (id TEXT, age INTEGER, income REAL, y INTEGER)",
        "INSERT INTO loans VALUES ('007', 34, 1000, 1), ('b2', 51, -2.5, 0)",
        name=name,
    )


def read(url, query="SELECT * FROM loans", *, ids=("id",), label="y"):
    return read_table(SqlSource(url, query), id_columns=ids, label=label, where="party bank_a")


def refused(url, query, text, **how):
    with pytest.raises(DataError, match=text) as caught:
        read(url, query, **how)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("party bank_a: ")
    assert caught.value.__context__ is None and caught.value.__cause__ is None, "a driver's text hangs on to it"
    return message


def same(a, b):
    assert np.array_equal(a.x, b.x) and a.x.dtype == b.x.dtype and a.feature_names == b.feature_names
    assert a.labels.tolist() == b.labels.tolist() and a.ids.tolist() == b.ids.tolist()


@pytest.mark.parametrize("name", ["bank.db", "my bank?#%41@é.db"])
def test_a_query_gives_the_table_that_its_csv_gives(tmp_path, name):
    (tmp_path / "bank.csv").write_text(CSV)
    csv = read_table(tmp_path / "bank.csv", id_columns=("id",), label="y", where="party bank_a")
    url = bank(tmp_path, name)
    same(read(url), csv)
    same(read(url, "  with l as (select * from loans)\nselect id, age, income, y from l ; "), csv)


def test_columns_stand_in_the_querys_order_under_its_names(tmp_path):
    url = database(tmp_path, "CREATE TABLE t (a INT, b INT)", "INSERT INTO t VALUES (1, 2)")
    table = read_sql(SqlSource(url, """SELECT b, a AS "t.a", ':z 100% a::b \\:' AS ":c" FROM t"""), "party bank_a")
    assert table.to_pydict() == {"b": [2], "t.a": [1], ":c": [":z 100% a::b \\:"]}
    refused(url, "SELECT a, a, b, b FROM t", "query result: duplicate column names: 'a', 'b'")


def test_a_missing_file_is_refused_and_not_made(tmp_path):
    for url in (f"sqlite:///{tmp_path}/no.db", f"sqlite:///file:{tmp_path}/no.db?mode=rwc&uri=true", "sqlite://"):
        refused(url, "SELECT 1 AS y", "no such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "query",
    ["INSERT INTO loans VALUES ('x', 1, 1, 1)", "DROP TABLE loans", "PRAGMA user_version = 1", "", "SELECTED",
     "SELECT 1; DROP TABLE loans", "SELECT ';'; DROP TABLE loans;", "/* SELECT */ DELETE FROM loans", "VACUUM",
     "ATTACH 'other.db' AS o", "(SELECT 1)"],
)  # fmt: skip
def test_only_one_reading_statement_is_accepted(tmp_path, query):
    url = bank(tmp_path)
    refused(url, query, "query: not one reading statement; allowed: one statement that starts with SELECT or")
    assert len(read(url).x) == 2 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", ["", "?mode=rwc&uri=true", "?mode=ro&mode=rw"])
def test_a_statement_that_writes_behind_with_is_stopped_by_sqlite(tmp_path, mode):
    url = bank(tmp_path)
    refused(url + mode, "WITH x AS (SELECT 1) DELETE FROM loans", "attempt to write a readonly database")
    assert len(read(url).x) == 2


def test_a_null_is_named_with_its_row(tmp_path):
    url = database(
        tmp_path, "CREATE TABLE loans (id INT, x REAL, y INT)", "INSERT INTO loans VALUES (1, 2, 0), (2, NULL, 1)"
    )
    refused(
        url,
        "SELECT * FROM loans ORDER BY id",
        "^party bank_a: query result, column 'x': no value: nothing in row 2; allowed",
    )
    refused(url, "SELECT x AS id, y, 1 AS z FROM loans ORDER BY y", "column 'id': no id: nothing in row 2")
    refused(url, "SELECT id, NULL AS x, y FROM loans", "column 'x': no value: nothing in row 1, nothing in row 2")
    refused(url, "SELECT id, x, y AS z FROM loans", "no label column 'y'; allowed: ")


def test_an_empty_result_is_refused(tmp_path):
    refused(
        bank(tmp_path),
        "SELECT * FROM loans WHERE age > 99",
        "^party bank_a: query result: no rows; allowed: one row or more",
    )


def test_bad_sql_is_told_without_a_value_of_a_row(tmp_path, caplog):
    url = database(tmp_path, "CREATE TABLE loans (id TEXT)", "INSERT INTO loans VALUES (CAST(x'ff416c696365' AS TEXT))")
    with caplog.at_level(logging.DEBUG):
        refused(url, "SELECT nope FROM loans", r"the database refused \(no such column: nope\)")
        refused(url, "SELECT id FROM lones", "no such table: lones")
        message = refused(url, "SELECT id FROM loans", r"Could not decode to UTF-… column 'id' with text '…'")
        refused(url, "SELECT json('{') AS y", "malformed JSON")
    assert "lice" not in message + caplog.text
    assert logging.getLogger("sqlalchemy.pool.impl.NullPool.fedseal").disabled, (
        "it logs what drivers say while they close"
    )
    (tmp_path / "text.db").write_text("not a database, whatever its name says" * 99)
    refused(f"sqlite:///{tmp_path}/text.db", "SELECT * FROM loans", "file is not a database")


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ("(1), ('Alice')", "numbers and text"),
        ("('Alice'), (x'00')", "bytes and text"),
        ("(NULL), (x'00'), (1.5)", "bytes and numbers"),
    ],
)
@pytest.mark.parametrize("apart", [0, 5000])
def test_a_column_that_mixes_kinds_is_named_however_far_apart_they_are(tmp_path, values, kinds, apart):
    first, *others = values.split(", ")
    url = database(tmp_path, "CREATE TABLE t (v)", f"INSERT INTO t VALUES {', '.join([first] * (apart + 1) + others)}")
    message = refused(url, "SELECT v FROM t", rf"query result, column 'v': mixes {kinds}; allowed: one kind of value")
    assert "Alice" not in message


# TEXT in the name: SQLite would store a long number as a float otherwise.
sqlite3.register_converter("TEXT_DECIMAL", lambda text: Decimal(text.decode()))
sqlite3.register_converter("TEXT_BOOL", lambda text: bool(int(text)))
sqlite3.register_converter("TEXT_DAY", lambda text: datetime.date.fromisoformat(text.decode()))
sqlite3.register_converter("TEXT_LIST", lambda text: [1, 2])


def typed(tmp_path, kind, values):
    """What comes of values that the driver gives as Decimal, bool, date or list."""
    name = f"{uuid.uuid4().hex}.db"
    rows = ", ".join("(NULL)" if v is None else f"('{v}')" for v in values)
    url = database(tmp_path, f"CREATE TABLE t (v {kind})", f"INSERT INTO t VALUES {rows}", name=name)
    return read_sql(SqlSource(url + "?detect_types=1", "SELECT v FROM t"), "party bank_a")["v"]


def test_types_of_a_driver_become_arrows(tmp_path):
    assert typed(tmp_path, "TEXT_BOOL", [1, None, 0]).to_pylist() == [True, None, False]
    assert typed(tmp_path, "TEXT_DAY", ["2026-01-02"]).to_pylist() == ["2026-01-02"]
    assert typed(tmp_path, "TEXT_DECIMAL", ["1.50", None, "2"]).to_pylist() == [1.5, None, 2.0]
    assert str(typed(tmp_path, "TEXT_DECIMAL", ["NaN", "1"]).to_pylist()) == "[nan, 1.0]"
    assert typed(tmp_path, "TEXT_DECIMAL", ["Infinity", "1"]).to_pylist() == [float("inf"), 1.0]
    with pytest.raises(DataError, match="column 'v': holds list; allowed: numbers, text"):
        typed(tmp_path, "TEXT_LIST", [1])


def test_whole_numbers_lose_no_digit_for_they_may_be_ids(tmp_path):
    ids = [10**18, 10**18 + 1, 10**37, 10**37 + 1]
    assert [int(v) for v in typed(tmp_path, "TEXT_DECIMAL", ids).to_pylist()] == ids
    far = [1] * 5000 + [10**30 + 1]
    assert [int(v) for v in typed(tmp_path, "TEXT_DECIMAL", far).to_pylist()] == far
    assert typed(tmp_path, "TEXT_DECIMAL", [*far, "0.5"]).to_pylist()[-1] == 0.5


def test_a_type_does_not_depend_on_where_the_parts_of_a_result_end(tmp_path):
    count = "WITH RECURSIVE g(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM g WHERE i < 9999) SELECT "
    url = database(tmp_path, "CREATE TABLE t (v)")
    table = read_sql(
        SqlSource(
            url, count + "i, CASE WHEN i = 9999 THEN 0.5 ELSE i END AS f, CASE WHEN i = 9999 THEN 7 END AS n FROM g"
        ),
        "",
    )
    assert table["i"].to_pylist() == list(range(10_000)) and table["n"].to_pylist()[-2:] == [None, 7]
    assert [str(field.type) for field in table.schema] == ["int64", "double", "int64"]
    assert table["f"].to_pylist() == [float(i) for i in range(9999)] + [0.5]


NUMBERS = {
    "INTEGER": st.integers(-(2**53), 2**53),
    "REAL": st.floats(-1e38, 1e38),
    "TEXT": st.decimals(-(10**9), 10**9, places=3),
    "TEXT_DECIMAL": st.decimals(-(10**9), 10**9, places=3),
    "TEXT_BOOL": st.booleans(),
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries(NUMBERS), st.integers(1, 3))
def test_a_number_is_the_same_float32_in_whatever_type_it_is_stored(tmp_path, values, rows):
    columns = ", ".join(f'"{kind}" {kind}' for kind in values)
    path = tmp_path / f"{uuid.uuid4().hex}.db"
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE loans ({columns}, id INT, y INT)")
    stored = [str(v) if isinstance(v, Decimal) else v for v in values.values()]
    connection.executemany("INSERT INTO loans VALUES (?, ?, ?, ?, ?, ?, ?)", [(*stored, i, i) for i in range(rows)])
    connection.commit()
    connection.close()
    table = read(f"sqlite:///{path}?detect_types=1")
    assert table.feature_names == tuple(values)
    assert table.x.tolist() == [[float(np.float32(float(v))) for v in values.values()]] * rows
    path.unlink()


SECRET = "hunter2@x"
CLOSED = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"postgresql+psycopg://bank:{SECRET}@{CLOSED}/loans", "driver is not installed|cannot connect"),
        (f"postgresql+psycopg://bank@{CLOSED}/loans?password={SECRET}", "driver is not installed|cannot connect"),
        (f"nosuchdb://bank:{SECRET}@{CLOSED}/loans", "unknown database or driver; allowed: a dialect of SQLAlchemy"),
        (f"postgresql+nosuch://bank:{SECRET}@{CLOSED}/loans", "unknown database or driver"),
        ("postgresql://bank:hunter2", r"postgresql://\*\*\*: not a URL of SQLAlchemy; allowed: dialect\+driver://"),
        ("bank:hunter2", r"bank_a: \*\*\*: not a URL"),
        ("sqlite:////no/such?password=hunter2", "no such file"),
    ],
)
def test_a_password_is_told_nowhere(url, problem, caplog):
    source = SqlSource(url, "SELECT 1 AS y")
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=problem) as caught:
        read_table(source, id_columns=(), label="y", where="party bank_a")
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    told += f"{caught.value!r} {source} {source!r} {[source]} {without_password(url)}"
    assert "hunter2" not in told and "@x" not in told
    assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_a_driver_that_takes_the_password_for_the_host_does_not_give_it_away(monkeypatch, tmp_path):
    import sqlalchemy as sa

    def connect(_):
        raise OSError(f'could not translate host name "{SECRET}" to address, row (Alice, 4711)')

    monkeypatch.setattr(sa.Engine, "connect", connect)
    message = refused(
        bank(tmp_path), "SELECT 1 AS y", r'cannot connect \(could not translate host name "…" to address, row \(…\)\)'
    )
    assert "hunter2" not in message


def test_sqlalchemy_is_imported_for_a_sql_source_only(tmp_path):
    (tmp_path / "bank.csv").write_text(CSV)
    code = (
        "import sys, pathlib, clients.sql_source as s; assert 'pyarrow' not in sys.modules\n"
        "from clients.sources import read_table; repr(s.SqlSource('sqlite://', ''))\n"
        "read_table(pathlib.Path(sys.argv[1]), id_columns=('id',), label='y', where='')\n"
        "print('sqlalchemy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bank.csv")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.fixture
def postgres():
    """A table of its own in the database that FEDSEAL_TEST_POSTGRES names."""
    url = os.environ.get("FEDSEAL_TEST_POSTGRES")
    if not url:
        pytest.skip("FEDSEAL_TEST_POSTGRES (the URL of a PostgreSQL database to make a table in) is not set")
    import sqlalchemy as sa

    engine = sa.create_engine(url, poolclass=sa.NullPool)
    name = f"fedseal_test_{uuid.uuid4().hex[:12]}"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE {name} (id text, a bigint, d numeric(9, 2), b boolean, w numeric, t text, y int)"
        )
        connection.exec_driver_sql(
            f"INSERT INTO {name} VALUES ('007', 1, 1.50, true, 12345678901234567890, '2', 1), ('b2', -2, 2.25, false, 3, '0.5', 0)"
        )
    yield url, name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {name}")


def test_postgresql_is_read_in_a_transaction_that_cannot_write(postgres):
    url, name = postgres
    table = read(url, f"SELECT * FROM {name} WHERE t LIKE '%' AND t <> ':x' ORDER BY id;")
    assert table.ids.tolist() == ["007", "b2"] and table.labels.tolist() == ["1", "0"]
    assert table.x.tolist() == [[1, 1.5, 1, float(np.float32(12345678901234567890)), 2], [-2, 2.25, 0, 3, 0.5]]
    assert read(url, f"SELECT w AS id, a, y FROM {name} ORDER BY w").ids.tolist() == ["3", "12345678901234567890"]
    refused(url, f"WITH d AS (DELETE FROM {name} RETURNING *) SELECT * FROM d", "the database refused")
    refused(url, f"SELECT * INTO {name}_2 FROM {name}", "the database refused")
    refused(url, "SELECT set_config('transaction_read_only', 'off', false) AS y", "the database refused")
    assert len(read(url, f"SELECT * FROM {name}").x) == 2
    many = read(url, "SELECT i AS id, i * 0.5 AS x, i % 2 AS y FROM generate_series(1, 10000) i")
    assert many.x[:, 0].tolist() == [i * 0.5 for i in range(1, 10_001)]


def test_what_postgresql_says_of_a_row_is_not_told(postgres, caplog):
    url, name = postgres
    message = refused(
        url, f"SELECT id::int AS y FROM {name} WHERE id = 'b' || 2", 'invalid input syntax for type integer: "…"'
    )
    assert "b2" not in message + caplog.text
    refused(url, f"SELECT nope FROM {name}", 'column "nope" does not exist')
    refused(f"{url}{'&' if '?' in url else '?'}autocommit=1", "SELECT 1 AS y", "is not READ ONLY|cannot connect")
