"""A party's rows out of its own SQL database: one reading statement, run once, streamed into Arrow.

Nobody else learns the URL or the query; messages stay in the party's own log and hold neither the password nor,
while the database is read, a value of its rows. SQLAlchemy is imported when a source is read, not before: it
costs each worker's start a good part of a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Generator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from uuid import UUID

from fl_core.errors import DataError
from fl_core.urls import without_password

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa

__all__ = ["SqlSource", "read_sql", "without_password"]

_ROWS = 4096  # rows that are Python objects at one time
_HOW = {"stream_results": True, "sqlite_raw_colnames": True}  # SQLite's `x.y` would be named `y`
_WORD = re.compile(r"(?:\w|[^ -~])+")
_STATEMENT = re.compile(r"\s*(?:SELECT|WITH)\b[^;]*[;\s]*", re.IGNORECASE)
_KINDS: dict[type, str] = {
    bool: "true/false",
    **dict.fromkeys((int, float, Decimal), "numbers"),
    **dict.fromkeys((str, date, time, timedelta, UUID), "text"),  # datetime is a date
    **dict.fromkeys((bytes, bytearray, memoryview), "bytes"),
}
# What drivers say of a connection or a statement. Other words of theirs are shown where URL or query has them.
_SAID = """
    a access address aggregate already ambiguous an and any appear argument arguments as at attempt authentication
    authorized be by bytes can canceled cannot cast certificate clause closed column columns command conflict
    connect connection could create data database datatype deadlock decode denied detected directory disk division
    does driver dsn due encrypted error execute exist exists expired expression failed fatal file for from function
    given got group has host in incomplete input integer invalid is it keyword known limit lock locked malformed
    many match memory mismatch missing more must name near network no not object of on one only open operator option
    or out overflow password permission port range read readonly recovery refused relation reset resolve result
    return returns role route row rows schema server service ssl statement subquery such supported syntax t table
    terminated text than that the time timed timeout tls to token too transaction translate type unable unexpected
    unknown unreachable unrecognized unsupported used user utf value values verify view violates was while with
    write wrong you zero
"""


@dataclasses.dataclass(frozen=True, repr=False)
class SqlSource:
    """Where a party's rows are.

    url : a SQLAlchemy URL, `dialect+driver://user:password@host/database`; a relative SQLite file is sought in
        the working folder.
    query : one SELECT (or WITH … SELECT); its columns are the data's, in its order.
    """

    url: str
    query: str

    def __repr__(self) -> str:
        return f"SqlSource(url={without_password(self.url)!r}, query={self.query!r})"


def read_sql(source: SqlSource, where: str) -> pa.Table:
    """Run the query and keep its result: int64, decimal128(38, 0), float64, bool, text or bytes a column.

    Nothing is written: SQLite's file is opened read-only, PostgreSQL's transaction is set and seen to be READ
    ONLY. Elsewhere the first word of the one statement is checked and the transaction rolled back, which does
    not hold back a function, an INTO OUTFILE or SQL Server's second statement without a ';': there, give the
    account no right to write.

    A column of fractions is float64 (Decimal too), whole numbers stay exact up to 38 digits, dates, times and
    UUIDs become text as `str` writes them. Memory: the result in Arrow, and 4096 rows as Python objects.

    Raises
    ------
    DataError : not one SELECT, no such file, no driver, no connection, an error of the database, no rows, a
        column that mixes kinds or holds something else (a list, say). One line.
    """
    import pyarrow as pa

    result = f"{where}: query result"
    if not _STATEMENT.fullmatch(source.query):
        # Not even in quotes: dialects quote differently, and a second statement could end the READ ONLY transaction.
        allowed = "one statement that starts with SELECT or WITH, a ';' at its end only"
        raise DataError(f"{where}: query", "not one reading statement", allowed=allowed)
    columns: list[_Column] = []
    with contextlib.closing(_parts(source, where, result)) as parts:
        for names, rows in parts:
            columns = columns or [_Column(name, result) for name in names]
            for column, values in zip(columns, zip(*rows, strict=True), strict=True):
                column.add(values)
    if not columns:
        raise DataError(result, "no rows", allowed="one row or more")
    return pa.table([column.joined() for column in columns], names=[column.name for column in columns])


def _parts(source: SqlSource, where: str, result: str) -> Generator[tuple[list[str], Sequence[Sequence[Any]]]]:
    """The result's names with some rows, again and again; what drivers raise becomes one line."""
    import sqlalchemy as sa

    # A driver's exception may quote password or rows: ours is raised when it is over, so that nothing chains it.
    connection = _connect(source.url, f"{where}: {without_password(source.url)}")
    try:
        with connection:  # closing it rolls back
            if connection.dialect.name == "postgresql":
                _only_read(connection, result)
            # `text` would take a colon and a word for a parameter; it unescapes what is escaped here.
            query = sa.text(source.query.rstrip("; \t\r\n").replace(":", r"\:"))
            rows = connection.execute(query, execution_options=_HOW).yield_per(_ROWS)
            names = list(rows.keys())
            for part in rows.partitions(_ROWS):
                yield names, part
            return
    except DataError:
        raise
    except Exception as error:
        reason = _told(error, source.query)
    raise DataError(result, f"the database refused ({reason})", allowed="a query that it answers with rows")


def _connect(url: str, place: str) -> sa.Connection:
    engine = _engine(url, place)
    try:
        return engine.connect()
    except Exception as error:  # each driver has its own, and TypeError for a parameter it does not know
        reason = _told(error, without_password(url))
    raise DataError(place, f"cannot connect ({reason})", allowed="a database that answers")


def _engine(url: str, place: str) -> sa.Engine:
    """Not yet connected, without a pool: it is used once."""
    import sqlalchemy as sa
    from sqlalchemy.exc import NoSuchModuleError

    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            parsed = _sqlite_read_only(parsed, place)
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, pool_logging_name="fedseal", hide_parameters=True)
        if isinstance(engine.pool.logger, logging.Logger):
            engine.pool.logger.disabled = True  # it would log what a driver says while it closes after an error
    except DataError:
        raise
    except NoSuchModuleError:
        problem, allowed = "unknown database or driver", "a dialect of SQLAlchemy, such as postgresql+psycopg"
    except ImportError as error:
        problem, allowed = f"its driver is not installed (no module {error.name!r})", "an installed driver"
    except Exception:  # what it says may hold the password, which it can have taken for the port
        problem, allowed = "not a URL of SQLAlchemy", "dialect+driver://user:password@host:port/database"
    else:
        if not engine.dialect.is_async:
            return engine
        problem, allowed = "an asynchronous driver", "one that waits, such as postgresql+psycopg"
    raise DataError(place, problem, allowed=allowed)


def _sqlite_read_only(url: sa.URL, place: str) -> sa.URL:
    """The URL that opens its file with mode=ro, whatever mode it had; SQLite would create a missing file."""
    database = url.database or ""
    path = Path(unquote(database[5:]) if database.startswith("file:") else database).absolute()
    if not path.is_file():
        raise DataError(place, f"no such file {path}", allowed="a SQLite file")
    return url.set(database=f"file:{quote(str(path))}").update_query_dict({"mode": "ro", "uri": "true"})


def _only_read(connection: sa.Connection, where: str) -> None:
    """SET counts for the running transaction only: a URL that asks for autocommit has none."""
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar() != "on":
        raise DataError(where, "the transaction is not READ ONLY", allowed="a URL without autocommit")


def _told(error: Exception, known: str) -> str:
    """The first line of a driver's message; a word that is neither usual nor in `known` becomes `…`.

    Such a word may be a value of a row, or a part of the password that the driver took for the host.
    """
    cause = getattr(error, "orig", None) or error
    said = cause.args[0] if cause.args else ""
    text = str(said.get("M", "") if isinstance(said, dict) else cause)  # pg8000 gives the server's fields
    words = {*_SAID.split()} | {word.lower() for word in _WORD.findall(known)}
    line = (text.strip().splitlines() or [type(cause).__name__])[0][:200]
    shown = _WORD.sub(lambda word: word[0] if word[0].lower() in words else "…", line)
    return re.sub(r"…(?:\W*…)+", "…", shown)


class _Column:
    """A column as it grows, an Arrow array for each part of the result."""

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        self._where = f"{where}, column {name!r}"
        self._kinds: set[str] = set()
        self._parts: list[pa.Array] = []

    def add(self, values: Sequence[Any]) -> None:
        """Append values; raises when they are not of the kind of those before."""
        for kind in set(map(type, values)) - {type(None)}:
            known = next((_KINDS[base] for base in kind.__mro__ if base in _KINDS), None)
            if known is None:
                allowed = "numbers, text, dates, true/false, bytes or NULL"
                raise DataError(self._where, f"holds {kind.__name__}", allowed=allowed)
            self._kinds.add(known)
        if len(self._kinds) > 1:
            raise DataError(self._where, f"mixes {' and '.join(sorted(self._kinds))}", allowed="one kind of value")
        self._parts.append(_array(values, next(iter(self._kinds), "")))

    def joined(self) -> pa.ChunkedArray:
        """All of it, in the type that holds every part."""
        import pyarrow as pa

        types = {part.type for part in self._parts} - {pa.null()}
        wide = [t for t in (pa.float64(), pa.decimal128(38, 0)) if t in types]
        kind = (wide or list(types) or [pa.null()])[0]
        return pa.chunked_array([part.cast(kind, safe=False) for part in self._parts], kind)


def _array(values: Sequence[Any], kind: str) -> pa.Array:
    import pyarrow as pa

    if kind == "numbers":
        return _numbers(values)
    if kind == "text":
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    if kind == "bytes":
        return pa.array([None if v is None else bytes(v) for v in values], pa.binary())
    return pa.array(values, pa.bool_() if kind else pa.null())


def _numbers(values: Sequence[Any]) -> pa.Array:
    """Whole numbers stay exact, for they may be ids; a Decimal with a fraction makes all of them float64."""
    import pyarrow as pa

    if not any(isinstance(v, float) or (isinstance(v, Decimal) and v != v.to_integral_value()) for v in values):
        for whole in (pa.int64(), pa.decimal128(38, 0)):
            try:
                return pa.array([int(v) if whole == pa.int64() and v is not None else v for v in values], whole)
            except (OverflowError, pa.ArrowException):
                continue
    return pa.array([None if v is None else float(v) for v in values], pa.float64())
