"""A ledger as a file: the auditor's verifier reads SQLite, JSON lines and packs, and no server.

A copy of a ledger in PostgreSQL is taken in one snapshot, row for row, unchecked: to check it is the verifier's work.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fl_core.errors import UsageError
from fl_core.trust import database
from fl_core.trust.ledger_store import FILE, LATER, SqliteStore
from fl_core.trust.postgres_url import Place


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
    from fl_core.trust.postgres_tables import TABLES

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
            for table in TABLES:
                for rows in source.stream(table) if table != "format" else ():
                    target.insert(table, rows)
