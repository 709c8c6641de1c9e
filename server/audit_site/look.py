"""What one look into a ledger's tables sees: pages of entries, text in them, checkpoints.

Nothing is believed of the tables: what they hold is bounded here, and an entry that is none is shown as what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical, merkle
from fl_core.trust.entry import MAX_ENTRY
from fl_core.trust.ledger_store import Store

WINDOW = 200_000  # entries that one search for text passes over
PAGE = 200  # of them that are in memory at once
_DIGEST = re.compile(r"[0-9a-f]{8,128}")


@dataclass(frozen=True)
class Dialect:
    """Where SQLite and PostgreSQL say it differently: a leaf's bytes, and whether it holds `?`."""

    leaf: str
    holds: str

    @property
    def columns(self) -> str:
        """Those of a `Row`."""
        return f"seq, run, kind, by, CASE WHEN length(leaf) <= {MAX_ENTRY} THEN {self.leaf} END"


SQLITE = Dialect("CAST(leaf AS BLOB)", "instr(leaf, ?)")
POSTGRES = Dialect("leaf", "position(? IN leaf) > 0")


@dataclass(frozen=True)
class Row:
    """An entry as the ledger has it; `leaf` is None where it is too long to be one."""

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


class Look:
    """What one connection sees; `store` reads one state."""

    def __init__(self, store: Store, dialect: Dialect) -> None:
        self.store, self._dialect = store, dialect

    def size(self) -> int:
        """Number of entries."""
        return int(self.store.all("SELECT COALESCE(MAX(seq) + 1, 0) FROM entries")[0][0])

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
        if any("\0" in value for value in wanted.values()):  # which PostgreSQL takes for no text
            return []
        where = "".join(f" AND {name} = ?" for name in wanted)
        bound, order = ("seq >= ?", "ASC") if before is None else ("seq < ?", "DESC")
        sql = f"SELECT {self._dialect.columns} FROM entries WHERE {bound}{where} ORDER BY seq {order} LIMIT ?"  # noqa: S608
        rows = self.store.all(sql, start if before is None else before, *wanted.values(), limit)
        found = [_row(row) for row in rows]
        return found if before is None else found[::-1]

    def outline(self, start: int, kinds: Sequence[str], *, limit: int) -> list[Row]:
        """The first `limit` entries from `start` on; of other kinds than these without their leaf."""
        marks = ", ".join("?" * len(kinds))
        sql = (
            f"SELECT seq, run, kind, by, CASE WHEN kind IN ({marks}) AND length(leaf) <= {MAX_ENTRY}"  # noqa: S608
            f" THEN {self._dialect.leaf} END FROM entries WHERE seq >= ? ORDER BY seq LIMIT ?"
        )
        return [_row(row) for row in self.store.all(sql, *kinds, start, limit)]

    def count(self, run: str, column: str) -> dict[str, int]:
        """How many entries a run has of each `kind`, or `by` each signer."""
        if column not in ("kind", "by"):
            raise ValueError(column)
        sql = f"SELECT {column}, COUNT(*) FROM entries WHERE run = ? GROUP BY {column} ORDER BY MIN(seq)"  # noqa: S608
        return {str(name): int(number) for name, number in self.store.all(sql, run)}

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
        for row in self._holding(b'"' + digest.encode(), low, before):
            for place, text in _texts(row.fields()):
                if not text.startswith(digest):
                    continue
                held = self.row(row.seq - 1) if place == "prev" else row
                if held is not None and low <= held.seq < before:
                    hits.append(Hit(held, "leaf hash" if place == "prev" else place, text))
            if len(hits) >= limit:
                return hits[:limit], row.seq
        return hits, low

    def _holding(self, text: bytes, low: int, high: int) -> Iterator[Row]:
        """The entries from `low` to `high` that hold these bytes, newest first."""
        sql = (
            f"SELECT {self._dialect.columns} FROM entries WHERE seq BETWEEN ? AND ? AND {self._dialect.holds}"  # noqa: S608
            " ORDER BY seq DESC LIMIT ?"
        )
        while found := [_row(row) for row in self.store.all(sql, low, high, text, PAGE)]:
            yield from found
            high = found[-1].seq - 1
            if len(found) < PAGE:
                return

    def checkpoints(self, *, before: int, limit: int) -> list[Stored]:
        """The largest ones below `before` entries, largest first."""
        has = self.store.has_table("outside_cosignatures")
        outside = "SELECT COUNT(*) FROM outside_cosignatures o WHERE o.size = p.size" if has else "0"
        sql = (
            "SELECT size, (SELECT COUNT(*) FROM cosignatures c WHERE c.size = p.size),"  # noqa: S608
            f" ({outside}) FROM checkpoints p WHERE size < ? ORDER BY size DESC LIMIT ?"
        )
        return [Stored(int(size), parties, other) for size, parties, other in self.store.all(sql, before, limit)]


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
