"""A ledger's file for somebody who looks through it: pages of entries, text in them, checkpoints.

Each look has a connection of its own, which cannot write, and one state of the file.  Nothing is believed of the file:
what it holds is bounded here, and an entry that is none is shown as what it is.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_core.errors import BadMessage, LedgerBroken
from fl_core.trust import canonical, database, merkle
from fl_core.trust.entry import MAX_ENTRY
from fl_core.trust.ledger import Ledger

WINDOW = 200_000  # entries that one search for text passes over
_FILE = database.FileType(word="fedseal ledger", application_id=0x46534C47, version=1, schema="")
_COLUMNS = f"seq, run, kind, by, CASE WHEN length(leaf) <= {MAX_ENTRY} THEN CAST(leaf AS BLOB) END"
_ODD = (AttributeError, TypeError, ValueError, StopIteration)  # of a number where bytes should be, and the like
_DIGEST = re.compile(r"[0-9a-f]{8,128}")


@dataclass(frozen=True)
class Row:
    """An entry as the file has it; `leaf` is None where it is too long to be one."""

    seq: int
    run: str
    kind: str
    by: str
    leaf: bytes | None

    def fields(self) -> dict[str, Any]:
        """What the entry says; empty where it is no canonical JSON object."""
        try:
            held = canonical.decode(self.leaf or b"", max_bytes=MAX_ENTRY)
        except (BadMessage, RecursionError):
            return {}
        return held if isinstance(held, dict) else {}

    @property
    def leaf_hash(self) -> str:
        """RFC 6962 leaf hash, hex; empty without a leaf."""
        return merkle.leaf_hash(self.leaf).hex() if self.leaf is not None else ""


@dataclass(frozen=True)
class Hit:
    """An entry in which a digest was found, and as what."""

    row: Row
    place: str
    digest: str


@dataclass(frozen=True)
class Stored:
    """A checkpoint: how many entries it covers, how many parties, and witnesses from outside, co-signed it."""

    size: int
    parties: int
    outside: int


class Rows:
    """A ledger's file: `look` opens it for lists, `ledger` for what needs its tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> tuple[int, ...]:
        """Differs after every write to the file."""
        found = []
        for path in (self.path, self.path.with_name(self.path.name + "-wal")):
            try:
                told = path.stat()
                found += [told.st_mtime_ns, told.st_size, told.st_ino] if told.st_size else [0, 0, 0]
            except OSError:
                found += [0, 0, 0]
        return tuple(found)

    @contextlib.contextmanager
    def look(self) -> Iterator[Look]:
        """One state of the file.  Raises `UsageError` for no ledger, `LedgerBroken` for a damaged file."""
        with (
            database.storage_errors(self.path),
            contextlib.closing(database.connect(self.path, _FILE, writable=False)) as db,
        ):
            db.execute("PRAGMA trusted_schema=OFF")
            db.execute("PRAGMA query_only=ON")
            db.execute("BEGIN")
            yield Look(db)

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, read-only.  Raises `FedsealError`, also for a file that holds what no ledger does."""
        with Ledger.open(self.path) as opened:
            try:
                yield opened
            except _ODD as error:
                raise LedgerBroken(f"{self.path}: the file is damaged ({type(error).__name__})") from error


class Look:
    """What one connection sees."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def size(self) -> int:
        """Number of entries."""
        return int(self.db.execute("SELECT COALESCE(MAX(seq) + 1, 0) FROM entries").fetchone()[0])

    def row(self, seq: int) -> Row | None:
        """One entry."""
        found = self.entries(start=seq, limit=1)
        return found[0] if found and found[0].seq == seq else None

    def entries(
        self, filters: Mapping[str, str] | None = None, *, start: int = 0, before: int | None = None, limit: int
    ) -> list[Row]:
        """The first `limit` entries from `start` on, or the last ones before `before`, in their order.

        Parameters
        ----------
        filters
            Of `run`, `kind`, `by`: exactly these.
        """
        wanted = {name: value for name, value in (filters or {}).items() if name in ("run", "kind", "by")}
        where = "".join(f" AND {name} = ?" for name in wanted)
        bound, order = ("seq >= ?", "ASC") if before is None else ("seq < ?", "DESC")
        sql = f"SELECT {_COLUMNS} FROM entries WHERE {bound}{where} ORDER BY seq {order} LIMIT ?"  # noqa: S608
        rows = self.db.execute(sql, (start if before is None else before, *wanted.values(), limit)).fetchall()
        found = [_row(row) for row in rows]
        return found if before is None else found[::-1]

    def count(self, run: str, column: str) -> dict[str, int]:
        """How many entries a run has of each `kind`, or `by` each signer."""
        if column not in ("kind", "by"):
            raise ValueError(column)
        sql = f"SELECT {column}, COUNT(*) FROM entries WHERE run = ? GROUP BY {column} ORDER BY MIN(seq)"  # noqa: S608
        return {str(name): int(number) for name, number in self.db.execute(sql, (run,))}

    def search(self, digest: str, *, before: int, limit: int) -> tuple[list[Hit], int]:
        """The newest entries before `before` that hold a text which starts with these hex digits, or hash to it.

        Returns
        -------
        tuple
            At most `limit` hits, and the entry down to which was searched: `WINDOW` entries at most; 0 for all.
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{len(digest)} digits")
        hits, size = [], self.size()
        before, last = min(before, size), self.row(size - 1)
        if last is not None and before == size and last.leaf_hash.startswith(digest):
            hits.append(Hit(last, "leaf hash", last.leaf_hash))
        low = max(before - WINDOW, 0)
        # an entry's leaf hash is the `prev` of the one after it, which may lie beyond the window
        sql = f"SELECT {_COLUMNS} FROM entries WHERE seq BETWEEN ? AND ? AND instr(leaf, ?) ORDER BY seq DESC"  # noqa: S608
        for found in self.db.execute(sql, (low, before, b'"' + digest.encode())):
            row = _row(found)
            for place, text in _texts(row.fields()):
                if not text.startswith(digest):
                    continue
                held = self.row(row.seq - 1) if place == "prev" else row
                if held is not None and low <= held.seq < before:
                    hits.append(Hit(held, "leaf hash" if place == "prev" else place, text))
            if len(hits) >= limit:
                return hits[:limit], row.seq
        return hits, low

    def checkpoints(self, *, before: int, limit: int) -> list[Stored]:
        """The largest ones below `before` entries, largest first."""
        outside = "SELECT COUNT(*) FROM outside_cosignatures o WHERE o.size = p.size" if self._has_outside() else "0"
        sql = (
            "SELECT size, (SELECT COUNT(*) FROM cosignatures c WHERE c.size = p.size),"  # noqa: S608
            f" ({outside}) FROM checkpoints p WHERE size < ? ORDER BY size DESC LIMIT ?"
        )
        return [Stored(int(size), parties, other) for size, parties, other in self.db.execute(sql, (before, limit))]

    def _has_outside(self) -> bool:
        return bool(self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'outside_cosignatures'").fetchone())


def _row(found: tuple[Any, ...]) -> Row:
    seq, run, kind, by, leaf = found
    return Row(int(seq), str(run), str(kind), str(by), leaf)


def _texts(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text of an entry but its signature, with the way to it."""
    waiting: list[tuple[str, Any]] = [(name, value) for name, value in fields.items() if name != "sig"]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            yield place, value
        elif isinstance(value, dict):
            waiting += [(f"{place}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(place, item) for item in value]
