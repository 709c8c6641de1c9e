"""What a job has its parties do, and whether their registrations let them: asked before a run or a check starts.

So a node without the role is given no token of the exchange, joins no roster, and nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_core.job import Job
from fl_core.messages import COORDINATOR
from fl_core.trust import roles
from fl_core.trust.roles import Action
from server.coordinator.nodes import Node


def check_parties(job: Job, nodes: Mapping[str, Node]) -> None:
    """Raise RefusedError, in one line, for the first party whose roles do not allow its part in a job.

    Parameters
    ----------
    nodes
        The registered ones; each party of the job is among them.
    """
    for party in job.parties:
        roles.require(party.name, nodes[party.name].held, Action.CONTRIBUTE_DATA)
    for name in job.result_receivers:
        if name != COORDINATOR:
            roles.require(name, nodes[name].held, Action.RECEIVE_RESULT)
