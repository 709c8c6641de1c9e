"""What the coordinator and a party say to each other: the one place where the wire is named.

A `Packet` is a signed statement (who, which run, which step, the digest of everything attached), blobs bound by those
digests, and proofs that verify by themselves.  Receivers authenticate the statement before they parse a blob.
Under Flower a packet is an `ArrayRecord` named `PACKET` of byte arrays: `head` and one a blob.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card

PACKET = "packet"
HEAD = "head"
STYPE = "fedseal.bytes"

JOIN = "query.join"
ROSTER = "query.roster"
ROUND = "train.round"
CLOSE = "query.close"
DELIVER = "query.deliver"
WITNESS = "query.witness"
ABANDON = "query.abandon"
CHECK = "query.check"
SESSION = "query.session"
STEPS = (JOIN, ROSTER, ROUND, CLOSE, DELIVER, SESSION, WITNESS, ABANDON, CHECK)

TRAIN, EVALUATE, STANDARDIZE = "train", "evaluate", "standardize"
# Metric slots behind every vector: rows trained on, rows tested on, correct, loss over the tested, over the trained.
TRAINED, TESTED, CORRECT, TEST_LOSS, TRAIN_LOSS = range(5)
TAIL = 5
FAILURES = ("failure", "refusal")
COORDINATOR = "coordinator"
MAX_HEAD = 4 << 20


@dataclasses.dataclass(frozen=True)
class Packet:
    """One message of either side.

    `extra` is not covered by the signature: it holds only what verifies by itself (checkpoints, proofs, cards).
    """

    statement: Statement
    blobs: dict[str, bytes] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_arrays(self) -> dict[str, bytes]:
        """Named byte arrays; blobs are shared, not copied."""
        head = canonical.encode({"statement": self.statement.to_dict(), "extra": self.extra})
        return {HEAD: head, **self.blobs}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, bytes]) -> Packet:
        """Parse the head; blobs stay opaque until `check`.  Raises `BadMessage`."""
        head = arrays.get(HEAD)
        if head is None or len(head) > MAX_HEAD:
            raise BadMessage("a packet without a head, or an oversized one")
        table = canonical.decode(head, max_bytes=MAX_HEAD)
        if not isinstance(table, dict) or set(table) != {"statement", "extra"} or not isinstance(table["extra"], dict):
            raise BadMessage("a packet head of another shape")
        blobs = {name: data for name, data in arrays.items() if name != HEAD}
        return cls(Statement.from_dict(table["statement"]), blobs, table["extra"])

    def check(self, card: Card, *, run: str, step: str, to: str | None = None, max_blob: int | None = None) -> None:
        """Authenticate: signature, run, step, addressee, and every blob against its signed digest.

        Raises `BadSignature` or `BadMessage`.
        """
        self.statement.verify(card)
        body = self.statement.body
        expected: dict[str, Any] = {"step": step}
        if to is not None:
            expected["to"] = to
        if self.statement.run != run:
            raise BadMessage(f"a message of another run ({self.statement.run[:32]})")
        for key, value in expected.items():
            if body.get(key) != value:
                raise BadMessage(f"a message whose {key} is {str(body.get(key))[:40]!r}, not {value!r}")
        digests = body.get("blobs", {})
        if not isinstance(digests, dict) or set(digests) != set(self.blobs):
            raise BadMessage("attached blobs are not the signed ones")
        for name, data in self.blobs.items():
            if max_blob is not None and len(data) > max_blob:
                raise BadMessage(f"blob {name!r} of {len(data)} bytes; allowed: {max_blob}")
            if sha256(data) != digests[name]:
                raise BadMessage(f"blob {name!r} was altered")


def schedule(rounds: int, *, standardize: bool) -> list[tuple[int, str]]:
    """Which round does what: both sides derive it from the job, so nobody can ask for a round that is not in it."""
    plan = [(n, TRAIN) for n in range(1, rounds + 1)] + [(rounds + 1, EVALUATE)]
    return ([(0, STANDARDIZE)] if standardize else []) + plan


def sha256(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def digests(blobs: Mapping[str, bytes]) -> dict[str, str]:
    """What a statement signs of its blobs."""
    return {name: sha256(data) for name, data in blobs.items()}


def field(body: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of an authenticated body, or `BadMessage` naming it."""
    value = body.get(name)
    if not isinstance(value, kind):
        raise BadMessage(f"field {name!r} is missing or not {kind.__name__}")
    return value
