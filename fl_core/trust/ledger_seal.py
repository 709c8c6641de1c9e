"""A seal on a ledger's file: it was moved, or is being moved into, and nobody writes to it, however long it is open.

A table says why, and a trigger on every table of the ledger refuses new rows: programs that opened the file before are
refused as well, by SQLite.  Reading goes on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fl_core.trust.postgres_url import PostgresUrl

_TABLE = "moved"
_ASIDE = ".moved-"


@dataclass(frozen=True)
class Seal:
    """Why nobody writes to a file.

    Attributes
    ----------
    into
        Whether the ledger is being moved into this file; else it was moved out of it.
    other
        The other place, as `key_of`.
    token
        The move's own number, 63 bits.
    """

    into: bool
    other: str
    token: int

    @property
    def words(self) -> str:
        """What a writer is told."""
        if self.into:
            return f"the ledger of {self.other} is being moved into this file; allowed: fedseal audit move once more"
        return f"this ledger was moved to {self.other}; allowed: FEDSEAL_LEDGER with its URL"


def key_of(place: PostgresUrl) -> str:
    """Return what names a ledger in PostgreSQL, whoever connects and how."""
    return f"postgresql://{place.host}:{place.port}/{place.database}?schema={place.schema}"


def read(db: sqlite3.Connection) -> Seal | None:
    """Return a file's seal, if it has one; raises sqlite3.Error."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_TABLE,)).fetchone():
        return None
    into, other, token = db.execute(f"SELECT into_, other, token FROM {_TABLE}").fetchone()  # noqa: S608
    return Seal(bool(into), str(other), int(token))


def put(db: sqlite3.Connection, seal: Seal, tables: Iterable[str]) -> None:
    """Seal a file with these tables, in a transaction."""
    db.execute(f"CREATE TABLE {_TABLE} (into_ INTEGER NOT NULL, other TEXT NOT NULL, token INTEGER NOT NULL)")
    db.execute(f"INSERT INTO {_TABLE} VALUES (?, ?, ?)", (seal.into, seal.other, seal.token))  # noqa: S608
    words = seal.words.replace("'", "''")
    for table in tables:
        db.execute(
            f"CREATE TRIGGER {_TABLE}_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )


def take_off(db: sqlite3.Connection) -> None:
    """Let the file be written to, in a transaction."""
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        if name.startswith(f"{_TABLE}_"):
            db.execute(f'DROP TRIGGER "{name}"')
    db.execute(f"DROP TABLE {_TABLE}")


def name_aside(path: Path, size: int) -> Path:
    """Return a free name for a file that was moved with `size` entries."""
    first = path.with_name(f"{path.name}{_ASIDE}{size}")
    names = (first, *(first.with_name(f"{first.name}.{number}") for number in range(2, 1000)))
    return next(name for name in names if not name.exists())


def is_aside(path: Path) -> Path | None:
    """Return a file that was `path` until its ledger was moved away, if there is one."""
    return next(iter(sorted(path.parent.glob(f"{path.name}{_ASIDE}*"))), None)
