"""`fedseal identity forget`: unpin a peer whose key was revoked."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import BadMessage, UsageError
from fl_core.messages import COORDINATOR
from server.cli.desk import AsOption, board_of, line, people_of
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.home import Home
    from fl_core.trust.identity import Card, CardBook


def register(app: typer.Typer) -> None:
    """Add `forget` to the commands about keys."""
    app.command(
        epilog="Examples: fedseal identity forget bank · at a node, which sees no board: fedseal identity forget bank "
        "--as lab --yes"
    )(forget)


def forget(
    whose: Annotated[str, typer.Argument(metavar="NAME", help="The peer whose card is pinned.")],
    name: AsOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also where the board shows no revocation of the pinned card.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpin the card of a peer whose key was revoked; the next card under that name is believed at first sight.

    This is by hand: a revocation says that a key has ended, not whose the next one is. If it unpinned by itself,
    whoever can have a key revoked, the coordinator too, could put another in its place and read what is sealed to it.
    Ask the peer for the fingerprint of its new card, and compare it with fedseal identity list.
    """
    from fl_core.home import Home
    from fl_core.trust.identity import check_name

    try:
        check_name(whose)
    except BadMessage as error:
        raise UsageError(f"identity forget: {error}") from None
    if whose == COORDINATOR:
        raise UsageError(f"{COORDINATOR}: its key is the log's identity; allowed: a new home for another coordinator")
    place = Home.open(home)
    books = _books(place, name)
    pinned = {who: card for who, book in books.items() if (card := book.get(whose)) is not None}
    if not pinned:
        who = f"{name} has" if name else "nobody here has"
        raise UsageError(f"{whose}: {who} pinned no card of that name; allowed: those of fedseal identity list")
    ended = pinned if yes else {who: card for who, card in pinned.items() if _is_revoked(place, who, card)}
    if not ended:
        cards = ", ".join(dict.fromkeys(f"{card.fingerprint[:16]}…" for card in pinned.values()))
        what = f"the board shows no revocation of the pinned card {cards}"
        raise UsageError(f"{whose}: {what}; allowed: once it was revoked, or --yes if you know better")
    for who, card in ended.items():
        books[who].forget(card)
    if as_json:
        kept = {who: card.fingerprint for who, card in pinned.items() if who not in ended}
        told = {who: card.fingerprint for who, card in ended.items()}
        print(json.dumps({"name": whose, "forgotten": told, "kept": kept, "by_revocation": not yes}))
        return
    for who, card in ended.items():
        line(f"{who}: has forgotten card {card.fingerprint[:16]}… of {whose}")
    unsure = " (no revocation was looked for)" if yes else ""
    line(f"whoever comes next as {whose} is believed at first sight{unsure}: compare fingerprints with them")


def _books(place: Home, name: str | None) -> dict[str, CardBook]:
    """The pinned cards of one, or of all who have keys in this home, the coordinator too."""
    from fl_core.trust.identity import CardBook

    folders = {who: place.party(who) for who in people_of(place)}
    if (place.coordinator / "identity.key").exists():
        folders[COORDINATOR] = place.coordinator
    if name is not None and name not in folders:
        raise UsageError(f"--as {name:.64}: has no keys in this home; allowed: {', '.join(folders) or 'none'}")
    return {who: CardBook(folder / "cards.json") for who, folder in folders.items() if name in (None, who)}


def _is_revoked(place: Home, who: str, card: Card) -> bool:
    """Whether the board, as `who` reads it, shows a revocation of exactly this card."""
    from clients.board import LocalBoard
    from clients.own_profile import revoked_cards

    with ExitStack() as stack:
        board = LocalBoard(place) if who == COORDINATOR else board_of(stack, place, who)[0]
        if board is None:
            allowed = "fedseal login FILE with a pass, or --yes if you know of a revocation"
            raise UsageError(f"{who}: has no way to the coordinator's board, which would show one; allowed: {allowed}")
        return card.fingerprint in revoked_cards(board, card.name)
