"""`fedseal audit move --to PLACE`: this home's ledger from its file to PostgreSQL, or back."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.home import Home
    from fl_core.trust.ledger_move import Moved
    from fl_core.trust.postgres_url import Place, PostgresUrl

SAY_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add `move` to the commands of `fedseal audit`."""
    app.command(
        epilog="Examples: fedseal audit move --to postgresql://fedseal@db.example.org/fedseal"
        " · FEDSEAL_LEDGER=postgresql://fedseal@db.example.org/fedseal fedseal audit move --to .fedseal/ledger.db"
    )(move)


def move(
    to: Annotated[
        str,
        typer.Option("--to", metavar="URL|FILE", help="postgresql://…, or this home's ledger.db to come back there."),
    ],
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Compare the copy only; do not check every signature of the ledger."),
    ] = False,
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Go on with the file after a move to this URL that was cut short."),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move this home's ledger, all of it, to PostgreSQL or back.  Stop coordinators and pages before.

    The source takes no entry any more: a file is sealed and gets the name ledger.db.moved-SIZE, in PostgreSQL the
    ledger is marked; both can be read.  Asked for again after a crash, the same move goes on.

    Exit: 0 moved, 1 not moved or not to its end (the line says which), 2 usage.
    """
    from fl_core.home import Home
    from fl_core.trust.ledger_move import move_to_file, move_to_server, take_back
    from fl_core.trust.postgres_url import read_place

    place, target = Home.open(home), read_place(to)
    if undo:
        if isinstance(target, Path):
            raise UsageError(f"--undo: --to {target}; allowed: the URL that the file is sealed for")
        take_back(_file_of(place), target)
        _print_undone(place.ledger_file, as_json=as_json)
        return
    source: Place
    if isinstance(target, Path):
        source = _server_of(place, target)
        moved = move_to_file(source, place.ledger_file, verify=not no_verify, say=_Progress())
    else:
        _check_variable(target)
        source = _file_of(place)
        moved = move_to_server(source, target, verify=not no_verify, say=_Progress())
    if as_json:
        aside = None if moved.aside is None else str(moved.aside)
        print(json.dumps({**asdict(moved), "aside": aside, "from": str(source), "to": str(target)}))
    else:
        _print(source, target, moved)


def _file_of(home: Home) -> Path:
    """This home's file with a ledger."""
    from fl_core.trust.ledger_seal import is_aside

    path = home.ledger_file
    if path.is_file():
        return path
    aside = is_aside(path)
    why = "no ledger here" if aside is None else f"was moved already; the file is {aside.name}"
    raise UsageError(f"{path}: {why}")


def _server_of(home: Home, target: Path) -> PostgresUrl:
    """Where this home's ledger is in PostgreSQL, if it may come to `target`."""
    from fl_core.trust.postgres_url import VARIABLE, PostgresUrl, read_place

    if target.resolve() != home.ledger_file.resolve():
        words = "a ledger is written where its home looks for it; to give one away: fedseal audit export"
        raise UsageError(f"--to {target}; allowed: postgresql://… or {home.ledger_file} ({words})")
    text = os.environ.get(VARIABLE, "")
    source = read_place(text) if text else None
    if not isinstance(source, PostgresUrl):
        raise UsageError(f"{VARIABLE}: {'no URL' if text else 'not set'}; allowed: the URL of the ledger that moves")
    return source


def _check_variable(target: PostgresUrl) -> None:
    """Refuse a move to somewhere else than where this home's commands are told to look."""
    from fl_core.trust.ledger_seal import key_of
    from fl_core.trust.postgres_url import VARIABLE, PostgresUrl, read_place

    text = os.environ.get(VARIABLE, "")
    told = read_place(text) if text else None
    if told is not None and (not isinstance(told, PostgresUrl) or key_of(told) != key_of(target)):
        raise UsageError(f"--to {target}: {VARIABLE} names {told}; allowed: one place, or {VARIABLE} unset")


class _Progress:
    """A line on stderr every 2 s, so that a long ledger is seen to go on."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            print(f"{what} {done:,} of {of:,} {'entries' if what == 'verified' else 'rows'}", file=sys.stderr)


def _print(source: Place, target: Place, moved: Moved) -> None:
    """What was done, and what to set from now on."""
    from fl_core.trust.postgres_url import VARIABLE

    again = ", an earlier move brought to its end" if moved.resumed else ""
    checked = "; every signature verified" if moved.verified else ""
    print(f"moved: {moved.log}, {moved.size} entries, head {moved.root}{again}{checked}")
    print(f"from {source}{f', which is {moved.aside} now' if moved.aside else ''}: takes no entry any more, keep it")
    print(f"to   {target}")
    if isinstance(target, Path):
        print(f"from now on, for every command of this home: unset {VARIABLE}")
    else:
        print(f"from now on, for every command of this home: {VARIABLE} with this URL")


def _print_undone(path: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"undone": True, "ledger": str(path)}))
    else:
        print(f"{path}: the seal is off; nothing was moved")
