"""Identities change keys, or end: `rotate` and `revoke` statements, and what those who have pinned a card make of them.

========  =====================================  =============================  =====================================
kind      body                                   by whom                        afterwards
========  =====================================  =============================  =====================================
rotate    `card`, the new one; `old`, the        the party, under its old key   its statements and co-signatures hold
          fingerprint of the other; `sig`, of                                   under the new key only
          the new key over both fingerprints
revoke    `name`, `card` (fingerprint),          the party itself, or the       nothing by that name holds, until a
          `reason`, `asked` (who asked the       coordinator                    `card` statement shows a new card
          coordinator; empty for itself)
========  =====================================  =============================  =====================================

A statement and a co-signature are held against the key of their place in the log: the `rotate` itself and everything
before it verify under the old key, everything after it under the new one. One key a name and one name a key stays: a
key that was ever shown on a log, by whomever, is never shown again. The coordinator's key is its log's identity; it
neither rotates nor is revoked: a coordinator with another key begins another log.

Whoever steals a key can rotate it; its owner then asks the operator to revoke it. Others follow a rotation only when
they are shown it, both signatures; no revocation makes anybody trust a new key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fl_core.errors import BadMessage, IntegrityError, WrongKey
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_hex, check_named, check_text, closed
from fl_core.trust.identity import Card, CardBook, Identity, is_hex

_PREFIX = b"fedseal rotation v1\n"
MAX_ROTATIONS = 64  # of one name that are followed in one go
MAX_SHOWN = 1024  # that a coordinator shows with a roster


def rotate(old: Identity, new: Identity, *, log: str) -> Statement:
    """Return the statement that gives the name of `old` the card of `new`, signed by both keys; raises BadMessage."""
    _check_pair(old.card, new.card)
    sig = new.sign(_text(log, old.card, new.card)).hex()
    body = {"card": new.card.to_dict(), "old": old.card.fingerprint, "sig": sig}
    return Statement.make(old, log=log, kind="rotate", run="", body=body)


def new_card(statement: Statement, old: Card) -> Card:
    """Return the card that a `rotate` statement brings; the statement's own signature is not looked at.

    Raises
    ------
    BadMessage
        If it is no rotation, is malformed, or of another name than `old`.
    WrongKey
        If it is from another card than `old`, or the new key is the old one.
    BadSignature
        If the new key did not sign for exactly this change, in this log.
    """
    body = statement.body
    if statement.kind != "rotate" or statement.run or set(body) != {"card", "old", "sig"}:
        raise BadMessage(f"{statement.by}: not a rotation: expected exactly card, old and sig, outside any run")
    if not is_hex(body["sig"], 64):
        raise BadMessage(f"{statement.by}: a rotation's signature is 64 bytes of lower-case hex")
    if statement.by != old.name:
        raise BadMessage(f"a rotation by {statement.by} of the card of {old.name}")
    if body["old"] != old.fingerprint:
        raise WrongKey(f"{old.name}: a rotation from another card than {old.fingerprint[:16]}…")
    card = Card.from_dict(body["card"])
    _check_pair(old, card)
    card.verify(_text(statement.log, old, card), bytes.fromhex(body["sig"]))
    return card


def rotated(statement: Statement, old: Card, *, log: str) -> Card:
    """Return the card that a `rotate` statement for `log` brings, after checking both signatures; raises as `new_card`.

    Also raises BadSignature if the key of `old` did not sign the statement, BadMessage for another log.
    """
    if statement.log != log:
        raise BadMessage(f"{statement.by}: a rotation for {statement.log} in {log}")
    statement.verify(old)
    return new_card(statement, old)


@dataclass(frozen=True)
class Revoked:
    """The body of a `revoke` statement: whose card ends, by its fingerprint, why, and who asked the coordinator."""

    name: str
    card: str
    reason: str
    asked: str = ""

    def __post_init__(self) -> None:
        check_named(self.name, "revoke: name")
        check_hex(self.card, "revoke: card")
        check_text(self.reason, "revoke: reason")
        if self.asked != "":
            check_named(self.asked, "revoke: asked")

    @classmethod
    def read(cls, statement: Statement) -> Revoked:
        """Return what a statement says; raises BadMessage."""
        if statement.kind != "revoke" or statement.run:
            raise BadMessage(f"{statement.kind} of {statement.by}: not a revocation, outside any run")
        return cls(**closed(cls, statement.body, "revoke"))

    def sign(self, identity: Identity, *, log: str) -> Statement:
        """Return the statement of it by `identity`."""
        return Statement.make(identity, log=log, kind="revoke", run="", body=asdict(self))


# ---- those who have pinned a card


class Followed:
    """Which cards belong to the one that somebody has pinned for a name, by the rotations that were shown.

    Parameters
    ----------
    book
        Pinned cards; moved along rotations that lead on from them. None: what is met first counts here only.
    rotations
        `rotate` statements with the cards that signed them; what does not verify counts for nothing.
    log
        Of which log they must be.
    ended
        Fingerprints of cards that were revoked: nobody comes to be known by one, so that whoever forgets one by hand
        does not meet it again at the head of the board.
    """

    def __init__(
        self,
        book: CardBook | None,
        rotations: Iterable[tuple[Statement, Card]],
        *,
        log: str,
        ended: Collection[str] = (),
    ) -> None:
        self._book, self._met, self._ended = book, dict[str, Card](), frozenset(ended)
        self._next: dict[str, Card] = {}  # by the old card's fingerprint
        for statement, old in rotations:
            try:
                self._next.setdefault(old.fingerprint, rotated(statement, old, log=log))
            except IntegrityError:
                continue

    def accept(self, card: Card) -> None:
        """Pin the newest of `card`'s line at first sight; raises WrongKey unless it is of the line that is pinned."""
        if (met := self._met.get(card.name)) is not None and met == card:
            return
        pinned = met or (self._book.get(card.name) if self._book else None)
        newest = self._line(card)[-1]
        if pinned is None and newest.fingerprint in self._ended:
            return
        if pinned is None:
            if self._book is not None:
                self._book.pin(newest)
        elif newest in (line := self._line(pinned)):  # `card` may be one from before the pinned one
            if self._book is not None and newest != pinned:
                self._book.replace(line[-1], before=pinned)
        else:
            raise WrongKey(f"{card.name}: shows card {card.fingerprint[:16]}…, pinned is {pinned.fingerprint[:16]}…")
        self._met[card.name] = newest

    def _line(self, card: Card) -> list[Card]:
        line = [card]
        while len(line) <= MAX_ROTATIONS and (following := self._next.get(line[-1].fingerprint)) is not None:
            line.append(following)
        return line


def follow(book: CardBook, rotations: Iterable[Statement], *, log: str) -> tuple[str, ...]:
    """Move pinned cards along rotations that are shown in order; return the names whose card is another one now.

    A rotation of a name that is not pinned, or of another card than the pinned one, changes nothing; one that claims
    the pinned card and does not verify raises (see `rotated`).
    """
    moved = []
    for statement in rotations:
        pinned = book.get(statement.by)
        if pinned is None or statement.body.get("old") != pinned.fingerprint:
            continue
        book.replace(rotated(statement, pinned, log=log), before=pinned)
        moved.append(statement.by)
    return tuple(dict.fromkeys(moved))


def follow_shown(book: CardBook, shown: Any, *, log: str) -> tuple[str, ...]:
    """Do `follow` with what a coordinator shows, untrusted JSON: a list of at most `MAX_SHOWN` statements.

    Raises IntegrityError for another shape, or as `follow` does.
    """
    if not isinstance(shown, list) or len(shown) > MAX_SHOWN:
        raise BadMessage(f"rotations: not a list of at most {MAX_SHOWN} statements")
    return follow(book, [Statement.from_dict(fields) for fields in shown], log=log)


def _check_pair(old: Card, new: Card) -> None:
    if new.name != old.name:
        raise BadMessage(f"{old.name}: a rotation to a card of {new.name}; allowed: the same name")
    if new.ed25519 == old.ed25519:
        raise WrongKey(f"{old.name}: a rotation to the key that it has; allowed: a new one")


def _text(log: str, old: Card, new: Card) -> bytes:
    fields: dict[str, Any] = {"log": log, "name": old.name, "old": old.fingerprint, "new": new.fingerprint}
    return _PREFIX + canonical.encode(fields)
