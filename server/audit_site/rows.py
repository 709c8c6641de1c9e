"""A ledger for somebody who looks through it, in a file or in PostgreSQL.

Each look has a connection of its own, which cannot write, and sees one state: of a file a read transaction, of a
server a snapshot in a read-only transaction.  A server is asked by few connections at a time, and each question may
take 20 s.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from fl_core.errors import JobFailed, LedgerBroken
from fl_core.trust import database
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.ledger_store import FILE, SqliteStore
from fl_core.trust.postgres_url import Place, PostgresUrl
from server.audit_site.look import POSTGRES, SQLITE, Look

AT_ONCE = 4  # who looks into a server; each has one connection, or two
WAIT_SECONDS = 15.0
STATEMENT_SECONDS = 20.0
_ODD = (AttributeError, TypeError, ValueError, StopIteration)  # of a number where bytes should be, and the like
_STAMP = (
    "SELECT (SELECT MAX(seq) FROM entries), (SELECT MAX(size) FROM checkpoints),"
    " (SELECT COUNT(*) FROM cosignatures), (SELECT COUNT(*) FROM outside_cosignatures)"
)


class Rows:
    """A ledger: `look` opens it for lists, `ledger` for what needs its tree."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._doors, self._inside = threading.BoundedSemaphore(AT_ONCE), threading.local()
        self._seen: tuple[int, ...] = ()

    def stamp(self) -> tuple[int, ...]:
        """Differs after every write to a file; of a server, when a look has seen more since."""
        if not isinstance(self.place, Path):
            return self._seen
        found = []
        for path in (self.place, self.place.with_name(self.place.name + "-wal")):
            try:
                told = path.stat()
                found += [told.st_mtime_ns, told.st_size, told.st_ino] if told.st_size else [0, 0, 0]
            except OSError:
                found += [0, 0, 0]
        return tuple(found)

    @contextlib.contextmanager
    def look(self) -> Iterator[Look]:
        """One state of the ledger.

        Raises
        ------
        UsageError
            If there is no ledger, or the server does not let us in.
        LedgerBroken
            If the storage is damaged.
        JobFailed
            If it cannot be reached, or too many look into it.
        """
        with self._file_look(self.place) if isinstance(self.place, Path) else self._server_look(self.place) as found:
            yield found

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, read-only.  Raises `FedsealError`, also where it holds what no ledger does."""
        with self._door(), Ledger.open(self.place) as opened:
            try:
                yield opened
            except _ODD as error:
                raise LedgerBroken(f"{self.place}: the ledger is damaged ({type(error).__name__})") from error

    @contextlib.contextmanager
    def _file_look(self, path: Path) -> Iterator[Look]:
        with (
            database.storage_errors(path),
            contextlib.closing(database.connect(path, FILE, writable=False)) as db,
        ):
            db.execute("PRAGMA trusted_schema=OFF")
            db.execute("PRAGMA query_only=ON")
            db.execute("BEGIN")
            yield Look(SqliteStore(path, db), SQLITE)

    @contextlib.contextmanager
    def _server_look(self, place: PostgresUrl) -> Iterator[Look]:
        with (
            self._door(),
            contextlib.closing(PostgresStore.open(place, writable=False, fill=None)) as store,
            store.snapshot(statement_seconds=STATEMENT_SECONDS),
        ):
            self._seen = tuple(number or 0 for number in store.all(_STAMP)[0])
            yield Look(store, POSTGRES)

    @contextlib.contextmanager
    def _door(self) -> Iterator[None]:
        """Be one of the few who look into a server; who is inside already goes on."""
        if isinstance(self.place, Path) or getattr(self._inside, "now", False):
            yield
            return
        if not self._doors.acquire(timeout=WAIT_SECONDS):
            raise JobFailed(f"{self.place}: {AT_ONCE} others are looking into it; ask again")
        self._inside.now = True
        try:
            yield
        finally:
            self._inside.now = False
            self._doors.release()
