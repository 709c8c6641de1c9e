"""Keeps Flower's database small: what belongs to ended runs goes, and the space goes back to the disk.

Flower 1.41 keeps a row in eight tables for every run for good, and has no call that removes one.  What fedseal must
remember of a run is in its ledger and its folder; nothing here is evidence.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from fl_core.errors import JobFailed

BUSY_SECONDS = 0.5  # each time that another holds the database; what is not done then is done at the next pruning
_BY_RUN = ("message_ins", "message_res", "message", "run_objects", "task_event", "task_usage", "task_message", "task")
_ENDED = "SELECT run_id FROM task GROUP BY run_id HAVING min(finished_at IS NOT NULL AND finished_at != '')"
_SERIES = "SELECT series_id FROM run_series WHERE series_id NOT IN (SELECT series_id FROM series_runs)"
_VACUUM_FROM = 4 << 20


def prune(database: Path, *, vacuum: bool) -> int:
    """Remove what belongs to ended runs and to removed nodes; returns how many runs.

    Safe beside a running SuperLink; `vacuum` may hold it up for a second.  Raises `JobFailed` when the database cannot
    be written.
    """
    if not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            runs = [row[0] for row in db.execute(_ENDED)]
            for run in runs:
                _remove(db, run)
            db.execute(f"DELETE FROM series_context WHERE series_id IN ({_SERIES})")  # noqa: S608
            db.execute(f"DELETE FROM compacted_contexts WHERE series_id IN ({_SERIES})")  # noqa: S608
            db.execute(f"DELETE FROM run_series WHERE series_id IN ({_SERIES})")  # noqa: S608
            db.execute("DELETE FROM node WHERE unregistered_at IS NOT NULL")
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if vacuum and database.stat().st_size > _VACUUM_FROM:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # until then the file is as long as it was
            return len(runs)
    except sqlite3.Error as error:
        raise JobFailed(f"{database}: cannot be pruned ({error})") from None


def _remove(db: sqlite3.Connection, run: int) -> None:
    """One run's rows; objects that another run holds as well stay, less the references from what goes."""
    sessions = "SELECT session_id FROM object_push_sessions WHERE run_id = ?"
    for table in ("object_push_session_pending", "object_push_session_roots"):
        db.execute(f"DELETE FROM {table} WHERE session_id IN ({sessions})", (run,))  # noqa: S608
    db.execute("DELETE FROM object_push_sessions WHERE run_id = ?", (run,))
    held = "SELECT object_id FROM run_objects WHERE run_id"
    mine = f"{held} = ?1 EXCEPT {held} != ?1"
    gone = f"SELECT child_id, count(*) AS times FROM object_children WHERE parent_id IN ({mine}) GROUP BY child_id"  # noqa: S608
    left = f"UPDATE objects SET ref_count = max(0, ref_count - times) FROM ({gone}) WHERE object_id = child_id"  # noqa: S608
    db.execute(left, (run,))
    db.execute(f"DELETE FROM object_children WHERE parent_id IN ({mine})", (run,))  # noqa: S608
    db.execute(f"DELETE FROM objects WHERE object_id IN ({mine})", (run,))  # noqa: S608
    db.execute("DELETE FROM task_logs WHERE task_id IN (SELECT task_id FROM task WHERE run_id = ?)", (run,))
    for table in _BY_RUN:
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run,))  # noqa: S608
    db.execute("DELETE FROM series_runs WHERE run_id = ?", (run,))
    db.execute("DELETE FROM run WHERE run_id = ?", (run,))
