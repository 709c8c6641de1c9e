"""A party's part of boosted trees at prediction time: leaves in whole units, and what it brings to the joint product.

The score of a row is Σ over trees and leaves of weight · Π over parties of mark, where a party's mark of a leaf is 1 if
its own splits let the row come there.  The active party brings weight · mark as whole numbers of `unit`, the others
their marks.  How the products are summed is another module's (`tree_shares` with a dealer, `tree_ckks` without); here
everything is a party's own.

Leaf weights are rounded to `UNIT` of a logit (of a regression: to a thousandth of the decade of its largest leaf).  An
exact score is a sum of one leaf a tree, so it says which leaves they were: for 10 trees and two candidates each all of
the other party's paths at 10^-6, a tenth of them at 10^-3.  Hence rounded leaves, and at least `job.MIN_TREES` trees
unless the job says otherwise.  What remains: a receiver with leaf weights can always tell *unlikely* paths from likely
ones, the better the fewer trees the other party splits in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.marked_sum import MAX_LEAVES, MAX_SUM, MAX_VALUE
from fl_core.crypto.ring import U64, Elements, Floats, check_headroom
from fl_core.errors import DataError, RefusedError
from fl_core.learning.binning import BinnedFeatures
from fl_core.learning.boosting import Codes
from fl_core.learning.columns import Columns, Kind
from fl_core.learning.tree_parts import OWN, ActiveTrees, PassiveTrees, TreePart, allowed_leaves
from fl_core.protocols.prediction import tree_ckks, tree_shares
from fl_core.protocols.prediction.part import Arrays, NewRows, Part, Training, malformed
from fl_core.protocols.prediction.plan import Plan

UNIT = 1e-3
EXACT_BITS = 52  # sums are made in float64
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class WholeLeaves:
    """Leaf weights (T, L) and base scores (outputs,) as float64 whole numbers of `unit`.

    bits : 32, or 64 where a score may need more.
    """

    leaves: Floats
    base: Floats
    unit: float
    bits: int

    @classmethod
    def of(cls, trees: ActiveTrees, objective: str) -> WholeLeaves:
        """Round.  Raises `TrainingDiverged` where a score cannot be summed exactly."""
        unit = UNIT
        largest = float(np.abs(trees.leaves).max(initial=0.0))
        if objective == "regression" and largest > 0.0:
            unit = UNIT * 10.0 ** math.floor(math.log10(largest))
        leaves, base = np.rint(trees.leaves / unit), np.rint(trees.base / unit)
        reach = np.abs(base)
        for output in range(trees.outputs):
            reach[output] += np.abs(leaves[output :: trees.outputs]).max(axis=1).sum()
        bound = float(reach.max()) + trees.trees + 1.0  # of what rounding took, which is added up apart
        check_headroom("a score of these trees", bound, EXACT_BITS)
        return cls(leaves, base, unit, 32 if bound < 2.0**31 else 64)


class Layout:
    """Which columns the product has: for each tree the groups of leaves that the other parties' splits tell apart.

    With two parties both know which nodes the passive one splits, so trees in which it splits none need no column, and
    leaves that it does not tell apart share one.  With more, no party may know where another one splits: a column for
    each leaf of each tree.

    Parameters
    ----------
    split : (T, I) nodes that the passive party splits; None with more than two parties.
    shape : T and 2^depth.

    Attributes
    ----------
    groups : for each tree (L,) the group of each leaf. leaders : for each tree the first leaf of each group.
    order : trees with columns, by output. widths : columns of each output.
    """

    def __init__(self, split: Flags | None, shape: tuple[int, int], outputs: int) -> None:
        trees, leaves = shape
        self.groups: list[NDArray[np.int64]] = []
        self.leaders: list[NDArray[np.int64]] = []
        for tree in range(trees):
            signs = np.arange(leaves)[:, None] if split is None else _sides(split[tree], leaves)
            _, first, group = np.unique(signs, axis=0, return_index=True, return_inverse=True)
            self.groups.append(group.reshape(-1))
            self.leaders.append(first)
        self.order = [t for o in range(outputs) for t in range(o, trees, outputs) if len(self.leaders[t]) > 1]
        self.widths = [sum(len(self.leaders[t]) for t in self.order if t % outputs == o) for o in range(outputs)]

    @property
    def columns(self) -> int:
        """Of the product."""
        return sum(self.widths)


def _sides(split: Flags, leaves: int) -> NDArray[np.int8]:
    """(L, I) on which side of each split node a leaf lies, 0 where it is not under it."""
    sides = np.zeros((leaves, len(split)), np.int8)
    for node in np.flatnonzero(split).tolist():
        level = (node + 1).bit_length() - 1
        width = leaves >> level
        start = (node - (2**level - 1)) * width
        sides[start : start + width // 2, node] = -1
        sides[start + width // 2 : start + width, node] = 1
    return sides


def marks(part: TreePart, layout: Layout, codes: Codes, dtype: np.dtype[Any]) -> Elements:
    """(n, columns) what a passive party's splits allow, 0 or 1."""
    made = [allowed_leaves(part, tree, codes)[:, layout.leaders[tree]] for tree in layout.order]
    return _joined(made, len(codes)).astype(dtype)


def values(
    trees: ActiveTrees, whole: WholeLeaves, layout: Layout, codes: Codes, dtype: np.dtype[Any]
) -> tuple[Elements, Elements]:
    """The active party's (n, columns) weights times marks, summed over each group, and (n, outputs) what needs no
    product, rounded once: the base, trees that it splits alone, and of the others the mean of what rounding took from
    the leaves that its own splits leave, which makes the error of a score about half."""
    alone = np.tile(trees.base / whole.unit, (len(codes), 1))
    made, outputs = {}, trees.outputs
    for tree in range(trees.trees):
        allowed = allowed_leaves(trees, tree, codes).astype(np.float64)
        groups = layout.groups[tree]
        member = groups[:, None] == np.arange(len(layout.leaders[tree]))
        sums = allowed @ (member * whole.leaves[tree][:, None])
        exact = trees.leaves[tree] / whole.unit
        if sums.shape[1] > 1:
            made[tree] = sums
            exact = exact - whole.leaves[tree]
        alone[:, tree % outputs] += allowed @ exact / allowed.sum(axis=1)
    joined = _joined([made[tree] for tree in layout.order], len(codes))
    return _elements(joined, dtype), _elements(np.rint(alone), dtype)


def _joined(parts: Sequence[NDArray[Any]], n: int) -> NDArray[Any]:
    return np.concatenate(parts, axis=1) if parts else np.zeros((n, 0))


def _elements(whole: Floats, dtype: np.dtype[Any]) -> Elements:
    return whole.astype(np.int64).view(np.uint64).astype(dtype)


class ForestPart(Part):
    """A party's splits, with the leaves at the active one."""

    def __init__(
        self, training: Training, party: str, classes: tuple[str, ...], where: str,
        about: Mapping[str, Any], arrays: Arrays,
    ) -> None:  # fmt: skip
        super().__init__(training, party, classes, where)
        held = about.get("features")
        self._features = None if held is None else BinnedFeatures.from_dict(held)
        kind: type[TreePart] = ActiveTrees if self.is_active else PassiveTrees
        self.trees = kind.from_arrays(arrays, where=f"{where}: part of a model")
        sizes = np.zeros(0, np.int64) if self._features is None else self._features.sizes
        if self.trees.sizes.tolist() != sizes.tolist():
            raise malformed(where, "splits of other columns")
        if isinstance(self.trees, ActiveTrees):
            whose = self.trees.outputs, int(self.trees.parties)
            if whose != (training.outputs, len(training.parties) - 1):
                raise malformed(where, "trees of other parties or outputs")
        if self.trees.trees % training.outputs:
            raise malformed(where, f"{self.trees.trees} trees for {training.outputs} outputs")

    @property
    def kinds(self) -> dict[str, Kind]:
        """As `Part.kinds`."""
        return {} if self._features is None else self._features.kinds

    def codes(self, columns: Columns) -> Codes:
        """(n, d) of new rows."""
        return np.zeros((len(columns), 0), np.uint8) if self._features is None else self._features.transform(columns)

    def check(self, plan: Plan) -> None:
        """As `Part.check`."""
        super().check(plan)
        rounds = self.trees.trees // self.training.outputs
        if rounds < plan.min_trees:
            problem = f"{self.where}: {rounds} trees a score, with so few an exact one shows the paths of a row"
            raise RefusedError(f"{problem}; allowed: {plan.min_trees} or more, or a smaller predict.min_trees")
        if not rounds:
            raise DataError(self.where, "a model without trees", allowed="one tree or more")
        if plan.protocol == "ckks":
            self._check_ckks()

    def _check_ckks(self) -> None:
        """Whether the sums have room under encryption."""
        problem, trees = "", self.trees
        if (widest := max(self.layout().widths)) > MAX_LEAVES:
            problem = f"{widest} leaves a score"
        elif isinstance(trees, ActiveTrees):
            leaves = np.abs(WholeLeaves.of(trees, self.training.objective).leaves)
            whole = max(leaves[output :: trees.outputs].sum() for output in range(trees.outputs))
            if leaves.max() > MAX_VALUE or whole > MAX_SUM:
                problem = f"leaf weights of up to {leaves.max():.0f} units, {whole:.0f} a score"
        if problem:
            allowed = f"{MAX_LEAVES} leaves, weights up to {MAX_VALUE} and {MAX_SUM} together; or protocol = shared"
            raise DataError(self.where, problem, allowed=allowed)

    def layout(self) -> Layout:
        """The columns of the product, the same at all parties."""
        shape = self.trees.trees, 2**self.trees.depth
        if len(self.training.parties) > 2:
            return Layout(None, shape, self.training.outputs)
        split = self.trees.owner > OWN if isinstance(self.trees, ActiveTrees) else self.trees.feature >= 0
        return Layout(split, shape, self.training.outputs)

    def score(self, channel: Channel, plan: Plan, rows: NewRows) -> Floats | None:
        """As `Part.score`, by shares from the coordinator's randomness or under the active party's key."""
        if not plan.deals:
            return self._score_encrypted(channel, plan, rows)
        layout, codes, trees = self.layout(), self.codes(rows.columns), self.trees
        whole = WholeLeaves.of(trees, self.training.objective) if isinstance(trees, ActiveTrees) else None
        frame = tree_shares.Frame(self.training.parties, plan.receivers, len(codes), tuple(layout.widths))

        def bring(block: slice, dtype: np.dtype[Any]) -> tuple[Elements, Elements | None]:
            if isinstance(trees, ActiveTrees):
                assert whole is not None
                return values(trees, whole, layout, codes[block], dtype)
            return marks(trees, layout, codes[block], dtype), None

        return tree_shares.score(channel, frame, bring, None if whole is None else (whole.unit, whole.bits))

    def _score_encrypted(self, channel: Channel, plan: Plan, rows: NewRows) -> Floats | None:
        layout, codes, trees = self.layout(), self.codes(rows.columns), self.trees
        frame, (peer,) = tree_ckks.Frame(len(codes), tuple(layout.widths)), plan.others(channel.me)
        if not isinstance(trees, ActiveTrees):
            flags = np.dtype(np.bool_)
            tree_ckks.score_passive(channel, peer, frame, lambda block: marks(trees, layout, codes[block], flags))
            return None
        whole = WholeLeaves.of(trees, self.training.objective)

        def bring(block: slice) -> tuple[Floats, Floats]:
            numbers, alone = values(trees, whole, layout, codes[block], U64)
            return numbers.view(np.int64).astype(np.float64), alone.view(np.int64).astype(np.float64)

        return tree_ckks.score_active(channel, peer, frame, bring) * whole.unit
