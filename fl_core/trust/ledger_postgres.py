"""A ledger in PostgreSQL: the tables of the SQLite file in one schema, for coordinators that share a server.

============================  ==============================================================================
killed or lost                what is there afterwards
============================  ==============================================================================
a writer in a transaction     nothing of it: the server ends the transaction with the connection
a writer's machine            likewise, after 30 s without a word in the transaction
the server before COMMIT      nothing of it; the caller is told that nothing was stored
the server in COMMIT          one or the other: the store connects again, waits until no writer is left, looks
                              whether the rows are there, and says which; without a server, that nobody knows
the server between two acts   all; the store connects again, for 30 s
============================  ==============================================================================

A writer holds the schema's advisory lock from BEGIN to COMMIT, so transactions come one after the other, and each reads
what the last one left.  Each sets synchronous_commit = on and reads it back; a server without fsync is refused.
Triggers refuse UPDATE, DELETE and TRUNCATE of all tables but `cards`: their owner changes nothing by mistake either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from fl_core.errors import FedsealError, JobFailed, UsageError
from fl_core.trust.ledger_store import FILE, Row, Rows, Store
from fl_core.trust.postgres_connection import Connection, Lost, Refused, array, reconnect, tell
from fl_core.trust.postgres_tables import SCHEMA, TABLES, lock_key
from fl_core.trust.postgres_url import PostgresUrl

LOCK_SECONDS = 45.0  # longer than a writer that went away holds the lock
IDLE_SECONDS = 30.0
MOVED = 0x46534C4D  # "FSLM": a second row of `format`, whose version is the move's number
_MOVED_WORDS = "this ledger was moved to a file; allowed: to read it"
_NOTHING = "; nothing was stored"
_NO_TABLE = "42P01"
_NEEDED = {"fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8"}
_HOLDER = """
    SELECT a.pid, a.usename, a.application_name, EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) = ?
"""


class PostgresStore:
    """See `fl_core.trust.ledger_store.Store`."""

    def __init__(self, place: PostgresUrl, connection: Connection, *, writable: bool) -> None:
        self._place, self._connection, self._writable = place, connection, writable
        self._in_transaction = False
        self._settled = self._moving = False
        self._written: list[tuple[str, Row, bool]] = []

    @classmethod
    def open(
        cls, place: PostgresUrl, *, writable: bool, fill: Callable[[Store], None] | None, moving: bool = False
    ) -> PostgresStore:
        """As `fl_core.trust.ledger_store.open_store`; one that was moved away opens to be read, or while `moving`."""
        with tell(place):
            store = cls(place, Connection(place), writable=writable)
            store._moving = moving
            try:
                store._settle_in()
                if not store._check_format() and (fill is None or not store._make(fill)):
                    raise UsageError(f"{place}: no {FILE.word} here")
                store._settled = True
            except BaseException:
                store.close()
                raise
        return store

    @property
    def place(self) -> PostgresUrl:
        """The URL, which shows no password."""
        return self._place

    @contextmanager
    def transaction(self, *, idle_seconds: float | None = None) -> Iterator[None]:
        """See `Store`.  `idle_seconds`: the server ends it when nothing is asked for so long, not `IDLE_SECONDS`."""
        with tell(self._place, _NOTHING):
            self._begin()
        self._in_transaction, self._written = True, []
        try:
            with self._tell():
                if idle_seconds is not None:
                    idle = int(idle_seconds * 1000)
                    self._connection.run(f"SET LOCAL idle_in_transaction_session_timeout TO {idle}")
                if self._settled and not self._moving and self.moved() is not None:  # since it was opened
                    raise UsageError(f"{self._place}: {_MOVED_WORDS}")
            yield
        except BaseException:
            self._in_transaction = False
            self._connection.roll_back()
            raise
        self._in_transaction = False
        with tell(self._place, _NOTHING):
            try:
                self._connection.run("COMMIT")
            except Lost as lost:
                self._look_whether_stored(lost)
            except Refused:
                self._connection.roll_back()
                raise

    def all(self, query: str, *values: object) -> Rows:
        """See `Store`."""
        with self._tell():
            try:
                return self._connection.query(query, *values)
            except Lost:
                if self._in_transaction:
                    raise
                self._connect_again()
                return self._connection.query(query, *values)

    def insert(self, table: str, rows: Sequence[Row], *, ignore: bool = False) -> None:
        """See `Store`."""
        if not rows:
            return
        columns = [array(column) for column in zip(*rows, strict=True)]
        with self._tell():
            self._connection.query(TABLES[table].insert(table, ignore=ignore), *columns)
        self._written.append((table, rows[0], ignore))

    def end_card(self, name: str) -> None:
        """See `Store`."""
        with self._tell():
            self._connection.query("DELETE FROM cards WHERE name = ?", name)

    def has_table(self, table: str) -> bool:
        """True: all are made at once."""
        return table in TABLES

    def make_table(self, table: str) -> None:
        """Nothing: all are made at once."""

    def stream(self, table: str) -> Iterator[Rows]:
        """Yield all rows of a table in the order of its key, some at a time, within `snapshot`."""
        with tell(self._place):
            self._connection.run(TABLES[table].cursor(table))
            while rows := self._connection.query(f"FETCH 1000 FROM all_{table}"):
                yield rows
            self._connection.run(f"CLOSE all_{table}")

    @contextmanager
    def snapshot(self, *, statement_seconds: float = 0) -> Iterator[None]:
        """Read one state in the block, whatever is written meanwhile; a statement may take so long, if not 0."""
        with tell(self._place):
            self._connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._in_transaction = True
        try:
            with tell(self._place):
                self._connection.run(f"SET LOCAL statement_timeout TO {int(statement_seconds * 1000)}")
            yield
        finally:
            self._in_transaction = False
            self._connection.roll_back()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # ---- a ledger that moves

    def moved(self) -> int | None:
        """Return the number of the move that took the ledger away from here, if one did."""
        found = self.all("SELECT version FROM format WHERE application_id = ?", MOVED)
        return int(found[0][0]) if found else None

    def mark_moved(self, token: int) -> None:
        """Let nobody write to it any more, in a transaction; it needs no right but to add rows."""
        self.insert("format", [(MOVED, token)])

    # ---- connections

    def _tell(self) -> AbstractContextManager[None]:
        return tell(self._place, _NOTHING if self._in_transaction and self._writable else "")

    def _settle_in(self) -> None:
        """Set up a new connection and check what the server promises."""
        schema, connection = self._place.schema, self._connection
        idle = int(IDLE_SECONDS * 1000)
        connection.run(f'SET search_path TO "{schema}", pg_catalog, pg_temp; SET bytea_output TO hex')
        if not self._writable:
            connection.run("SET default_transaction_read_only TO on")
            return
        connection.run(f"SET synchronous_commit TO on; SET idle_in_transaction_session_timeout TO {idle}")
        for setting, needed in _NEEDED.items():
            ((value,),) = connection.query("SELECT current_setting(?)", setting)
            if value != needed:
                raise UsageError(f"{self._place}: the server runs with {setting} = {value}; allowed: {needed}")

    def _connect_again(self) -> None:
        self._connection.close()
        self._connection = reconnect(self._place)
        self._settle_in()

    # ---- transactions

    def _begin(self) -> None:
        begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit TO on;"
            f" SET LOCAL lock_timeout TO {int(LOCK_SECONDS * 1000)}"
        )
        try:
            self._connection.run(begin)
        except Lost:  # while nothing went on
            self._connect_again()
            self._connection.run(begin)
        try:
            lock = "SELECT current_setting('synchronous_commit'), pg_advisory_xact_lock(?)"
            ((kept, _),) = self._connection.query(lock, lock_key(self._place.schema))
        except Refused as error:
            self._connection.roll_back()
            if error.state == "55P03":
                words = f"locked; waited {LOCK_SECONDS:g} s for {self._holder()}"
                raise JobFailed(f"{self._place}: {words}{_NOTHING}") from None
            raise
        except BaseException:
            self._connection.roll_back()
            raise
        if kept != "on":
            self._connection.roll_back()
            raise UsageError(f"{self._place}: synchronous_commit = {kept} in a transaction; allowed: on")

    def _holder(self) -> str:
        """Who writes, in words."""
        found = self._connection.query(_HOLDER, lock_key(self._place.schema))
        if not found:
            return "another writer"
        pid, role, program, seconds = found[0]
        since = "" if seconds is None else f", which writes since {float(seconds):.0f} s"
        return f"the writer {program or 'without a name'} (server process {pid}, role {role}){since}"

    def _look_whether_stored(self, lost: Lost) -> None:
        """After a COMMIT that nobody answered: return if its rows are there, raise if not."""
        written = self._written
        try:
            self._connect_again()
            self._begin()  # the old connection's transaction has ended then, one way or the other
            stored = all(self._is_there(*row) for row in written)
        except Refused as error:
            if error.state != _NO_TABLE:  # which was made in the same transaction
                raise self._unknown(lost, error) from None
            stored = False
        except (Lost, FedsealError) as error:
            raise self._unknown(lost, error) from None
        finally:
            self._connection.roll_back()
        if not stored:
            raise JobFailed(f"{self._place}: the server was lost while it stored entries ({lost}){_NOTHING}")

    def _unknown(self, lost: Lost, error: Exception) -> JobFailed:
        return JobFailed(
            f"{self._place}: the server was lost while it stored entries ({lost}) and did not come back ({error});"
            " whether they are there shows fedseal audit show"
        )

    def _is_there(self, table: str, row: Row, ignore: bool) -> bool:
        columns = list(TABLES[table].columns)
        key = [row[columns.index(name)] for name in TABLES[table].key]
        found = self._connection.query(TABLES[table].find(table), *key)
        return bool(found) and (ignore or found[0] == tuple(row))

    # ---- type and version

    def _check_format(self) -> bool:
        """Whether there is a ledger; raises UsageError for another program's, another version's, or one that moved."""
        names = self._connection.query(
            "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = ? AND c.relkind = 'r'",
            self._place.schema,
        )
        there = {name for (name,) in names}
        if not there & {"format", *TABLES}:
            return False
        if {"format", *TABLES} <= there:
            found = dict(self._connection.query(f'SELECT application_id, version FROM "{self._place.schema}".format'))  # noqa: S608
            token = found.pop(MOVED, None)
            if found == {FILE.application_id: FILE.version}:
                if token is not None and self._writable and not self._moving:
                    raise UsageError(f"{self._place}: {_MOVED_WORDS}")
                return True
        raise UsageError(f"{self._place}: not a {FILE.word} of version {FILE.version}")

    def _make(self, fill: Callable[[Store], None]) -> bool:
        """Make schema and tables with their first rows in one transaction, unless somebody was faster."""
        with self.transaction():
            if not self._check_format():
                if not self._connection.query(
                    "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ?", self._place.schema
                ):
                    self._connection.run(f'CREATE SCHEMA "{self._place.schema}"')
                self._connection.run(SCHEMA)
                self.insert("format", [(FILE.application_id, FILE.version)])
                fill(self)
        return True


def has_ledger(place: PostgresUrl) -> bool:
    """Whether there is a ledger; raises UsageError where something else is or nobody is let in, JobFailed else."""
    with tell(place):
        connection = Connection(place)
        try:
            store = PostgresStore(place, connection, writable=False)
            store._settle_in()
            return store._check_format()
        finally:
            connection.close()
