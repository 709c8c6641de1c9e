"""`fedseal audit export RUN` writes an audit pack; `fedseal audit verify FOLDER` checks one, offline."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption, LedgerOption, find_ledger

if TYPE_CHECKING:
    from fl_core.trust.verify import PackReport, ProofReport, Report
    from fl_core.trust.verify.__main__ import Judged
    from fl_core.trust.verify.outside import Policy

VERDICTS = {0: "VALID", 1: "BROKEN", 4: "VALID, BUT SHORT OF QUORUM"}


def register(app: typer.Typer) -> None:
    """Add `export` to the commands of `fedseal audit`."""
    app.command(
        epilog="Examples: fedseal audit export credit --out pack · fedseal audit export credit --out pack --all"
    )(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run or MLflow run id, a name, or an output folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder for the pack.")],
    whole: Annotated[
        bool,
        typer.Option("--all", help="The whole log, not this run's entries: shows that none was left out."),
    ] = False,
    since: Annotated[
        Path | None,
        typer.Option("--since", metavar="CHECKPOINT", help="The auditor's kept checkpoint, to be continued."),
    ] = None,
    no_mlflow: Annotated[
        bool, typer.Option("--no-mlflow", help="Leave out what MLflow shows; the auditor is told.")
    ] = False,
    ledger: LedgerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's evidence as a folder that an auditor checks offline with `fedseal audit verify FOLDER`."""
    from fl_core.trust.ledger import Ledger
    from fl_core.trust.pack import write_pack

    wanted, mlflow_run = _find(run, home)
    try:
        kept = since.read_text(encoding="utf-8") if since else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--since {since}: cannot be read ({error})") from None
    values = None if no_mlflow else _mlflow(wanted, mlflow_run, home)
    with Ledger.open(find_ledger(ledger, home)) as opened:
        packed = write_pack(opened, wanted, out, whole=whole, mlflow=values, since=kept)
    facts = {"run": wanted, "pack": str(out), "entries": packed.entries, "size": packed.size, "whole": whole}
    if as_json:
        print(json.dumps(facts | {"left_out": packed.left_out}))
        return
    what = f"the whole log of {packed.size}" if whole else f"{packed.entries} of the log's {packed.size}"
    print(f"{out}: {what} entries, {packed.checkpoints} checkpoints; check it with: fedseal audit verify {out}")
    if packed.left_out:
        print(f"{packed.left_out} entries of the run are under no checkpoint yet and not in the pack")


def verify_pack_command(
    path: Path,
    *,
    since: str | None = None,
    against: Path | None = None,
    key: str | None = None,
    witnesses: Policy | None = None,
    as_json: bool = False,
) -> int:
    """Verify a pack, a ledger, a proof or evidence as `fedseal audit verify PATH` does; print; return the status.

    Raises
    ------
    UsageError
        If `path` or `against` cannot be read or is none of these.
    """
    from fl_core.trust.verify import NotALedger
    from fl_core.trust.verify.__main__ import judge

    try:
        judged = judge(path, since=since, against=against, key=key, witnesses=witnesses)
    except (NotALedger, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"audit verify: {error}") from None
    report = judged.report
    if as_json:
        print(json.dumps({**judged.to_dict(), "verdict": VERDICTS[report.status], "path": str(path)}))
    else:
        _print(path, judged)
    return report.status


def _print(path: Path, judged: Judged) -> None:
    """The report in words; what comes from the pack is printed as it is, never as markup."""
    from rich.console import Console

    console, report = Console(highlight=False), judged.report
    colour = {0: "green", 1: "red", 4: "yellow"}[report.status]
    console.print(VERDICTS[report.status], style=f"bold {colour}", end="")
    for line in _lines(path, report):
        console.print(line, markup=False, soft_wrap=True)
    if judged.evidence is not None:
        console.print(f"the log forked; evidence for anybody: {judged.evidence}", markup=False, soft_wrap=True)


def _lines(path: Path, report: Report | ProofReport | PackReport) -> list[str]:
    from fl_core.trust.verify import PackReport, ProofReport

    if isinstance(report, ProofReport):
        return [f"  {path}", report.reason]
    lines = [f"  {path}"]
    if report.status:
        lines.append(report.reason if report.first_bad is None else f"entry {report.first_bad}: {report.reason}")
    lines.append(f"log {report.log}, {report.size} entries, {report.entries} checked, head {report.root}")
    lines.append(f"{report.signatures} signatures, {report.checkpoints} checkpoints in {report.seconds:.2f} s")
    lines += [
        f"run {name}: {run.state}, {run.entries} entries, co-signed by {run.cosigned}, quorum {run.quorum}"
        for name, run in report.runs.items()
    ]
    lines += witness_lines(report)
    if isinstance(report, PackReport):
        lines += [f"compared: {count} {what}" for what, count in report.compared.items()]
        lines += [f"differs: {words}" for words in report.differences]
        lines += [f"not checked: {words}" for words in report.unchecked]
    return lines


def read_witnesses(path: Path | None) -> Policy | None:
    """Read a policy of witnesses from outside as the verifier does; raises `UsageError`."""
    from fl_core.trust.verify import NotALedger
    from fl_core.trust.verify.outside import read_policy

    try:
        return None if path is None else read_policy(path)
    except (NotALedger, OSError) as error:
        raise UsageError(f"--witnesses {error}") from None


def witness_lines(report: Report) -> list[str]:
    """What the policy of witnesses finds, in words: none where there was no policy."""
    found = report.outside
    if found is None:
        return []
    lines = [f"witnesses: {found.quorum} of {found.witnesses} must co-sign, up to entry {found.due - 1}"]
    if found.covered:
        who = ", ".join(f"{name} ({_when(seconds)})" for name, seconds in found.signed.items())
        lines.append(f"witnesses: the first {found.covered} entries are co-signed by {who}")
    return lines + [f"witnesses: no co-signature of {name}" for name in found.missing]


def _when(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"


def _find(wanted: str, home: Path | None) -> tuple[str, str | None]:
    """Run id and MLflow run id, by any name of a run in this home; or a run id, where the ledger came without one."""
    from fl_core.home import Home
    from server.registry import find

    try:
        folder, info = find(Home.open(home), wanted)
    except UsageError:
        if len(wanted) == 16 and not set(wanted) - set("0123456789abcdef"):
            return wanted, None
        raise
    if info.mlflow_run_id is None:
        from server.recorders.spool import Spool

        return info.run, Spool(folder.spool).load().mlflow_run_id
    return info.run, info.mlflow_run_id


def _mlflow(run: str, mlflow_run: str | None, home: Path | None) -> dict[str, Any]:
    from fl_core.home import Home
    from server.reconcile.reading import read_run

    if mlflow_run is None:
        raise UsageError(f"run {run}: this home knows no MLflow run of it; allowed: --no-mlflow")
    default = f"sqlite:///{Home.open(home).path / 'mlflow.db'}"
    return read_run(os.environ.get("MLFLOW_TRACKING_URI") or default, mlflow_run)
