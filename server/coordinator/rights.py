"""Roles at the coordinator; and what a job has its parties do, asked of their registrations before anything starts.

So a node without the role is given no token of the exchange, joins no roster, and nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_core.errors import RefusedError
from fl_core.job import Job
from fl_core.messages import COORDINATOR
from fl_core.trust import roles
from fl_core.trust.roles import Action, Role
from server.coordinator.nodes import Node


class MissingRole(RefusedError):
    """A role is missing that what is asked for needs: of the caller, of a signer, or of a job's party."""


def require_role(name: str, has: frozenset[Role], action: Action) -> None:
    """Raise MissingRole, in one line, unless somebody with these roles may do this."""
    try:
        roles.require(name, has, action)
    except RefusedError as error:
        raise MissingRole(str(error)) from None


def check_parties(job: Job, nodes: Mapping[str, Node]) -> None:
    """Raise MissingRole, in one line, for the first party whose roles do not allow its part in a job.

    Parameters
    ----------
    nodes
        The registered ones; each party of the job is among them.
    """
    for party in job.parties:
        require_role(party.name, nodes[party.name].held, Action.CONTRIBUTE_DATA)
    for name in job.result_receivers:
        if name != COORDINATOR:
            require_role(name, nodes[name].held, Action.RECEIVE_RESULT)
