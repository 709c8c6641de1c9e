"""Where a job runs: one module a runtime, each of which offers a `FederationGrid`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fl_core.errors import UsageError

if TYPE_CHECKING:
    from fl_core.job import Job
    from server.runtimes.base import FederationGrid
    from server.runtimes.deployment import Link
    from strategies.coordination import SessionHost


def require(runtime: str) -> None:
    """Refuse (`UsageError`) a runtime whose extra is not installed."""
    if runtime == "simulation" and importlib.util.find_spec("ray") is None:
        raise UsageError("runtime 'simulation' needs the extra: pip install 'fedseal[simulation]'")


def warm_up(job: Job) -> None:
    """Start what takes long, without waiting for it."""
    if job.runtime == "local":
        from server.runtimes import warm

        warm.warm_up(torch=job.needs_torch)


@contextmanager
def open_grid(
    job: Job, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, link: Link | None = None
) -> Iterator[FederationGrid]:
    """Run the ClientApp for each party for as long as the context lasts.

    Parameters
    ----------
    configs : each party's Flower node configuration.
    run_id : Flower's number of the run, below 2^63.
    log : file that takes what the parties' processes print.
    link : in a deployment, the way to the SuperLink.
    """
    with closing(_open(job, configs, run_id=run_id, log=log, link=link)) as grid:
        try:
            yield grid
        except BaseException:
            grid.failed = True
            raise


def _open(
    job: Job, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, link: Link | None
) -> FederationGrid:
    if link is not None:
        from server.runtimes.deployment import DeploymentGrid

        return DeploymentGrid(link)
    if job.runtime == "simulation":
        from server.runtimes.simulation import SimulationGrid

        return SimulationGrid.open(configs, run_id=run_id, log=log, together=job.is_session)
    from server.runtimes.local import LocalGrid

    return LocalGrid.open(configs, run_id=run_id, log=log, together=job.is_session)


def open_host(link: Link | None) -> AbstractContextManager[SessionHost]:
    """The way to the exchange, for jobs whose parties talk to each other."""
    from server.runtimes.exchange import RemoteHost, local_host

    if link is None:
        return local_host()
    assert link.exchange is not None
    return nullcontext(RemoteHost(link.exchange))
