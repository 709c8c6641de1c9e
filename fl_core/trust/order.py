"""An order: whoever submits a job signs it, so that a data owner's node need not believe a coordinator who wants it.

It travels with each request to join and lies on no ledger; the ledger's `job` entry names its digest. A node holds it
against the job that it was given, and takes each nonce for one run only (`clients.consent`). What a coordinator fills
in for a prediction is left out of the job's digest, but not what the submitter had fixed (`fixed`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_core.errors import BadMessage
from fl_core.job import Job, public_digest
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_hex, check_text, check_whole, closed
from fl_core.trust.identity import Card, Identity, is_hex

KIND = "order"
BLOB, CARD_BLOB = "order", "order_card"  # in a request to join
MAX_BYTES = 64 << 10
LOOK = "check"  # stands for the run in an order to look only, which starts none
RUN_BYTES = 8  # of the id of a run, which a prediction's model is
FILLED = ("active", "algorithm", "model", "receivers")  # of a prediction, by the coordinator


@dataclass(frozen=True)
class Order:
    """What the submitter signs.

    Attributes
    ----------
    job
        `job_digest` of the job's public view, 64 hex digits.
    nonce
        16 random bytes, hex: one order, one run.
    time
        The submitter's clock: milliseconds since 1970 UTC.
    name, kind
        Of the job, for people.
    fixed
        Of a prediction: those of `FILLED` that the submitter had decided; the model where it is a run's id.
    """

    job: str
    nonce: str
    time: int
    name: str
    kind: str
    fixed: dict[str, Any]

    def __post_init__(self) -> None:
        check_hex(self.job, "order: job")
        check_whole(self.time, "order: time")
        check_text(self.kind, "order: kind")
        if not is_hex(self.nonce, 16):
            raise BadMessage("order: a nonce is 16 bytes of lower-case hex")
        if not isinstance(self.name, str) or not isinstance(self.fixed, dict) or not set(self.fixed) <= set(FILLED):
            raise BadMessage(f"order: name is a text, fixed a table of {', '.join(FILLED)}")


def job_digest(view: Mapping[str, Any]) -> str:
    """Return the digest, 64 hex digits, of a job's public view without what a coordinator fills in."""
    predict = view.get("predict")
    if isinstance(predict, Mapping):
        view = {**view, "predict": {name: value for name, value in predict.items() if name not in FILLED}}
    return public_digest(view)


def make(identity: Identity, job: Job, *, time: int, log: str, look: bool = False) -> Statement:
    """Return the order of a job by `identity`, with a fresh nonce.

    Parameters
    ----------
    job
        As read from its file, before or after the coordinator has filled it in.
    time
        Now, milliseconds since 1970 UTC.
    log
        Origin of the coordinator's ledger: another coordinator cannot use the order.
    look
        Whether the parties are only asked if they would join.
    """
    view = job.public()
    predict = view.get("predict", {})
    body: dict[str, Any] = {
        "job": job_digest(view),
        "nonce": secrets.token_hex(16),
        "time": time,
        "name": job.name.encode("ascii", "backslashreplace").decode(),
        "kind": job.kind,
        "fixed": {name: value for name, value in predict.items() if name in FILLED and value},
    }
    if not is_hex(body["fixed"].get("model"), RUN_BYTES):  # the coordinator knows which run a name or a folder means
        body["fixed"].pop("model", None)
    return Statement.make(identity, log=log, kind=KIND, run=LOOK if look else "", body=body)


def read(order: bytes, card: bytes, *, look: bool = False) -> tuple[Statement, Order, Card]:
    """Return an order from untrusted bytes, signed by the party of the card that comes with it; `look` as in `make`.

    Raises
    ------
    BadMessage
        If one of the two is malformed, oversized or no order.
    BadSignature
        If it is not signed under that card.
    """
    statement = Statement.from_dict(canonical.decode(order, max_bytes=MAX_BYTES))
    shown = Card.from_dict(canonical.decode(card, max_bytes=MAX_BYTES))
    if statement.kind != KIND or statement.run != (LOOK if look else ""):
        raise BadMessage(f"order: a statement of kind {statement.kind}; allowed: {KIND}, to run or to look as asked")
    statement.verify(shown)
    return statement, Order(**closed(Order, statement.body, KIND)), shown


def check(statement: Statement, order: Order, view: Mapping[str, Any], *, log: str) -> None:
    """Raise BadMessage unless an order is of this job, and for this log."""
    if statement.log != log:
        raise BadMessage(f"order: signed for {statement.log or 'no log'}; the request is of {log}")
    if order.job != (given := job_digest(view)):
        raise BadMessage(f"order: of job {order.job[:16]}…; the job that came with it is {given[:16]}…")
    predict = view.get("predict")
    for name, value in order.fixed.items():
        if not isinstance(predict, Mapping) or predict.get(name) != value:
            raise BadMessage(f"order: predict.{name} is not what was ordered")


def blobs(statement: Statement, card: Card) -> dict[str, bytes]:
    """Return what a request to join carries of an order."""
    return {BLOB: statement.encode(), CARD_BLOB: canonical.encode(card.to_dict())}
