"""Copies of a ledger, row for row: as a file for the auditor's verifier, which reads no server, and for a move.

A copy of a ledger in PostgreSQL is taken in one snapshot, row for row, unchecked: to check it is the verifier's work.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from fl_core.errors import UsageError
from fl_core.trust import database
from fl_core.trust.ledger_store import FILE, LATER, Rows, SqliteStore, Store
from fl_core.trust.postgres_tables import TABLES
from fl_core.trust.postgres_url import Place

COPIED = tuple(name for name in TABLES if name != "format")
Progress = Callable[[int], None]


class Streamed(Store, Protocol):
    """A store whose rows can be read one after the other."""

    def stream(self, table: str) -> Iterator[Rows]:
        """Yield all rows of a table in the order of its key, some at a time."""
        ...


@contextmanager
def as_file(place: Place) -> Iterator[Path]:
    """Yield the ledger at `place` as a SQLite file: itself, or a copy that goes when the block ends.

    Raises
    ------
    UsageError, JobFailed
        If a ledger in PostgreSQL cannot be read.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="fedseal-") as folder:
        path = Path(folder) / "ledger.db"
        copy_ledger(place, path)
        yield path


def copy_ledger(place: Place, path: Path) -> None:
    """Write the ledger at `place`, in PostgreSQL, to the new SQLite file `path`.

    Raises
    ------
    UsageError
        If `path` is there, or nothing can be read at `place`.
    JobFailed
        If the server is lost, or the disk refuses.
    """
    from fl_core.trust.ledger_postgres import PostgresStore

    if isinstance(place, Path) or path.exists():
        raise UsageError(f"{place} to {path}: not a copy from PostgreSQL to a new file")
    with (
        closing(PostgresStore.open(place, writable=False, fill=None)) as source,
        source.snapshot(),
        database.storage_errors(path),
        closing(sqlite3.connect(path, isolation_level=None)) as db,
    ):
        db.executescript(FILE.schema + "".join(f"{statement};" for statement in LATER.values()))
        db.execute(f"PRAGMA application_id={FILE.application_id}")
        db.execute(f"PRAGMA user_version={FILE.version}")
        target = SqliteStore(path, db)
        with target.transaction():
            copy_rows(source, target)


def copy_rows(source: Streamed, target: Store, progress: Progress | None = None) -> dict[str, str]:
    """Add all rows of a ledger to one without rows, in a transaction of `target`.

    Parameters
    ----------
    progress
        Called with the number of rows copied so far.

    Returns
    -------
    dict
        What `digests` returns for `source`.
    """
    for table in LATER:
        target.make_table(table)
    return _digests(source, target.insert, progress)


def digests(store: Streamed, progress: Progress | None = None) -> dict[str, str]:
    """Return the SHA-256, hex, of each table's rows with their types, in the order of its key."""
    return _digests(store, lambda table, rows: None, progress)


def count_rows(store: Store) -> int:
    """Number of rows of all tables that are copied."""
    there = (table for table in COPIED if store.has_table(table))
    return sum(int(store.all(f"SELECT COUNT(*) FROM {table}")[0][0]) for table in there)  # noqa: S608


def _digests(source: Streamed, take: Callable[[str, Rows], None], progress: Progress | None) -> dict[str, str]:
    found, done = {}, 0
    for table in COPIED:
        digest = hashlib.sha256()
        for rows in source.stream(table):
            take(table, rows)
            digest.update("".join(f"{row!r}\n" for row in rows).encode("utf-8", "surrogatepass"))
            done += len(rows)
            if progress is not None:
                progress(done)
        found[table] = digest.hexdigest()
    return found
