"""The deployment runtime as an engineer sees it: submit the job to a coordinator and watch it from here.

What the coordinator says is taken as it says it; what proves it is the ledger.  A lost connection is taken up again at
the event after the last one; Ctrl-C leaves the run alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clients.door import DoorClient, Unreachable
from fl_core.errors import BudgetExceeded, FedsealError, JobFailed, RefusedError, UsageError
from fl_core.files import write_atomic
from fl_core.home import Home
from fl_core.job import Job
from fl_core.trust.checkpoint import log_id
from fl_core.trust.federation import Pass
from fl_core.wire.door_pb2 import SubmitReply
from server.registry import RunFolder, RunInfo
from strategies.coordination import Event, Stopped

PASS_VARIABLE = "FEDSEAL_PASS"  # noqa: S105
LOST_SECONDS = 300.0
PAUSE = 2.0


_STATUS = {"stopped": "stopped", "interrupted": "interrupted"}


class Detached(FedsealError):
    """The person went away; the run goes on."""

    code = "detached"
    exit_code = 0


class Interrupted(JobFailed):
    """The coordinator ended in the run."""

    code = "interrupted"


def has_pass(home: Home) -> bool:
    """Whether this home holds a pass, or one is named from outside."""
    return bool(os.environ.get(PASS_VARIABLE)) or (home.path / "pass.json").exists()


def read_pass(home: Home) -> Pass:
    """The pass that `FEDSEAL_PASS` names, or this home's (`fedseal login FILE`).  Raises `UsageError`."""
    path = Path(os.environ.get(PASS_VARIABLE) or home.path / "pass.json")
    try:
        return Pass.decode(path.read_bytes(), str(path))
    except OSError:
        allowed = f"fedseal login FILE with the file of the coordinator's operator, or {PASS_VARIABLE}"
        raise UsageError(f"{path}: no pass to a coordinator here; allowed: {allowed}") from None


def run_remote(
    job: Job, home: Home, *, out: Path | str | None, resume: bool, on_event: Callable[[Event], None] | None,
    as_name: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Submit, watch, and return the summary; see `server.run_job`."""
    from server.run import free

    target = Path(out) if out else Path("runs") / f"{job.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    free(target)
    held = read_pass(home)
    order = _order(job, home, held, as_name)
    with DoorClient(held) as door:
        submitted = door.submit(job.table(), resume=resume, version=version("fedseal"), order=order)
        note = _Note(home, job, submitted, target, door.address)
        try:
            if on_event is not None:
                on_event(Event("submitted", 0, {"run": submitted.run, "coordinator": door.address}))
            summary = watch(door, submitted.run, on_event or (lambda _: None), after=submitted.events)
        except KeyboardInterrupt:
            run = submitted.run
            raise Detached(f"run {run} goes on; fedseal logs {run} --follow, fedseal stop {run}") from None
        except FedsealError as error:
            note.ended(_STATUS.get(error.code, {3: "refused"}.get(error.exit_code, "failed")), error=str(error))
            raise
    write_atomic(target / "summary.json", json.dumps(summary, indent=1).encode(), mode=0o644)
    note.ended("done", metrics=summary["metrics"], mlflow_run_id=summary["mlflow_run_id"])
    return summary


def _order(job: Job, home: Home, held: Pass, as_name: str | None, *, look: bool = False) -> dict[str, bytes]:
    """What the submitter signs, under the key that this home has for whoever the pass is for."""
    from server import orders

    if as_name is None:
        as_name = held.holder().name
    log = log_id(held.federation.coordinator)
    return orders.make(orders.person(home, as_name), job, log=log, look=look)


class _Note:
    """What this home keeps of a run that it submitted, so that `runs`, `logs` and `stop` find it."""

    def __init__(self, home: Home, job: Job, submitted: SubmitReply, out: Path, coordinator: str) -> None:
        self._info = RunInfo(
            submitted.run,
            job.name,
            job.kind,
            job.runtime,
            submitted.digest,
            str(out.absolute()),
            time.time(),
            0,
            coordinator=coordinator,
        )
        if (home.runs / submitted.run / "submission.json").exists():  # the coordinator's own home holds the run itself
            self._folder = None
        else:
            self._folder = RunFolder.create(home, self._info)

    def ended(self, status: str, **facts: Any) -> None:
        """How it ended."""
        if self._folder is not None:
            self._folder.save(dataclasses.replace(self._info, status=status, ended=time.time(), **facts))


def watch(door: DoorClient, run: str, on_event: Callable[[Event], None], *, after: int = 0) -> dict[str, Any]:
    """Follow a run from event `after` to its end; the summary, or the error that it ended with."""
    heard = time.monotonic()
    while True:
        came = False
        try:
            for event in door.watch(run, after):
                after, came = event.number, True
                facts = json.loads(event.facts)
                if event.kind == "summary":
                    return dict(facts)
                if event.kind == "failed":
                    raise _error(facts)
                if event.kind == "interrupted":
                    raise Interrupted(f"the coordinator was interrupted in run {run}; --resume goes on")
                on_event(Event(event.kind, event.round, facts))
        except Unreachable as error:
            if came or error.stood:  # quiet as a long round is, the line was there
                heard = time.monotonic()
            if time.monotonic() - heard > LOST_SECONDS:
                raise JobFailed(f"{error}; run {run} may go on there") from None
            on_event(Event("lost", 0, {"text": str(error)}))
        else:
            heard = time.monotonic()
        time.sleep(PAUSE)


def check_there(job: Job, home: Home) -> dict[str, Any]:
    """Whether every party of a job would join it."""
    held = read_pass(home)
    with DoorClient(held) as door:
        order = _order(job, home, held, None, look=True)
        return door.check(job.table(), version=version("fedseal"), order=order)


def runs_there(home: Home) -> list[dict[str, Any]]:
    """The coordinator's runs."""
    with DoorClient(read_pass(home)) as door:
        return door.runs()


def logs_there(home: Home, run: str, *, follow: bool) -> Iterator[bytes]:
    """The log of a run at the coordinator."""
    with DoorClient(read_pass(home)) as door:
        yield from door.logs(run, follow=follow)


def stop_there(home: Home, run: str) -> dict[str, Any]:
    """Stop a run at the coordinator."""
    with DoorClient(read_pass(home)) as door:
        number, status = door.stop(run)
    return {"run": number, "name": run, "status": status}


def _error(facts: dict[str, Any]) -> FedsealError:
    """A failure at the coordinator as this process's own."""
    kinds: dict[int, type[FedsealError]] = {1: JobFailed, 2: UsageError, 3: RefusedError}
    kind = kinds.get(int(facts["exit_code"]), JobFailed)
    if facts["code"] == Stopped.code:
        kind = Stopped
    if facts["code"] == BudgetExceeded.code:
        kind = BudgetExceeded
    return kind(str(facts["error"]))
