"""Who is on the board, and what one has said there of oneself; one's own last profile is kept in one's folder too.

::

    parties/<name>/profile.json    the last profile that was posted or written, with the card that signed it

So a node that cannot read the board says the same once more, and not a new thing each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clients.board import Board
from fl_core.errors import BadMessage, IntegrityError, UsageError
from fl_core.files import write_atomic
from fl_core.messages import COORDINATOR
from fl_core.trust import canonical
from fl_core.trust.entry import MAX_ENTRY, Statement
from fl_core.trust.fields import check_text
from fl_core.trust.identity import Card
from fl_core.trust.members import MEMBER_KINDS, Members
from fl_core.trust.profile import Profile
from fl_core.trust.rotation import Revoked, rotated

_FILE = "profile.json"


@dataclass(frozen=True)
class People:
    """Everybody on a board.

    Attributes
    ----------
    members
        Names, cards and profiles as they stand now.
    times
        Places in the log, and when they were taken: milliseconds since 1970 UTC, of the coordinator's clock.
    rotations
        How often a name has changed its key.
    refused
        What was left out, in words.
    """

    members: Members
    times: Mapping[int, int]
    rotations: Mapping[str, int]
    refused: tuple[str, ...]


def read_people(board: Board) -> People:
    """Return everybody whom a board shows."""
    members, times, rotations = Members(), dict[int, int](), Counter[str]()
    for posted in board.read(MEMBER_KINDS):
        members.add(posted.entry, posted.card)
        times[posted.entry.seq] = posted.entry.t
        if posted.entry.kind == "rotate" and _rotates(posted.statement, posted.card, board.log):
            rotations[posted.entry.by] += 1
    left_out = dict.fromkeys([*members.refused, *getattr(board, "refused", [])])
    return People(members, times, rotations, tuple(left_out))


def _rotates(statement: Statement, card: Card, log: str) -> bool:
    try:
        return bool(rotated(statement, card, log=log))
    except IntegrityError:  # named in what was left out
        return False


def revoked_cards(board: Board, name: str) -> frozenset[str]:
    """Return the fingerprints of the cards of `name` that were revoked, by their own keys or by the coordinator."""
    found = set()
    for posted in board.read(["revoke"]):
        try:
            body = Revoked.read(posted.statement)
        except BadMessage:  # it ends nothing
            continue
        if body.name == name and (posted.entry.by == COORDINATOR or posted.card.fingerprint == body.card):
            found.add(body.card)
    return frozenset(found)


@dataclass(frozen=True)
class Said:
    """What somebody has said of itself.

    Attributes
    ----------
    statement
        The profile of the present card, as it was signed; None where nothing was said under it.
    profile
        What that says.
    before
        The last profile of this name, under the present card or one that was rotated since.
    on_board
        Whether the board shows `statement`.
    """

    statement: Statement | None = None
    profile: Profile | None = None
    before: Profile | None = None
    on_board: bool = False


def said_on(board: Board, card: Card) -> Said:
    """Return what the board shows of the party of `card`; a revoked card's profile counts for nothing."""
    said = Said()
    for posted in board.read(["profile", "revoke"]):
        try:
            if posted.entry.kind == "revoke":
                said = Said() if Revoked.read(posted.statement).name == card.name else said
            elif posted.entry.by == card.name:
                said = _under(card, posted.statement, posted.card)
        except IntegrityError:  # no profile, no revocation
            continue
    return replace(said, on_board=said.statement is not None)


def kept(folder: Path, card: Card, *, log: str) -> Said:
    """Return what one's own folder has kept for this card and log.  Raises UsageError for a damaged file."""
    path = folder / _FILE
    if not path.exists():
        return Said()
    try:
        table = canonical.decode(path.read_bytes(), max_bytes=MAX_ENTRY)
        if not isinstance(table, dict) or set(table) != {"statement", "card"}:
            raise BadMessage("expected a statement and a card")
        statement, signer = Statement.from_dict(table["statement"]), Card.from_dict(table["card"])
        statement.verify(signer)
        said = _under(card, statement, signer)
    except IntegrityError as error:
        raise UsageError(f"{path}: not a profile ({error}); allowed: to remove it, it is said anew") from None
    if card.name != signer.name or statement.log != log:
        return Said()
    return said


def keep(folder: Path, statement: Statement, card: Card) -> None:
    """Keep a profile that was posted or written, and the card that signed it."""
    table = {"statement": statement.to_dict(), "card": card.to_dict()}
    write_atomic(folder / _FILE, canonical.encode(table))


def forget(folder: Path) -> None:
    """Keep none any more: its key was revoked."""
    (folder / _FILE).unlink(missing_ok=True)


def _under(card: Card, statement: Statement, signer: Card) -> Said:
    profile = Profile.read(statement, signer)
    return Said(statement, profile, profile) if signer == card else Said(before=profile)


def check_contact(text: str) -> str:
    """Return a contact as a profile can hold it: nothing, or one printable line of at most 200 characters.

    Raises UsageError.
    """
    try:
        if text:
            check_text(text, "--contact")
    except BadMessage as error:
        raise UsageError(str(error)) from None
    return text
