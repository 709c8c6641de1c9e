"""Gradient-boosted trees over the rows of a union, of which nobody may know which both parties have.

Roles: G, active, with labels; H, passive; D, the coordinator, which deals and opens (`union_splits`).  Each party
brings codes for all rows; where it has no row, of some other row, fixed for the whole training.  A row's weight is a·b,
the product of G's and H's membership bits.

A round: G masks v = (g, h, 1)·a, and b·v is shared between G and H by the dealer.  For the nodes of a level both make
shares of the sums left of each candidate of either party: of their own columns by counting their share and by a product
with the other's, of the other's columns by a product.  D opens the sums and chooses.

Who learns what
- G: for each node who splits it, its own candidate or the sides of all rows, the gain (3 digits); the weights of leaves
  (3 decimals); the mean loss (6 decimals) over the training, validation and test rows in common of each round.  No
  histogram: of its own columns it knows the coefficients, so that sums of b·v would be equations in the bits b.
- H: row sets of nodes among the rows of the union, its own splits and their gains.  No bit, label or derivative.
- D: row sets of nodes; for each node the sums of g, h and the count of common rows left of each candidate, candidates
  without names and in secret orders.  With G or H it learns membership and more: it must not collude.

What G learns of a tree is at most some 20 bits a leaf: two numbers of three digits.  They are equations in the bits b,
and with too few rows they could be solved: a training needs 20 training rows for each leaf of all its trees.  No node
or leaf of fewer than `min_rows_open` common rows comes about.

Honest but curious; shares are uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64, Elements, Floats
from fl_core.errors import BadFrame, DataError, JobFileError
from fl_core.learning.boosting import Codes, Objective, PlainHistograms, TreeSettings, gradient_bounds
from fl_core.learning.seeds import generator
from fl_core.learning.tree_parts import NOBODY, ActiveTrees, PassiveTrees
from fl_core.protocols.vertical.course import Course, Rows, Split, State
from fl_core.protocols.vertical.dealer import MAX_COLUMNS, Op, Script
from fl_core.protocols.vertical.dealt import Dealt, OwnMatrix, PeerMatrix
from fl_core.protocols.vertical.exchange import open_to_all
from fl_core.protocols.vertical.histograms import (
    Candidates,
    FixedPoint,
    recv_nodes,
    recv_width,
    send_nodes,
    send_width,
)
from fl_core.protocols.vertical.tree_growing import (
    MAX_OUTPUTS,
    OUTPUTS,
    WIDTH,
    Choice,
    Grower,
    Node,
    begin_passive,
    check_codes,
    row_flags,
    split_level,
    used_rows,
)
from fl_core.protocols.vertical.tree_messages import SIDES, Limits, recv_turn
from fl_core.protocols.vertical.trees import run_rounds
from fl_core.protocols.vertical.union_splits import (
    CHOICES,
    COLUMNS,
    FIGURES,
    LOSS_BITS,
    MAX_LOSS,
    REPLY,
    SHARES,
    check_enough_rows,
)

_OF_TREES, _MASKED, _BITS = "trees of nodes", "masked shares", "membership"


def train_union_active(
    channel: Channel, dealer: str, passive: str, codes: Codes, sizes: NDArray[np.int64], y: NDArray[np.generic],
    objective: str, outputs: int, split: Split, settings: TreeSettings, *, member: NDArray[np.bool_], course: Course,
) -> ActiveTrees:  # fmt: skip
    """G's part.

    Parameters
    ----------
    codes, y : over all rows of the union; where `member` is false, plausible codes and any label.
    member : (n,) which rows are its own. The rest as for `trees.train_active`.

    Raises
    ------
    JobFileError, DataError, TrainingDiverged, BadFrame : as for `trees.train_active`; DataError also for fewer training
    rows than the trees need, or too few validation rows in common.
    """
    check_codes(codes, sizes, split)
    check_enough_rows(len(split.train), outputs, settings)
    if settings.early_stopping and not len(split.valid):
        raise JobFileError("vertical.early_stopping", f"{settings.early_stopping} without validation rows", allowed="0")
    grown = _UnionGrower(
        channel, dealer, passive, codes, sizes, np.asarray(y), (objective, outputs), split, settings, member, course
    )
    trees = run_rounds(channel, [passive], grown, settings, course)
    grown.side.dealt.end()
    return trees


def train_union_passive(
    channel: Channel, dealer: str, active: str, codes: Codes, sizes: NDArray[np.int64], split: Split,
    settings: TreeSettings, *, member: NDArray[np.bool_], course: Course,
) -> PassiveTrees:  # fmt: skip
    """H's part; parameters as for `train_union_active`."""
    check_codes(codes, sizes, split)
    side = _Side(channel, dealer, active, codes, sizes, split, member, course)
    outputs = recv_width(channel, active, step=OUTPUTS, most=MAX_OUTPUTS)
    side.begin()
    limits = Limits(outputs, len(side.candidates), row_flags(used_rows(split), len(codes)))
    trees, done = begin_passive(outputs, settings, sizes, course), course.begun
    while True:
        more, keep = recv_turn(channel, active, done, settings.trees)
        if not more:
            return trees.first(keep * outputs)
        side.multiply(np.zeros((len(split.train), outputs * COLUMNS), U64))
        for level in range(settings.depth):
            if not side.answer(outputs * 2**level, settings.min_rows_open, outputs):
                break
            split_level(channel, active, level, limits, codes, side.candidates, trees, done)
        side.sum_losses(np.zeros((side.rows, COLUMNS), U64))
        done += 1
        course.done(done, trees.first(done * outputs).to_arrays() | {"order": side.candidates.order}, {})


# ---- either party


@dataclass(frozen=True, eq=False)
class _Matrices:
    own: OwnMatrix
    peer: PeerMatrix


class _Side:
    """What G and H do alike: masked columns, shares of b·v, shares of histograms.

    rows : training, validation and test rows, in this order under the shares of weights.
    """

    def __init__(
        self, channel: Channel, dealer: str, peer: str, codes: Codes, sizes: NDArray[np.int64], split: Split,
        member: NDArray[np.bool_], course: Course,
    ) -> None:  # fmt: skip
        self.split, self.fixed, self._peer = split, FixedPoint.of(len(split.train)), peer
        if self.fixed.dtype != U32:
            raise DataError("training rows", f"{len(split.train)} of a union", allowed=f"up to {(1 << 21) - 1}")
        self.candidates = Candidates(sizes, course.state.get("order"))
        self._plain, self._codes = PlainHistograms(codes[split.train], np.asarray(sizes)), codes
        order = np.concatenate([split.train, split.valid, split.test])
        self.rows, self.member, self._order = len(order), np.asarray(member, dtype=bool)[order], order
        self._channel, self.dealt, self._first = channel, Dealt(channel, dealer), False

    def begin(self, *, first: bool = False) -> None:
        """Exchange masked columns and membership bits; `first` is G, who orders."""
        self._first, n = first, len(self.split.train)
        send_width(self._channel, self._peer, len(self.candidates), step=WIDTH)
        theirs = recv_width(self._channel, self._peer, step=WIDTH, most=MAX_COLUMNS, least=0)
        self.widths = (len(self.candidates), theirs) if first else (theirs, len(self.candidates))
        holders = [self._channel.me, self._peer] if first else [self._peer, self._channel.me]
        if first:
            script = Script()
            for owner, width in zip(holders, self.widths, strict=True):
                script.matrix(owner, n, width, 32)
            script.weights(holders, self.rows)
            self.dealt.order(script)
        elements = self.candidates.columns(self._codes, self.split.train, U32)
        shape = n, len(self.candidates)
        if first:
            own = self.dealt.own_matrix([self._peer], elements, shape, U32)
        peer = self.dealt.peer_matrix(self._peer, (n, theirs), U32)
        if not first:
            own = self.dealt.own_matrix([self._peer], elements, shape, U32)
        self._matrices = _Matrices(own, peer)
        self._weights = self.dealt.weights(holders, self.rows)
        self._bits = np.zeros(self.rows, U64) if first else self.member.astype(U64)
        self._weights.opened = open_to_all(self._channel, [self._peer], self._weights.mask(self._bits), step=_BITS)

    def multiply(self, share: Elements) -> None:
        """Take this party's share of b·v for the training rows, from its share of v (rows, 3 · outputs)."""
        self._t = self._times(share, len(self.split.train)).astype(U32)

    def sum_losses(self, share: Elements) -> None:
        """Give D this party's shares of the sums of (w·loss, w, 1)·a·b over training, validation and test rows."""
        made = self._times(share, self.rows)
        ends = np.cumsum([0, len(self.split.train), len(self.split.valid), len(self.split.test)])
        sums = [made[a:b].sum(axis=0, dtype=U64) for a, b in pairwise(ends.tolist())]
        if self._first:
            self.dealt.order(Script([{"op": "figures"}]))
        self._channel.send(self.dealt.dealer, *sums, step=FIGURES)

    def _times(self, share: Elements, rows: int) -> Elements:
        if self._first:
            script = Script()
            script.scale(0, rows, share.shape[1])
            self.dealt.order(script)
        opened = open_to_all(self._channel, [self._peer], self._weights.begin(share), step=_MASKED)
        return self._weights.share(opened, 0)

    def ask(self, nodes: Sequence[Node], choose: Op) -> None:
        """G: have D choose, and give it both parties' shares of the histograms of these nodes."""
        sets, trees = [node.train for node in nodes], [node.output for node in nodes]
        if sets:
            self._order_histograms(sets)
            self.dealt.order(Script([choose]))
        for rows in sets:
            self._matrices.own.begin(rows, COLUMNS, transposed=True)
        vectors = [self._vector(rows, tree) for rows, tree in zip(sets, trees, strict=True)]
        masked = [self._matrices.peer.mask(vector) for vector in vectors]
        send_nodes(self._channel, self._peer, sets, masked, len(self.split.train))
        if sets:
            self._channel.send(self._peer, np.array(trees, dtype="<u4"), step=_OF_TREES)
            self._give(sets, vectors, self._recv_masked(sets))

    def answer(self, most: int, least: int, outputs: int) -> int:
        """H: the other side of `ask`; how many nodes there were."""
        sets, theirs = recv_nodes(
            self._channel, self._peer, len(self.split.train), COLUMNS, U32, most=most, least=least
        )  # fmt: skip
        if not sets:
            return 0
        data = self._channel.recv_exactly(self._peer, step=_OF_TREES, size=4 * len(sets))
        trees = np.frombuffer(data, "<u4")
        if (trees >= outputs).any():
            raise BadFrame(self._peer, _OF_TREES, f"tree {trees.max()}; allowed: under {outputs}")
        vectors = [self._vector(rows, int(tree)) for rows, tree in zip(sets, trees, strict=True)]
        masked = [self._matrices.peer.mask(vector) for vector in vectors]
        self._channel.send(self._peer, *map(np.ascontiguousarray, masked), step=_MASKED)
        self._give(sets, vectors, theirs)
        return len(sets)

    def _vector(self, rows: Rows, tree: int) -> Elements:
        return np.ascontiguousarray(self._t[rows, tree * COLUMNS : (tree + 1) * COLUMNS])

    def _order_histograms(self, sets: Sequence[Rows]) -> None:
        script = Script()
        numbers = [script.row_set(rows) for rows in sets]
        script.histograms(0, self._peer, numbers, COLUMNS)
        script.histograms(1, self._channel.me, numbers, COLUMNS)
        self.dealt.order(script)

    def _recv_masked(self, sets: Sequence[Rows]) -> list[Elements]:
        size = sum(map(len, sets)) * COLUMNS
        data = np.frombuffer(self._channel.recv_exactly(self._peer, step=_MASKED, size=4 * size), dtype=U32)
        cuts = np.cumsum([len(rows) * COLUMNS for rows in sets])[:-1]
        return [part.reshape(-1, COLUMNS) for part in np.split(data, cuts)]

    def _give(self, sets: Sequence[Rows], vectors: Sequence[Elements], theirs: Sequence[Elements]) -> None:
        """This party's shares to D: for each node G's candidates, H's candidates, the whole node."""
        crossed = self._matrices.own.shares(theirs, sets)
        parts = []
        for rows, vector, cross in zip(sets, vectors, crossed, strict=True):
            # whole numbers under 2^32, fewer than 2^21 of them: float64 adds without rounding
            columns = vector.astype(np.float64).T
            local = self._plain.sums(rows, *columns).astype(U64).astype(U32)[self.candidates.order]
            other = self._matrices.peer.share(vector, rows, transposed=True)
            own = local + cross
            parts += [own, other] if self._first else [other, own]
            parts.append(vector.sum(axis=0, dtype=U32))
        self._channel.send(self.dealt.dealer, *map(np.ascontiguousarray, parts), step=SHARES)


# ---- the active party


class _UnionGrower(Grower):
    """Has D choose."""

    def __init__(
        self, channel: Channel, dealer: str, passive: str, codes: Codes, sizes: NDArray[np.int64],
        y: NDArray[np.generic], task: tuple[str, int], split: Split, settings: TreeSettings,
        member: NDArray[np.bool_], course: Course,
    ) -> None:  # fmt: skip
        mine = [rows[member[rows]] for rows in (split.train, split.valid, split.test)]
        if not len(mine[0]):
            raise DataError("training rows", "none of the union is this party's", allowed="one or more")
        labels = np.where(member, y, y[mine[0][0]])
        goal = Objective.of(*task, labels, mine[0], mine[1:], settings.class_weight)
        super().__init__(channel, [passive], codes, sizes, goal, split, settings, goal.base(mine[0]), course)
        self.side = _Side(channel, dealer, passive, codes, sizes, split, member, course)
        send_width(channel, passive, goal.outputs, step=OUTPUTS)
        self.side.begin(first=True)
        self._features, self._cuts = self.side.candidates.features, self.side.candidates.cuts.astype(np.int64)
        self._fixed = replace(self.side.fixed, bounds=(*gradient_bounds(task[0], settings.class_weight), 1.0))
        self._figures: Floats = np.full(3, math.nan)

    def state(self, done: int) -> State:
        """As `Grower.state`."""
        return super().state(done) | {"order": self.side.candidates.order}

    def metrics(self) -> dict[str, float]:
        """Mean losses over the rows in common; none where these are too few."""
        told = dict(zip(("loss", "valid_loss", "test_loss"), self._figures.tolist(), strict=True))
        return {name: value for name, value in told.items() if math.isfinite(value)}

    def _begin(self, number: int) -> None:
        train = self._split.train
        derivatives = self._goal.gradients(self._scores[train], train)
        rng = generator(self._settings.seed, "rounding", number)
        member = self.side.member[: len(train)]
        made = []
        for g, h in zip(*derivatives, strict=True):
            v = np.stack([np.where(member, x, 0.0) for x in (g, h, np.ones(len(train)))], axis=1)
            made.append(self._fixed.encode(v, rng))
        self.side.multiply(np.concatenate(made, axis=1).astype(U64))

    def _choices(self, level: Sequence[Node], *, last: bool) -> list[Choice]:
        told = [[node.output, node.number, int(not node.derived)] for node in level]
        rows, widths = len(self._split.train), list(self.side.widths)
        op: Op = {"op": "choose", "rows": rows, "widths": widths, "last": int(last), "nodes": told}
        self.side.ask([node for node in level if not node.derived], op)
        if not level:
            return []
        size = REPLY.itemsize * len(level)
        data = self._channel.recv_exactly(self.side.dealt.dealer, step=CHOICES, size=size)
        return [self._choice(one) for one in np.frombuffer(data, dtype=REPLY)]

    def _choice(self, told: np.void) -> Choice:
        owner, number = int(told["owner"]), int(told["candidate"])
        numbers = [float(told[name]) for name in ("gain", "left", "right")]
        known = NOBODY <= owner <= 1 and (owner == NOBODY or number < self.side.widths[owner])
        if not known or not all(map(math.isfinite, numbers)):
            raise BadFrame(self.side.dealt.dealer, CHOICES, f"candidate {number} of party {owner}")
        return Choice(numbers[0], owner, number, *numbers[1:])

    def _check_sides(self, node: Node, choice: Choice, left: Node, right: Node, *, last: bool) -> None:
        """As `Grower._check_sides`."""
        least = self._settings.min_rows_open
        if min(len(left.train), len(right.train)) < least:
            raise BadFrame(self._passives[0], SIDES, f"a side of fewer than {least} rows")

    def _weight(self, node: Node) -> float:
        return node.weight

    def _after(self, number: int) -> None:
        split, goal, side = self._split, self._goal, self.side
        rows = np.concatenate([split.train, split.valid, split.test])
        unit = goal.factor**2 if goal.name == "regression" else 1.0
        loss = np.minimum(goal.losses(self._scores[rows], rows) / unit, MAX_LOSS)
        weight = goal.weight[rows]
        values = np.stack([weight * loss, weight, np.ones(len(rows))], axis=1)
        side.sum_losses(ring.encode(np.where(side.member[:, None], values, 0.0), LOSS_BITS))
        data = self._channel.recv_exactly(side.dealt.dealer, step=FIGURES, size=24)
        self._figures = np.frombuffer(data, dtype="<f8") * unit
        if len(split.valid):
            if self._settings.early_stopping and not math.isfinite(self._figures[1]):
                raise DataError("validation rows in common", "too few", allowed="vertical.min_rows_open or more")
            self._valid_losses.append(float(self._figures[1]))
