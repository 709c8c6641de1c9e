"""Profiles: what a card's holder says of itself beside its keys, and the members of a federation that follow from it.

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

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from fl_core.errors import BadMessage, IntegrityError, WrongKey
from fl_core.messages import COORDINATOR
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.fields import check_hex, check_text, check_whole, closed, jsonable, listed
from fl_core.trust.identity import Card, Identity
from fl_core.trust.roles import Action, Role, read_roles, require
from fl_core.trust.rotation import Revoked, new_card

if TYPE_CHECKING:
    from fl_core.trust.ledger import Ledger

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
MEMBER_KINDS = ("card", KIND, "rotate", "revoke")


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


@dataclass(frozen=True)
class Member:
    """One name of a ledger, as it is now.

    Attributes
    ----------
    name
        Whose.
    card
        The card that holds; None where it was revoked and none came after.
    profile
        What that card's holder said last.
    since
        Number of the entry that first showed the name.
    changed
        When the last change was ordered: milliseconds since 1970 UTC, of the coordinator's clock.
    ended
        Reason of the revocation; empty where a card holds.
    """

    name: str
    card: Card | None
    profile: Profile | None
    since: int
    changed: int
    ended: str

    @property
    def roles(self) -> frozenset[Role] | None:
        """The roles that it claims; None where nothing was said."""
        return None if self.profile is None else self.profile.held


class Members:
    """What the entries of `MEMBER_KINDS` so far, in the ledger's order, come to.

    One bad entry hides no good one: it is left out and named.

    Attributes
    ----------
    refused
        What was left out, in words.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._held: dict[str, Member] = {}
        self._ended: set[str] = set()  # fingerprints of cards that were rotated or revoked

    def add(self, entry: Entry, card: Card) -> None:
        """Take up the next entry, which verified under `card`, its signer's there; other kinds change nothing."""
        if entry.kind not in MEMBER_KINDS:
            return
        try:
            member = self._after(entry, card)
        except IntegrityError as error:
            self.refused.append(f"entry {entry.seq} of {entry.by}: {error}")
            return
        self._held[member.name] = member

    def get(self, name: str) -> Member | None:
        """Return what is known of a name, if it was ever shown."""
        return self._held.get(name)

    def all(self) -> list[Member]:
        """Return everybody by name, those whose card was revoked too."""
        return [member for _, member in sorted(self._held.items())]

    def roles_of(self, name: str) -> frozenset[Role] | None:
        """Return the roles that a name claims; None where nothing is said of them."""
        member = self.get(name)
        return None if member is None else member.roles

    def has_ended(self, fingerprint: str) -> bool:
        """Return whether a card, by its fingerprint, was revoked or rotated away from."""
        return fingerprint in self._ended

    def _after(self, entry: Entry, card: Card) -> Member:
        if entry.kind == "revoke":
            return self._revoked(entry, card)
        if card.name != entry.by or card.fingerprint in self._ended:
            raise WrongKey(f"{entry.kind} under another card than {entry.by} has")
        member = self._held.get(entry.by)
        if member is None or member.card is None:  # its card may have been shown in a run
            since = entry.seq if member is None else member.since
            member = Member(entry.by, card, None, since, entry.t, "")
        elif member.card != card:
            raise WrongKey(f"{entry.kind} under another card than {entry.by} has")
        if entry.kind == "card":
            if entry.body != {"card": card.to_dict()}:
                raise BadMessage("shows another card than its signer's")
            return member
        if entry.kind == "rotate":
            following = new_card(entry.statement, card)
            if following.fingerprint in self._ended:
                raise WrongKey("a rotation to a card that has ended")
            self._ended.add(card.fingerprint)
            return replace(member, card=following, profile=None, changed=entry.t)
        profile = Profile.read(entry.statement, card)
        check_later(profile, member.profile, entry.by)
        return replace(member, profile=profile, changed=entry.t)

    def _revoked(self, entry: Entry, card: Card) -> Member:
        body = Revoked.read(entry.statement)
        if entry.by not in (body.name, COORDINATOR) or card.name != entry.by:
            raise WrongKey(f"revokes the card of {body.name}; allowed: {body.name} or {COORDINATOR}")
        member = self._held.get(body.name)
        shown = [card] if entry.by == body.name else []
        if member is not None and member.card is not None:
            shown.append(member.card)
        if body.card in self._ended or any(held.fingerprint != body.card for held in shown):
            raise WrongKey(f"revokes a card that {body.name} does not have")
        self._ended.add(body.card)
        since = entry.seq if member is None else member.since
        return Member(body.name, None, None, since, entry.t, body.reason)


def members_of(ledger: Ledger, size: int | None = None) -> Members:
    """Return the members that the first `size` entries of a ledger show (all by default), in one pass over those of
    `MEMBER_KINDS` outside runs.
    """
    members = Members()
    streams = [ledger.entries(0, size, run="", kind=kind) for kind in MEMBER_KINDS]
    for entry in heapq.merge(*streams, key=lambda entry: entry.seq):
        members.add(entry, ledger.signer(entry))
    return members


class Claims:
    """The roles that the profiles of one ledger claim, by card; kept up with it, so that nothing is read twice."""

    def __init__(self) -> None:
        self._held: dict[str, frozenset[Role]] = {}
        self._upto = 0

    def catch_up(self, ledger: Ledger) -> None:
        """Read what has come since; before one's own transaction writes anything, since that may be taken back."""
        end = ledger.size
        for entry in ledger.entries(self._upto, end, run="", kind=KIND):
            card = ledger.signer(entry)
            try:
                self._held[card.fingerprint] = Profile.read(entry.statement, card).held
            except IntegrityError:
                continue  # as in `Members`
        self._upto = end

    def check(self, statement: Statement, card: Card) -> None:
        """Raise RefusedError for a statement in a run that the roles claimed for its signer's card do not allow."""
        actions = IN_RUNS.get(statement.kind)
        claimed = self._held.get(card.fingerprint)
        if actions is not None and claimed is not None:
            require(card.name, claimed, *actions)
