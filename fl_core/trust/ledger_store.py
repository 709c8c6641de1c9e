"""What a ledger keeps its entries in: SQLite here, PostgreSQL in `fl_core.trust.ledger_postgres`.

A store promises the ledger four things, whatever it is made of: a transaction is whole or not there, and on the disk
when it has ended without an error; transactions come one after the other, also those of other processes, and each
reads what the one before left; rows are added, never changed (only a name's card is taken out, when it ends); and a
store comes into being with its first entries or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fl_core.errors import UsageError
from fl_core.trust import database, ledger_seal
from fl_core.trust.ledger_seal import Seal
from fl_core.trust.postgres_tables import TABLES
from fl_core.trust.postgres_url import Place, PostgresUrl

Row = tuple[Any, ...]
Rows = list[tuple[Any, ...]]

FILE = database.FileType(
    word="fedseal ledger",
    application_id=0x46534C47,  # "FSLG"
    version=1,
    schema="""
        CREATE TABLE entries (
            seq INTEGER PRIMARY KEY, leaf BLOB NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL, by TEXT NOT
            NULL);
        CREATE INDEX entries_run ON entries (run);
        CREATE TABLE nodes (
            level INTEGER, idx INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, idx)) WITHOUT ROWID;
        CREATE TABLE cards (
            name TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL, card BLOB NOT NULL);
        CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL);
        CREATE TABLE cosignatures (
            size INTEGER, name TEXT, line TEXT NOT NULL, PRIMARY KEY (size, name)) WITHOUT ROWID;
    """,
)
LATER = {
    # a file gets them with the first row: ledgers of before have none
    "outside_cosignatures": (
        "CREATE TABLE IF NOT EXISTS outside_cosignatures ("
        "size INTEGER, key TEXT, line TEXT NOT NULL, PRIMARY KEY (size, key)) WITHOUT ROWID"
    ),
    # a card counts after the entry `seq` up to and with the entry `until`
    "past_cards": (
        "CREATE TABLE IF NOT EXISTS past_cards ("
        "key TEXT PRIMARY KEY, name TEXT NOT NULL, seq INTEGER NOT NULL, until INTEGER NOT NULL, card BLOB NOT NULL)"
    ),
}


class Store(Protocol):
    """The tables of one ledger.  The ledger calls it from one thread at a time."""

    @property
    def place(self) -> Place:
        """Where it is; as text, what people may see."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Run the block as the only writer; all of it is on the disk afterwards, or, with an error, nothing.

        Raises JobFailed where the storage fails or another writer does not end, LedgerBroken where it is damaged.
        """
        ...

    def all(self, query: str, *values: object) -> Rows:
        """Return the rows of a SELECT with `?` for each value, in a transaction or outside any."""
        ...

    def insert(self, table: str, rows: Sequence[Row], *, ignore: bool = False) -> None:
        """Add rows of all columns, in a transaction.  `ignore`: a row whose key is taken stays as it is."""
        ...

    def end_card(self, name: str) -> None:
        """Take out the row of `cards` with this name, in a transaction."""
        ...

    def has_table(self, table: str) -> bool:
        """Whether a table is there; only those of `LATER` may be missing."""
        ...

    def make_table(self, table: str) -> None:
        """Make a table of `LATER` unless it is there, in a transaction."""
        ...

    def close(self) -> None:
        """Let go of the file or the connection."""
        ...


class SqliteStore:
    """A ledger in a SQLite file (WAL, synchronous=FULL)."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path, self._db = path, db

    @classmethod
    def open(cls, path: Path, *, writable: bool, fill: Callable[[Store], None] | None) -> SqliteStore:
        """As `open_store`."""
        aside = None if path.exists() else ledger_seal.is_aside(path)
        if aside is not None:  # a new ledger under the same key would be a fork
            raise UsageError(f"{path}: its ledger was moved, and the file is {aside.name}; allowed: FEDSEAL_LEDGER")
        if fill is not None and not path.exists():

            def begin(db: sqlite3.Connection) -> None:
                store = cls(path, db)
                with store.transaction():
                    fill(store)

            database.create(path, FILE, mode=0o644, fill=begin)
        store = cls(path, database.connect(path, FILE, writable=writable))
        try:
            if writable:
                store._settle_in()
        except BaseException:
            store.close()
            raise
        return store

    @property
    def place(self) -> Place:
        """The file."""
        return self._path

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Store`."""
        with database.storage_errors(self._path), database.transaction(self._db):
            yield

    def all(self, query: str, *values: object) -> Rows:
        """See `Store`."""
        with database.storage_errors(self._path):
            return self._db.execute(query, values).fetchall()

    def insert(self, table: str, rows: Sequence[Row], *, ignore: bool = False) -> None:
        """See `Store`."""
        if rows:
            verb = "INSERT OR IGNORE" if ignore else "INSERT"
            places = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"{verb} INTO {table} VALUES ({places})", rows)

    def end_card(self, name: str) -> None:
        """See `Store`."""
        self._db.execute("DELETE FROM cards WHERE name = ?", (name,))

    def has_table(self, table: str) -> bool:
        """See `Store`."""
        return bool(self.all("SELECT 1 FROM sqlite_master WHERE name = ?", table))

    def make_table(self, table: str) -> None:
        """See `Store`."""
        self._db.execute(LATER[table])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def stream(self, table: str) -> Iterator[Rows]:
        """Yield all rows of a table in the order of its key, some at a time; none where it is missing."""
        if not self.has_table(table):
            return
        columns, key = ", ".join(TABLES[table].columns), ", ".join(TABLES[table].key)
        with database.storage_errors(self._path):
            found = self._db.execute(f"SELECT {columns} FROM {table} ORDER BY {key}")  # noqa: S608
            while rows := found.fetchmany(1000):
                yield rows

    # ---- a ledger that moves

    def sealed(self) -> Seal | None:
        """Why nobody may write to the file, if so."""
        with database.storage_errors(self._path):
            return ledger_seal.read(self._db)

    def seal(self, seal: Seal) -> None:
        """Let nobody write to the file any more, in a transaction."""
        with database.storage_errors(self._path):
            for table in LATER:
                self.make_table(table)
            ledger_seal.put(self._db, seal, (table for table in TABLES if table != "format"))

    def unseal(self) -> None:
        """Let the file be written to again, in a transaction."""
        with database.storage_errors(self._path):
            ledger_seal.take_off(self._db)

    def _settle_in(self) -> None:
        """Refuse a sealed file; bring one back to WAL whose move was cut short, unless that still goes on."""
        if seal := self.sealed():
            raise UsageError(f"{self._path}: {seal.words}")
        if self.all("PRAGMA journal_mode") == [("delete",)]:
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA busy_timeout=0")
                self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA busy_timeout={int(database.BUSY_SECONDS * 1000)}")


def open_store(place: Place, *, writable: bool, fill: Callable[[Store], None] | None = None) -> Store:
    """Open the ledger at `place`; where there is none, make its tables and `fill` them in one piece.

    Raises
    ------
    UsageError
        If there is none and no `fill`, it is of another type or version, or the server does not let us in.
    JobFailed
        If the storage cannot be reached.
    """
    if isinstance(place, PostgresUrl):
        from fl_core.trust.ledger_postgres import PostgresStore

        return PostgresStore.open(place, writable=writable, fill=fill)
    return SqliteStore.open(place, writable=writable, fill=fill)
