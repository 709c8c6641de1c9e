"""`fedseal identity rotate | revoke`: change a key, end one."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.desk import EITHER, AsOption, Desk, OutOption, has_pass, line, now_ms, open_desk, people_of
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from clients.consent.decision import Consent
    from fl_core.home import Home
    from fl_core.trust.entry import Statement
    from fl_core.trust.grants import Terms
    from fl_core.trust.identity import Card, Identity


def register(app: typer.Typer) -> None:
    """Add `rotate` and `revoke` to the commands about keys."""
    app.command(
        epilog="Examples: fedseal identity rotate --as bank · at a node without a pass: fedseal identity rotate --out "
        "rotation.json, and when it is on the ledger: fedseal identity rotate --done"
    )(rotate)
    app.command(
        epilog='Examples: fedseal identity revoke bank --reason "the laptop was stolen" · as the operator: fedseal '
        'identity revoke bank --reason "left the federation" --as coordinator'
    )(revoke)


def rotate(
    name: AsOption = None,
    out: OutOption = None,
    done: Annotated[
        bool, typer.Option("--done", help="The rotation written with --out is on the ledger: use the new key.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also while runs are under way, which then do not go on.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change to a new key, signed by the old one and the new one; do it between runs.

    Roles and contact are said again, data published again and standing grants given again under the new key; other
    grants name the old key and end. Refused while runs hold a use of your data, since they began under the old key.
    """
    from fl_core.trust.identity import Identity

    with open_desk(home, name, role=EITHER) as desk:
        next_folder = desk.folder / "next"
        if done and not (next_folder / "identity.key").exists():
            raise UsageError("identity rotate --done: no rotation was begun here; allowed: fedseal identity rotate")
        if not done:
            desk.check_way(out)
        if not anyway:
            _check_idle(desk)
        old, new = desk.identity, Identity.load_or_create(next_folder, desk.identity.name)
        told = {"name": old.name, "old": old.card.fingerprint, "new": new.card.fingerprint}
        if not done:
            said = _post_rotation(desk, new, out)
            if out is not None:
                _print(told | {"done": said}, f"{said}; then: fedseal identity rotate --done", as_json)
                return
        again = _switch(desk, new)
        if desk.board is not None or (done and out is not None):
            desk.say(again, out)  # with the profile, which went with the old card
    _print(told, f"{old.name}: {told['old'][:16]}… is now {told['new'][:16]}…", as_json)


def _check_idle(desk: Desk) -> None:
    """Raise UsageError while a run holds a use of one's data."""
    if not (desk.folder / "grants.db").exists():
        return
    if runs := desk.consent.store.open_runs():
        first = f"{', '.join(runs[:8])}{', …' if len(runs) > 8 else ''}"
        allowed = f"to wait, fedseal stop {runs[0]}, or --anyway"
        raise UsageError(f"identity rotate: under way under the present key: {first}; allowed: {allowed}")


def _post_rotation(desk: Desk, new: Identity, out: Path | None) -> str:
    """Have the rotation on the board, or in a file; one that was cut short is taken up again."""
    from fl_core.trust import rotation

    statement = rotation.rotate(desk.identity, new, log=desk.log)
    there = desk.board.read(["rotate"]) if out is None and desk.board is not None else []
    if any(posted.statement == statement for posted in there):
        return "on the ledger"
    return desk.say([statement], out)


def _switch(desk: Desk, new: Identity) -> list[Statement]:
    """Use the new key from here on; return what is to be said again under it.  May be cut short and done again."""
    from clients.consent.decision import Consent
    from clients.consent.folder import ConsentFolder
    from fl_core.trust import catalog

    old, consent = desk.consent, Consent(desk.folder, new)
    standing = _standing_of(old) if (desk.folder / "grants.db").exists() else []
    offered, kept = [], []
    for held in old.listings():
        at = max(now_ms(), held.time + 1)
        kept.append(dataclasses.replace(held.card, published=at).sign(new, log=desk.log))
        if held.withdrawn:
            kept.append(catalog.withdraw(new, held.card.name, time=at + 1, log=desk.log))
        else:
            offered.append(kept[-1])
    if kept:
        with ConsentFolder(desk.folder / "consent").change() as folder:
            folder.datasets = kept
    os.replace(desk.folder / "next" / "identity.key", desk.folder / "identity.key")
    (desk.folder / "next").rmdir()
    for id_, _ in standing:
        old.revoke(id_, "the key was rotated", log=desk.log)
    desk.become(new)
    given = (consent.standing(terms.dataset, terms.kinds, log=desk.log) for _, terms in standing)
    return [*offered, *(statement for statement in given if statement is not None)]


def _standing_of(consent: Consent) -> list[tuple[str, Terms]]:
    """Standing grants that hold under the present key: id and terms."""
    me = consent.identity.card.fingerprint
    return [
        (account.grant.id, account.grant.terms)
        for account in consent.grants()
        if account.grant.terms.standing and not account.revoked and account.grant.approvals[-1].fingerprint == me
    ]


def revoke(
    whose: Annotated[str, typer.Argument(metavar="NAME", help="Whose key.")],
    reason: Annotated[str, typer.Option("--reason", help="One line; everybody can read it.")],
    card: Annotated[
        str | None, typer.Option("--card", metavar="FINGERPRINT", help="Which, where the board does not show it.")
    ] = None,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key: your own, or as the operator somebody else's.  Nothing by that name counts until a new card is let in.

    Whoever's key it was loses the pass and the node's registration; the operator gives them again.
    """
    from fl_core.home import Home
    from fl_core.messages import COORDINATOR

    place = Home.open(home)
    if whose == COORDINATOR:
        raise UsageError(f"{COORDINATOR}: its key is the log's identity; allowed: a new home with a new ledger")
    own = whose in people_of(place) and name in (None, whose)
    if own:
        told, said = _revoke_own(place, whose, reason, out)
    elif has_pass(place):
        told, said = _revoke_as_operator(place, whose, reason, card, name, out)
    elif name in (None, COORDINATOR) and (place.coordinator / "identity.key").exists():
        told, said = _revoke_at_coordinator(place, whose, reason)
    else:
        raise UsageError(f"{whose:.64}: no key of that name here; allowed: {', '.join(people_of(place)) or 'none'}")
    _print({"name": whose, "card": told, "done": said}, f"{whose}: {told[:16]}… revoked, {said}", as_json)


def _revoke_own(place: Home, whose: str, reason: str, out: Path | None) -> tuple[str, str]:
    with open_desk(place.path, whose) as desk:
        desk.check_way(out)
        fingerprint = desk.identity.card.fingerprint
        said = desk.say([_revocation(desk.identity, whose, fingerprint, reason, desk.log)], out)
        if out is None:
            _set_aside(desk.folder, desk.identity.card)
    return fingerprint, said


def _set_aside(folder: Path, card: Card) -> None:
    """A revoked key signs nothing any more, not even in one's own eyes; the next one is made when it is needed."""
    from clients.own_profile import forget
    from fl_core.trust.identity import CardBook

    forget(folder)
    book = CardBook(folder / "cards.json")
    if book.get(card.name) == card:
        book.forget(card)
    os.replace(folder / "identity.key", folder / f"identity.key.revoked-{card.fingerprint[:16]}")


def _revoke_as_operator(
    place: Home, whose: str, reason: str, card: str | None, name: str | None, out: Path | None
) -> tuple[str, str]:
    """Through the door, which asks for the role and has the coordinator sign."""
    with open_desk(place.path, name) as desk:
        desk.check_way(out)
        fingerprint = card or _shown(desk, whose)
        return fingerprint, desk.say([_revocation(desk.identity, whose, fingerprint, reason, desk.log)], out)


def _shown(desk: Desk, whose: str) -> str:
    """The card that the board shows for somebody."""
    from clients.own_profile import read_people

    member = read_people(desk.need_board("--out FILE")).members.get(whose)
    if member is None or member.card is None:
        raise UsageError(f"{whose:.64}: the board shows no card of that name; allowed: --card FINGERPRINT")
    return member.card.fingerprint


def _revoke_at_coordinator(place: Home, whose: str, reason: str) -> tuple[str, str]:
    from clients.board import LocalBoard
    from fl_core.trust.identity import Identity

    board = LocalBoard(place)
    held = board.card(whose) if place.ledger.exists() else None
    if held is None:
        raise UsageError(f"{whose:.64}: has no card on this ledger, or it was revoked")
    size, _ = board.post([_revocation(board.coordinator, whose, held.fingerprint, reason, board.log)])
    if (place.coordinator / "coordinator.json").exists():
        from server.cli.coordinator import note_for
        from server.coordinator.board import keep_out
        from server.coordinator.folder import CoordinatorFolder

        folder = CoordinatorFolder.open(place)
        keep_out(folder, whose, note_for(folder))
    if whose in people_of(place) and Identity.load_or_create(place.party(whose), whose).card == held:
        _set_aside(place.party(whose), held)
    return held.fingerprint, f"on the ledger ({size} entries)"


def _revocation(identity: Identity, whose: str, fingerprint: str, reason: str, log: str) -> Statement:
    from fl_core.errors import IntegrityError
    from fl_core.trust.rotation import Revoked

    try:
        return Revoked(whose, fingerprint, reason).sign(identity, log=log)
    except IntegrityError as error:
        raise UsageError(f"identity revoke: {error}") from None


def _print(told: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
    else:
        line(text)
