"""Which rows the parties have in common, in which order, and which of them are held out.

Rows are aligned by private set intersection (`fl_core.protocols.psi`); who learns what there stands at the head of its
protocols.  Then the active party says the order and which rows are for training, validation and testing.

Who learns what, beyond that: passive parties learn the order of the common rows by the active party's ids, which they
hold themselves, and which rows are held out.  Over a union the order stays that of the union, and rows are held out at
random, so that neither says whose they are.

A training that was broken off goes on: parties keep their alignment, and the active party asks which of the steps that
each has kept all have kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.errors import BadFrame, DataError
from fl_core.learning.partition import holdout
from fl_core.learning.seeds import derive_seed
from fl_core.protocols.psi.program import Plan as PsiPlan
from fl_core.protocols.psi.program import align
from fl_core.protocols.stream import recv_bytes, send_bytes
from fl_core.protocols.vertical.course import Rows, Split
from fl_core.trust import canonical

VALID_SHARE = 0.1  # of the training rows, where early stopping looks at some
MAX_KEPT = 64
_STAND, _ORDER = "where we stand", "order of rows"
_TRAIN, _VALID, _TEST = range(3)
_TOKEN = 16


@dataclass(frozen=True, eq=False)
class Alignment:
    """Rows in their common order.

    rows : (n,) int64, the party's own row at each position; -1 where, in a union, it has none.
    filled : the same, but for a random one of its own rows where it has none, so that the row passes for one.
    split : positions. token : hex, the same at all parties that aligned together.
    """

    rows: Rows
    filled: Rows
    split: Split
    token: str

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """To keep."""
        token = np.frombuffer(self.token.encode(), np.uint8)
        parts = {"train": self.split.train, "valid": self.split.valid, "test": self.split.test}
        return {"rows": self.rows, "filled": self.filled, "token": token, **parts}

    @classmethod
    def from_arrays(cls, held: Mapping[str, NDArray[Any]]) -> Alignment:
        """As kept."""
        split = Split(held["train"], held["valid"], held["test"])
        return cls(held["rows"], held["filled"], split, held["token"].tobytes().decode())


@dataclass(frozen=True)
class Stand:
    """What a party has kept of a run: its alignment's token, empty without one, and the steps it can go on from."""

    token: str = ""
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class Start:
    """How a session begins: whether to align, and after which step training goes on."""

    aligns: bool
    begun: int


def start_active(channel: Channel, passives: Sequence[str], stand: Stand, *, coordinator: str | None) -> Start:
    """Hear where all stand and say how to begin; the coordinator hears it too where it has a part."""
    common = set(stand.kept)
    same = bool(stand.token)
    for peer in passives:
        told = canonical.decode(bytes(channel.recv(peer, step=_STAND, max_bytes=4096)))
        token, kept = _stand(peer, told)
        same = same and token == stand.token
        common &= set(kept)
    start = Start(not same, max(common, default=0) if same else 0)
    word = canonical.encode({"aligns": int(start.aligns), "begun": start.begun})
    for peer in [*passives, *([coordinator] if coordinator else [])]:
        channel.send(peer, word, step=_STAND)
    return start


def start_passive(channel: Channel, active: str, stand: Stand) -> Start:
    """Say where this party stands and hear how to begin."""
    channel.send(active, canonical.encode({"token": stand.token, "kept": list(stand.kept)}), step=_STAND)
    start = hear_start(channel, active)
    if (not start.aligns and not stand.token) or (start.begun and start.begun not in stand.kept):
        raise BadFrame(active, _STAND, f"a beginning after step {start.begun}, which this party has not kept")
    return start


def hear_start(channel: Channel, active: str) -> Start:
    """How the session begins, in the active party's words."""
    told = canonical.decode(bytes(channel.recv(active, step=_STAND, max_bytes=4096)))
    if not isinstance(told, dict) or not all(isinstance(told.get(key), int) for key in ("aligns", "begun")):
        raise BadFrame(active, _STAND, "a beginning of another shape")
    return Start(bool(told["aligns"]), int(told["begun"]))


def _stand(peer: str, told: Any) -> tuple[str, list[int]]:
    if not isinstance(told, dict) or not isinstance(told.get("token"), str) or not isinstance(told.get("kept"), list):
        raise BadFrame(peer, _STAND, "a stand of another shape")
    if len(told["kept"]) > MAX_KEPT or not all(isinstance(number, int) for number in told["kept"]):
        raise BadFrame(peer, _STAND, "steps that are no numbers")
    return told["token"], told["kept"]


# ---- alignment


@dataclass(frozen=True, eq=False)
class Holdout:
    """How the active party holds rows out.

    seed : the job's. fraction : of all common rows. validates : whether some training rows are for validation.
    test : (m,) bool over the active party's rows, where a file names them; else None.
    """

    seed: int
    fraction: float
    validates: bool
    test: NDArray[np.bool_] | None = None


def align_active(
    channel: Channel, items: NDArray[np.uint8], plan: PsiPlan, passives: Sequence[str], ids: NDArray[np.str_],
    classes: Callable[[Rows], NDArray[np.int64]], how: Holdout, *, threads: int,
) -> Alignment:  # fmt: skip
    """Align, and say order and split.

    Parameters
    ----------
    items : (m, 32) uint8, the hashes of the ids. ids : (m,) text by which common rows are ordered.
    classes : of own rows, to hold out alike; it may raise `DataError`.
    """
    rows = _aligned(channel, items, plan, threads)
    if plan.output == "union":
        split = _split_union(len(rows), how)
        order = np.arange(len(rows))
    else:
        order = np.argsort(ids[rows], kind="stable")
        rows = rows[order]
        split = _split(classes(rows), how, None if how.test is None else how.test[rows])
    token = os.urandom(_TOKEN).hex()
    marks = np.empty(len(rows), np.uint8)
    for mark, part in ((_TRAIN, split.train), (_VALID, split.valid), (_TEST, split.test)):
        marks[part] = mark
    for peer in passives:
        channel.send(peer, bytes.fromhex(token), step=_ORDER)
        send_bytes(channel, peer, np.ascontiguousarray(order, dtype="<i8").view(np.uint8), step=_ORDER)
        send_bytes(channel, peer, marks, step=_ORDER)
    return Alignment(rows, _fill(rows), split, token)


def align_passive(channel: Channel, items: NDArray[np.uint8], plan: PsiPlan, active: str, *, threads: int) -> Alignment:
    """Align, and take the active party's order and split."""
    rows = _aligned(channel, items, plan, threads)
    token = bytes(channel.recv_exactly(active, step=_ORDER, size=_TOKEN)).hex()
    order = recv_bytes(channel, active, 8 * len(rows), step=_ORDER).view("<i8").astype(np.int64)
    marks = recv_bytes(channel, active, len(rows), step=_ORDER)
    if not (np.sort(order) == np.arange(len(rows))).all() or (marks.size and marks.max() > _TEST):
        raise BadFrame(active, _ORDER, "an order or a split that is none")
    split = Split(*(np.flatnonzero(marks == mark) for mark in (_TRAIN, _VALID, _TEST)))
    return Alignment(rows[order], _fill(rows[order]), split, token)


def _aligned(channel: Channel, items: NDArray[np.uint8], plan: PsiPlan, threads: int) -> Rows:
    found = align(channel, items, plan, threads=threads)
    assert found.rows is not None
    if not len(found.rows):
        raise DataError("the parties", "no common ids", allowed="ids that some rows of all parties share")
    return found.rows


def _fill(rows: Rows) -> Rows:
    """By the operating system's randomness: the seed is everybody's."""
    own = rows[rows >= 0]
    if not len(own):
        raise DataError("the parties", "no rows", allowed="one row or more at each")
    chance = np.frombuffer(os.urandom(8 * len(rows)), np.uint64) % np.uint64(len(own))
    return np.where(rows >= 0, rows, own[chance.astype(np.int64)])


def _split(classes: NDArray[np.int64], how: Holdout, test: NDArray[np.bool_] | None) -> Split:
    if test is None:
        train, held = holdout(classes, how.fraction, derive_seed(how.seed, "test rows"))
    else:
        train, held = np.flatnonzero(~test), np.flatnonzero(test)
    if not len(train) or (test is not None and not len(held)):
        raise DataError("evaluate.test_ids", f"{len(held)} of {len(classes)} common rows", allowed="some, not all")
    whole = Split(train, np.empty(0, np.int64), held)
    if not how.validates:
        return whole
    kept, valid = holdout(classes[train], VALID_SHARE, derive_seed(how.seed, "validation rows"))
    return replace(whole, train=train[kept], valid=train[valid])


def _split_union(n: int, how: Holdout) -> Split:
    """By chance alone: neither class nor membership may show."""
    return _split(np.zeros(n, np.int64), replace(how, test=None), None)
