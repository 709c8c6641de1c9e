"""`fedseal run | check | runs | logs | stop`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import FedsealError, UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.home import Home
    from server.registry import RunFolder

JobArgument = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run id, an MLflow run id, a run name or an --out folder.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. train.rounds=10.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        epilog="Examples: fedseal run experiments/demo.toml --set train.rounds=10 · fedseal run JOB.toml --json"
    )(run)
    app.command(epilog="Example: fedseal check JOB.toml")(check)
    app.command(epilog="Example: fedseal login ann.pass")(login)
    app.command(epilog="Example: fedseal runs --json")(runs)
    app.command(epilog="Example: fedseal logs digits-ckks-dp --follow")(logs)
    app.command(epilog="Example: fedseal stop digits-ckks-dp")(stop)


def run(
    job: JobArgument,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the outputs (default runs/<name>-<time>).")
    ] = None,
    home: HomeOption = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="local, simulation (Flower's, on Ray) or deployment.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last unfinished run of this job.")] = False,
    as_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Who orders it, with a key in this home.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Use grants that the owners approved; a job makes none itself.")
    ] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run a job, with live progress, then a summary."""
    from server.cli.progress import Progress, show_summary

    changes = list(overrides or []) + ([f'runtime="{runtime}"'] if runtime else [])
    with Progress(enabled=not quiet) as progress:
        progress.say("starting")
        try:
            summary = _run(
                job, changes, home=home, out=out, resume=resume, on_event=progress.event, as_name=as_name, strict=strict
            )
        except FedsealError as error:
            if as_json and error.exit_code:
                status = {2: "usage", 3: "refused"}.get(
                    error.exit_code, "stopped" if error.code == "stopped" else "failed"
                )
                print(json.dumps({"job": str(job), "status": status, "error": str(error)}))
            raise
    if as_json:
        print(json.dumps(summary))
    else:
        show_summary(summary)


def _run(job: Path, changes: list[str], **options: Any) -> dict[str, Any]:
    """`run_job`, with Ctrl-C before the first round as the error that it is later."""
    from fl_core.config import load_job
    from server import runtimes

    read = load_job(job, changes)  # a bad job file starts nothing
    runtimes.require(read.runtime)
    try:
        runtimes.warm_up(read)
        from server.run import run_job

        return run_job(job, changes, **options)
    except KeyboardInterrupt:
        from strategies.coordination import Stopped

        raise Stopped("interrupted; --resume goes on with what was begun") from None


def login(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pass that the coordinator's operator handed over.")],
    home: HomeOption = None,
) -> None:
    """Keep a pass to a coordinator in this home; `run --runtime deployment`, runs, logs and stop use it."""
    from fl_core.files import write_atomic
    from fl_core.home import Home
    from fl_core.trust.federation import Pass

    try:
        held = Pass.decode(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
    write_atomic(Home.open(home).path / "pass.json", held.encode())
    print(f"coordinator {held.federation.door}, authority {held.federation.fingerprint}")


def check(job: JobArgument, overrides: SetOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Dry run at the parties: columns, rows, classes and privacy budget, without starting anything."""
    from server.cli.progress import show_check
    from server.dry_run import dry_run

    result = dry_run(job, list(overrides or []), home=home)
    if as_json:
        print(json.dumps(result))
    else:
        show_check(result)
    refused = [p for p in result["parties"] if p["status"] == "refused"]
    if refused or not result["ok"]:
        raise typer.Exit(3 if refused else 2)


def runs(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the runs of this home, and those of the coordinator that it holds a pass to."""
    from fl_core.home import Home
    from server.cli.progress import show_runs
    from server.registry import all_runs, facts

    place = Home.open(home)
    found = {info.run: facts(info) for _, info in all_runs(place)}
    if (place.path / "pass.json").exists():
        from clients.door import Unreachable
        from server.runtimes.remote import runs_there

        try:
            for told in runs_there(place):
                found[told["run"]] = told | {k: v for k, v in found.get(told["run"], {}).items() if k == "out"}
        except Unreachable as error:
            print(f"fedseal: {error}; runs there as they were when last seen", file=sys.stderr)
    listed = sorted(found.values(), key=lambda told: told["started"])
    if as_json:
        print(json.dumps({"runs": listed}))
    else:
        show_runs(listed)


def logs(
    run: RunArgument,
    home: HomeOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """Print a run's log."""
    from fl_core.home import Home

    place = Home.open(home)
    folder, there = _find(place, run)
    if there:
        from server.runtimes.remote import logs_there

        for data in logs_there(place, there, follow=follow):
            _print(data)
        return
    assert folder is not None
    at = 0
    while True:
        alive = follow and folder.is_alive()  # asked before reading: then the last lines are there
        text = folder.log.read_bytes()[at:] if folder.log.exists() else b""
        at += len(text)
        _print(text)
        if not alive:
            return
        time.sleep(0.3)


def _print(data: bytes) -> None:
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()


def _find(home: Home, wanted: str) -> tuple[RunFolder | None, str]:
    """A run of this home, or the id of one at the coordinator that it holds a pass to."""
    from server.registry import find

    try:
        folder, info = find(home, wanted)
        return folder, info.run if info.coordinator else ""
    except UsageError:
        if not (home.path / "pass.json").exists():
            raise
        return None, wanted


def stop(run: RunArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Ask a run to stop; it can be resumed."""
    from fl_core.home import Home

    place = Home.open(home)
    folder, there = _find(place, run)
    if there:
        from server.runtimes.remote import stop_there

        answer = stop_there(place, there)
    else:
        assert folder is not None
        answer = _stop(folder)
    print(json.dumps(answer) if as_json else f"{answer['name']}: {answer['status']}")


def _stop(folder: RunFolder) -> dict[str, Any]:
    info = folder.info()
    if not folder.is_alive():
        raise UsageError(f"run {info.name} ({info.run}) is not running: {info.status}")
    folder.ask_to_stop()
    for _ in range(300):
        if not folder.is_alive():
            break
        time.sleep(0.1)
    return {"run": info.run, "name": info.name, "status": folder.info().status}
