"""A party as witness: it remembers each log's head and co-signs only what continues it.

A hash chain alone does not catch a cut tail or a log issued anew as a whole; a remembered head does. Before a
party sends its next update it checks that the coordinator's new checkpoint continues the one it last signed
and holds the statement that it made last, and answers with a co-signature. It learns of the log only sizes,
roots and its own entry. A co-signature leaves only after the new head is on the disk, so a crash can never
make a party sign two histories. What it cannot see: a state file restored from a backup signs again from the
older head.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import ForkDetected, IntegrityError, LedgerBroken
from fl_core.trust import database, merkle
from fl_core.trust.checkpoint import Checkpoint, Key, cosign, open_checkpoint
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import Identity

_FILE = database.FileType(
    word="fedseal witness file",
    application_id=0x46535754,  # "FSWT"
    version=1,
    schema="""
        CREATE TABLE heads (
            log TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL);
        CREATE TABLE statements (
            log TEXT, run TEXT, digest TEXT NOT NULL, PRIMARY KEY (log, run)) WITHOUT ROWID;
    """,
)


class StaleProof(IntegrityError):
    """The proof does not start from the head that this party remembers; ask again for one from `size`.

    `size` is 0 if it remembers none: then no proof is needed.
    """

    code = "stale"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"the proof does not start from the remembered size {size}")


@dataclass(frozen=True)
class OwnLeaf:
    """Proof that this party's last statement was ordered: entry bytes, place, inclusion proof."""

    entry: bytes
    seq: int
    proof: Sequence[bytes]


class Witness:
    """A party's memory of logs, in one SQLite file (0600). Several processes of the party may share it."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        if not path.exists():
            database.create(path, _FILE, mode=0o600, fill=lambda db: None)

    def remember_statement(self, run: str, statement: Statement) -> None:
        """Remember `statement` as the last one this party made in `run`; on the disk before this returns."""
        with self._transaction() as db:
            row = (statement.log, run, statement.digest)
            db.execute("INSERT OR REPLACE INTO statements VALUES (?, ?, ?)", row)

    def last(self, log: str) -> str | None:
        """Return the note last co-signed for `log`; with one that contradicts it, proof of a fork."""
        with self._transaction() as db:
            row = db.execute("SELECT note FROM heads WHERE log = ?", (log,)).fetchone()
        return row[0] if row else None

    def observe(
        self,
        note: str,
        log_card: Key,
        proof: Sequence[bytes],
        *,
        mine: OwnLeaf | None,
        start: int | None = None,
        run: str | None = None,
    ) -> str:
        """Check a checkpoint against what is remembered, move to it, and return the co-signature line.

        Parameters
        ----------
        note
            The coordinator's checkpoint note.
        log_card
            The coordinator's card, as pinned, or its key.
        proof
            Consistency proof from the remembered size to the note's; empty if none is remembered.
        mine
            This party's last statement in the run, if one was remembered.
        start
            The size from which `proof` begins, if the sender says so. Without it, a proof that does not fit
            the remembered size counts as stale unless it shows by itself that the log forked.
        run
            If given, a statement remembered for this run must be shown by `mine`.

        Raises
        ------
        StaleProof
            If the proof starts from another size, or the checkpoint is older than the remembered one.
        ForkDetected
            If the log does not continue what this party has signed.
        LedgerBroken
            If the party's own last statement is missing, altered, or not under the checkpoint.
        BadMessage, BadSignature
            If the note or the entry is malformed, or not the coordinator's.
        """
        head = open_checkpoint(note, log_card)
        with self._transaction() as db:
            _check_continues(_remembered(db, head.origin), head, proof, start)
            self._check_mine(db, head, mine, run)
            row = (head.origin, head.size, head.root, note)
            db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)", row)
        return cosign(self._identity, note)

    def _check_mine(self, db: sqlite3.Connection, head: Checkpoint, mine: OwnLeaf | None, run: str | None) -> None:
        if mine is None:
            if run is not None and _statement(db, head.origin, run) is not None:
                raise LedgerBroken(f"{head.origin}: my last statement in run {run} is not shown")
            return
        entry = Entry.decode(mine.entry)
        if run is not None and entry.run != run:
            raise LedgerBroken(f"{head.origin}: shows a statement of run {entry.run} for one of run {run}")
        if entry.statement.digest != _statement(db, head.origin, entry.run):
            raise LedgerBroken(f"{head.origin}: entry {mine.seq} is not my last statement in run {entry.run}")
        if entry.seq != mine.seq:
            raise LedgerBroken(f"{head.origin}: my entry {entry.seq} is shown at {mine.seq}")
        merkle.verify_inclusion(leaf=entry.leaf_hash, index=mine.seq, size=head.size, root=head.root, proof=mine.proof)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: it is also the lock against this party's other processes."""
        with (
            database.storage_errors(self._path),
            closing(database.connect(self._path, _FILE, writable=True)) as db,
            database.transaction(db),
        ):
            yield db


def _check_continues(known: Checkpoint | None, head: Checkpoint, proof: Sequence[bytes], start: int | None) -> None:
    """Raise unless `head` is the remembered head or continues it."""
    if head.size == 0:
        raise LedgerBroken(f"{head.origin}: a checkpoint over no entries")
    if known is None:
        if proof or start:  # the sender knows of an older head than this file does
            raise StaleProof(0)
        return
    if start == known.size > head.size:
        raise ForkDetected(f"{head.origin}: shrank from size {known.size} to {head.size}")
    older, newer = (known, head) if known.size <= head.size else (head, known)
    if start is None or start == older.size:
        _check_prefix(older, newer, proof, StaleProof(known.size) if start is None else None)
    if head.size < known.size or start not in (None, known.size):
        raise StaleProof(known.size)


def _check_prefix(older: Checkpoint, newer: Checkpoint, proof: Sequence[bytes], unfit: StaleProof | None) -> None:
    """Raise ForkDetected unless `newer` continues `older`; `unfit`, if given, if the proof shows neither."""
    try:
        merkle.verify_consistency(
            old_size=older.size, old_root=older.root, new_size=newer.size, new_root=newer.root, proof=proof
        )
    except ForkDetected:
        raise
    except LedgerBroken as error:
        if unfit is not None:
            raise unfit from None
        raise ForkDetected(f"{newer.origin}: does not prove its way from {older.size}: {error}") from None


def _remembered(db: sqlite3.Connection, log: str) -> Checkpoint | None:
    row = db.execute("SELECT size, root FROM heads WHERE log = ?", (log,)).fetchone()
    return Checkpoint(log, row[0], row[1]) if row else None


def _statement(db: sqlite3.Connection, log: str, run: str) -> str | None:
    row = db.execute("SELECT digest FROM statements WHERE log = ? AND run = ?", (log, run)).fetchone()
    return row[0] if row else None
