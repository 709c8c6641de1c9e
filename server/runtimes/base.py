"""What the runtimes have in common: a Flower `Grid` that knows its parties by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from flwr.serverapp import Grid

POLL = 0.05
WORKER_DIED, WORKER_SILENT = 8, 9


class FederationGrid(Grid):
    """A Grid over the parties of one run.

    A process that dies under a message answers it with the Flower error `WORKER_DIED`, one that is silent past the
    message's time to live with `WORKER_SILENT`.

    Attributes
    ----------
    nodes : Flower's node id of each party.
    notices : a party's own account of its last failure, for the person at this machine; it is in no reply.
    """

    nodes: dict[str, int]
    notices: dict[str, str]

    @classmethod
    @abstractmethod
    def open(cls, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path) -> FederationGrid:
        """Start the parties; see `server.runtimes.open_grid`."""

    @abstractmethod
    def close(self) -> None:
        """End every process that was started."""
