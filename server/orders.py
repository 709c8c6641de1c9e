"""Orders of jobs where they are made and kept: by the person who runs one, and with the run for `--resume`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_core.errors import IntegrityError, UsageError
from fl_core.files import write_atomic
from fl_core.home import Home
from fl_core.job import Job
from fl_core.messages import COORDINATOR
from fl_core.trust import order
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity, check_name
from fl_core.trust.ledger import Ledger

ENGINEER = "engineer"
_FILE = "order.json"


def person(home: Home, name: str) -> Identity:
    """The keys of somebody who orders jobs in this home, made on first use.  Raises `UsageError`."""
    check_person(name)
    return Identity.load_or_create(home.party(name), name)


def check_person(name: str) -> None:
    """Refuse (`UsageError`) a name that nobody who orders jobs can have."""
    try:
        check_name(name)
    except IntegrityError as error:
        raise UsageError(f"--as: {error}") from None
    if name == COORDINATOR:
        raise UsageError(f"--as {name}: orders no jobs; allowed: another name")


def make(identity: Identity, job: Job, *, log: str, look: bool = False) -> dict[str, bytes]:
    """A fresh order, as a request to join carries it; `look` as in `fl_core.trust.order.make`."""
    return order.blobs(order.make(identity, job, time=int(time.time() * 1000), log=log, look=look), identity.card)


def local(home: Home, identity: Identity, job: Job) -> dict[str, bytes]:
    """A fresh order of a job for the ledger of this home."""
    return make(identity, job, log=log_id(Identity.load_or_create(home.coordinator, COORDINATOR).card))


def of_run(run: Path, fresh: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
    """The order that a run began with, kept in its folder; a fresh one where it has none."""
    path = run / _FILE
    if path.exists():
        return {name: text.encode() for name, text in json.loads(path.read_text(encoding="utf-8")).items()}
    made = dict(fresh())
    if made:
        write_atomic(path, json.dumps({name: data.decode() for name, data in made.items()}).encode())
    return made


def said(blobs: Mapping[str, bytes]) -> dict[str, Any]:
    """What the ledger's entry of a job says of its order: the digest, and whose key it is."""
    if order.BLOB not in blobs:
        return {}
    statement, _, shown = order.read(blobs[order.BLOB], blobs.get(order.CARD_BLOB, b""))
    return {"order": statement.digest, "grantee": {"name": shown.name, "fingerprint": shown.fingerprint}}


def card(home: Home, blobs: Mapping[str, bytes], ledger: Ledger) -> list[Statement]:
    """The card of whoever ordered a job of this home, where the ledger does not show it yet."""
    if order.BLOB not in blobs:
        return []
    _, _, shown = order.read(blobs[order.BLOB], blobs[order.CARD_BLOB])
    if ledger.card(shown.name) is not None:
        return []
    identity = person(home, shown.name)
    body = {"card": identity.card.to_dict()}
    return [Statement.make(identity, log=ledger.log, kind="card", run="", body=body)]
