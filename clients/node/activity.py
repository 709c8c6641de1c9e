"""What a node did: a line a run, for its owner.  It holds no data and nothing a coordinator does not know."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fl_core.trust import database

if TYPE_CHECKING:
    from clients.app import Account

KEPT = 1000  # runs
ENDS = {
    "query.close": "done",
    "query.deliver": "done",
    "query.session": "done",
    "query.abandon": "stopped",
    "query.check": "checked",
}
_FILE = database.FileType(
    word="node's activity",
    application_id=0x46534E41,  # "FSNA"
    version=1,
    schema="""
        CREATE TABLE runs (
            run TEXT PRIMARY KEY, job TEXT NOT NULL, kind TEXT NOT NULL, began REAL NOT NULL, last REAL NOT NULL,
            step TEXT NOT NULL, round INTEGER NOT NULL, messages INTEGER NOT NULL, state TEXT NOT NULL,
            problem TEXT NOT NULL) STRICT;
    """,
)


# A last word does not change how a run ended here: co-signing after the closing, giving back what a refused run held.
_STAYS = (
    "(state = 'done' AND excluded.state IN ('active', 'stopped'))"
    " OR (state IN ('refused', 'failed') AND excluded.state = 'stopped')"
)
_NOTE = (
    "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT (run) DO UPDATE SET"  # noqa: S608
    " job = iif(excluded.job = '', job, excluded.job), kind = iif(excluded.kind = '', kind, excluded.kind),"
    " last = excluded.last, step = excluded.step, round = excluded.round, messages = messages + 1,"
    f" state = iif({_STAYS}, state, excluded.state), problem = iif({_STAYS}, problem, excluded.problem)"
)
_PRUNE = "DELETE FROM runs WHERE run NOT IN (SELECT run FROM runs ORDER BY last DESC LIMIT ?)"


@dataclasses.dataclass(frozen=True)
class RunActivity:
    """One run as this node saw it; `state` is active, done, stopped, checked, refused or failed."""

    run: str
    job: str
    kind: str
    began: float
    last: float
    step: str
    round: int
    messages: int
    state: str
    problem: str


class Activity:
    """The file; opened anew for each call, so that several processes may look."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, account: Account) -> None:
        """One message was answered; the newest runs are kept."""
        if not self._path.exists():
            database.create(self._path, _FILE, mode=0o600, fill=lambda db: None)
        now, state = time.time(), ENDS.get(account.step, "active")
        if account.problem:
            state = "refused" if account.refused else "failed"
        with self._open(writable=True) as db, database.transaction(db):
            db.execute(
                _NOTE,
                (account.run, account.job, account.kind, now, now, account.step, account.round, state, account.problem),
            )
            db.execute(_PRUNE, (KEPT,))

    def runs(self, *, most: int = 50) -> list[RunActivity]:
        """The newest runs, newest first."""
        if not self._path.exists():
            return []
        with self._open(writable=False) as db:
            rows = db.execute("SELECT * FROM runs ORDER BY last DESC LIMIT ?", (most,))
            return [RunActivity(*row) for row in rows]

    @contextlib.contextmanager
    def _open(self, *, writable: bool) -> Iterator[sqlite3.Connection]:
        with (
            database.storage_errors(self._path),
            contextlib.closing(database.connect(self._path, _FILE, writable=writable)) as db,
        ):
            if writable:
                db.execute("PRAGMA synchronous=NORMAL")  # an account for people; nothing rests on it
            yield db
