"""What the runtimes have in common: a Flower `Grid` that knows its parties by name."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

POLL = 0.05
WORKER_DIED, WORKER_SILENT = 8, 9


class FederationGrid(Grid):
    """A Grid over the parties of one run.

    A process that dies under a message answers it with the Flower error `WORKER_DIED`, one that is silent past the
    message's time to live with `WORKER_SILENT`.

    Attributes
    ----------
    nodes : Flower's node id of each party.
    failed : the run did not end well.
    notices : a party's own account of its last failure, for the person at this machine; it is in no reply.
    """

    def __init__(self, nodes: Mapping[str, int], *, run_id: int) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1
        self.nodes = dict(nodes)
        self.notices: dict[str, str] = {}
        self.failed = False  # set before `close` where the run did not end well
        self._sent = 0

    @classmethod
    @abstractmethod
    def open(
        cls, configs: Mapping[str, Mapping[str, str]], *, run_id: int, log: Path, together: bool = False
    ) -> FederationGrid:
        """Start the parties; see `server.runtimes.open_grid`.  `together`: all must be able to work at once."""

    @abstractmethod
    def close(self) -> None:
        """End every process that was started."""

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Queue a message at its node."""

    @property
    def run(self) -> Run:
        """Flower's run description; there is none."""
        return self._no_run()

    def set_run(self, run: Run) -> None:
        """The run is fixed when the grid is made."""
        self._no_run()

    def _no_run(self) -> NoReturn:
        raise AttributeError("this grid serves one run and has no Flower run record")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message of this run."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All parties' nodes."""
        return list(self.nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; returns their ids."""
        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"{self._sent:064x}"
            self._send(message)
            ids.append(message.metadata.message_id)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all, pull until all have answered or `timeout` seconds have passed."""
        open_ids = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while open_ids and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(open_ids):
                open_ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies


def numbered(parties: Iterable[str]) -> dict[str, int]:
    """A node id for each party; 1 is the coordinator's."""
    return {party: i for i, party in enumerate(parties, start=2)}
