"""SQLite files of this package: made whole or not at all, known by type and version, errors in one line."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fl_core.errors import JobFailed, LedgerBroken, UsageError
from fl_core.trust.once import link_once, temporary_name

BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class FileType:
    """What a file is: a word for messages, SQLite's application id and user version, its tables."""

    word: str
    application_id: int
    version: int
    schema: str


def create(path: Path, kind: FileType, *, mode: int, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Make `path` unless it exists: write a temporary file, `fill` it, and link it to its name.

    Killed before the link, nothing is there; of several racing processes the file of one is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        with storage_errors(path):
            db = _connect(temporary, "rw")
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                db.executescript(kind.schema)
                db.execute(f"PRAGMA application_id={kind.application_id}")
                db.execute(f"PRAGMA user_version={kind.version}")
                fill(db)
            finally:
                db.close()  # the last connection moves the write-ahead log into the file
        link_once(temporary, path)
    finally:
        temporary.unlink()


def connect(path: Path, kind: FileType, *, writable: bool) -> sqlite3.Connection:
    """Open an existing file (WAL, synchronous=FULL, waiting up to 30 s for other writers).

    Raises
    ------
    UsageError
        If there is no such file, or it is of another type or version.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no {kind.word} here")
    db = _connect(path, "rw" if writable else "ro")
    try:
        try:
            found = _identification(db)
        except sqlite3.OperationalError:
            if writable or _has_wal(path):
                raise
            db.close()  # on read-only media SQLite can make no shared memory; nothing can change there either
            db = _connect(path, "ro&immutable=1")
            found = _identification(db)
    except sqlite3.DatabaseError as error:
        db.close()
        raise UsageError(f"{path}: not a {kind.word} ({error})") from None
    if found != (kind.application_id, kind.version):
        db.close()
        raise UsageError(f"{path}: not a {kind.word} of version {kind.version}")
    db.execute("PRAGMA synchronous=FULL")
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a write transaction: everything is on the disk when the block has ended, or nothing is."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into LedgerBroken (damaged file) or JobFailed (disk full, locked, read-only …)."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise LedgerBroken(f"{path}: the file is damaged ({error})") from error
        raise JobFailed(f"{path}: {error} ({name})") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _has_wal(path: Path) -> bool:
    wal = path.with_name(path.name + "-wal")
    return wal.exists() and wal.stat().st_size > 0


def _identification(db: sqlite3.Connection) -> tuple[int, int]:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # opens the write-ahead log
    return application_id, version
