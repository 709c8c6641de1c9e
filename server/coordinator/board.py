"""The board at the door: who may put what on it, how much, and what the coordinator's registers make of it.

A statement is taken if its signer's roles allow its kind, and those of whoever hands it in. Signers are people with a
pass, and the parties of registered nodes, which are data owners and what else they were registered as. A profile claims
no more than these registers give; what it leaves out, its signer may not do either. A card is taken from the person of
that name, whose certificate the call shows, or where it is the card of the registered node; it is pinned then, and
changes by a rotation only. A revocation takes the pass back and the node out: both are the operator's to give again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fl_core.errors import JobFailed, RefusedError, UsageError, WrongKey
from fl_core.messages import COORDINATOR
from fl_core.trust import canonical, roles
from fl_core.trust.board import ACTIONS, KINDS, LedgerBoard, Posted, check_kinds, check_sizes, settle
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card, CardBook
from fl_core.trust.profile import Profile
from fl_core.trust.roles import Action, Role
from fl_core.trust.rotation import Revoked
from server.coordinator.folder import CoordinatorFolder
from server.coordinator.nodes import ENABLED, Node
from server.coordinator.rights import MissingRole, require_role
from server.coordinator.submission import Caller

A_MINUTE = 60  # statements of one person
Note = Callable[[str, str, dict[str, Any]], None]


class TooFast(JobFailed):
    """Somebody posts more than a person does."""


class PublicBoard:
    """The board of one coordinator.

    Parameters
    ----------
    note : puts a statement of the coordinator on the ledger: kind, run, body.
    """

    def __init__(self, folder: CoordinatorFolder, note: Note) -> None:
        self._folder, self._note = folder, note
        self._identity = folder.identity()
        self._log = log_id(self._identity.card)
        self._board = LedgerBoard(folder.home.ledger, self._identity)
        self._rate, self._lock = Rate(A_MINUTE, 60.0), threading.Lock()

    def post(self, data: Sequence[bytes], caller: Caller) -> tuple[int, int]:
        """Take statements, all or none; returns the log's size and how many were new.

        Raises
        ------
        UsageError
            For too many, too large or malformed ones, or other kinds.
        TooFast
            For more than `A_MINUTE` of one person in a minute.
        MissingRole
            Where the signer's or the caller's roles do not allow a kind, or a profile claims others.
        IntegrityError
            For what does not verify, or is by somebody who has no say in it.
        """
        check_sizes(data)
        self._rate.take(caller.name, len(data))
        before = _Before({}, {})
        statements = [self._taken(Statement.decode(item), caller, before) for item in data]
        with self._lock:  # a card is looked up, ordered and pinned in one go
            known = {s.by for s in statements if s.kind == "card" and self._cards.get(s.by) is not None}
            try:
                size, added = self._board.post(statements)
            except RefusedError as error:
                raise MissingRole(str(error)) from None
            for statement in statements:
                if statement.kind == "card":
                    self._pin(statement, caller, known)
            for name in settle([self._cards], statements, self._board, log=self._log):
                keep_out(self._folder, name, self._note)
        return size, added

    def read(self, kinds: Sequence[str], since: int) -> tuple[list[Posted], int | None]:
        """A page of the board.  Raises UsageError for kinds that it does not show."""
        check_kinds(kinds)
        if not self._folder.home.ledger.exists():
            return [], None
        return self._board.read(kinds, min(since, canonical.MAX_INT))

    @property
    def _cards(self) -> CardBook:
        """Of nodes and people, as the coordinator has pinned them."""
        return CardBook(self._folder.path / "cards.json")

    def _taken(self, statement: Statement, caller: Caller, before: _Before) -> Statement:
        """The statement as it goes on the board; `before` is what came before it.  Raises unless caller and signer
        may say it.
        """
        if statement.kind not in KINDS:
            raise UsageError(f"a {statement.kind} statement; allowed: {', '.join(sorted(KINDS))}")
        if statement.by == COORDINATOR:
            raise RefusedError(f"{COORDINATOR}: what it says comes from its own machine")
        if statement.kind == "card":
            self._check_card(statement, caller)
            before.cards[statement.by] = statement.shown_card()
        elif statement.kind == "revoke" and Revoked.read(statement).name != statement.by:
            card = self._board.card(statement.by) or before.cards.get(statement.by)
            return self._in_its_place(statement, caller, card)
        elif statement.by != caller.name and not self._is_node(statement.by):
            raise RefusedError(f"a statement of {statement.by}; allowed: your own, or of a registered node")
        if statement.kind == "profile":
            before.claims[statement.by] = self._checked_claim(statement)
        elif statement.kind in ("rotate", "revoke"):
            before.claims[statement.by] = None
        elif (action := ACTIONS.get(statement.kind)) is not None:
            require_role(caller.name, roles.held(caller.roles), action)
            require_role(statement.by, self._roles_of(statement.by, before.claims), action)
        return statement

    def _in_its_place(self, statement: Statement, caller: Caller, card: Card | None) -> Statement:
        """The coordinator's own revocation, which an operator asks for under the key of `card`."""
        asked = Revoked.read(statement)
        if statement.by != caller.name:
            raise RefusedError(f"a revocation by {statement.by}; allowed: your own")
        require_role(caller.name, roles.held(caller.roles), Action.REVOKE_KEY)
        if card is None or statement.log != self._log:
            raise WrongKey(f"{statement.by}: has no card on this ledger, or speaks for another one")
        statement.verify(card)
        body = Revoked(asked.name, asked.card, asked.reason, asked=caller.name)
        return body.sign(self._identity, log=self._log)

    def _check_card(self, statement: Statement, caller: Caller) -> None:
        """Refuse a card that is neither the caller's own nor a registered node's, or another than the pinned one."""
        shown = statement.shown_card()
        pinned = self._cards.get(statement.by)
        node = self._node_card(statement.by)
        if shown is None or pinned not in (None, shown):
            raise WrongKey(f"{statement.by}: shows another card than is pinned; allowed: fedseal identity rotate")
        if pinned is None and node is not None and node != shown:
            raise WrongKey(f"{statement.by}: shows another card than its node was registered with")
        if statement.by != caller.name and node is None:
            raise RefusedError(f"the card of {statement.by}; allowed: your own, or that of a registered node")

    def _pin(self, statement: Statement, caller: Caller, known: set[str]) -> None:
        card = statement.shown_card()
        assert card is not None
        if statement.by in known or self._board.card(statement.by) != card:
            return
        self._cards.pin(card)
        if statement.by == caller.name:
            body = {"person": caller.name, "certificate": caller.certificate, "card": card.fingerprint}
            self._note("person", "", body | {"state": "introduced"})

    def _checked_claim(self, statement: Statement) -> frozenset[Role]:
        """The roles that a profile claims.  Raises unless the registers give them, and know its certificate."""
        name, profile = statement.by, Profile.from_dict(statement.body)
        given = self._given(name)
        if beyond := profile.held - given:
            allowed = f"allowed: {', '.join(sorted(given)) or 'none'}"
            raise MissingRole(f"profile of {name}: roles {', '.join(sorted(beyond))} are not its own; {allowed}")
        holders = (self._node(name), self._folder.people.holder(name))
        known = [holder.fingerprint for holder in holders if holder is not None]
        if profile.certificate and profile.certificate not in known:
            allowed = f"allowed: {', '.join(f'{mark[:16]}…' for mark in known)} or none"
            raise WrongKey(f"profile of {name}: certificate {profile.certificate[:16]}… is not its own; {allowed}")
        return profile.held

    def _roles_of(self, name: str, claims: dict[str, frozenset[Role] | None]) -> frozenset[Role]:
        """What the registers give, cut down to what the profile claims; `claims` are of this post, and kept for it."""
        if name not in claims:
            profile = self._board.profile(name)
            claims[name] = None if profile is None else profile.held
        claim, given = claims[name], self._given(name)
        return given if claim is None else given & claim

    def _given(self, name: str) -> frozenset[Role]:
        person, node = self._folder.people.holder(name), self._node(name)
        own = person.held if person is not None else frozenset()
        return own | node.held if node is not None else own

    def _is_node(self, name: str) -> bool:
        return self._node(name) is not None

    def _node(self, name: str) -> Node | None:
        """The enabled node of that name."""
        node = self._folder.nodes.all().get(name)
        return node if node is not None and node.state == ENABLED else None

    def _node_card(self, name: str) -> Card | None:
        """The card that an enabled node was registered with."""
        node = self._node(name)
        return Card.from_dict(node.card["card"]) if node is not None else None


@dataclass
class _Before:
    """What the statements before one in the same post bring: by name the card, and the roles that a profile claims."""

    cards: dict[str, Card | None]
    claims: dict[str, frozenset[Role] | None]


class Rate:
    """At most `count` things a name in `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count, self._seconds = count, seconds
        self._taken: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def take(self, name: str, things: int) -> None:
        """Raise `TooFast` where they are too many."""
        now = time.monotonic()
        with self._lock:
            taken = self._taken.setdefault(name, deque())
            while taken and taken[0] <= now - self._seconds:
                taken.popleft()
            if len(taken) + things > self._count:
                left = max(0.0, taken[0] + self._seconds - now) if taken else self._seconds
                raise TooFast(f"{name}: more than {self._count} statements a minute; again in {left:.0f} s")
            taken.extend([now] * things)


def keep_out(folder: CoordinatorFolder, name: str, note: Note) -> None:
    """Take back the pass and the node of whoever's key was revoked; the operator gives new ones with a new card."""
    if folder.people.holder(name) is not None:
        folder.people.revoke(name)
        note("person", "", {"person": name, "state": "revoked"})
    node = folder.nodes.all().get(name)
    if node is not None:
        folder.nodes.remove(name)
        note("node", "", {"node": name, "card": node.fingerprint, "state": "removed"})
