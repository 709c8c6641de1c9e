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
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Elements, Floats
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
from fl_core.learning.tree_parts import OWN, ActiveTrees, PassiveTrees, empty_part, empty_trees, leaf_of
from fl_core.protocols.vertical.course import Course, Rows, Split, State
from fl_core.protocols.vertical.dealer import MAX_COLUMNS
from fl_core.protocols.vertical.dealt import Dealt
from fl_core.protocols.vertical.histograms import Answerer, Candidates, FixedPoint, Opener, recv_width, send_width
from fl_core.protocols.vertical.tree_messages import (
    SIDES,
    Chosen,
    Limits,
    recv_sides,
    recv_splits,
    recv_turn,
    send_sides,
    send_splits,
    send_turn,
)

_OUTPUTS, _WIDTH = "trees a round", "candidates"
_MAX_OUTPUTS = 1 << 12


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
    grown = _Grower(channel, dealer, passives, codes, sizes, goal, split, settings, course)
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
    grown.dealt.end()
    return grown.trees.first(keep * outputs)


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
    send_width(channel, active, len(candidates), step=_WIDTH)
    outputs = recv_width(channel, active, step=_OUTPUTS, most=_MAX_OUTPUTS)
    fixed = FixedPoint.of(len(split.train))
    answerer = Answerer(
        dealt, active, candidates.columns(codes, split.train, fixed.dtype), (len(split.train), len(candidates)),
        fixed.dtype, columns=2, most=outputs * 2 ** (settings.depth - 1), least=settings.min_rows_open,
    )  # fmt: skip
    limits = Limits(outputs, len(candidates), _flags(used_rows(split), len(codes)))
    trees, done = _begin_passive(outputs, settings, sizes, course), course.begun
    while True:
        more, keep = recv_turn(channel, active, done, settings.trees)
        if not more:
            return trees.first(keep * outputs)
        for level in range(settings.depth):
            if not answerer.answer():
                break
            chosen = recv_splits(channel, active, level, limits)
            for one in chosen:
                at = done * outputs + one.output, one.node
                trees.feature[at], trees.cut[at] = candidates.features[one.candidate], candidates.cuts[one.candidate]
                trees.gain[at] = one.gain
            sides = [codes[c.rows, candidates.features[c.candidate]] > candidates.cuts[c.candidate] for c in chosen]
            send_sides(channel, active, sides)
        done += 1
        course.done(done, trees.first(done * outputs).to_arrays() | {"order": candidates.order}, {})


def _begin_passive(outputs: int, settings: TreeSettings, sizes: NDArray[np.int64], course: Course) -> PassiveTrees:
    trees = empty_part(settings.trees * outputs, settings.depth, sizes)
    if course.begun:
        kept = PassiveTrees.from_arrays(course.state)
        for name in ("feature", "cut", "gain"):
            getattr(trees, name)[: kept.trees] = getattr(kept, name)
    return trees


def used_rows(split: Split) -> Rows:
    """Training, validation and test rows, ascending."""
    return np.sort(np.concatenate([split.train, split.valid, split.test]))


def check_codes(codes: Codes, sizes: NDArray[np.int64], split: Split) -> None:
    """DataError where codes, their sizes and the rows of a split do not belong together."""
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise DataError("codes", f"{codes.dtype} of shape {codes.shape}", allowed=f"uint8, (rows, {len(sizes)})")
    if (np.asarray(sizes) > 256).any() or (len(codes) and (codes.max(axis=0, initial=0) >= sizes).any()):
        raise DataError("codes", "a code that is not below its column's size", allowed="0 to size - 1")
    used = used_rows(split)
    if len(used) and (used[0] < 0 or used[-1] >= len(codes) or (np.diff(used) == 0).any()):
        raise DataError("split", f"rows that are not rows of {len(codes)}, or twice", allowed="disjoint positions")


def _flags(rows: Rows, n: int) -> NDArray[np.bool_]:
    flags = np.zeros(n, dtype=bool)
    flags[rows] = True
    return flags


# ---- the active party


@dataclass(eq=False)
class _Node:
    """A node on its way: its rows of the common order, which of the sampled training rows are among them."""

    output: int
    number: int
    rows: Rows
    train: Rows
    parent: _Node | None = None
    twin: _Node | None = None
    own: Floats = field(default_factory=lambda: np.empty((0, 3)))
    theirs: list[Elements] = field(default_factory=list)

    @property
    def derived(self) -> bool:
        """Whether its histograms follow from its parent's and its twin's."""
        return self.twin is not None and (len(self.train), self.number) > (len(self.twin.train), self.twin.number)


@dataclass(frozen=True)
class _Choice:
    """A node's best split: of this party (owner 0) or of a passive one; owner -1 if there is none."""

    gain: float = 0.0
    owner: int = -1
    number: int = -1


class _Grower:
    """The active party's state: scores of all rows, the trees so far, what it needs to open nodes."""

    def __init__(
        self, channel: Channel, dealer: str, passives: Sequence[str], codes: Codes, sizes: NDArray[np.int64],
        goal: Objective, split: Split, settings: TreeSettings, course: Course,
    ) -> None:  # fmt: skip
        self._channel, self._passives, self._codes, self._goal = channel, list(passives), codes, goal
        self._split, self._settings, self._used = split, settings, used_rows(split)
        self._features, self._cuts = candidate_cuts(sizes)
        self._plain = PlainHistograms(codes[split.train], np.asarray(sizes))
        self._fixed = replace(FixedPoint.of(len(split.train)), bounds=goal.bounds)
        self._check_sample()
        self._restore(np.asarray(sizes, dtype=np.int64), course)
        self.dealt = Dealt(channel, dealer)
        for peer in passives:
            send_width(channel, peer, goal.outputs, step=_OUTPUTS)
        widths = {peer: recv_width(channel, peer, step=_WIDTH, most=MAX_COLUMNS) for peer in passives}
        self._opener = Opener.begin(self.dealt, widths, len(split.train), 2, self._fixed.dtype)
        self._g = self._h = np.empty((0, 0))
        self._masked: list[Elements] = []

    def _check_sample(self) -> None:
        rows, least = self._sample_size(), self._settings.min_rows_open
        if rows < least:
            raise DataError("training rows", f"{rows} a tree", allowed=f"vertical.min_rows_open = {least} or more")

    def _restore(self, sizes: NDArray[np.int64], course: Course) -> None:
        goal, base = self._goal, self._goal.base(self._split.train)
        count, told = self._settings.trees * goal.outputs, goal.offset + goal.factor * base
        self.trees = empty_trees(count, self._settings.depth, sizes, told, len(self._passives))
        self._scores, self._valid_losses = np.tile(base, (len(self._codes), 1)), list[float]()
        if course.begun:
            kept = ActiveTrees.from_arrays(course.state)
            for name in ("feature", "cut", "gain", "owner", "leaves"):
                getattr(self.trees, name)[: kept.trees] = getattr(kept, name)
            self._scores = np.array(course.state["scores"])
            self._valid_losses = course.state["valid_losses"].tolist()

    def state(self, done: int) -> State:
        """All that is needed to go on after `done` rounds."""
        more = {"scores": self._scores, "valid_losses": np.array(self._valid_losses, dtype=np.float64)}
        return self.trees.first(done * self._goal.outputs).to_arrays() | more

    def metrics(self) -> dict[str, float]:
        """Of the scores as they are."""
        goal, split, scores = self._goal, self._split, self._scores
        told = {"loss": goal.loss(scores[split.train], split.train)} | goal.figure(scores[split.test], split.test)
        return told | ({"valid_loss": self._valid_losses[-1]} if len(split.valid) else {})

    def best(self) -> int:
        """The round of the least loss on the validation rows."""
        return int(np.argmin(self._valid_losses)) + 1 if self._valid_losses else 0

    def stopped(self) -> bool:
        """Whether there was no better loss for long enough."""
        patience = self._settings.early_stopping
        return patience > 0 and len(self._valid_losses) - self.best() >= patience

    # ---- a round

    def grow(self, number: int) -> None:
        """One more round: a tree for each output."""
        split, settings, goal = self._split, self._settings, self._goal
        sample = self._sample(number)
        self._g, self._h = goal.gradients(self._scores[split.train], split.train)
        rng = generator(settings.seed, "rounding", number)
        self._masked = [self._fixed.encode(np.stack(v, axis=1), rng) for v in zip(self._g, self._h, strict=True)]
        level = [_Node(output, 0, self._used, sample) for output in range(goal.outputs)]
        for depth in range(settings.depth):
            self._open(level)
            if not level:
                break
            last = depth == settings.depth - 1
            level = self._divide(number, level, [self._choose(node, last=last) for node in level], last=last)
        for node in level:
            self._end(number, node)
        if len(split.valid):
            self._valid_losses.append(goal.loss(self._scores[split.valid], split.valid))

    def _sample_size(self) -> int:
        return max(1, round(self._settings.subsample * len(self._split.train)))

    def _sample(self, number: int) -> Rows:
        n, size = len(self._split.train), self._sample_size()
        if size == n:
            return np.arange(n)
        return np.sort(generator(self._settings.seed, "subsample", number).permutation(n)[:size])

    def _open(self, level: Sequence[_Node]) -> None:
        built = [node for node in level if not node.derived]

        def count_own() -> None:
            for node in built:
                rows = node.train if len(node.train) < len(self._split.train) else None
                g, h = self._g[node.output], self._h[node.output]
                node.own = self._plain.sums(rows, *(v if rows is None else v[rows] for v in (g, h)))

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

    def _choose(self, node: _Node, *, last: bool) -> _Choice:
        settings, rows = self._settings, 1 if last else self._settings.min_rows_open
        total = np.array([v[node.output][node.train].sum() for v in (self._g, self._h)])
        least = np.minimum(node.own[:, 2], len(node.train) - node.own[:, 2])
        weight = settings.min_child_weight
        gain, number = best_gain(node.own[:, :2], total, l2=settings.l2, least=weight, fits=least >= rows)
        best = _Choice(gain, OWN, number) if number >= 0 else _Choice()
        weight = weight if last else max(weight, rows * self._fixed.bounds[1])
        rounded = self._fixed.decode(self._sum(node.output, node.train))
        for owner, sums in enumerate(node.theirs, start=1):
            gain, number = best_gain(self._fixed.decode(sums), rounded, l2=settings.l2, least=weight)
            if number >= 0 and gain > best.gain:
                best = _Choice(gain, owner, number)
        return best

    def _sum(self, output: int, train: Rows) -> Elements:
        return np.asarray(self._masked[output][train].sum(axis=0, dtype=self._fixed.dtype))

    def _divide(self, number: int, level: Sequence[_Node], choices: Sequence[_Choice], *, last: bool) -> list[_Node]:
        """Record the splits, send rows to their sides; the children."""
        sides = self._sides(level, choices)
        children: list[_Node] = []
        for i, (node, choice) in enumerate(zip(level, choices, strict=True)):
            if choice.owner < 0:
                self._end(number, node)
                continue
            at = number * self._goal.outputs + node.output, node.number
            self.trees.owner[at], self.trees.gain[at] = choice.owner, choice.gain
            if choice.owner == OWN:
                self.trees.feature[at], self.trees.cut[at] = self._features[choice.number], self._cuts[choice.number]
            right = np.zeros(len(self._codes), dtype=bool)
            right[node.rows] = sides[i]
            pair = self._children(node, sides[i], right[self._split.train[node.train]])
            if choice.owner > 0:
                self._check_sides(node, choice, pair[0], min(len(child.train) for child in pair), last=last)
            children += pair
        return children

    def _children(self, node: _Node, side: NDArray[np.bool_], train: NDArray[np.bool_]) -> list[_Node]:
        first = 2 * node.number + 1
        left = _Node(node.output, first, node.rows[~side], node.train[~train], node)
        right = _Node(node.output, first + 1, node.rows[side], node.train[train], node)
        left.twin, right.twin = right, left
        return [left, right]

    def _sides(self, level: Sequence[_Node], choices: Sequence[_Choice]) -> dict[int, NDArray[np.bool_]]:
        made: dict[int, NDArray[np.bool_]] = {}
        asked = [[i for i, c in enumerate(choices) if c.owner == p] for p in range(1 + len(self._passives))]
        for peer, numbers in zip(self._passives, asked[1:], strict=True):
            chosen = [
                Chosen(level[i].output, level[i].number, choices[i].number, level[i].rows, choices[i].gain)
                for i in numbers
            ]
            send_splits(self._channel, peer, chosen, len(self._codes))
        for i in asked[OWN]:
            feature, cut = self._features[choices[i].number], self._cuts[choices[i].number]
            made[i] = self._codes[level[i].rows, feature] > cut
        for peer, numbers in zip(self._passives, asked[1:], strict=True):
            told = recv_sides(self._channel, peer, [len(level[i].rows) for i in numbers])
            made |= dict(zip(numbers, told, strict=True))
        return made

    def _check_sides(self, node: _Node, choice: _Choice, left: _Node, smaller: int, *, last: bool) -> None:
        """The sides must be those of the candidate that was opened."""
        opened = node.theirs[choice.owner - 1][choice.number]
        few = not last and smaller < self._settings.min_rows_open
        if few or (self._sum(node.output, left.train) != opened).any():
            raise BadFrame(self._passives[choice.owner - 1], SIDES, "sides that do not fit the opened histogram")

    def _end(self, number: int, node: _Node) -> None:
        g, h = (float(v[node.output][node.train].sum()) for v in (self._g, self._h))
        weight = leaf_weight(g, h, self._settings)
        self._scores[node.rows, node.output] += weight
        tree = number * self._goal.outputs + node.output
        self.trees.leaves[tree, leaf_of(node.number, self._settings.depth)] = weight * self._goal.factor
