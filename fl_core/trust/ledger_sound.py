"""Whether a ledger may be moved: as an auditor's verifier finds it, with the tree of its entries and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fl_core.errors import LedgerBroken
from fl_core.trust import merkle
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import Progress
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.ledger_store import SqliteStore
from fl_core.trust.postgres_url import Place
from fl_core.trust.verify import NotALedger, verify_ledger

WORD_SECONDS = 5.0

Say = Callable[[str, int, int], None]
"""Told what is done (`verified`, `copied`, `compared`), how many entries or rows so far, and of how many."""


def head_of(place: Place) -> tuple[str, int, str]:
    """Return origin, size and root (hex) of a ledger whose tree has the root signed last; raises as `Ledger.open`."""
    with Ledger.open(place) as ledger:
        return ledger.log, ledger.size, ledger.root.hex()


def require_sound(
    source: Place, path: Path, rows: SqliteStore, say: Say, *, server: PostgresStore | None = None
) -> None:
    """Refuse a ledger that is broken; one that is short of its quorum is none.

    Parameters
    ----------
    source
        The ledger that is meant, for messages.
    path, rows
        The file that holds it, and the same file opened.
    server
        Where it comes from, if that is a server with a transaction under way.

    Raises
    ------
    LedgerBroken
        If the verifier calls it broken, or the stored tree is not that of its entries.
    """
    ((size,),) = rows.all("SELECT COUNT(*) FROM entries")
    try:
        report = verify_ledger(path, progress=with_word(server, lambda done: say("verified", done, size)))
    except (NotALedger, OSError) as error:
        raise LedgerBroken(f"{source}: {error}; a broken ledger is not moved") from None
    if report.status == 1:
        where = "" if report.first_bad is None else f"entry {report.first_bad}: "
        raise LedgerBroken(f"{source}: {where}{report.reason}; a broken ledger is not moved")
    _require_tree(source, rows, with_word(server, lambda done: None))


def with_word(server: PostgresStore | None, progress: Progress) -> Progress:
    """`progress`, and a word to the server every 5 s, which would end a transaction in which nothing is asked."""
    last = time.monotonic()

    def told(done: int) -> None:
        nonlocal last
        progress(done)
        if server is not None and time.monotonic() - last > WORD_SECONDS:
            server.all("SELECT 1")
            last = time.monotonic()

    return told


def _require_tree(source: Place, rows: SqliteStore, progress: Progress) -> None:
    """The verifier computes the tree; proofs are read from the stored one."""
    tree, nodes = merkle.Frontier(), 0
    for some in rows.stream("entries"):
        for row in some:
            for level, index, value in tree.append(merkle.leaf_hash(row[1])):
                nodes += 1
                if rows.all("SELECT hash FROM nodes WHERE level = ? AND idx = ?", level, index) != [(value,)]:
                    where = f"node {index} of level {level}"
                    raise LedgerBroken(f"{source}: {where} is not that of its entries; a broken ledger is not moved")
        progress(tree.size)
    if rows.all("SELECT COUNT(*) FROM nodes") != [(nodes,)]:
        raise LedgerBroken(f"{source}: holds nodes of no tree; a broken ledger is not moved")
