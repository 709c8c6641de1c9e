"""The members of a federation: names, cards and profiles, as the entries of its ledger come to them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

from fl_core.errors import BadMessage, IntegrityError, WrongKey
from fl_core.messages import COORDINATOR
from fl_core.trust.entry import Entry
from fl_core.trust.identity import Card
from fl_core.trust.ledger import Ledger
from fl_core.trust.profile import KIND, Profile, check_later
from fl_core.trust.roles import Role
from fl_core.trust.rotation import Revoked, new_card

MEMBER_KINDS = ("card", KIND, "rotate", "revoke")


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
