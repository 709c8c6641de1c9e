"""`fedseal backup | restore`: a home as one file, and back."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.audit import VERDICTS
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.backup import Manifest
    from fl_core.restore import Restored


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: fedseal backup /media/safe/fedseal-monday.tar")(backup)
    app.command(epilog="Example: fedseal restore /media/safe/fedseal-monday.tar --home /var/lib/fedseal/home")(restore)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The archive to write, a new file.")],
    mlflow: Annotated[bool, typer.Option("--mlflow", help="MLflow's database and artifacts as well.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save ledger, keys, budgets and runs of this home in one file, while it is in use.

    MLflow's database and artifacts are a view of the ledger and stay out, as do logs, locks and Flower's database.
    """
    from fl_core.backup import back_up
    from fl_core.home import Home

    place = Home.at(home)
    saved = back_up(place, file, mlflow=mlflow)
    told = _told(saved.manifest, file, place) | {"bytes": saved.size, "links": saved.links}
    if as_json:
        print(json.dumps(told))
        return
    print(f"{place.path} saved in {file}: {told['files']} files, {saved.size / 1e6:.1f} MB")
    if ledger := saved.manifest.ledger:
        print(f"ledger {ledger['origin']}, {ledger['size']} entries, head {ledger['root']}")
    elif not isinstance(place.ledger, Path):
        print(f"not in it: the ledger, {place.ledger}; save it after this, with pg_dump")
    for link in saved.links:
        print(f"not in it: {link}, a link")
    print("it holds private keys in clear: keep it as you keep the keys; back: fedseal restore")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="What fedseal backup wrote.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a home back from a backup, where none is; verify its ledger and say what the backup's age means.

    Exit: 0 restored, 1 restored but the ledger is broken, or not restored, 2 usage.
    """
    from fl_core.home import Home
    from fl_core.restore import restore as put_back

    place = Home.at(home)
    found = put_back(file, place)
    if as_json:
        print(json.dumps(_told(found.manifest, file, place) | _verdict(found) | asdict(found.aftermath)))
    else:
        _show(found, file, place.path)
    if found.verdict is not None and found.verdict.status == 1:
        raise typer.Exit(1)


def _told(manifest: Manifest, file: Path, home: Any) -> dict[str, Any]:
    """What both commands say of an archive."""
    return {
        "file": str(file),
        "home": str(home.path),
        "time": manifest.time,
        "files": len(manifest.members),
        "ledger": manifest.ledger,
    }


def _verdict(found: Restored) -> dict[str, Any]:
    if (report := found.verdict) is None:
        return {"verdict": None}
    return {"verdict": VERDICTS[report.status], "reason": report.reason}


def _show(found: Restored, file: Path, home: Path) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found.manifest.time))
    print(f"{home} restored from {file} of {when}: {len(found.manifest.members)} files")
    if (report := found.verdict) is not None:
        print(f"ledger {report.log}, {report.size} entries, head {report.root}: {VERDICTS[report.status]}")
        if report.status:
            print(report.reason)
    for line in found.aftermath.warnings:
        print(f"warning: {line}")
