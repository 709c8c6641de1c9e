"""The board as people and nodes see it: post signed statements about data, grants and keys, and read others'.

Two ways to it: the ledger of this home, where it keeps one, and the door of the coordinator that it holds a pass to.
What comes through a door is checked here again: each statement's signature, and that its signer's card is of the line
that is pinned, where this home pins cards. A coordinator can so leave a statement out, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from clients.door import DoorClient
from fl_core.errors import BadMessage, FedsealError, IntegrityError, JobFailed, WrongKey
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust import board as ledger_board
from fl_core.trust import canonical
from fl_core.trust.board import MAX_STATEMENTS, LedgerBoard, Posted, check_kinds, settle
from fl_core.trust.catalog import Catalog
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import MAX_ENTRY, Entry, Statement
from fl_core.trust.identity import Card, CardBook, Identity
from fl_core.trust.rotation import Followed, Revoked, rotated
from fl_core.wire.door_pb2 import BoardReply

MAX_READ = 256 << 20  # bytes that a coordinator may answer with in all
__all__ = ["Board", "DoorBoard", "LocalBoard", "Posted", "introduce", "read_catalog", "revoked_keys"]


class Board(Protocol):
    """Where statements about data, grants and keys are said and read."""

    @property
    def log(self) -> str:
        """Origin of the ledger on which they are."""
        ...

    def post(self, statements: Sequence[Statement]) -> tuple[int, int]:
        """Post statements, each `MAX_STATEMENTS` all or none; return the log's size and how many were new."""
        ...

    def read(self, kinds: Collection[str], since: int = 0) -> list[Posted]:
        """Return all statements of these kinds from place `since` on, in order."""
        ...


class LocalBoard:
    """The board of a home that keeps the ledger itself."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.coordinator = Identity.load_or_create(home.coordinator, COORDINATOR)
        self._board = LedgerBoard(home.ledger, self.coordinator)

    @property
    def log(self) -> str:
        """Origin of this home's ledger."""
        return log_id(self.coordinator.card)

    def post(self, statements: Sequence[Statement]) -> tuple[int, int]:
        """Post; cards pinned anywhere in this home follow rotations and revocations."""
        size = added = 0
        for part in _parts(statements):
            size, new = self._board.post(part)
            added += new
            books = [CardBook(path) for path in self._home.path.glob("parties/*/cards.json")]
            settle([CardBook(self._home.coordinator / "cards.json"), *books], part, self._board, log=self.log)
        return size, added

    def read(self, kinds: Collection[str], since: int = 0) -> list[Posted]:
        """Read it from the ledger; empty where there is none yet."""
        check_kinds(kinds)
        found: list[Posted] = []
        at: int | None = since if self._home.ledger.exists() else None
        while at is not None:
            page, at = self._board.read(kinds, at)
            found += page
        return found

    def card(self, name: str) -> Card | None:
        """Return the card that `name` has on the ledger now, if any."""
        return self._board.card(name)


class DoorBoard:
    """The board behind a coordinator's door.

    Parameters
    ----------
    coordinator
        Its card, as the pass shows it.
    book
        Cards that this home has pinned; what is met first is pinned, rotations that are shown are followed.

    Attributes
    ----------
    refused
        What was left out in reading, in words.
    """

    def __init__(self, door: DoorClient, coordinator: Card, book: CardBook | None) -> None:
        self._door, self._coordinator, self._book = door, coordinator, book
        self.refused: list[str] = []

    @property
    def log(self) -> str:
        """Origin of the coordinator's ledger."""
        return log_id(self._coordinator)

    def post(self, statements: Sequence[Statement]) -> tuple[int, int]:
        """Post through the door; raises RefusedError where a role is missing."""
        size = added = 0
        for part in _parts(statements):
            encoded = [statement.encode() for statement in part]
            ledger_board.check_sizes(encoded)
            size, new = self._door.post(encoded)
            added += new
        return size, added

    def read(self, kinds: Collection[str], since: int = 0) -> list[Posted]:
        """Read; a statement whose signer's card is not of the pinned line is left out and named in `refused`.

        Raises
        ------
        IntegrityError
            If what comes is malformed, not signed, of another log, or not what was asked for.
        JobFailed
            If it is more than a board can hold.
        """
        wanted = check_kinds(kinds)
        changes = list(self._pages(["revoke", "rotate"], 0))
        rotations = [(posted.statement, posted.card) for posted in changes if posted.entry.kind == "rotate"]
        ended = {self._revoked(posted) for posted in changes if posted.entry.kind == "revoke"}
        followed = Followed(self._book, rotations, log=self.log, ended=ended - {""})
        found = []
        for posted in self._pages(wanted, since):
            try:
                if posted.card.name != COORDINATOR:
                    followed.accept(posted.card)
                elif posted.card != self._coordinator:  # as the pass shows it
                    raise WrongKey(f"{COORDINATOR}: another card than the pass shows")
            except WrongKey as error:
                self.refused.append(str(error))
                continue
            found.append(posted)
        return found

    def _revoked(self, posted: Posted) -> str:
        """The card that a statement ends: the coordinator's word, or that of the key itself; empty for another."""
        try:
            body = Revoked.read(posted.statement)
        except BadMessage:
            return ""
        return body.card if posted.card.fingerprint == body.card or posted.card == self._coordinator else ""

    def _pages(self, kinds: list[str], since: int) -> Iterator[Posted]:
        at: int | None = since
        size = 0
        while at is not None:
            page = self._door.board(kinds, at)
            size += page.ByteSize()
            if size > MAX_READ:
                raise JobFailed(f"coordinator {self._door.address}: a board of more than {MAX_READ} bytes")
            start = at
            for posted in _read_page(page, self.log):
                if posted.entry.kind not in kinds or posted.entry.seq < at:
                    raise WrongKey("the board: an entry that was not asked for, or out of order")
                at = posted.entry.seq + 1
                yield posted
            following = page.next if page.HasField("next") else None
            if following is not None and (following < at or following <= start):
                raise WrongKey("the board: a page that does not go on")
            at = following


def _read_page(page: BoardReply, log: str) -> Iterator[Posted]:
    if len(page.entries) != len(page.cards):
        raise WrongKey("the board: entries without their signers' cards")
    for data, shown in zip(page.entries, page.cards, strict=True):
        card = Card.from_dict(canonical.decode(shown, max_bytes=4096))
        entry = Entry.from_dict(canonical.decode(data, max_bytes=MAX_ENTRY))
        entry.statement.verify(card)
        if entry.log != log:
            raise WrongKey(f"the board: a statement for {entry.log} in {log}")
        yield Posted(entry, card)


def _parts(statements: Sequence[Statement]) -> Iterator[Sequence[Statement]]:
    for start in range(0, len(statements), MAX_STATEMENTS):
        yield statements[start : start + MAX_STATEMENTS]


def introduce(identity: Identity, *, log: str) -> Statement:
    """Return the statement that shows an identity's card; posted once more it changes nothing."""
    return Statement.make(identity, log=log, kind="card", run="", body={"card": identity.card.to_dict()})


def read_catalog(board: Board) -> tuple[Catalog, tuple[str, ...]]:
    """Return the catalog that a board comes to, and in words what was left out; each under its signer's card then."""
    catalog, refused = Catalog(), []
    for posted in board.read(["dataset"]):
        try:
            catalog.add(posted.statement, posted.card)
        except FedsealError as error:
            refused.append(f"entry {posted.entry.seq} of {posted.entry.by}: {error}")
    return catalog, tuple(refused)


def revoked_keys(board: Board, *, tell: Callable[[str], None] = lambda _: None) -> frozenset[str]:
    """Return the fingerprints of cards that count no more: revoked, or rotated away from with both signatures.

    `tell` gets a line for what is on the board and is neither.
    """
    ended = set()
    for posted in board.read(["rotate", "revoke"]):
        try:
            if posted.entry.kind == "revoke":
                body = Revoked.read(posted.statement)
                if posted.entry.by not in (body.name, COORDINATOR):
                    raise WrongKey(f"{posted.entry.by}: revokes the card of {body.name}")
                ended.add(body.card)
            else:
                rotated(posted.statement, posted.card, log=board.log)
                ended.add(posted.card.fingerprint)
        except IntegrityError as error:
            tell(f"entry {posted.entry.seq}: {error}")
    return frozenset(ended)
