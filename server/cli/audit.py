"""`fedseal audit verify | usage | show | prove`: what an auditor needs, offline."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.trust.ledger import Ledger
    from fl_core.trust.verify import Report

app = typer.Typer(
    help="Check the ledger, look into it, prove what is in it.", no_args_is_help=True, rich_markup_mode=None
)

LedgerOption = Annotated[
    Path | None, typer.Option("--ledger", metavar="FILE", help="Instead of this home's ledger.db.")
]
VERDICTS = {0: "VALID", 1: "BROKEN", 4: "VALID, BUT SHORT OF QUORUM"}


def _path(ledger: Path | None, home: Path | None) -> Path:
    from fl_core.home import Home

    path = ledger or Home.open(home).ledger
    if not path.is_file():
        raise UsageError(f"{path}: no ledger here")
    return path


@app.command(epilog="Examples: fedseal audit verify · fedseal audit verify --ledger ledger.db --since kept.checkpoint")
def verify(
    ledger: LedgerOption = None,
    since: Annotated[
        Path | None,
        typer.Option(
            "--since",
            metavar="CHECKPOINT",
            help="A checkpoint note kept from earlier: the ledger must continue it.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The coordinator's Ed25519 key, 64 hex characters, if known.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify entries, signatures, checkpoints, co-signatures.  Exit: 0 valid, 1 broken, 2 usage, 4 short of quorum."""
    from fl_core.trust.verify import NotALedger, verify_ledger

    path = _path(ledger, home)
    try:
        kept = since.read_text(encoding="utf-8") if since else None
        report = verify_ledger(path, since=kept, coordinator_key_hex=key)
    except (NotALedger, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"audit verify: {error}") from None
    if as_json:
        print(json.dumps({**asdict(report), "verdict": VERDICTS[report.status], "ledger": str(path)}))
    else:
        _print_report(path, report)
    raise typer.Exit(report.status)


def _print_report(path: Path, report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    colour = {0: "green", 1: "red", 4: "yellow"}[report.status]
    console.print(f"[bold {colour}]{VERDICTS[report.status]}[/bold {colour}]  {path}", soft_wrap=True)
    if report.first_bad is not None:
        console.print(f"first bad entry: {report.first_bad}: {report.reason}")
    elif report.status:
        console.print(report.reason)
    console.print(f"log {report.log}, {report.size} entries, head {report.root}", soft_wrap=True)
    console.print(f"{report.signatures} signatures and {report.checkpoints} checkpoints in {report.seconds:.2f} s")
    for name, run in report.runs.items():
        console.print(
            f"run {name}: {run.state}, {run.entries} entries, co-signed by {run.cosigned}, quorum {run.quorum}"
        )


@app.command(epilog="Example: fedseal audit usage --ledger .fedseal/serving/ledger.db --json")
def usage(ledger: LedgerOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Who was served how much by this model's owner: blocks, rows and bytes by client and model."""
    from fl_core.home import Home
    from fl_core.trust.ledger import Ledger

    path = ledger or Home.open(home).path / "serving" / "ledger.db"
    if not path.is_file():
        raise UsageError(f"{path}: no ledger here")
    with Ledger.open(path) as opened:
        found = _usage(opened)
    if as_json:
        print(json.dumps({"usage": found, "ledger": str(path)}))
        return
    for line in found:
        told = f"{line['rows']:>10} rows {line['blocks']:>8} blocks {line['bytes']:>14} bytes"
        print(f"{line['client']:<20} {line['model']:<20} {told}")


def _usage(ledger: Ledger) -> list[dict[str, Any]]:
    """The sums, by client and model, of receipts; `audit verify` says whether they may be believed."""
    sums: dict[tuple[str, str], list[int]] = {}
    for entry in ledger.entries(kind="served"):
        request, body = entry.body["request"], entry.body
        line = sums.setdefault((request["by"], request["body"]["model"]), [0, 0, 0])
        for i, value in enumerate((1, request["body"]["rows"], body["received"] + body["answered"])):
            line[i] += value
    return [
        {"client": client, "model": model, "blocks": blocks, "rows": rows, "bytes": size}
        for (client, model), (blocks, rows, size) in sorted(sums.items())
    ]


@app.command(epilog="Examples: fedseal audit show · fedseal audit show digits-ckks-dp --kind round")
def show(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only this run's entries.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only entries of this kind, e.g. round, update, drop.")
    ] = None,
    ledger: LedgerOption = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Entries as JSON lines.")] = False,
) -> None:
    """List the ledger's entries in words."""
    from fl_core.trust.ledger import Ledger

    path = _path(ledger, home)
    wanted = _run_id(run, home) if run else None
    with Ledger.open(path) as opened:
        if not as_json:
            print(f"log {opened.log}, {opened.size} entries, head {opened.root.hex()}")
        for entry in opened.entries(run=wanted, kind=kind):
            if as_json:
                print(entry.encode().decode())
                continue
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.t / 1000))
            print(f"{entry.seq:6d}  {when}Z  {entry.kind:<9} {entry.by:<16} {_words(entry.kind, entry.body)}")


def _run_id(wanted: str, home: Path | None) -> str:
    """A run of this home by any of its names, or the id itself where the ledger came without a home."""
    from fl_core.home import Home
    from server.registry import find

    try:
        return find(Home.open(home), wanted)[1].run
    except UsageError:
        if len(wanted) == 16 and not set(wanted) - set("0123456789abcdef"):
            return wanted
        raise


def _words(kind: str, body: dict[str, Any]) -> str:
    """One line about an entry."""
    if kind == "round":
        shown = " ".join(f"{k}={v}" for k, v in body["metrics"].items())
        return f"round {body['round']}: {shown}"
    if kind in ("log", "card"):
        return f"key {body['card']['ed25519'][:16]}…"
    keys = ("round", "act", "party", "step", "code", "status", "epsilon", "job", "role", "model", "sum")
    parts = [f"{k}={str(body[k])[:16]}" for k in keys if k in body]
    if isinstance(body.get("parties"), list):
        parts.append(f"parties={','.join(map(str, body['parties']))}")
    return " ".join(parts)


@app.command(
    epilog="Example: fedseal audit checkpoint > kept.checkpoint; later: fedseal audit verify --since kept.checkpoint"
)
def checkpoint(ledger: LedgerOption = None, home: HomeOption = None) -> None:
    """Print the newest signed checkpoint, to be kept: a ledger that does not continue it is a forgery."""
    from fl_core.trust.ledger import Ledger

    with Ledger.open(_path(ledger, home)) as opened:
        print(opened.last_checkpoint() or "", end="")


@app.command(epilog="Examples: fedseal audit prove 12 > proof.json · fedseal audit prove --from 40 --to 90")
def prove(
    entry: Annotated[int | None, typer.Argument(metavar="[SEQ]", help="Prove that this entry is in the log.")] = None,
    start: Annotated[
        int | None, typer.Option("--from", metavar="SIZE", help="Prove that the log of this size …")
    ] = None,
    end: Annotated[
        int | None, typer.Option("--to", metavar="SIZE", help="… was continued, unchanged, to this size.")
    ] = None,
    ledger: LedgerOption = None,
    home: HomeOption = None,
) -> None:
    """Print a proof (JSON) that `python -m fl_core.trust.verify FILE` checks offline."""
    from fl_core.trust.ledger import Ledger
    from fl_core.trust.proofs import consistency_proof_document, inclusion_proof_document

    if (entry is None) == (start is None) or (entry is not None and end is not None):
        raise UsageError("audit prove: name an entry, or --from SIZE [--to SIZE]")
    with Ledger.open(_path(ledger, home)) as opened:
        if entry is not None:
            document = inclusion_proof_document(opened, entry)
        else:
            sizes = opened.checkpoint_sizes()
            document = consistency_proof_document(opened, start or 0, end if end is not None else sizes[-1])
    print(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
