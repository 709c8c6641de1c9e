"""The board: what people and nodes say of data, grants and keys, as statements on the coordinator's ledger.

Everybody admitted reads it. Whoever posts signs; the coordinator can leave a statement out, but makes, alters and
widens none. Who may post what is asked at the door (`ACTIONS`, `fl_core.trust.roles`); here stands what a statement
must be to be taken: of these kinds, well formed, within limits, by somebody who has a say in it. The same statement
twice is taken once, so that a lost answer can be asked for again. Who has a profile has taken on the ledger what its
roles allow, and no more (`fl_core.trust.profile`).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fl_core.errors import BadMessage, FedsealError, UsageError, WrongKey
from fl_core.trust.catalog import Catalog
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.grant_statements import Approval, GrantRequest, read_body
from fl_core.trust.grants import Signer
from fl_core.trust.identity import Card, CardBook, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_store import Place
from fl_core.trust.members import MEMBER_KINDS, Members
from fl_core.trust.profile import Profile, check_later
from fl_core.trust.roles import Action, require
from fl_core.trust.rotation import MAX_SHOWN, Revoked, follow, new_card

READABLE = frozenset({"card", "profile", "dataset", "grant-request", "grant", "grant-end", "rotate", "revoke"})
KINDS = READABLE | {"use"}
ACTIONS: Mapping[str, Action] = MappingProxyType({
    "dataset": Action.PUBLISH_DATA,
    "grant-request": Action.REQUEST_GRANT,
    "grant": Action.DECIDE_GRANT,
    "grant-end": Action.DECIDE_GRANT,
    "use": Action.CONTRIBUTE_DATA,
})  # fmt: skip
"""What a signer's roles must allow; a card, a profile, a rotation and the end of one's own key are everybody's."""
MAX_STATEMENTS, MAX_STATEMENT = 16, 128 << 10
PAGE_ENTRIES, PAGE_BYTES = 500, 1 << 20


@dataclass(frozen=True)
class Posted:
    """A statement on the board, with its place in the log, and the card that its signer had then."""

    entry: Entry
    card: Card

    @property
    def statement(self) -> Statement:
        """What was said."""
        return self.entry.statement


class LedgerBoard:
    """The board of the ledger at `path`, which the coordinator's `identity` keeps; for several threads."""

    def __init__(self, path: Place, identity: Identity) -> None:
        self._path, self._identity, self._lock = path, identity, threading.Lock()
        self._forget()

    def post(self, statements: Sequence[Statement]) -> tuple[int, int]:
        """Order statements after the head, all or none, under a new checkpoint.

        Returns
        -------
        tuple[int, int]
            The log's size afterwards, and how many were new.

        Raises
        ------
        UsageError
            For more than `MAX_STATEMENTS`, or one of more than `MAX_STATEMENT` bytes.
        BadMessage, BadSignature, WrongKey
            For one that is not of `KINDS`, is malformed, does not verify, or whose signer has no say in it.
        RefusedError
            For one that the roles in its signer's profile do not allow.
        """
        check_sizes([statement.encode() for statement in statements])
        with self._lock, Ledger.open(self._path, self._identity) as ledger:
            self._catch_up(ledger)
            try:
                new = self._new(ledger, statements)
                if new:
                    ledger.commit(new)
            except BaseException:
                self._forget()  # it holds what was not ordered
                raise
            return ledger.size, len(new)

    def read(self, kinds: Collection[str], since: int = 0) -> tuple[list[Posted], int | None]:
        """Return statements of `READABLE` kinds from place `since` on, and where to go on; None at the end.

        Raises UsageError for other kinds.
        """
        wanted = check_kinds(kinds)
        found: list[Posted] = []
        size = 0
        with Ledger.open(self._path) as ledger:
            streams = [ledger.entries(since, run="", kind=kind) for kind in wanted]
            for entry in heapq.merge(*streams, key=lambda entry: entry.seq):
                size += len(entry.encode())
                if found and (len(found) == PAGE_ENTRIES or size > PAGE_BYTES):
                    return found, entry.seq
                found.append(Posted(entry, ledger.signer(entry)))
        return found, None

    def card(self, name: str) -> Card | None:
        """Return the card that `name` has on the ledger now, if any."""
        with Ledger.open(self._path, self._identity) as ledger:
            return ledger.card(name)

    def profile(self, name: str) -> Profile | None:
        """Return what the holder of the card that `name` has now says of itself, if anything."""
        with self._lock, Ledger.open(self._path, self._identity) as ledger:
            self._catch_up(ledger)
            return self._profile(ledger.card(name), {})

    def _forget(self) -> None:
        self._catalog, self._places, self._upto = Catalog(), set[str](), 0
        self._members = Members()

    def _catch_up(self, ledger: Ledger) -> None:
        """Take up what others have ordered since."""
        end = ledger.size
        for entry in ledger.entries(self._upto, end, run=""):
            if entry.kind not in KINDS:
                continue
            self._places.add(entry.statement.digest)
            if entry.kind in MEMBER_KINDS:
                self._members.add(entry, ledger.signer(entry))
            elif entry.kind == "dataset":
                try:
                    self._catalog.add(entry.statement, ledger.signer(entry))
                except FedsealError:  # it hides no good one; readers leave it out as well
                    continue
        self._upto = end

    def _new(self, ledger: Ledger, statements: Iterable[Statement]) -> list[Statement]:
        """Check each after those before it; return those that are not there yet."""
        new: dict[str, Statement] = {}
        cards: dict[str, Card | None] = {}
        profiles: dict[str, Profile] = {}
        for statement in statements:
            if statement.kind not in KINDS:
                raise BadMessage(f"{statement.by}: a {statement.kind} statement; allowed: {', '.join(sorted(KINDS))}")
            if statement.log != ledger.log:
                raise BadMessage(f"{statement.by}: a statement for {statement.log} in {ledger.log}")
            card = cards[statement.by] if statement.by in cards else ledger.card(statement.by)
            if statement.digest in new or self._is_there(ledger, statement, card):
                continue
            self._check(statement, card, cards, profiles)
            new[statement.digest] = statement
        return list(new.values())

    def _is_there(self, ledger: Ledger, statement: Statement, card: Card | None) -> bool:
        if statement.kind == "card":
            return card is not None and statement.shown_card() == card
        if statement.kind == "use":
            same = (entry.statement for entry in ledger.entries(run=statement.run, kind="use"))
            return any(other.digest == statement.digest for other in same)
        return statement.digest in self._places

    def _profile(self, card: Card | None, posted: Mapping[str, Profile]) -> Profile | None:
        """The profile that goes with a card; `posted` are those that are not ordered yet, by name."""
        if card is None:
            return None
        member = self._members.get(card.name)
        profile = posted.get(card.name, member.profile if member is not None else None)
        return profile if profile is not None and profile.card == card.fingerprint else None

    def _check(
        self, statement: Statement, card: Card | None, cards: dict[str, Card | None], profiles: dict[str, Profile]
    ) -> None:
        """Check what one statement says; `cards` and `profiles` are those changed by the statements before it."""
        if statement.run and statement.kind != "use":
            raise BadMessage(f"{statement.by}: a {statement.kind} statement of a run; allowed: outside any run")
        if statement.kind == "card":
            cards[statement.by] = statement.shown_card()
            return
        if card is None:
            raise WrongKey(f"{statement.by}: has no card on this ledger, or it was revoked")
        said, action = self._profile(card, profiles), ACTIONS.get(statement.kind)
        if said is not None and action is not None:
            require(statement.by, said.held, action)
        if statement.kind == "profile":
            profile = Profile.read(statement, card)
            check_later(profile, said, statement.by)
            profiles[statement.by] = profile
        elif statement.kind == "dataset":
            self._catalog.add(statement, card)
        elif statement.kind == "rotate":
            cards[statement.by] = new_card(statement, card)
        elif statement.kind == "revoke":
            cards[Revoked.read(statement).name] = None
        else:
            check_say(statement, card)


def check_say(statement: Statement, card: Card) -> None:
    """Raise BadMessage unless a statement about grants is well formed and by somebody who has a say in it.

    A request is its grantee's, an approval of somebody of its chain, each under the key that it names.
    """
    body, signer = read_body(statement), Signer.of(card)
    allowed: tuple[Signer, ...] = (signer,)
    if isinstance(body, GrantRequest):
        allowed = (body.terms.grantee,)
    elif isinstance(body, Approval):
        allowed = body.grant.approvals
    if signer not in allowed:
        names = ", ".join(one.name for one in allowed)
        raise BadMessage(f"{statement.kind} by {statement.by} under a key that has no say; allowed: {names}")


def check_sizes(statements: Sequence[bytes]) -> None:
    """Raise UsageError for too many statements in one go, none, or one that is too large."""
    if not 1 <= len(statements) <= MAX_STATEMENTS:
        raise UsageError(f"{len(statements)} statements in one go; allowed: 1 to {MAX_STATEMENTS}")
    if (largest := max(map(len, statements))) > MAX_STATEMENT:
        raise UsageError(f"a statement of {largest} bytes; allowed: {MAX_STATEMENT}")


def check_kinds(kinds: Collection[str]) -> list[str]:
    """Return the kinds to read, each once; raises UsageError for none, or one that the board does not show."""
    wanted = sorted(set(kinds))
    if not wanted or not set(wanted) <= READABLE:
        raise UsageError(f"kinds {', '.join(wanted) or 'none':.80}; allowed: {', '.join(sorted(READABLE))}")
    return wanted


def rotations_of(ledger: Ledger, names: Collection[str]) -> list[dict[str, object]]:
    """Return the rotations of these names in order, for `fl_core.trust.rotation.follow_shown`; the newest, if many."""
    turns = [entry.statement for entry in ledger.entries(run="", kind="rotate") if entry.by in names]
    return [statement.to_dict() for statement in turns[-MAX_SHOWN:]]


def settle(books: Iterable[CardBook], statements: Iterable[Statement], board: LedgerBoard, *, log: str) -> list[str]:
    """Bring pinned cards in line with rotations and revocations that the board has taken; return who is revoked now.

    To be called again does no harm: a crash in between is made good by posting the same statements again.
    """
    revoked = []
    changes = [statement for statement in statements if statement.kind in ("rotate", "revoke")]
    for statement in changes:
        if statement.kind == "rotate":
            for book in books:
                follow(book, [statement], log=log)
            continue
        body = Revoked.read(statement)
        for book in books:
            if (pinned := book.get(body.name)) is not None and pinned.fingerprint == body.card:
                book.forget(pinned)
        if board.card(body.name) is None:
            revoked.append(body.name)
    return revoked
