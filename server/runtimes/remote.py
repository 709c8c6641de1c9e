"""The deployment runtime as an engineer sees it: submit the job to a coordinator and watch it from here.

What the coordinator says is taken as it says it; what proves it is the ledger.  A lost connection is taken up again at
the event after the last one; Ctrl-C leaves the run alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clients.door import DoorClient, Unreachable
from fl_core.config import Job
from fl_core.errors import BudgetExceeded, FedsealError, JobFailed, RefusedError, UsageError
from fl_core.files import write_atomic
from fl_core.home import Home
from fl_core.schema import plain
from fl_core.trust.federation import Pass
from server.registry import RunFolder, RunInfo
from strategies.coordination import Event, Stopped

PASS_VARIABLE = "FEDSEAL_PASS"  # noqa: S105
LOST_SECONDS = 300.0
PAUSE = 2.0


class Detached(FedsealError):
    """The person went away; the run goes on."""

    code = "detached"
    exit_code = 0


def read_pass(home: Home) -> Pass:
    """The pass that `FEDSEAL_PASS` names, or this home's (`fedseal login FILE`).  Raises `UsageError`."""
    path = Path(os.environ.get(PASS_VARIABLE) or home.path / "pass.json")
    try:
        return Pass.decode(path.read_bytes(), str(path))
    except OSError:
        allowed = f"fedseal login FILE with the file of the coordinator's operator, or {PASS_VARIABLE}"
        raise UsageError(f"{path}: no pass to a coordinator here; allowed: {allowed}") from None


def table_of(job: Job) -> dict[str, Any]:
    """The job file's table again, for the coordinator to read."""
    return dict(plain(dataclasses.replace(job, base=None), text=False))  # type: ignore[arg-type]


def run_remote(
    job: Job, home: Home, *, out: Path | str | None, resume: bool, on_event: Callable[[Event], None] | None
) -> dict[str, Any]:
    """Submit, watch, and return the summary; see `server.run_job`."""
    from server.run import free

    target = Path(out) if out else Path("runs") / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    free(target)
    with DoorClient(read_pass(home)) as door:
        submitted = door.submit(table_of(job), resume=resume, version=version("fedseal"))
        run, digest = submitted.run, submitted.digest
        info = RunInfo(run, job.name, job.kind, job.runtime, digest, str(target.absolute()), time.time(), 0)
        folder = RunFolder.create(home, info) if not (home.runs / run / "run.json").exists() else None
        try:
            if on_event is not None:
                on_event(Event("submitted", 0, {"run": run, "coordinator": door.address}))
            summary = watch(door, run, on_event or (lambda _: None), after=submitted.events)
        except KeyboardInterrupt:
            raise Detached(f"run {run} goes on; fedseal logs {run} --follow, fedseal stop {run}") from None
    write_atomic(target / "summary.json", json.dumps(summary, indent=1).encode(), mode=0o644)
    if folder is not None:
        folder.save(dataclasses.replace(info, status="done", ended=time.time(), metrics=summary["metrics"]))
    return summary


def watch(door: DoorClient, run: str, on_event: Callable[[Event], None], *, after: int = 0) -> dict[str, Any]:
    """Follow a run from event `after` to its end; the summary, or the error that it ended with."""
    heard = time.monotonic()
    while True:
        try:
            for event in door.watch(run, after):
                after, heard = event.number, time.monotonic()
                facts = json.loads(event.facts)
                if event.kind == "summary":
                    return dict(facts)
                if event.kind == "failed":
                    raise _error(facts)
                if event.kind == "interrupted":
                    raise JobFailed(f"the coordinator was interrupted in run {run}; --resume goes on")
                on_event(Event(event.kind, event.round, facts))
        except Unreachable as error:
            if time.monotonic() - heard > LOST_SECONDS:
                raise JobFailed(f"{error}; run {run} may go on there") from None
            on_event(Event("lost", 0, {"text": str(error)}))
        time.sleep(PAUSE)


def _error(facts: dict[str, Any]) -> FedsealError:
    """A failure at the coordinator as this process's own."""
    kinds: dict[int, type[FedsealError]] = {1: JobFailed, 2: UsageError, 3: RefusedError}
    kind = kinds.get(int(facts["exit_code"]), JobFailed)
    if facts["code"] == Stopped.code:
        kind = Stopped
    if facts["code"] == BudgetExceeded.code:
        kind = BudgetExceeded
    return kind(str(facts["error"]))
