"""What clients of encrypted inference have used: nonces, rows and receipts, in one SQLite file of the model's owner.

A request is counted before it is worked on, in the transaction that takes its nonce: a client that reconnects, or a
server that restarts, changes nothing.  A receipt stays here until it is on the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import BadMessage, RefusedError
from fl_core.files import private_dir
from fl_core.serving import WINDOW
from fl_core.trust import database
from fl_core.trust.entry import Statement

_SCHEMA = """
CREATE TABLE requests (
    client TEXT NOT NULL, nonce TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (client, nonce)) STRICT;
CREATE INDEX requests_client ON requests (client, time);
CREATE INDEX requests_time ON requests (time);
CREATE TABLE rows_served (
    client TEXT NOT NULL, day INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (client, day)) STRICT;
CREATE TABLE receipts (number INTEGER PRIMARY KEY, statement BLOB NOT NULL) STRICT;
"""
_FILE = database.FileType("file of inference accounts", 0x66737061, 1, _SCHEMA)  # "fspa"
DAY = 86400


@dataclass(frozen=True)
class Quota:
    """What one client may use: rows a day (UTC), requests a second (over ten seconds)."""

    rows_a_day: int
    requests_a_second: float


class OverQuota(RefusedError):
    """A client has used what it may; `wait` is in seconds."""

    code = "quota"

    def __init__(self, text: str, wait: float) -> None:
        super().__init__(text)
        self.wait = wait


class Accounts:
    """The file; safe to use from several threads."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        private_dir(path.parent)
        if not path.exists():
            database.create(path, _FILE, mode=0o600, fill=lambda db: None)
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._db = database.connect(path, _FILE, writable=True)
        self._db.execute("PRAGMA synchronous=NORMAL")  # what is lost is a power cut's last second, never a restart's

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def take(self, client: str, nonce: str, rows: int, quota: Quota) -> None:
        """Count a request.

        Raises
        ------
        BadMessage : its nonce was used before.
        OverQuota : nothing is counted.
        """
        now = self._clock()
        day, span = int(now // DAY), 10.0
        with self._lock, database.storage_errors(self._path), database.transaction(self._db):
            one = lambda query, *values: self._db.execute(query, values).fetchone()[0]  # noqa: E731
            self._db.execute("DELETE FROM requests WHERE time < ?", (now - 2 * WINDOW - span,))
            if one("SELECT COUNT(*) FROM requests WHERE client = ? AND nonce = ?", client, nonce):
                raise BadMessage("a request that was made before")
            recent = one("SELECT COUNT(*) FROM requests WHERE client = ? AND time > ?", client, now - span)
            if recent >= quota.requests_a_second * span:
                first = one("SELECT MIN(time) FROM requests WHERE client = ? AND time > ?", client, now - span)
                text = f"{client}: more than {quota.requests_a_second:g} requests a second"
                raise OverQuota(text, max(first + span - now, 0.05))
            used = one("SELECT COALESCE(SUM(rows), 0) FROM rows_served WHERE client = ? AND day = ?", client, day)
            if used + rows > quota.rows_a_day:
                text = f"{client}: {rows} rows after {used} today; allowed: {quota.rows_a_day} a day"
                raise OverQuota(text, (day + 1) * DAY - now)
            self._db.execute("INSERT INTO requests VALUES (?, ?, ?)", (client, nonce, now))
            self._db.execute(
                "INSERT INTO rows_served VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows",
                (client, day, rows),
            )

    def rows_today(self, client: str) -> int:
        """Rows counted for a client since midnight UTC."""
        day = int(self._clock() // DAY)
        with self._lock:
            found = self._db.execute("SELECT rows FROM rows_served WHERE client = ? AND day = ?", (client, day))
            row = found.fetchone()
        return int(row[0]) if row else 0

    def keep(self, receipt: Statement) -> None:
        """Keep a receipt until it is on the ledger."""
        with self._lock, database.storage_errors(self._path):
            self._db.execute("INSERT INTO receipts (statement) VALUES (?)", (receipt.encode(),))

    def kept(self, most: int = 500) -> list[tuple[int, Statement]]:
        """Receipts that are not on the ledger yet, oldest first, with their numbers."""
        with self._lock:
            rows = self._db.execute("SELECT number, statement FROM receipts ORDER BY number LIMIT ?", (most,))
            return [(number, Statement.decode(bytes(data))) for number, data in rows.fetchall()]

    def drop(self, last: int) -> None:
        """Forget the receipts up to a number: the ledger has them."""
        with self._lock, database.storage_errors(self._path):
            self._db.execute("DELETE FROM receipts WHERE number <= ?", (last,))
