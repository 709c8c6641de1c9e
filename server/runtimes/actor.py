"""What runs in a Ray actor of the simulation runtime: the ClientApp for whichever party a message is for.

A party's state lies in its folder, so any actor may serve it; none keeps a party between messages, which also bounds
its memory.  The party's own account of a failure goes back in the Flower context, not in the reply.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server import environment

environment.prepare()  # an actor on another machine of a cluster has that machine's environment

if TYPE_CHECKING:
    from flwr.app import Context, Message

NOTICE = "fedseal.notice"


@dataclass(frozen=True)
class Place:
    """What an actor takes over from the run's process; Flower calls it to get the ClientApp.

    Attributes
    ----------
    cwd : folder that relative paths start from.
    path : where "module:function" names of a job file live.
    log : file that takes what the actor prints.
    """

    cwd: str
    path: tuple[str, ...]
    log: str

    def __call__(self) -> Answer:
        """The ClientApp of this process; made ready when it is asked for first."""
        global _ready
        if not _ready:
            self._settle()
            _ready = True
        return _answer

    def _settle(self) -> None:
        from server.runtimes.worker import log_to

        log_to(self.log)
        os.chdir(self.cwd)
        sys.path += [place for place in self.path if place not in sys.path]
        import torch

        torch.set_num_threads(1)


class Answer:
    """The ClientApp as Flower's actor calls it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message as the party that the node configuration names."""
        from flwr.app import ConfigRecord
        from flwr.supercore.task_identity import TaskIdentity

        from clients.app import app, forget, last_failure

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = context.run_id, context.node_id, 1
        try:
            reply = app(message, context)
        finally:
            forget()
        context.state[NOTICE] = ConfigRecord({"text": last_failure()})
        return reply


_ready = False
_answer = Answer()
