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
from strategies.ceremony import abandon
from strategies.coordination import Coordination
from strategies.dispatch import Dispatcher
from strategies.rounds import Outcome, Rounds
from strategies.sessions import SessionRun

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
    from fl_core.protocols.psi.jobs import plan_of
    from fl_core.protocols.psi.program import compare

    plan = plan_of(co.job)
    part = (lambda channel: compare(channel, plan)) if plan.comparer is not None else None
    return SessionRun(dispatcher, co, part=part).run()


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
