"""`fedseal audit verify | usage | show | prove`: what an auditor needs, offline."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli import audit_move, audit_pack, audit_reconcile, audit_serve
from server.cli.audit_pack import read_witnesses, verify_pack_command, witness_lines
from server.cli.options import HomeOption, JsonOption, LedgerOption, find_ledger

if TYPE_CHECKING:
    from fl_core.trust.postgres_url import Place
    from fl_core.trust.verify import Report

app = typer.Typer(
    help="Check the ledger, look into it, prove what is in it.", no_args_is_help=True, rich_markup_mode=None
)

VERDICTS = {0: "VALID", 1: "BROKEN", 4: "VALID, BUT SHORT OF QUORUM"}


@app.command(epilog="Examples: fedseal audit verify · fedseal audit verify pack --since kept.checkpoint")
def verify(
    pack: Annotated[
        Path | None,
        typer.Argument(metavar="[PACK]", help="An audit pack, a ledger, a proof or evidence; not this home's ledger."),
    ] = None,
    ledger: LedgerOption = None,
    since: Annotated[
        Path | None,
        typer.Option(
            "--since",
            metavar="CHECKPOINT",
            help="A checkpoint note kept from earlier: the ledger must continue it.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="PATH",
            help="Another pack, ledger or checkpoint: where the log forked, evidence is written beside the first.",
        ),
    ] = None,
    witnesses: Annotated[
        Path | None,
        typer.Option("--witnesses", metavar="POLICY", help="A file: how many of which witnesses must have co-signed."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The coordinator's Ed25519 key, 64 hex characters, if known.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify entries, signatures, checkpoints, co-signatures.  Exit: 0 valid, 1 broken, 2 usage, 4 short of quorum."""
    from fl_core.trust.ledger_copy import as_file
    from fl_core.trust.verify import NotALedger, verify_ledger

    if pack is not None and str(pack).lower().startswith(("postgresql:", "postgres:")):
        raise UsageError("audit verify: a ledger in PostgreSQL is named with --ledger")
    if pack is not None and ledger is not None:
        raise UsageError("audit verify: PACK and --ledger name one thing each; allowed: one of them")
    path: Place = pack or find_ledger(ledger, home)
    try:
        kept = since.read_text(encoding="utf-8") if since else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"audit verify: {error}") from None
    policy = read_witnesses(witnesses)
    if against is not None and not isinstance(path, Path):
        raise UsageError(f"--against: {path} is no file; allowed: a pack of it (fedseal audit export RUN --all)")
    if isinstance(path, Path) and (pack is not None or against is not None):
        code = verify_pack_command(path, since=kept, against=against, key=key, witnesses=policy, as_json=as_json)
        raise typer.Exit(code)
    try:
        with as_file(path) as file:
            report = verify_ledger(file, since=kept, coordinator_key_hex=key, witnesses=policy)
    except (NotALedger, OSError) as error:
        raise UsageError(f"audit verify: {error}") from None
    if as_json:
        print(json.dumps({**asdict(report), "verdict": VERDICTS[report.status], "ledger": str(path)}))
    else:
        _print_report(path, report)
    raise typer.Exit(report.status)


def _print_report(path: Place, report: Report) -> None:
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
    for line in witness_lines(report):
        console.print(line, markup=False, soft_wrap=True)


@app.command(epilog="Example: fedseal audit usage --ledger .fedseal/serving/ledger.db --json")
def usage(ledger: LedgerOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Who was served how much by this model's owner: blocks, rows and bytes by client and model."""
    from fl_core.home import Home
    from fl_core.trust.ledger import Ledger
    from server.serving.usage import sum_usage

    path = find_ledger(ledger or str(Home.open(home).path / "serving" / "ledger.db"), home)
    with Ledger.open(path) as opened:
        found = [used.to_dict() for used in sum_usage(opened)]
    if as_json:
        print(json.dumps({"usage": found, "ledger": str(path)}))
        return
    for line in found:
        told = f"{line['rows']:>10} rows {line['blocks']:>8} blocks {line['bytes']:>14} bytes"
        print(f"{line['client']:<20} {line['model']:<20} {told}")


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

    path = find_ledger(ledger, home)
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

    with Ledger.open(find_ledger(ledger, home)) as opened:
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
    with Ledger.open(find_ledger(ledger, home)) as opened:
        if entry is not None:
            document = inclusion_proof_document(opened, entry)
        else:
            sizes = opened.checkpoint_sizes()
            document = consistency_proof_document(opened, start or 0, end if end is not None else sizes[-1])
    print(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


audit_pack.register(app)
audit_reconcile.register(app)
audit_serve.register(app)
audit_move.register(app)
