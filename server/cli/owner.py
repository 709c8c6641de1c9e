"""`fedseal owner`: one data owner's page, served on loopback or written as a file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import FedsealError, UsageError
from server.cli.options import HomeOption

if TYPE_CHECKING:
    from fl_core.home import Home

SYNC_SECONDS = 60.0
REFRESH_SECONDS = 30
_MARKS = ("node.json", "grants.db", "budget.db", "consent")


def register(app: typer.Typer) -> None:
    """Add `owner` to the commands."""
    app.command(epilog="Examples: fedseal owner --as bank · fedseal owner --as bank --out page.html")(owner)


def owner(
    name: Annotated[str | None, typer.Option("--as", "--name", help="Whose data, if this home has several.")] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="PORT alone is one of loopback.")
    ] = "9471",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the page there; serve nothing.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take up nothing from the coordinator's board before.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Show an owner what is published, granted, used, left and waiting; decisions are commands that it spells out."""
    from fl_core.files import write_atomic
    from fl_core.home import Home
    from server.cli.owner_facts import gather
    from server.owner_page import html
    from server.web.site import POLICY, Site, page_address, serve_until_stopped

    place = Home.at(home)
    whose = _whose(place, name)
    board = Board(place, whose)
    if not offline:
        board.read()
    if out is not None:
        write_atomic(out, html(gather(place, whose, board.notes), policy=POLICY).encode(), mode=0o600)
        print(out)
        return
    address = page_address(listen, "--listen")
    if not offline:
        board.keep_reading()
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    def show(request: Request) -> Response:
        return HTMLResponse(html(gather(place, whose, board.notes), refresh=REFRESH_SECONDS))

    serve_until_stopped(Site([Route("/", show)], address))


def _whose(home: Home, name: str | None) -> str:
    """The owner who is meant.  Raises `UsageError`."""
    folders = sorted(home.path.glob("parties/*"))
    known = [path.name for path in folders if any((path / mark).exists() for mark in _MARKS)]
    if name is None and len(known) == 1:
        return known[0]
    if name is None or name not in known:
        problem = "--as: whose data?" if name is None else f"--as {name:.80}: no such owner here."
        allowed = ", ".join(known) or "none yet: fedseal node init, or fedseal run"
        raise UsageError(f"{problem} In {home.path} allowed: {allowed}")
    return name


class Board:
    """What others say of the owner's data, taken up by this command as `fedseal grant list` does; never by the page."""

    def __init__(self, home: Home, name: str) -> None:
        self._home, self._name = home, name
        self.notes: list[str] = []

    def read(self) -> None:
        """Take up what is new; what goes wrong becomes a note."""
        from server.cli.desk import has_pass, open_desk

        if not self._home.ledger.exists() and not has_pass(self._home):
            self.notes = ["there is no way to the coordinator's board from this home: requests come as files"]
            return
        try:
            with open_desk(self._home.path, self._name) as desk:
                self.notes = [f"left out: {words}" for words in desk.sync()]
        except FedsealError as error:
            self.notes = [f"the coordinator's board was not read: {' '.join(str(error).split())}"]

    def keep_reading(self) -> None:
        """Read again every minute, in a thread that ends with the program."""

        def work() -> None:
            while True:
                pause.wait(SYNC_SECONDS)
                self.read()

        pause = threading.Event()
        threading.Thread(target=work, name="board", daemon=True).start()
