"""What an order must be to count at a node, and how an owner's refusal is said: topics travel, words stay."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_core.errors import BudgetExceeded, IntegrityError, RefusedError
from fl_core.trust import order
from fl_core.trust.identity import Card

AMOUNTS = frozenset({"epsilon", "budget"})  # topics that are about privacy spent
TOPICS = frozenset({
    "dataset", "version", "grantee", "kind", "algorithm", "model", "job", "receivers", "noise", "time", "owner",
    "approvals", "revoked", "keys", "self-issued", "catalog", "withdrawn", "purpose", "cohort", "uses", "epsilon",
    "budget", "order", "none", "delta", "run", "role",
})  # fmt: skip


class NotGranted(RefusedError):
    """No grant of the owner covers the job; `topics` are what is wrong, in words that may travel."""

    code = "grant"

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.topics = topics_of(str(self))


class OverGranted(BudgetExceeded):
    """A grant covers the job but for its ε; `topics` as in `NotGranted`."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.topics = topics_of(str(self))


def topics_of(text: str) -> tuple[str, ...]:
    """Return the topics of `topic: words; topic: words`, sorted, and nothing of the words."""
    return tuple(sorted({part.partition(":")[0] for part in text.split("; ")} & TOPICS))


@dataclass(frozen=True)
class Ordered:
    """An order that verified: whose it is, and what it says of itself."""

    digest: str
    card: Card
    time: int
    key: str  # of its nonce, under that card

    @classmethod
    def open(cls, blobs: Mapping[str, bytes], view: Mapping[str, Any], *, log: str, look: bool) -> Ordered:
        """Verify the order of a request against the job that came with it.  Raises `NotGranted`."""
        if order.BLOB not in blobs or order.CARD_BLOB not in blobs:
            raise NotGranted("order: none came with the job; allowed: one that the submitter signed")
        try:
            statement, said, card = order.read(blobs[order.BLOB], blobs[order.CARD_BLOB], look=look)
            order.check(statement, said, view, log=log)
        except IntegrityError as error:
            text = str(error)
            raise NotGranted(text if text.startswith("order: ") else f"order: {text}") from None
        key = hashlib.sha256(f"{card.fingerprint} {said.nonce}".encode()).hexdigest()
        return cls(statement.digest, card, said.time, key)
