"""Gradient-boosted trees over parties' columns: the passive parties' histograms are secret-shared, with a dealer.

Level by level, all trees of a round at once.  The active party sends the row sets of the nodes to be opened and masked
derivatives, opens the histograms (`histograms`), chooses the splits; each passive party says which rows go right.

Who learns what
---------------
Active party: all that `histograms` opens to it; for each node that a passive party splits, the sides of the rows; how
many candidates it has.  Not which column a candidate is of.
Passive party: the row set of every node that is opened or that it splits (so what splits of others do to rows, not by
what), how often and with which gain (3 digits) each of its own splits was chosen, the number of trees.  No label, no
derivative, no leaf, nothing of another passive party's columns.
Dealer: row sets of opened nodes, sizes.  It must not collude with a party.  Honest but curious; masks are uniform.

Small nodes.  A histogram of few rows tells which row lies where, so no node of fewer than `min_rows_open` sampled
training rows is opened, nor one whose sibling would follow from it: above the last level every split leaves so many on
both sides, whoever owns it.  Of a passive party's candidate the active party does not know the counts before it is
chosen and requires Σh of as much as so many rows can have at most (1/4 each for classes).  Children of the last level
are leaves and may be smaller.  The smaller child is opened, the larger one follows by subtraction.

Ties: own features first, then the passive parties in order, then the lowest candidate number, which is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Elements
from fl_core.errors import BadFrame, DataError, JobFileError
from fl_core.learning.boosting import (
    Codes,
    Objective,
    PlainHistograms,
    TreeSettings,
    best_gain,
    candidate_cuts,
    leaf_weight,
)
from fl_core.learning.seeds import generator
from fl_core.learning.tree_parts import OWN, ActiveTrees, PassiveTrees
from fl_core.protocols.vertical.course import Course, Rows, Split
from fl_core.protocols.vertical.dealer import MAX_COLUMNS
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.histograms import Answerer, Candidates, FixedPoint, Opener, recv_width, send_width
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
from fl_core.protocols.vertical.tree_messages import SIDES, Limits, recv_turn, send_turn


def train_active(
    channel: Channel, dealer: str, passives: Sequence[str], codes: Codes, sizes: NDArray[np.int64],
    y: NDArray[np.generic], objective: str, outputs: int, split: Split, settings: TreeSettings, *, course: Course,
) -> ActiveTrees:  # fmt: skip
    """The active party's part.

    Parameters
    ----------
    dealer, passives : names in the session; the passive parties in the job's order.
    codes : (n, d) uint8 over all rows of the common order, d may be 0. sizes : (d,) codes of each feature.
    y : (n,) labels: 0 and 1, classes from 0, or numbers. objective : `binary`, `multiclass` or `regression`.
    outputs : classes for `multiclass`, else 1.

    Returns
    -------
    ActiveTrees
        The trees of the best round where there is early stopping, else all.

    Raises
    ------
    JobFileError, DataError : settings, labels or codes that cannot be. TrainingDiverged : derivatives out of bounds.
    BadFrame : what a peer sent does not fit.
    """
    goal = Objective.of(objective, outputs, y, split.train, (split.valid, split.test), settings.class_weight)
    check_codes(codes, sizes, split)
    if settings.early_stopping and not len(split.valid):
        raise JobFileError("vertical.early_stopping", f"{settings.early_stopping} without validation rows", allowed="0")
    grown = _SharedGrower(channel, dealer, passives, codes, sizes, goal, split, settings, course)
    trees = run_rounds(channel, passives, grown, settings, course)
    grown.dealt.end()
    return trees


def run_rounds(
    channel: Channel, passives: Sequence[str], grown: Grower, settings: TreeSettings, course: Course
) -> ActiveTrees:
    """All rounds at the active party, until there are enough or nothing gets better."""
    done = course.begun
    while done < settings.trees and not grown.stopped():
        for peer in passives:
            send_turn(channel, peer, more=True, keep=done)
        grown.grow(done)
        done += 1
        course.done(done, grown.state(done), grown.metrics())
    keep = grown.best() if settings.early_stopping else done
    for peer in passives:
        send_turn(channel, peer, more=False, keep=keep)
    return grown.trees.first(keep * len(grown.trees.base))


def train_passive(
    channel: Channel, dealer: str, active: str, codes: Codes, sizes: NDArray[np.int64], split: Split,
    settings: TreeSettings, *, course: Course,
) -> PassiveTrees:  # fmt: skip
    """A passive party's part; parameters and errors as for `train_active`.

    The candidates' secret order is part of what it hands to `course`.
    """
    check_codes(codes, sizes, split)
    dealt = Dealt(channel, dealer)
    candidates = Candidates(sizes, course.state.get("order"))
    if not len(candidates):
        raise DataError(f"party {channel.me}", "no column with two codes", allowed="one or more")
    send_width(channel, active, len(candidates), step=WIDTH)
    outputs = recv_width(channel, active, step=OUTPUTS, most=MAX_OUTPUTS)
    fixed = FixedPoint.of(len(split.train))
    answerer = Answerer(
        dealt, active, candidates.columns(codes, split.train, fixed.dtype), (len(split.train), len(candidates)),
        fixed.dtype, columns=2, most=outputs * 2 ** (settings.depth - 1), least=settings.min_rows_open,
    )  # fmt: skip
    limits = Limits(outputs, len(candidates), row_flags(used_rows(split), len(codes)))
    trees, done = begin_passive(outputs, settings, sizes, course), course.begun
    while True:
        more, keep = recv_turn(channel, active, done, settings.trees)
        if not more:
            return trees.first(keep * outputs)
        for level in range(settings.depth):
            if not answerer.answer():
                break
            split_level(channel, active, level, limits, codes, candidates, trees, done)
        done += 1
        course.done(done, trees.first(done * outputs).to_arrays() | {"order": candidates.order}, {})


class _SharedGrower(Grower):
    """Opens histograms, chooses."""

    def __init__(
        self, channel: Channel, dealer: str, passives: Sequence[str], codes: Codes, sizes: NDArray[np.int64],
        goal: Objective, split: Split, settings: TreeSettings, course: Course,
    ) -> None:  # fmt: skip
        super().__init__(channel, passives, codes, sizes, goal, split, settings, goal.base(split.train), course)
        self._features, self._cuts = candidate_cuts(sizes)
        self._plain = PlainHistograms(codes[split.train], np.asarray(sizes))
        self._fixed = replace(FixedPoint.of(len(split.train)), bounds=goal.bounds)
        self.dealt = Dealt(channel, dealer)
        for peer in passives:
            send_width(channel, peer, goal.outputs, step=OUTPUTS)
        widths = {peer: recv_width(channel, peer, step=WIDTH, most=MAX_COLUMNS) for peer in passives}
        self._opener = Opener.begin(self.dealt, widths, len(split.train), 2, self._fixed.dtype)
        self._g = self._h = np.empty((0, 0))
        self._masked: list[Elements] = []

    def metrics(self) -> dict[str, float]:
        """As `Grower.metrics`."""
        goal, split, scores = self._goal, self._split, self._scores
        told = {"loss": goal.loss(scores[split.train], split.train)} | goal.figure(scores[split.test], split.test)
        return told | ({"valid_loss": self._valid_losses[-1]} if len(split.valid) else {})

    def _begin(self, number: int) -> None:
        train = self._split.train
        self._g, self._h = self._goal.gradients(self._scores[train], train)
        rng = generator(self._settings.seed, "rounding", number)
        self._masked = [self._fixed.encode(np.stack(v, axis=1), rng) for v in zip(self._g, self._h, strict=True)]

    def _after(self, number: int) -> None:
        valid = self._split.valid
        if len(valid):
            self._valid_losses.append(self._goal.loss(self._scores[valid], valid))

    def _choices(self, level: Sequence[Node], *, last: bool) -> list[Choice]:
        self._open(level)
        return [self._choose(node, last=last) for node in level]

    def _open(self, level: Sequence[Node]) -> None:
        built = [node for node in level if not node.derived]

        def count_own() -> None:
            for node in built:
                rows = node.train if len(node.train) < len(self._split.train) else None
                g, h = self._g[node.output], self._h[node.output]
                node.own = self._plain.sums(rows, *(v if rows is None else v[rows] for v in (g, h)), None)

        vectors = [self._masked[node.output][node.train] for node in built]
        opened = self._opener.open([node.train for node in built], vectors, count_own)
        for number, node in enumerate(built):
            node.theirs = [sums[number] for sums in opened]
        for node in level:
            if node.derived and node.parent and node.twin:
                node.own = node.parent.own - node.twin.own
                node.theirs = [a - b for a, b in zip(node.parent.theirs, node.twin.theirs, strict=True)]
        for node in level:
            node.parent = None

    def _choose(self, node: Node, *, last: bool) -> Choice:
        settings, rows = self._settings, 1 if last else self._settings.min_rows_open
        total = np.array([v[node.output][node.train].sum() for v in (self._g, self._h)])
        least = np.minimum(node.own[:, 2], len(node.train) - node.own[:, 2])
        weight = settings.min_child_weight
        gain, number = best_gain(node.own[:, :2], total, l2=settings.l2, least=weight, fits=least >= rows)
        best = Choice(gain, OWN, number) if number >= 0 else Choice()
        weight = weight if last else max(weight, rows * self._fixed.bounds[1])
        rounded = self._fixed.decode(self._sum(node.output, node.train))
        for owner, sums in enumerate(node.theirs, start=1):
            gain, number = best_gain(self._fixed.decode(sums), rounded, l2=settings.l2, least=weight)
            if number >= 0 and gain > best.gain:
                best = Choice(gain, owner, number)
        return best

    def _sum(self, output: int, train: Rows) -> Elements:
        return np.asarray(self._masked[output][train].sum(axis=0, dtype=self._fixed.dtype))

    def _check_sides(self, node: Node, choice: Choice, left: Node, right: Node, *, last: bool) -> None:
        """The sides must be those of the candidate that was opened."""
        opened = node.theirs[choice.owner - 1][choice.number]
        few = not last and min(len(left.train), len(right.train)) < self._settings.min_rows_open
        if few or (self._sum(node.output, left.train) != opened).any():
            raise BadFrame(self._passives[choice.owner - 1], SIDES, "sides that do not fit the opened histogram")

    def _weight(self, node: Node) -> float:
        g, h = (float(v[node.output][node.train].sum()) for v in (self._g, self._h))
        return leaf_weight(g, h, self._settings)
