"""A ledger moved as a whole from a file to PostgreSQL or back, so that at no time two of it can be written to.

The source is held against writers and sealed before the target can be used; what names both (`ledger_seal`) lets the
same move go on after a crash, and no other:

====================================  ================================================================================
killed (file to PostgreSQL)           what is there afterwards
====================================  ================================================================================
while rows are copied and compared    the file as before; nothing of the target, which is one transaction
after the file is sealed              nobody writes: the target is empty. The same move copies again
after the target's COMMIT             the target is the ledger; the same move sets the sealed file aside
after the file is set aside           all is done
====================================  ================================================================================

====================================  ================================================================================
killed (PostgreSQL to file)           what is there afterwards
====================================  ================================================================================
while rows are copied and verified    the source as before; a temporary file beside the target
after the file has its name           the source as before; the file is sealed. The same move takes another copy
after the source is marked            nobody writes: the file is sealed. The same move takes the seal off
====================================  ================================================================================

A file is taken only where no other program has it open: SQLite then lets its write-ahead log be closed, so that the
file can change its name.  In PostgreSQL the mark holds for programs that are connected as well, since each transaction
looks for it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import FedsealError, JobFailed, LedgerBroken, UsageError
from fl_core.trust import database, ledger_seal, merkle
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import copy_rows, count_rows, digests
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.ledger_seal import Seal, key_of
from fl_core.trust.ledger_sound import Say, head_of, require_sound, with_word
from fl_core.trust.ledger_store import FILE, SqliteStore, Store
from fl_core.trust.postgres_url import PostgresUrl

OPEN_SECONDS = 5.0  # for a program that looks into the file to close it
IDLE_SECONDS = 600.0  # between two words to the server, while a copy is verified


@dataclass(frozen=True)
class Moved:
    """What came of a move.

    Attributes
    ----------
    log, size, root
        The ledger's origin, number of entries, and root over all of them (hex), the same in both places.
    verified
        Whether every signature, checkpoint and co-signature was checked.
    resumed
        Whether an earlier move, which was cut short, was ended.
    aside
        The name that the file has now, where the source was one.
    """

    log: str
    size: int
    root: str
    verified: bool
    resumed: bool
    aside: Path | None = None


class _Nothing(Exception):
    """There is no ledger at the target; raised to end the transaction that found out."""


def move_to_server(source: Path, target: PostgresUrl, *, verify: bool = True, say: Say | None = None) -> Moved:
    """Move the ledger in a file to a place in PostgreSQL where there is none, and set the file aside.

    Parameters
    ----------
    verify
        Check the whole source first, as an auditor does.  That the target's rows are the source's is always checked.

    Raises
    ------
    UsageError
        If there is no ledger at `source`, one at `target`, or the file is sealed for another place.
    LedgerBroken
        If the source does not verify, or what was read back is something else; the target is empty then.
    JobFailed
        If another program has the file open, or the server is lost; the same move may be asked for again.
    """
    say = say or _silent
    with _alone(source) as (store, db):
        resumed = _is_sealed_for(store, source, target)
        there = target.exists()
        if there and not resumed:
            raise UsageError(f"{target}: holds a ledger; allowed: an empty schema (?schema=NAME)")
        log, size, root = head_of(source)
        if not there:
            if verify:
                require_sound(source, source, store, say)
            _fill(store, db, target, resumed=resumed, say=say)
        _check_continues(target, log, size, root)
    return Moved(log, size, root, verify and not there, resumed, _set_aside(source, size))


def take_back(source: Path, target: PostgresUrl) -> None:
    """Take the seal off a file whose move to `target` was cut short, where no ledger has come to be there.

    Raises
    ------
    UsageError
        If the file is not sealed, or for another place, or the target holds the ledger.
    JobFailed
        If another program has the file open, or the server cannot be asked.
    """
    with _alone(source) as (store, db):
        if not _is_sealed_for(store, source, target):
            raise UsageError(f"{source}: is not sealed; allowed: a ledger whose move was cut short")

        def empty(_: Store) -> None:
            store.unseal()
            db.execute("COMMIT")
            raise _Nothing

        with suppress(_Nothing):
            PostgresStore.open(target, writable=True, fill=empty).close()
            raise UsageError(f"{target}: holds the ledger; allowed: fedseal audit move, which sets the file aside")


def move_to_file(source: PostgresUrl, target: Path, *, verify: bool = True, say: Say | None = None) -> Moved:
    """Move the ledger in PostgreSQL to a file that is not there, and mark the source as moved.

    Parameters
    ----------
    verify
        Check the whole copy as an auditor does.  That its rows are the source's is always checked.

    Raises
    ------
    UsageError
        If there is no ledger at `source`, it was moved elsewhere, or there is a file at `target`.
    LedgerBroken
        If the copy does not verify, or is not the source's; there is no target then.
    JobFailed
        If the server is lost or the disk refuses; the same move may be asked for again.
    """
    say = say or _silent
    with closing(PostgresStore.open(source, writable=True, fill=None, moving=True)) as store:
        with store.transaction(idle_seconds=IDLE_SECONDS):
            token = store.moved()
            resumed = token is not None
            if token is None:
                _clear(target, source)
                token = secrets.randbits(63)
                _take(store, target, token, verify=verify, say=say)
                store.mark_moved(token)
            else:
                _check_arrived(store, target, token)
        _unseal(target)
    log, size, root = head_of(target)
    return Moved(log, size, root, verify and not resumed, resumed)


# ---- the file as the source


@contextmanager
def _alone(path: Path) -> Iterator[tuple[SqliteStore, sqlite3.Connection]]:
    """A file that no other program has open, held against writers in a transaction."""
    with database.storage_errors(path), closing(database.connect(path, FILE, writable=True)) as db:
        store = SqliteStore(path, db)
        db.execute(f"PRAGMA busy_timeout={int(OPEN_SECONDS * 1000)}")
        try:
            db.execute("PRAGMA journal_mode=DELETE")  # refused while anybody else has the log open
            db.execute("BEGIN IMMEDIATE")
            if store.all("PRAGMA journal_mode") != [("delete",)]:
                raise sqlite3.OperationalError("opened meanwhile")
        except (sqlite3.OperationalError, JobFailed):
            raise JobFailed(f"{path}: another program has it open; stop coordinator and pages, then again") from None
        try:
            yield store, db
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if ledger_seal.read(db) is None:
                with suppress(sqlite3.OperationalError):
                    db.execute("PRAGMA journal_mode=WAL")


def _is_sealed_for(store: SqliteStore, source: Path, target: PostgresUrl) -> bool:
    """Whether an earlier move to this target was cut short; raises UsageError for one to another place."""
    seal = store.sealed()
    if seal is not None and (seal.into or seal.other != key_of(target)):
        raise UsageError(f"{source}: {seal.words if seal.into else f'is sealed for {seal.other}; allowed: --to there'}")
    return seal is not None


def _fill(store: SqliteStore, db: sqlite3.Connection, target: PostgresUrl, *, resumed: bool, say: Say) -> None:
    """Copy all rows and compare them, seal the source, and only then let the target be one."""
    rows, filled = count_rows(store), False

    def fill(to: Store) -> None:
        nonlocal filled
        assert isinstance(to, PostgresStore)
        told = copy_rows(store, to, lambda done: say("copied", done, rows))
        if digests(to, lambda done: say("compared", done, rows)) != told:
            raise LedgerBroken(f"{target}: what was read back is not what was written; nothing was moved")
        if not resumed:
            store.seal(Seal(into=False, other=key_of(target), token=secrets.randbits(63)))
            db.execute("COMMIT")
        filled = True

    try:
        PostgresStore.open(target, writable=True, fill=fill).close()
    except FedsealError as error:
        if filled or resumed:
            words = "the file is sealed; allowed: the same move once more, or --undo"
            raise JobFailed(f"{error}; {words}") from None
        raise
    if not filled:
        raise UsageError(f"{target}: somebody made a ledger there meanwhile; nothing was moved")


def _check_continues(target: PostgresUrl, log: str, size: int, root: str) -> None:
    """Refuse a target that is not the source, or what has been added to it since."""
    with Ledger.open(target) as copy:
        if copy.log != log or copy.size < size:
            raise UsageError(f"{target}: holds another ledger, {copy.log} with {copy.size} entries; wanted: {log}")
        proof = copy.consistency(size, copy.size)
        merkle.verify_consistency(
            old_size=size, old_root=bytes.fromhex(root), new_size=copy.size, new_root=copy.root, proof=proof
        )


def _set_aside(path: Path, size: int) -> Path:
    """Give a sealed file another name, durably."""
    aside = ledger_seal.name_aside(path, size)
    try:
        os.rename(path, aside)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise JobFailed(f"{path}: the ledger was moved, but the file keeps its name ({error.strerror})") from None
    return aside


# ---- the file as the target


def _clear(target: Path, source: PostgresUrl) -> None:
    """Remove what an earlier attempt left, which nobody ever wrote to; refuse any other file."""
    if not target.exists():
        return
    with closing(SqliteStore.open(target, writable=False, fill=None)) as store:
        seal = store.sealed()
    if seal is None or not seal.into or seal.other != key_of(source):
        raise UsageError(f"{target}: there is a file already; allowed: a new one")
    target.unlink()


def _take(store: PostgresStore, target: Path, token: int, *, verify: bool, say: Say) -> None:
    """Make a sealed copy, verified, under the target's name."""
    source, (log, size, root) = store.place, head_of(store.place)
    rows = count_rows(store)

    def fill(db: sqlite3.Connection) -> None:
        file = SqliteStore(target, db)
        with file.transaction():
            told = copy_rows(store, file, lambda done: say("copied", done, rows))
            file.seal(Seal(into=True, other=key_of(source), token=token))
        if digests(file, with_word(store, lambda done: say("compared", done, rows))) != told:
            raise LedgerBroken(f"{target}: what was read back is not what was written; nothing was moved")
        if verify:
            ((_, _, path),) = db.execute("PRAGMA database_list").fetchall()
            require_sound(source, Path(path), file, say, server=store)

    database.create(target, FILE, mode=0o644, fill=fill)
    if head_of(target) != (log, size, root) or _seal_of(target) != Seal(True, key_of(source), token):
        raise UsageError(f"{target}: somebody made a file there meanwhile; nothing was moved")


def _check_arrived(store: PostgresStore, target: Path, token: int) -> None:
    """Refuse to end a move but the one that marked the source."""
    if not target.exists() or _seal_of(target) != Seal(True, key_of(store.place), token):
        raise UsageError(f"{store.place}: this ledger was moved away already, and not to a file {target} as it is")
    with closing(SqliteStore.open(target, writable=False, fill=None)) as file:
        if digests(file) != digests(store):
            raise LedgerBroken(f"{target}: is not the ledger at {store.place} that was moved into it")


def _seal_of(path: Path) -> Seal | None:
    with closing(SqliteStore.open(path, writable=False, fill=None)) as store:
        return store.sealed()


def _unseal(path: Path) -> None:
    with database.storage_errors(path), closing(database.connect(path, FILE, writable=True)) as db:
        store = SqliteStore(path, db)
        with store.transaction():
            if store.sealed() is not None:
                store.unseal()


def _silent(what: str, done: int, of: int) -> None:
    """Say nothing."""
