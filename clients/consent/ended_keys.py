"""Keys that have ended, at a party's own node: heard of with each job, before its data are opened.

Kept is what the party has to do with: cards that it has pinned, of its grants, of the job, and the order's. So nobody
fills its files with keys that were made to be revoked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from clients.consent.folder import ConsentFolder
from fl_core.errors import WrongKey
from fl_core.job import Job
from fl_core.messages import Packet, sha256
from fl_core.trust import order
from fl_core.trust.identity import Card
from fl_core.trust.rotation_shown import FIELD, ended_shown

if TYPE_CHECKING:
    from clients.store import PartyStore


def take_up(store: PartyStore, packet: Packet, job: Job, coordinator: Card) -> None:
    """Distrust the cards that have ended, as an authenticated request shows them.

    Raises as `fl_core.trust.rotation_shown.ended_shown` where anything of it does not verify; then none is.
    """
    # Pins stay, for the owner to forget by hand: a coordinator may revoke a card by its own word, and the next one
    # that it brings would be pinned in its place.
    shown = ended_shown(packet.extra.get(FIELD, []), log=packet.statement.log, coordinator=coordinator)
    if (new := shown - store.consent.revoked_keys) and (mine := new & _met(store, packet, job)):
        store.consent.distrust(*mine)


def check_cards(store: PartyStore, cards: Iterable[Card]) -> None:
    """Refuse (`WrongKey`) a run with a card that is known to have ended."""
    known = store.consent.revoked_keys
    if ended := sorted(card.name for card in cards if card.fingerprint in known):
        raise WrongKey(f"the roster shows a card of {', '.join(ended)} that was rotated or revoked")


def _met(store: PartyStore, packet: Packet, job: Job) -> set[str]:
    """Fingerprints of cards that this party has to do with."""
    met = {card.fingerprint for card in store.cards.all().values()}
    met |= {party.key for party in job.parties if party.key is not None}
    met.add(sha256(packet.blobs.get(order.CARD_BLOB, b"")))  # canonical, so this is its fingerprint
    for id in ConsentFolder(store.path / "consent").read().grants:
        if (grant := store.consent.grant(id)) is not None:
            met |= {signer.fingerprint for signer in (grant.terms.grantee, *grant.approvals)}
    return met
