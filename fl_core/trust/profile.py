"""Profiles: what a card's holder says of itself beside its keys; who its members are, see `fl_core.trust.members`.

A `profile` statement stands outside any run and is signed under the card that it names, so nobody says it for another
and nobody carries it over to the next key: a rotation or a revocation ends it, until the new card signs one again.

========================  =============================================================================================
what it says              what it is worth
========================  =============================================================================================
roles                     the holder's own claim: it takes rights away from itself, and gives none. They count only as
                          far as a register gives them; a coordinator refuses more than its register gives, and each
                          owner's node refuses what they do not allow, so that a ledger's profile shows both
contact                   one line of text, which nobody has checked: show it as text, never as markup
certificate               which node or pass the holder uses; a coordinator takes those of its register only
time                      the holder's clock: a later one replaces an earlier one, so none is played again
========================  =============================================================================================

Everybody who reads the ledger reads them. Whoever orders them can leave one out, and then sees it missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fl_core.errors import BadMessage, IntegrityError, WrongKey
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.fields import check_hex, check_text, check_whole, closed, jsonable, listed
from fl_core.trust.identity import Card, Identity
from fl_core.trust.roles import Action, Role, read_roles, require

KIND = "profile"
IN_RUNS: Mapping[str, tuple[Action, ...]] = MappingProxyType({
    "join": (Action.CONTRIBUTE_DATA, Action.RECEIVE_RESULT),
    "key": (Action.CONTRIBUTE_DATA, Action.RECEIVE_RESULT),
    "session": (Action.CONTRIBUTE_DATA, Action.RECEIVE_RESULT),
    "update": (Action.CONTRIBUTE_DATA,),
    "use": (Action.CONTRIBUTE_DATA,),
    "receipt": (Action.RECEIVE_RESULT,),
})  # fmt: skip
"""What the roles of whoever says something in a run must allow; one of these."""


@dataclass(frozen=True)
class Profile:
    """What a card's holder says of itself beside its keys: body of a `profile` statement, outside any run.

    Attributes
    ----------
    card
        Fingerprint, 64 hex digits, of the card that it goes with.
    roles
        Values of `fl_core.trust.roles.Role`: at least one, sorted, each once.
    contact
        One printable line of at most 200 characters without blanks at its ends; may be empty.
    certificate
        64 hex digits: of a node its `NodeCard.fingerprint`, of a person the SHA-256 of the pass's certificate; empty
        for none.
    time
        Milliseconds since 1970 UTC, of the signer's clock.
    """

    card: str
    roles: tuple[str, ...]
    contact: str
    certificate: str
    time: int

    def __post_init__(self) -> None:
        check_hex(self.card, "profile: card")
        check_hex(self.certificate, "profile: certificate", empty=True)
        if not (isinstance(self.contact, str) and self.contact == ""):
            check_text(self.contact, "profile: contact")
        check_whole(self.time, "profile: time")
        if not isinstance(self.roles, tuple):
            raise BadMessage("profile: roles are not a list")
        if list(self.roles) != sorted(read_roles(self.roles)):
            raise BadMessage("profile: roles are not sorted, or one is there twice")

    @property
    def held(self) -> frozenset[Role]:
        """The roles that it claims."""
        return read_roles(self.roles)

    @classmethod
    def from_dict(cls, table: object) -> Profile:
        """Build it from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        fields = closed(cls, table, KIND)
        return cls(**{**fields, "roles": listed(fields["roles"], "profile: roles")})

    @classmethod
    def read(cls, statement: Statement, card: Card) -> Profile:
        """Return what a `profile` statement says; its signature is not looked at.

        Parameters
        ----------
        card
            That of its signer, at its place.

        Raises
        ------
        BadMessage
            If it is no profile, of a run, or malformed.
        WrongKey
            If it is of another name, or goes with another card.
        """
        if statement.kind != KIND or statement.run:
            raise BadMessage(f"{statement.kind} of {statement.by}: not a profile, outside any run")
        body = cls.from_dict(statement.body)
        if statement.by != card.name:
            raise WrongKey(f"a profile by {statement.by} under the card of {card.name}; allowed: one's own")
        if body.card != card.fingerprint:
            other = f"{body.card[:16]}…; allowed: {card.fingerprint[:16]}…, which it has"
            raise WrongKey(f"profile of {card.name}: goes with card {other}")
        return body

    def sign(self, identity: Identity, *, log: str) -> Statement:
        """Return the statement of it by `identity`; raises WrongKey if it goes with another card."""
        body = {**jsonable(self), "roles": [str(role) for role in self.roles]}
        statement = Statement.make(identity, log=log, kind=KIND, run="", body=body)
        Profile.read(statement, identity.card)
        return statement


def check_later(profile: Profile, before: Profile | None, name: str) -> None:
    """Raise BadMessage unless `profile` is later than the one that `name` signed `before` under the same card."""
    if before is not None and before.card == profile.card and profile.time <= before.time:
        allowed = f"allowed: after {before.time}"
        raise BadMessage(f"profile of {name}: of time {profile.time}, replayed or out of order; {allowed}")


class Claims:
    """The roles that the profiles of one ledger claim, by card; kept up with it, so that nothing is read twice."""

    def __init__(self) -> None:
        self._held: dict[str, frozenset[Role]] = {}
        self.size = 0

    def catch_up(self, entries: Iterable[Entry], size: int, signer: Callable[[Entry], Card]) -> None:
        """Take up the profiles among entries `self.size` … `size`-1 of the ledger, whose signers' cards `signer` tells.

        Before one's own transaction writes anything, since that may be taken back.
        """
        for entry in entries:
            card = signer(entry)
            try:
                self._held[card.fingerprint] = Profile.read(entry.statement, card).held
            except IntegrityError:
                continue  # as in `fl_core.trust.members`
        self.size = size

    def check(self, statement: Statement, card: Card) -> None:
        """Raise RefusedError for a statement in a run that the roles claimed for its signer's card do not allow."""
        actions = IN_RUNS.get(statement.kind)
        claimed = self._held.get(card.fingerprint)
        if actions is not None and claimed is not None:
            require(card.name, claimed, *actions)
