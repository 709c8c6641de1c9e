"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError

if TYPE_CHECKING:
    from fl_core.trust.postgres_url import Place

HomeOption = Annotated[Path | None, typer.Option("--home", help="Instead of FEDSEAL_HOME or ./.fedseal.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
LedgerOption = Annotated[
    str | None,
    typer.Option("--ledger", metavar="FILE|URL", help="A file or postgresql://… instead of this home's ledger."),
]


def find_ledger(ledger: str | None, home: Path | None) -> Place:
    """Return where the ledger is that is meant: as `--ledger` says, else this home's; raises UsageError."""
    from fl_core.home import Home
    from fl_core.trust.postgres_url import read_place

    place = Home.open(home).ledger if ledger is None else read_place(ledger)
    if isinstance(place, Path) and not place.is_file():
        raise UsageError(f"{place}: no ledger here")
    return place
