"""From a job to the plan of its intersection, the same at the parties and at the coordinator."""

from __future__ import annotations

from fl_core.job import Job
from fl_core.messages import COORDINATOR
from fl_core.protocols.psi.program import Plan, needs_comparer


def plan_of(job: Job) -> Plan:
    """The plan; where one must compare without keys, it is the coordinator."""
    parties = tuple(party.name for party in job.parties)
    return Plan(
        parties=parties,
        receivers=job.psi.receivers,
        protocol=job.psi.protocol,
        output=job.psi.output,
        comparer=COORDINATOR if needs_comparer(parties, job.psi.output) else None,
        pad_to=job.psi.pad_to,
    )
