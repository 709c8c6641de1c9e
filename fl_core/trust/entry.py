"""What the ledger holds: statements, signed by who makes them, and entries, the statements in their order.

A party signs a `Statement` before anybody orders it; the coordinator adds `seq`, `prev` and `t` to make it an
`Entry`. So the coordinator can leave a statement out or delay it, which the party notices as a witness, but
cannot alter one. `t` is the coordinator's clock and nobody else's claim. A statement binds its log and its
run, but not its place in the order: a body says itself which round it is about.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fl_core.errors import BadMessage, BadSignature
from fl_core.trust import canonical, merkle
from fl_core.trust.identity import Card, Identity, check_name, is_hex

KINDS = frozenset({
    "log", "card", "job", "join", "roster", "key", "update", "aggregate", "round", "metrics", "refusal",
    "failure", "drop", "resume", "publish", "receipt", "close", "session", "end", "stop", "node", "person",
    "served", "dataset", "grant", "grant-request", "grant-end", "use", "rotate", "revoke",
    "profile",
})  # fmt: skip
MESSAGE_KINDS = frozenset({"request", "witness", "order"})  # of signed messages that no ledger holds
MAX_BODY = 256 * 1024  # holds a digest for each of 1,024 parties
MAX_ENTRY = MAX_BODY + 4096
NO_PREVIOUS = "0" * 64

_LOG = re.compile(r"(fedseal/[0-9a-f]{16})?")
_RUN = re.compile(r"[\x21-\x7e]{0,128}")
_PREFIX = b"fedseal statement v1\n"
_SIGNED_FIELDS = ("v", "log", "kind", "run", "body", "by")
_STATEMENT_FIELDS = frozenset({*_SIGNED_FIELDS, "sig"})
_ENTRY_FIELDS = _STATEMENT_FIELDS | {"seq", "prev", "t"}


@dataclass(frozen=True)
class Statement:
    """One party's signed claim.  A `Statement` that exists is well formed; `verify` checks its signature.

    Attributes
    ----------
    log
        Origin of the log for which it was made, `fedseal/…`; empty for a message that no log may hold.
    kind
        One of `KINDS`, or of `MESSAGE_KINDS`, which a ledger refuses.
    run
        Run id, printable ASCII without spaces, at most 128 characters; empty outside any run.
    body
        Canonical JSON object of at most 256 KiB. On a ledger, kinds `log` and `card` hold `{"card": …}` of
        their signer, and the coordinator's `roster` at least `parties` and `min_parties`.
    by
        Name of the signer.
    sig
        Ed25519 signature, 128 hex digits, over the prefix and the canonical JSON of all other fields.
    v
        Format version, 1.
    """

    log: str
    kind: str
    run: str
    body: dict[str, Any]
    by: str
    sig: str
    v: int = 1

    def __post_init__(self) -> None:
        if self.v != 1 or type(self.v) is not int:
            raise BadMessage(f"statement: version {self.v!r:.20}; allowed: 1")
        if not isinstance(self.kind, str) or self.kind not in KINDS | MESSAGE_KINDS:
            raise BadMessage(f"statement: unknown kind {self.kind!r:.40}; allowed: {sorted(KINDS)}")
        check_name(self.by)
        if not isinstance(self.log, str) or not _LOG.fullmatch(self.log):
            raise BadMessage(f"statement: log {self.log!r:.80}; allowed: fedseal/ and 16 hex digits")
        if not isinstance(self.run, str) or not _RUN.fullmatch(self.run):
            raise BadMessage("statement: a run id is printable ASCII without spaces, at most 128 characters")
        if not is_hex(self.sig, 64):
            raise BadMessage("statement: a signature is 64 bytes of lower-case hex")
        if not isinstance(self.body, dict):
            raise BadMessage("statement: the body is not an object")
        size = len(canonical.encode(self.body))
        if size > MAX_BODY:
            raise BadMessage(f"statement: a body of {size} bytes; allowed: {MAX_BODY}")

    @classmethod
    def make(cls, identity: Identity, *, log: str, kind: str, run: str, body: dict[str, Any]) -> Statement:
        """Sign a statement as `identity`; raises BadMessage if a field is not allowed."""
        fields = {"v": 1, "log": log, "kind": kind, "run": run, "body": body, "by": identity.name}
        sig = identity.sign(_PREFIX + canonical.encode(fields)).hex()
        return cls(log=log, kind=kind, run=run, body=body, by=identity.name, sig=sig)

    @classmethod
    def from_dict(cls, fields: Any) -> Statement:
        """Build a statement from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        if not isinstance(fields, dict) or set(fields) != _STATEMENT_FIELDS:
            raise BadMessage(f"statement: expected exactly {', '.join(sorted(_STATEMENT_FIELDS))}")
        return cls(**fields)

    @classmethod
    def decode(cls, data: bytes) -> Statement:
        """Build a statement from its canonical bytes; raises BadMessage."""
        return cls.from_dict(canonical.decode(data, max_bytes=MAX_ENTRY))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {**self._signed(), "sig": self.sig}

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical.encode(self.to_dict())

    def signed_bytes(self) -> bytes:
        """Return what the signature is over."""
        return _PREFIX + canonical.encode(self._signed())

    def verify(self, card: Card) -> None:
        """Raise BadSignature unless the party of `card` signed this."""
        if card.name != self.by:
            raise BadSignature(f"a statement of {self.by} checked against the card of {card.name}")
        card.verify(self.signed_bytes(), bytes.fromhex(self.sig))

    def shown_card(self) -> Card | None:
        """Return the card that a `log` or `card` statement shows, None for other kinds.

        Raises BadMessage or BadSignature if the body is not exactly the signer's own card.
        """
        if self.kind not in ("log", "card"):
            return None
        if set(self.body) != {"card"}:
            raise BadMessage(f"{self.kind} of {self.by}: expected exactly a card")
        card = Card.from_dict(self.body["card"])
        if card.name != self.by:
            raise BadMessage(f"{self.by} shows the card of {card.name}")
        return card

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, signature included, 64 hex digits."""
        return hashlib.sha256(self.encode()).hexdigest()

    def _signed(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SIGNED_FIELDS}


@dataclass(frozen=True)
class Entry:
    """A statement with its place in the ledger.

    Attributes
    ----------
    statement
        What was said, and by whom.
    seq
        Position, from 0.
    prev
        Leaf hash of the entry before, 64 hex digits; zeros for the first.
    t
        When the coordinator ordered it: milliseconds since 1970 UTC.
    """

    statement: Statement
    seq: int
    prev: str
    t: int

    def __post_init__(self) -> None:
        numbers_fit = all(type(value) is int and value >= 0 for value in (self.seq, self.t))
        if not numbers_fit or not is_hex(self.prev, 32):
            raise BadMessage("entry: seq and t are integers from 0, prev 32 bytes of lower-case hex")

    @classmethod
    def from_dict(cls, fields: Any) -> Entry:
        """Build an entry from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        if not isinstance(fields, dict) or set(fields) != _ENTRY_FIELDS:
            raise BadMessage(f"entry: expected exactly {', '.join(sorted(_ENTRY_FIELDS))}")
        statement = Statement.from_dict({name: fields[name] for name in _STATEMENT_FIELDS})
        return cls(statement=statement, seq=fields["seq"], prev=fields["prev"], t=fields["t"])

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Build an entry from its canonical bytes; raises BadMessage."""
        return cls.from_dict(canonical.decode(data, max_bytes=MAX_ENTRY))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return {**self.statement.to_dict(), "seq": self.seq, "prev": self.prev, "t": self.t}

    def encode(self) -> bytes:
        """Return the canonical bytes, which are the leaf of the tree."""
        return self._leaf

    @cached_property
    def leaf_hash(self) -> bytes:
        """RFC 6962 leaf hash, 32 bytes."""
        return merkle.leaf_hash(self._leaf)

    @property
    def log(self) -> str:
        """Origin of the log."""
        return self.statement.log

    @property
    def kind(self) -> str:
        """Kind of the statement."""
        return self.statement.kind

    @property
    def run(self) -> str:
        """Run id of the statement."""
        return self.statement.run

    @property
    def body(self) -> dict[str, Any]:
        """Body of the statement."""
        return self.statement.body

    @property
    def by(self) -> str:
        """Name of the signer."""
        return self.statement.by

    @cached_property
    def _leaf(self) -> bytes:
        return canonical.encode(self.to_dict())


def check_roster(body: dict[str, Any]) -> None:
    """Check the body of the coordinator's roster, from which a run's quorum follows; raises BadMessage.

    It holds at least `parties`, a list of distinct names, and `min_parties`, from 1 to their number.
    """
    parties, min_parties = body.get("parties"), body.get("min_parties")
    if not isinstance(parties, list) or not parties:
        raise BadMessage("roster: parties is not a list of names")
    for name in parties:
        check_name(name)
    if len(set(parties)) < len(parties):
        raise BadMessage("roster: a party is named twice")
    if type(min_parties) is not int or not 1 <= min_parties <= len(parties):
        raise BadMessage(f"roster: min_parties {min_parties!r:.20}; allowed: 1 to {len(parties)}")
