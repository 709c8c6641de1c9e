"""`fedseal audit serve`: the ledger and MLflow as web pages that nobody can write through."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, LedgerOption


def register(app: typer.Typer) -> None:
    """Add `serve` to the commands of `fedseal audit`."""
    app.command(
        epilog="Examples: fedseal audit serve --ledger /media/copy/ledger.db --since kept.checkpoint"
        " · fedseal audit serve --ledger postgresql://auditor@db.example.org/fedseal"
    )(serve)


def serve(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="PORT alone is one of loopback.")
    ] = "9470",
    ledger: LedgerOption = None,
    since: Annotated[
        Path | None,
        typer.Option("--since", metavar="CHECKPOINT", help="A checkpoint kept from earlier, which it must continue."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The coordinator's Ed25519 key, 64 hex characters, if known.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Show runs, entries, proofs and the verifier's verdict to auditors, until SIGTERM or Ctrl-C; it writes nothing."""
    from fl_core.home import Home
    from fl_core.trust.postgres_url import read_place
    from server.audit_site.site import AuditSite
    from server.web.site import page_address, serve_until_stopped

    address, place = page_address(listen, "--listen"), Home.at(home)
    path = place.ledger if ledger is None else read_place(ledger)
    if isinstance(path, Path):
        path = path.absolute()
        if not path.is_file():
            raise UsageError(f"{path}: no ledger here")
    try:
        kept = since.read_text(encoding="utf-8") if since else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--since {since}: cannot be read ({error})") from None
    serve_until_stopped(AuditSite(path, place, since=kept, key=key).open(address))
