"""Parts of boosted trees, each at the party that it belongs to.

A tree of depth D has 2^D - 1 inner nodes, 0 the root, 2i+1 and 2i+2 the children of i, and 2^D leaves from left to
right.  Where a node was not split all rows go left.  Tree t is of round t // outputs and output t % outputs.

The active party knows every tree's shape, who owns which split and the leaves; a passive party knows its own splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError
from fl_core.learning.boosting import MAX_DEPTH, Codes, Floats

Arrays = dict[str, NDArray[Any]]
_Part = TypeVar("_Part", bound="TreePart")
OWN, NOBODY = 0, -1
_MAX_TREES = 1 << 20
_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class TreePart:
    """A party's own splits, in T trees of I = 2^depth - 1 inner nodes each.

    Attributes
    ----------
    feature : (T, I) int32, -1 where the node is not split by this party.
    cut : (T, I) uint8: rows with code ≤ cut go left.
    gain : (T, I) float64: of this party's splits (at the active party: of all).
    sizes : (d,) int64: how many codes each feature of this party has.
    """

    feature: NDArray[np.int32]
    cut: NDArray[np.uint8]
    gain: Floats
    sizes: NDArray[np.int64]

    @property
    def trees(self) -> int:
        """T."""
        return len(self.feature)

    @property
    def depth(self) -> int:
        """Levels of splits."""
        return int(self.feature.shape[1] + 1).bit_length() - 1

    @property
    def importance(self) -> Floats:
        """(d,) sum of the gains of this party's splits, by feature."""
        own = self.feature >= 0
        return np.bincount(self.feature[own], weights=self.gain[own], minlength=len(self.sizes)).astype(np.float64)

    def ended(self, tree: int, node: int) -> bool:
        """Whether this party knows that all rows go left here."""
        return False

    def to_arrays(self) -> Arrays:
        """As arrays without objects, for files."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls: type[_Part], held: Mapping[str, NDArray[Any]], *, where: str = "kept trees") -> _Part:
        """Back from `to_arrays`; DataError where it is none."""
        try:
            part = cls(**{field.name: np.asarray(held[field.name]) for field in fields(cls)})
            part._check()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(where, f"malformed ({type(error).__name__})", allowed="what to_arrays gave") from None
        return part

    def first(self: _Part, trees: int) -> _Part:
        """The part without the trees after the first `trees`."""
        return replace(self, **{name: getattr(self, name)[:trees] for name in self._by_tree()})

    def _by_tree(self) -> tuple[str, ...]:
        return "feature", "cut", "gain"

    def _check(self) -> None:
        trees, inner = self.feature.shape
        depth = self.depth
        kinds: list[tuple[NDArray[Any], type]] = [
            (self.feature, np.int32),
            (self.cut, np.uint8),
            (self.gain, np.float64),
            (self.sizes, np.int64),
        ]
        if inner != 2**depth - 1 or not 1 <= depth <= MAX_DEPTH or trees > _MAX_TREES:
            raise ValueError("shape")
        if any(array.dtype != kind for array, kind in kinds) or self.sizes.ndim != 1:
            raise ValueError("types")
        if self.cut.shape != self.feature.shape or self.gain.shape != self.feature.shape:
            raise ValueError("shapes")
        own = self.feature[self.feature >= 0]
        if (self.feature < -1).any() or (own >= len(self.sizes)).any() or not np.isfinite(self.gain).all():
            raise ValueError("splits")


class PassiveTrees(TreePart):
    """What a party without labels keeps."""


@dataclass(frozen=True, eq=False)
class ActiveTrees(TreePart):
    """What the party with labels keeps.

    Attributes
    ----------
    owner : (T, I) int16: who splits: 0 this party, p the p-th passive party from 1, -1 nobody.
    leaves : (T, 2^depth) float64, in the unit of the target or of the logit.
    base : (outputs,) float64, the score before the first tree.
    parties : () int64, how many passive parties there are.
    """

    owner: NDArray[np.int16]
    leaves: Floats
    base: Floats
    parties: NDArray[np.int64]

    @property
    def outputs(self) -> int:
        """Scores a row."""
        return len(self.base)

    @property
    def rounds(self) -> int:
        """Trees a score."""
        return self.trees // self.outputs

    @property
    def party_gain(self) -> Floats:
        """(1 + parties,) sum of the gains of each party's splits, this party's first."""
        split = self.owner >= 0
        weights = self.gain[split]
        return np.bincount(self.owner[split], weights=weights, minlength=1 + int(self.parties)).astype(np.float64)

    def ended(self, tree: int, node: int) -> bool:
        """As `TreePart.ended`."""
        return bool(self.owner[tree, node] == NOBODY)

    def _by_tree(self) -> tuple[str, ...]:
        return *super()._by_tree(), "owner", "leaves"

    def _check(self) -> None:
        super()._check()
        kinds: list[tuple[NDArray[Any], type]] = [
            (self.owner, np.int16),
            (self.leaves, np.float64),
            (self.base, np.float64),
            (self.parties, np.int64),
        ]
        if any(array.dtype != kind for array, kind in kinds) or self.base.ndim != 1 or self.parties.ndim:
            raise ValueError("types")
        if self.owner.shape != self.feature.shape or self.leaves.shape != (self.trees, 2**self.depth):
            raise ValueError("shapes")
        if not len(self.base) or self.trees % len(self.base) or not np.isfinite(self.leaves).all():
            raise ValueError("leaves")
        if not np.isfinite(self.base).all() or ((self.owner == OWN) != (self.feature >= 0)).any():
            raise ValueError("owners")
        if (self.owner < NOBODY).any() or (self.owner > int(self.parties)).any():
            raise ValueError("owners")


def empty_part(trees: int, depth: int, sizes: NDArray[np.int64]) -> PassiveTrees:
    """Room for the splits of a passive party."""
    shape = trees, 2**depth - 1
    return PassiveTrees(np.full(shape, -1, np.int32), np.zeros(shape, np.uint8), np.zeros(shape), sizes)


def empty_trees(trees: int, depth: int, sizes: NDArray[np.int64], base: Floats, parties: int) -> ActiveTrees:
    """Room for the trees at the active party."""
    part = empty_part(trees, depth, sizes)
    owner, leaves = np.full(part.feature.shape, NOBODY, np.int16), np.zeros((trees, 2**depth))
    return ActiveTrees(part.feature, part.cut, part.gain, sizes, owner, leaves, base, np.array(parties, np.int64))


def leaf_of(node: int, depth: int) -> int:
    """The leaf in which rows end that stop at a node, inner or at the bottom."""
    level = (node + 1).bit_length() - 1
    return (node - (2**level - 1)) << (depth - level)


def allowed_leaves(part: TreePart, tree: int, codes: Codes) -> NDArray[np.bool_]:
    """Which leaves a party's own features allow: of all parties' answers for a row exactly one leaf is common.

    Parameters
    ----------
    codes : (n, d) uint8, of this party.

    Returns
    -------
    (n, 2^depth) bool.
    """
    allowed = np.ones((len(codes), 2**part.depth), dtype=bool)
    for node in range(part.feature.shape[1]):
        level = (node + 1).bit_length() - 1
        width = 2 ** (part.depth - level)
        start = (node - (2**level - 1)) * width
        left, right = slice(start, start + width // 2), slice(start + width // 2, start + width)
        feature = int(part.feature[tree, node])
        if feature >= 0:
            goes_right = codes[:, feature] > part.cut[tree, node]
            allowed[:, left] &= ~goes_right[:, None]
            allowed[:, right] &= goes_right[:, None]
        elif part.ended(tree, node):
            allowed[:, right] = False
    return allowed


def joint_scores(trees: ActiveTrees, codes: Codes, others: Sequence[tuple[TreePart, Codes]]) -> Floats:
    """Scores where all parts and all codes are in one place; (n, outputs).

    Parameters
    ----------
    codes : (n, d) of the active party. others : part and codes of each passive party.
    """
    made = np.tile(trees.base, (len(codes), 1))
    for start in range(0, len(codes), _BLOCK):
        block = slice(start, start + _BLOCK)
        for tree in range(trees.trees):
            marks = allowed_leaves(trees, tree, codes[block])
            for part, theirs in others:
                marks &= allowed_leaves(part, tree, theirs[block])
            made[block, tree % trees.outputs] += marks @ trees.leaves[tree]
    return made
