"""What all parties of a joint prediction know before they meet: whose model, who gets the scores, the intersection."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fl_core.errors import JobFileError
from fl_core.job import Job, check_predict_protocol
from fl_core.protocols.psi.jobs import plan_of as psi_plan
from fl_core.protocols.psi.program import Plan as PsiPlan

RUN = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes
    ----------
    run : that trained the model, 16 hex characters.
    parties : in the job's order. active : the one that had the labels.
    receivers : who gets the scores; rows are in the order of the first one's ids.
    algorithm : of the model, empty where the job does not say. protocol : of boosted trees, "shared" or "ckks".
    min_trees : a score must have.
    """

    run: str
    parties: tuple[str, ...]
    active: str
    receivers: tuple[str, ...]
    algorithm: str
    protocol: str
    min_trees: int
    psi: PsiPlan

    @property
    def deals(self) -> bool:
        """Whether trees are scored with the coordinator's randomness."""
        return self.protocol == "shared"

    def others(self, name: str) -> list[str]:
        """All parties but one, in the job's order."""
        return [party for party in self.parties if party != name]


def plan_of(job: Job) -> Plan:
    """The plan of a `predict` job whose training is known.  Raises `JobFileError`."""
    predict = job.predict
    if not RUN.fullmatch(predict.model):
        raise JobFileError("predict.model", f"{predict.model[:40]!r} at a party", allowed="the run that trained it")
    if predict.active is None or not predict.receivers:
        missing = "active" if predict.active is None else "receivers"
        raise JobFileError(f"predict.{missing}", "missing at a party", allowed="what the coordinator fills in")
    check_predict_protocol(job)
    if predict.protocol == "ckks" and predict.algorithm is None:
        raise JobFileError("predict.algorithm", "missing at a party", allowed="what the coordinator fills in")
    return Plan(
        run=predict.model,
        parties=tuple(party.name for party in job.parties),
        active=predict.active,
        receivers=predict.receivers,
        algorithm=predict.algorithm or "",
        protocol=predict.protocol,
        min_trees=predict.min_trees,
        psi=psi_plan(job),
    )
