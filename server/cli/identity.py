"""`fedseal identity …`: the keys that people and parties sign with, and what they say of themselves."""

from __future__ import annotations

import json
from typing import Any

import typer

from server.cli import identity_forget, identity_keys, identity_profile
from server.cli.desk import EITHER, AsOption, Desk, line, moment, open_desk, people_of
from server.cli.options import HomeOption, JsonOption

app = typer.Typer(
    help="The keys that people and parties sign with: look at them, change them, end them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(epilog="Example: fedseal identity show --as bank --json")
def show(name: AsOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print your card, whose fingerprint others compare with you, and what you have said of yourself under it."""
    with open_desk(home, name, role=EITHER) as desk:
        card, log, history, profile = desk.identity.card, desk.log, _history(desk), desk.said().profile
    if as_json:
        told = {"name": card.name, "card": card.to_dict(), "fingerprint": card.fingerprint, "log": log}
        print(json.dumps(told | {"profile": identity_profile.told(profile), "history": history}))
        return
    line(f"{card.name}  {card.fingerprint}")
    line(f"signs with {card.ed25519}, for {log}")
    identity_profile.show_profile(profile)
    for act in _history_lines(history):
        line(act)


def _history(desk: Desk) -> list[dict[str, Any]]:
    """Rotations and revocations of this name on the board, oldest first."""
    from fl_core.errors import IntegrityError
    from fl_core.trust.rotation import Revoked, rotated

    found: list[dict[str, Any]] = []
    for posted in desk.board.read(["rotate", "revoke"]) if desk.board is not None else ():
        try:
            if posted.entry.kind == "revoke":
                body = Revoked.read(posted.statement)
                told = {"name": body.name, "card": body.card, "by": posted.entry.by, "reason": body.reason}
            else:
                new = rotated(posted.statement, posted.card, log=desk.log)
                told = {"name": new.name, "card": posted.card.fingerprint, "to": new.fingerprint}
        except IntegrityError:
            continue
        if told["name"] == desk.identity.name:
            found.append({"act": posted.entry.kind, "entry": posted.entry.seq, "time": posted.entry.t, **told})
    return found


def _history_lines(history: list[dict[str, Any]]) -> list[str]:
    lines = []
    for act in history:
        when, card = moment(act["time"]), f"{act['card'][:16]}…"
        what = f"{card} → {act['to'][:16]}…" if act["act"] == "rotate" else f"{card} by {act['by']}: {act['reason']}"
        lines.append(f"{when}  {act['act']}  {what}")
    return lines


@app.command(name="list", epilog="Example: fedseal identity list")
def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List whose keys this home holds, and whose cards each has pinned."""
    from fl_core.home import Home
    from fl_core.messages import COORDINATOR
    from fl_core.trust.identity import CardBook, Identity

    place = Home.open(home)
    own: dict[str, dict[str, Any]] = {}
    folders = {name: place.party(name) for name in people_of(place)}
    if (place.coordinator / "identity.key").exists():
        folders = {COORDINATOR: place.coordinator, **folders}
    for name, folder in folders.items():
        pinned = CardBook(folder / "cards.json").all()
        own[name] = {
            "fingerprint": Identity.load_or_create(folder, name).card.fingerprint,
            "pinned": {other: card.fingerprint for other, card in pinned.items()},
        }
    if as_json:
        print(json.dumps({"identities": own}))
        return
    for name, told in own.items():
        line(f"{name:<24} {told['fingerprint']}")
        for other, fingerprint in told["pinned"].items():
            line(f"  pinned {other:<20} {fingerprint}")
    if not own:
        line("no keys here yet; they are made when they are first needed")


identity_profile.register(app)
identity_keys.register(app)
identity_forget.register(app)
