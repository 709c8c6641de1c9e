"""A ledger as a stream of records, from the SQLite file or from its JSON lines, in the order of the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .format import Broken, NotALedger, decode

MAX_LINE = 4 << 20
OUTSIDE = "outside_cosignatures"  # a table that only some ledgers have


@dataclass(frozen=True)
class Leaf:
    """An entry as stored; `columns` are (seq, run, kind, by) that the file keeps beside it.

    `proof` is its inclusion proof, where it comes without the entries before it.
    """

    data: Any
    columns: tuple[Any, ...] | None = None
    proof: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint as stored, with its co-signature lines by name, and those from outside, each after its key.

    `proof` leads from it to a later checkpoint, where it comes without the entries between.
    """

    size: int | None
    note: Any
    cosignatures: dict[Any, Any]
    proof: tuple[bytes, ...] | None = None
    outside: tuple[tuple[Any, Any], ...] = ()


Record = Leaf | StoredCheckpoint


def _from_sqlite(db: sqlite3.Connection) -> Generator[Record, None, None]:
    """Yield the records in one read transaction, each checkpoint after the last entry that it covers."""
    try:
        db.execute("BEGIN")
        tables = _tables(db)
        notes = db.execute("SELECT size, note FROM checkpoints ORDER BY size")
        pending = notes.fetchone()
        rows = db.execute("SELECT leaf, seq, run, kind, by FROM entries ORDER BY seq")
        for count, (leaf, *columns) in enumerate(rows):
            while pending is not None and pending[0] <= count:
                yield _stored(db, *pending, outside=OUTSIDE in tables)
                pending = notes.fetchone()
            yield Leaf(leaf, tuple(columns))
        while pending is not None:
            yield _stored(db, *pending, outside=OUTSIDE in tables)
            pending = notes.fetchone()
        orphan = "SELECT size FROM cosignatures WHERE size NOT IN (SELECT size FROM checkpoints) LIMIT 1"
        outsider = orphan.replace("cosignatures", OUTSIDE)
        if db.execute(orphan).fetchone() or (OUTSIDE in tables and db.execute(outsider).fetchone()):
            raise Broken("co-signatures of a checkpoint that is not there")
    except sqlite3.DatabaseError as error:
        raise Broken(f"the file is damaged: {error}") from None
    finally:
        db.close()


def _open_sqlite(path: Path) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    modes = ["ro"] if wal.exists() and wal.stat().st_size else ["ro", "ro&immutable=1"]
    for mode in modes:  # a closed ledger on read-only media opens as immutable only
        uri = f"file:{quote(str(path))}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
        try:
            db.execute("PRAGMA trusted_schema=OFF")
            tables = _tables(db)
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            db.close()
            if mode == modes[-1]:
                raise NotALedger(f"{path}: not a ledger ({error})") from None
            continue
        if (application, version) == (0x46534C47, 1) and {"entries", "checkpoints", "cosignatures"} <= tables:
            return db
        db.close()
        break
    raise NotALedger(f"{path}: not a ledger of version 1")


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _stored(db: sqlite3.Connection, size: int, note: Any, *, outside: bool) -> StoredCheckpoint:
    lines = db.execute("SELECT name, line FROM cosignatures WHERE size = ?", (size,))
    others = "SELECT key, line FROM outside_cosignatures WHERE size = ?"
    found = db.execute(others, (size,)).fetchall() if outside else []
    return StoredCheckpoint(size, note, dict(lines.fetchall()), outside=tuple(found))


def _from_lines(path: Path) -> Generator[Record, None, None]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            yield read_record(line.removesuffix(b"\n"))


def read_record(line: bytes, proof: tuple[bytes, ...] | None = None) -> Record:
    """Read a line of the export, without its newline: an entry, or a checkpoint with its co-signatures."""
    if not line.startswith(b'{"checkpoint":'):
        return Leaf(line, proof=proof)
    record = decode(line, MAX_LINE)
    lines = record.get("cosignatures")
    if set(record) != {"checkpoint", "cosignatures"} or not isinstance(lines, dict):
        raise Broken("a malformed checkpoint record")
    return StoredCheckpoint(None, record["checkpoint"], lines, proof)


def open_records(path: Path) -> Generator[Record, None, None]:
    """Return the records of the ledger at `path`; raises OSError or NotALedger."""
    with path.open("rb") as file:
        start = file.read(16)
    if start == b"SQLite format 3\0":
        return _from_sqlite(_open_sqlite(path))
    if start[:1] == b"{":
        return _from_lines(path)
    raise NotALedger(f"{path}: neither a ledger file nor JSON lines")
