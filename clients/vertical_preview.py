"""What a party of a vertical job would find if it joined: its table, and the privacy that noise at the cut would cost.

Nothing is set aside.  Counts are for the person at the party's own machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.data import dataset_name
from clients.policy import Policy
from clients.vertical import load_table
from fl_core.errors import DataError
from fl_core.job import Job, Party
from fl_core.learning import privacy
from fl_core.protocols.vertical.plan import Plan, plan_of
from fl_core.protocols.vertical.program import Table
from fl_core.trust.budget import OWNER_DELTA, Budget


@dataclass(frozen=True)
class Preview:
    """A party's table in numbers.

    rows : with ids that differ. columns : how many, or the shape of a picture. classes : how many, or `numbers`, at
    the active party; else empty. epsilon : that the job would spend. left : of the owner's limit, before it.
    """

    rows: int
    columns: str
    classes: str
    epsilon: float | None = None
    left: float | None = None


def preview(job: Job, party: Party, budget: Budget, policy: Policy | None = None) -> Preview:
    """Check as joining does.  Raises `RefusedError` or `DataError`."""
    plan = plan_of(job)
    _, table = load_table(job, party, policy)
    _check(plan, table)
    columns = str(len(table.columns.names)) if table.block is None else " × ".join(map(str, table.block.shape[1:]))
    classes = "" if table.labels is None else str(len(table.classes)) if table.classes else "numbers"
    found = Preview(len(table.items), columns, classes)
    if plan.noise_multiplier is None or party.name == plan.active:
        return found
    name, spend = dataset_name(job, party), privacy.Spend(plan.noise_multiplier, 1.0, plan.releases)
    budget.check(name, spend=spend, limit=party.max_epsilon, delta=OWNER_DELTA, epsilon=privacy.epsilon)
    left = None
    if party.max_epsilon is not None:
        left = party.max_epsilon - budget.spent(name, OWNER_DELTA, privacy.epsilon, reserved=True)
    return Preview(found.rows, columns, classes, privacy.epsilon([spend], job.privacy.target_delta), left)


def _check(plan: Plan, table: Table) -> None:
    """What the session would find only once rows are aligned."""
    algorithm = plan.vertical.algorithm
    if table.block is not None and algorithm != "split-nn":
        raise DataError(table.where, f"pictures with {algorithm}", allowed="algorithm split-nn, or a table")
    if plan.vertical.encoding == "woe" and len(table.classes) > 2:
        raise DataError(f"{table.where}, labels", f"{len(table.classes)} classes with encoding woe", allowed="two")
    if table.objective == "regression" and (algorithm == "logistic" or plan.union):
        where = "over a union" if plan.union else f"with {algorithm}"
        raise DataError(f"{table.where}, labels", f"numbers {where}", allowed="classes")
