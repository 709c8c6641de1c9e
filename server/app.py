"""The ServerApp: it finds the run it was started for and runs its rounds.

The process that holds the ServerApp is the coordinator itself, so the job, its progress and its outcome stay in this
process; the Flower run carries the run's name only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_core.errors import FedsealError, JobFailed
from fl_core.job import Job
from strategies.ceremony import abandon
from strategies.coordination import Coordination
from strategies.dispatch import Dispatcher
from strategies.rounds import Outcome, Rounds
from strategies.sessions import Part, SessionRun

app = ServerApp()
_runs: dict[str, Coordination] = {}
_outcomes: dict[str, Outcome] = {}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the run that `run_config["run"]` names."""
    run = str(context.run_config.get("run", ""))
    if run not in _runs:
        raise JobFailed(f"this coordinator knows no run {run!r}")
    co = _runs[run]
    dispatcher = Dispatcher(grid, co)
    try:
        _outcomes[run] = _run(dispatcher, co)
    except FedsealError:
        abandon(dispatcher, co)
        raise


def _run(dispatcher: Dispatcher, co: Coordination) -> Outcome:
    if co.job.kind == "horizontal":
        return Rounds(dispatcher, co).run()
    return SessionRun(dispatcher, co, part=_part(co.job)).run()


def _part(job: Job) -> Part | None:
    """The coordinator's own part in a session, where the kind of job gives it one."""
    if job.kind == "vertical":
        from fl_core.protocols.vertical import plan as vertical
        from fl_core.protocols.vertical.program import coordinate

        learning = vertical.plan_of(job)
        return (lambda channel: coordinate(channel, learning)) if learning.coordinator is not None else None
    if job.kind == "predict":
        from fl_core.protocols.prediction import plan as prediction
        from fl_core.protocols.prediction import program

        scoring = prediction.plan_of(job)
        return lambda channel: program.coordinate(channel, scoring)
    from fl_core.protocols.psi.jobs import plan_of
    from fl_core.protocols.psi.program import compare

    plan = plan_of(job)
    return (lambda channel: compare(channel, plan)) if plan.comparer is not None else None


@contextmanager
def activated(co: Coordination) -> Iterator[None]:
    """Make a run known to the ServerApp for as long as it lasts."""
    _runs[co.run] = co
    try:
        yield
    finally:
        del _runs[co.run]


def outcome(run: str) -> Outcome:
    """How a run ended; can be asked once."""
    return _outcomes.pop(run)
