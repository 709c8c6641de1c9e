"""Keys that have ended, as a coordinator shows them to a party that enters a run: what it shows, and what counts of it.

With the request to join, or to say whether it would, come the newest `revoke` and `rotate` statements of the log, each
beside the card that signed it. A party learns so, before it opens its data, what its owner would learn from the board.
One counts where it is for this log and verifies:

======  ==========================================================================================
revoke  under the card that it ends, or under the coordinator's pinned card
rotate  under the old card and the new one, see `fl_core.trust.rotation.rotated`
======  ==========================================================================================

A coordinator can leave a revocation out (owners who read the board see it, and witnesses see the log), and can end any
card by its own word; neither opens data. The coordinator's own key is its log's identity and ends by neither.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fl_core.errors import BadMessage, WrongKey
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card
from fl_core.trust.rotation import MAX_SHOWN, Revoked, rotated

if TYPE_CHECKING:
    from fl_core.trust.ledger import Ledger

FIELD = "ended"  # of what goes with a request; not there where nothing has ended
MAX_SHOWN_BYTES = 2 << 20  # `MAX_SHOWN` of the longest fit


def ends_of(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the newest at most `MAX_SHOWN` revocations and rotations of a ledger, in order, for `ended_shown`."""
    streams = [ledger.entries(run="", kind=kind) for kind in ("revoke", "rotate")]
    newest = deque(heapq.merge(*streams, key=lambda entry: entry.seq), maxlen=MAX_SHOWN)
    return [{"card": ledger.signer(entry).to_dict(), "statement": entry.statement.to_dict()} for entry in newest]


def ended_shown(shown: Any, *, log: str, coordinator: Card) -> frozenset[str]:
    """Return the fingerprints, 64 hex digits each, of the cards that have ended by what a coordinator shows.

    Parameters
    ----------
    shown
        Untrusted JSON.
    log
        Of which log they must be.
    coordinator
        Its card, as it is pinned.

    Raises
    ------
    BadMessage
        If it is no list, is longer than `MAX_SHOWN` or `MAX_SHOWN_BYTES`, or holds something that is malformed or of
        another log.
    BadSignature
        If one is not signed under the card beside it, or a rotation not by both keys.
    WrongKey
        If a revocation is by neither the card that it ends nor the coordinator, or one is of the coordinator's card.
    """
    if not isinstance(shown, list) or len(shown) > MAX_SHOWN:
        raise BadMessage(f"ended keys: not a list of at most {MAX_SHOWN} statements")
    if len(text := canonical.encode(shown)) > MAX_SHOWN_BYTES:
        raise BadMessage(f"ended keys: {len(text)} bytes; allowed: {MAX_SHOWN_BYTES}")
    return _ended(text, log, coordinator)


@lru_cache(maxsize=2)
def _ended(text: bytes, log: str, coordinator: Card) -> frozenset[str]:
    """See `ended_shown`; a process that serves many parties of a run verifies what is the same for all once."""
    return frozenset(_end(item, log, coordinator) for item in json.loads(text))


def _end(item: Any, log: str, coordinator: Card) -> str:
    """The fingerprint of the card that one statement ends."""
    if not isinstance(item, dict) or set(item) != {"card", "statement"}:
        raise BadMessage("ended keys: expected exactly a statement and the card that signed it")
    card, statement = Card.from_dict(item["card"]), Statement.from_dict(item["statement"])
    if statement.kind == "rotate":
        rotated(statement, card, log=log)
        name, ended, may = card.name, card.fingerprint, True
    else:
        body = Revoked.read(statement)
        if statement.log != log:
            raise BadMessage(f"{statement.by}: a revocation for {statement.log} in {log}")
        statement.verify(card)
        name, ended = body.name, body.card
        may = card == coordinator or (card.name, card.fingerprint) == (name, ended)
    if not may:
        raise WrongKey(f"{card.name}: revokes card {ended[:16]}… of {name}; allowed: that card or the coordinator's")
    if coordinator.name == name or coordinator.fingerprint == ended:
        raise WrongKey(f"{name}: its key is the log's identity, which neither rotates nor is revoked")
    return ended
