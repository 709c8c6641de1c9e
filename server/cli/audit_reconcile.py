"""`fedseal audit reconcile [RUN]` compares MLflow with the ledger; `fedseal audit report RUN` makes a page on one."""

from __future__ import annotations

import json
import re
import sys
import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import FedsealError, JobFailed, LedgerBroken, UsageError
from fl_core.files import write_atomic
from server.cli.options import HomeOption, JsonOption, LedgerOption, find_ledger

if TYPE_CHECKING:
    from fl_core.home import Home
    from fl_core.trust.postgres_url import Place
    from server.reconcile.compare import Difference, Reconciled
    from server.report.facts import Verdict

NAMES = 40  # differences printed of one run; --json has all


class Open(StrEnum):
    """Whether to show the page in a browser; auto: where a person sits at the terminal."""

    YES = "yes"
    NO = "no"
    AUTO = "auto"


def register(app: typer.Typer) -> None:
    """Add `reconcile` and `report` to the commands of `fedseal audit`."""
    app.command(epilog="Examples: fedseal audit reconcile · fedseal audit reconcile credit --repair")(reconcile)
    app.command(epilog="Example: fedseal audit report credit --out credit.html --open no")(report)


def reconcile(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run or MLflow run id, a name, or an output folder; else all runs."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write what MLflow missed; nothing that is there is written over.")
    ] = False,
    ledger: LedgerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what MLflow shows with the ledger and name every difference.  Exit: 0 equal, 1 differs, 2 usage."""
    from fl_core.home import Home
    from fl_core.trust.ledger import Ledger
    from server.reconcile.compare import Reconciler
    from server.reconcile.repair import repair as write_missing

    place = Home.open(home)
    path = find_ledger(ledger, home)
    _require_sound(path)
    with Ledger.open(path) as opened:
        reconciler = Reconciler(place, opened)
        wanted = [_run_id(run, place)] if run else reconciler.runs()
        act = (lambda one: write_missing(reconciler, one)) if repair else reconciler.compare
        results = [act(one) for one in wanted]
        strays = [] if run else reconciler.strays()
    equal = not strays and all(result.equal for result in results)
    if as_json:
        told = {"equal": equal, "runs": [r.to_dict() for r in results], "strays": [d.words for d in strays]}
        print(json.dumps(told | {"ledger": str(path)}))
    else:
        _print(results, strays, repair=repair)
    raise typer.Exit(0 if equal else 1)


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run or MLflow run id, a name, or an output folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page (default RUN's name and -audit.html).")
    ] = None,
    open_page: Annotated[
        Open, typer.Option("--open", help="Show it in a browser; auto: where you are at a terminal.")
    ] = Open.AUTO,
    ledger: LedgerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a run and write an HTML page on it.  Exit: 0 valid, 1 broken or MLflow differs, 2 usage, 4 no quorum."""
    from fl_core.home import Home
    from server.report.facts import judge
    from server.report.page import render

    place = Home.open(home)
    path = find_ledger(ledger, home)
    number = _run_id(run, place)
    verdict = judge(path, number)
    facts = _facts(path, place, number, verdict)
    target = out or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', str(facts['name'])).strip('.-') or number}-audit.html")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: no such folder")
    write_atomic(target, render(facts).encode(), mode=0o644)
    found = facts["audit"].mlflow
    differs = found is not None and not found.equal
    word = {0: "VALID", 1: "BROKEN", 4: "SHORT OF QUORUM"}[verdict.status or 0]
    if as_json:
        told = {"verdict": word, "reason": verdict.reason, "page": str(target), "run": number}
        print(json.dumps(told | {"mlflow": None if found is None else "differs" if differs else "equal"}))
    else:
        same = "was not compared" if found is None else "differs" if differs else "shows the same"
        print(f"{word}; MLflow {same}: {target}")
    if open_page is Open.YES or (open_page is Open.AUTO and not as_json and sys.stdout.isatty()):
        webbrowser.open(target.absolute().as_uri())
    raise typer.Exit(verdict.status or (1 if differs else 0))


def _facts(path: Place, home: Home, run: str, verdict: Verdict) -> dict[str, Any]:
    """What the page says; of a ledger that cannot even be read, its verdict alone."""
    from fl_core.errors import BadMessage
    from fl_core.trust.ledger import Ledger
    from server.report.facts import Audit, examine, gather, nothing_but

    try:
        with Ledger.open(path) as opened:
            facts = gather(opened, path, run)
            audit = examine(opened, run, verdict, now=True)
            _compare(home, opened, run, audit)
    except UsageError:
        if verdict.status != 1:
            raise
        return nothing_but(run, path) | {"audit": Audit(verdict, now=True)}
    except (LedgerBroken, BadMessage, KeyError, TypeError, ValueError, AttributeError) as error:
        if verdict.status != 1:
            raise JobFailed(f"{path}: entries of run {run} are not what a run writes ({error!r:.100})") from None
        return nothing_but(run, path) | {"audit": Audit(verdict, now=True)}
    return facts | {"audit": audit}


def _compare(home: Home, ledger: Any, run: str, audit: Any) -> None:
    """Hold MLflow against the ledger, or say why not."""
    from server.reconcile.compare import Reconciler

    try:
        audit.mlflow = Reconciler(home, ledger).compare(run)
    except FedsealError as error:
        audit.why_not = str(error)


def _require_sound(path: Place) -> None:
    """A broken ledger is nothing to compare with."""
    from fl_core.trust.ledger_copy import as_file
    from fl_core.trust.verify import verify_ledger

    with as_file(path) as file:
        found = verify_ledger(file)
    if found.status == 1:
        where = "" if found.first_bad is None else f"entry {found.first_bad}: "
        raise LedgerBroken(f"{path}: {where}{found.reason}; nothing can be compared with a broken ledger")


def _print(results: list[Reconciled], strays: list[Difference], *, repair: bool) -> None:
    """In words; names and values from outside are printed as they are, never as markup."""
    from rich.console import Console

    from fl_core.text import printable

    console = Console(highlight=False)

    def say(line: str, style: str = "") -> None:
        console.print(printable(line), style=style, markup=False, soft_wrap=True)

    for result in results:
        counted = ", ".join(f"{number} {what}" for what, number in result.compared.items()) or "nothing"
        say(f"{'EQUAL' if result.equal else 'DIFFERS'}  {result.name} {result.run}", "green" if result.equal else "red")
        say(f"  compared: {counted}")
        for difference in result.differences[:NAMES]:
            say(f"  {difference.words}")
        if len(result.differences) > NAMES:
            say(f"  and {len(result.differences) - NAMES} more (--json has all)")
        for words in result.repaired:
            say(f"  repaired: {words}")
        for words in result.unrepaired[:NAMES]:
            say(f"  {words}")
        say(f"  not compared: {'; '.join(result.unchecked) or 'nothing'}")
    for stray in strays:
        say(f"DIFFERS  {stray.words}", "red")
    if not results and not strays:
        say("no runs")
    if not repair and any(d.problem == "missing" for result in results for d in result.differences):
        say("what is missing can be written: fedseal audit reconcile --repair")


def _run_id(wanted: str, home: Home) -> str:
    from server.registry import find

    try:
        return find(home, wanted)[1].run
    except UsageError:
        if re.fullmatch("[0-9a-f]{16}", wanted):
            return wanted
        raise
