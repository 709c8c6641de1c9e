"""What a data owner's node checks before a job touches its data, and what it sets aside.

With differential privacy the owner's limit comes first: what the job would spend, together with everything spent or set
aside for that dataset name before, must stay within `max_epsilon`.  Where the number of rows is known from an earlier
job the refusal happens before the data are opened; the reservation is made before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.data import PartyData, dataset_name, load_party_data
from clients.policy import Policy
from clients.store import PartyStore
from fl_core.errors import BudgetExceeded, RefusedError
from fl_core.files import private_dir
from fl_core.job import Job, Party
from fl_core.learning import privacy
from fl_core.trust.budget import OWNER_DELTA, Budget


@dataclass(frozen=True)
class Admission:
    """A party's leave to take part: its data (None for a receiver) and what privacy the job may spend."""

    data: PartyData | None
    commitment: str
    plan: privacy.Plan | None
    name: str


def admit(job: Job, party: Party | None, store: PartyStore, run: str, policy: Policy | None = None) -> Admission:
    """Check, open the data, reserve.  Raises `RefusedError` or `DataError`.  Repeating it for a run changes nothing."""
    if job.kind != "horizontal":
        raise RefusedError(f"this node runs no {job.kind} jobs")
    if party is None:
        return Admission(None, "", None, "")
    name = dataset_name(job, party)
    if job.privacy.mechanism != "none":
        _refuse_early(job, party, store, name, run)
    data = load_party_data(job, party, policy)
    rows = len(data.y_train)
    plan = None
    if job.privacy.mechanism != "none" and job.train.rounds:
        plan = _plan(job, rows)
        store.budget.remember_rows(name, rows)
        store.budget.reserve(
            name, run, spend=plan.total(), limit=party.max_epsilon, delta=OWNER_DELTA, epsilon=privacy.epsilon
        )
    return Admission(data, data.commitment(store.commitment_key), plan, name)


def _refuse_early(job: Job, party: Party, store: PartyStore, name: str, run: str) -> None:
    """Refuse what cannot pass, without opening the data."""
    limit, wanted = party.max_epsilon, job.privacy
    if limit is None or store.budget.holds(run) or not job.train.rounds:
        return
    if wanted.target_delta <= OWNER_DELTA and wanted.target_epsilon > limit:
        raise BudgetExceeded(f"{name}: the job asks for ε = {wanted.target_epsilon:g}; the owner allows {limit:g}")
    if (rows := store.budget.rows(name)) is not None:
        plan = _plan(job, rows)
        store.budget.check(name, spend=plan.total(), limit=limit, delta=OWNER_DELTA, epsilon=privacy.epsilon, run=run)


def _plan(job: Job, rows: int) -> privacy.Plan:
    if job.privacy.mechanism == "client-dp":
        return privacy.plan_client_dp(job.train, job.privacy)
    return privacy.plan_dp_sgd(job.train, job.privacy, rows)


@dataclass(frozen=True)
class Preview:
    """What `admit` would find: the data, the ε the job would spend and what the owner's limit leaves before it."""

    data: PartyData
    epsilon: float | None
    left: float | None


def preview(job: Job, party: Party, home: Path, policy: Policy | None = None) -> Preview:
    """Check as `admit` does, without keys and reservations."""
    data = load_party_data(job, party, policy)
    if job.privacy.mechanism == "none" or not job.train.rounds:
        return Preview(data, None, None)
    budget, name = Budget(private_dir(home) / "budget.db"), dataset_name(job, party)
    spend = _plan(job, len(data.y_train)).total()
    budget.check(name, spend=spend, limit=party.max_epsilon, delta=OWNER_DELTA, epsilon=privacy.epsilon)
    left = None
    if party.max_epsilon is not None:
        left = party.max_epsilon - budget.spent(name, OWNER_DELTA, privacy.epsilon, reserved=True)
    return Preview(data, privacy.epsilon([spend], job.privacy.target_delta), left)
