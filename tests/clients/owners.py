"""An owner, a lab that orders jobs, and one job, for tests of consent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clients.consent.decision import Consent, Leave
from clients.consent.terms import Wanted
from fl_core.config import load_job
from fl_core.trust import order
from fl_core.trust.catalog import UNLIMITED, DatasetCard, schema_digest
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import GrantRequest
from fl_core.trust.grants import Signer, Terms
from fl_core.trust.identity import Identity

NOW = 1_000_000
END = 2_000_000
VERSION = "ab" * 32
COLUMNS = (("age", "int64"),)
COORDINATOR, LAB, EVE = (Identity.create(name) for name in ("coordinator", "lab", "eve"))
LOG = log_id(COORDINATOR.card)
NAMES = ("bank", "bureau", "clinic")


def job_of(kind: str = "horizontal", runtime: str = "deployment", **changes: Any):
    """A job of three parties on data that their nodes name `credit`."""
    parties = [{"name": name, "data": "credit"} for name in NAMES[: 3 if kind == "horizontal" else 2]]
    for party in parties:
        party |= {"label": "y"} if kind == "horizontal" else {"id": ["id"]}
    table = {"kind": kind, "runtime": runtime, "party": parties}
    return load_job(table, changes)


def card_of(whose: str, **changes: Any) -> DatasetCard:
    card = DatasetCard(
        owner=whose, name="credit", schema=schema_digest(COLUMNS), columns=COLUMNS, rows=100, purposes=("fraud",),
        kinds=("horizontal", "psi"), epsilon=UNLIMITED, delta="0.00001", min_cohort=1, version=VERSION, published=100,
    )  # fmt: skip
    return dataclasses.replace(card, **changes)


class Owner:
    """`bank`, at its node."""

    def __init__(self, path: Path, name: str = "bank") -> None:
        self.path, self.identity = path / name, Identity.load_or_create(path / name, name)
        self.consent = Consent(self.path, self.identity)
        self.job = job_of()

    def publish(self, **changes: Any) -> None:
        self.consent.publish(card_of(self.identity.name, **changes), log=LOG)

    def terms(self, **changes: Any) -> Terms:
        wanted = self.wanted(self.job)
        terms = Terms(
            owner=self.identity.name, dataset="credit", version="", grantee=Signer.of(LAB.card), kinds=("horizontal",),
            algorithms=(wanted.algorithm,), model="", job="", private_only=False, uses=2, epsilon=10_000_000,
            receivers=("bureau", "clinic"), not_before=NOW, not_after=END, purpose="fraud",
        )  # fmt: skip
        return dataclasses.replace(terms, **changes)

    def ask(self, by: Identity = LAB, **changes: Any) -> str:
        """The id of a request that has been received."""
        grantee = changes.pop("grantee", Signer.of(by.card))
        request = GrantRequest(self.terms(grantee=grantee, **changes)).sign(by, log=LOG)
        return self.consent.receive(request, by.card)

    def grant(self, by: Identity = LAB, **changes: Any) -> str:
        """The id of a grant that the owner approved."""
        statement = self.consent.approve(self.ask(by, **changes), log=LOG)
        return next(a.grant.id for a in self.consent.grants() if a.grant.to_dict() == statement.body["grant"])

    def wanted(self, job: Any) -> Wanted:
        return Wanted.of(job, owner=self.identity.name, dataset="credit")

    def weigh(self, run: str = "run-1", *, job: Any = None, blobs: Any = None, **changes: Any) -> Leave:
        job = job or self.job
        given = {"view": job.public(), "log": LOG, "strict": True, "now": NOW} | changes
        held = ordered(job) if blobs is None else blobs
        return self.consent.weigh(self.wanted(job), run=run, blobs=held, **given)


def ordered(job: Any, by: Identity = LAB, *, log: str = LOG, time: int = NOW, look: bool = False) -> dict[str, bytes]:
    """A fresh order, as it travels."""
    return order.blobs(order.make(by, job, time=time, log=log, look=look), by.card)


def altered(blobs: dict[str, bytes], by: Identity, **changes: Any) -> dict[str, bytes]:
    """The same order with other fields in its body, signed again by `by`."""
    statement, _, _ = order.read(blobs[order.BLOB], blobs[order.CARD_BLOB])
    body = {**statement.body, **changes}
    return order.blobs(Statement.make(by, log=statement.log, kind="order", run="", body=body), by.card)
