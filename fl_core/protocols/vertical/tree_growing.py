"""Growing trees at the active party, level by level, all trees of a round at once; who chooses a split comes later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Elements, Floats
from fl_core.errors import DataError
from fl_core.learning.boosting import Codes, Objective, TreeSettings
from fl_core.learning.seeds import generator
from fl_core.learning.tree_parts import OWN, ActiveTrees, PassiveTrees, empty_part, empty_trees, leaf_of
from fl_core.protocols.vertical.course import Course, Rows, Split, State
from fl_core.protocols.vertical.histograms import Candidates
from fl_core.protocols.vertical.tree_messages import Chosen, Limits, recv_sides, recv_splits, send_sides, send_splits

OUTPUTS, WIDTH = "trees a round", "candidates"
MAX_OUTPUTS = 1 << 12


@dataclass(eq=False)
class Node:
    """A node on its way: its rows of the common order, which of the sampled training rows are among them.

    own, theirs : sums left of each candidate, of this party and of each passive one, once they are opened.
    weight : of its leaf, where somebody else says it.
    """

    output: int
    number: int
    rows: Rows
    train: Rows
    parent: Node | None = None
    twin: Node | None = None
    own: Floats = field(default_factory=lambda: np.empty((0, 3)))
    theirs: list[Elements] = field(default_factory=list)
    weight: float = 0.0

    @property
    def derived(self) -> bool:
        """Whether its histograms follow from its parent's and its twin's: the larger child, by training rows."""
        return self.twin is not None and (len(self.train), self.number) > (len(self.twin.train), self.twin.number)


@dataclass(frozen=True)
class Choice:
    """A node's best split: of this party (owner 0) or of a passive one; owner -1 if there is none.

    left, right : weights of what becomes a leaf, where somebody else says them.
    """

    gain: float = 0.0
    owner: int = -1
    number: int = -1
    left: float = 0.0
    right: float = 0.0


class Grower(ABC):
    """The active party's state: scores of all rows and the trees so far.

    Parameters
    ----------
    features, cuts : of each own candidate. goal : labels and loss.
    """

    def __init__(
        self, channel: Channel, passives: Sequence[str], codes: Codes, sizes: NDArray[np.int64], goal: Objective,
        split: Split, settings: TreeSettings, base: Floats, course: Course,
    ) -> None:  # fmt: skip
        self._channel, self._passives, self._codes, self._goal = channel, list(passives), codes, goal
        self._split, self._settings, self._used = split, settings, used_rows(split)
        self._features = self._cuts = np.empty(0, np.int64)
        rows, least = self._sample_size(), settings.min_rows_open
        if rows < least:
            raise DataError("training rows", f"{rows} a tree", allowed=f"vertical.min_rows_open = {least} or more")
        count, told = settings.trees * goal.outputs, goal.offset + goal.factor * base
        self.trees = empty_trees(count, settings.depth, np.asarray(sizes, dtype=np.int64), told, len(passives))
        self._scores, self._valid_losses = np.tile(base, (len(codes), 1)), list[float]()
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

    def best(self) -> int:
        """The round of the least loss on the validation rows."""
        return int(np.argmin(self._valid_losses)) + 1 if self._valid_losses else 0

    def stopped(self) -> bool:
        """Whether there was no better loss for long enough."""
        patience = self._settings.early_stopping
        return patience > 0 and len(self._valid_losses) - self.best() >= patience

    def grow(self, number: int) -> None:
        """One more round: a tree for each output."""
        settings = self._settings
        self._begin(number)
        sample = self._sample(number)
        level = [Node(output, 0, self._used, sample) for output in range(self._goal.outputs)]
        for depth in range(settings.depth):
            last = depth == settings.depth - 1
            choices = self._choices(level, last=last)
            if not level:
                break
            level = self._divide(number, level, choices, last=last)
        for node in level:
            self._end(number, node)
        self._after(number)

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Of the scores as they are, for `Course.done`."""

    @abstractmethod
    def _begin(self, number: int) -> None:
        """Derivatives for a round."""

    @abstractmethod
    def _choices(self, level: Sequence[Node], *, last: bool) -> list[Choice]:
        """The splits of a level; the passive parties are told of an empty one too."""

    @abstractmethod
    def _weight(self, node: Node) -> float:
        """Of a leaf."""

    @abstractmethod
    def _after(self, number: int) -> None:
        """At the end of a round."""

    @abstractmethod
    def _check_sides(self, node: Node, choice: Choice, left: Node, right: Node, *, last: bool) -> None:
        """`BadFrame` where what a passive party said cannot be."""

    def _sample_size(self) -> int:
        return max(1, round(self._settings.subsample * len(self._split.train)))

    def _sample(self, number: int) -> Rows:
        n, size = len(self._split.train), self._sample_size()
        if size == n:
            return np.arange(n)
        return np.sort(generator(self._settings.seed, "subsample", number).permutation(n)[:size])

    def _divide(self, number: int, level: Sequence[Node], choices: Sequence[Choice], *, last: bool) -> list[Node]:
        """Record the splits, send rows to their sides; the children."""
        sides = self._sides(level, choices)
        children: list[Node] = []
        for i, (node, choice) in enumerate(zip(level, choices, strict=True)):
            if choice.owner < 0:
                node.weight = choice.left
                self._end(number, node)
                continue
            at = number * self._goal.outputs + node.output, node.number
            self.trees.owner[at], self.trees.gain[at] = choice.owner, choice.gain
            if choice.owner == OWN:
                self.trees.feature[at], self.trees.cut[at] = self._features[choice.number], self._cuts[choice.number]
            left, right = self._children(node, sides[i])
            left.weight, right.weight = choice.left, choice.right
            if choice.owner > 0:
                self._check_sides(node, choice, left, right, last=last)
            children += [left, right]
        return children

    def _children(self, node: Node, side: NDArray[np.bool_]) -> tuple[Node, Node]:
        goes = np.zeros(len(self._codes), dtype=bool)
        goes[node.rows] = side
        train = goes[self._split.train[node.train]]
        first = 2 * node.number + 1
        left = Node(node.output, first, node.rows[~side], node.train[~train], node)
        right = Node(node.output, first + 1, node.rows[side], node.train[train], node)
        left.twin, right.twin = right, left
        return left, right

    def _sides(self, level: Sequence[Node], choices: Sequence[Choice]) -> dict[int, NDArray[np.bool_]]:
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

    def _end(self, number: int, node: Node) -> None:
        weight = self._weight(node)
        self._scores[node.rows, node.output] += weight
        tree = number * self._goal.outputs + node.output
        self.trees.leaves[tree, leaf_of(node.number, self._settings.depth)] = weight * self._goal.factor


# ---- a passive party


def split_level(
    channel: Channel, active: str, level: int, limits: Limits, codes: Codes, candidates: Candidates,
    trees: PassiveTrees, done: int,
) -> None:  # fmt: skip
    """Record the splits of a level that were chosen of this party's candidates, and say which rows go right."""
    chosen = recv_splits(channel, active, level, limits)
    for one in chosen:
        at = done * limits.outputs + one.output, one.node
        trees.feature[at], trees.cut[at] = candidates.features[one.candidate], candidates.cuts[one.candidate]
        trees.gain[at] = one.gain
    sides = [codes[c.rows, candidates.features[c.candidate]] > candidates.cuts[c.candidate] for c in chosen]
    send_sides(channel, active, sides)


def begin_passive(outputs: int, settings: TreeSettings, sizes: NDArray[np.int64], course: Course) -> PassiveTrees:
    """Room for a passive party's splits, with those that it kept."""
    trees = empty_part(settings.trees * outputs, settings.depth, np.asarray(sizes, dtype=np.int64))
    if course.begun:
        kept = PassiveTrees.from_arrays(course.state)
        for name in ("feature", "cut", "gain"):
            getattr(trees, name)[: kept.trees] = getattr(kept, name)
    return trees


def used_rows(split: Split) -> Rows:
    """Training, validation and test rows, ascending."""
    return np.sort(np.concatenate([split.train, split.valid, split.test]))


def row_flags(rows: Rows, n: int) -> NDArray[np.bool_]:
    """(n,) which rows are among the given ones."""
    flags = np.zeros(n, dtype=bool)
    flags[rows] = True
    return flags


def check_codes(codes: Codes, sizes: NDArray[np.int64], split: Split) -> None:
    """DataError where codes, their sizes and the rows of a split do not belong together."""
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise DataError("codes", f"{codes.dtype} of shape {codes.shape}", allowed=f"uint8, (rows, {len(sizes)})")
    if (np.asarray(sizes) > 256).any() or (len(codes) and (codes.max(axis=0, initial=0) >= sizes).any()):
        raise DataError("codes", "a code that is not below its column's size", allowed="0 to size - 1")
    used = used_rows(split)
    if len(used) and (used[0] < 0 or used[-1] >= len(codes) or (np.diff(used) == 0).any()):
        raise DataError("split", f"rows that are not rows of {len(codes)}, or twice", allowed="disjoint positions")
