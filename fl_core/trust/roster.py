"""The fixed list of who takes part in a run, signed by everyone on it.

It holds each party's card and its signed `join` statement with an ephemeral X25519 key of the run.  Every party signs
the roster's digest before it accepts the group key, so a coordinator can neither add a ghost party nor swap a key
unseen.  The first trainer makes the group key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fl_core.errors import BadMessage, WrongKey
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card

MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Roster:
    """An opened roster; `text` is what was hashed."""

    text: bytes
    cards: dict[str, Card]
    joins: dict[str, Statement]
    digest: str = field(default="")

    @classmethod
    def from_joins(cls, joins: Sequence[tuple[Card, Statement]]) -> Roster:
        """Build it at the coordinator, in the job's order."""
        table = [{"card": card.to_dict(), "join": statement.to_dict()} for card, statement in joins]
        return cls.parse(canonical.encode(table))

    @staticmethod
    @lru_cache(maxsize=2)
    def parse(text: bytes) -> Roster:
        """Read it back; every card and join statement must verify.  Raises `BadMessage` or `BadSignature`.

        A process that serves many parties of a run verifies their common roster once.
        """
        table = canonical.decode(text, max_bytes=MAX_BYTES)
        cards: dict[str, Card] = {}
        joins: dict[str, Statement] = {}
        for item in table if isinstance(table, list) else []:
            if not isinstance(item, dict) or set(item) != {"card", "join"}:
                raise BadMessage("a roster of another shape")
            card, join = Card.from_dict(item["card"]), Statement.from_dict(item["join"])
            join.verify(card)
            if join.kind != "join" or join.by != card.name or card.name in cards:
                raise BadMessage(f"a roster with a wrong entry for {card.name!r}")
            cards[card.name], joins[card.name] = card, join
        if not cards:
            raise BadMessage("an empty roster")
        return Roster(text, cards, joins, canonical.digest(table))

    def check(self, *, run: str, job: str, expected: Mapping[str, str | None], me: Card) -> None:
        """Hold it against the job: the same run and job, exactly the named parties, pinned keys, and my own card.

        `expected` maps each name the job gives to a card fingerprint it pins, or None.
        """
        if set(self.cards) != set(expected):
            raise BadMessage(f"a roster of {sorted(self.cards)}; allowed: {sorted(expected)}")
        for name, join in self.joins.items():
            if join.run != run or join.body.get("job") != job:
                raise BadMessage(f"the join statement of {name!r} is of another run or job")
            pin = expected[name]
            if pin is not None and pin != self.cards[name].fingerprint:
                raise WrongKey(f"the card of {name!r} is not the one the job pins ({pin[:16]}…)")
        if self.cards[me.name] != me:
            raise WrongKey(f"the roster shows another card for {me.name!r}")

    @property
    def contributors(self) -> list[str]:
        """Those who bring data, in the job's order."""
        return [name for name, join in self.joins.items() if join.body.get("role") in ("trainer", "party")]

    @property
    def key_maker(self) -> str:
        """The party that makes the group key."""
        return self.contributors[0]

    @property
    def ephemerals(self) -> dict[str, bytes]:
        """Each party's X25519 public key of this run."""
        return {name: bytes.fromhex(str(join.body.get("ephemeral", ""))) for name, join in self.joins.items()}

    def check_signed(self, statements: Sequence[Mapping[str, Any]], *, run: str) -> dict[str, Statement]:
        """Every party signed this roster; returns what each said.  Raises `BadMessage` or `BadSignature`."""
        return dict(_signed(self.text, canonical.encode([dict(table) for table in statements]), run))

    def check_ceremony(self, statements: Sequence[Mapping[str, Any]], *, run: str, sealed: str, me: str) -> Statement:
        """Every party signed this roster, and its key maker signed the digest of the key sealed to `me`.

        Returns the key maker's statement.  Raises `BadMessage`, `BadSignature` or `WrongKey`.
        """
        maker = self.check_signed(statements, run=run)[self.key_maker]
        if maker.kind != "key" or maker.body.get("blobs", {}).get(f"key.{me}") != sealed:
            raise WrongKey("the sealed key is not the one the key maker signed")
        return maker


@lru_cache(maxsize=2)
def _signed(roster: bytes, statements: bytes, run: str) -> dict[str, Statement]:
    """See `check_signed`; a process that serves many parties of a run verifies what is the same for all once."""
    on_it = Roster.parse(roster)
    signed: dict[str, Statement] = {}
    for table in canonical.decode(statements, max_bytes=MAX_BYTES):
        statement = Statement.from_dict(table)
        if statement.by not in on_it.cards:
            raise BadMessage(f"a roster signature by {statement.by!r}, who is not on it")
        statement.verify(on_it.cards[statement.by])
        if statement.run == run and statement.body.get("roster") == on_it.digest:
            signed[statement.by] = statement
    missing = sorted(set(on_it.cards) - set(signed))
    if missing:
        raise BadMessage(f"the roster is not signed by {', '.join(missing)}")
    return signed
