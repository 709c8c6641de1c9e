"""What clients of encrypted inference have used: nonces, rows and receipts, in one SQLite file of the model's owner.

A request is counted before it is worked on, in the transaction that takes its nonce: a client that reconnects, or a
server that restarts, changes nothing.  What quotas need of the file is held in memory too, so that a request is one
statement of SQL: under load each costs a wait for Python's lock.  A receipt stays here until it is on the ledger.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
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
# one statement a request; of this connection, so that the file stays as it is
_TAKE = """
CREATE TEMP VIEW taken AS SELECT client, nonce, time, 0 AS day, 0 AS rows FROM requests;
CREATE TEMP TRIGGER take INSTEAD OF INSERT ON taken BEGIN
    INSERT INTO requests VALUES (NEW.client, NEW.nonce, NEW.time);
    INSERT INTO rows_served VALUES (NEW.client, NEW.day, NEW.rows)
        ON CONFLICT DO UPDATE SET rows = rows + excluded.rows;
END;
"""
_FILE = database.FileType("file of inference accounts", 0x66737061, 1, _SCHEMA)  # "fspa"
DAY, SPAN = 86400, 10.0
_LOG_PAGES = 20_000  # of 4 KiB


_AGAIN = "a request that was made before"


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
    """The file; safe to use from several threads, of one process."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        private_dir(path.parent)
        if not path.exists():
            database.create(path, _FILE, mode=0o600, fill=lambda db: None)
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._db, self._moving = (database.connect(path, _FILE, writable=True) for _ in range(2))
        self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")  # else `move_log`, which syncs, comes first
        self._db.execute("PRAGMA synchronous=NORMAL")  # what is lost is a power cut's last second, never a restart's
        with database.storage_errors(path):
            self._db.executescript(_TAKE)
        self._recent: dict[str, deque[float]] = {}  # a client's requests, as far as its quota asks
        self._rows: dict[str, tuple[int, int]] = {}  # a client's day, and rows on it
        self._load()

    def _load(self) -> None:
        now = self._clock()
        self._swept, day = now, int(now // DAY)
        query = "SELECT client, time FROM requests WHERE time > ? ORDER BY time"
        for client, at in self._db.execute(query, (now - SPAN,)):
            self._recent.setdefault(client, deque()).append(at)
        for client, rows in self._db.execute("SELECT client, rows FROM rows_served WHERE day = ?", (day,)):
            self._rows[client] = day, rows

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._moving.close()
            self._db.close()

    def move_log(self) -> None:
        """Move SQLite's write-ahead log into the file, which takes long and keeps no request waiting."""
        with database.storage_errors(self._path):
            self._moving.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def take(self, client: str, nonce: str, rows: int, quota: Quota) -> None:
        """Count a request.

        Raises
        ------
        BadMessage : its nonce was used before.
        OverQuota : nothing is counted.
        """
        with self._lock, database.storage_errors(self._path):
            now = self._clock()
            day, recent = int(now // DAY), self._recent.setdefault(client, deque())
            while recent and recent[0] <= now - SPAN:
                recent.popleft()
            used = self._used(client, day)
            if over := self._over(client, rows, quota, recent, used, now):
                if self._known(client, nonce):
                    raise BadMessage(_AGAIN)
                raise over
            try:
                self._db.execute("INSERT INTO taken VALUES (?, ?, ?, ?, ?)", (client, nonce, now, day, rows))
            except sqlite3.IntegrityError:
                raise BadMessage(_AGAIN) from None
            recent.append(now)
            self._rows[client] = day, used + rows
            self._sweep(now)

    def _over(
        self, client: str, rows: int, quota: Quota, recent: deque[float], used: int, now: float
    ) -> OverQuota | None:
        if len(recent) >= quota.requests_a_second * SPAN:
            text = f"{client}: more than {quota.requests_a_second:g} requests a second"
            return OverQuota(text, max(recent[0] + SPAN - now, 0.05))
        if used + rows > quota.rows_a_day:
            text = f"{client}: {rows} rows after {used} today; allowed: {quota.rows_a_day} a day"
            return OverQuota(text, (now // DAY + 1) * DAY - now)
        return None

    def _used(self, client: str, day: int) -> int:
        counted, rows = self._rows.get(client, (day, 0))
        return rows if counted == day else 0

    def _known(self, client: str, nonce: str) -> bool:
        query = "SELECT 1 FROM requests WHERE client = ? AND nonce = ?"
        return self._db.execute(query, (client, nonce)).fetchone() is not None

    def _sweep(self, now: float) -> None:
        """Forget nonces of requests that are too old to be taken again."""
        if now - self._swept >= 1.0:
            self._swept = now
            self._db.execute("DELETE FROM requests WHERE time < ?", (now - 2 * WINDOW - SPAN,))

    def rows_today(self, client: str) -> int:
        """Rows counted for a client since midnight UTC."""
        with self._lock:
            return self._used(client, int(self._clock() // DAY))

    def keep(self, receipt: Statement) -> None:
        """Keep a receipt until it is on the ledger."""
        with self._lock, database.storage_errors(self._path):
            self._db.execute("INSERT INTO receipts (statement) VALUES (?)", (receipt.encode(),))

    def kept(self, most: int = 500) -> list[tuple[int, Statement]]:
        """Receipts that are not on the ledger yet, oldest first, with their numbers."""
        with self._lock:
            query = "SELECT number, statement FROM receipts ORDER BY number LIMIT ?"
            rows = self._db.execute(query, (most,)).fetchall()
        return [(number, Statement.decode(bytes(data))) for number, data in rows]

    def drop(self, last: int) -> None:
        """Forget the receipts up to a number: the ledger has them."""
        with self._lock, database.storage_errors(self._path):
            self._db.execute("DELETE FROM receipts WHERE number <= ?", (last,))
