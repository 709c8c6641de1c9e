"""One dataset, one grant and one job that it covers, for tests to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fl_core.trust.catalog import DatasetCard, schema_digest
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval
from fl_core.trust.grants import Grant, Request, Signer, State, Terms
from fl_core.trust.identity import Identity

LOG = "fedseal/0123456789abcdef"
COLUMNS = (("age", "int64"), ("income", "float64"))
BEGIN, END = 1_000_000, 2_000_000
ONE = 1_000_000  # ε = 1
VERSION, JOB, STRANGER = "ab" * 32, "cd" * 32, "ce" * 32


def dataset_card(owner: str, **changes: object) -> DatasetCard:
    card = DatasetCard(
        owner=owner,
        name="credit",
        schema=schema_digest(COLUMNS),
        columns=COLUMNS,
        rows=1200,
        purposes=("credit scoring", "fraud"),
        kinds=("horizontal", "psi"),
        epsilon=5 * ONE,
        delta="0.00001",
        min_cohort=3,
        version=VERSION,
        published=100,
    )
    return dataclasses.replace(card, **changes)


def make_terms(owner: str, grantee: Signer, **changes: object) -> Terms:
    terms = Terms(
        owner=owner,
        dataset="credit",
        version=VERSION,
        grantee=grantee,
        kinds=("horizontal",),
        algorithms=("mlp",),
        model="",
        job="",
        private_only=True,
        uses=2,
        epsilon=3 * ONE,
        receivers=("lab",),
        not_before=BEGIN,
        not_after=END,
        purpose="credit scoring",
    )
    return dataclasses.replace(terms, **changes)


def make_request(terms: Terms, **changes: object) -> Request:
    request = Request(
        owner=terms.owner,
        dataset=terms.dataset,
        version=VERSION,
        grantee=STRANGER if terms.standing else terms.grantee.fingerprint,
        kind="horizontal",
        algorithm="mlp",
        model="",
        receivers=("lab",),
        epsilon=ONE,
        cohort=3,
        time=BEGIN,
        job=JOB,
    )
    return dataclasses.replace(request, **changes)


def make_state(grant: Grant, **changes: object) -> State:
    """All is well, and everybody has signed."""
    state = State(
        owner_key=grant.approvals[-1].fingerprint, card=dataset_card(grant.terms.owner), approvals=grant.approvals
    )
    return dataclasses.replace(state, **changes)


def approve(grant: Grant, chain: Sequence[Identity], *, log: str = LOG) -> list[Statement]:
    """The approvals of a grant, each after the one before."""
    signed: list[Statement] = []
    for identity in chain:
        signed.append(Approval(grant, signed[-1].digest if signed else "").sign(identity, log=log))
    return signed
