"""A joint prediction as a party program: check that the parts belong together, align rows, score.

Who learns what
---------------
All parties: the intersection of the new rows' ids, as `fl_core.protocols.psi` says with all as receivers: every party
learns which of its rows the others have, and the sizes of the sets.  The order of these rows by the ids of the first
receiver, which all of them hold themselves.
A receiver: the scores, and what the algorithm's module says (`linear`, `forest` with `tree_shares` or `tree_ckks`,
`network`); of a classifier with more than two classes their names.  The others: nothing of scores.
The coordinator: how many rows are aligned; for trees it deals randomness and must not collude with a party then, unless
`protocol` is "ckks"; where more than two parties are aligned it compares without keys.

Parts of different trainings are found out before anything else: each party sends the others a digest of what all parts
of one model share, which is not secret among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Floats
from fl_core.errors import BadFrame, DataError
from fl_core.learning.columns import Columns
from fl_core.messages import COORDINATOR
from fl_core.protocols.prediction.part import MAX_CLASSES, NewRows, Part
from fl_core.protocols.prediction.plan import Plan
from fl_core.protocols.psi.program import align, compare
from fl_core.protocols.stream import recv_bytes, send_bytes
from fl_core.protocols.vertical.course import Rows
from fl_core.protocols.vertical.dealer import DEAL, OVER, PHASE, Dealer
from fl_core.protocols.vertical.meaning import predictions
from fl_core.trust import canonical

_MODEL, _ORDER, _CLASSES = "model", "order of rows", "classes"
_DIGEST = 32


@dataclass(frozen=True, eq=False)
class NewTable:
    """A party's new rows, ids distinct.

    items : (m, 32) uint8 hashes of ids. ids : (m,) text by which a receiver orders rows.
    columns : (m rows) of the part's columns. block : (m, …) float32 of pictures, or None. where : how messages begin.
    """

    items: NDArray[np.uint8]
    ids: NDArray[np.str_]
    columns: Columns
    block: NDArray[np.float32] | None
    where: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a party has in the end.

    rows : of its table, in the common order. predictions : of these rows, at a receiver; see `meaning.predictions`.
    classes : their names, for predictions of a column each. seconds : that scoring took, without aligning.
    """

    rows: Rows
    predictions: Floats | None
    classes: tuple[str, ...]
    seconds: float


# ---- the coordinator


def coordinate(channel: Channel, plan: Plan) -> None:
    """The coordinator's part: it compares where the intersection needs it, and deals where the model does."""
    if plan.psi.comparer is not None:
        compare(channel, plan.psi)
    word = bytes(channel.recv(plan.active, step=PHASE, max_bytes=len(DEAL)))
    if word == DEAL:
        Dealer(channel, plan.active, plan.parties).serve()
    elif word != OVER:
        raise BadFrame(plan.active, PHASE, "neither a deal nor an end")


# ---- parties


def run(
    channel: Channel, plan: Plan, part: Part, table: NewTable, *, say: Callable[[str], None], threads: int
) -> Outcome:
    """One party's part.

    Raises
    ------
    DataError : parts of different models; no common ids; columns that do not fit. RefusedError : not a use that the
    part allows. BadFrame : a message that cannot be.
    """
    part.check(plan)
    _agree(channel, plan, part)
    say(f"aligning {len(plan.parties)} tables, {len(table.items):,} ids here")
    found = align(channel, table.items, plan.psi, threads=threads)
    assert found.rows is not None
    if not len(found.rows):
        raise DataError("the parties", "no common ids", allowed="ids that some rows of all parties share")
    rows = found.rows[_order(channel, plan, table.ids[found.rows])]
    if part.is_active:
        dealt = part.training.algorithm == "gbdt" and plan.deals
        channel.send(COORDINATOR, DEAL if dealt else OVER, step=PHASE)
    say(f"scoring {len(rows):,} rows")
    began = time.monotonic()
    block = None if table.block is None else table.block[rows]
    scores = part.score(channel, plan, NewRows(table.columns.take(rows), block))
    seconds = time.monotonic() - began
    classes = _classes(channel, plan, part)
    if scores is None:
        return Outcome(rows, None, (), seconds)
    return Outcome(rows, predictions(scores, part.training.objective, part.link), classes, seconds)


def _agree(channel: Channel, plan: Plan, part: Part) -> None:
    """All parts must be of one training."""
    mine = part.training.digest()
    for peer in plan.others(channel.me):
        channel.send(peer, mine, step=_MODEL)
    for peer in plan.others(channel.me):
        if bytes(channel.recv_exactly(peer, step=_MODEL, size=_DIGEST)) != mine:
            problem = f"its part of the model is of another training than that of party {peer}"
            raise DataError(part.where, problem, allowed="parts that were trained together")


def _order(channel: Channel, plan: Plan, ids: NDArray[np.str_]) -> Rows:
    """Where each row of the common order stands in the intersection: by the first receiver's ids as text."""
    head, n = plan.receivers[0], len(ids)
    if channel.me == head:
        order = np.argsort(ids, kind="stable")
        for peer in plan.others(head):
            send_bytes(channel, peer, np.ascontiguousarray(order, dtype="<i8").view(np.uint8), step=_ORDER)
        return order
    order = recv_bytes(channel, head, 8 * n, step=_ORDER).view("<i8").astype(np.int64)
    if not (np.sort(order) == np.arange(n)).all():
        raise BadFrame(head, _ORDER, "an order that is none")
    return order


def _classes(channel: Channel, plan: Plan, part: Part) -> tuple[str, ...]:
    """Names of more than two classes, at the receivers; the active party tells them."""
    if part.training.objective != "multiclass":
        return ()
    if part.is_active:
        for receiver in plan.receivers:
            if receiver != channel.me:
                channel.send(receiver, canonical.encode(list(part.classes)), step=_CLASSES)
        return part.classes
    if channel.me not in plan.receivers:
        return ()
    most = canonical.MAX_BYTES
    told = canonical.decode(bytes(channel.recv(plan.active, step=_CLASSES, max_bytes=most)))
    fits = isinstance(told, list) and all(isinstance(name, str) for name in told)
    if not fits or len(told) > MAX_CLASSES or len(set(told)) != part.training.outputs:
        raise BadFrame(plan.active, _CLASSES, "classes of another shape")
    return tuple(told)
