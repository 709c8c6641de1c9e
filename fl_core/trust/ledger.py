"""The coordinator's ledger: append-only entries, tree nodes, checkpoints, co-signatures, in SQLite or PostgreSQL.

The writing order is the design. One transaction (SQLite: BEGIN IMMEDIATE, WAL, synchronous=FULL; PostgreSQL: see
`fl_core.trust.ledger_postgres`) reads the head, verifies the statements, orders them after it, and stores entries,
tree nodes and the signed checkpoint together; only when the disk has them does `commit` return the note. So nobody
ever holds a checkpoint over entries that a crash could lose:

================================  ==========================================================================
killed or powered off             what is there afterwards
================================  ==========================================================================
while a new ledger is made        nothing: a file is linked to its name when complete
before COMMIT is synced           the ledger as before; nobody was told anything; statements are sent again
after the sync, before answering  entries and checkpoint; the caller finds them with `entries(run=…)`
before co-signatures are stored   entries and checkpoint; short of quorum until a co-signature comes again
while two processes append        one after the other; the second reads the head that the first left
================================  ==========================================================================

The ledger admits only what the auditor's verifier accepts: statements for this log, signed under a card that
an earlier entry shows, one card a name and one name a key; a `rotate` changes the card of a name, a `revoke` ends
it (`fl_core.trust.rotation`). Statements are verified here, not trusted from the caller; and nobody says in a run what
the roles on its own card do not allow (`fl_core.trust.profile`).
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from fl_core.errors import BadMessage, BadSignature, LedgerBroken, UsageError, WrongKey
from fl_core.trust import canonical, merkle
from fl_core.trust.checkpoint import Checkpoint, log_id, open_checkpoint, sign_checkpoint, verify_cosignature
from fl_core.trust.entry import KINDS, NO_PREVIOUS, Entry, Statement, check_roster
from fl_core.trust.identity import Card, Identity
from fl_core.trust.ledger_store import Place, Store, open_store
from fl_core.trust.outside import VerifierKey
from fl_core.trust.postgres_url import PostgresUrl
from fl_core.trust.profile import IN_RUNS, Claims
from fl_core.trust.profile import KIND as PROFILE
from fl_core.trust.rotation import Revoked, new_card

_PAGE = 500
THREADED = 64  # statements from which their signatures are checked on threads


class Ledger:
    """An open ledger.  Several threads and processes may use one place; carry none across a fork."""

    def __init__(self, store: Store, identity: Identity | None) -> None:
        self._store = store
        self._path = store.place
        self._identity = identity
        self._lock = threading.RLock()
        self._read_cards: dict[bytes, Card] = {}  # by their bytes: to read one is to verify a signature
        self._claims = Claims()

    @classmethod
    def open(cls, path: Place, identity: Identity | None = None) -> Ledger:
        """Open a ledger: read-only, or with the coordinator's `identity` to write, making it if needed.

        A new ledger starts with a `log` entry, which shows the coordinator's card, and a checkpoint over it.

        Parameters
        ----------
        path
            A SQLite file, or a schema in PostgreSQL.

        Raises
        ------
        UsageError
            If there is no ledger, it is of another type or version, or the server lets nobody in.
        WrongKey
            If the ledger is another coordinator's.
        LedgerBroken
            If the stored tree no longer has the root that was signed last.
        """
        place = path if isinstance(path, PostgresUrl) else Path(path)
        fill = None if identity is None else lambda store: cls(store, identity)._begin()
        ledger = cls(open_store(place, writable=identity is not None, fill=fill), identity)
        try:
            ledger._check_opened()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file or the connection."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- the head

    @cached_property
    def coordinator(self) -> Card:
        """The card of the coordinator that keeps this log."""
        return self._entry(0).statement.shown_card() or self._missing("the coordinator's card")

    @cached_property
    def log(self) -> str:
        """Origin of this log, `fedseal/…`."""
        return log_id(self.coordinator)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self._one("SELECT COALESCE(MAX(seq) + 1, 0) FROM entries"))

    @property
    def root(self) -> bytes:
        """Root of the tree over all entries, 32 bytes."""
        with self._lock:
            return self._frontier(self.size).root()

    # ---- writing

    def append(self, statements: Iterable[Statement]) -> list[Entry]:
        """Order `statements` after the head in one transaction, all or none, and return their entries.

        Raises
        ------
        BadMessage
            For a statement of another log, a second `log` statement, or a card that is not its signer's own.
        BadSignature
            If a statement does not verify.
        WrongKey
            If the signer shows no card before, another card than before, or another party's key.
        RefusedError
            If the roles on the signer's own card do not allow it.
        """
        with self._writing():
            return self._append(list(statements))

    def commit(self, statements: Iterable[Statement]) -> tuple[list[Entry], str]:
        """Do `append` and sign a checkpoint over the new head in the same transaction; return both."""
        with self._writing():
            return self._append(list(statements)), self._sign_head()

    def checkpoint(self) -> str:
        """Return the checkpoint note of the current head, signing it if this process may and nobody has."""
        if self._identity is None:
            size = self.size
            note = self.checkpoint_at(size)
            if note is None:
                raise UsageError(f"{self._path}: the coordinator has not signed all {size} entries yet")
            return note
        with self._writing():
            return self._sign_head()

    def add_cosignatures(self, size: int, lines: Mapping[str, str]) -> None:
        """Store co-signature lines, keyed by party name, of the checkpoint over `size` entries: all, or none.

        A party's first line stays; a repeated one is ignored.

        Raises
        ------
        UsageError
            If there is no checkpoint over `size` entries.
        WrongKey
            If a party shows no card in those entries.
        BadMessage, BadSignature
            If a line is malformed or does not verify; the message names the party.
        """
        with self._writing():
            note = self.checkpoint_at(size)
            if note is None:
                raise UsageError(f"{self._path}: no checkpoint over {size} entries")
            for name, line in lines.items():
                card = self._card_before(name, size)
                if card is None:
                    raise WrongKey(f"{name}: co-signs, but shows no card in the first {size} entries")
                if self.card(name) is None:
                    self._no_card(name)
                verify_cosignature(note, line, card)
            rows = [(size, name, line) for name, line in lines.items()]
            self._store.insert("cosignatures", rows, ignore=True)

    def add_outside(self, size: int, key: VerifierKey, line: str) -> None:
        """Store the co-signature line of a witness from outside, who shows no card, for the checkpoint over `size`.

        Raises
        ------
        UsageError
            If there is no checkpoint over `size` entries.
        BadMessage, BadSignature
            If the line is malformed or does not verify.
        """
        with self._writing():
            note = self.checkpoint_at(size)
            if note is None:
                raise UsageError(f"{self._path}: no checkpoint over {size} entries")
            verify_cosignature(note, line, key)
            self._store.make_table("outside_cosignatures")
            self._store.insert("outside_cosignatures", [(size, key.text, line)], ignore=True)

    # ---- reading

    def entries(
        self, start: int = 0, stop: int | None = None, *, run: str | None = None, kind: str | None = None
    ) -> Iterator[Entry]:
        """Iterate over the entries start … stop-1 (by default to the present head), of one run or kind."""
        stop = self.size if stop is None else stop
        query = "SELECT seq, leaf FROM entries WHERE seq >= ? AND seq < ?"
        filters = {column: value for column, value in (("run", run), ("kind", kind)) if value is not None}
        query += "".join(f" AND {column} = ?" for column in filters) + f" ORDER BY seq LIMIT {_PAGE}"
        while True:
            rows = self._all(query, start, stop, *filters.values())
            for _, leaf in rows:
                yield Entry.decode(leaf)
            if len(rows) < _PAGE:
                return
            start = rows[-1][0] + 1

    def card(self, name: str, size: int | None = None) -> Card | None:
        """Return the card of `name` after the first `size` entries (all by default): none before it shows one, none
        after its revocation.
        """
        return self._card_before(name, canonical.MAX_INT if size is None else size)

    def signer(self, entry: Entry) -> Card:
        """Return the card under which an entry's statement was admitted; raises LedgerBroken if there is none."""
        shows = entry.kind in ("log", "card")
        card = self._card_before(entry.by, entry.seq + 1 if shows else entry.seq)
        return card or self._missing(f"the card of {entry.by} at entry {entry.seq}")

    def inclusion(self, seq: int, size: int) -> list[bytes]:
        """Return the inclusion proof of entry `seq` in the first `size`; UsageError out of range."""
        self._check_size(size)
        return merkle.inclusion_proof(seq, size, self._node)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Return the proof that the log of `new` entries extends that of `old`; UsageError out of range."""
        self._check_size(new)
        return merkle.consistency_proof(old, new, self._node)

    def checkpoint_at(self, size: int) -> str | None:
        """Return the checkpoint note over exactly `size` entries, if there is one."""
        rows = self._all("SELECT note FROM checkpoints WHERE size = ?", size)
        return rows[0][0] if rows else None

    def last_checkpoint(self, min_cosignatures: int = 0) -> str | None:
        """Return the largest checkpoint note that has at least `min_cosignatures`, if there is one."""
        rows = self._all(
            "SELECT note FROM checkpoints p WHERE ? <="
            " (SELECT COUNT(*) FROM cosignatures c WHERE c.size = p.size) ORDER BY size DESC LIMIT 1",
            min_cosignatures,
        )
        return rows[0][0] if rows else None

    def checkpoint_sizes(self, start: int = 0) -> list[int]:
        """Return the sizes ≥ `start` over which there are checkpoints, ascending."""
        rows = self._all("SELECT size FROM checkpoints WHERE size >= ? ORDER BY size", start)
        return [size for (size,) in rows]

    def cosignatures(self, size: int) -> dict[str, str]:
        """Return the stored co-signature lines of the checkpoint over `size` entries by party name."""
        return dict(self._all("SELECT name, line FROM cosignatures WHERE size = ? ORDER BY name", size))

    def outside_cosignatures(self, size: int) -> dict[str, str]:
        """Return the lines that witnesses from outside gave for the checkpoint over `size` entries by verifier key."""
        if not self._has("outside_cosignatures"):
            return {}
        query = "SELECT key, line FROM outside_cosignatures WHERE size = ? ORDER BY key"
        return dict(self._all(query, size))

    # ---- one transaction

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._identity is None:
            raise UsageError(f"{self._path}: opened read-only")
        with self._lock, self._store.transaction():
            yield

    def _begin(self) -> None:
        """Write the first entry and its checkpoint, in a transaction."""
        identity = self._coordinator_identity()
        body = {"card": identity.card.to_dict()}
        self._append([Statement.make(identity, log=log_id(identity.card), kind="log", run="", body=body)])
        self._sign_head()

    def _append(self, statements: list[Statement]) -> list[Entry]:
        frontier = self._frontier(self.size)
        origin = log_id(self._coordinator_identity().card)
        now = time.time_ns() // 1_000_000
        prev = self._node(0, frontier.size - 1).hex() if frontier.size else NO_PREVIOUS
        cards: dict[str, Card] = {}
        if any(statement.kind in IN_RUNS for statement in statements):
            size = self.size
            self._claims.catch_up(self.entries(self._claims.size, size, run="", kind=PROFILE), size, self.signer)
        entries: list[Entry] = []
        nodes: list[tuple[int, int, bytes]] = []
        signers: list[Card] = []
        for statement in statements:
            entry = Entry(statement, seq=frontier.size, prev=prev, t=now)
            signers.append(self._admit(entry, origin, cards))
            nodes += frontier.append(entry.leaf_hash)
            prev = entry.leaf_hash.hex()
            entries.append(entry)
        self._check_signatures(statements, signers)
        rows = [(entry.seq, entry.encode(), entry.run, entry.kind, entry.by) for entry in entries]
        self._store.insert("entries", rows)
        self._store.insert("nodes", nodes)
        return entries

    def _check_signatures(self, statements: list[Statement], signers: list[Card]) -> None:
        """Check all; a large group on threads, since `cryptography` works outside the interpreter's lock."""
        if len(statements) < THREADED:
            list(map(self._check_signature, statements, signers))
            return
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(self._check_signature, statements, signers))

    def _admit(self, entry: Entry, origin: str, cards: dict[str, Card]) -> Card:
        """The signer's card; raises unless the verifier will accept the entry here.  `cards`: of this transaction."""
        statement, by = entry.statement, entry.by
        if statement.log != origin:
            raise BadMessage(f"{by}: a statement for {statement.log} in {origin}")
        if statement.kind not in KINDS:
            raise BadMessage(f"{by}: a {statement.kind} statement belongs on no ledger")
        if (statement.kind == "log") != (entry.seq == 0):
            raise BadMessage(f"{by}: a ledger has one log statement, its first entry")
        card = cards.get(by) or self.card(by)
        if statement.kind in ("rotate", "revoke"):
            return self._admit_change(entry, card or self._no_card(by), cards)
        shown = statement.shown_card()
        if shown is not None:
            if card is not None and card != shown:
                raise WrongKey(f"{by}: shows card {shown.fingerprint[:16]}…, before {card.fingerprint[:16]}…")
            if card is None:
                self._add_card(shown, entry.seq)
                card = shown
        card = card or self._no_card(by)
        cards[by] = card
        if statement.kind == "roster" and card == self._coordinator_identity().card:
            check_roster(statement.body)
        self._claims.check(statement, card)
        return card

    def _check_signature(self, statement: Statement, card: Card) -> None:
        identity = self._coordinator_identity()
        if card != identity.card:
            statement.verify(card)
        # Ed25519 is deterministic: to sign once more takes a third of the time of verifying
        elif not hmac.compare_digest(identity.sign(statement.signed_bytes()).hex(), statement.sig):
            raise BadSignature(f"{card.name}: the statement does not verify")

    def _admit_change(self, entry: Entry, signer: Card, cards: dict[str, Card]) -> Card:
        """Take up a rotation or a revocation and return its signer's card; raises unless the verifier will."""
        statement, coordinator = entry.statement, self._coordinator_identity().card
        if statement.kind == "rotate":
            name, card = statement.by, new_card(statement, signer)
        else:
            body = Revoked.read(statement)
            name, card = body.name, None
            if statement.by not in (name, coordinator.name):
                raise WrongKey(f"{statement.by}: revokes the card of {name}; allowed: {name} or {coordinator.name}")
            held = signer if name == statement.by else cards.get(name) or self.card(name) or self._no_card(name)
            if held.fingerprint != body.card:
                raise WrongKey(f"{statement.by}: revokes card {body.card[:16]}…; {name} has {held.fingerprint[:16]}…")
        if name == coordinator.name:
            raise WrongKey(f"{name}: its key is the log's identity; allowed: another ledger under another key")
        self._end_card(name, entry.seq)
        cards.pop(name, None)
        if card is not None:
            self._add_card(card, entry.seq)
        return signer

    def _end_card(self, name: str, seq: int) -> None:
        self._store.make_table("past_cards")
        held = self._all("SELECT key, name, seq, card FROM cards WHERE name = ?", name)
        self._store.insert("past_cards", [(key, name, since, seq, card) for key, name, since, card in held])
        self._store.end_card(name)

    def _no_card(self, name: str) -> NoReturn:
        if self._past(name):
            raise WrongKey(f"{name}: its card was revoked; allowed: the operator registers a new one")
        raise WrongKey(f"{name}: shows no card on this ledger")

    def _add_card(self, card: Card, seq: int) -> None:
        owner = self._all("SELECT name FROM cards WHERE key = ?", card.ed25519)
        if owner:  # one key under two names would count twice in a quorum
            raise WrongKey(f"{card.name}: shows the key of {owner[0][0]}")
        if self._has("past_cards") and self._all("SELECT 1 FROM past_cards WHERE key = ?", card.ed25519):
            raise WrongKey(f"{card.name}: shows a key that was rotated or revoked; allowed: a new one")
        fields = canonical.encode(card.to_dict())
        self._store.insert("cards", [(card.name, card.ed25519, seq, fields)])

    def _sign_head(self) -> str:
        size = self.size
        note = self.checkpoint_at(size)
        if note is None:
            identity = self._coordinator_identity()
            head = Checkpoint(log_id(identity.card), size, self._frontier(size).root())
            note = sign_checkpoint(identity, head)
            self._store.insert("checkpoints", [(size, note)])
        return note

    # ---- helpers

    def _check_opened(self) -> None:
        """Refuse another coordinator's file, and one whose tree does not have the root signed last."""
        coordinator = self.coordinator
        if self._identity is not None and self._identity.card != coordinator:
            raise WrongKey(f"{self._path}: the ledger of {coordinator.name}, key {coordinator.ed25519[:16]}…")
        head = open_checkpoint(self.last_checkpoint() or self._missing("its checkpoints"), coordinator)
        if head.size > self.size or head.root != self._frontier(head.size).root():
            raise LedgerBroken(f"{self._path}: the first {head.size} entries are not those that were signed")

    def _check_size(self, size: int) -> None:
        if size > self.size:
            raise UsageError(f"{self._path}: {self.size} entries, asked about {size}")

    def _frontier(self, size: int) -> merkle.Frontier:
        return merkle.Frontier.load(size, self._node)

    def _node(self, level: int, index: int) -> bytes:
        if level == 0:
            rows = self._all("SELECT leaf FROM entries WHERE seq = ?", index)
            return merkle.leaf_hash(rows[0][0] if rows else self._missing(f"entry {index}"))
        rows = self._all("SELECT hash FROM nodes WHERE level = ? AND idx = ?", level, index)
        return rows[0][0] if rows else self._missing(f"node {index} of level {level}")

    def _entry(self, seq: int) -> Entry:
        return next(self.entries(seq, seq + 1), None) or self._missing(f"entry {seq}")

    def _card_before(self, name: str, size: int) -> Card | None:
        """Return the card that holds for `name` after the first `size` entries."""
        found = self._all("SELECT card FROM cards WHERE name = ? AND seq < ?", name, size)
        if not found:
            found = [(card,) for seq, until, card in self._past(name) if seq < size <= until]
        return self._read_card(found[0][0]) if found else None

    def _read_card(self, data: bytes) -> Card:
        if data not in self._read_cards:
            self._read_cards[data] = Card.from_dict(canonical.decode(data))
        return self._read_cards[data]

    def _past(self, name: str) -> list[tuple[int, int, bytes]]:
        """The cards that `name` had before, each with the entry that brought it and the last that it holds for."""
        if not self._has("past_cards"):
            return []
        return self._all("SELECT seq, until, card FROM past_cards WHERE name = ?", name)

    def _has(self, table: str) -> bool:
        with self._lock:
            return self._store.has_table(table)

    def _coordinator_identity(self) -> Identity:
        if self._identity is None:
            raise UsageError(f"{self._path}: opened read-only")
        return self._identity

    def _missing(self, what: str) -> NoReturn:
        raise LedgerBroken(f"{self._path}: {what} is missing")

    def _one(self, query: str) -> int:
        return int(self._all(query)[0][0])

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._store.all(query, *values)
