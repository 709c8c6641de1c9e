"""What is signed about grants, and what a chain of signatures comes to.

============== ================ ==============================================================================
kind           body             by whom
============== ================ ==============================================================================
grant-request  `GrantRequest`   the grantee of its terms
grant          `Approval`       each of the grant's chain in turn, the data owner last
grant-end      `Denial`         somebody who was asked
grant-end      `Revocation`     anybody of the chain
use            `Used`           the owner's node
============== ================ ==============================================================================

An approval holds the whole grant and the digest of the approval before it, so nobody can sign out of turn.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fl_core.errors import BadMessage, BadSignature
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_hex, check_text, check_whole, closed, jsonable
from fl_core.trust.grants import Grant, Signer, Terms
from fl_core.trust.identity import Card, Identity, is_hex

SHOWN_STEP = 10_000  # millionths: what a ledger shows of ε is rounded up to 0.01


class _Body:
    """The body of a statement."""

    KIND: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the body as JSON-able values."""
        return dict(jsonable(self))

    def sign(self, identity: Identity, *, log: str, run: str = "") -> Statement:
        """Return the statement of it by `identity`."""
        return Statement.make(identity, log=log, kind=self.KIND, run=run, body=self.to_dict())


@dataclass(frozen=True)
class GrantRequest(_Body):
    """A grantee asks for a grant; signed by the grantee of its terms."""

    KIND: ClassVar[str] = "grant-request"
    terms: Terms
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Terms) or not is_hex(self.nonce, 16):
            raise BadMessage("grant-request: terms and a nonce of 16 bytes of lower-case hex")

    @classmethod
    def from_dict(cls, table: Any) -> GrantRequest:
        """Build it from untrusted JSON; raises BadMessage."""
        fields = closed(cls, table, "grant-request")
        return cls(Terms.from_dict(fields["terms"]), fields["nonce"])


@dataclass(frozen=True)
class Approval(_Body):
    """One approver's yes; `after` is the digest of the approval statement before it, empty for the first."""

    KIND: ClassVar[str] = "grant"
    grant: Grant
    after: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.grant, Grant):
            raise BadMessage("approval: not of a grant")
        check_hex(self.after, "approval: after", empty=True)

    @classmethod
    def from_dict(cls, table: Any) -> Approval:
        """Build it from untrusted JSON; raises BadMessage."""
        fields = closed(cls, table, "approval")
        return cls(Grant.from_dict(fields["grant"]), fields["after"])


@dataclass(frozen=True)
class _End(_Body):
    KIND: ClassVar[str] = "grant-end"
    ACT: ClassVar[str]
    about: str
    reason: str

    def __post_init__(self) -> None:
        check_hex(self.about, f"{self.ACT}: about")
        check_text(self.reason, f"{self.ACT}: reason")

    @classmethod
    def from_dict(cls, table: Any) -> _End:
        """Build it from untrusted JSON; raises BadMessage."""
        if not isinstance(table, dict) or table.get("act") != cls.ACT:
            raise BadMessage(f"grant-end: expected act {cls.ACT}")
        return cls(**closed(cls, {name: value for name, value in table.items() if name != "act"}, cls.ACT))

    def to_dict(self) -> dict[str, Any]:
        """Return the body as JSON-able values."""
        return {"act": self.ACT, **jsonable(self)}


class Denial(_End):
    """A no to a request; `about` is the digest of its statement."""

    ACT: ClassVar[str] = "deny"


class Revocation(_End):
    """The end of a grant; `about` is its id."""

    ACT: ClassVar[str] = "revoke"


@dataclass(frozen=True)
class Used(_Body):
    """What the owner's node did with a grant in a run; `epsilon` is in millionths, rounded up to 0.01."""

    KIND: ClassVar[str] = "use"
    act: str
    grant: str
    job: str
    epsilon: int

    def __post_init__(self) -> None:
        if self.act not in ("reserve", "commit", "release"):
            raise BadMessage(f"use: act {self.act!r:.40}; allowed: reserve, commit, release")
        check_hex(self.grant, "use: grant")
        check_hex(self.job, "use: job")
        if check_whole(self.epsilon, "use: epsilon") % SHOWN_STEP:
            raise BadMessage("use: epsilon is not rounded up to 0.01")

    @classmethod
    def from_dict(cls, table: Any) -> Used:
        """Build it from untrusted JSON; raises BadMessage."""
        return cls(**closed(cls, table, "use"))


Body = GrantRequest | Approval | Denial | Revocation | Used


def shown(epsilon: int) -> int:
    """Return millionths of ε rounded up to 0.01, as a `use` statement shows them."""
    return -(-epsilon // SHOWN_STEP) * SHOWN_STEP


def read_body(statement: Statement) -> Body:
    """Return what a statement about grants says; raises BadMessage.  Its signature is not looked at."""
    readers: dict[str, type[Any]] = {cls.KIND: cls for cls in (GrantRequest, Approval, Used)}
    readers["grant-end"] = Denial if statement.body.get("act") == "deny" else Revocation
    if statement.kind not in readers:
        raise BadMessage(f"{statement.kind} of {statement.by}: not about grants")
    body: Body = readers[statement.kind].from_dict(statement.body)
    return body


def approved_by(grant: Grant, signed: Iterable[tuple[Statement, Card]]) -> tuple[Signer, ...]:
    """Return how far along its chain a grant is approved: the first approvers of `grant.approvals` that signed in turn.

    What is no approval of exactly this grant, does not verify under its card, is by another key than the chain names,
    or does not follow an approval of the one before, counts for nothing.
    """
    found: dict[Signer, list[tuple[str, str]]] = {}
    for statement, card in signed:
        signer = Signer.of(card)
        try:
            if statement.kind != Approval.KIND or signer not in grant.approvals:
                continue
            statement.verify(card)
            approval = Approval.from_dict(statement.body)
        except (BadMessage, BadSignature):
            continue
        if approval.grant == grant:
            found.setdefault(signer, []).append((approval.after, statement.digest))
    before, count = {""}, 0
    for signer in grant.approvals:
        before = {digest for after, digest in found.get(signer, ()) if after in before}
        if not before:
            break
        count += 1
    return grant.approvals[:count]


def revoked_by(grant: Grant, signed: Iterable[tuple[Statement, Card]]) -> tuple[Signer, ...]:
    """Return who of its chain has revoked a grant; what does not verify or is by another key counts for nothing."""
    found = set()
    for statement, card in signed:
        signer = Signer.of(card)
        try:
            if statement.kind != Revocation.KIND or signer not in grant.approvals:
                continue
            statement.verify(card)
            body = read_body(statement)
        except (BadMessage, BadSignature):
            continue
        if isinstance(body, Revocation) and body.about == grant.id:
            found.add(signer)
    return tuple(signer for signer in grant.approvals if signer in found)
